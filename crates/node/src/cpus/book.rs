//! Who has which CPUs. Pure. Source: `pkg/kubelet/cm/cpumanager/policy_static.go`.

use std::collections::BTreeMap;

use super::CpuSettings;
use super::assign::take;
use super::set::CpuSet;
use super::topology::Topology;
use crate::admission::Refusal;
use crate::pod::resources::{has_whole_amounts, qos_class, request};
use crate::pod::{ContainerKind, PodView, quantity};

/// What is kept over restarts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct State {
    /// What containers without CPUs of their own have together.
    pub(super) pool: CpuSet,
    /// By the pod's uid and the container's name.
    pub(super) given: BTreeMap<String, BTreeMap<String, CpuSet>>,
}

/// What one container wants for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) container: String,
    pub(super) count: usize,
    /// It will have ended when the next ones begin, which may have its CPUs then.
    pub(super) passes_on: bool,
}

/// The machine, and who has what of it.
#[derive(Debug)]
pub(super) struct Book {
    topology: Topology,
    pub(super) reserved: CpuSet,
    full_cores_only: bool,
    pub(super) state: State,
}

/// What the containers of a pod want for themselves, in the order of their starts: whole CPUs, where the pod is guaranteed.
/// A pod that has amounts as a whole shares, as upstream's policy does not know those either.
pub(super) fn wishes(pod: &PodView) -> Vec<Wish> {
    if qos_class(&pod.spec) != "Guaranteed" || has_whole_amounts(&pod.spec) {
        return Vec::new();
    }
    let mut containers: Vec<_> =
        pod.containers().filter(|(kind, _)| *kind != ContainerKind::Ephemeral).collect();
    containers.sort_by_key(|(kind, _)| *kind == ContainerKind::App);
    let wish = |(kind, container): (ContainerKind, &k8s_openapi::api::core::v1::Container)| {
        let milli = request(container, "cpu").map_or(0, quantity::milli);
        let count = usize::try_from(milli / 1000).ok().filter(|count| milli % 1000 == 0 && *count > 0)?;
        Some(Wish { container: container.name.clone(), count, passes_on: kind == ContainerKind::Init })
    };
    containers.into_iter().filter_map(wish).collect()
}

impl Book {
    /// The book of a node with these settings, which goes on with what it has left. `reserved`: how many CPUs are not the
    /// pods' where none are named.
    ///
    /// # Errors
    /// If that cannot be, in upstream's words.
    pub(super) fn open(
        topology: Topology,
        settings: &CpuSettings,
        reserved: usize,
        left: Option<State>,
    ) -> Result<Self, String> {
        let all = topology.cpus();
        let reserved = match &settings.reserved {
            Some(named) if !named.is_within(&all) => {
                return Err(format!("reserved CPUs {named} are not online: the host has {all}"));
            }
            Some(named) => named.clone(),
            None if reserved == 0 => {
                return Err("the static policy requires systemreserved.cpu + kubereserved.cpu to be greater than zero"
                    .to_owned());
            }
            None => take(&topology, &all, reserved)
                .map_err(|error| format!("unable to reserve the required amount of CPUs: {error}"))?,
        };
        let fresh = if settings.strict_reservation { all.without(&reserved) } else { all.clone() };
        let state = match left {
            Some(left) if !left.pool.is_empty() || !left.given.is_empty() => {
                check(&left, &all, &reserved, settings.strict_reservation)?;
                left
            }
            _ => State { pool: fresh, given: BTreeMap::new() },
        };
        Ok(Self { topology, reserved, full_cores_only: settings.full_cores_only, state })
    }

    /// Gives the containers of a pod what they want, or nothing to any of them. Who has something keeps it.
    pub(super) fn give(&mut self, uid: &str, wishes: &[Wish]) -> Result<(), Refusal> {
        let before = self.state.clone();
        let given = self.try_give(uid, wishes);
        if given.is_err() {
            self.state = before;
        }
        given
    }

    fn try_give(&mut self, uid: &str, wishes: &[Wish]) -> Result<(), Refusal> {
        // What containers that will have ended leave.
        let mut over = CpuSet::default();
        for wish in wishes {
            let known = self.of(uid, &wish.container).cloned();
            let cpus = match known {
                Some(cpus) => cpus,
                None => self.choose(wish.count, &over)?,
            };
            self.state.pool = self.state.pool.without(&cpus);
            over = if wish.passes_on { over.with(&cpus) } else { over.without(&cpus) };
            self.state.given.entry(uid.to_owned()).or_default().insert(wish.container.clone(), cpus);
        }
        Ok(())
    }

    fn choose(&self, count: usize, over: &CpuSet) -> Result<CpuSet, Refusal> {
        let free = self.state.pool.without(&self.reserved).with(over);
        if self.full_cores_only {
            self.check_cores(count, over)?;
        }
        take(&self.topology, &free, count).map_err(|error| {
            let message = format!("Allocate failed due to {error}, which is unexpected");
            Refusal::new("UnexpectedAdmissionError", message)
        })
    }

    /// Whether whole cores can be given. Source: `SMTAlignmentError`.
    fn check_cores(&self, count: usize, over: &CpuSet) -> Result<(), Refusal> {
        let threads = self.topology.threads().max(1);
        let refused = |message: String| Err(Refusal::new("SMTAlignmentError", message));
        if !count.is_multiple_of(threads) {
            return refused(format!(
                "SMT Alignment Error: requested {count} cpus not multiple cpus per core = {threads}"
            ));
        }
        let whole = self.state.pool.without(&self.topology.whole_cores(&self.reserved)).with(over).len();
        if count > whole {
            return refused(format!(
                "SMT Alignment Error: not enough free physical CPUs: available physical CPUs = {whole}, \
                 requested CPUs = {count}, CPUs per core = {threads}"
            ));
        }
        Ok(())
    }

    /// A pod has left. Tells whether it had any.
    pub(super) fn free(&mut self, uid: &str) -> bool {
        let Some(containers) = self.state.given.remove(uid) else { return false };
        self.state.pool = containers.values().fold(self.state.pool.clone(), |pool, cpus| pool.with(cpus));
        true
    }

    /// The CPUs that one container has for itself.
    pub(super) fn of(&self, uid: &str, container: &str) -> Option<&CpuSet> {
        self.state.given.get(uid)?.get(container)
    }

    /// Where a container may run.
    pub(super) fn allowed(&self, uid: &str, container: &str) -> CpuSet {
        match self.of(uid, container) {
            Some(own) => own.clone(),
            // Nobody can run nowhere: with a strict reservation all others may have been given away.
            None if self.state.pool.is_empty() => self.reserved.clone(),
            None => self.state.pool.clone(),
        }
    }
}

/// Whether what is left fits to the machine and the settings. Source: `validateState`.
fn check(left: &State, all: &CpuSet, reserved: &CpuSet, strict: bool) -> Result<(), String> {
    let State { pool, given } = left;
    if strict && reserved.meets(pool) {
        return Err(format!(
            "some of strictly reserved cpus: \"{reserved}\" are present in defaultCpuSet: \"{pool}\""
        ));
    }
    if !strict && pool.is_empty() {
        return Err("default cpuset cannot be empty".to_owned());
    }
    if !strict && !reserved.is_within(pool) {
        return Err(format!(
            "not all reserved cpus: \"{reserved}\" are present in defaultCpuSet: \"{pool}\""
        ));
    }
    let each = || given.iter().flat_map(|(uid, of)| of.iter().map(move |(name, cpus)| (uid, name, cpus)));
    if let Some((uid, name, cpus)) = each().find(|(_, _, cpus)| cpus.meets(pool)) {
        return Err(format!(
            "pod: {uid}, container: {name} cpuset: \"{cpus}\" overlaps with default cpuset \"{pool}\""
        ));
    }
    let known = each().fold(pool.clone(), |known, (_, _, cpus)| known.with(cpus));
    let known = if strict { known.with(reserved) } else { known };
    if known != *all {
        return Err(format!(
            "current set of available CPUs \"{all}\" doesn't match with CPUs in state \"{known}\""
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::CpuPolicy;
    use super::super::topology::tests::round;
    use super::*;
    use crate::pod::tests::pod;

    fn settings(reserved: &str) -> CpuSettings {
        let reserved = Some(reserved.parse().unwrap());
        CpuSettings { policy: CpuPolicy::Static, reserved, ..CpuSettings::default() }
    }

    fn wish(container: &str, count: usize, passes_on: bool) -> Wish {
        Wish { container: container.to_owned(), count, passes_on }
    }

    fn shown(book: &Book, uid: &str, container: &str) -> String {
        book.allowed(uid, container).to_string()
    }

    #[test]
    fn whole_cpus_of_guaranteed_pods_are_wished_for() {
        let sized = |name: &str, cpu: &str| json!({ "name": name, "resources": { "limits": { "cpu": cpu, "memory": "1Mi" } } });
        let of = |spec: Value| -> Vec<Wish> { wishes(&pod(spec)) };
        let mut sidecar = sized("side", "1");
        sidecar["restartPolicy"] = "Always".into();
        let mixed = json!({ "containers": [sized("a", "2"), sized("b", "1500m"), sized("c", "1000m")],
            "initContainers": [sized("init", "3"), sidecar] });
        let wanted =
            [wish("init", 3, true), wish("side", 1, false), wish("a", 2, false), wish("c", 1, false)];
        assert_eq!(of(mixed), wanted);
        let burstable =
            json!({ "name": "x", "resources": { "requests": { "cpu": "1" }, "limits": { "cpu": "2" } } });
        assert_eq!(of(json!({ "containers": [sized("a", "1"), burstable] })), []);
        let whole = json!({ "limits": { "cpu": "1", "memory": "1Mi" } });
        assert_eq!(of(json!({ "containers": [sized("a", "1")], "resources": whole })), []);
    }

    #[test]
    fn cpus_are_given_kept_and_given_back() {
        let mut book = Book::open(round(1, 2, 1), &settings("0"), 1, None).unwrap();
        assert_eq!(shown(&book, "b", "main"), "0-1");
        book.give("a", &[wish("main", 1, false)]).unwrap();
        assert_eq!([shown(&book, "a", "main"), shown(&book, "b", "main")], ["1", "0"]);
        book.give("a", &[wish("main", 1, false)]).unwrap();
        let refused = book.give("c", &[wish("main", 1, false)]).unwrap_err();
        let message = "Allocate failed due to not enough cpus available to satisfy request: requested=1, available=0, \
                       which is unexpected";
        assert_eq!(refused, Refusal::new("UnexpectedAdmissionError", message));
        assert!(book.free("a") && !book.free("a") && !book.free("c"));
        assert_eq!(shown(&book, "b", "main"), "0-1");
    }

    #[test]
    fn a_pod_gets_all_or_nothing_and_takes_over_what_its_init_containers_had() {
        let mut book = Book::open(round(1, 4, 1), &settings("0"), 1, None).unwrap();
        assert!(book.give("a", &[wish("x", 2, false), wish("y", 2, false)]).is_err());
        assert_eq!(book.state.pool.to_string(), "0-3");
        let of = [wish("init", 2, true), wish("side", 1, false), wish("main", 2, false)];
        book.give("a", &of).unwrap();
        let had = ["init", "side", "main"].map(|name| shown(&book, "a", name));
        assert_eq!(had, ["1-2", "1", "2-3"]);
        assert_eq!(book.state.pool.to_string(), "0");
        book.free("a");
        assert_eq!(book.state.pool.to_string(), "0-3");
    }

    #[test]
    fn reservations_hold() {
        let none = CpuSettings { policy: CpuPolicy::Static, ..CpuSettings::default() };
        let of = |settings: &CpuSettings, count: usize| Book::open(round(1, 4, 2), settings, count, None);
        // The first core, with both of its threads.
        assert_eq!(of(&none, 2).unwrap().reserved.to_string(), "0,4");
        let nothing =
            "the static policy requires systemreserved.cpu + kubereserved.cpu to be greater than zero";
        assert_eq!(of(&none, 0).unwrap_err(), nothing);
        assert!(of(&none, 9).unwrap_err().starts_with("unable to reserve the required amount of CPUs: "));
        assert_eq!(of(&settings("9"), 1).unwrap_err(), "reserved CPUs 9 are not online: the host has 0-7");
        let strict = CpuSettings { strict_reservation: true, ..settings("0-1") };
        let mut book = Book::open(round(1, 4, 1), &strict, 2, None).unwrap();
        assert_eq!(shown(&book, "b", "main"), "2-3");
        book.give("a", &[wish("main", 2, false)]).unwrap();
        assert_eq!(shown(&book, "b", "main"), "0-1", "where else");
    }

    #[test]
    fn whole_cores_or_none() {
        let whole = CpuSettings { full_cores_only: true, ..settings("0,4") };
        let mut book = Book::open(round(1, 4, 2), &whole, 2, None).unwrap();
        let refused = |given: Result<(), Refusal>| {
            let refusal = given.unwrap_err();
            assert_eq!(refusal.reason, "SMTAlignmentError");
            refusal.message
        };
        let odd = "SMT Alignment Error: requested 3 cpus not multiple cpus per core = 2";
        assert_eq!(refused(book.give("a", &[wish("main", 3, false)])), odd);
        book.give("a", &[wish("main", 4, false)]).unwrap();
        assert_eq!(shown(&book, "a", "main"), "1-2,5-6");
        let few = "SMT Alignment Error: not enough free physical CPUs: available physical CPUs = 2, requested CPUs = 4, \
                   CPUs per core = 2";
        assert_eq!(refused(book.give("b", &[wish("main", 4, false)])), few);
    }

    #[test]
    fn what_does_not_fit_to_the_machine_is_refused() {
        let left = |pool: &str, own: &str| {
            let of_pod = [("main".to_owned(), own.parse().unwrap())].into();
            Some(State { pool: pool.parse().unwrap(), given: [("u".to_owned(), of_pod)].into() })
        };
        let open = |left| Book::open(round(1, 4, 1), &settings("0"), 1, left);
        assert_eq!(shown(&open(left("0-2", "3")).unwrap(), "u", "main"), "3");
        for (left, told) in [
            (left("", "3"), "default cpuset cannot be empty"),
            (left("1-2", "3"), "not all reserved cpus: \"0\" are present in defaultCpuSet: \"1-2\""),
            (left("0-3", "3"), "pod: u, container: main cpuset: \"3\" overlaps with default cpuset \"0-3\""),
            (
                left("0-3", "4"),
                "current set of available CPUs \"0-3\" doesn't match with CPUs in state \"0-4\"",
            ),
        ] {
            assert_eq!(open(left).unwrap_err(), told);
        }
        let strict = CpuSettings { strict_reservation: true, ..settings("0") };
        let with = |left| Book::open(round(1, 4, 1), &strict, 1, left);
        assert!(with(left("1-2", "3")).is_ok());
        let told = "some of strictly reserved cpus: \"0\" are present in defaultCpuSet: \"0-2\"";
        assert_eq!(with(left("0-2", "3")).unwrap_err(), told);
    }
}
