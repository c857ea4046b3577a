//! Jobs, and Jobs by the clock.

use std::sync::Arc;
use std::time::Duration;

use api::{DeleteOptions, Key, Object, PatchType, Propagation};
use base::clock::VirtualClock;
use jiff::Timestamp;
use reconcile::kinds;
use serde_json::{Value, json};

use super::cluster::Cluster;
use super::{condition, hurry, in_steps, pass, reason, start, start_virtual};

const TRACKING: &str = "batch.kubernetes.io/job-tracking";

fn job(name: &str, spec: Value) -> Value {
    let mut job = json!({ "metadata": { "name": name }, "spec": { "template": { "spec": {
        "restartPolicy": "Never", "containers": [{ "name": "main", "image": "sum:1" }] } } } });
    for (field, value) in spec.as_object().unwrap() {
        job["spec"][field] = value.clone();
    }
    job
}

fn pods_of(cluster: &Cluster, job: &str) -> Vec<Arc<Object>> {
    let pods = cluster.informers.get(kinds::PODS);
    pods.labelled("default", |labels| labels.get("job-name").is_some_and(|name| name == job))
}

fn is_running(pod: &Object) -> bool {
    !pod.meta().is_terminating() && pod.decode::<Value>().unwrap()["status"]["phase"] == "Running"
}

/// Waits until so many pods of a Job run.
async fn running(cluster: &Cluster, job: &str, count: usize) -> Vec<Arc<Object>> {
    let of_job = |pods: &[Arc<Object>]| -> Vec<Arc<Object>> {
        let ours = |pod: &&Arc<Object>| pod.meta().labels.get("job-name").is_some_and(|name| name == job);
        pods.iter().filter(ours).filter(|pod| is_running(pod)).cloned().collect()
    };
    of_job(&cluster.until_all(kinds::PODS, "default", |pods| of_job(pods).len() == count).await)
}

/// A pod's containers end.
async fn end(cluster: &Cluster, pod: &Object, exit_code: i64, at: Timestamp) {
    let phase = if exit_code == 0 { "Succeeded" } else { "Failed" };
    let ended = json!({ "exitCode": exit_code, "finishedAt": reconcile::time::seconds(at) });
    let patch = json!({ "status": { "phase": phase, "containerStatuses": [
        { "name": "main", "state": { "terminated": ended }, "image": "", "imageID": "", "ready": false, "restartCount": 0 }] } });
    let resource = kinds::PODS.gvr();
    cluster.client.patch(&resource, &pod.key(), "status", PatchType::StrategicMerge, &patch).await.unwrap();
}

fn holds(job: &Value, kind: &str) -> bool {
    condition(job, kind)["status"] == "True"
}

async fn said(cluster: &Cluster, reasons: &[&str]) {
    let wanted = |events: &[Arc<Object>]| {
        reasons.iter().all(|wanted| events.iter().any(|event| reason(event) == *wanted))
    };
    cluster.until_all(kinds::EVENTS, "default", wanted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_runs_to_its_end() {
    let cluster = start().await;
    let key = Key::new("default", "sum");
    let spec = json!({ "completions": 3, "parallelism": 2 });
    cluster.create(&kinds::JOBS, "default", job("sum", spec)).await;
    for (active, left) in [(2, 2), (2, 1), (1, 0)] {
        let pods = running(&cluster, "sum", active).await;
        assert!(pods[0].meta().finalizers.iter().any(|finalizer| finalizer == TRACKING));
        end(&cluster, &pods[0], 0, Timestamp::now()).await;
        let seen = |job: &Value| job["status"]["succeeded"] == 3 - left;
        cluster.until(kinds::JOBS, &key, seen).await;
    }
    let done = cluster.until(kinds::JOBS, &key, |job| holds(job, "Complete")).await;
    assert_eq!(condition(&done, "SuccessCriteriaMet")["reason"], "CompletionsReached");
    let status = &done["status"];
    assert_eq!(
        (&status["ready"], &status["terminating"], &status["active"]),
        (&json!(0), &json!(0), &Value::Null)
    );
    assert_eq!(status["uncountedTerminatedPods"], json!({}));
    assert!(status["completionTime"].is_string());
    let free =
        |pods: &[Arc<Object>]| pods.len() == 3 && pods.iter().all(|pod| pod.meta().finalizers.is_empty());
    cluster.until_all(kinds::PODS, "default", free).await;
    said(&cluster, &["SuccessfulCreate", "Completed"]).await;

    // Its pods go with it.
    let options = DeleteOptions { propagation: Some(Propagation::Background), ..DeleteOptions::default() };
    cluster.client.delete(&kinds::JOBS.gvr(), &key, options).await.unwrap();
    cluster.until_all(kinds::PODS, "default", <[_]>::is_empty).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_holds_the_pods_of_a_job_that_is_gone() {
    let cluster = start().await;
    let ways = [
        ("gone", Propagation::Background),
        ("first", Propagation::Foreground),
        ("left", Propagation::Orphan),
    ];
    for (name, propagation) in ways {
        cluster
            .create(&kinds::JOBS, "default", job(name, json!({ "parallelism": 2, "completions": 2 })))
            .await;
        running(&cluster, name, 2).await;
        let options = DeleteOptions { propagation: Some(propagation), ..DeleteOptions::default() };
        cluster.client.delete(&kinds::JOBS.gvr(), &Key::new("default", name), options).await.unwrap();
    }
    let left = cluster
        .until_all(kinds::PODS, "default", |pods| {
            pods.len() == 2 && pods.iter().all(|pod| pod.meta().finalizers.is_empty())
        })
        .await;
    assert!(left.iter().all(|pod| pod.meta().labels["job-name"] == "left" && !pod.meta().is_terminating()));
    cluster.until_all(kinds::JOBS, "default", <[_]>::is_empty).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_never_had_a_node_has_failed_when_it_is_deleted() {
    let cluster = start().await;
    let key = Key::new("default", "gated");
    let mut body = job("gated", json!({ "podReplacementPolicy": "Failed", "backoffLimit": 0 }));
    body["spec"]["template"]["spec"]["schedulingGates"] = json!([{ "name": "example.com/wait" }]);
    cluster.create(&kinds::JOBS, "default", body).await;
    let pod = cluster.until_all(kinds::PODS, "default", |pods| pods.len() == 1).await.remove(0);
    cluster.client.delete(&kinds::PODS.gvr(), &pod.key(), DeleteOptions::default()).await.unwrap();
    let failed = cluster.until(kinds::JOBS, &key, |job| holds(job, "Failed")).await;
    assert_eq!((&failed["status"]["failed"], &failed["status"]["terminating"]), (&json!(1), &json!(0)));
    cluster.until_all(kinds::PODS, "default", <[_]>::is_empty).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_back_off_until_the_limit_and_the_job_goes_in_time() {
    let (clock, cluster) = start_virtual().await;
    let key = Key::new("default", "bad");
    let spec = json!({ "backoffLimit": 1, "ttlSecondsAfterFinished": 3600 });
    cluster.create(&kinds::JOBS, "default", job("bad", spec)).await;
    let first = running(&cluster, "bad", 1).await.remove(0);
    end(&cluster, &first, 1, later(&clock)).await;
    cluster.until(kinds::JOBS, &key, |job| job["status"]["failed"] == 1).await;
    assert_eq!(pods_of(&cluster, "bad").len(), 1);
    pass(&clock, Duration::from_secs(10)).await;
    let second = running(&cluster, "bad", 1).await.remove(0);
    end(&cluster, &second, 1, later(&clock)).await;
    let failed = cluster.until(kinds::JOBS, &key, |job| holds(job, "Failed")).await;
    assert_eq!(condition(&failed, "Failed")["reason"], "BackoffLimitExceeded");
    assert_eq!(failed["status"]["failed"], 2);
    said(&cluster, &["BackoffLimitExceeded"]).await;
    pass(&clock, Duration::from_secs(3600)).await;
    cluster.until(kinds::JOBS, &key, Value::is_null).await;
    cluster.until_all(kinds::PODS, "default", <[_]>::is_empty).await;
}

/// The time, a second later.
fn later(clock: &VirtualClock) -> Timestamp {
    clock.advance(Duration::from_secs(1));
    base::clock::Clock::now(clock)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_indexed_job_waits_goes_on_and_names_its_pods() {
    let cluster = start().await;
    let key = Key::new("default", "parts");
    let spec = json!({ "completionMode": "Indexed", "completions": 3, "parallelism": 3, "suspend": true });
    cluster.create(&kinds::JOBS, "default", job("parts", spec)).await;
    let waits = cluster.until(kinds::JOBS, &key, |job| holds(job, "Suspended")).await;
    assert!(waits["status"]["startTime"].is_null());
    cluster.merge(&kinds::JOBS, &key, json!({ "spec": { "suspend": false } })).await;
    for (index, pod) in running(&cluster, "parts", 3).await.iter().enumerate() {
        let pod: Value = pod.decode().unwrap();
        let name = format!("parts-{index}");
        assert!(pod["metadata"]["name"].as_str().unwrap().starts_with(&format!("{name}-")));
        assert_eq!(pod["spec"]["hostname"], name);
        assert_eq!(pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"], index.to_string());
        assert_eq!(pod["spec"]["containers"][0]["env"][0]["name"], "JOB_COMPLETION_INDEX");
    }
    cluster.merge(&kinds::JOBS, &key, json!({ "spec": { "suspend": true } })).await;
    cluster.until_all(kinds::PODS, "default", <[_]>::is_empty).await;
    let waits = cluster.until(kinds::JOBS, &key, |job| holds(job, "Suspended")).await;
    assert_eq!(waits["status"]["failed"], Value::Null);
    cluster.merge(&kinds::JOBS, &key, json!({ "spec": { "suspend": false } })).await;
    let pods = running(&cluster, "parts", 3).await;
    end(&cluster, &pods[0], 0, Timestamp::now()).await;
    end(&cluster, &pods[2], 0, Timestamp::now()).await;
    let some = cluster.until(kinds::JOBS, &key, |job| job["status"]["succeeded"] == 2).await;
    assert_eq!(some["status"]["completedIndexes"], "0,2");
    end(&cluster, &pods[1], 0, Timestamp::now()).await;
    let done = cluster.until(kinds::JOBS, &key, |job| holds(job, "Complete")).await;
    assert_eq!(done["status"]["completedIndexes"], "0-2");
    said(&cluster, &["Suspended", "Resumed", "SuccessfulDelete", "Completed"]).await;
}

/// Longer than what is waited for before something is tried again, and far from a minute.
const SHORT: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn a_cron_job_makes_a_job_when_it_is_due() {
    let (clock, cluster) = start_virtual().await;
    let key = Key::new("default", "tick");
    let template = job("x", json!({}))["spec"].clone();
    let spec = json!({ "schedule": "* * * * *", "concurrencyPolicy": "Forbid", "successfulJobsHistoryLimit": 1,
        "jobTemplate": { "metadata": { "annotations": { "a": "b" } }, "spec": template } });
    let body = json!({ "metadata": { "name": "tick" }, "spec": spec });
    cluster.create(&kinds::CRON_JOBS, "default", body).await;
    cluster.until(kinds::CRON_JOBS, &key, |cron| cron.is_object()).await;
    let mut names = Vec::new();
    for _ in 0..3 {
        // To ten seconds past a minute, so that the seconds that the rest takes reach no other. The API server has a clock of
        // its own: the CronJob was made when it says, seconds after the other one stood still, and so the first minute does
        // not count.
        let second = base::clock::Clock::now(&clock).as_second().unsigned_abs() % 60;
        let wait = if names.is_empty() { 130 - second } else { 70 - second };
        clock.advance(Duration::from_secs(wait));
        // Whoever has read the time and sets a timer only now would wait a minute too long.
        let note = json!({ "metadata": { "annotations": { "passed": names.len().to_string() } } });
        cluster.merge(&kinds::CRON_JOBS, &key, note).await;
        let is_active = |cron: &Value| cron["status"]["active"][0].is_object();
        let cron = in_steps(&clock, SHORT, cluster.until(kinds::CRON_JOBS, &key, is_active)).await;
        let active = &cron["status"]["active"][0];
        let scheduled: Timestamp = cron["status"]["lastScheduleTime"].as_str().unwrap().parse().unwrap();
        let name = format!("tick-{}", scheduled.as_second() / 60);
        assert_eq!((&active["name"], &active["kind"]), (&json!(name), &json!("Job")));
        let made =
            cluster.until(kinds::JOBS, &Key::new("default", name.as_str()), |job| job.is_object()).await;
        let annotations = &made["metadata"]["annotations"];
        assert_eq!(annotations["batch.kubernetes.io/cronjob-scheduled-timestamp"], scheduled.to_string());
        assert_eq!(annotations["a"], "b");
        let pod = running(&cluster, &name, 1).await.remove(0);
        end(&cluster, &pod, 0, later(&clock)).await;
        let idle = |cron: &Value| {
            cron["status"]["active"].is_null() && cron["status"]["lastSuccessfulTime"].is_string()
        };
        // Who was too late with a write tries again a moment later.
        in_steps(&clock, SHORT, cluster.until(kinds::CRON_JOBS, &key, idle)).await;
        names.push(name);
    }
    let is_last = |jobs: &[Arc<Object>]| jobs.len() == 1 && jobs[0].meta().name == names[2];
    in_steps(&clock, SHORT, cluster.until_all(kinds::JOBS, "default", is_last)).await;
    said(&cluster, &["SuccessfulCreate", "SawCompletedJob"]).await;

    // What `kubectl create job --from=cronjob/tick` sends.
    let cron = cluster.informers.get(kinds::CRON_JOBS).get(&key).unwrap();
    let mut by_hand = job("by-hand", json!({}));
    by_hand["metadata"]["annotations"] = json!({ "cronjob.kubernetes.io/instantiate": "manual" });
    by_hand["metadata"]["ownerReferences"] = json!([{ "apiVersion": "batch/v1", "kind": "CronJob", "name": "tick",
        "uid": cron.meta().uid, "controller": true }]);
    later(&clock);
    cluster.create(&kinds::JOBS, "default", by_hand).await;
    let pod = running(&cluster, "by-hand", 1).await.remove(0);
    said(&cluster, &["UnexpectedJob"]).await;
    end(&cluster, &pod, 0, later(&clock)).await;
    cluster.until(kinds::JOBS, &Key::new("default", "by-hand"), |job| holds(job, "Complete")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_may_make_no_pods_tries_one_now_and_then() {
    let (clock, cluster) = start_virtual().await;
    let quota = json!({ "metadata": { "name": "none" }, "spec": { "hard": { "pods": "0" } } });
    cluster.create(&kinds::RESOURCE_QUOTAS, "default", quota).await;
    let known = |quota: &Value| quota["status"]["hard"]["pods"] == "0";
    cluster.until(kinds::RESOURCE_QUOTAS, &Key::new("default", "none"), known).await;
    cluster
        .create(&kinds::JOBS, "default", job("many", json!({ "parallelism": 50, "completions": 50 })))
        .await;
    let refused = |events: &[Arc<Object>]| -> u64 {
        let failed = events.iter().filter(|event| reason(event) == "FailedCreate");
        failed.map(|event| event.decode::<Value>().unwrap()["count"].as_u64().unwrap_or(1)).sum()
    };
    let begun = base::clock::Clock::now(&clock);
    let tries = cluster.until_all(kinds::EVENTS, "default", |events| refused(events) >= 5);
    let events = hurry(&clock, tries).await;
    // One, two, four, … seconds are between them; one more comes when the status has been written first.
    let (count, passed) = (refused(&events), base::clock::Clock::now(&clock).duration_since(begun));
    assert!(passed.as_secs() + 1 >= 1 << (count - 2), "{count} in {passed}");
}
