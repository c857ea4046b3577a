//! Disruption budgets: evictions while pods come, break and go. Each that is granted is one that the budget had, and at
//! rest the budget says what is.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use api::Object;
use controllers::deployment::Deployments;
use controllers::disruption::Disruptions;
use controllers::garbage::GarbageCollector;
use controllers::replicaset::{REPLICA_SET, ReplicaSets};
use reconcile::kinds::{DEPLOYMENTS, POD_DISRUPTION_BUDGETS, PODS, REPLICA_SETS};
use serde_json::{Value, json};

use crate::witness::{Seen, Witness, condition, value};
use crate::world::{NAMESPACE, World, seeds};

const STEPS: usize = 70;
const NAME: &str = "web";

pub(crate) async fn world(seed: u64) -> (World, Witness) {
    let world = World::new(seed, |ctx| {
        vec![
            Arc::new(Deployments::new(ctx)),
            Arc::new(ReplicaSets::new(ctx, &REPLICA_SET)),
            Arc::new(Disruptions::new(ctx)),
            Arc::new(GarbageCollector::new(ctx)),
        ]
    })
    .await;
    let kinds = [DEPLOYMENTS, REPLICA_SETS, POD_DISRUPTION_BUDGETS, PODS];
    let witness = Witness::of(&world, &kinds).await;
    (world, witness)
}

pub(crate) fn deployment(replicas: u8) -> Value {
    json!({
        "metadata": { "name": NAME },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": "web" } },
            "template": {
                "metadata": { "labels": { "app": "web" } },
                "spec": { "containers": [{ "name": "web", "image": "web:1" }] },
            },
        },
    })
}

/// What a budget asks for, as chance has it.
pub(crate) fn wish(chance: &mut fastrand::Rng) -> Value {
    let values = [json!(0), json!(1), json!(2), json!(3), json!("25%"), json!("60%")];
    let value = chance.choice(&values).cloned();
    let policy = if chance.bool() { "AlwaysAllow" } else { "IfHealthyBudget" };
    let (least, most) = if chance.bool() { (value, None) } else { (None, value) };
    json!({ "minAvailable": least, "maxUnavailable": most, "unhealthyPodEvictionPolicy": policy })
}

fn budget(chance: &mut fastrand::Rng) -> Value {
    let mut spec = wish(chance);
    spec["selector"] = json!({ "matchLabels": { "app": "web" } });
    json!({ "metadata": { "name": NAME }, "spec": spec })
}

/// A number, or a share rounded up. Source: `intstr.GetScaledValueFromIntOrPercent`.
fn scaled(value: &Value, total: i64) -> i64 {
    match value.as_str().and_then(|text| text.strip_suffix('%')) {
        Some(percent) => (percent.parse::<i64>().unwrap() * total + 99) / 100,
        None => value.as_i64().unwrap(),
    }
}

/// How many pods are expected, and how many of them have to be healthy. Source: `getExpectedPodCount`.
fn wanted(budget: &Object, pods: i64, replicas: i64) -> (i64, i64) {
    let spec = &value(budget)["spec"];
    let scale = if pods == 0 { 0 } else { replicas };
    match (&spec["maxUnavailable"], &spec["minAvailable"]) {
        (Value::Null, Value::Null) => (0, 0),
        (Value::Null, least) if least.is_string() => (scale, scaled(least, scale)),
        (Value::Null, least) => (pods, scaled(least, pods)),
        (most, _) => (scale, (scale - scaled(most, scale)).max(0)),
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap()
}

pub(crate) fn is_healthy(pod: &Object) -> bool {
    !pod.meta().is_terminating() && condition(pod, "Ready")
}

pub(crate) fn number(budget: &Object, field: &str) -> i64 {
    value(budget)["status"][field].as_i64().unwrap_or(0)
}

pub(crate) fn disrupted(budget: &Object) -> BTreeSet<String> {
    let status = value(budget)["status"].clone();
    status["disruptedPods"].as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect()
}

fn replicas(witness: &Witness) -> i64 {
    value(witness.all("Deployment").next().unwrap())["spec"]["replicas"].as_i64().unwrap()
}

/// What always holds.
#[derive(Default)]
struct Always {
    /// The pods whose eviction a budget was charged for.
    charged: BTreeSet<String>,
    /// The uid of the pod that is being evicted.
    evicted: Option<String>,
    /// Healthy pods that went without an eviction: whoever counts may not have seen it yet.
    lost: i64,
    /// In every other story pods go by evictions alone and the number of pods stays: then the budget holds in the eyes of
    /// everybody.
    strict: bool,
}

impl Always {
    fn look(&mut self, witness: &Witness, seen: &Seen) {
        match (seen.kind, &seen.before, &seen.after) {
            ("PodDisruptionBudget", Some(before), Some(after)) => self.see_budget(before, after),
            ("Pod", Some(before), after)
                if is_healthy(before) && after.as_ref().is_none_or(|after| !is_healthy(after)) =>
            {
                self.see_loss(witness, before);
            }
            _ => {}
        }
    }

    /// Whoever takes a disruption takes one that is there, of a status about this generation.
    fn see_budget(&mut self, before: &Object, after: &Object) {
        let more: BTreeSet<_> = disrupted(after).difference(&disrupted(before)).cloned().collect();
        let left = number(after, "disruptionsAllowed");
        assert!(left >= 0, "{left} disruptions are left");
        if more.is_empty() {
            return;
        }
        let had = number(before, "disruptionsAllowed");
        assert_eq!((more.len(), left), (1, had - 1), "{more:?}");
        assert_eq!(number(before, "observedGeneration"), before.meta().generation, "{more:?}");
        self.charged.extend(more);
    }

    fn see_loss(&mut self, witness: &Witness, pod: &Object) {
        if self.evicted.as_ref() != Some(&pod.meta().uid) {
            self.lost += 1;
            return;
        }
        let Some(budget) = witness.all("PodDisruptionBudget").next() else { return };
        assert!(self.charged.contains(&pod.meta().name), "{} is evicted and not counted", pod.key());
        if !self.strict {
            return;
        }
        let pods = count(witness.all("Pod").count());
        let healthy = count(witness.all("Pod").filter(|pod| is_healthy(pod)).count());
        // An integral minimum is one of any number of pods.
        let (_, desired) = wanted(budget, pods, replicas(witness));
        assert!(
            healthy + self.lost >= desired,
            "{healthy} are healthy of {desired}: {}",
            value(budget)["status"]
        );
    }
}

/// Evicts any pod, if its budget allows it.
async fn evict(world: &mut World, witness: &mut Witness, always: &mut Always) {
    let pods: Vec<Arc<Object>> = witness.all("Pod").cloned().collect();
    let Some(pod) = world.chance.choice(&pods) else { return };
    always.evicted = Some(pod.meta().uid.clone());
    let body = json!({ "metadata": { "name": pod.meta().name, "namespace": NAMESPACE } });
    let done = world.user.create_subresource(&PODS.gvr(), &pod.key(), "eviction", &body).await;
    if let Err(status) = done {
        assert!(matches!(status.code, 404 | 409 | 429), "{status:?}");
    }
    witness.catch_up(|witness, seen| always.look(witness, seen)).await;
    always.evicted = None;
}

async fn step(world: &mut World, witness: &mut Witness, always: &mut Always) {
    match world.chance.u8(0..30) {
        0..=7 => evict(world, witness, always).await,
        8 => {
            // Late or early, the status is about another generation until the controller has seen it.
            let spec = wish(&mut world.chance);
            if witness.all("PodDisruptionBudget").next().is_some() {
                world.merge(&POD_DISRUPTION_BUDGETS, NAME, &json!({ "spec": spec })).await;
            }
        }
        9 if !always.strict => {
            if witness.all("PodDisruptionBudget").next().is_some() {
                world.delete(&POD_DISRUPTION_BUDGETS, NAME, None).await;
            } else {
                let budget = budget(&mut world.chance);
                world.create(&POD_DISRUPTION_BUDGETS, &budget).await;
            }
        }
        10 if !always.strict => {
            let replicas = world.chance.u8(0..7);
            world.merge(&DEPLOYMENTS, NAME, &json!({ "spec": { "replicas": replicas } })).await;
        }
        11 if !always.strict => world.delete_pod(witness).await,
        12 => world.restart(),
        13 | 14 => {
            let seconds = world.chance.u64(1..200);
            world.pass(Duration::from_secs(seconds)).await;
        }
        15..=20 => world.settle().await,
        _ => {
            let breaks = !always.strict && world.chance.u8(0..4) == 0;
            world.kubelet(witness, breaks).await;
        }
    }
}

/// Everything runs, and the budget says so.
async fn complete(world: &mut World, witness: &mut Witness, always: &mut Always) {
    world.faults.set(0);
    // Whoever waits for another try gets it, before all pods have come as far as they can and after.
    for _ in 0..2 {
        world.pass(Duration::from_secs(1200)).await;
        witness.catch_up(|witness, seen| always.look(witness, seen)).await;
        world.everything_runs(witness).await;
    }
    world.pass(Duration::from_secs(1200)).await;
    witness.catch_up(|witness, seen| always.look(witness, seen)).await;
    for budget in witness.all("PodDisruptionBudget") {
        let pods = count(witness.all("Pod").count());
        let healthy = count(witness.all("Pod").filter(|pod| is_healthy(pod)).count());
        let (expected, desired) = wanted(budget, pods, replicas(witness));
        let allowed = if expected <= 0 { 0 } else { (healthy - desired).max(0) };
        let fields = ["expectedPods", "desiredHealthy", "currentHealthy", "disruptionsAllowed"];
        let told = fields.map(|field| number(budget, field));
        assert_eq!(told, [expected, desired, healthy, allowed], "{fields:?} {:#}", value(budget));
        assert_eq!(number(budget, "observedGeneration"), budget.meta().generation);
        assert!(disrupted(budget).is_empty(), "{:#}", value(budget));
        assert_eq!(condition(budget, "DisruptionAllowed"), allowed > 0, "{:#}", value(budget));
    }
    world.rest().await;
}

async fn story(seed: u64) {
    let (mut world, mut witness) = world(seed).await;
    let mut always = Always { strict: !seed.is_multiple_of(2), ..Always::default() };
    world.faults.set(20);
    let (replicas, budget) = (world.chance.u8(3..7), budget(&mut world.chance));
    world.create(&DEPLOYMENTS, &deployment(replicas)).await;
    world.create(&POD_DISRUPTION_BUDGETS, &budget).await;
    world.everything_runs(&mut witness).await;
    for _ in 0..STEPS {
        step(&mut world, &mut witness, &mut always).await;
        witness.catch_up(|witness, seen| always.look(witness, seen)).await;
    }
    complete(&mut world, &mut witness, &mut always).await;
}

#[tokio::test]
async fn whatever_happens_evictions_are_those_that_the_budget_has() {
    for seed in seeds(4) {
        println!("seed {seed}");
        story(seed).await;
    }
}
