//! The life of pods.

use std::time::Duration;

use engine_api::ContainerState;
use serde_json::{Value, json};

use crate::world::{World, holds, one};

pub(crate) fn running(pod: &Value) -> bool {
    pod["status"]["phase"] == "Running" && holds(pod, "Ready")
}

#[tokio::test]
async fn a_pod_runs_and_is_deleted() {
    let world = World::new().await;
    world.create("web", one());
    let pod = world.pod_until("web", "Running and Ready", running).await;
    let status = &pod["status"];
    assert_eq!(status["podIP"], "10.1.0.1");
    assert_eq!(status["hostIP"], "192.0.2.1");
    assert_eq!(status["qosClass"], "BestEffort");
    assert_eq!(status["observedGeneration"], 1);
    let container = &status["containerStatuses"][0];
    assert_eq!(
        (&container["ready"], &container["started"], &container["restartCount"]),
        (&json!(true), &json!(true), &json!(0))
    );
    assert!(container["containerID"].as_str().unwrap().starts_with("skiff://"));
    assert_eq!(container["imageID"], "sha256:app1");
    assert!(holds(&pod, "PodScheduled"), "others' conditions stay");
    for kind in ["PodReadyToStartContainers", "Initialized", "ContainersReady"] {
        assert!(holds(&pod, kind), "{kind}");
    }

    world.api.delete_pod("web", 30);
    world.until("pod gone", || world.api.get("pods", "default", "web").is_none().then_some(())).await;
    let log = world.runtime.log.lock().clone();
    assert_eq!(
        log,
        ["create sandbox default/web", "start main 0", "stop main 30", "stop sandbox", "remove sandbox"]
    );
    let last = world.api.patches.lock().last().unwrap().clone();
    assert!(last["status"]["containerStatuses"][0]["state"]["terminated"].is_object(), "{last:#}");
    assert_eq!(last["status"]["phase"], "Succeeded");
    assert_eq!(std::fs::read_dir(world.directory.path().join("logs")).unwrap().count(), 0);
    for reason in ["Pulled", "Created", "Started", "Killing"] {
        world.until(reason, || (!world.events(reason).is_empty()).then_some(())).await;
    }
}

#[tokio::test]
async fn a_pod_whose_ports_another_one_has_is_refused() {
    let mut world = World::new().await;
    // No TCP port: nothing listens here, and readiness would wait for it.
    let mut ported = one();
    ported["containers"][0]["ports"] = json!([{"containerPort": 80, "hostPort": 8080, "protocol": "UDP"}]);
    world.create("first", ported.clone());
    world.pod_until("first", "Running and Ready", running).await;
    world.create("web", ported.clone());
    let refused = |pod: &Value| {
        let status = &pod["status"];
        status["phase"] == "Failed"
            && status["reason"] == "NodePorts"
            && status["containerStatuses"].is_null()
    };
    let pod = world.pod_until("web", "refused", refused).await;
    let message = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
    assert_eq!(pod["status"]["message"], format!("Pod was rejected: {message}"));
    world.until("an event", || world.events("NodePorts").contains(&message.to_owned()).then_some(())).await;

    // Whoever was here before stays, also where the agent begins anew.
    world.stop().await;
    world.start().await;
    assert!(refused(&world.settled("web").await) && running(&world.settled("first").await));
    world.create("another", ported.clone());
    world.pod_until("another", "refused", refused).await;
    world.api.delete_pod("first", 30);
    world.until("first gone", || world.api.get("pods", "default", "first").is_none().then_some(())).await;
    world.create("next", ported);
    world.pod_until("next", "Running and Ready", running).await;
    let log = world.runtime.log.lock().clone();
    let made: Vec<_> = log.iter().filter(|line| line.starts_with("create sandbox")).collect();
    assert_eq!(made, ["create sandbox default/first", "create sandbox default/next"]);
}

#[tokio::test]
async fn a_sysctl_that_is_not_the_pods_own_affair_is_refused_at_the_door() {
    let world = World::new().await;
    let mut spec = one();
    spec["securityContext"] = json!({"sysctls": [{"name": "kernel.msgmax", "value": "1"}]});
    world.create("web", spec);
    let pod = world.pod_until("web", "refused", |pod| pod["status"]["phase"] == "Failed").await;
    assert_eq!(pod["status"]["reason"], "SysctlForbidden");
    let message = "Pod was rejected: forbidden sysctl: \"kernel.msgmax\" not allowlisted";
    assert_eq!(pod["status"]["message"], message);
    assert!(world.runtime.log.lock().is_empty());
}

#[tokio::test]
async fn an_image_whose_user_is_a_name_does_not_run_where_root_is_forbidden() {
    let world = World::new().await;
    let mut spec = one();
    spec["securityContext"] = json!({"runAsNonRoot": true});
    *world.images.user.lock() = "app".to_owned();
    world.create("web", spec);
    let waiting = |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["waiting"].clone();
    let pod = world.pod_until("web", "refused", |pod| waiting(pod)["message"].is_string()).await;
    assert_eq!(waiting(&pod)["reason"], "CreateContainerConfigError");
    let message = waiting(&pod)["message"].as_str().unwrap().to_owned();
    assert!(
        message.starts_with("container has runAsNonRoot and image has non-numeric user (app), "),
        "{message}"
    );
    *world.images.user.lock() = "1000".to_owned();
    world.clock.advance(Duration::from_secs(2));
    world.pod_until("web", "Running", running).await;
}

/// All cores of the node.
pub(crate) fn all_cores(world: &World) -> u64 {
    let node = world.api.get("nodes", "", "n1").unwrap();
    node["status"]["allocatable"]["cpu"].as_str().unwrap().parse().unwrap()
}

pub(crate) fn asking(cores: u64) -> Value {
    let mut spec = one();
    spec["containers"][0]["resources"] = json!({"requests": {"cpu": cores.to_string()}});
    spec
}

#[tokio::test]
async fn a_pod_that_does_not_fit_is_refused() {
    let mut world = World::new().await;
    let cores = all_cores(&world);
    world.create("first", asking(cores));
    world.pod_until("first", "Running and Ready", running).await;
    let failed = |reason: &'static str| {
        move |pod: &Value| pod["status"]["phase"] == "Failed" && pod["status"]["reason"] == reason
    };
    world.create("web", asking(1));
    let pod = world.pod_until("web", "refused", failed("OutOfcpu")).await;
    let milli = cores * 1000;
    let message =
        format!("Node didn't have enough resource: cpu, requested: 1000, used: {milli}, capacity: {milli}");
    assert_eq!(pod["status"]["message"], format!("Pod was rejected: {message}"));
    world.until("an event", || world.events("OutOfcpu").contains(&message).then_some(())).await;

    let mut picky = one();
    picky["nodeSelector"] = json!({"disk": "ssd"});
    world.create("picky", picky.clone());
    let pod = world.pod_until("picky", "refused", failed("NodeAffinity")).await;
    let message =
        "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
    assert_eq!(pod["status"]["message"], message);
    let mut node = world.api.get("nodes", "", "n1").unwrap();
    node["metadata"]["labels"]["disk"] = "ssd".into();
    node["spec"]["taints"] = json!([{"key": "k", "effect": "NoExecute"}]);
    world.api.put("nodes", node.clone());
    picky["tolerations"] = json!([{"key": "k", "operator": "Exists"}]);
    world.create("picks", picky);
    world.pod_until("picks", "Running and Ready", running).await;
    world.create("taintless", one());
    world.pod_until("taintless", "refused", failed("TaintToleration")).await;

    // Who runs stays, whatever its node has become.
    node["status"]["allocatable"]["cpu"] = "0".into();
    world.stop().await;
    world.api.put("nodes", node);
    world.start().await;
    assert!(running(&world.settled("first").await));
}

#[tokio::test]
async fn others_go_for_a_critical_pod() {
    let world = World::new().await;
    let cores = all_cores(&world);
    world.create("web", asking(cores));
    world.create("bystander", one());
    for name in ["web", "bystander"] {
        world.pod_until(name, "Running and Ready", running).await;
    }
    let mut critical = asking(1);
    critical["priority"] = 2_000_000_000.into();
    world.create("critical", critical);
    world.pod_until("critical", "Running and Ready", running).await;
    let gone = world.pod_until("web", "Failed", |pod| pod["status"]["phase"] == "Failed").await;
    let message = "Preempted in order to admit critical pod";
    assert_eq!(
        (&gone["status"]["reason"], &gone["status"]["message"]),
        (&json!("Preempting"), &json!(message))
    );
    let disrupted = |pod: &Value| holds(pod, "DisruptionTarget");
    assert!(disrupted(&gone) && running(&world.settled("bystander").await), "{gone:#}");
    world.until("an event", || world.events("Preempting").contains(&message.to_owned()).then_some(())).await;
    let log = world.runtime.log.lock().clone();
    let at = |line: &str| log.iter().position(|known| known == line).unwrap();
    assert!(at("stop main 30") < at("create sandbox default/critical"), "{log:#?}");
    assert!(disrupted(&world.settled("web").await), "what is said of its end stays");
}

#[tokio::test]
async fn an_unchanged_pod_costs_no_writes() {
    let world = World::new().await;
    world.create("web", one());
    world.pod_until("web", "Running and Ready", running).await;
    let before = world.api.patches.lock().len();
    for n in 0..5 {
        let mut pod = world.pod("web");
        pod["metadata"]["annotations"] = json!({"n": n.to_string()});
        world.api.put("pods", pod);
    }
    // A change that does show proves that the others were seen.
    let id = world.runtime.newest("main").unwrap().spec.id;
    world.runtime.end(&id, 1);
    world
        .pod_until("web", "restarted", |pod| pod["status"]["containerStatuses"][0]["restartCount"] == 1)
        .await;
    world.pod_until("web", "Running again", running).await;
    let writes = world.api.patches.lock().len() - before;
    assert!(writes <= 4, "{writes} writes: {:#?}", world.api.patches.lock());
}

#[tokio::test]
async fn a_crash_is_restarted_with_back_off() {
    let world = World::new().await;
    world.create("web", one());
    world.pod_until("web", "Running", running).await;
    let restarts = |count: u32| {
        let world = &world;
        async move {
            world
                .until("restarted", || {
                    world.runtime.newest("main").filter(|status| {
                        status.spec.labels["skiff.dev/attempt"] == count.to_string()
                            && matches!(status.state, ContainerState::Running { .. })
                    })
                })
                .await
                .spec
                .id
        }
    };
    let first = restarts(0).await;
    std::fs::write(
        world.runtime.newest("main").unwrap().spec.labels["skiff.dev/termination-message-file"].clone(),
        "because",
    )
    .unwrap();
    world.runtime.end(&first, 7);
    // The first restart is immediate.
    let second = restarts(1).await;
    let pod = world.pod_until("web", "last state", |pod| {
        pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"] == 7
    });
    let message = pod.await["status"]["containerStatuses"][0]["lastState"]["terminated"]["message"].clone();
    assert_eq!(message, "because");
    world.runtime.end(&second, 7);
    let pod = world
        .pod_until("web", "CrashLoopBackOff", |pod| {
            pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
        })
        .await;
    assert!(!holds(&pod, "Ready"));
    assert_eq!(pod["status"]["phase"], "Running");
    world.clock.advance(Duration::from_secs(9));
    let pod = world.settled("web").await;
    let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"];
    assert_eq!(waiting, "CrashLoopBackOff", "a second is left");
    assert!(matches!(world.runtime.newest("main").unwrap().state, ContainerState::Exited { .. }));
    world.clock.advance(Duration::from_secs(1));
    restarts(2).await;
}

#[tokio::test]
async fn a_restarted_node_leaves_containers_alone() {
    let mut world = World::new().await;
    world.create("web", one());
    world.create("gone", one());
    world.pod_until("web", "Running", running).await;
    world.pod_until("gone", "Running", running).await;
    let id = world.pod("web")["status"]["containerStatuses"][0]["containerID"].clone();
    world.stop().await;
    world.api.remove("pods", "default", "gone");
    let written = world.api.patches.lock().len();
    world.start().await;
    world.until("orphan removed", || (world.runtime.sandbox_ids().len() == 1).then_some(())).await;
    let mut pod = world.pod("web");
    assert_eq!(pod["status"]["containerStatuses"][0]["containerID"], id);
    assert!(running(&pod));
    pod["metadata"]["annotations"] = json!({"touched": "yes"});
    world.api.put("pods", pod);
    world.settled("web").await;
    let patches = world.api.patches.lock()[written..].to_vec();
    let [patch] = &patches[..] else {
        panic!("nothing changed, nothing but the marker is written: {patches:#?}")
    };
    let fields: Vec<&String> = patch["status"].as_object().unwrap().keys().collect();
    let marker = ["conditions", "observedGeneration"];
    assert!(fields.iter().all(|field| marker.contains(&field.as_str())), "{patch:#}");
    let starts = world.runtime.log.lock().iter().filter(|line| line.starts_with("start ")).count();
    assert_eq!(starts, 2);
}

#[tokio::test]
async fn hooks_run_before_a_container_is_stopped_also_where_its_pod_is_gone() {
    let mut world = World::new().await;
    let mut spec = one();
    spec["containers"][0]["lifecycle"] = json!({"preStop": {"exec": {"command": ["say", "goodbye"]}}});
    world.create("web", spec.clone());
    world.pod_until("web", "Running", running).await;
    world.api.delete_pod("web", 30);
    world.until("pod gone", || world.api.get("pods", "default", "web").is_none().then_some(())).await;
    world.create("orphan", spec);
    world.pod_until("orphan", "Running", running).await;
    world.stop().await;
    world.api.remove("pods", "default", "orphan");
    world.start().await;
    world.until("orphan removed", || world.runtime.sandbox_ids().is_empty().then_some(())).await;
    let log = world.runtime.log.lock().clone();
    let ends: Vec<&String> =
        log.iter().filter(|line| line.starts_with("exec ") || line.starts_with("stop main")).collect();
    assert_eq!(ends, ["exec say goodbye", "stop main 30", "exec say goodbye", "stop main 30"]);
}

#[tokio::test]
async fn hooks_of_sidecars_run_at_once_and_their_containers_end_in_turn() {
    let world = World::new().await;
    let hook = |word: &str| json!({"preStop": {"exec": {"command": ["say", word]}}});
    let mut spec = one();
    spec["containers"][0]["lifecycle"] = hook("main");
    spec["initContainers"] = json!([
        {"name": "first", "image": "app:1", "restartPolicy": "Always", "lifecycle": hook("first")},
        {"name": "second", "image": "app:1", "restartPolicy": "Always", "lifecycle": hook("second")},
    ]);
    world.create("web", spec);
    world.pod_until("web", "Running", running).await;
    world.runtime.stubborn.lock().extend(["main".to_owned(), "second".to_owned()]);
    world.api.delete_pod("web", 30);
    world.until("main is being stopped", || (world.runtime.said("stop main 30") == 1).then_some(())).await;
    for word in ["main", "first", "second"] {
        world.until(word, || (world.runtime.said(&format!("exec say {word}")) == 1).then_some(())).await;
    }
    let stops = || {
        let log = world.runtime.log.lock().clone();
        log.into_iter().filter(|line| line.starts_with("stop ")).collect::<Vec<_>>()
    };
    assert_eq!(stops(), ["stop main 30"], "the others wait for their turn");
    // The grace ends: nobody waits any longer, and each has the least that there is.
    world.clock.advance(Duration::from_secs(30));
    world.until("all stopped", || (stops().len() >= 3).then_some(())).await;
    world.clock.advance(Duration::from_secs(2));
    world.until("pod gone", || world.api.get("pods", "default", "web").is_none().then_some(())).await;
    let stops = stops();
    assert!(
        stops.contains(&"stop second 2".to_owned()) && stops.contains(&"stop first 2".to_owned()),
        "{stops:?}"
    );
}

#[tokio::test]
async fn a_pod_begins_anew_in_its_place_where_a_rule_says_so() {
    let world = World::new().await;
    let mut spec = one();
    spec["restartPolicy"] = "Never".into();
    spec["initContainers"] = json!([{"name": "first", "image": "app:1"}]);
    spec["containers"][0]["restartPolicy"] = "Never".into();
    spec["containers"][0]["restartPolicyRules"] =
        json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]);
    let other = json!({"name": "other", "image": "app:1"});
    spec["containers"].as_array_mut().unwrap().push(other);
    world.create("web", spec);
    for round in 0..2 {
        let begun = |name: &str| (world.runtime.said(&format!("start {name} {round}")) == 1).then_some(());
        world.until("init begun", || begun("first")).await;
        world.runtime.end(&world.runtime.newest("first").unwrap().spec.id, 0);
        world.until("all begun", || begun("main").and(begun("other"))).await;
        let all = |pod: &Value| {
            let statuses = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
            let begun =
                |status: &Value| status["restartCount"] == round && status["state"]["running"].is_object();
            running(pod) && statuses.iter().all(begun)
        };
        let pod = world.pod_until("web", "Running", all).await;
        assert!(!holds(&pod, "AllContainersRestarting"), "{pod:#}");
        if round == 0 {
            world.runtime.end(&world.runtime.newest("main").unwrap().spec.id, 42);
        }
    }
    assert_eq!(world.runtime.said("stop other 2"), 1, "no longer than the least grace");
    assert_eq!(world.runtime.sandbox_ids().len(), 1);
    world.runtime.end(&world.runtime.newest("main").unwrap().spec.id, 1);
    world.runtime.end(&world.runtime.newest("other").unwrap().spec.id, 0);
    world.pod_until("web", "Failed", |pod| pod["status"]["phase"] == "Failed").await;
}

#[tokio::test]
async fn an_ephemeral_container_joins_a_pod_that_runs() {
    let world = World::new().await;
    world.create("web", one());
    world.pod_until("web", "Running", running).await;
    let add = |containers: Value| {
        let mut pod = world.pod("web");
        pod["spec"]["ephemeralContainers"] = containers;
        pod["metadata"]["generation"] = (pod["metadata"]["generation"].as_i64().unwrap() + 1).into();
        world.api.put("pods", pod);
    };
    let debugger = json!({"name": "debugger", "image": "app:1", "targetContainerName": "main", "stdin": true,
        "tty": true});
    let lost = json!({"name": "lost", "image": "app:1", "targetContainerName": "nobody"});
    add(json!([debugger]));
    let state =
        |pod: &Value, index: usize| pod["status"]["ephemeralContainerStatuses"][index]["state"].clone();
    let pod = world.pod_until("web", "debugged", |pod| state(pod, 0)["running"].is_object()).await;
    let status = &pod["status"]["ephemeralContainerStatuses"][0];
    assert_eq!((&status["ready"], &status["started"]), (&json!(false), &Value::Null));
    assert!(running(&pod), "the pod is as ready as before");
    let (main, debug) = (world.runtime.newest("main").unwrap(), world.runtime.newest("debugger").unwrap());
    assert_eq!(debug.spec.namespaces.pid_of, Some(main.spec.id));
    assert!(debug.spec.stdin && debug.spec.terminal);

    add(json!([debugger, lost]));
    let pod =
        world.pod_until("web", "no target", |pod| state(pod, 1)["waiting"]["message"].is_string()).await;
    let waiting = &state(&pod, 1)["waiting"];
    assert_eq!(waiting["reason"], "CreateContainerConfigError");
    assert_eq!(waiting["message"], "unable to find target container nobody");

    world.runtime.end(&debug.spec.id, 3);
    let pod =
        world.pod_until("web", "debugged no more", |pod| state(pod, 0)["terminated"]["exitCode"] == 3).await;
    assert!(running(&pod));
    assert_eq!(world.settled("web").await["status"]["ephemeralContainerStatuses"][0]["restartCount"], 0);
    assert_eq!(world.runtime.said("start debugger 0"), 1);
    assert_eq!(world.runtime.said("start debugger 1"), 0, "it is not restarted");
}

#[tokio::test]
async fn sidecars_end_after_the_others_in_reverse_order() {
    let world = World::new().await;
    let mut spec = one();
    spec["initContainers"] = json!([
        {"name": "first", "image": "app:1", "restartPolicy": "Always"},
        {"name": "second", "image": "app:1", "restartPolicy": "Always"},
    ]);
    world.create("web", spec);
    world.pod_until("web", "Running", running).await;
    world.api.delete_pod("web", 30);
    world.until("pod gone", || world.api.get("pods", "default", "web").is_none().then_some(())).await;
    let log = world.runtime.log.lock().clone();
    let stops: Vec<_> = log.iter().filter(|line| line.starts_with("stop ") && line.ends_with("30")).collect();
    assert_eq!(stops, ["stop main 30", "stop second 30", "stop first 30"]);
}

#[tokio::test]
async fn a_dead_shim_means_a_new_sandbox_and_address() {
    let world = World::new().await;
    world.create("web", one());
    world.pod_until("web", "Running", running).await;
    let sandbox = world.runtime.sandbox_ids().remove(0);
    world.runtime.kill_shim(&sandbox);
    let pod = world
        .pod_until("web", "new address", |pod| running(pod) && pod["status"]["podIP"] == "10.1.0.2")
        .await;
    assert_eq!(pod["status"]["podIPs"], json!([{"ip": "10.1.0.2"}]));
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 1);
}

#[tokio::test]
async fn a_served_pod_is_drained_before_it_is_signalled() {
    let world = World::new().await;
    *world.served.lock() = true;
    world.create("web", one());
    world.pod_until("web", "Running", running).await;
    world.api.delete_pod("web", 30);
    world.until("pod gone", || world.api.get("pods", "default", "web").is_none().then_some(())).await;
    let log = world.runtime.log.lock().clone();
    assert_eq!(log[2..4], ["drained within 2000", "stop main 30"]);
}

#[tokio::test]
async fn a_shorter_grace_counts_at_once() {
    let world = World::new().await;
    world.create("web", one());
    world.pod_until("web", "Running", running).await;
    world.runtime.stubborn.lock().push("main".to_owned());
    world.api.delete_pod("web", 3600);
    world
        .until("stopping", || {
            world.runtime.log.lock().iter().any(|line| line.starts_with("stop main")).then_some(())
        })
        .await;
    world.api.delete_pod("web", 0);
    world.until("pod gone", || world.api.get("pods", "default", "web").is_none().then_some(())).await;
    assert!(world.runtime.log.lock().contains(&"stop main 0".to_owned()));
}

#[tokio::test]
async fn a_job_like_pod_ends_and_keeps_its_container() {
    let world = World::new().await;
    let mut spec = one();
    spec["restartPolicy"] = "Never".into();
    world.create("web", spec);
    world.pod_until("web", "Running", running).await;
    let id = world.runtime.newest("main").unwrap().spec.id;
    world.runtime.end(&id, 0);
    let pod = world.pod_until("web", "Succeeded", |pod| pod["status"]["phase"] == "Succeeded").await;
    assert_eq!(pod["status"]["containerStatuses"][0]["state"]["terminated"]["reason"], "Completed");
    world
        .until("sandbox stopped", || {
            world.runtime.log.lock().contains(&"stop sandbox".to_owned()).then_some(())
        })
        .await;
    assert!(world.runtime.newest("main").is_some(), "its log can still be read");
}

#[tokio::test]
async fn volumes_follow_their_objects() {
    let world = World::new().await;
    let map = |text: &str| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"key": text},
        "metadata": {"name": "cm", "namespace": "default"}})
    };
    let mut spec = one();
    spec["serviceAccountName"] = "sa".into();
    spec["volumes"] = json!([{"name": "conf", "configMap": {"name": "cm"}},
        {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}}]}}]);
    spec["containers"][0]["volumeMounts"] = json!([{"name": "conf", "mountPath": "/conf"}]);
    spec["containers"][0]["env"] =
        json!([{"name": "FROM_MAP", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "key"}}}]);
    world.create("web", spec);
    world.until("FailedMount", || (!world.events("FailedMount").is_empty()).then_some(())).await;
    // What was missing appears: the pod starts at once, without waiting for the next try.
    world.api.put("configmaps", map("one"));
    world.pod_until("web", "Running", running).await;
    let env = world.runtime.newest("main").unwrap().spec.env;
    assert!(env.contains(&"FROM_MAP=one".to_owned()), "{env:?}");
    let uid = world.pod("web")["metadata"]["uid"].as_str().unwrap().to_owned();
    let volumes = world.directory.path().join("run/pods").join(uid).join("volumes");
    let read = |path: &str| std::fs::read_to_string(volumes.join(path)).unwrap();
    assert_eq!(read("conf/key"), "one");
    world.api.put("configmaps", map("two"));
    world.file_until(&volumes.join("conf"), "key", |text| text == "two").await;
    // Tokens are renewed when four fifths of their life have passed.
    let before = read("token/token");
    world.clock.advance(Duration::from_secs(2881));
    world.file_until(&volumes.join("token"), "token", |text| text != before).await;
}

#[tokio::test]
async fn a_claimed_volume_is_waited_for_and_outlives_its_pod() {
    let world = World::new().await;
    let data = world.directory.path().join("users");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("db"), "kept").unwrap();
    let claim = |phase: &str, volume: &str| {
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "spec": {"volumeName": volume},
            "metadata": {"name": "c", "namespace": "default", "uid": "cu"}, "status": {"phase": phase}})
    };
    world.api.put("persistentvolumeclaims", claim("Pending", ""));
    let mut spec = one();
    spec["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "c"}}]);
    spec["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    world.create("web", spec);
    world.until("FailedMount", || (!world.events("FailedMount").is_empty()).then_some(())).await;
    let wanted = "Unable to attach or mount volumes: unmounted volumes=[data], unattached volumes=[], \
                  failed to process volumes=[data]: error processing PVC default/c: PVC is not bound";
    assert_eq!(world.events("FailedMount")[0], wanted);
    // It is bound: the pod starts at once, without waiting for the next try.
    world.api.put(
        "persistentvolumes",
        json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "pv"},
            "spec": {"hostPath": {"path": data, "type": ""}, "claimRef": {"uid": "cu"}}}),
    );
    world.api.put("persistentvolumeclaims", claim("Bound", "pv"));
    let pod = world.pod_until("web", "Running", running).await;
    let bound = |world: &World| world.runtime.newest("main").unwrap().spec.mounts[0].source.clone();
    assert_eq!(bound(&world), engine_api::MountSource::Bind(data.clone()));
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let directory = world.directory.path().join("data/pods").join(uid);
    assert!(directory.join("volumes.json").exists());
    world.api.delete_pod("web", 30);
    world.until("gone", || world.pod("web").is_null().then_some(())).await;
    assert!(!directory.exists());
    assert_eq!(std::fs::read_to_string(data.join("db")).unwrap(), "kept");
}

#[tokio::test]
async fn a_directory_that_nobody_has_any_more_is_removed_and_told_of() {
    let world = World::new().await;
    let node = || world.api.get("nodes", "", "n1").unwrap();
    let root = node()["metadata"]["annotations"]["skiff.dev/local-path-root"].as_str().unwrap().to_owned();
    let root = std::path::PathBuf::from(root);
    assert!(root.starts_with(world.directory.path()));
    let directories = ["pvc-1_default_c", "pvc-2_default_d"].map(|name| root.join(name));
    for directory in &directories {
        std::fs::create_dir_all(directory.join("deep")).unwrap();
    }
    let mut asked = node();
    asked["metadata"]["annotations"]["local-path.skiff.dev/pvc-1"] = "remove".into();
    world.api.put("nodes", asked);
    let told = || node()["metadata"]["annotations"]["local-path.skiff.dev/pvc-1"] == "removed";
    world.until("told", || told().then_some(())).await;
    assert!(!directories[0].exists() && directories[1].join("deep").exists());
}

fn with_a_token() -> Value {
    let mut spec = one();
    spec["serviceAccountName"] = "sa".into();
    spec["volumes"] = json!([{"name": "token", "projected": {"sources": [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}}]}}]);
    spec
}

#[tokio::test]
async fn a_pod_whose_volumes_never_come_ends_all_the_same() {
    let world = World::new().await;
    *world.api.holds_tokens.lock() = true;
    world.create("web", with_a_token());
    world.until("asked", || (*world.api.tokens_asked.lock() == 1).then_some(())).await;
    world.api.delete_pod("web", 30);
    world.until("gone", || world.pod("web").is_null().then_some(())).await;
}

#[tokio::test]
async fn a_token_that_cannot_be_renewed_is_asked_for_now_and_then() {
    let world = World::new().await;
    world.create("web", with_a_token());
    world.pod_until("web", "Running", running).await;
    let asked = || *world.api.tokens_asked.lock();
    assert_eq!(asked(), 1);
    *world.api.refuses_tokens.lock() = true;
    // Long after its expiry.
    world.clock.advance(Duration::from_secs(7200));
    world.until("FailedMount", || (!world.events("FailedMount").is_empty()).then_some(())).await;
    world.settled("web").await;
    assert_eq!(asked(), 2, "one renewal, one failure");
    // The refresh is repeated, and the token asked for when its own time has come.
    world.clock.advance(Duration::from_secs(30));
    world.until("asked again", || (asked() == 3).then_some(())).await;
    *world.api.refuses_tokens.lock() = false;
    let uid = world.pod("web")["metadata"]["uid"].as_str().unwrap().to_owned();
    let volume = world.directory.path().join("run/pods").join(uid).join("volumes/token");
    let before = std::fs::read_to_string(volume.join("token")).unwrap();
    world.settled("web").await;
    world.clock.advance(Duration::from_secs(30));
    world.file_until(&volume, "token", |text| text != before).await;
}

#[tokio::test]
async fn a_refresh_that_failed_is_repeated() {
    let world = World::new().await;
    let map = |text: &str| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"key": text},
        "metadata": {"name": "cm", "namespace": "default"}})
    };
    world.api.put("configmaps", map("one"));
    let mut spec = one();
    spec["volumes"] = json!([{"name": "conf", "configMap": {"name": "cm"}}]);
    spec["containers"][0]["volumeMounts"] = json!([{"name": "conf", "mountPath": "/conf"}]);
    world.create("web", spec);
    world.pod_until("web", "Running", running).await;
    let uid = world.pod("web")["metadata"]["uid"].as_str().unwrap().to_owned();
    let volume = world.directory.path().join("run/pods").join(uid).join("volumes/conf");
    // The file that the new contents need cannot be made while a directory stands in its place.
    let obstacle = volume.join("..data_tmp");
    std::fs::create_dir_all(obstacle.join("full")).unwrap();
    world.api.put("configmaps", map("two"));
    world.until("FailedMount", || (!world.events("FailedMount").is_empty()).then_some(())).await;
    world.settled("web").await;
    std::fs::remove_dir_all(&obstacle).unwrap();
    world.clock.advance(Duration::from_secs(1));
    world.file_until(&volume, "key", |text| text == "two").await;
}

#[tokio::test]
async fn a_pod_is_not_gone_before_everything_of_it_is() {
    let world = World::new().await;
    world.create("web", one());
    world.pod_until("web", "Running", running).await;
    for call in ["stop sandbox", "remove sandbox"] {
        world.runtime.fail(call, 2);
    }
    world.api.delete_pod("web", 30);
    for (call, times) in [
        ("stop sandbox failed", 1),
        ("stop sandbox failed", 2),
        ("remove sandbox failed", 1),
        ("remove sandbox failed", 2),
    ] {
        world.until(call, || (world.runtime.said(call) == times).then_some(())).await;
        let pod = world.pod("web");
        assert!(pod.is_object(), "still there after {call}");
        let over = pod["status"]["containerStatuses"][0]["state"]["terminated"].is_object();
        assert_eq!(over, call == "remove sandbox failed", "{call}: {pod:#}");
        world.clock.advance(Duration::from_secs(1));
    }
    world.until("pod gone", || world.api.get("pods", "default", "web").is_none().then_some(())).await;
    assert!(world.runtime.sandbox_ids().is_empty());
    world.until("told", || (!world.events("FailedKillPod").is_empty()).then_some(())).await;
}

#[tokio::test]
async fn a_container_that_cannot_be_removed_is_asked_for_now_and_then() {
    let world = World::new().await;
    world.create("web", one());
    world.pod_until("web", "Running", running).await;
    world.runtime.fail("remove container", 2);
    // The newest and the one before are kept: the third start makes the first one superfluous.
    for attempt in 0..2 {
        let id = world
            .until("running", || {
                let newest = world.runtime.newest("main")?;
                let is = newest.spec.labels["skiff.dev/attempt"] == attempt.to_string()
                    && matches!(newest.state, ContainerState::Running { .. });
                is.then_some(newest.spec.id)
            })
            .await;
        world.runtime.end(&id, 1);
        world.clock.advance(Duration::from_secs(20));
    }
    world.until("refused", || (world.runtime.said("remove container failed") == 1).then_some(())).await;
    world.settled("web").await;
    assert_eq!(world.runtime.said("remove container failed"), 1, "not asked again at once");
    for _ in 0..2 {
        world.clock.advance(Duration::from_secs(1));
        world.settled("web").await;
    }
    world.until("removed", || (world.runtime.said("remove container") == 1).then_some(())).await;
}

#[tokio::test]
async fn exec_probes_decide_readiness_and_life() {
    let world = World::new().await;
    let mut spec = one();
    spec["containers"][0]["readinessProbe"] =
        json!({"exec": {"command": ["exit", "1"]}, "periodSeconds": 5, "failureThreshold": 1});
    spec["containers"][0]["livenessProbe"] = json!({"exec": {"command": ["exit", "1"]}, "initialDelaySeconds": 60, "periodSeconds": 10, "failureThreshold": 2,
        "terminationGracePeriodSeconds": 7});
    world.create("web", spec);
    let pod = world.pod_until("web", "Running", |pod| pod["status"]["phase"] == "Running").await;
    assert!(!holds(&pod, "Ready"));
    world
        .until("Unhealthy", || {
            world
                .events("Unhealthy")
                .iter()
                .any(|message| message.starts_with("Readiness probe failed"))
                .then_some(())
        })
        .await;
    world.clock.advance(Duration::from_secs(60));
    world
        .until("liveness asked", || {
            world
                .events("Unhealthy")
                .iter()
                .any(|message| message.starts_with("Liveness probe failed"))
                .then_some(())
        })
        .await;
    world.clock.advance(Duration::from_secs(10));
    world
        .pod_until("web", "restarted", |pod| pod["status"]["containerStatuses"][0]["restartCount"] == 1)
        .await;
    let killing = world.events("Killing");
    assert_eq!(killing, ["Container main failed liveness probe, will be restarted"]);
    assert_eq!(world.runtime.said("stop main 7"), 1, "the probe's own grace");
}

#[tokio::test]
async fn the_node_registers_itself_and_keeps_its_lease() {
    let world = World::new().await;
    let node = world.api.get("nodes", "", "n1").unwrap();
    assert_eq!(node["metadata"]["labels"]["kubernetes.io/hostname"], "host1");
    assert_eq!(node["status"]["nodeInfo"]["kubeletVersion"], "v1.37.0+skiff.1");
    assert!(holds(&node, "Ready"));
    let addresses =
        json!([{"type": "InternalIP", "address": "192.0.2.1"}, {"type": "Hostname", "address": "host1"}]);
    assert_eq!(node["status"]["addresses"], addresses);
    let renewed =
        || world.api.get("leases", "kube-node-lease", "n1").map(|lease| lease["spec"]["renewTime"].clone());
    let first = world.until("lease", renewed).await;
    world.clock.advance(Duration::from_secs(10));
    world.until("renewed", || renewed().filter(|time| *time != first)).await;
}
