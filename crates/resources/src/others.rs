//! Kinds with a few rules each: RuntimeClass, LeaseCandidate, PodTemplate, APIService, trust bundles, storage migrations,
//! groups of pods. Sources: upstream's `validation.go` and `strategy.go` of each group.

use std::collections::HashSet;

use apiserver::field::{FieldError, FieldErrors};
use apiserver::names::name_problems;
use apiserver::strategy::{NameRule, Strategy};
use apiserver::tree;
use serde_json::{Value, json};

use crate::at::At;
use crate::compute::{self, Names};
use crate::containers::config_key_problems;
use crate::simple::Simple;
use crate::{affinity, certificates, pod_spec, template};

/// How the containers of a pod are run.
pub(crate) const RUNTIME_CLASSES: Simple = Simple {
    create_on_update: true,
    unconditional_update: false,
    check: |class, errors| {
        class.get("handler").named(NameRule::Label, errors);
        let overhead = json!({ "limits": class.down(&["overhead", "podFixed"]).value });
        compute::validate(&At::new(&overhead, "overhead"), Names::Container, &HashSet::new(), errors);
        let scheduling = class.get("scheduling");
        scheduling.get("nodeSelector").labels(errors);
        let tolerations = scheduling.get("tolerations");
        affinity::tolerations(&tolerations, errors);
        let mut seen: HashSet<String> = HashSet::new();
        for toleration in tolerations.items() {
            let mut key = toleration.value.clone();
            tree::members(&mut key).remove("tolerationSeconds");
            if !seen.insert(key.to_string()) {
                errors.push(toleration.duplicate());
            }
        }
    },
    frozen: &[&["handler"]],
    ..Simple::PLAIN
};

/// Templates that stand alone.
pub(crate) const POD_TEMPLATES: Simple = Simple {
    default: |object| pod_spec::default_template(tree::member(object, "template")),
    check: |object, errors| template::validate(&object.get("template"), errors),
    warnings: |object| template::warnings(&object.get("template")),
    ..Simple::COUNTED
};

/// Who would lead.
pub(crate) const LEASE_CANDIDATES: Simple = Simple {
    names: NameRule::PathSegment,
    create_on_update: true,
    unconditional_update: false,
    check: |candidate, errors| {
        let name = candidate.down(&["metadata", "name"]);
        for detail in config_key_problems(name.text()) {
            errors.push(name.invalid_text(&detail));
        }
        let spec = candidate.get("spec");
        spec.get("leaseName").present("", errors);
        let (emulated, binary) = (spec.get("emulationVersion"), spec.get("binaryVersion"));
        for version in [&emulated, &binary].into_iter().filter(|version| !version.text().is_empty()) {
            if semantic(version.text()).is_none() {
                errors.push(version.invalid("must be a valid semantic version"));
            }
        }
        binary.present("", errors);
        if let (Some(emulates), Some(is)) = (semantic(emulated.text()), semantic(binary.text()))
            && is < emulates
        {
            errors.push(binary.invalid("must be greater than or equal to `emulationVersion`"));
        }
        let strategy = spec.get("strategy");
        match strategy.text() {
            "" => errors.push(strategy.required("")),
            "OldestEmulationVersion" if emulated.text().is_empty() => {
                let detail = "must be specified when `strategy` is 'OldestEmulationVersion'";
                errors.push(emulated.required(detail));
            }
            "OldestEmulationVersion" => {}
            text if text.contains('/') => strategy.label_key(errors),
            _ => errors.push(strategy.not_supported(&["OldestEmulationVersion"])),
        }
    },
    frozen: &[&["spec", "leaseName"]],
    ..Simple::PLAIN
};

/// `1.2.3`, without what may follow a hyphen or a plus.
fn semantic(text: &str) -> Option<[u64; 3]> {
    let core = text.split(['-', '+']).next().unwrap_or_default();
    let mut parts = core.split('.').map(|part| part.parse().ok());
    let version = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(version)
}

/// Groups and versions, and who serves them. Source: `kube-aggregator/pkg/apis/apiregistration/validation`.
pub(crate) struct ApiServices;

const GROUP_PRIORITY_MAX: i64 = 20_000;
const VERSION_PRIORITY_MAX: i64 = 1_000;

impl Strategy for ApiServices {
    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }

    fn generation(&self) -> bool {
        false
    }

    fn default(&self, object: &mut Value) {
        if let Some(service) = object.pointer_mut("/spec/service").filter(|at| at.is_object()) {
            tree::set_default(service, "port", 443);
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        let local = tree::at(object, &["spec", "service"]).is_null();
        if local {
            let now = tree::at(object, &["metadata", "creationTimestamp"]).clone();
            let condition = json!({ "type": "Available", "status": "True", "reason": "Local",
                "message": "Local APIServices are always available", "lastTransitionTime": now });
            tree::object(object, "status").insert("conditions".into(), json!([condition]));
        }
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        let spec = At::object(object).get("spec");
        let (group, version) = (spec.get("group"), spec.get("version"));
        let name = At::object(object).down(&["metadata", "name"]);
        let required = format!("{}.{}", version.text(), group.text());
        if name.text() != required {
            errors.push(name.invalid(&format!("must be `spec.version+\".\"+spec.group`: {required:?}")));
        }
        if group.text().is_empty() && version.text() != "v1" {
            let detail = "only v1 may have an empty group and it better be legacy kube";
            errors.push(group.required(detail));
        }
        group.name_if_set(NameRule::Subdomain, errors);
        version.name(NameRule::Label1035, errors);
        for (field, most) in
            [("groupPriorityMinimum", GROUP_PRIORITY_MAX), ("versionPriority", VERSION_PRIORITY_MAX)]
        {
            let priority = spec.get(field);
            if !(1..=most).contains(&priority.number()) {
                let detail = format!("must be positive and less than {most}");
                errors.push(priority.invalid_number(&detail));
            }
        }
        let (service, bundle) = (spec.get("service"), spec.get("caBundle"));
        let insecure = spec.get("insecureSkipTLSVerify");
        if !service.is_set() {
            if !bundle.text().is_empty() {
                let shown = json!(format!("{} bytes", bundle.text().len() / 4 * 3));
                let detail = "local APIServices may not have a caBundle";
                errors.push(FieldError::invalid(bundle.path, &shown, detail));
            }
            if insecure.truth() {
                errors.push(insecure.invalid("local APIServices may not have insecureSkipTLSVerify"));
            }
            return;
        }
        service.get("namespace").present("", errors);
        service.get("name").present("", errors);
        let port = service.get("port");
        if port.is_set() && !(1..=65535).contains(&port.number()) {
            errors.push(port.invalid("port is not valid: must be between 1 and 65535, inclusive"));
        }
        if insecure.truth() && !bundle.text().is_empty() {
            errors.push(insecure.invalid("may not be true if caBundle is present"));
        }
    }
}

/// Objects to be written anew.
pub(crate) const MIGRATIONS: Simple = Simple {
    unconditional_update: false,
    check: |migration, errors| {
        let resource = migration.down(&["spec", "resource"]);
        for (part, rule) in [("resource", NameRule::Label1035), ("group", NameRule::Subdomain)] {
            let text = resource.get(part);
            if text.text().is_empty() {
                if part == "resource" {
                    errors.push(text.required("resource is required to be set"));
                }
                continue;
            }
            let problems = name_problems(rule, text.text());
            if !problems.is_empty() {
                errors.push(text.invalid(&problems.join(",")));
            }
        }
    },
    status: |migration, before, errors| {
        let status = migration.get("status");
        status.get("conditions").conditions(errors);
        let version = status.get("resourceVersion");
        let held = before.down(&["status", "resourceVersion"]);
        if !held.text().is_empty() {
            version.unchanged(&held, errors);
        }
    },
    frozen: &[&["spec"]],
    ..Simple::PLAIN
};

/// Authorities to trust.
pub(crate) const TRUST_BUNDLES: Simple = Simple {
    unconditional_update: false,
    names: NameRule::PathSegment,
    check: |bundle, errors| {
        let (signer, name) = (bundle.down(&["spec", "signerName"]), bundle.down(&["metadata", "name"]));
        if signer.text().is_empty() {
            if name.text().contains(':') {
                let detail = "ClusterTrustBundle without signer name must not have \":\" in its name";
                errors.push(name.invalid(detail));
            }
        } else {
            certificates::signer_name(&signer, errors);
            let prefix = signer.text().replace('/', ":") + ":";
            if !name.text().starts_with(&prefix) {
                let detail = format!(
                    "ClusterTrustBundle for signerName {} must be named with prefix {prefix}",
                    signer.text()
                );
                errors.push(name.invalid(&detail));
            }
        }
        bundle.down(&["spec", "trustBundle"]).present("", errors);
    },
    frozen: &[&["spec", "signerName"]],
    ..Simple::PLAIN
};

/// Groups of pods that are placed together.
pub(crate) const POD_GROUPS: Simple = Simple { unconditional_update: false, ..Simple::PLAIN };

#[cfg(test)]
mod tests {
    use super::*;
    use crate::at::said;

    fn causes(strategy: &dyn Strategy, mut object: Value) -> Vec<String> {
        strategy.default(&mut object);
        let mut errors = Vec::new();
        strategy.validate(&object, &mut errors);
        said(&errors)
    }

    #[test]
    fn failures_are_upstreams() {
        let service = |name: &str, spec: Value| json!({ "metadata": { "name": name }, "spec": spec });
        let rows: [(&dyn Strategy, Value, Vec<&str>); 7] = [
            (&RUNTIME_CLASSES, json!({ "handler": "runc" }), vec![]),
            (&RUNTIME_CLASSES, json!({}), vec!["handler: Required value"]),
            (
                &ApiServices,
                service(
                    "a",
                    json!({ "group": "b.c", "version": "v1", "groupPriorityMinimum": 1, "versionPriority": 1 }),
                ),
                vec![
                    "metadata.name: Invalid value: \"a\": must be `spec.version+\".\"+spec.group`: \"v1.b.c\"",
                ],
            ),
            (
                &ApiServices,
                service("v1.b.c", json!({ "group": "b.c", "version": "v1" })),
                vec![
                    "spec.groupPriorityMinimum: Invalid value: 0: must be positive and less than 20000",
                    "spec.versionPriority: Invalid value: 0: must be positive and less than 1000",
                ],
            ),
            (
                &LEASE_CANDIDATES,
                json!({ "metadata": { "name": "a" }, "spec": { "leaseName": "l", "binaryVersion": "1.2.3",
                    "emulationVersion": "1.3.0", "strategy": "OldestEmulationVersion" } }),
                vec![
                    "spec.binaryVersion: Invalid value: \"1.2.3\": must be greater than or equal to `emulationVersion`",
                ],
            ),
            (
                &MIGRATIONS,
                json!({ "spec": {} }),
                vec!["spec.resource.resource: Required value: resource is required to be set"],
            ),
            (
                &TRUST_BUNDLES,
                json!({ "metadata": { "name": "x" }, "spec": { "signerName": "a.b/c", "trustBundle": "y" } }),
                vec![
                    "metadata.name: Invalid value: \"x\": ClusterTrustBundle for signerName a.b/c must be named with prefix \
                     a.b:c:",
                ],
            ),
        ];
        for (strategy, object, expected) in rows {
            assert_eq!(causes(strategy, object.clone()), expected, "{object}");
        }
    }
}
