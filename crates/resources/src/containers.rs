//! Containers: image pull policy, ports, environment, mounts. Source: `core/v1/defaults.go`, `core/validation/validation.go`.

use std::collections::{HashMap, HashSet};

use apiserver::field::{FieldError, FieldErrors};
use apiserver::names::name_problems;
use apiserver::strategy::NameRule;
use apiserver::tree;
use serde_json::{Value, json};

use crate::at::{At, in_range};
use crate::compute::{self, Names};
use crate::volume_sources::{descending, local_path, no_backsteps};
use crate::{field_refs, probes, security};

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const PULL_POLICIES: [&str; 3] = ["Always", "IfNotPresent", "Never"];
const RESTART_POLICIES: [&str; 3] = ["Always", "Never", "OnFailure"];
const RESTART_RULES_MAX: usize = 20;
const EXIT_CODES_MAX: usize = 255;
const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  \
                          or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";

/// Defaults of every container, also of one in a template.
pub(crate) fn default(container: &mut Value) {
    tree::set_default(container, "terminationMessagePath", "/dev/termination-log");
    tree::set_default(container, "terminationMessagePolicy", "File");
    tree::set_default(container, "resources", json!({}));
    let policy = pull_policy(tree::text(container, &["image"]));
    if tree::text(container, &["imagePullPolicy"]).is_empty() {
        tree::members(container).insert("imagePullPolicy".into(), policy.into());
    }
    if let Some(ports) = tree::members(container).get_mut("ports").and_then(Value::as_array_mut) {
        ports.iter_mut().for_each(|port| tree::set_default(port, "protocol", "TCP"));
    }
    if let Some(env) = tree::members(container).get_mut("env").and_then(Value::as_array_mut) {
        for variable in env {
            if let Some(reference) = variable.pointer_mut("/valueFrom/fieldRef") {
                tree::set_default(reference, "apiVersion", "v1");
            }
        }
    }
    probes::default(container);
}

/// Defaults that a pod's containers have and those of templates have not: a limit is a request too, and on the host's
/// network a port is the host's.
pub(crate) fn default_in_pod(container: &mut Value, host_network: bool) {
    let limits = tree::at(container, &["resources", "limits"]).as_object().cloned().unwrap_or_default();
    for (name, limit) in limits {
        let requests = tree::object(tree::member(container, "resources"), "requests");
        requests.entry(name).or_insert(limit);
    }
    let ports = tree::members(container).get_mut("ports").and_then(Value::as_array_mut);
    for port in ports.into_iter().flatten().filter(|_| host_network) {
        if tree::at(port, &["hostPort"]).as_i64().unwrap_or(0) == 0 {
            let number = tree::at(port, &["containerPort"]).clone();
            tree::members(port).insert("hostPort".into(), number);
        }
    }
}

/// `Always` for the tag `latest` (also when it goes without saying), else `IfNotPresent`.
pub(crate) fn pull_policy(image: &str) -> &'static str {
    if image.contains('@') {
        return "IfNotPresent";
    }
    let name = image.rsplit('/').next().unwrap_or_default();
    match name.rsplit_once(':') {
        Some((_, tag)) if tag != "latest" => "IfNotPresent",
        _ => "Always",
    }
}

/// What a container's rules need to know of its pod.
pub(crate) struct PodFacts<'v> {
    /// The names of the volumes, with whether they are claims.
    pub(crate) volumes: HashMap<&'v str, bool>,
    /// The names of the resource claims.
    pub(crate) claims: HashSet<&'v str>,
    pub(crate) restart_policy: &'v str,
    /// Whether the host's user namespace is shared.
    pub(crate) host_users: bool,
    /// Seconds.
    pub(crate) grace: Option<i64>,
    /// The operating system, if the pod names it.
    pub(crate) system: &'v str,
}

/// What is wrong with any container.
pub(crate) fn validate(container: &At<'_>, pod: &PodFacts<'_>, errors: &mut FieldErrors) {
    container.get("name").named(NameRule::Label, errors);
    let image = container.get("image");
    image.present("", errors);
    container.get("terminationMessagePolicy").one_of_if_set(&["File", "FallbackToLogsOnError"], errors);
    validate_ports(&container.get("ports"), errors);
    validate_env(&container.get("env"), errors);
    validate_env_from(&container.get("envFrom"), errors);
    validate_mounts(container, pod, errors);
    validate_devices(container, pod, errors);
    let policy = container.get("imagePullPolicy");
    if policy.present("", errors) {
        policy.one_of(&PULL_POLICIES, errors);
    }
    compute::validate(&container.get("resources"), Names::Container, &pod.claims, errors);
    validate_resize_policy(&container.get("resizePolicy"), pod.restart_policy, errors);
    security::validate_container(&container.get("securityContext"), pod.host_users, errors);
}

/// What pods' containers are held to, and those of templates are not.
pub(crate) fn validate_image(container: &At<'_>, errors: &mut FieldErrors) {
    let image = container.get("image");
    if image.text().trim() != image.text() {
        errors.push(image.invalid("must not have leading or trailing whitespace"));
    }
}

/// What is wrong with a container that runs as long as its pod, besides: probes and life cycle.
pub(crate) fn validate_running(container: &At<'_>, pod: &PodFacts<'_>, errors: &mut FieldErrors) {
    probes::validate_lifecycle(&container.get("lifecycle"), pod, errors);
    probes::validate(container, pod, errors);
}

/// How a container is restarted, where it says so itself. Source: KEP-5307.
pub(crate) fn validate_restarts(container: &At<'_>, errors: &mut FieldErrors) {
    let (policy, rules) = (container.get("restartPolicy"), container.get("restartPolicyRules"));
    if policy.is_set() {
        policy.one_of(&RESTART_POLICIES, errors);
    } else if !rules.is_empty() {
        errors.push(policy.required("must specify restartPolicy when restart rules are used"));
    }
    if rules.len() > RESTART_RULES_MAX {
        errors.push(rules.too_many(RESTART_RULES_MAX));
    }
    for rule in rules.items() {
        rule.get("action").one_of(&["Restart", "RestartAllContainers"], errors);
        let codes = rule.get("exitCodes");
        if !codes.is_set() {
            errors.push(codes.required("must be specified"));
            continue;
        }
        codes.get("operator").one_of(&["In", "NotIn"], errors);
        if codes.get("values").len() > EXIT_CODES_MAX {
            errors.push(codes.get("values").too_many(EXIT_CODES_MAX));
        }
    }
}

fn validate_ports(ports: &At<'_>, errors: &mut FieldErrors) {
    let mut names: HashSet<&str> = HashSet::new();
    for port in ports.items() {
        let name = port.get("name");
        if !name.text().is_empty() {
            let problems = port_name_problems(name.text());
            if problems.is_empty() && names.contains(&name.text()) {
                errors.push(name.duplicate());
            }
            problems.into_iter().for_each(|detail| errors.push(name.invalid(detail)));
            names.insert(name.text());
        }
        let number = port.get("containerPort");
        if number.number() == 0 {
            errors.push(number.required(""));
        } else {
            number.port(errors);
        }
        if port.get("hostPort").number() != 0 {
            port.get("hostPort").port(errors);
        }
        if port.get("protocol").present("", errors) {
            port.get("protocol").one_of(&PROTOCOLS, errors);
        }
    }
}

/// Ports of the host that are taken twice, among containers that run together.
pub(crate) fn host_port_conflicts<'v>(containers: impl Iterator<Item = At<'v>>, errors: &mut FieldErrors) {
    let mut seen: HashSet<String> = HashSet::new();
    for port in containers.flat_map(|container| container.each("ports")) {
        let host = port.get("hostPort");
        if host.number() == 0 {
            continue;
        }
        let key = format!("{}/{}/{}", port.get("protocol").text(), port.get("hostIP").text(), host.number());
        if seen.contains(&key) {
            errors.push(FieldError::duplicate(host.path, &json!(key)));
        } else {
            seen.insert(key);
        }
    }
}

/// What is wrong with the name of a port: IANA service names have at most 15 of lower-case letters, digits and single
/// hyphens inside, with a letter.
pub(crate) fn port_name_problems(name: &str) -> Vec<&'static str> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let rules = [
        (name.len() > 15, "must be no more than 15 characters"),
        (
            name.is_empty() || !name.bytes().all(fits),
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
        ),
        (!name.bytes().any(|byte| byte.is_ascii_lowercase()), "must contain at least one letter (a-z)"),
        (name.contains("--"), "must not contain consecutive hyphens"),
        (name.starts_with('-') || name.ends_with('-'), "must not begin or end with a hyphen"),
    ];
    rules.into_iter().filter(|(broken, _)| *broken).map(|(_, detail)| detail).collect()
}

/// A port by number or by name.
pub(crate) fn port_or_name(port: &At<'_>, errors: &mut FieldErrors) {
    match port.value.as_str() {
        Some(name) => {
            port_name_problems(name).into_iter().for_each(|detail| errors.push(port.invalid(detail)));
        }
        None if !(1..=65535).contains(&port.number()) => {
            errors.push(port.invalid_number(&in_range(1, 65535)));
        }
        None => {}
    }
}

fn env_name(name: &At<'_>, errors: &mut FieldErrors) {
    let printable = |char: char| (' '..='~').contains(&char) && char != '=';
    if !name.text().chars().all(printable) {
        let detail = "a valid environment variable name must consist only of printable ASCII characters other than '='";
        errors.push(name.invalid(detail));
    }
}

fn validate_env(env: &At<'_>, errors: &mut FieldErrors) {
    const ONE_OF: &str = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or \
                          `fileKeyRef`";
    for variable in env.items() {
        if variable.get("name").present("", errors) {
            env_name(&variable.get("name"), errors);
        }
        let source = variable.get("valueFrom");
        if !source.is_set() {
            continue;
        }
        let given = source.value.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
        let count = given.count();
        if source.has("fieldRef") {
            field_refs::validate(&source.get("fieldRef"), &field_refs::OF_ENVIRONMENT, errors);
        }
        if source.has("resourceFieldRef") {
            field_refs::validate_resource(&source.get("resourceFieldRef"), false, errors);
        }
        for kind in ["configMapKeyRef", "secretKeyRef"] {
            if source.has(kind) {
                key_selector(&source.get(kind), errors);
            }
        }
        if source.has("fileKeyRef") {
            file_key(&source.get("fileKeyRef"), errors);
        }
        let empty = |detail: &str| FieldError::invalid(source.path.clone(), &json!(""), detail);
        if count == 0 {
            errors.push(empty(ONE_OF));
        } else if !variable.get("value").text().is_empty() {
            errors.push(empty("may not be specified when `value` is not empty"));
        } else if count > 1 {
            errors.push(empty("may not have more than one field specified at a time"));
        }
    }
}

/// A variable of a file. Source: KEP-3721.
fn file_key(selector: &At<'_>, errors: &mut FieldErrors) {
    let (key, path) = (selector.get("key"), selector.get("path"));
    if key.present("", errors) {
        env_name(&key, errors);
    }
    selector.get("volumeName").named(NameRule::Label, errors);
    if path.present("", errors) {
        local_path(&path, errors);
    }
}

fn key_selector(selector: &At<'_>, errors: &mut FieldErrors) {
    selector.get("name").name(NameRule::Subdomain, errors);
    let key = selector.get("key");
    if key.present("", errors) {
        config_key_problems(key.text()).into_iter().for_each(|detail| errors.push(key.invalid(&detail)));
    }
}

/// What is wrong with a key of a ConfigMap or a Secret.
pub(crate) fn config_key_problems(key: &str) -> Vec<String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let mut problems = Vec::new();
    if key.len() > 253 {
        problems.push("must be no more than 253 characters".to_owned());
    }
    if key.is_empty() || !key.bytes().all(fits) {
        problems.push(CONFIG_KEY.to_owned());
    }
    match key {
        "." | ".." => problems.push(format!("must not be '{key}'")),
        _ if key.starts_with("..") => problems.push("must not start with '..'".to_owned()),
        _ => {}
    }
    problems
}

fn validate_env_from(list: &At<'_>, errors: &mut FieldErrors) {
    for source in list.items() {
        env_name(&source.get("prefix"), errors);
        let given: Vec<_> =
            ["configMapRef", "secretRef"].iter().map(|kind| source.get(kind)).filter(At::is_set).collect();
        for reference in &given {
            let name = reference.get("name");
            if name.present("", errors) {
                for detail in name_problems(NameRule::Subdomain, name.text()) {
                    errors.push(name.invalid(&detail));
                }
            }
        }
        let detail = match given.len() {
            0 => "must specify one of: `configMapRef` or `secretRef`",
            1 => continue,
            _ => "may not have more than one field specified at a time",
        };
        errors.push(FieldError::invalid(list.path.clone(), &json!(""), detail));
    }
}

fn validate_mounts(container: &At<'_>, pod: &PodFacts<'_>, errors: &mut FieldErrors) {
    let mounts = container.get("volumeMounts");
    let (devices, device_paths): (HashSet<&str>, HashSet<&str>) = container
        .each("volumeDevices")
        .map(|device| (device.get("name").text(), device.get("devicePath").text()))
        .unzip();
    let privileged = container.down(&["securityContext", "privileged"]).truth();
    let mut paths: HashSet<&str> = HashSet::new();
    for mount in mounts.items() {
        let (name, path) = (mount.get("name"), mount.get("mountPath"));
        name.present("", errors);
        if !pod.volumes.contains_key(name.text()) {
            errors.push(FieldError::not_found(name.path.clone(), &json!(name.text())));
        }
        path.present("", errors);
        if paths.contains(&path.text()) {
            errors.push(path.invalid("must be unique"));
        }
        paths.insert(path.text());
        if devices.contains(name.text()) {
            errors.push(name.invalid("must not already exist in volumeDevices"));
        }
        if device_paths.contains(path.text()) {
            errors.push(path.invalid("must not already exist as a path in volumeDevices"));
        }
        // Upstream reports these at the list.
        let at_list = |field: &str| At::new(mount.get(field).value, mounts.child(field));
        descending(&at_list("subPath"), errors);
        descending(&at_list("subPathExpr"), errors);
        if !mount.get("subPath").text().is_empty() && !mount.get("subPathExpr").text().is_empty() {
            let detail = "subPathExpr and subPath are mutually exclusive";
            errors.push(mount.get("subPathExpr").invalid(detail));
        }
        let propagation = at_list("mountPropagation");
        propagation.one_of_if_set(&["Bidirectional", "HostToContainer", "None"], errors);
        if propagation.text() == "Bidirectional" && !privileged {
            let detail = "Bidirectional mount propagation is available only to privileged containers";
            errors.push(propagation.forbidden(detail));
        }
        let recursive = at_list("recursiveReadOnly");
        recursive.one_of_if_set(&["Disabled", "Enabled", "IfPossible"], errors);
        if matches!(recursive.text(), "Enabled" | "IfPossible") {
            if !mount.get("readOnly").truth() {
                errors.push(recursive.forbidden("may only be specified when readOnly is true"));
            }
            if !matches!(propagation.text(), "" | "None") {
                let detail = "may only be specified when mountPropagation is None or not specified";
                errors.push(recursive.forbidden(detail));
            }
        }
    }
}

fn validate_devices(container: &At<'_>, pod: &PodFacts<'_>, errors: &mut FieldErrors) {
    let (mut names, mut paths): (HashSet<&str>, HashSet<&str>) = Default::default();
    for device in container.each("volumeDevices") {
        let (name, path) = (device.get("name"), device.get("devicePath"));
        name.present("", errors);
        if names.contains(&name.text()) {
            errors.push(name.invalid("must be unique"));
        }
        match pod.volumes.get(name.text()) {
            None => errors.push(FieldError::not_found(name.path.clone(), &json!(name.text()))),
            Some(false) => {
                let detail =
                    "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errors.push(name.invalid(detail));
            }
            Some(_) => {}
        }
        path.present("", errors);
        if paths.contains(&path.text()) {
            errors.push(path.invalid("must be unique"));
        }
        let mut wrong = Vec::new();
        no_backsteps(&path, &mut wrong);
        if !wrong.is_empty() {
            errors.push(path.invalid("can not contain backsteps ('..')"));
        }
        names.insert(name.text());
        paths.insert(path.text());
    }
}

fn validate_resize_policy(list: &At<'_>, restart_policy: &str, errors: &mut FieldErrors) {
    let mut seen: HashSet<&str> = HashSet::new();
    for policy in list.items() {
        let (resource, restart) = (policy.get("resourceName").text(), policy.get("restartPolicy").text());
        if seen.contains(&resource) {
            errors.push(FieldError::duplicate(policy.path.clone(), &json!(resource)));
        }
        seen.insert(resource);
        for (text, known) in [(resource, ["cpu", "memory"]), (restart, ["NotRequired", "RestartContainer"])] {
            if text.is_empty() {
                errors.push(list.required(""));
            } else if !known.contains(&text) {
                errors.push(FieldError::not_supported(list.path.clone(), &json!(text), &known));
            }
        }
        if restart_policy == "Never" && restart != "NotRequired" {
            let detail = "must be 'NotRequired' when pod `restartPolicy` is 'Never'";
            errors.push(FieldError::invalid(list.path.clone(), &json!(restart), detail));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::at::said;

    #[test]
    fn the_pull_policy_follows_the_tag() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1", "IfNotPresent"),
            ("localhost:5000/nginx", "Always"),
            ("localhost:5000/a/nginx:green", "IfNotPresent"),
            ("nginx@sha256:00", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }

    /// What is wrong with a container that has these fields, beyond the ones that it needs.
    fn causes(fields: Value) -> Vec<String> {
        let mut container = json!({ "name": "a", "image": "b", "imagePullPolicy": "Always" });
        container.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let pod = PodFacts {
            volumes: [("data", false)].into(),
            claims: HashSet::new(),
            restart_policy: "Always",
            host_users: true,
            grace: Some(30),
            system: "",
        };
        let mut errors = Vec::new();
        let container = At::new(&container, "spec.containers[0]");
        validate(&container, &pod, &mut errors);
        validate_running(&container, &pod, &mut errors);
        said(&errors).iter().map(|cause| cause.replace("spec.containers[0].", "")).collect()
    }

    #[test]
    fn failures_are_upstreams() {
        let rows = [
            (json!({}), vec![]),
            (json!({ "name": "a.b" }), vec!["name: Invalid value: \"a.b\": must not contain dots"]),
            (json!({ "image": "" }), vec!["image: Required value"]),
            (
                json!({ "ports": [{ "containerPort": 70000, "hostPort": -1, "protocol": "TCP" }] }),
                vec![
                    "ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
                    "ports[0].hostPort: Invalid value: -1: must be between 1 and 65535, inclusive",
                ],
            ),
            (
                json!({ "volumeMounts": [{ "name": "gone", "mountPath": "/x" }, { "name": "data", "mountPath": "/x" }] }),
                vec![
                    "volumeMounts[0].name: Not found: \"gone\"",
                    "volumeMounts[1].mountPath: Invalid value: \"/x\": must be unique",
                ],
            ),
            (
                json!({ "resources": { "limits": { "cpu": "1" }, "requests": { "cpu": "1500m", "disk": "1" } } }),
                vec![
                    "resources.requests[disk]: Invalid value: \"disk\": must be a standard resource type or fully qualified",
                    "resources.requests[disk]: Invalid value: \"disk\": must be a standard resource for containers",
                    "resources.requests: Invalid value: \"1500m\": must be less than or equal to cpu limit of 1",
                ],
            ),
            (
                json!({ "resources": { "requests": { "example.com/gpu": "1" } } }),
                vec!["resources.limits: Required value: Limit must be set for non overcommitable resources"],
            ),
            (
                json!({ "livenessProbe": {} }),
                vec!["livenessProbe: Required value: must specify a handler type"],
            ),
            (
                json!({ "readinessProbe": { "httpGet": { "port": "web_1", "path": "/", "scheme": "HTTP" } } }),
                vec![
                    "readinessProbe.httpGet.port: Invalid value: \"web_1\": must contain only alpha-numeric characters \
                     (a-z, 0-9), and hyphens (-)",
                ],
            ),
            (
                json!({ "env": [{ "name": "A", "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": "status.phase" } } }] }),
                vec![
                    "env[0].valueFrom.fieldRef.fieldPath: Unsupported value: \"status.phase\": supported values: \
                     \"metadata.name\", \"metadata.namespace\", \"metadata.uid\", \"spec.nodeName\", \
                     \"spec.serviceAccountName\", \"status.hostIP\", \"status.hostIPs\", \"status.podIP\", \"status.podIPs\"",
                ],
            ),
            (
                json!({ "env": [{ "name": "A", "value": "x", "valueFrom": { "secretKeyRef": { "name": "s", "key": "a b" } } }] }),
                vec![
                    "env[0].valueFrom.secretKeyRef.key: Invalid value: \"a b\": a valid config key must consist of \
                     alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used \
                     for validation is '[-._a-zA-Z0-9]+')",
                    "env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
                ],
            ),
            (
                json!({ "securityContext": { "runAsUser": -1, "seccompProfile": { "type": "Localhost" } } }),
                vec![
                    "securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive",
                    "securityContext.seccompProfile.localhostProfile: Required value: must be set when seccomp type is \
                     Localhost",
                ],
            ),
            (
                json!({ "lifecycle": { "preStop": { "sleep": { "seconds": 31 } } } }),
                vec![
                    "lifecycle.preStop.sleep: Invalid value: 31: must be non-negative and less than \
                     terminationGracePeriodSeconds (30)",
                ],
            ),
        ];
        for (fields, expected) in rows {
            assert_eq!(causes(fields.clone()), expected, "{fields}");
        }
    }
}
