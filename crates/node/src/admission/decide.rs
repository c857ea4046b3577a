//! Whether a node takes a pod: a pure function over the pod, the node and the pods that it has. Reasons and messages are
//! upstream's. Source: `pkg/kubelet/lifecycle/predicate.go`, `pkg/scheduler.AdmissionCheck`, `noderesources.Fits`.

use std::fmt;

use super::asked::{Asked, Machine};
use super::preemption::{self, Shortage};
use crate::resize::{DEFERRED, INFEASIBLE};

/// The operating system of every node.
const LINUX: &str = "linux";
const NO_EXECUTE: &str = "NoExecute";

/// Why a node does not take a pod: `status.reason`, and what users are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: String,
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn new(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { reason: reason.into(), message: message.into() }
    }
}

/// What a node says to a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It fits.
    Admitted,
    /// It fits once these pods (by uid) are gone, which they have to be.
    Preempt(Vec<String>),
    /// Only the node's labels speak against it, and they may have changed a moment ago.
    Mismatch(Refusal),
    /// It does not fit.
    Refused(Refusal),
}

/// One reason why a pod does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Misfit {
    /// Too little of a resource.
    Short(Shortage),
    /// Something else: the name of the check, and what it found.
    Failed(&'static str, &'static str),
}

const AFFINITY: Misfit = Misfit::Failed("NodeAffinity", "node(s) didn't match Pod's node affinity/selector");
const PORTS: Misfit =
    Misfit::Failed("NodePorts", "node(s) didn't have free ports for the requested pod ports");
const TAINTS: Misfit = Misfit::Failed("TaintToleration", "node(s) had taints that the pod didn't tolerate");

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short(Shortage { resource, requested, used, capacity }) => write!(
                f,
                "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, \
                 capacity: {capacity}"
            ),
            Self::Failed(check, found) => write!(f, "Predicate {check} failed: {found}"),
        }
    }
}

impl Misfit {
    fn refusal(&self) -> Refusal {
        let reason = match self {
            Self::Short(Shortage { resource, .. }) => format!("OutOf{resource}"),
            Self::Failed(check, _) => (*check).to_owned(),
        };
        Refusal { reason, message: self.to_string() }
    }
}

/// Whether `machine`, which has `others` (by uid), takes a pod. Pods of files tolerate every taint that expels.
pub(crate) fn decide(asked: &Asked, others: &[(&str, &Asked)], machine: &Machine) -> Verdict {
    if let Some(refusal) = of_another_system(asked) {
        return Verdict::Refused(refusal);
    }
    let misfits = misfits(asked, others, machine);
    let shortages: Vec<Shortage> = misfits.iter().filter_map(Misfit::shortage).cloned().collect();
    // A critical pod is not refused for want of resources.
    let counts = |misfit: &&Misfit| !asked.critical || misfit.shortage().is_none();
    match misfits.iter().find(counts) {
        Some(first) if misfits.iter().all(|misfit| *misfit == AFFINITY) => Verdict::Mismatch(first.refusal()),
        Some(first) => Verdict::Refused(first.refusal()),
        None if shortages.is_empty() => Verdict::Admitted,
        None => match preemption::victims(asked, others, &shortages) {
            Ok(victims) => Verdict::Preempt(victims),
            Err(why) => {
                let message =
                    format!("Unexpected error while attempting to recover from admission failure: {why}");
                Verdict::Refused(Refusal::new("UnexpectedAdmissionError", message))
            }
        },
    }
}

impl Misfit {
    fn shortage(&self) -> Option<&Shortage> {
        match self {
            Self::Short(shortage) => Some(shortage),
            Self::Failed(..) => None,
        }
    }
}

/// What no going of others helps against. Source: `rejectPodAdmissionBasedOnOSSelector`, `…OnOSField`.
fn of_another_system(asked: &Asked) -> Option<Refusal> {
    if asked.os_label.as_deref().is_some_and(|os| os != LINUX) {
        let message = "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label";
        return Some(Refusal::new("PodOSSelectorNodeLabelDoesNotMatch", message));
    }
    let message = "Failed to admit pod as the OS field doesn't match node OS";
    let other = asked.os.as_deref().is_some_and(|os| os != LINUX);
    other.then(|| Refusal::new("PodOSNotSupported", message))
}

/// Everything that speaks against a pod, in upstream's order: the first is what users are told.
fn misfits(asked: &Asked, others: &[(&str, &Asked)], machine: &Machine) -> Vec<Misfit> {
    let mut misfits: Vec<Misfit> = shortages(asked, others, machine).into_iter().map(Misfit::Short).collect();
    if !asked.nodes.allow(&machine.name, &machine.labels) {
        misfits.push(AFFINITY);
    }
    let mut taken = others.iter().flat_map(|(_, other)| &other.ports);
    if taken.any(|taken| asked.ports.iter().any(|port| port.collides(taken))) {
        misfits.push(PORTS);
    }
    let mut expelling = machine.taints.iter().filter(|taint| taint.effect == NO_EXECUTE);
    if expelling.any(|taint| !asked.tolerations.iter().any(|toleration| toleration.covers(taint))) {
        misfits.push(TAINTS);
    }
    misfits
}

/// What there is too little of: first the number of pods, then cores, memory and disk, then all others.
fn shortages(asked: &Asked, others: &[(&str, &Asked)], machine: &Machine) -> Vec<Shortage> {
    const FIRST: [&str; 4] = ["pods", "cpu", "memory", "ephemeral-storage"];
    let rest = asked.requests.keys().map(String::as_str).filter(|name| !FIRST.contains(name));
    let here = |name: &&str| machine.allocatable.contains_key(*name) || !is_extended(name);
    let short = |name: &str| {
        let requested = asked.request(name);
        let used: i128 = others.iter().map(|(_, other)| other.request(name)).sum();
        let capacity = machine.allocatable.get(name).copied().unwrap_or(0);
        let is_short = requested > 0 && requested > capacity - used;
        is_short.then(|| Shortage { resource: name.to_owned(), requested, used, capacity })
    };
    FIRST.into_iter().chain(rest.filter(here)).filter_map(short).collect()
}

/// Why a pod that is here cannot have what it asks for now: never on this node, or not beside `others`.
/// Source: `canResizePod` in `pkg/kubelet/allocation`, `generalFilter`.
pub(super) fn resize_refusal(
    asked: &Asked,
    others: &[(&str, &Asked)],
    machine: &Machine,
) -> Option<(&'static str, String)> {
    let has = |name: &str| machine.allocatable.get(name).copied().unwrap_or(0);
    let beyond = ["memory", "cpu"].into_iter().find(|name| asked.request(name) > has(name));
    if let Some(name) = beyond {
        let (requested, capacity) = (asked.request(name), has(name));
        let message =
            format!("Node didn't have enough capacity: {name}, requested: {requested}, capacity: {capacity}");
        return Some((INFEASIBLE, message));
    }
    let short = shortages(asked, others, machine).into_iter().find(|short| short.resource != "pods")?;
    Some((DEFERRED, Misfit::Short(short).to_string()))
}

/// Whether a name is that of an extended resource: one that the node does not have may be somebody else's to give.
/// Source: `removeMissingExtendedResources`, `v1helper.IsExtendedResourceName`.
pub(crate) fn is_extended(name: &str) -> bool {
    // Quotas name it so.
    let of_quota = || format!("requests.{name}");
    let native = !name.contains('/') || name.contains("kubernetes.io/") || name.starts_with("requests.");
    !native && api::names::qualified_name_problems(&of_quota()).is_empty()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::admission::tests::{asked, machine};

    fn verdict(spec: Value, others: &[Value], node: Value) -> Verdict {
        let others: Vec<Asked> = others.iter().map(|spec| asked("other", spec.clone())).collect();
        let named: Vec<String> = (0..others.len()).map(|at| format!("u{at}")).collect();
        let others: Vec<(&str, &Asked)> = named.iter().map(String::as_str).zip(&others).collect();
        decide(&asked("new", spec), &others, &machine(node))
    }

    fn needs(requests: Value) -> Value {
        json!({ "containers": [{ "name": "c", "image": "x", "resources": { "requests": requests } }] })
    }

    fn with(mut spec: Value, name: &str, value: Value) -> Value {
        spec[name] = value;
        spec
    }

    fn node() -> Value {
        json!({ "metadata": { "labels": { "disk": "ssd" } },
            "status": { "allocatable": { "cpu": "2", "memory": "1Gi", "ephemeral-storage": "10Gi", "pods": "2",
                "hugepages-2Mi": "0", "example.com/gpu": "1" } } })
    }

    #[test]
    fn a_resize_is_refused_for_now_or_for_ever() {
        let machine = machine(node());
        let other = asked("other", needs(json!({ "cpu": "1500m", "memory": "512Mi" })));
        let refusal =
            |requests: Value| resize_refusal(&asked("a", needs(requests)), &[("u", &other)], &machine);
        assert_eq!(refusal(json!({ "cpu": "500m" })), None);
        let short = "Node didn't have enough resource: cpu, requested: 600, used: 1500, capacity: 2000";
        assert_eq!(refusal(json!({ "cpu": "600m" })), Some((DEFERRED, short.to_owned())));
        let never = "Node didn't have enough capacity: cpu, requested: 3000, capacity: 2000";
        assert_eq!(refusal(json!({ "cpu": "3" })), Some((INFEASIBLE, never.to_owned())));
    }

    /// Upstream's cases of `TestGeneralPredicates` and others, as the pods of a real node meet them.
    #[test]
    fn a_pod_is_refused_with_upstreams_reason_and_message() {
        let one = needs(json!({ "cpu": "1500m", "memory": "600Mi", "example.com/gpu": "1" }));
        let ported = |port: u16| {
            json!({ "containers": [{ "name": "c", "image": "x",
                "ports": [{ "containerPort": 1, "hostPort": port }] }] })
        };
        let short = |name: &str, asked: i64, used: i64, capacity: i64| {
            format!(
                "Node didn't have enough resource: {name}, requested: {asked}, used: {used}, capacity: {capacity}"
            )
        };
        let affinity = "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
        let cases = [
            (needs(json!({})), vec![], "", String::new()),
            (needs(json!({ "cpu": "500m" })), vec![one.clone()], "", String::new()),
            (needs(json!({})), vec![one.clone(), one.clone()], "OutOfpods", short("pods", 1, 2, 2)),
            (needs(json!({ "cpu": "501m" })), vec![one.clone()], "OutOfcpu", short("cpu", 501, 1500, 2000)),
            (
                needs(json!({ "memory": "1Gi" })),
                vec![one.clone()],
                "OutOfmemory",
                short("memory", 1 << 30, 600 << 20, 1 << 30),
            ),
            (
                needs(json!({ "ephemeral-storage": "11Gi" })),
                vec![],
                "OutOfephemeral-storage",
                short("ephemeral-storage", 11 << 30, 0, 10 << 30),
            ),
            (
                needs(json!({ "example.com/gpu": "1" })),
                vec![one.clone()],
                "OutOfexample.com/gpu",
                short("example.com/gpu", 1, 1, 1),
            ),
            (needs(json!({ "example.com/elsewhere": "1" })), vec![], "", String::new()),
            (
                needs(json!({ "hugepages-2Mi": "2Mi" })),
                vec![],
                "OutOfhugepages-2Mi",
                short("hugepages-2Mi", 2 << 20, 0, 0),
            ),
            // Of several the first is told.
            (
                with(needs(json!({ "cpu": "3", "memory": "2Gi" })), "nodeSelector", json!({ "disk": "hdd" })),
                vec![],
                "OutOfcpu",
                short("cpu", 3000, 0, 2000),
            ),
            (
                with(ported(80), "nodeSelector", json!({ "disk": "hdd" })),
                vec![ported(80)],
                "NodeAffinity",
                affinity.to_owned(),
            ),
            (
                ported(80),
                vec![ported(80)],
                "NodePorts",
                "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"
                    .to_owned(),
            ),
            (ported(80), vec![ported(81)], "", String::new()),
            (
                with(needs(json!({})), "os", json!({ "name": "windows" })),
                vec![],
                "PodOSNotSupported",
                "Failed to admit pod as the OS field doesn't match node OS".to_owned(),
            ),
            (with(needs(json!({})), "os", json!({ "name": "linux" })), vec![], "", String::new()),
        ];
        for (spec, others, reason, message) in cases {
            let wanted = match reason {
                "" => Verdict::Admitted,
                _ => Verdict::Refused(Refusal::new(reason, message)),
            };
            assert_eq!(verdict(spec.clone(), &others, node()), wanted, "{spec}");
        }
        let elsewhere = with(needs(json!({})), "nodeSelector", json!({ "disk": "hdd" }));
        let mismatch = Verdict::Mismatch(Refusal::new("NodeAffinity", affinity));
        assert_eq!(verdict(elsewhere, &[], node()), mismatch);
    }

    #[test]
    fn taints_that_expel_have_to_be_tolerated() {
        let tainted = |effect: &str| {
            with(node(), "spec", json!({ "taints": [{ "key": "k", "value": "v", "effect": effect }] }))
        };
        let tolerant = |toleration: Value| with(needs(json!({})), "tolerations", json!([toleration]));
        let message = "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate";
        let refused = Verdict::Refused(Refusal::new("TaintToleration", message));
        let cases = [
            (needs(json!({})), "NoExecute", false),
            (needs(json!({})), "NoSchedule", true),
            (needs(json!({})), "PreferNoSchedule", true),
            (tolerant(json!({ "key": "k", "value": "v" })), "NoExecute", true),
            (tolerant(json!({ "operator": "Exists", "tolerationSeconds": 5 })), "NoExecute", true),
            (
                tolerant(json!({ "key": "k", "operator": "Exists", "effect": "NoSchedule" })),
                "NoExecute",
                false,
            ),
        ];
        for (spec, effect, fits) in cases {
            let wanted = if fits { Verdict::Admitted } else { refused.clone() };
            assert_eq!(verdict(spec.clone(), &[], tainted(effect)), wanted, "{spec} {effect}");
        }
    }

    #[test]
    fn a_pod_of_another_system_is_refused_by_its_label() {
        let mut labelled = asked("new", needs(json!({})));
        labelled.os_label = Some("windows".to_owned());
        let message = "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label";
        let refused = Verdict::Refused(Refusal::new("PodOSSelectorNodeLabelDoesNotMatch", message));
        assert_eq!(decide(&labelled, &[], &machine(node())), refused);
    }

    #[test]
    fn a_critical_pod_makes_others_go_and_is_refused_for_other_reasons_only() {
        let critical = |spec: Value| with(spec, "priority", json!(2_000_000_000));
        let big = || critical(needs(json!({ "cpu": "1" })));
        let one = needs(json!({ "cpu": "1500m" }));
        let preempt = |uids: &[&str]| Verdict::Preempt(uids.iter().map(|uid| (*uid).to_owned()).collect());
        assert_eq!(verdict(big(), std::slice::from_ref(&one), node()), preempt(&["u0"]));
        assert_eq!(
            verdict(needs(json!({ "cpu": "1" })), std::slice::from_ref(&one), node()),
            Verdict::Refused(Refusal::new(
                "OutOfcpu",
                "Node didn't have enough resource: cpu, requested: 1000, used: 1500, capacity: 2000"
            ))
        );
        // Nobody is sent away where that would not help.
        let elsewhere = with(big(), "nodeSelector", json!({ "disk": "hdd" }));
        let affinity = "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
        let refused = Verdict::Refused(Refusal::new("NodeAffinity", affinity));
        assert_eq!(verdict(elsewhere, std::slice::from_ref(&one), node()), refused);
        // Critical ones of the same priority stay.
        let why = "Unexpected error while attempting to recover from admission failure: preemption: error finding a set \
                   of pods to preempt: no set of running pods found to reclaim resources: [(res: cpu, q: 500), ]";
        let refused = Verdict::Refused(Refusal::new("UnexpectedAdmissionError", why));
        assert_eq!(verdict(big(), &[critical(one)], node()), refused);
    }

    #[test]
    fn only_names_of_others_are_extended_resources() {
        assert!(is_extended("example.com/gpu") && is_extended("a/b_c.d"));
        for name in [
            "cpu",
            "kubernetes.io/x",
            "a.kubernetes.io/x",
            "xkubernetes.io/y",
            "requests.a/b",
            "a/",
            "/b",
            "a/b/c",
            "a /b",
            "a..b/x",
            "A_b/x",
        ] {
            assert!(!is_extended(name), "{name}");
        }
    }
}
