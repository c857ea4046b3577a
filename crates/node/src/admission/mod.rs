//! What the node itself asks of a pod before anything of it is started: pods reach it beside the scheduler too, by
//! `spec.nodeName`, and two decisions of the scheduler may cross. Who does not fit fails; for a critical pod others have
//! to go. Source: upstream's `pkg/kubelet/lifecycle/predicate.go`, `pkg/kubelet/preemption`.
//!
//! Pods that an earlier run of the agent has taken are not asked again, also where the node has become smaller: their
//! containers run.

mod asked;
mod decide;
mod ports;
pub(crate) mod preemption;
mod resizes;

use std::collections::HashMap;
use std::sync::Arc;

use api::{Key, Object};
use futures::future::join_all;
use parking_lot::Mutex;
use reconcile::kinds;
use serde_json::{Value, json};

use asked::{Asked, Machine};
pub(crate) use decide::{Refusal, is_extended};
use decide::{Verdict, decide};
use resizes::Wish;

use crate::deps::{Deps, blocking};
use crate::eviction::pressure::refusal;
use crate::pod::PodView;
use crate::pod::security::{refuse_app_armor, sysctls};
use crate::registration::allocatable::allocatable;
use crate::registration::object::labels;
use crate::resize::Allocation;
use crate::worker::mailbox::Mailbox;

/// The workers by their pods' uids.
pub(crate) type Workers = Arc<Mutex<HashMap<String, Arc<Mailbox>>>>;

/// The pods that the node has, by uid, with what they ask for.
#[derive(Debug, Default)]
struct Taken {
    places: HashMap<String, Place>,
    /// Guaranteed pods may have CPUs for themselves, which cannot become more or fewer.
    fixed_cpus: bool,
}

#[derive(Debug)]
struct Place {
    /// What it was granted.
    asked: Asked,
    granted: Allocation,
    /// What it asks for beyond that.
    wish: Option<Wish>,
    /// It has to go for the sake of another, which has its place already.
    leaving: bool,
}

impl Taken {
    fn of(deps: &Deps) -> Self {
        Self { places: HashMap::new(), fixed_cpus: deps.cpus.are_given() }
    }

    fn put(&mut self, uid: &str, asked: Asked, granted: Allocation) {
        self.places.insert(uid.to_owned(), Place { asked, granted, wish: None, leaving: false });
    }

    /// The pods that count beside one.
    fn others<'a>(&'a self, uid: &str, lives: impl Fn(&str) -> bool) -> Vec<(&'a str, &'a Asked)> {
        let mut others: Vec<(&str, &Asked)> = self
            .places
            .iter()
            .filter(|(other, place)| *other != uid && !place.leaving && lives(other))
            .map(|(other, place)| (other.as_str(), &place.asked))
            .collect();
        others.sort_unstable_by_key(|(other, _)| *other);
        others
    }

    /// Decides about a pod, and takes it if it fits. Others count if they live: who was told that one is over may come
    /// before the last of that is done here.
    fn ask(
        &mut self,
        uid: &str,
        (asked, granted): (&Asked, &Allocation),
        machine: &Machine,
        lives: impl Fn(&str) -> bool,
    ) -> Verdict {
        let verdict = decide(asked, &self.others(uid, lives), machine);
        if let Verdict::Preempt(victims) = &verdict {
            for victim in victims {
                self.places.entry(victim.clone()).and_modify(|place| place.leaving = true);
            }
        }
        if matches!(verdict, Verdict::Admitted | Verdict::Preempt(_)) {
            self.put(uid, asked.clone(), granted.clone());
        }
        verdict
    }
}

/// What an earlier run of the agent has granted a pod; `None` for one that it has not taken. Whom it took it noted before
/// the API heard of that, and its worker goes by the note: so does the door.
fn taken_before(pod: &PodView, noted: Option<Allocation>) -> Option<Allocation> {
    noted.or_else(|| pod.status.start_time.as_ref().map(|_| Allocation::of(pod)))
}

/// Decides about the pods that come.
pub(crate) struct Door {
    deps: Arc<Deps>,
    workers: Workers,
    taken: Mutex<Taken>,
}

/// A pod that has come, as far as it is decided about.
pub(crate) struct Arrival {
    uid: String,
    asked: Asked,
    granted: Allocation,
    verdict: Verdict,
}

impl Door {
    pub(crate) fn new(deps: Arc<Deps>, workers: Workers) -> Self {
        let taken = Mutex::new(Taken::of(&deps));
        Self { deps, workers, taken }
    }

    /// Begins anew: pods that an earlier run of the agent has taken have their places, in whatever order they are told of.
    pub(crate) async fn begin(&self) {
        let deps = self.deps.clone();
        let taken = blocking(move || {
            let mut taken = Taken::of(&deps);
            for object in deps.caches.pods.list() {
                let Ok(pod) = PodView::decode(&object) else { continue };
                if pod.is_terminal() {
                    continue;
                }
                let uid = deps.runs_as(&pod);
                let noted = Allocation::load(&deps.directories(&uid));
                let Some(granted) = taken_before(&pod, noted) else { continue };
                if let Ok(asked) = Asked::granted(&object, &pod, &granted) {
                    taken.put(&uid, asked, granted);
                }
            }
            taken
        });
        *self.taken.lock() = taken.await.unwrap_or_else(|_| Taken::of(&self.deps));
    }

    /// A pod comes: decided in the order in which pods are told of. One that is over, or about to be, asks for nothing.
    pub(crate) fn arrives(&self, object: &Object, pod: &PodView) -> Arrival {
        let uid = pod.uid().to_owned();
        let is_in =
            pod.is_terminal() || pod.metadata.is_terminating() || self.taken.lock().places.contains_key(&uid);
        let decided = |verdict| Arrival {
            uid: uid.clone(),
            asked: Asked::default(),
            granted: Allocation::default(),
            verdict,
        };
        if is_in {
            return decided(Verdict::Admitted);
        }
        if let Some(refusal) = self.deps.shutdown.refusal() {
            return decided(Verdict::Refused(refusal));
        }
        if let Err(message) = sysctls(&pod.spec) {
            return decided(Verdict::Refused(Refusal::new("SysctlForbidden", message)));
        }
        if let Some(message) = refuse_app_armor(&pod.spec, sys::host::has_app_armor()) {
            return decided(Verdict::Refused(Refusal::new("AppArmor", message)));
        }
        match Asked::of(object, pod) {
            Ok(asked) => {
                let bears_it = asked.bears_memory_pressure();
                let refused = refusal(self.deps.pressure.current(), asked.critical, &asked.qos, bears_it);
                if let Some(refusal) = refused {
                    return decided(Verdict::Refused(refusal));
                }
                let granted = Allocation::of(pod);
                Arrival { verdict: self.ask(&uid, (&asked, &granted), self.machine()), uid, asked, granted }
            }
            Err(error) => {
                let message = format!("cannot read what the pod asks for: {error}");
                decided(Verdict::Refused(Refusal::new("UnexpectedAdmissionError", message)))
            }
        }
    }

    /// What is left to do before a pod begins: the node is asked for once more if its labels alone speak against the pod,
    /// and those that have to go are waited for. The refusal, if it is one after all.
    pub(crate) async fn settle(&self, Arrival { uid, asked, granted, verdict }: Arrival) -> Option<Refusal> {
        let verdict = match verdict {
            Verdict::Mismatch(refusal) => match self.live_machine().await {
                Some(machine) => self.ask(&uid, (&asked, &granted), Ok(machine)),
                None => Verdict::Refused(refusal),
            },
            decided => decided,
        };
        match verdict {
            Verdict::Admitted => None,
            Verdict::Refused(refusal) | Verdict::Mismatch(refusal) => Some(refusal),
            Verdict::Preempt(victims) => {
                let gone: Vec<Arc<Mailbox>> =
                    victims.iter().filter_map(|uid| self.workers.lock().get(uid).cloned()).collect();
                gone.iter().for_each(|mailbox| mailbox.preempt());
                join_all(gone.iter().map(|mailbox| mailbox.over())).await;
                None
            }
        }
    }

    /// A pod's place is free.
    pub(crate) fn leaves(&self, uid: &str) {
        self.taken.lock().places.remove(uid);
        self.freed();
    }

    fn ask(&self, uid: &str, asked: (&Asked, &Allocation), machine: Result<Machine, Refusal>) -> Verdict {
        match machine {
            Ok(machine) => self.taken.lock().ask(uid, asked, &machine, |uid| self.lives(uid)),
            Err(refusal) => Verdict::Refused(refusal),
        }
    }

    /// Whether a file, or the API, knows a pod whose life is not over.
    fn lives(&self, uid: &str) -> bool {
        if self.deps.static_pods.has(uid) {
            return true;
        }
        let Some(object) = self.deps.caches.pods.by_uid(uid) else { return false };
        // A glance at the bytes: most pods live, and none of their words says otherwise.
        let text = std::str::from_utf8(object.bytes()).unwrap_or_default();
        let may_be_over = text.contains("\"Failed\"") || text.contains("\"Succeeded\"");
        !may_be_over || PodView::decode(&object).is_ok_and(|pod| !pod.is_terminal())
    }

    fn key(&self) -> Key {
        Key::new("", self.deps.config.node_name.clone())
    }

    /// The node as the cache has it; while it is not there, or does not say what it has, as this host is.
    /// Source: `getNodeAnyWay`.
    fn machine(&self) -> Result<Machine, Refusal> {
        let known = self.deps.caches.nodes.get(&self.key()).map(|node| node.decode()).transpose();
        let read = known.and_then(|node: Option<Value>| {
            let own = Machine::of(&self.first())?;
            node.map_or(Ok(own.clone()), |node| Ok(Machine::of(&node)?.or_having(own)))
        });
        read.map_err(|error| {
            tracing::error!(%error, "Node not readable");
            Refusal::new("InvalidNodeInfo", "Kubelet cannot get node info.")
        })
    }

    fn first(&self) -> Value {
        let Deps { config, hardware, .. } = &*self.deps;
        json!({
            "metadata": { "name": config.node_name, "labels": labels(config) },
            "status": { "allocatable": allocatable(hardware, config) },
        })
    }

    /// The node as the API server has it.
    async fn live_machine(&self) -> Option<Machine> {
        let node = self.deps.client.get(&kinds::NODES.gvr(), &self.key()).await;
        let node = node.inspect_err(|error| tracing::warn!(%error, "Node not to be had")).ok()?;
        let own = Machine::of(&self.first()).ok()?;
        Some(Machine::of(&node.decode().ok()?).ok()?.or_having(own))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What a pod with this spec asks for.
    pub(crate) fn asked(name: &str, spec: Value) -> Asked {
        let pod = json!({ "apiVersion": "v1", "kind": "Pod", "spec": spec,
            "metadata": { "name": name, "namespace": "ns", "uid": name } });
        let object = Object::parse(pod.to_string().into()).unwrap();
        Asked::of(&object, &PodView::decode(&object).unwrap()).unwrap()
    }

    pub(crate) fn machine(node: Value) -> Machine {
        Machine::of(&node).unwrap()
    }

    #[test]
    fn places_are_taken_kept_and_given_back() {
        let node = machine(json!({ "status": { "allocatable": { "cpu": "1", "pods": "10" } } }));
        let half = |name: &str| {
            let resources = json!({ "requests": { "cpu": "500m" } });
            asked(name, json!({ "containers": [{ "name": "c", "image": "x", "resources": resources }] }))
        };
        let mut taken = Taken::default();
        let all = |_: &str| true;
        let fits = |taken: &mut Taken, name: &str, lives: &dyn Fn(&str) -> bool| {
            taken.ask(name, (&half(name), &Allocation::default()), &node, lives) == Verdict::Admitted
        };
        assert!(fits(&mut taken, "a", &all) && fits(&mut taken, "b", &all));
        assert!(fits(&mut taken, "a", &all), "its own place");
        assert!(!fits(&mut taken, "c", &all));
        assert!(fits(&mut taken, "c", &|uid| uid != "a"), "one is over, and not yet away");
        taken.places.remove("a");
        assert!(!fits(&mut taken, "d", &all));
        let critical = Asked { critical: true, ..half("critical") };
        let victims = Verdict::Preempt(vec!["b".to_owned()]);
        let ask =
            |taken: &mut Taken, name: &str| taken.ask(name, (&critical, &Allocation::default()), &node, all);
        assert_eq!(ask(&mut taken, "critical"), victims);
        assert!(!fits(&mut taken, "d", &all), "the place of who has to go is another's already");
        // Who has to go is not asked for a second time.
        assert_eq!(ask(&mut taken, "second"), Verdict::Preempt(vec!["c".to_owned()]));
    }

    #[test]
    fn who_was_noted_is_taken_as_noted() {
        let pod = |cpu: &str, status: Value| -> PodView {
            let resources = json!({ "requests": { "cpu": cpu } });
            let pod = json!({ "metadata": { "name": "p", "namespace": "ns", "uid": "u" }, "status": status,
                "spec": { "containers": [{ "name": "c", "image": "x", "resources": resources }] } });
            serde_json::from_value(pod).unwrap()
        };
        let (new, begun) = (json!({}), json!({ "startTime": "2027-01-15T08:00:00Z" }));
        let noted = Allocation::of(&pod("1", new.clone()));
        // Killed between the note and the first status, and asked for more since.
        for status in [&new, &begun] {
            let taken = taken_before(&pod("2", status.clone()), Some(noted.clone()));
            assert_eq!(taken, Some(noted.clone()));
        }
        assert_eq!(taken_before(&pod("2", new), None), None);
        let begun = pod("2", begun);
        assert_eq!(taken_before(&begun, None), Some(Allocation::of(&begun)));
    }

    #[test]
    fn a_node_that_does_not_say_what_it_has_has_what_its_host_has() {
        let own = || machine(json!({ "status": { "allocatable": { "cpu": "2", "pods": "110" } } }));
        let silent =
            machine(json!({ "metadata": { "name": "n1", "labels": { "a": "b" } } })).or_having(own());
        assert_eq!((silent.allocatable.get("cpu"), silent.labels.len()), (Some(&2000), 1));
        let says = machine(json!({ "status": { "allocatable": { "cpu": "1" } } })).or_having(own());
        assert_eq!((says.allocatable.get("cpu"), says.allocatable.get("pods")), (Some(&1000), None));
    }

    #[test]
    fn a_pod_asks_for_what_its_spec_says() {
        let mut pod = json!({ "metadata": { "name": "p", "namespace": "ns", "uid": "9cf0a1",
                "annotations": { "kubernetes.io/config.source": "file" }, "labels": { "kubernetes.io/os": "linux" } },
            "spec": { "containers": [{ "name": "c", "image": "x",
                "resources": { "requests": { "cpu": "1", "memory": "1Mi" } } }], "overhead": { "cpu": "100m" } },
            "status": { "qosClass": "Burstable", "containerStatuses": [{ "name": "c", "ready": true, "image": "x",
                "imageID": "", "restartCount": 0, "allocatedResources": { "cpu": "2" } }] } });
        let object = Object::parse(pod.to_string().into()).unwrap();
        let asked = Asked::of(&object, &PodView::decode(&object).unwrap()).unwrap();
        assert_eq!(
            (asked.request("cpu"), asked.request("memory"), asked.request("pods")),
            (1100, 1 << 20, 1)
        );
        assert!(asked.critical, "a pod of a file");
        assert_eq!((asked.os_label.as_deref(), asked.qos.as_str()), (Some("linux"), "Burstable"));
        // Whoever makes a pod may say that it is of a file, or the copy of one: its uid is the server's.
        pod["metadata"]["uid"] = "5e9bcf1c-0d2a-4f6e-8a51-3f1f0b4d9c11".into();
        for annotations in [
            json!({ "kubernetes.io/config.source": "file" }),
            json!({ "kubernetes.io/config.mirror": "9cf0a1" }),
        ] {
            pod["metadata"]["annotations"] = annotations;
            let object = Object::parse(pod.to_string().into()).unwrap();
            let view = PodView::decode(&object).unwrap();
            assert!(!view.is_of_a_file() && !Asked::of(&object, &view).unwrap().critical);
        }
    }
}
