//! Why no node takes a pod: the scheduler's words, and for resources the figures behind them.

use std::collections::BTreeMap;

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Node, Pod};

use super::diagnose::condition;
use super::{Case, Finding};

/// Amounts by resource name.
type Amounts = BTreeMap<String, Quantity>;

/// What keeps a pod off every node; `None` where it has one.
pub(super) fn finding(case: &Case) -> Option<Finding> {
    let spec = case.pod.spec.as_ref()?;
    if spec.node_name.is_some() {
        return None;
    }
    let gates: Vec<&str> = spec.scheduling_gates.iter().flatten().map(|gate| gate.name.as_str()).collect();
    if !gates.is_empty() {
        return Some(Finding {
            cause: format!("scheduling gates hold it back: {}", gates.join(", ")),
            remedy: "whoever set a gate removes it when it is time (spec.schedulingGates)".into(),
            ..Finding::default()
        });
    }
    let scheduler = spec.scheduler_name.as_deref().unwrap_or("default-scheduler");
    let said = condition(&case.pod, "PodScheduled").filter(|condition| condition.status == "False");
    let Some(said) = said else {
        let (cause, remedy) = match scheduler {
            "default-scheduler" => (
                "the scheduler has not looked at it yet".to_owned(),
                "wait a moment; if it stays so, see: skiff status".to_owned(),
            ),
            other => (
                format!("it asks for scheduler {other:?}, and none of that name has taken it"),
                "run that scheduler, or create the pod without spec.schedulerName".to_owned(),
            ),
        };
        return Some(Finding { cause, remedy, ..Finding::default() });
    };
    let message = said.message.clone().unwrap_or_default();
    let mut evidence = vec![message.clone()];
    evidence.extend(case.nodes.iter().flat_map(|node| shortages(case, node)));
    Some(Finding {
        cause: "no node takes it".into(),
        remedy: remedy(&message, case),
        evidence,
        ..Finding::default()
    })
}

/// What to do, by the reasons in the scheduler's message. Source: the filters' messages upstream.
fn remedy(message: &str, case: &Case) -> String {
    let mut ways = Vec::new();
    if case.nodes.is_empty() {
        ways.push("start a node: skiff up");
    }
    if message.contains("Insufficient") || message.contains("Too many pods") {
        ways.push("lower resources.requests, or end other pods");
    }
    if message.contains("taint") {
        ways.push("give the pod a toleration, or take the taint away: skiff kubectl taint node NODE KEY-");
    }
    if message.contains("affinity") || message.contains("selector") {
        ways.push("label a node as the pod's nodeSelector or affinity wants: skiff kubectl label node NODE KEY=VALUE");
    }
    if message.contains("unschedulable") {
        ways.push("let the node take pods again: skiff kubectl uncordon NODE");
    }
    if message.contains("ports") {
        ways.push("choose another hostPort, or end the pod that holds it");
    }
    match ways.is_empty() {
        true => "see what the nodes offer: skiff kubectl describe nodes".into(),
        false => ways.join("; "),
    }
}

/// One line for each resource of which a node has too little left.
fn shortages(case: &Case, node: &Node) -> Vec<String> {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let offered = amounts(node.status.as_ref().and_then(|status| status.allocatable.as_ref()));
    let mut used = Amounts::new();
    for pod in case.placed.iter().filter(|pod| takes_room(pod, name)) {
        add(&mut used, &requests(pod));
    }
    let zero = Quantity::from_milli(0);
    let line = |(resource, wanted): (String, Quantity)| {
        let offered = *offered.get(&resource).unwrap_or(&zero);
        let free = offered.minus(*used.get(&resource).unwrap_or(&zero));
        (wanted > zero && wanted > free)
            .then(|| format!("node {name}: {wanted} {resource} wanted, {free} of {offered} free"))
    };
    requests(&case.pod).into_iter().filter_map(line).collect()
}

fn takes_room(pod: &Pod, node: &str) -> bool {
    let on = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    on == Some(node) && !matches!(phase, Some("Succeeded" | "Failed"))
}

/// What a pod asks for. Source: `resourcehelper.PodRequests`.
fn requests(pod: &Pod) -> Amounts {
    let Some(spec) = &pod.spec else { return Amounts::new() };
    let of = |container: &Container| {
        amounts(container.resources.as_ref().and_then(|resources| resources.requests.as_ref()))
    };
    let mut total = Amounts::new();
    spec.containers.iter().for_each(|container| add(&mut total, &of(container)));
    let (mut sidecars, mut peak) = (Amounts::new(), Amounts::new());
    for container in spec.init_containers.iter().flatten() {
        let mut during = sidecars.clone();
        add(&mut during, &of(container));
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars.clone_from(&during);
        }
        raise(&mut peak, &during);
    }
    add(&mut total, &sidecars);
    raise(&mut total, &peak);
    if let Some(pod) = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()) {
        total.extend(amounts(Some(pod)));
    }
    add(&mut total, &amounts(spec.overhead.as_ref()));
    total
}

type Written = BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>;

/// What cannot be read counts as nothing: the API server has checked it.
fn amounts(written: Option<&Written>) -> Amounts {
    let parsed = |(name, value): (&String, &k8s_openapi::apimachinery::pkg::api::resource::Quantity)| {
        Some((name.clone(), value.0.parse().ok()?))
    };
    written.into_iter().flatten().filter_map(parsed).collect()
}

fn add(total: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        total.entry(name.clone()).and_modify(|sum| *sum = sum.plus(*amount)).or_insert(*amount);
    }
}

fn raise(total: &mut Amounts, floor: &Amounts) {
    for (name, amount) in floor {
        total.entry(name.clone()).and_modify(|sum| *sum = (*sum).max(*amount)).or_insert(*amount);
    }
}
