//! Containers that have CPUs for themselves. The CPUs are the machine's own: tests need two of them.

use node::{CpuPolicy, CpuSet, CpuSettings};
use serde_json::{Value, json};

use crate::world::{World, holds, one};

fn sized(requests: &str, limits: &str) -> Value {
    let amounts = |cpu: &str| json!({ "cpu": cpu, "memory": "64Mi" });
    let mut spec = one();
    spec["containers"][0]["resources"] = json!({ "requests": amounts(requests), "limits": amounts(limits) });
    spec
}

/// The last of the CPUs that are on, and all others; `None` where none can be given.
fn machine() -> Option<(String, String)> {
    if !sys::cgroup::CgroupHost::detect().unwrap().has("cpuset") {
        println!("skipped: this host has no cpuset controller");
        return None;
    }
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    let online: CpuSet = online.parse().unwrap();
    let last = online.to_string().rsplit([',', '-']).next().unwrap().to_owned();
    let rest: u32 = last.parse::<u32>().unwrap().checked_sub(1)?;
    (online.to_string() == format!("0-{last}")).then(|| {
        let rest = if rest == 0 { "0".to_owned() } else { format!("0-{rest}") };
        (last, rest)
    })
}

async fn with_one_cpu_to_give(rest: &str) -> World {
    let mut world = World::new().await;
    world.stop().await;
    let reserved: CpuSet = rest.parse().unwrap();
    world.cpus =
        CpuSettings { policy: CpuPolicy::Static, reserved: Some(reserved), ..CpuSettings::default() };
    world.start().await;
    world
}

fn cpus(world: &World, pod: &Value) -> Option<String> {
    let id = pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap();
    let id = id.rsplit('/').next().unwrap();
    world.runtime.resources_of(id)?.cpuset_cpus
}

#[tokio::test]
async fn whole_cpus_are_one_pods_alone_and_others_leave_them() {
    let Some((last, rest)) = machine() else { return };
    let all = format!("0-{last}");
    let mut world = with_one_cpu_to_give(&rest).await;
    world.create("web", one());
    let shares = world.pod_until("web", "Running", |pod| holds(pod, "Ready")).await;
    assert_eq!(cpus(&world, &shares), Some(all.clone()));
    world.create("own", sized("1", "1"));
    let owns = world.pod_until("own", "Running", |pod| holds(pod, "Ready")).await;
    let both = |world: &World| (cpus(world, &owns), cpus(world, &shares));
    assert_eq!(both(&world), (Some(last.clone()), Some(rest.clone())));
    // It has its CPU whole, and so has the pod.
    let id = owns["status"]["containerStatuses"][0]["containerID"].as_str().unwrap();
    let has = world.runtime.resources_of(id.rsplit('/').next().unwrap()).unwrap();
    assert_eq!((has.cpu_quota_us, has.cpu_shares), (None, Some(1024)));
    let group = format!("kubepods/pod{}", owns["metadata"]["uid"].as_str().unwrap());
    assert!(
        world
            .runtime
            .groups
            .lock()
            .get(&group)
            .is_none_or(|had| had.cpu_quota_us.is_none_or(|quota| quota < 0))
    );

    world.create("late", sized("1", "1"));
    let late = world.pod_until("late", "refused", |pod| pod["status"]["phase"] == "Failed").await;
    assert_eq!(late["status"]["reason"], "UnexpectedAdmissionError");
    let told = "Pod was rejected: Allocate failed due to not enough cpus available to satisfy request: requested=1, \
                available=0, which is unexpected";
    assert_eq!(late["status"]["message"], told);

    // A node that begins anew knows who has what.
    world.stop().await;
    let path = world.directory.path().join("data/cpu_manager_state");
    let noted: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let uid = owns["metadata"]["uid"].as_str().unwrap();
    assert_eq!((&noted["policyName"], &noted["defaultCpuSet"]), (&json!("static"), &json!(rest)));
    assert_eq!(noted["entries"], json!({ uid: { "main": last } }));
    world.start().await;
    world.settled("own").await;
    assert_eq!(both(&world), (Some(last), Some(rest)));

    world.api.remove("pods", "default", "own");
    world.until("all CPUs", || (cpus(&world, &shares) == Some(all.clone())).then_some(())).await;
    let noted: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!((&noted["defaultCpuSet"], &noted["entries"]), (&json!(all), &Value::Null));
}

#[tokio::test]
async fn without_the_policy_nobody_is_told_where_to_run() {
    let world = World::new().await;
    world.create("web", sized("1", "1"));
    let pod = world.pod_until("web", "Running", |pod| holds(pod, "Ready")).await;
    assert_eq!(cpus(&world, &pod), None);
    assert!(!world.directory.path().join("data/cpu_manager_state").exists());
}
