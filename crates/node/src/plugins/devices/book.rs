//! Which devices there are and who has them: decisions without effects. Source: `pkg/kubelet/cm/devicemanager/manager.go`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// What a plugin wants a container to have with its devices.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Answer {
    /// Variables of its environment.
    pub(crate) envs: BTreeMap<String, String>,
    pub(crate) mounts: Vec<Bind>,
    pub(crate) nodes: Vec<Node>,
    /// Devices that are described to the runtime, by their names there.
    pub(crate) cdi: Vec<String>,
}

/// A device of the host that a container may use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Node {
    pub(crate) host_path: String,
    pub(crate) container_path: String,
    /// Of `rwm`.
    pub(crate) permissions: String,
}

/// Something of the host that a container sees.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Bind {
    pub(crate) host_path: String,
    pub(crate) container_path: String,
    pub(crate) read_only: bool,
}

/// Devices of one resource that a container has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Given {
    pub(crate) ids: BTreeSet<String>,
    pub(crate) answer: Answer,
    /// Their plugin has to be told before a container starts with them.
    pub(crate) pre_start: bool,
}

/// By container and resource.
pub(crate) type OfPod = BTreeMap<String, BTreeMap<String, Given>>;

/// The devices of a resource, as their plugin tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Resource {
    healthy: BTreeSet<String>,
    unhealthy: BTreeSet<String>,
}

/// Everything that is known of devices.
#[derive(Debug, Default)]
pub(super) struct Book {
    resources: BTreeMap<String, Resource>,
    given: BTreeMap<String, OfPod>,
    /// Pods that have not been given everything yet.
    asking: BTreeSet<String>,
}

/// What a container asks of a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) container: String,
    pub(super) resource: String,
    pub(super) count: usize,
    /// It ends before the pod's own containers begin, which take its devices over.
    pub(super) passes_on: bool,
}

/// Devices that a container may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice {
    /// Those that it has to be given.
    pub(super) must: BTreeSet<String>,
    /// Those among which the others may be chosen, `must` included.
    pub(super) available: BTreeSet<String>,
}

impl Book {
    /// A plugin tells which devices there are. Answers whether that is news.
    pub(super) fn listed(&mut self, resource: &str, devices: impl Iterator<Item = (String, bool)>) -> bool {
        let mut fresh = Resource::default();
        for (id, healthy) in devices {
            if healthy {
                fresh.healthy.insert(id)
            } else {
                fresh.unhealthy.insert(id)
            };
        }
        let known = self.resources.get(resource);
        let news = known != Some(&fresh);
        self.resources.insert(resource.to_owned(), fresh);
        news
    }

    /// A plugin is away: nobody can say of its devices that they work.
    pub(super) fn lost(&mut self, resource: &str) {
        if let Some(known) = self.resources.get_mut(resource) {
            let away = std::mem::take(&mut known.healthy);
            known.unhealthy.extend(away);
        }
    }

    /// A plugin does not come back. The node has said that there is such a resource: it says that there are none of it.
    pub(super) fn withdrawn(&mut self, resource: &str) {
        if let Some(known) = self.resources.get_mut(resource) {
            *known = Resource::default();
        }
    }

    /// Resources of an earlier run of the node, whose plugins have not come yet, and what it has given. `known`: the pods
    /// that are still there; nobody would free the devices of the others.
    pub(super) fn awaited(
        &mut self,
        resources: impl IntoIterator<Item = String>,
        mut given: BTreeMap<String, OfPod>,
        known: impl Fn(&str) -> bool,
    ) {
        for resource in resources {
            self.resources.entry(resource).or_default();
        }
        given.retain(|uid, _| known(uid));
        self.given = given;
        self.asking.clear();
    }

    /// Of each resource how many there are, and how many work.
    pub(super) fn amounts(&self) -> BTreeMap<String, (usize, usize)> {
        let amount = |of: &Resource| (of.healthy.len() + of.unhealthy.len(), of.healthy.len());
        self.resources.iter().map(|(name, of)| (name.clone(), amount(of))).collect()
    }

    pub(super) fn knows(&self, resource: &str) -> bool {
        self.resources.contains_key(resource)
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.resources.keys().cloned().collect()
    }

    /// Who has what, for those who come after a crash: who was still asking asks anew.
    pub(super) fn settled(&self) -> BTreeMap<String, OfPod> {
        let given = self.given.iter().filter(|(uid, _)| !self.asking.contains(*uid));
        given.map(|(uid, of)| (uid.clone(), of.clone())).collect()
    }

    /// A pod begins to ask.
    pub(super) fn asks(&mut self, uid: &str) {
        self.asking.insert(uid.to_owned());
    }

    /// A pod was given everything that it has asked for.
    pub(super) fn has_all(&mut self, uid: &str) {
        self.asking.remove(uid);
    }

    pub(super) fn of_pod(&self, uid: &str) -> Option<&OfPod> {
        self.given.get(uid)
    }

    /// Among which devices a container's are chosen. `alive`: whose devices are not free. `over`: those of containers of
    /// the pod that will have ended.
    pub(super) fn choice(
        &self,
        uid: &str,
        wish: &Wish,
        over: &BTreeSet<String>,
        alive: impl Fn(&str) -> bool,
    ) -> Result<Choice, String> {
        let Some(known) = self.resources.get(&wish.resource) else {
            return Err(format!("cannot allocate unregistered device {}", wish.resource));
        };
        let used = self.used(&wish.resource, |pod| pod == uid || alive(pod));
        let must: BTreeSet<String> = over.intersection(&known.healthy).take(wish.count).cloned().collect();
        let free = known.healthy.iter().filter(|id| !used.contains(*id) || must.contains(*id));
        let available: BTreeSet<String> = free.cloned().collect();
        if available.len() < wish.count {
            return Err(format!(
                "requested number of devices unavailable for {}. Requested: {}, Available: {}",
                wish.resource,
                wish.count,
                available.len()
            ));
        }
        Ok(Choice { must, available })
    }

    /// Every device that works, with its resource.
    pub(super) fn healthy(&self) -> Vec<(String, String)> {
        let of = |(name, of): (&String, &Resource)| {
            of.healthy.iter().map(|id| (name.clone(), id.clone())).collect::<Vec<_>>()
        };
        self.resources.iter().flat_map(of).collect()
    }

    /// How the devices of a container are, by resource.
    pub(super) fn health(&self, uid: &str, container: &str) -> BTreeMap<String, Vec<(String, &'static str)>> {
        let Some(of) = self.given.get(uid).and_then(|of| of.get(container)) else { return BTreeMap::new() };
        let each = of.iter().map(|(resource, given)| {
            let known = self.resources.get(resource);
            let has = |list: fn(&Resource) -> &BTreeSet<String>, id: &String| {
                known.is_some_and(|known| list(known).contains(id))
            };
            let health = |id: &String| match () {
                () if has(|known| &known.healthy, id) => (id.clone(), "Healthy"),
                () if has(|known| &known.unhealthy, id) => (id.clone(), "Unhealthy"),
                () => (id.clone(), "Unknown"),
            };
            (resource.clone(), given.ids.iter().map(health).collect())
        });
        each.collect()
    }

    fn used(&self, resource: &str, counts: impl Fn(&str) -> bool) -> BTreeSet<&String> {
        let pods = self.given.iter().filter(|(uid, _)| counts(uid));
        let containers = pods.flat_map(|(_, containers)| containers.values());
        containers.filter_map(|of| of.get(resource)).flat_map(|given| &given.ids).collect()
    }

    /// A container has devices now.
    pub(super) fn give(&mut self, uid: &str, wish: &Wish, given: Given) {
        let containers = self.given.entry(uid.to_owned()).or_default();
        containers.entry(wish.container.clone()).or_default().insert(wish.resource.clone(), given);
    }

    /// A pod's devices are free. Answers whether it had some.
    pub(super) fn free(&mut self, uid: &str) -> bool {
        self.asking.remove(uid);
        self.given.remove(uid).is_some()
    }
}

/// Which devices it is to be: those that have to, then those that the plugin would have, then the first. Pure.
pub(super) fn choose(choice: &Choice, count: usize, preferred: &[String]) -> BTreeSet<String> {
    let wanted = choice.must.iter().chain(preferred).chain(&choice.available);
    let mut chosen = BTreeSet::new();
    for id in wanted.filter(|id| choice.available.contains(*id)) {
        if chosen.len() == count {
            break;
        }
        chosen.insert(id.clone());
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    const GPU: &str = "example.com/gpu";

    fn wish(container: &str, count: usize) -> Wish {
        Wish { container: container.into(), resource: GPU.into(), count, passes_on: false }
    }

    fn ids(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn book() -> Book {
        let mut book = Book::default();
        let devices = [("a", true), ("b", true), ("c", true), ("sick", false)];
        assert!(book.listed(GPU, devices.map(|(id, healthy)| (id.to_owned(), healthy)).into_iter()));
        book
    }

    fn none() -> BTreeSet<String> {
        BTreeSet::new()
    }

    #[test]
    fn devices_are_given_once_and_free_again() {
        let mut book = book();
        assert_eq!(book.amounts()[GPU], (4, 3));
        let all = |_: &str| true;
        let choice = book.choice("p1", &wish("m", 2), &none(), all).unwrap();
        assert_eq!(choice.available, ids(&["a", "b", "c"]));
        let chosen = choose(&choice, 2, &["sick".into(), "c".into()]);
        assert_eq!(chosen, ids(&["a", "c"]), "what the plugin would have counts only where it may be had");
        book.give("p1", &wish("m", 2), Given { ids: chosen, ..Given::default() });
        let short = book.choice("p2", &wish("m", 2), &none(), all).unwrap_err();
        assert_eq!(
            short,
            "requested number of devices unavailable for example.com/gpu. Requested: 2, Available: 1"
        );
        assert!(book.choice("p2", &wish("m", 2), &none(), |uid| uid != "p1").is_ok(), "its pod is over");
        assert!(book.free("p1") && !book.free("p1"));
        assert!(book.choice("p2", &wish("m", 3), &none(), all).is_ok());
    }

    #[test]
    fn what_is_being_asked_for_is_nobodys_after_a_crash() {
        let mut book = book();
        let given = |id: &str| Given { ids: ids(&[id]), ..Given::default() };
        book.asks("p1");
        book.give("p1", &wish("init", 1), given("a"));
        book.give("p1", &wish("m", 1), given("b"));
        book.give("p2", &wish("m", 1), given("c"));
        assert_eq!(book.settled().keys().collect::<Vec<_>>(), ["p2"]);
        assert!(book.choice("p3", &wish("m", 1), &none(), |_| true).is_err(), "others do not get it");
        book.has_all("p1");
        assert_eq!(book.settled().keys().collect::<Vec<_>>(), ["p1", "p2"]);
        book.asks("p1");
        book.free("p1");
        book.give("p1", &wish("m", 1), given("a"));
        assert!(book.settled().contains_key("p1"));
    }

    #[test]
    fn the_pods_own_containers_take_over_what_others_had() {
        let mut book = book();
        let all = |_: &str| true;
        book.give("p1", &wish("init", 2), Given { ids: ids(&["b", "c"]), ..Given::default() });
        let choice = book.choice("p1", &wish("m", 3), &ids(&["b", "c"]), all).unwrap();
        assert_eq!(choice.must, ids(&["b", "c"]));
        assert_eq!(choose(&choice, 2, &["a".into()]), ids(&["b", "c"]));
        assert!(book.choice("p1", &wish("m", 3), &none(), all).is_err(), "of one that goes on");
    }

    #[test]
    fn a_plugin_that_is_away_has_no_devices_that_work() {
        let mut book = book();
        book.lost(GPU);
        assert_eq!(book.amounts()[GPU], (4, 0));
        assert!(book.choice("p1", &wish("m", 1), &none(), |_| true).is_err());
        book.withdrawn(GPU);
        assert_eq!(book.amounts()[GPU], (0, 0));
        let mut fresh = Book::default();
        let given = ["here", "gone"].map(|uid| (uid.to_owned(), OfPod::new()));
        fresh.awaited([GPU.to_owned()], given.into(), |uid| uid == "here");
        assert_eq!(fresh.settled().keys().collect::<Vec<_>>(), ["here"]);
        assert_eq!(fresh.amounts()[GPU], (0, 0));
        assert!(fresh.knows(GPU) && !fresh.knows("example.com/x"));
    }
}
