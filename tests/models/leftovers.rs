//! Jobs that go some time after they have ended: their users give them more time or less, the clock jumps, and the
//! controller is killed. None goes before its time, and none stays.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use api::{Key, Object, PatchType, Propagation, Status};
use base::clock::Clock;
use controllers::garbage::GarbageCollector;
use controllers::ttl_after_finished::TtlAfterFinished;
use jiff::{SignedDuration, Timestamp};
use reconcile::kinds::JOBS;
use serde_json::{Value, json};

use crate::kubelet::or_too_late;
use crate::witness::{Seen, Witness, value};
use crate::world::{NAMESPACE, World, seeds};

const STEPS: usize = 80;

async fn world(seed: u64) -> (World, Witness) {
    let world = World::new(seed, |ctx| {
        vec![Arc::new(TtlAfterFinished::new(ctx)), Arc::new(GarbageCollector::new(ctx))]
    })
    .await;
    let witness = Witness::of(&world, &[JOBS]).await;
    (world, witness)
}

fn job(chance: &mut fastrand::Rng, number: u32) -> Value {
    let pod =
        json!({ "spec": { "restartPolicy": "Never", "containers": [{ "name": "c", "image": "c:1" }] } });
    let stay = chance.choice(&[Some(0), Some(30), Some(900), Some(2_147_483_647), None]).copied().flatten();
    json!({
        "metadata": { "name": format!("j{number}") },
        "spec": { "ttlSecondsAfterFinished": stay, "suspend": true, "template": pod },
    })
}

/// When a Job may go: not at all if it has not ended, or asks for nothing.
fn ends_at(job: &Object) -> Option<Timestamp> {
    let job = value(job);
    let stay = SignedDuration::from_secs(job["spec"]["ttlSecondsAfterFinished"].as_i64()?);
    let conditions = job["status"]["conditions"].as_array()?;
    let is_end =
        |held: &&Value| held["status"] == "True" && (held["type"] == "Complete" || held["type"] == "Failed");
    let ended = conditions.iter().find(is_end)?["lastTransitionTime"].as_str()?.parse::<Timestamp>().unwrap();
    Some(ended.saturating_add(stay).unwrap_or(Timestamp::MAX))
}

/// What always holds: whoever is not told to by a user takes away what may go, and nothing else.
fn see(seen: &Seen, asked: &BTreeSet<String>, now: Timestamp) {
    let Some(before) = seen.before.as_ref().filter(|job| !job.meta().is_terminating()) else { return };
    let begins = seen.after.as_ref().is_none_or(|after| after.meta().is_terminating());
    if begins && !asked.contains(&before.meta().uid) {
        let at = ends_at(before);
        assert!(at.is_some_and(|at| at <= now), "{} goes at {now}, not {at:?}", before.key());
    }
}

/// A Job ends, one way or the other.
async fn end(world: &mut World, job: &Object) -> Result<Arc<Object>, Status> {
    let now = world.clock.now();
    let (criterion, kind) =
        if world.chance.bool() { ("SuccessCriteriaMet", "Complete") } else { ("FailureTarget", "Failed") };
    let condition = |name: &str| {
        json!({ "type": name, "status": "True", "reason": "Story", "lastTransitionTime": format!("{now:.0}"),
            "lastProbeTime": format!("{now:.0}") })
    };
    let done = (kind == "Complete").then(|| format!("{now:.0}"));
    let conditions = json!([condition("Suspended"), condition(criterion), condition(kind)]);
    let status =
        json!({ "startTime": format!("{now:.0}"), "completionTime": done, "conditions": conditions });
    let patch = json!({ "metadata": { "uid": job.meta().uid }, "status": status });
    world.user.patch(&JOBS.gvr(), &job.key(), "status", PatchType::Merge, &patch).await
}

async fn step(world: &mut World, witness: &Witness, made: &mut u32, asked: &mut BTreeSet<String>) {
    let jobs: Vec<_> = witness.all("Job").cloned().collect();
    let some = world.chance.choice(&jobs).cloned();
    match (world.chance.u8(0..24), some) {
        (0..=5, _) => {
            *made += 1;
            let job = job(&mut world.chance, *made);
            world.create(&JOBS, &job).await;
        }
        (6..=9, Some(job)) => {
            if value(&job)["status"]["conditions"].as_array().is_none_or(|held| held.len() < 2) {
                or_too_late(end(world, &job).await);
            }
        }
        (10..=12, Some(job)) => {
            let stay = world.chance.choice(&[Some(0), Some(60), Some(3000), None]).copied().flatten();
            let patch = json!({ "spec": { "ttlSecondsAfterFinished": stay } });
            or_too_late(world.try_merge(&JOBS, &job.meta().name, &patch).await);
        }
        (13, Some(job)) => {
            asked.insert(job.meta().uid.clone());
            world.delete(&JOBS, &job.meta().name, Some(Propagation::Background)).await;
        }
        (14, _) => world.restart(),
        (15, _) => {
            let by = SignedDuration::from_secs(world.chance.i64(60..20_000));
            let now = world.clock.now();
            world.clock.set(if world.chance.bool() { now + by } else { now - by });
        }
        (16..=19, _) => {
            let seconds = world.chance.u64(1..600);
            world.pass(Duration::from_secs(seconds)).await;
        }
        _ => world.settle().await,
    }
}

async fn story(seed: u64) {
    let (mut world, mut witness) = world(seed).await;
    world.faults.set(20);
    let (mut made, mut asked) = (0, BTreeSet::new());
    for _ in 0..STEPS {
        step(&mut world, &witness, &mut made, &mut asked).await;
        let now = world.clock.now();
        witness.catch_up(|_, seen| see(seen, &asked, now)).await;
    }
    world.faults.set(0);
    // As long as the longest of them, by a clock that was ahead of itself at most so far.
    world.pass(Duration::from_secs(3000 + 80 * 20_000)).await;
    let now = world.clock.now();
    witness.catch_up(|_, seen| see(seen, &asked, now)).await;
    let late: Vec<Key> = witness
        .all("Job")
        .filter(|job| ends_at(job).is_some_and(|at| at <= now))
        .map(|job| job.key())
        .collect();
    assert!(late.is_empty(), "{late:?} stay in {NAMESPACE} for ever");
    world.rest().await;
}

#[tokio::test]
async fn whatever_happens_a_job_that_ended_has_its_time_and_no_more() {
    for seed in seeds(6) {
        println!("seed {seed}");
        story(seed).await;
    }
}
