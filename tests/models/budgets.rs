//! Several disruption budgets over the same pods: while a pod that runs has more than one nobody evicts it, and none is
//! charged for the attempt; with one, it goes as that says, healthy or not.

use std::sync::Arc;
use std::time::Duration;

use api::{Object, Status};
use reconcile::kinds::{DEPLOYMENTS, POD_DISRUPTION_BUDGETS, PODS};
use serde_json::{Value, json};

use crate::disruptions::{deployment, disrupted, is_healthy, number, wish, world};
use crate::kubelet::or_too_late;
use crate::witness::{Seen, Witness, condition, value};
use crate::world::{NAMESPACE, World, seeds};

const STEPS: usize = 80;
/// Budgets of all pods, of those with a label, and of nobody.
const NAMES: [&str; 3] = ["all", "some", "none"];
const REFUSED: &str =
    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";

fn budget(chance: &mut fastrand::Rng, name: &str) -> Value {
    let mut spec = wish(chance);
    spec["selector"] = match name {
        "all" => json!({}),
        "some" => json!({ "matchLabels": { "tier": "x" } }),
        _ => json!({ "matchLabels": { "app": "nobody" } }),
    };
    json!({ "metadata": { "name": name }, "spec": spec })
}

fn budgets_of(witness: &Witness, pod: &Object) -> Vec<Arc<Object>> {
    let labelled = pod.meta().labels.get("tier").is_some_and(|tier| tier == "x");
    let selects = |budget: &&Arc<Object>| match budget.meta().name.as_str() {
        "all" => true,
        "some" => labelled,
        _ => false,
    };
    witness.all("PodDisruptionBudget").filter(selects).cloned().collect()
}

fn runs(pod: &Object) -> bool {
    value(pod)["status"]["phase"] == "Running" && !pod.meta().is_terminating()
}

/// No budget tells of more than there is, by its own account.
fn see(seen: &Seen) {
    let ("PodDisruptionBudget", Some(budget)) = (seen.kind, &seen.after) else { return };
    let [left, healthy, desired] =
        ["disruptionsAllowed", "currentHealthy", "desiredHealthy"].map(|field| number(budget, field));
    assert!(left >= 0 && left <= (healthy - desired).max(0), "{:#}", value(budget)["status"]);
    let expected = number(budget, "expectedPods");
    assert!(budget.meta().name != "none" || (expected, left) == (0, 0), "{:#}", value(budget)["status"]);
}

/// What an eviction came to, and what the budgets were before and after.
async fn evict(world: &World, witness: &mut Witness, pod: &Object) {
    // Whoever works on budgets waits now: what is seen is what the eviction finds.
    world.settle().await;
    witness.catch_up(|_, seen| see(seen)).await;
    let Some(live) = witness.all("Pod").find(|held| held.meta().uid == pod.meta().uid).cloned() else {
        return;
    };
    let budgets = budgets_of(witness, &live);
    let body = json!({ "metadata": { "name": pod.meta().name, "namespace": NAMESPACE } });
    let done = world.user.create_subresource(&PODS.gvr(), &pod.key(), "eviction", &body).await;
    witness.catch_up(|_, seen| see(seen)).await;
    let after = budgets_of(witness, &live);
    if !runs(&live) {
        assert!(done.is_ok(), "{done:?} {:#}", value(&live)["status"]);
        return;
    }
    match (budgets.as_slice(), done) {
        ([], done) => assert!(done.is_ok(), "{done:?}"),
        ([budget], done) => {
            let now = after.iter().find(|held| held.meta().name == budget.meta().name).unwrap();
            see_one(&live, budget, now, done.as_ref().err());
        }
        (_, done) => {
            let status = done.unwrap_err();
            assert_eq!((status.code, status.message.as_str()), (500, REFUSED));
            let counts = |held: &[Arc<Object>]| -> Vec<_> {
                held.iter()
                    .map(|held| (held.key(), disrupted(held), number(held, "disruptionsAllowed")))
                    .collect()
            };
            assert_eq!(counts(&budgets), counts(&after), "a budget is charged for what was refused");
            let held = witness.all("Pod").find(|held| held.meta().uid == pod.meta().uid).unwrap();
            assert!(!condition(held, "DisruptionTarget") && !held.meta().is_terminating());
        }
    }
}

/// An eviction by one budget. Source: KEP-3017, `canIgnorePDB`.
fn see_one(pod: &Object, before: &Object, after: &Object, refused: Option<&Status>) {
    let [healthy, desired] = ["currentHealthy", "desiredHealthy"].map(|field| number(before, field));
    let always = value(before)["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow";
    let charged =
        disrupted(after).contains(&pod.meta().name) && !disrupted(before).contains(&pod.meta().name);
    let told = number(before, "observedGeneration") >= before.meta().generation;
    let left = number(before, "disruptionsAllowed");
    if !is_healthy(pod) && (always || (healthy >= desired && desired > 0)) {
        assert!(refused.is_none() && !charged, "{refused:?}");
        return;
    }
    let may = told && left > 0;
    assert_eq!(may, refused.is_none(), "{left} are left: {refused:?}");
    let Some(status) = refused else { return };
    assert_eq!(status.code, 429, "{status:?}");
    assert!(!charged, "charged for what was refused");
    let cause = &status.details.causes[0].message;
    let name = &before.meta().name;
    let wanted = if told {
        format!("The disruption budget {name} needs {desired} healthy pods and has {healthy} currently")
    } else {
        format!("The disruption budget {name} is still being processed by the server.")
    };
    let other = told && healthy > desired;
    assert!(other || *cause == wanted, "{cause} {:#}", value(before)["status"]);
}

async fn step(world: &mut World, witness: &mut Witness) {
    let name = *world.chance.choice(&NAMES).unwrap();
    let there = witness.all("PodDisruptionBudget").any(|budget| budget.meta().name == name);
    match world.chance.u8(0..30) {
        0..=8 => {
            let pods: Vec<_> = witness.all("Pod").cloned().collect();
            let Some(pod) = world.chance.choice(&pods).cloned() else { return };
            evict(world, witness, &pod).await;
        }
        9 | 10 if there => world.delete(&POD_DISRUPTION_BUDGETS, name, None).await,
        9..=11 if !there => {
            let budget = budget(&mut world.chance, name);
            world.create(&POD_DISRUPTION_BUDGETS, &budget).await;
        }
        11 => {
            let spec = wish(&mut world.chance);
            world.merge(&POD_DISRUPTION_BUDGETS, name, &json!({ "spec": spec })).await;
        }
        12 | 13 => {
            let pods: Vec<_> = witness.all("Pod").map(|pod| pod.meta().name.clone()).collect();
            let Some(pod) = world.chance.choice(&pods).cloned() else { return };
            let tier = world.chance.bool().then_some("x");
            let patch = json!({ "metadata": { "labels": { "tier": tier } } });
            or_too_late(world.try_merge(&PODS, &pod, &patch).await);
        }
        14 => world.restart(),
        15 | 16 => {
            let seconds = world.chance.u64(1..200);
            world.pass(Duration::from_secs(seconds)).await;
        }
        17..=20 => world.settle().await,
        _ => {
            let breaks = world.chance.u8(0..3) == 0;
            world.kubelet(witness, breaks).await;
        }
    }
}

async fn story(seed: u64) {
    let (mut world, mut witness) = world(seed).await;
    world.faults.set(20);
    let replicas = world.chance.u8(3..7);
    world.create(&DEPLOYMENTS, &deployment(replicas)).await;
    world.everything_runs(&mut witness).await;
    for _ in 0..STEPS {
        step(&mut world, &mut witness).await;
        witness.catch_up(|_, seen| see(seen)).await;
    }
    world.faults.set(0);
    for _ in 0..3 {
        world.pass(Duration::from_secs(1200)).await;
        witness.catch_up(|_, seen| see(seen)).await;
        world.everything_runs(&mut witness).await;
    }
    world.pass(Duration::from_secs(1200)).await;
    witness.catch_up(|_, seen| see(seen)).await;
    for budget in witness.all("PodDisruptionBudget") {
        let pods = witness.all("Pod").filter(|pod| {
            budgets_of(&witness, pod).iter().any(|held| held.meta().name == budget.meta().name)
        });
        let healthy = pods.filter(|pod| is_healthy(pod)).count();
        assert_eq!(number(budget, "currentHealthy"), i64::try_from(healthy).unwrap(), "{:#}", value(budget));
        assert!(disrupted(budget).is_empty(), "{:#}", value(budget));
    }
    world.rest().await;
}

#[tokio::test]
async fn whatever_happens_a_pod_of_several_budgets_is_not_evicted() {
    for seed in seeds(4) {
        println!("seed {seed}");
        story(seed).await;
    }
}
