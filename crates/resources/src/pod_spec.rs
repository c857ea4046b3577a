//! `PodSpec`: computed defaults and validation, shared by pods and the templates of workloads.
//! Source: `core/v1/defaults.go`, `core/validation/validation.go`.

use std::collections::HashSet;
use std::net::IpAddr;

use api::quantity::Quantity;
use api::resources::{Counting, ResourceList, Side, amounts, of_pod, to_json};
use apiserver::field::{FieldError, FieldErrors};
use apiserver::strategy::NameRule;
use apiserver::tree;
use serde_json::{Value, json};

use crate::at::At;
use crate::compute::{self, Names};
use crate::containers::{self, PodFacts};
use crate::{affinity, security, systems, volume_sources};

const DNS_POLICIES: [&str; 4] = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
const NAMESERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;
const SEARCH_CHARS_MAX: usize = 2048;
/// What an ephemeral container has not. Source: `allowedEphemeralContainerFields`.
const NOT_EPHEMERAL: [&str; 9] = [
    "ports",
    "resources",
    "resizePolicy",
    "restartPolicy",
    "restartPolicyRules",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
    "lifecycle",
];

/// Defaults of a workload's template.
pub(crate) fn default_template(template: &mut Value) {
    if template.is_object() {
        default(tree::member(template, "spec"));
    }
}

/// Defaults that depend on other fields, and the constant ones that every client expects to see.
pub(crate) fn default(spec: &mut Value) {
    tree::set_default(spec, "dnsPolicy", "ClusterFirst");
    tree::set_default(spec, "restartPolicy", "Always");
    tree::set_default(spec, "schedulerName", "default-scheduler");
    tree::set_default(spec, "securityContext", json!({}));
    tree::set_default(spec, "terminationGracePeriodSeconds", 30);
    sync_account(spec);
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        if let Some(items) = tree::members(spec).get_mut(list).and_then(Value::as_array_mut) {
            items.iter_mut().for_each(containers::default);
        }
    }
    if let Some(volumes) = tree::members(spec).get_mut("volumes").and_then(Value::as_array_mut) {
        volumes.iter_mut().for_each(default_volume);
    }
}

/// Defaults of pods that templates have not.
pub(crate) fn default_pod(spec: &mut Value) {
    default(spec);
    tree::set_default(spec, "enableServiceLinks", true);
    if tree::at(spec, &["terminationGracePeriodSeconds"]).as_i64().is_some_and(|seconds| seconds < 0) {
        tree::members(spec).insert("terminationGracePeriodSeconds".into(), 1.into());
    }
    let host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in ["containers", "initContainers"] {
        if let Some(items) = tree::members(spec).get_mut(list).and_then(Value::as_array_mut) {
            items.iter_mut().for_each(|container| containers::default_in_pod(container, host_network));
        }
    }
    default_requests(spec);
}

/// A pod with limits of its own asks for what its containers ask for together or, where none does, for its limits.
/// Source: `defaultPodRequests`, KEP-2837.
fn default_requests(spec: &mut Value) {
    let limits = amounts(tree::at(spec, &["resources", "limits"]));
    if limits.is_empty() {
        return;
    }
    let of_pods = |name: &str| matches!(name, "cpu" | "memory") || name.starts_with("hugepages-");
    let mut wanted = of_containers(spec);
    wanted.retain(|name, _| matches!(name.as_str(), "cpu" | "memory"));
    for (name, limit) in limits.into_iter().filter(|(name, _)| of_pods(name)) {
        wanted.entry(name).or_insert(limit);
    }
    if let Value::Object(wanted) = to_json(&wanted)
        && !wanted.is_empty()
    {
        let requests = tree::object(tree::member(spec, "resources"), "requests");
        for (name, amount) in wanted {
            requests.entry(name).or_insert(amount);
        }
    }
}

/// What the containers of a pod ask for together.
fn of_containers(spec: &Value) -> ResourceList {
    let part = |list: &str| tree::at(spec, &[list]).clone();
    let alone =
        json!({ "spec": { "containers": part("containers"), "initContainers": part("initContainers") } });
    of_pod(&alone, Side::Requests, Counting { overhead: false, status: false })
}

/// The old name of the field is kept in step for old clients.
fn sync_account(spec: &mut Value) {
    let new = tree::text(spec, &["serviceAccountName"]).to_owned();
    let old = tree::text(spec, &["serviceAccount"]).to_owned();
    let account = if new.is_empty() { old } else { new };
    if !account.is_empty() {
        tree::members(spec).insert("serviceAccountName".into(), account.clone().into());
        tree::members(spec).insert("serviceAccount".into(), account.into());
    }
}

/// A volume without a source is an empty directory.
fn default_volume(volume: &mut Value) {
    let sources = volume.as_object().map_or(0, |fields| fields.keys().filter(|key| *key != "name").count());
    if sources == 0 {
        tree::members(volume).insert("emptyDir".into(), json!({}));
    }
    if let Some(image) = volume.get_mut("image").filter(|image| image.is_object()) {
        let policy = containers::pull_policy(tree::text(image, &["reference"]));
        tree::set_default(image, "pullPolicy", policy);
    }
}

/// What is wrong with a pod's spec.
pub(crate) fn validate(spec: &At<'_>, errors: &mut FieldErrors) {
    let facts = facts_of(spec);
    validate_volumes(&spec.get("volumes"), errors);
    validate_claims(&spec.get("resourceClaims"), errors);
    validate_containers(spec, &facts, errors);
    let resources = spec.get("resources");
    if resources.has("claims") {
        errors.push(resources.get("claims").forbidden("claims may not be set for Resources at pod-level"));
    }
    compute::validate(&resources, Names::Pod, &HashSet::new(), errors);
    if resources.is_set() {
        validate_sums(spec, errors);
    }
    if spec.get("hostNetwork").truth() {
        for port in spec.each("containers").flat_map(|container| container.each("ports")) {
            let host = port.get("hostPort");
            if host.number() != 0 && host.number() != port.get("containerPort").number() {
                errors.push(host.invalid("must match `containerPort` when `hostNetwork` is true"));
            }
        }
    }
    for (field, known) in
        [("restartPolicy", &["Always", "OnFailure", "Never"][..]), ("dnsPolicy", &DNS_POLICIES[..])]
    {
        if spec.get(field).present("", errors) {
            spec.get(field).one_of(known, errors);
        }
    }
    spec.get("nodeSelector").labels(errors);
    security::validate_pod(spec, errors);
    if spec.get("shareProcessNamespace").truth() && spec.get("hostPID").truth() {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(spec.get("shareProcessNamespace").invalid(detail));
    }
    affinity::validate(&spec.get("affinity"), errors);
    validate_dns(spec, errors);
    spec.each("readinessGates").for_each(|gate| gate.get("conditionType").label_key(errors));
    validate_gates(&spec.get("schedulingGates"), errors);
    affinity::spreading(&spec.get("topologySpreadConstraints"), errors);
    validate_host_users(spec, errors);
    validate_names(spec, errors);
    spec.get("activeDeadlineSeconds").between(1, i64::from(i32::MAX), errors);
    affinity::tolerations(&spec.get("tolerations"), errors);
    validate_aliases(&spec.get("hostAliases"), errors);
    spec.get("preemptionPolicy").one_of_if_set(&["PreemptLowerPriority", "Never"], errors);
    if spec.has("overhead") {
        let overhead = json!({ "limits": spec.get("overhead").value });
        compute::validate(
            &At::new(&overhead, spec.child("overhead")),
            Names::Container,
            &HashSet::new(),
            errors,
        );
    }
    if spec.has("os") {
        let name = spec.down(&["os", "name"]);
        if name.present("", errors) {
            name.one_of(&["linux", "windows"], errors);
        }
        systems::validate(spec, errors);
    }
}

/// A pod asks for as much as its containers together, and no container is allowed more than it.
/// Source: `validatePodResourceConsistency`.
fn validate_sums(spec: &At<'_>, errors: &mut FieldErrors) {
    let [requests, limits] =
        ["requests", "limits"].map(|side| amounts(spec.down(&["resources", side]).value));
    let own = |name: &str| matches!(name, "cpu" | "memory") || name.starts_with("hugepages-");
    for (name, sum) in of_containers(spec.value).into_iter().filter(|(name, _)| own(name)) {
        let present = requests.get(&name).copied().unwrap_or(Quantity::ZERO);
        if sum > present {
            let detail = format!("must be greater than or equal to aggregate container requests of {sum}");
            let field = format!("{}.requests[{name}]", spec.child("resources"));
            errors.push(FieldError::invalid(field, &json!(present.to_string()), &detail));
        }
    }
    for (index, container) in spec.each("containers").enumerate() {
        for (name, limit) in amounts(container.down(&["resources", "limits"]).value) {
            let Some(most) = limits.get(&name).filter(|most| limit > **most) else { continue };
            let detail = format!("must be less than or equal to pod limits of {most}");
            let field = format!("{}.containers[{index}][{name}].limits", spec.child("resources"));
            errors.push(FieldError::invalid(field, &json!(limit.to_string()), &detail));
        }
    }
}

/// What pods have to keep to and templates have not, since old ones did not. Source: `validateContainersOnlyForPod`.
pub(crate) fn validate_pod(pod: &At<'_>, errors: &mut FieldErrors) {
    let spec = pod.get("spec");
    for container in ["containers", "initContainers"].into_iter().flat_map(|list| spec.each(list)) {
        containers::validate_image(&container, errors);
    }
    let name = pod.down(&["metadata", "name"]).text();
    for volume in spec.each("volumes") {
        let image = volume.get("image");
        if image.is_set() {
            image.get("reference").present("", errors);
        }
        let own = volume.get("name");
        if !volume.has("ephemeral") || name.is_empty() || own.text().is_empty() {
            continue;
        }
        let claim = format!("{name}-{}", own.text());
        for detail in apiserver::names::name_problems(NameRule::Subdomain, &claim) {
            errors.push(own.invalid(&format!("PVC name {claim:?}: {detail}")));
        }
    }
}

fn facts_of<'v>(spec: &At<'v>) -> PodFacts<'v> {
    let volume = |volume: At<'v>| {
        (volume.get("name").text(), volume.has("persistentVolumeClaim") || volume.has("ephemeral"))
    };
    PodFacts {
        volumes: spec.each("volumes").map(volume).collect(),
        claims: spec.each("resourceClaims").map(|claim| claim.get("name").text()).collect(),
        restart_policy: spec.get("restartPolicy").text(),
        host_users: spec.get("hostUsers").value != &Value::Bool(false),
        grace: spec.get("terminationGracePeriodSeconds").value.as_i64(),
        system: spec.down(&["os", "name"]).text(),
    }
}

fn validate_containers(spec: &At<'_>, facts: &PodFacts<'_>, errors: &mut FieldErrors) {
    let mut names: HashSet<&str> = HashSet::new();
    let unique = |container: &At<'_>, name: &str, names: &HashSet<&str>, errors: &mut FieldErrors| {
        if names.contains(name) && !name.is_empty() {
            errors.push(container.get("name").duplicate());
        }
    };
    if spec.get("containers").is_empty() {
        errors.push(spec.get("containers").required(""));
    }
    for container in spec.each("containers") {
        containers::validate(&container, facts, errors);
        let name = container.get("name").text();
        unique(&container, name, &names, errors);
        names.insert(name);
        containers::validate_running(&container, facts, errors);
        containers::validate_restarts(&container, errors);
    }
    containers::host_port_conflicts(spec.each("containers"), errors);
    for container in spec.each("initContainers") {
        containers::validate(&container, facts, errors);
        containers::validate_restarts(&container, errors);
        let name = container.get("name").text();
        unique(&container, name, &names, errors);
        names.insert(name);
        // Upstream tells of any as of the first.
        let alone = At::new(container.value, spec.child("initContainers[0]"));
        containers::host_port_conflicts(std::iter::once(alone), errors);
        if container.get("restartPolicy").text() == "Always" {
            containers::validate_running(&container, facts, errors);
            continue;
        }
        for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
            if container.has(field) {
                let detail = "may not be set for init containers without restartPolicy=Always";
                errors.push(container.get(field).forbidden(detail));
            }
        }
    }
    let targets = names.clone();
    for container in spec.each("ephemeralContainers") {
        containers::validate(&container, facts, errors);
        containers::validate_image(&container, errors);
        let name = container.get("name").text();
        unique(&container, name, &names, errors);
        names.insert(name);
        validate_ephemeral(&container, &targets, errors);
    }
}

fn validate_ephemeral(container: &At<'_>, targets: &HashSet<&str>, errors: &mut FieldErrors) {
    const NOT_HERE: &str = "cannot be set for an Ephemeral Container";
    let target = container.get("targetContainerName");
    if !target.text().is_empty() && !targets.contains(target.text()) {
        errors.push(FieldError::not_found(target.path.clone(), target.value));
    }
    for field in NOT_EPHEMERAL {
        let part = container.get(field);
        if part.is_set() && !(part.is_empty() && matches!(field, "ports" | "resources")) {
            errors.push(part.forbidden(NOT_HERE));
        }
    }
    for mount in container.each("volumeMounts") {
        for field in ["subPath", "subPathExpr"] {
            if !mount.get(field).text().is_empty() {
                errors.push(mount.get(field).forbidden(NOT_HERE));
            }
        }
    }
}

fn validate_volumes(volumes: &At<'_>, errors: &mut FieldErrors) {
    let mut names: HashSet<&str> = HashSet::new();
    for volume in volumes.items() {
        volume_sources::validate(&volume, &["name"], false, errors);
        let name = volume.get("name");
        name.named(NameRule::Label, errors);
        if names.contains(&name.text()) && !name.text().is_empty() {
            errors.push(name.duplicate());
        }
        names.insert(name.text());
    }
}

fn validate_claims(claims: &At<'_>, errors: &mut FieldErrors) {
    let mut names: HashSet<&str> = HashSet::new();
    for claim in claims.items() {
        let name = claim.get("name");
        if name.present("", errors) {
            if names.contains(&name.text()) {
                errors.push(name.duplicate());
            } else {
                name.name(NameRule::Label, errors);
            }
        }
        names.insert(name.text());
        match (claim.has("resourceClaimName"), claim.has("resourceClaimTemplateName")) {
            (true, true) => errors.push(claim.invalid(
                "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified",
            )),
            (false, false) => errors
                .push(claim.invalid("must specify one of: `resourceClaimName`, `resourceClaimTemplateName`")),
            _ => {}
        }
        for field in ["resourceClaimName", "resourceClaimTemplateName"] {
            if claim.has(field) {
                claim.get(field).name(NameRule::Subdomain, errors);
            }
        }
    }
}

fn validate_dns(spec: &At<'_>, errors: &mut FieldErrors) {
    let config = spec.get("dnsConfig");
    let (servers, searches) = (config.get("nameservers"), config.get("searches"));
    if spec.get("dnsPolicy").text() == "None" {
        if !config.is_set() {
            errors.push(config.required("must provide `dnsConfig` when `dnsPolicy` is None"));
            return;
        }
        if servers.is_empty() {
            let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            errors.push(servers.required(detail));
            return;
        }
    }
    if servers.len() > NAMESERVERS_MAX {
        errors.push(servers.invalid("must not have more than 3 nameservers"));
    }
    servers.items().for_each(|server| address(&server, errors));
    if searches.len() > SEARCHES_MAX {
        errors.push(searches.invalid("must not have more than 32 search paths"));
    }
    if searches.texts().join(" ").len() > SEARCH_CHARS_MAX {
        let detail = "must not have more than 2048 characters (including spaces) in the search list";
        errors.push(searches.invalid(detail));
    }
    for search in searches.items().filter(|search| search.text() != ".") {
        let name = search.text().strip_suffix('.').unwrap_or(search.text());
        for detail in underscored_problems(name) {
            errors.push(FieldError::invalid(search.path.clone(), &json!(name), &detail));
        }
    }
    for option in config.each("options") {
        if option.get("name").text().is_empty() {
            errors.push(option.required("must not be empty"));
        }
    }
}

/// What is wrong with a DNS subdomain whose labels may have underscores. Source: `IsDNS1123SubdomainWithUnderscore`.
fn underscored_problems(name: &str) -> Vec<String> {
    const SHAPE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', \
                         and must start and end with an alphanumeric character (e.g. 'example.com', regex used for \
                         validation is '_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*')";
    let fits =
        |label: &str| api::names::is_label(&label.strip_prefix('_').unwrap_or(label).replace('_', "-"));
    let long = (name.len() > 253).then(|| "must be no more than 253 characters".to_owned());
    long.into_iter().chain((!name.split('.').all(fits)).then(|| SHAPE.to_owned())).collect()
}

/// An address that traffic is sent to: none that leads to the sender itself, its link or nowhere. Whatever is no address
/// at all is left to [`address`]. Source: `ValidateNonSpecialIP`.
pub(crate) fn ordinary_address(at: &At<'_>, errors: &mut FieldErrors) {
    // ::ffff:127.0.0.1 is loopback too.
    let Ok(ip) = at.text().parse::<IpAddr>().map(|ip| ip.to_canonical()) else { return };
    let (local, multicast) = match ip {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => (v6.is_unicast_link_local(), v6.segments()[0] & 0xff0f == 0xff02),
    };
    for (wrong, detail) in [
        (ip.is_unspecified(), format!("may not be unspecified ({})", at.text())),
        (ip.is_loopback(), "may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned()),
        (local, "may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned()),
        (multicast, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned()),
    ] {
        if wrong {
            errors.push(at.invalid(&detail));
        }
    }
}

/// An IP address.
pub(crate) fn address(at: &At<'_>, errors: &mut FieldErrors) {
    if at.text().parse::<IpAddr>().is_err() {
        errors.push(at.invalid_text("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"));
    }
}

fn validate_gates(gates: &At<'_>, errors: &mut FieldErrors) {
    let mut names: HashSet<&str> = HashSet::new();
    for gate in gates.items() {
        let name = At::new(gate.get("name").value, gate.path.clone());
        name.label_key(errors);
        if names.contains(&name.text()) {
            errors.push(name.duplicate());
        }
        names.insert(name.text());
    }
}

/// A pod with users of its own shares no other namespace that would undo that.
fn validate_host_users(spec: &At<'_>, errors: &mut FieldErrors) {
    if spec.get("hostUsers").value != &Value::Bool(false) {
        return;
    }
    for (field, shown) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        if spec.get(field).truth() {
            errors.push(FieldError::forbidden(spec.child(shown), "when `hostUsers` is false"));
        }
    }
}

fn validate_names(spec: &At<'_>, errors: &mut FieldErrors) {
    for (field, rule) in [
        ("serviceAccountName", NameRule::Subdomain),
        ("nodeName", NameRule::Subdomain),
        ("hostname", NameRule::Label),
        ("subdomain", NameRule::Label),
        ("priorityClassName", NameRule::Subdomain),
    ] {
        spec.get(field).name_if_set(rule, errors);
    }
    if spec.has("runtimeClassName") {
        spec.get("runtimeClassName").name(NameRule::Subdomain, errors);
    }
}

fn validate_aliases(aliases: &At<'_>, errors: &mut FieldErrors) {
    for alias in aliases.items() {
        address(&alias.get("ip"), errors);
        alias.each("hostnames").for_each(|name| name.name(NameRule::Subdomain, errors));
    }
}
