//! What cannot be done, is contested or never comes: sets that select each other's pods, more pods than a quota lets in,
//! budgets of nobody, schedules without a moment. Each ends in the condition and event that upstream gives, and nobody works
//! on it more often than something changes or a back-off ends.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use api::{Object, Status};
use controllers::cronjob::CronJobs;
use controllers::disruption::Disruptions;
use controllers::garbage::GarbageCollector;
use controllers::job::Jobs;
use controllers::quota::Quotas;
use controllers::replicaset::{REPLICA_SET, REPLICATION_CONTROLLER, ReplicaSets};
use controllers::statefulset::StatefulSets;
use reconcile::kinds::{
    CRON_JOBS, EVENTS, JOBS, Kind, POD_DISRUPTION_BUDGETS, PODS, REPLICA_SETS, REPLICATION_CONTROLLERS,
    RESOURCE_QUOTAS, STATEFUL_SETS,
};
use serde_json::{Value, json};

use crate::kubelet::or_too_late;
use crate::witness::{Seen, Witness, condition, value};
use crate::world::{NAMESPACE, World, seeds};

const KINDS: [Kind; 8] = [
    PODS,
    REPLICA_SETS,
    REPLICATION_CONTROLLERS,
    STATEFUL_SETS,
    JOBS,
    CRON_JOBS,
    POD_DISRUPTION_BUDGETS,
    RESOURCE_QUOTAS,
];
/// How many pods there may be at most, which is fewer than all want.
const QUOTA: usize = 4;
const HOURS: u64 = 4;
/// Nobody looks at a thing more often than so many times for each change of anything, …
const EACH_CHANGE: u64 = 6;
/// … and than so many times in an hour, when it cannot be done: by a back-off that goes up to five minutes, and rounds.
const EACH_HOUR: u64 = 15;

async fn world(seed: u64) -> (World, Witness) {
    let world = World::new(seed, |ctx| {
        vec![
            Arc::new(ReplicaSets::new(ctx, &REPLICA_SET)),
            Arc::new(ReplicaSets::new(ctx, &REPLICATION_CONTROLLER)),
            Arc::new(StatefulSets::new(ctx)),
            Arc::new(Jobs::new(ctx)),
            Arc::new(CronJobs::new(ctx)),
            Arc::new(Disruptions::new(ctx)),
            Arc::new(Quotas::new(ctx)),
            Arc::new(GarbageCollector::new(ctx)),
        ]
    })
    .await;
    let witness = Witness::of(&world, &[&KINDS[..], &[EVENTS]].concat()).await;
    (world, witness)
}

fn template(app: &str, policy: &str) -> Value {
    json!({
        "metadata": { "labels": { "app": app } },
        "spec": { "restartPolicy": policy, "containers": [{ "name": "c", "image": "c:1" }] },
    })
}

/// All that is asked for, in any order.
fn wishes() -> Vec<(Kind, Value)> {
    let always = template("x", "Always");
    let selector = json!({ "matchLabels": { "app": "x" } });
    let set = |name: &str| {
        json!({ "metadata": { "name": name }, "spec": {
            "replicas": 2, "selector": selector, "template": always } })
    };
    let mut stateful = set("stateful");
    stateful["spec"]["serviceName"] = "stateful".into();
    let mut controller = set("controller");
    controller["spec"]["selector"] = json!({ "app": "x" });
    let work = json!({ "template": template("work", "Never") });
    let cron = |name: &str, schedule: &str| json!({ "metadata": { "name": name }, "spec": { "schedule": schedule, "jobTemplate": { "spec": work } } });
    let hard = json!({ "pods": QUOTA.to_string() });
    let budget = |name: &str, app: &str| {
        json!({ "metadata": { "name": name }, "spec": { "minAvailable": 1,
            "selector": { "matchLabels": { "app": app } } } })
    };
    vec![
        (REPLICA_SETS, set("one")),
        (REPLICA_SETS, set("two")),
        (REPLICATION_CONTROLLERS, controller),
        (STATEFUL_SETS, stateful),
        (JOBS, json!({ "metadata": { "name": "work" }, "spec": work })),
        (CRON_JOBS, cron("never", "0 0 31 2 *")),
        (CRON_JOBS, cron("leap", "0 0 30 2 *")),
        (POD_DISRUPTION_BUDGETS, budget("nobody", "nobody")),
        (POD_DISRUPTION_BUDGETS, budget("all", "x")),
        (RESOURCE_QUOTAS, json!({ "metadata": { "name": "tight" }, "spec": { "hard": hard } })),
    ]
}

fn or_refused(done: Result<Arc<Object>, Status>) {
    if let Err(status) = done {
        assert!(matches!(status.code, 403 | 409), "{status:?}");
    }
}

/// One change by a user: pods of nobody, pods that change hands, a quota below what is used.
async fn meddle(world: &mut World, witness: &Witness, number: usize) {
    let pods: Vec<_> = witness.all("Pod").map(|pod| pod.meta().name.clone()).collect();
    match (world.chance.u8(0..8), world.chance.choice(&pods).cloned()) {
        (0, _) => {
            let mut pod = template("x", "Always");
            pod["metadata"]["name"] = format!("nobodys-{number}").into();
            or_refused(world.user.create(&PODS.gvr(), NAMESPACE, &pod).await);
        }
        (1 | 2, Some(pod)) => {
            let app = *world.chance.choice(&["x", "none"]).unwrap();
            or_too_late(
                world.try_merge(&PODS, &pod, &json!({ "metadata": { "labels": { "app": app } } })).await,
            );
        }
        (3, _) => {
            let hard = world.chance.usize(0..=QUOTA).to_string();
            or_too_late(
                world
                    .try_merge(&RESOURCE_QUOTAS, "tight", &json!({ "spec": { "hard": { "pods": hard } } }))
                    .await,
            );
        }
        (4, _) => world.delete_pod(witness).await,
        _ => drop(world.kubelet(witness, false).await),
    }
}

/// What was said of which object: kind, name, reason and message.
#[derive(Default)]
struct Told(BTreeSet<[String; 4]>);

impl Told {
    fn see(&mut self, seen: &Seen) {
        let ("Event", Some(event)) = (seen.kind, &seen.after) else { return };
        let event = value(event);
        let of = &event["involvedObject"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let told = [&of["kind"], &of["name"], &event["reason"], &event["message"]].map(text);
        self.0.insert(told);
    }

    fn has(&self, kind: &str, name: &str, reason: &str, message: &str) -> bool {
        self.0.iter().any(|[of, named, because, said]| {
            of == kind && named == name && because == reason && said.contains(message)
        })
    }
}

fn check_end(witness: &Witness, told: &Told) {
    for kind in ["ReplicaSet", "ReplicationController"] {
        for set in witness.all(kind) {
            let held = value(set);
            let lacks = held["status"]["replicas"].as_u64() < held["spec"]["replicas"].as_u64();
            assert_eq!(condition(set, "ReplicaFailure"), lacks, "{held:#}");
            let name = &set.meta().name;
            assert!(!lacks || told.has(kind, name, "FailedCreate", "exceeded quota"), "{name} is silent");
        }
    }
    let nobody = witness.all("PodDisruptionBudget").find(|budget| budget.meta().name == "nobody").unwrap();
    assert!(!condition(nobody, "DisruptionAllowed"), "{:#}", value(nobody));
    assert!(told.has("PodDisruptionBudget", "nobody", "NoPods", "No matching pods found"));
    assert!(witness.all("Job").all(|job| job.meta().name == "work"), "a Job of a moment that never comes");
}

/// Events are no changes that anybody works on.
fn counts(seen: &Seen, told: &mut Told) -> bool {
    told.see(seen);
    seen.kind != "Event"
}

async fn story(seed: u64) {
    let (mut world, mut witness) = world(seed).await;
    world.faults.set(20);
    let mut wishes = wishes();
    world.chance.shuffle(&mut wishes);
    let things = wishes.len() as u64;
    let (mut changes, mut restarts, mut told) = (0_u64, 1, Told::default());
    for (number, (kind, wish)) in wishes.into_iter().enumerate() {
        world.create(&kind, &wish).await;
        for _ in 0..4 {
            match world.chance.u8(0..8) {
                0 => {
                    world.restart();
                    restarts += 1;
                }
                1 | 2 => {
                    let seconds = world.chance.u64(1..300);
                    world.pass(Duration::from_secs(seconds)).await;
                }
                3 => world.settle().await,
                _ => meddle(&mut world, &witness, number).await,
            }
            witness.catch_up(|_, seen| changes += u64::from(counts(seen, &mut told))).await;
        }
    }
    world.faults.set(0);
    or_too_late(
        world
            .try_merge(
                &RESOURCE_QUOTAS,
                "tight",
                &json!({ "spec": { "hard": { "pods": QUOTA.to_string() } } }),
            )
            .await,
    );
    // What was said while nobody listened is said again when there is a reason.
    world.merge(&POD_DISRUPTION_BUDGETS, "nobody", &json!({ "spec": { "minAvailable": 2 } })).await;
    world.pass(Duration::from_secs(HOURS * 3600)).await;
    witness.catch_up(|_, seen| changes += u64::from(counts(seen, &mut told))).await;
    let worked = world.worked();
    let most = EACH_CHANGE * changes + things * (EACH_HOUR * (HOURS + 1) + EACH_CHANGE * restarts);
    println!("{worked} of {most} by {changes} changes");
    assert!(worked <= most, "{worked} looks at {things} things that changed {changes} times");
    // By now whoever cannot go on is only tried again.
    world.pass(Duration::from_secs(HOURS * 3600)).await;
    let more = world.worked() - worked;
    assert!(more <= things * EACH_HOUR * HOURS, "{more} looks in {HOURS} hours in which nothing changes");
    witness.catch_up(|_, seen| told.see(seen)).await;
    check_end(&witness, &told);
}

#[tokio::test]
async fn what_cannot_be_done_is_said_and_makes_little_work() {
    for seed in seeds(6) {
        println!("seed {seed}");
        story(seed).await;
    }
}
