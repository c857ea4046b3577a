//! What containers find in their environment. Source: `test/e2e/common/node/{configmap,secrets,downwardapi,expansion,pods}.go`.

use serde_json::{Value, json};

use crate::space::{Space, config_map, main, pod, secret, text};

/// Asserts that an environment has each of the lines.
#[track_caller]
fn has(environment: &str, wanted: &[String]) {
    for line in wanted {
        assert!(environment.lines().any(|found| found == line), "{line} is not in\n{environment}");
    }
}

fn lines(wanted: &[&str]) -> Vec<String> {
    wanted.iter().map(|line| (*line).to_owned()).collect()
}

/// A pod that prints its environment.
fn printer(name: &str) -> Value {
    let mut pod = pod(name, "");
    // Not by a shell, which leaves out names that its own variables cannot have.
    main(&mut pod)["command"] = json!(["env"]);
    pod
}

fn field(name: &str, path: &str) -> Value {
    json!({"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}})
}

pub(crate) fn variables_come_from_objects(space: &Space<'_>) {
    let data = json!({"data-1": "value-1", "data-2": "value-2", "data_3": "value-3"});
    space.create("configmaps", &config_map("things", data.clone()));
    space.create("secrets", &secret("things", data));
    let mut pods = Vec::new();
    for (kind, reference) in [("configMap", "configMapKeyRef"), ("secret", "secretKeyRef")] {
        let mut one = printer(&format!("{}-key", kind.to_lowercase()));
        main(&mut one)["env"] =
            json!([{"name": "OF_A_KEY", "valueFrom": {reference: {"name": "things", "key": "data-1"}}}]);
        let mut all = printer(&format!("{}-all", kind.to_lowercase()));
        let source = format!("{kind}Ref");
        main(&mut all)["envFrom"] =
            json!([{&source: {"name": "things"}}, {"prefix": "p_", &source: {"name": "things"}}]);
        pods.extend([one, all]);
    }
    let printed = space.outputs(&pods);
    for kind in ["configmap", "secret"] {
        has(&printed[&format!("{kind}-key")], &lines(&["OF_A_KEY=value-1"]));
        let all = ["data-1=value-1", "data-2=value-2", "data_3=value-3"];
        let prefixed = all.map(|line| format!("p_{line}"));
        has(&printed[&format!("{kind}-all")], &[lines(&all), prefixed.to_vec()].concat());
    }
}

pub(crate) fn variables_are_composed_and_substituted(space: &Space<'_>) {
    let mut composed = printer("composed");
    main(&mut composed)["env"] = json!([{"name": "FOO", "value": "foo-value"},
        {"name": "BAR", "value": "bar-value"}, {"name": "FOOBAR", "value": "$(FOO);;$(BAR)"}]);
    let mut command = pod("command", "TEST_VAR=wrong echo \"$(TEST_VAR)\"");
    let mut arguments = command.clone();
    arguments["metadata"]["name"] = "arguments".into();
    main(&mut arguments)["command"] = json!(["sh", "-c"]);
    main(&mut arguments)["args"] = json!(["TEST_VAR=wrong echo \"$(TEST_VAR)\""]);
    for pod in [&mut command, &mut arguments] {
        main(pod)["env"] = json!([{"name": "TEST_VAR", "value": "test-value"}]);
    }
    let printed = space.outputs(&[composed, command, arguments]);
    has(&printed["composed"], &lines(&["FOO=foo-value", "BAR=bar-value", "FOOBAR=foo-value;;bar-value"]));
    assert_eq!((&*printed["command"], &*printed["arguments"]), ("test-value\n", "test-value\n"));
}

pub(crate) fn variables_tell_of_the_pod_and_its_node(space: &Space<'_>) {
    let mut pod = printer("told");
    let env = [
        ("POD_NAME", "metadata.name"),
        ("POD_NAMESPACE", "metadata.namespace"),
        ("POD_UID", "metadata.uid"),
        ("POD_IP", "status.podIP"),
        ("POD_IPS", "status.podIPs"),
        ("HOST_IP", "status.hostIP"),
        ("NODE", "spec.nodeName"),
        ("ACCOUNT", "spec.serviceAccountName"),
    ];
    main(&mut pod)["env"] = env.iter().map(|(name, path)| field(name, path)).collect();
    let printed = space.output(&pod);
    let pod = space.get("pods/told");
    let of = |value: &Value| text(value);
    has(
        &printed,
        &[
            "POD_NAME=told".to_owned(),
            format!("POD_NAMESPACE={}", space.name),
            format!("POD_UID={}", of(&pod["metadata"]["uid"])),
            format!("POD_IP={}", of(&pod["status"]["podIP"])),
            format!("POD_IPS={}", of(&pod["status"]["podIPs"][0]["ip"])),
            format!("HOST_IP={}", of(&pod["status"]["hostIP"])),
            format!("NODE={}", of(&pod["spec"]["nodeName"])),
            "ACCOUNT=default".to_owned(),
        ],
    );
    assert_eq!(of(&pod["status"]["hostIP"]), space.cluster.host.address);
}

pub(crate) fn variables_tell_of_resources(space: &Space<'_>) {
    let names = ["limits.cpu", "limits.memory", "requests.cpu", "requests.memory"];
    let env: Vec<Value> = names
        .iter()
        .map(|name| {
            let variable = name.replace('.', "_").to_uppercase();
            json!({"name": variable, "valueFrom": {"resourceFieldRef": {"resource": name}}})
        })
        .collect();
    let mut stated = printer("stated");
    main(&mut stated)["env"] = env.clone().into();
    main(&mut stated)["resources"] = json!({"requests": {"cpu": "250m", "memory": "32Mi"},
        "limits": {"cpu": "1250m", "memory": "64Mi"}});
    let mut unstated = printer("unstated");
    main(&mut unstated)["env"] = env[..2].into();
    let printed = space.outputs(&[stated, unstated]);
    let wanted = ["LIMITS_CPU=2", "LIMITS_MEMORY=67108864", "REQUESTS_CPU=1", "REQUESTS_MEMORY=33554432"];
    has(&printed["stated"], &lines(&wanted));
    let (cpu, memory) = allocatable(space);
    has(&printed["unstated"], &[format!("LIMITS_CPU={cpu}"), format!("LIMITS_MEMORY={memory}")]);
}

/// What the node has for pods: cores, rounded up, and bytes of memory.
pub(crate) fn allocatable(space: &Space<'_>) -> (u64, u64) {
    let node = space.get(&format!("/api/v1/nodes/{}", space.cluster.host.name));
    let of = |name: &str| text(&node["status"]["allocatable"][name]);
    let (cpu, memory) = (of("cpu"), of("memory"));
    let cpu = match cpu.strip_suffix('m') {
        Some(thousandths) => thousandths.parse::<u64>().unwrap().div_ceil(1000),
        None => cpu.parse().unwrap(),
    };
    let memory = match memory.strip_suffix("Ki") {
        Some(kibibytes) => kibibytes.parse::<u64>().unwrap() * 1024,
        None => memory.parse().unwrap(),
    };
    (cpu, memory)
}

pub(crate) fn variables_tell_of_services(space: &Space<'_>) {
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "fooservice"},
        "spec": {"selector": {"app": "nobody"}, "ports": [{"port": 8765, "targetPort": 8080}]}});
    let service = space.create("services", &service);
    let address = text(&service["spec"]["clusterIP"]);
    let of = |rest: &str, value: &str| format!("FOOSERVICE_{rest}={value}");
    let url = format!("tcp://{address}:8765");
    let wanted = [
        of("SERVICE_HOST", &address),
        of("SERVICE_PORT", "8765"),
        of("PORT", &url),
        of("PORT_8765_TCP_PORT", "8765"),
        of("PORT_8765_TCP_PROTO", "tcp"),
        of("PORT_8765_TCP", &url),
        of("PORT_8765_TCP_ADDR", &address),
    ];
    let told = printer("told");
    let mut untold = printer("untold");
    untold["spec"]["enableServiceLinks"] = false.into();
    let printed = space.outputs(&[told, untold]);
    has(&printed["told"], &wanted);
    assert!(!printed["untold"].contains("FOOSERVICE"), "{}", printed["untold"]);
    assert!(printed["untold"].contains("KUBERNETES_SERVICE_HOST="), "{}", printed["untold"]);
}
