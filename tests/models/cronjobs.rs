//! CronJobs with their Jobs, over days of a clock that jumps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::{Object, PatchType, Propagation};
use base::clock::Clock;
use controllers::cronjob::CronJobs;
use controllers::garbage::GarbageCollector;
use controllers::job::Jobs;
use jiff::Timestamp;
use reconcile::kinds::{CRON_JOBS, JOBS, PODS};
use serde_json::{Value, json};

use crate::kubelet::or_too_late;
use crate::witness::{Seen, Witness, condition, is_active, value};
use crate::world::{World, seeds};

const STEPS: usize = 60;
const NAME: &str = "tick";
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

async fn world(seed: u64) -> (World, Witness) {
    let world = World::new(seed, |ctx| {
        vec![Arc::new(CronJobs::new(ctx)), Arc::new(Jobs::new(ctx)), Arc::new(GarbageCollector::new(ctx))]
    })
    .await;
    let witness = Witness::of(&world, &[CRON_JOBS, JOBS, PODS]).await;
    (world, witness)
}

/// A CronJob as chance has it.
fn cron(chance: &mut fastrand::Rng) -> Value {
    let schedules = ["* * * * *", "*/10 * * * *", "7 * * * *", "30 2 * * *", "0,1 * * * *"];
    let zones = [Value::Null, json!("Etc/UTC"), json!("Europe/Berlin"), json!("America/New_York")];
    let container = json!({ "name": "work", "image": "work:1" });
    let pod = json!({ "spec": { "restartPolicy": "Never", "containers": [container] } });
    let mut spec = json!({
        "schedule": chance.choice(schedules),
        "timeZone": chance.choice(&zones),
        "concurrencyPolicy": chance.choice(["Allow", "Forbid", "Replace"]),
        "successfulJobsHistoryLimit": chance.u8(0..4),
        "failedJobsHistoryLimit": chance.u8(0..3),
        "jobTemplate": { "spec": { "backoffLimit": chance.u8(0..2), "template": pod } },
    });
    if chance.u8(0..3) == 0 {
        spec["startingDeadlineSeconds"] = chance.u16(20..4000).into();
    }
    json!({ "metadata": { "name": NAME }, "spec": spec })
}

fn is_finished(job: &Object) -> bool {
    condition(job, "Complete") || condition(job, "Failed")
}

/// The moment that a Job is for.
fn moment(job: &Object) -> Option<Timestamp> {
    value(job)["metadata"]["annotations"][SCHEDULED].as_str().map(|text| text.parse().unwrap())
}

/// What always holds.
#[derive(Default)]
struct Always {
    made: BTreeMap<Timestamp, String>,
    /// What the CronJob may go by: versions since the controller has had the time to see the latest.
    specs: Vec<Value>,
    last: Option<Timestamp>,
}

impl Always {
    fn look(&mut self, witness: &Witness, seen: &Seen) {
        match (seen.kind, &seen.before, &seen.after) {
            ("CronJob", _, Some(cron)) => self.see_cron(cron),
            ("Job", None, Some(job)) => self.see_new_job(witness, job),
            _ => {}
        }
    }

    /// A user deletes a Job: while no status tells of it, its moment is not over.
    fn deleted(&mut self, witness: &Witness, name: &str) {
        let moments = witness.all("Job").filter(|job| job.meta().name == name).filter_map(|job| moment(job));
        for at in moments.filter(|at| self.last < Some(*at)) {
            self.made.remove(&at);
        }
    }

    fn see_cron(&mut self, cron: &Object) {
        let cron = value(cron);
        if self.specs.last() != Some(&cron["spec"]) {
            self.specs.push(cron["spec"].clone());
        }
        let last: Option<Timestamp> =
            cron["status"]["lastScheduleTime"].as_str().map(|at| at.parse().unwrap());
        assert!(last >= self.last, "the last moment goes back from {:?} to {last:?}", self.last);
        self.last = last;
    }

    fn see_new_job(&mut self, witness: &Witness, job: &Object) {
        let at = moment(job).unwrap();
        let again = self.made.insert(at, job.meta().uid.clone());
        assert!(again.is_none(), "{at} has two Jobs");
        let one_of = |field: &str, wanted: Value| self.specs.iter().any(|spec| spec[field] == wanted);
        assert!(one_of("suspend", json!(false)), "a Job of what is suspended");
        let made =
            value(job)["metadata"]["creationTimestamp"].as_str().unwrap().parse::<Timestamp>().unwrap();
        let late = made.duration_since(at).as_secs();
        assert!(late >= 0, "{at} has not come yet at {made}");
        let in_time = |spec: &Value| spec["startingDeadlineSeconds"].as_i64().is_none_or(|most| late <= most);
        assert!(self.specs.iter().any(in_time), "{late} seconds late: {:?}", self.specs);
        let runs = |other: &&Arc<Object>| {
            other.meta().uid != job.meta().uid && !is_finished(other) && !other.meta().is_terminating()
        };
        if !one_of("concurrencyPolicy", json!("Allow")) {
            let others: Vec<_> = witness.all("Job").filter(runs).map(|other| other.key()).collect();
            assert!(others.is_empty(), "{at} begins beside {others:?}");
        }
    }
}

/// One step of a kubelet whose pods end; whether there was one.
async fn kubelet(world: &mut World, witness: &Witness) -> bool {
    let held = |pod: &Object| !pod.meta().finalizers.is_empty();
    let due: Vec<Arc<Object>> = witness
        .all("Pod")
        .filter(|pod| is_active(pod) || (pod.meta().is_terminating() && !held(pod)))
        .cloned()
        .collect();
    let Some(pod) = world.chance.choice(&due) else { return false };
    if pod.meta().is_terminating() {
        world.end(pod).await;
    } else if pod.node_name().is_none() {
        world.bind(pod).await;
    } else {
        let end = if world.chance.u8(0..3) == 0 { "Failed" } else { "Succeeded" };
        world.tell(pod, end, false).await;
    }
    true
}

async fn step(world: &mut World, witness: &mut Witness, always: &mut Always) {
    let spec = match world.chance.u8(0..24) {
        0 => json!({ "suspend": world.chance.bool() }),
        1 => json!({ "schedule": world.chance.choice(["*/5 * * * *", "* * * * *", "3 * * * *"]) }),
        2 => json!({ "concurrencyPolicy": world.chance.choice(["Allow", "Forbid", "Replace"]) }),
        3 => {
            let names: Vec<String> = witness.all("Job").map(|job| job.meta().name.clone()).collect();
            let Some(name) = world.chance.choice(&names).cloned() else { return };
            always.deleted(witness, &name);
            return world.delete(&JOBS, &name, Some(Propagation::Background)).await;
        }
        4 => return world.restart(),
        // The clock jumps: nobody wakes in between.
        5 => {
            let by = Duration::from_secs(world.chance.u64(60..20_000));
            let now = world.clock.now();
            return world.clock.set(if world.chance.u8(0..3) == 0 { now - by } else { now + by });
        }
        6..=9 => {
            let seconds = world.chance.u64(1..900);
            return world.pass(Duration::from_secs(seconds)).await;
        }
        10 | 11 => return world.settle().await,
        _ => {
            kubelet(world, witness).await;
            return;
        }
    };
    world.merge(&CRON_JOBS, NAME, &json!({ "spec": spec })).await;
}

async fn look(witness: &mut Witness, always: &mut Always) {
    witness.catch_up(|witness, seen| always.look(witness, seen)).await;
}

/// It is suspended, and what runs comes to its end: history is as long as it may be, and nobody works.
async fn complete(world: &mut World, witness: &mut Witness, always: &mut Always) {
    world.faults.set(0);
    look(witness, always).await;
    if witness.all("CronJob").next().is_some() {
        world.merge(&CRON_JOBS, NAME, &json!({ "spec": { "suspend": true } })).await;
        world.pass(Duration::from_secs(600)).await;
        look(witness, always).await;
        always.specs.drain(..always.specs.len() - 1);
    }
    for _ in 0..300 {
        world.settle().await;
        look(witness, always).await;
        if !kubelet(world, witness).await {
            world.pass(Duration::from_secs(600)).await;
            look(witness, always).await;
            if !kubelet(world, witness).await {
                break;
            }
        }
    }
    if let Some(object) = witness.all("CronJob").next() {
        let cron = value(object);
        assert!(cron["status"]["active"].as_array().is_none_or(Vec::is_empty), "{cron:#}");
        for (limit, end) in [("successfulJobsHistoryLimit", "Complete"), ("failedJobsHistoryLimit", "Failed")]
        {
            let kept = witness.owned("Job", &object.meta().uid).filter(|job| condition(job, end)).count();
            assert!(kept as u64 <= cron["spec"][limit].as_u64().unwrap(), "{kept} {end} are kept: {cron:#}");
        }
    }
    world.rest().await;
}

async fn story(seed: u64) {
    let (mut world, mut witness) = world(seed).await;
    // Some days before the clocks change in Berlin or New York, some stories on the day itself.
    if world.chance.bool() {
        let days = [66, 67, 86, 87, 296, 304];
        let days: u64 = *world.chance.choice(&days).unwrap();
        world.clock.advance(Duration::from_secs(days * 86_400));
    }
    let mut always = Always::default();
    world.faults.set(20);
    let made = cron(&mut world.chance);
    world.create(&CRON_JOBS, &made).await;
    for _ in 0..STEPS {
        step(&mut world, &mut witness, &mut always).await;
        look(&mut witness, &mut always).await;
    }
    complete(&mut world, &mut witness, &mut always).await;
    world.delete(&CRON_JOBS, NAME, Some(Propagation::Background)).await;
    complete(&mut world, &mut witness, &mut always).await;
    let left: Vec<_> =
        ["CronJob", "Job", "Pod"].iter().flat_map(|kind| witness.all(kind)).map(|one| one.key()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[tokio::test]
async fn whatever_happens_a_moment_has_one_job() {
    for seed in seeds(10) {
        println!("seed {seed}");
        story(seed).await;
    }
}

/// Jobs of a CronJob over some days in which nothing fails: the moments by the clock on the wall.
async fn moments(from: &str, days: u64, schedule: &str, zone: &str) -> Vec<String> {
    let (world, mut witness) = world(1).await;
    let from: Timestamp = from.parse().unwrap();
    world.clock.advance(Duration::try_from(from.duration_since(world.clock.now())).unwrap());
    let container = json!({ "name": "work", "image": "work:1" });
    let pod = json!({ "spec": { "restartPolicy": "Never", "containers": [container] } });
    let job = json!({ "spec": { "suspend": true, "template": pod } });
    let spec = json!({ "schedule": schedule, "timeZone": zone, "jobTemplate": job });
    world.create(&CRON_JOBS, &json!({ "metadata": { "name": NAME }, "spec": spec })).await;
    world.pass(Duration::from_secs(days * 86_400)).await;
    let mut made = BTreeSet::new();
    witness
        .catch_up(|_, seen| {
            let Some(job) = seen.after.as_ref().filter(|_| seen.kind == "Job") else { return };
            let text = value(job)["metadata"]["annotations"][SCHEDULED].as_str().unwrap().to_owned();
            made.insert(text);
        })
        .await;
    made.into_iter().collect()
}

/// Where an hour is skipped its moments are too, and where one comes twice moments within it come once or twice, as with
/// `robfig/cron`, by which upstream goes: hours that are named come once.
#[tokio::test]
async fn moments_follow_the_clock_on_the_wall() {
    let spring = moments("2026-03-28T00:00:00Z", 3, "30 2 * * *", "Europe/Berlin").await;
    assert_eq!(spring, ["2026-03-28T02:30:00+01:00", "2026-03-30T02:30:00+02:00"]);
    let noon = moments("2026-10-24T00:00:00Z", 3, "0 12 * * *", "Europe/Berlin").await;
    let noons = ["2026-10-24T12:00:00+02:00", "2026-10-25T12:00:00+01:00", "2026-10-26T12:00:00+01:00"];
    assert_eq!(noon, noons);
}

/// A schedule that the server would refuse today, but that stands in an old object, makes nobody work.
#[tokio::test]
async fn what_never_comes_makes_no_work() {
    let (world, mut witness) = world(1).await;
    let container = json!({ "name": "work", "image": "work:1" });
    let pod = json!({ "spec": { "restartPolicy": "Never", "containers": [container] } });
    let spec = json!({ "schedule": "0 0 31 2 *", "jobTemplate": { "spec": { "template": pod } } });
    world.create(&CRON_JOBS, &json!({ "metadata": { "name": NAME }, "spec": spec })).await;
    world.pass(Duration::from_secs(86_400)).await;
    world.rest().await;
    let status = json!({ "status": { "lastScheduleTime": "2036-01-01T00:00:00Z" } });
    let key = api::Key::new(crate::world::NAMESPACE, NAME);
    let told = world.user.patch(&CRON_JOBS.gvr(), &key, "status", PatchType::Merge, &status).await;
    or_too_late(told);
    world.merge(&CRON_JOBS, NAME, &json!({ "spec": { "schedule": "* * * * *" } })).await;
    world.pass(Duration::from_secs(86_400)).await;
    witness.catch_up(|_, _| {}).await;
    assert_eq!(witness.all("Job").count(), 0, "the clock was far ahead when the last one was made");
    world.rest().await;
}
