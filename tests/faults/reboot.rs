//! The host reboots, or the instance goes down and comes up again.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::support::{Cluster, SERVER, container, deployment, is_ready, pod, restarts, service, text};

/// What users wrote, without what the system may change.
fn written(cluster: &Cluster) -> BTreeMap<String, Value> {
    let kinds = "configmaps,secrets,services,deployments,replicasets,serviceaccounts,pods";
    let mut found = BTreeMap::new();
    for mut object in cluster.list(&[kinds, "-A"]) {
        let meta = &object["metadata"];
        let key = format!("{} {}/{}", object["kind"], meta["namespace"], meta["name"]);
        let meta = json!({"uid": meta["uid"], "labels": meta["labels"], "generation": meta["generation"]});
        let object = object.as_object_mut().unwrap();
        object.remove("status");
        object.insert("metadata".to_owned(), meta);
        found.insert(key, Value::Object(object.clone()));
    }
    found
}

/// The addresses of a Service's ready endpoints.
fn endpoints(cluster: &Cluster, service: &str) -> BTreeSet<String> {
    let slices = cluster.list(&["endpointslices", "-l", &format!("kubernetes.io/service-name={service}")]);
    let endpoints =
        slices.iter().flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default());
    let ready = endpoints.filter(|endpoint| endpoint["conditions"]["ready"] == true);
    ready.map(|endpoint| text(&endpoint["addresses"][0])).collect()
}

fn addresses<'a>(pods: impl IntoIterator<Item = &'a Value>) -> BTreeSet<String> {
    pods.into_iter().map(|pod| text(&pod["status"]["podIP"])).collect()
}

/// Applications of every sort: a Deployment with volumes behind Services, a pod alone, one that is done, one that is
/// not to be restarted.
fn applications() -> Vec<Value> {
    let mut web = deployment("web", 2, SERVER);
    let spec = &mut web["spec"]["template"]["spec"];
    spec["volumes"] = json!([
        {"name": "conf", "configMap": {"name": "conf"}}, {"name": "secret", "secret": {"secretName": "secret"}},
        {"name": "memory", "emptyDir": {"medium": "Memory"}}, {"name": "disk", "emptyDir": {}}]);
    spec["containers"][0]["volumeMounts"] = json!([
        {"name": "conf", "mountPath": "/conf"}, {"name": "secret", "mountPath": "/secret"},
        {"name": "memory", "mountPath": "/memory"}, {"name": "disk", "mountPath": "/disk"}]);
    let mut balanced = service("balanced");
    balanced["spec"]["type"] = json!("LoadBalancer");
    balanced["spec"]["selector"] = json!({"app": "web"});
    let mut done = pod("done", "echo done");
    done["spec"]["restartPolicy"] = json!("Never");
    let mut once = pod("once", "sleep 100000");
    once["spec"]["restartPolicy"] = json!("Never");
    let conf =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "conf"}, "data": {"k": "v1"}});
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "secret"}, "stringData": {"s": "s1"}});
    vec![conf, secret, web, service("web"), balanced, done, once, pod("alone", "sleep 100000")]
}

/// Applies [`applications`] and waits until they are as they should be.
fn start(cluster: &Cluster) {
    cluster.apply(&applications());
    cluster.ready_pods("web", 2);
    for name in ["alone", "once"] {
        cluster.until(&["pod", name], "Ready", is_ready);
    }
    cluster.until(&["pod", "done"], "done", |pod| pod["status"]["phase"] == "Succeeded");
    cluster.until(&["service", "balanced"], "an address", |service| {
        !service["status"]["loadBalancer"]["ingress"][0]["ip"].is_null()
    });
}

/// Everything runs again, on fresh addresses, and answers.
fn check_running_again(cluster: &Cluster) {
    let again = |pod: &Value| is_ready(pod) && restarts(pod) == 1;
    let web = cluster.until_all(&["pods", "-l", "app=web"], "both restarted", |pods| {
        pods.len() == 2 && pods.values().all(again)
    });
    let alone = cluster.until(&["pod", "alone"], "restarted", again);
    let last = &container(&alone)["lastState"]["terminated"];
    assert!(!last.is_null(), "{alone}");
    let once = cluster.until(&["pod", "once"], "ended", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(restarts(&once), 0, "{once}");
    assert!(container(&once)["state"]["terminated"]["exitCode"].is_u64(), "{once}");
    let done = cluster.get(&["pod", "done"]);
    assert_eq!((&done["status"]["phase"], restarts(&done)), (&json!("Succeeded"), 0), "{done}");

    let wanted = addresses(web.values());
    assert_eq!(wanted.len(), 2, "{wanted:?}");
    cluster.until(&["endpointslices", "-l", "kubernetes.io/service-name=web"], "the pods' addresses", |_| {
        endpoints(cluster, "web") == wanted
    });
    for pod in web.values().chain([&alone]) {
        let name = text(&pod["metadata"]["name"]);
        let own = cluster.host.must_kubectl(&["exec", &name, "--", "hostname", "-i"]);
        assert_eq!(own.trim(), text(&pod["status"]["podIP"]), "{name}");
    }
    let name = web.keys().next().unwrap();
    let volumes = "cat /conf/k /secret/s; touch /memory/x /disk/x; wget -qO- http://web/";
    let seen = cluster.host.must_kubectl(&["exec", name, "--", "sh", "-c", volumes]);
    assert!(seen.starts_with("v1s1web-"), "{seen}");
    assert!(cluster.fetch(&format!("http://{}/", cluster.address_of("web"))).starts_with("web-"));
    let balanced = cluster.get(&["service", "balanced"]);
    let address = text(&balanced["status"]["loadBalancer"]["ingress"][0]["ip"]);
    assert!(cluster.fetch(&format!("http://{address}/")).starts_with("web-"));

    // An interface and an address for each pod that lives, for no other.
    let links = cluster.host.must_sh("ip -br link | grep -c '^skf'");
    assert_eq!(links.trim(), "3");
    let kept = std::fs::read_dir(cluster.data_dir().join("network/addresses")).unwrap();
    let kept: Vec<_> = kept.map(|boot| std::fs::read_dir(boot.unwrap().path()).unwrap().count()).collect();
    assert_eq!(kept, [3], "addresses given out, by boot");
}

#[test]
fn after_a_reboot_everything_is_there_and_runs() {
    let mut cluster = Cluster::up();
    start(&cluster);
    let before = written(&cluster);
    let images = cluster.host.must_skiff(&["images", "-o", "json"]);
    cluster.host.reboot().unwrap();
    cluster.bed.connect(&cluster.host).unwrap();
    cluster.host.must_skiff(&["up"]);
    assert_eq!(written(&cluster), before);
    check_running_again(&cluster);
    assert_eq!(cluster.host.must_skiff(&["images", "-o", "json"]), images);
    // A machine that lost power twice.
    cluster.host.reboot().unwrap();
    cluster.bed.connect(&cluster.host).unwrap();
    cluster.host.must_skiff(&["up"]);
    cluster.until_all(&["pods", "-l", "app=web"], "both restarted again", |pods| {
        pods.len() == 2 && pods.values().all(|pod| is_ready(pod) && restarts(pod) == 2)
    });
    cluster.purge();
}

#[test]
fn down_ends_the_pods_and_up_brings_them_back() {
    let cluster = Cluster::up();
    let host = &cluster.host;
    // It needs longer than the 10 s that a container without a pod would get, and says when it was allowed to.
    let mut slow =
        pod("slow", "trap 'sleep 12; echo in-order > /kept/end; exit 0' TERM; sleep 100000 & wait");
    slow["spec"]["terminationGracePeriodSeconds"] = json!(60);
    slow["spec"]["volumes"] = json!([{"name": "kept", "hostPath": {"path": host.directory().join("home")}}]);
    slow["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "kept", "mountPath": "/kept"}]);
    slow["spec"]["containers"][0]["lifecycle"] =
        json!({"preStop": {"exec": {"command": ["sh", "-c", "echo asked > /kept/hook"]}}});
    start(&cluster);
    cluster.apply(&[slow]);
    cluster.until(&["pod", "slow"], "Ready", is_ready);
    let before = written(&cluster);
    host.must_skiff(&["down"]);
    let end = std::fs::read_to_string(host.directory().join("home/end"));
    assert_eq!(end.unwrap_or_default(), "in-order\n", "it had its own grace");
    let hook = std::fs::read_to_string(host.directory().join("home/hook"));
    assert_eq!(hook.unwrap_or_default(), "asked\n", "its hook was run first");
    assert_eq!(host.processes().unwrap(), Vec::<String>::new());
    assert_eq!(host.must_sh("nft list tables"), "");
    assert_eq!(host.must_sh("ip -br link | grep -v '^lo\\|^eth0' || true"), "");
    // Twice is fine.
    host.must_skiff(&["down"]);
    host.must_skiff(&["up"]);
    assert_eq!(written(&cluster), before);
    host.must_kubectl(&["delete", "pod", "slow", "--grace-period=1"]);
    check_running_again(&cluster);
    cluster.purge();
}

/// A Service's address as [`Cluster::fetch`] reaches it is tested above; here is what a daemon that was killed leaves to
/// the removal: volumes of every kind, crashed pods, shared namespaces.
#[test]
fn nothing_is_left_of_a_killed_instance() {
    let cluster = Cluster::up();
    start(&cluster);
    let host = &cluster.host;
    let precious = host.directory().join("home/precious");
    std::fs::create_dir_all(precious.join("part")).unwrap();
    std::fs::write(precious.join("part/file"), "kept").unwrap();
    let mut volumes = pod("volumes", "sleep 100000");
    volumes["spec"]["volumes"] = json!([
        {"name": "host", "hostPath": {"path": precious}}, {"name": "memory", "emptyDir": {"medium": "Memory"}}]);
    volumes["spec"]["containers"][0]["volumeMounts"] = json!([
        {"name": "host", "mountPath": "/host"}, {"name": "host", "mountPath": "/part", "subPath": "part"},
        {"name": "memory", "mountPath": "/memory"}]);
    let mut shared = pod("shared", "sleep 100000");
    shared["spec"]["shareProcessNamespace"] = json!(true);
    let mut hosts = pod("hosts", "sleep 100000");
    hosts["spec"]["hostNetwork"] = json!(true);
    hosts["spec"]["hostPID"] = json!(true);
    cluster.apply(&[volumes, shared, hosts, pod("crashes", "exit 3")]);
    for name in ["volumes", "shared", "hosts"] {
        cluster.until(&["pod", name], "Ready", is_ready);
    }
    cluster.until(&["pod", "crashes"], "in its loop", |pod| {
        container(pod)["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    });
    host.must_skiff(&["run", "-d", "busybox", "sleep", "100000"]);
    cluster.kill_daemon();
    cluster.purge();
    assert_eq!(std::fs::read_to_string(precious.join("part/file")).unwrap(), "kept");
    // And it was no lasting damage.
    host.must_skiff(&["up"]);
    cluster.purge();
}

/// After an orderly `down` nobody runs who knows what there was, and nothing is where it usually is.
#[test]
fn nothing_is_left_of_an_instance_that_was_down_with_directories_of_its_own() {
    let bed = testbed::Testbed::new().unwrap();
    let host = bed.host().unwrap();
    let place = |name: &str| host.directory().join("elsewhere").join(name).to_string_lossy().into_owned();
    let (data, run, kubeconfig) = (place("data"), place("run"), place("kubeconfig"));
    host.must_sh(&format!("mkdir -p {}", place("")));
    let before = host.traces().unwrap();
    let skiff = |args: &[&str]| {
        host.must_skiff(&[&["--data-dir", &data, "--run-dir", &run][..], args].concat());
    };
    skiff(&["up", "--kubeconfig", &kubeconfig]);
    let archive = testbed::base_image("busybox-bookworm.tar").unwrap();
    skiff(&["load", "-i", &archive.to_string_lossy()]);
    let kubectl = |args: &[&str]| host.must_kubectl(&[&["--kubeconfig", &kubeconfig][..], args].concat());
    let web = ["create", "deployment", "web", "--image=busybox", "--replicas=2", "--", "sleep", "100000"];
    kubectl(&web);
    kubectl(&["expose", "deployment", "web", "--port=80", "--type=LoadBalancer"]);
    kubectl(&["rollout", "status", "deployment/web", "--timeout=180s"]);
    skiff(&["run", "-d", "--name", "plain", "-p", "8080:80", "busybox", "sleep", "100000"]);
    skiff(&["down"]);
    assert!(std::fs::read_dir(&data).unwrap().count() > 0, "down keeps the data");
    skiff(&["down", "--purge"]);
    host.must_be_as(&before);
    assert_eq!(host.must_sh(&format!("find {} -mindepth 1", place(""))), "", "files of its own");
    assert_eq!(bed.leaked_packets().unwrap(), 0, "{}", bed.leaks().unwrap());
}
