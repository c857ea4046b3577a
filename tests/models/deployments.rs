//! Deployments with their ReplicaSets.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::{Key, Object};
use controllers::deployment::Deployments;
use controllers::garbage::GarbageCollector;
use controllers::replicaset::{REPLICA_SET, ReplicaSets};
use reconcile::kinds::{DEPLOYMENTS, PODS, REPLICA_SETS};
use serde_json::{Value, json};

use crate::faults::Faults;
use crate::witness::{Seen, Witness, condition, is_active, value};
use crate::world::{NAMESPACE, World, seeds};

const STEPS: usize = 60;

async fn world(seed: u64) -> (World, Witness) {
    let world = World::new(seed, |ctx| {
        vec![
            Arc::new(Deployments::new(ctx)),
            Arc::new(ReplicaSets::new(ctx, &REPLICA_SET)),
            Arc::new(GarbageCollector::new(ctx)),
        ]
    })
    .await;
    let witness = Witness::of(&world, &[DEPLOYMENTS, REPLICA_SETS, PODS]).await;
    (world, witness)
}

fn deployment(replicas: u64, surge: Value, unavailable: Value) -> Value {
    json!({
        "metadata": { "name": "web" },
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 2,
            "selector": { "matchLabels": { "app": "web" } },
            "strategy": { "rollingUpdate": { "maxSurge": surge, "maxUnavailable": unavailable } },
            "template": {
                "metadata": { "labels": { "app": "web" } },
                "spec": { "containers": [{ "name": "web", "image": "web:1" }] },
            },
        },
    })
}

fn image(version: u32) -> Value {
    json!({ "spec": { "template": { "spec": { "containers": [{ "name": "web", "image": format!("web:{version}") }] } } } })
}

/// A number, or a share of the replicas. Source: `intstr.GetScaledValueFromIntOrPercent`.
fn scaled(value: &Value, replicas: i64, up: bool) -> i64 {
    let Some(percent) = value.as_str().and_then(|text| text.strip_suffix('%')) else {
        return value.as_i64().unwrap();
    };
    let share = percent.parse::<i64>().unwrap() * replicas;
    if up { (share + 99) / 100 } else { share / 100 }
}

/// The most pods that a Deployment may have, and how many of them have to be available.
fn bounds(deployment: &Value) -> (i64, i64) {
    let spec = &deployment["spec"];
    let replicas = spec["replicas"].as_i64().unwrap();
    if spec["strategy"]["type"] == "Recreate" {
        return (replicas, 0);
    }
    let rolling = &spec["strategy"]["rollingUpdate"];
    let surge = scaled(&rolling["maxSurge"], replicas, true);
    let unavailable = scaled(&rolling["maxUnavailable"], replicas, false);
    let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
    (replicas + surge, replicas - unavailable.min(replicas))
}

fn wanted(set: &Object) -> i64 {
    value(set)["spec"]["replicas"].as_i64().unwrap()
}

fn available(witness: &Witness) -> i64 {
    let ready = witness.all("Pod").filter(|pod| is_active(pod) && condition(pod, "Ready"));
    i64::try_from(ready.count()).unwrap()
}

/// Every version of the Deployment that its controller may still work by.
#[derive(Default)]
struct Specs(Vec<Value>);

impl Specs {
    fn see(&mut self, deployment: &Object) {
        let deployment = value(deployment);
        let observed = deployment["status"]["observedGeneration"].as_i64().unwrap_or(0);
        self.0.retain(|held| held["metadata"]["generation"].as_i64().unwrap() >= observed);
        self.0.push(deployment);
    }

    fn most(&self) -> i64 {
        self.0.iter().map(|held| bounds(held).0).max().unwrap_or(0)
    }

    fn least_available(&self) -> i64 {
        self.0.iter().map(|held| bounds(held).1).min().unwrap_or(0)
    }
}

/// What holds at any moment of any story: nothing is owned by two, no set has more pods than it was ever told to have
/// since it said that it had seen what it was told, and the sets together never want more than the Deployment allows.
struct Always {
    specs: Specs,
    /// Of each set what it may still work by: generation and replicas.
    sets: BTreeMap<String, Vec<(i64, i64)>>,
    faults: Arc<Faults>,
}

impl Always {
    fn look(&mut self, witness: &Witness, seen: &Seen) {
        match (seen.kind, &seen.after) {
            ("Deployment", Some(deployment)) => self.specs.see(deployment),
            ("ReplicaSet", Some(set)) => {
                self.see_set(set);
                if wanted(set) > seen.before.as_deref().map_or(0, wanted) {
                    let all: i64 = witness.all("ReplicaSet").map(|set| wanted(set)).sum();
                    let most = self.specs.most();
                    assert!(all <= most, "the sets want {all} pods of {most}: {:?}", names(witness));
                }
            }
            ("Pod", Some(pod)) if seen.before.is_none() => self.see_new_pod(witness, pod),
            _ => {}
        }
    }

    fn see_set(&mut self, set: &Object) {
        let (uid, set) = (set.meta().uid.clone(), value(set));
        let observed = set["status"]["observedGeneration"].as_i64().unwrap_or(0);
        let told = self.sets.entry(uid).or_default();
        told.retain(|(generation, _)| *generation >= observed);
        told.push((
            set["metadata"]["generation"].as_i64().unwrap(),
            set["spec"]["replicas"].as_i64().unwrap(),
        ));
    }

    fn see_new_pod(&self, witness: &Witness, pod: &Object) {
        let owner = &pod.meta().controller().unwrap().uid;
        let most = self.sets[owner].iter().map(|(_, replicas)| *replicas).max().unwrap();
        let active = witness.owned("Pod", owner).filter(|pod| is_active(pod)).count();
        let active = active.saturating_sub(self.faults.lost_creations());
        assert!(i64::try_from(active).unwrap() <= most, "{active} pods of a set that wants {most}");
    }
}

fn names(witness: &Witness) -> Vec<(String, i64)> {
    witness.all("ReplicaSet").map(|set| (set.meta().name.clone(), wanted(set))).collect()
}

/// Everything is as the Deployment says, and stays so: nobody writes anything any more.
async fn complete(world: &mut World, witness: &mut Witness, always: &mut Always) {
    world.faults.set(0);
    for _ in 0..200 {
        // Whoever waits for another try gets it.
        world.pass(Duration::from_secs(600)).await;
        witness.catch_up(|witness, seen| always.look(witness, seen)).await;
        if !world.kubelet(witness, false).await {
            break;
        }
    }
    let Some(deployment) = witness.all("Deployment").next().cloned() else { return };
    let told = value(&deployment);
    let replicas = &told["spec"]["replicas"];
    let newest = &told["spec"]["template"]["spec"]["containers"][0]["image"];
    for pod in witness.all("Pod").filter(|pod| is_active(pod)) {
        assert_eq!(&value(pod)["spec"]["containers"][0]["image"], newest);
        let owner = pod.meta().controller().unwrap();
        assert!(witness.all("ReplicaSet").any(|set| set.meta().uid == owner.uid), "an orphan is left");
    }
    assert_eq!(available(witness), replicas.as_i64().unwrap(), "{told:#}");
    let old = witness.all("ReplicaSet").filter(|set| wanted(set) == 0).count();
    assert!(old <= 3, "{old} old sets are kept of 2");
    world.rest().await;
}

/// One thing that users, kubelets, time or a kill do.
async fn step(world: &mut World, witness: &mut Witness, version: &mut u32) {
    match world.chance.u8(0..20) {
        0 | 1 => {
            let replicas = world.chance.u8(0..7);
            world.merge(&DEPLOYMENTS, "web", &json!({ "spec": { "replicas": replicas } })).await;
        }
        2 => {
            // Now and then back to a template of before.
            *version = if world.chance.bool() { *version + 1 } else { version.saturating_sub(1) };
            world.merge(&DEPLOYMENTS, "web", &image(*version)).await;
        }
        3 => {
            let paused = world.chance.bool();
            world.merge(&DEPLOYMENTS, "web", &json!({ "spec": { "paused": paused } })).await;
        }
        4 => {
            let values = [json!(0), json!(1), json!(2), json!("25%"), json!("50%")];
            let surge = world.chance.choice(&values).cloned();
            let unavailable = world.chance.choice(&values[1..]).cloned();
            let rolling = json!({ "maxSurge": surge, "maxUnavailable": unavailable });
            world
                .merge(&DEPLOYMENTS, "web", &json!({ "spec": { "strategy": { "rollingUpdate": rolling } } }))
                .await;
        }
        5 => world.delete_pod(witness).await,
        6 => world.restart(),
        7 | 8 => {
            let seconds = world.chance.u64(1..900);
            world.pass(Duration::from_secs(seconds)).await;
        }
        9..=11 => world.settle().await,
        _ => {
            let breaks = world.chance.u8(0..4) == 0;
            world.kubelet(witness, breaks).await;
        }
    }
}

async fn story(seed: u64) {
    let (mut world, mut witness) = world(seed).await;
    let mut always = Always { specs: Specs::default(), sets: BTreeMap::new(), faults: world.faults.clone() };
    world.faults.set(20);
    world.create(&DEPLOYMENTS, &deployment(3, json!(1), json!(1))).await;
    let mut version = 1;
    for _ in 0..STEPS {
        step(&mut world, &mut witness, &mut version).await;
        witness.catch_up(|witness, seen| always.look(witness, seen)).await;
    }
    world.merge(&DEPLOYMENTS, "web", &json!({ "spec": { "paused": false } })).await;
    complete(&mut world, &mut witness, &mut always).await;
    world
        .user
        .delete(&DEPLOYMENTS.gvr(), &Key::new(NAMESPACE, "web"), api::DeleteOptions::default())
        .await
        .unwrap();
    complete(&mut world, &mut witness, &mut always).await;
    let left: Vec<_> =
        ["Deployment", "ReplicaSet", "Pod"].iter().flat_map(|kind| witness.all(kind)).collect();
    assert!(left.is_empty(), "left behind: {:?}", left.iter().map(|one| one.key()).collect::<Vec<_>>());
}

#[tokio::test]
async fn whatever_happens_bounds_hold_and_rollouts_end() {
    for seed in seeds(8) {
        println!("seed {seed}");
        story(seed).await;
    }
}

/// A rollout in which nothing breaks but requests, watches and controllers: so many pods are always available, and never
/// more are there than allowed, not even for a moment.
async fn calm_rollout(seed: u64, surge: &Value, unavailable: &Value) {
    let (mut world, mut witness) = world(seed).await;
    let made = deployment(6, surge.clone(), unavailable.clone());
    world.create(&DEPLOYMENTS, &made).await;
    world.everything_runs(&mut witness).await;
    let mut specs = Specs::default();
    specs.0.push(made);
    let (most, least) = (specs.most(), specs.least_available());
    assert_eq!(available(&witness), 6);
    world.faults.set(15);
    world.merge(&DEPLOYMENTS, "web", &image(2)).await;
    let done = |witness: &Witness| {
        let deployment = value(witness.all("Deployment").next().unwrap());
        let status = &deployment["status"];
        status["observedGeneration"] == deployment["metadata"]["generation"]
            && ["replicas", "updatedReplicas", "availableReplicas"].iter().all(|count| status[count] == 6)
    };
    for _ in 0..400 {
        if world.chance.u8(0..40) == 0 {
            world.restart();
        }
        world.kubelet(&witness, false).await;
        world.pass(Duration::from_secs(5)).await;
        witness
            .catch_up(|witness, _| {
                let active = witness.all("Pod").filter(|pod| is_active(pod)).count();
                let active = active.saturating_sub(world.faults.lost_creations());
                assert!(i64::try_from(active).unwrap() <= most, "{active} pods of {most}");
                let available = available(witness);
                assert!(available >= least, "{available} are available of {least}");
            })
            .await;
        if done(&witness) {
            return;
        }
    }
    panic!("the rollout does not end: {:?}", names(&witness));
}

#[tokio::test]
async fn a_rollout_never_has_too_many_or_too_few_pods() {
    let bounds =
        [(json!(1), json!(0)), (json!(0), json!(1)), (json!("25%"), json!("25%")), (json!(3), json!(2))];
    for (seed, (surge, unavailable)) in (1..).zip(&bounds) {
        for more in seeds(3) {
            calm_rollout(seed + 100 * more, surge, unavailable).await;
        }
    }
}
