//! Jobs and CronJobs.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::space::{Objects, SLEEPS, Space, controller, is_ending, is_ready, pod_spec, uid};

/// Fails the first time that it runs in a pod.
const SOMETIMES: &str = "if [ -e /data/once ]; then exit 0; fi; touch /data/once; exit 1";

fn job(name: &str, parallel: u32, completions: u32) -> Value {
    let mut spec = pod_spec(SLEEPS);
    spec["restartPolicy"] = "Never".into();
    json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": {
        "parallelism": parallel, "completions": completions, "template": {"spec": spec}}})
}

/// The pods of a Job.
fn of_job(name: &str) -> String {
    format!("pods?labelSelector=job-name%3D{name}")
}

#[track_caller]
fn running(space: &Space<'_>, name: &str, count: usize) -> Objects {
    space.until(&of_job(name), &format!("{count} running"), |pods| {
        pods.len() == count && pods.values().all(is_ready)
    })
}

pub(crate) fn a_job_adopts_orphans_and_releases_what_it_does_not_select(space: &Space<'_>) {
    space.make(&job("owner", 2, 2));
    let owner = uid(&space.get(&["job/owner"]));
    let pods = running(space, "owner", 2);
    let name = pods.keys().next().unwrap();
    space.patch(&format!("pods/{name}"), &json!({"metadata": {"ownerReferences": null}}));
    space.until_one("pods", name, "adopted again", |pod| controller(pod) == owner);
    let labels = pods[name]["metadata"]["labels"].as_object().unwrap();
    let none: BTreeMap<&str, Value> = labels.keys().map(|label| (&**label, Value::Null)).collect();
    space.patch(&format!("pods/{name}"), &json!({"metadata": {"labels": none}}));
    space.until_one("pods", name, "released", |pod| controller(pod).is_empty());
    space.until(&of_job("owner"), "another in its place", |pods| {
        pods.len() == 2 && pods.values().all(|pod| is_ready(pod) && controller(pod) == owner)
    });
}

pub(crate) fn a_job_is_deleted_with_its_pods(space: &Space<'_>) {
    space.make(&job("gone", 2, 4));
    running(space, "gone", 2);
    space.until_one("jobs", "gone", "two active", |job| job["status"]["active"] == 2);
    space.run(&["delete", "job", "gone"]);
    space.until_gone("jobs");
    space.until_gone("pods");
}

pub(crate) fn a_job_completes_although_its_tasks_fail_at_first(space: &Space<'_>) {
    let mut failing = job("sometimes", 2, 3);
    let spec = &mut failing["spec"]["template"]["spec"];
    spec["restartPolicy"] = "OnFailure".into();
    spec["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    spec["containers"][0]["command"] = json!(["sh", "-c", SOMETIMES]);
    spec["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    space.make(&failing);
    space.run(&["wait", "job/sometimes", "--for=condition=Complete", "--timeout=240s"]);
    assert_eq!(space.get(&["job/sometimes"])["status"]["succeeded"], 3);
    let pods = space.list(&["pods", "-l", "job-name=sometimes"]);
    let restarts = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"] == 1;
    assert!(pods.len() == 3 && pods.iter().all(restarts), "restarted in place: {pods:#?}");
}

fn cron_job(name: &str, schedule: &str, policy: &str) -> Value {
    let template = json!({"spec": job("", 1, 1)["spec"]});
    json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": name}, "spec": {
        "schedule": schedule, "concurrencyPolicy": policy, "jobTemplate": template}})
}

/// What two minutes have left: Jobs by their CronJob. None of the Jobs ends by itself.
struct Minutes<'a, 'c> {
    space: &'a Space<'c>,
    jobs: Objects,
    /// The first Job of the one that replaces its Jobs.
    replaced: String,
}

impl<'a, 'c> Minutes<'a, 'c> {
    /// All four policies side by side: the minutes are real ones.
    fn pass(space: &'a Space<'c>) -> Self {
        for (name, policy) in [("allow", "Allow"), ("forbid", "Forbid"), ("replace", "Replace")] {
            space.make(&cron_job(name, "* * * * *", policy));
        }
        let mut suspended = cron_job("suspended", "* * * * *", "Allow");
        suspended["spec"]["suspend"] = true.into();
        space.make(&suspended);
        let mut jobs = space.watch("jobs");
        let first = jobs.until("a Job of each", |jobs| {
            ["forbid", "replace"].iter().all(|name| !started(jobs, name).is_empty())
        });
        let replaced = uid(started(&first, "replace")[0]);
        let held = uid(started(&first, "forbid")[0]);
        let jobs = jobs.until("two minutes", |jobs| {
            let replaced = started(jobs, "replace").iter().any(|job| uid(job) != replaced);
            started(jobs, "allow").len() >= 2 && replaced
        });
        assert!(started(&jobs, "forbid").iter().any(|job| uid(job) == held), "forbid goes on: {jobs:#?}");
        Self { space, jobs, replaced }
    }

    /// Waits until a CronJob says that so many of its Jobs are active.
    fn active(&self, name: &str, count: std::ops::RangeInclusive<usize>) {
        self.space.until_one("cronjobs", name, &format!("{count:?} active"), |cron| {
            cron["status"]["active"].as_array().is_some_and(|active| count.contains(&active.len()))
        });
    }
}

/// The Jobs that a CronJob has started and that were not told to end.
fn started<'j>(jobs: &'j Objects, name: &str) -> Vec<&'j Value> {
    let of = |job: &&Value| job["metadata"]["ownerReferences"][0]["name"] == name;
    jobs.values().filter(of).filter(|job| !is_ending(job)).collect()
}

/// Four behaviours in the same two minutes.
pub(crate) fn cron_jobs_keep_to_their_policies(space: &Space<'_>) {
    let minutes = Minutes::pass(space);
    allowed_jobs_run_beside_each_other(&minutes);
    forbidden_jobs_are_not_started(&minutes);
    replaced_jobs_end(&minutes);
    suspended_cron_jobs_start_nothing(&minutes);
}

fn allowed_jobs_run_beside_each_other(minutes: &Minutes<'_, '_>) {
    minutes.active("allow", 2..=usize::MAX);
}

fn forbidden_jobs_are_not_started(minutes: &Minutes<'_, '_>) {
    let query = "events?fieldSelector=reason%3DJobAlreadyActive";
    minutes.space.until(query, "says that one is active", |events| {
        events.values().any(|event| event["involvedObject"]["name"] == "forbid")
    });
    assert_eq!(started(&minutes.jobs, "forbid").len(), 1, "{:#?}", minutes.jobs);
    minutes.active("forbid", 1..=1);
}

fn replaced_jobs_end(minutes: &Minutes<'_, '_>) {
    minutes.active("replace", 1..=1);
    let of = |job: &&Value| job["metadata"]["ownerReferences"][0]["name"] == "replace";
    minutes.space.until("jobs", "another alone", |jobs| {
        let left: Vec<String> = jobs.values().filter(of).map(uid).collect();
        left.len() == 1 && left[0] != minutes.replaced
    });
}

fn suspended_cron_jobs_start_nothing(minutes: &Minutes<'_, '_>) {
    assert_eq!(started(&minutes.jobs, "suspended").len(), 0, "{:#?}", minutes.jobs);
    let suspended = minutes.space.get(&["cronjob/suspended"]);
    assert!(suspended["status"]["lastScheduleTime"].is_null(), "{suspended}");
}

pub(crate) fn cron_jobs_have_every_verb(space: &Space<'_>) {
    let label = format!("test={}", space.name);
    let (_, value) = label.split_once('=').unwrap();
    let once_a_year = |name: &str| {
        let mut cron = cron_job(name, "0 0 29 2 *", "Allow");
        cron["metadata"]["labels"] = json!({"test": value});
        cron
    };
    let mut watch = space.watch("cronjobs");
    space.make(&once_a_year("one"));
    watch.until("created", |known| known.len() == 1);
    assert_eq!(space.get(&["cronjob/one"])["spec"]["schedule"], "0 0 29 2 *");
    for place in [&["-l", &label][..], &["-A", "-l", &label]] {
        assert_eq!(space.list(&[&["cronjobs"], place].concat()).len(), 1, "{place:?}");
    }
    space.patch("cronjobs/one", &json!({"metadata": {"annotations": {"patched": "yes"}}}));
    space.update(&["cronjobs/one"], |cron| cron["metadata"]["annotations"]["updated"] = "yes".into());
    watch.until("patched and updated", |known| {
        let annotations = &known["one"]["metadata"]["annotations"];
        annotations["patched"] == "yes" && annotations["updated"] == "yes"
    });

    let part = ["cronjobs/one", "--subresource=status"];
    let patched = space.patch_with(&part, &json!({"status": {"lastScheduleTime": "2026-01-01T00:00:00Z"}}));
    assert_eq!(patched["status"]["lastScheduleTime"], "2026-01-01T00:00:00Z");
    space.update(&part, |cron| cron["status"]["lastScheduleTime"] = "2026-01-02T00:00:00Z".into());
    assert_eq!(space.get(&part)["status"]["lastScheduleTime"], "2026-01-02T00:00:00Z");

    space.run(&["delete", "cronjob/one"]);
    watch.until("deleted", BTreeMap::is_empty);
    space.make(&once_a_year("two"));
    space.make(&once_a_year("three"));
    space.delete_collection("cronjobs", &label);
    watch.until("deleted together", BTreeMap::is_empty);
    assert!(space.list(&["cronjobs"]).is_empty());
}
