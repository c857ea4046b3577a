//! PodSecurity: what a namespace's labels forbid its pods, by the Pod Security Standards. Pods are refused; whoever writes
//! a workload whose pods would be refused is warned. Source: `k8s.io/pod-security-admission/admission`.

mod baseline;
mod checks;
mod policy;
mod restricted;
mod settings;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use api::{Object, Status};
use async_trait::async_trait;
use serde_json::Value;

use self::checks::{Finding, Pod, details, judge, reasons};
use self::policy::{Level, PREFIX, Policy, Standard};
pub(crate) use self::settings::Settings;
use super::lifecycle::forbidden;
use super::{Link, Operation, Review, World, decoded};
use crate::{field, tree};

/// How many pods of a namespace are judged when its labels change, and for how long.
/// Source: `defaultNamespaceMaxPodsToCheck`, `defaultNamespacePodCheckTimeout`.
const PODS_MAX: usize = 3000;
const JUDGING_MAX: Duration = Duration::from_secs(1);
/// After how many pods others have their turn.
const PODS_AT_ONCE: usize = 50;
/// The audit annotation of what is exempt.
const EXEMPT: &str = "exempt";
/// Subresources of pods that do not change what they may do.
const HARMLESS: [&str; 8] =
    ["exec", "attach", "binding", "eviction", "log", "portforward", "proxy", "status"];
/// What makes pods, and where it says how they look.
const WORKLOADS: [(&str, &str, &[&str]); 8] = [
    ("", "replicationcontrollers", &["spec", "template"]),
    ("", "podtemplates", &["template"]),
    ("apps", "replicasets", &["spec", "template"]),
    ("apps", "deployments", &["spec", "template"]),
    ("apps", "statefulsets", &["spec", "template"]),
    ("apps", "daemonsets", &["spec", "template"]),
    ("batch", "jobs", &["spec", "template"]),
    ("batch", "cronjobs", &["spec", "jobTemplate", "spec", "template"]),
];

/// The link.
#[derive(Debug, Default, Clone)]
pub struct PodSecurity(Settings);

#[async_trait]
impl Link for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    async fn validate(
        &self,
        review: &Review<'_>,
        object: Option<&Value>,
        world: &dyn World,
    ) -> Result<(), Status> {
        let writes = matches!(review.operation, Operation::Create | Operation::Update);
        let Some(object) = object.filter(|_| writes) else { return Ok(()) };
        match (review.resource.group.as_str(), review.resource.resource.as_str()) {
            ("", "namespaces") if review.subresource.is_empty() => {
                self.of_namespace(review, object, world).await
            }
            ("", "pods") if !HARMLESS.contains(&review.subresource) => {
                self.of_pod(review, object, world).await
            }
            (group, resource) if review.subresource.is_empty() => {
                let workload = WORKLOADS.iter().find(|known| (known.0, known.1) == (group, resource));
                match workload.map(|(_, _, path)| tree::at(object, path)).filter(|found| !found.is_null()) {
                    Some(template) => self.of_template(review, template, world).await,
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }
}

impl PodSecurity {
    /// The link with a configuration.
    pub(super) fn of(settings: Settings) -> Self {
        Self(settings)
    }

    fn policy(&self, namespace: &Value) -> (Policy, field::FieldErrors) {
        Policy::of(self.0.policy(), namespace)
    }

    /// Whether the namespace or the user of a request is exempt, which the audit log is told.
    fn exempts(&self, review: &Review<'_>) -> bool {
        let exemptions = &self.0.exemptions;
        let listed = |list: &[String], name: &str| list.iter().any(|known| known == name);
        let why = if listed(&exemptions.namespaces, review.namespace) {
            "namespace"
        } else if listed(&exemptions.usernames, &review.user.name) {
            "user"
        } else {
            return false;
        };
        annotate(review, EXEMPT, why);
        true
    }

    /// Whether a pod, or a template of pods, is of a class that is exempt.
    fn exempts_class(&self, pod: &Value) -> bool {
        let class = tree::text(pod, &["spec", "runtimeClassName"]);
        self.0.exemptions.runtime_classes.iter().any(|known| known == class)
    }

    /// What is said where an exempt namespace asks for something.
    fn ignored(&self, policy: &Policy, namespace: &Value) -> Option<String> {
        if policy.asks_nothing() || *policy == self.0.policy() {
            return None;
        }
        let modes = [("enforce", policy.enforce), ("audit", policy.audit), ("warn", policy.warn)];
        let asked = modes.into_iter().filter(|(mode, standard)| {
            let has = |label: String| !tree::at(namespace, &["metadata", "labels", &label]).is_null();
            standard.level > Level::Privileged
                && (has(format!("{PREFIX}{mode}")) || has(format!("{PREFIX}{mode}-version")))
        });
        let asked: Vec<String> = asked.map(|(mode, standard)| format!("{mode}={standard}")).collect();
        Some(format!(
            "namespace {:?} is exempt from Pod Security, and the policy ({}) will be ignored",
            tree::text(namespace, &["metadata", "name"]),
            asked.join(", ")
        ))
    }

    /// Labels have to be legible; who asks for more is told which pods do not give it.
    async fn of_namespace(
        &self,
        review: &Review<'_>,
        object: &Value,
        world: &dyn World,
    ) -> Result<(), Status> {
        let (policy, errors) = self.policy(object);
        let before = review.old.map(|old| self.policy(old));
        let known = before.as_ref().is_some_and(|(_, known)| *known == errors);
        if !known {
            field::check("", "Namespace", review.name, &errors)?;
        }
        let exempt = self.0.exemptions.namespaces.iter().any(|name| name == review.name);
        let ignored = || self.ignored(&policy, object).into_iter().for_each(|text| review.notes.warn(text));
        let Some((before, _)) = before else {
            if exempt {
                ignored();
            }
            return Ok(());
        };
        let (asked, before) = (policy.enforce, before.enforce);
        let relaxed = asked.version == before.version && asked.level <= before.level;
        if asked == before || asked.level == Level::Privileged || relaxed {
            return Ok(());
        }
        if exempt {
            ignored();
            return Ok(());
        }
        let mut pods = world.all("", "pods", review.name);
        if !self.0.exemptions.runtime_classes.is_empty() {
            pods.retain(|pod| !decoded(pod).is_ok_and(|pod| self.exempts_class(&pod)));
        }
        let pods = by_novelty(pods);
        let mut judged = Judged { total: pods.len(), ..Judged::default() };
        let end = world.moment() + JUDGING_MAX;
        for pod in pods.iter().take(PODS_MAX) {
            judged.add(asked, pod)?;
            if world.moment() > end {
                break;
            }
            if judged.count.is_multiple_of(PODS_AT_ONCE) {
                tokio::task::yield_now().await;
            }
        }
        judged.warnings(review.name, asked).into_iter().for_each(|text| review.notes.warn(text));
        Ok(())
    }

    async fn of_pod(&self, review: &Review<'_>, pod: &Value, world: &dyn World) -> Result<(), Status> {
        if self.exempts(review) {
            return Ok(());
        }
        let Some(namespace) = world.find("", "namespaces", "", review.namespace).await? else {
            let why = format!("failed to lookup namespace \"{}\"", review.namespace);
            annotate(review, "error", &why);
            return Err(Status::internal(format!("Internal error occurred: {why}")));
        };
        let (policy, errors) = self.policy(&decoded(&namespace)?);
        if errors.is_empty() && policy.asks_nothing() {
            annotate(review, "enforce-policy", "privileged:latest");
            return Ok(());
        }
        if review.old.is_some_and(|old| !changes(pod, old)) {
            return Ok(());
        }
        if self.exempts_class(pod) {
            annotate(review, EXEMPT, "runtimeClass");
            return Ok(());
        }
        tell_errors(review, &errors);
        annotate(review, "enforce-policy", &policy.enforce.to_string());
        let enforced = judge(policy.enforce, &whole(pod));
        audit_and_warn(review, &policy, &whole(pod), enforced.is_empty());
        if enforced.is_empty() {
            return Ok(());
        }
        Err(forbidden(
            review,
            &format!("violates PodSecurity \"{}\": {}", policy.enforce, details(&enforced)),
        ))
    }

    async fn of_template(
        &self,
        review: &Review<'_>,
        template: &Value,
        world: &dyn World,
    ) -> Result<(), Status> {
        if self.exempts(review) {
            return Ok(());
        }
        let Some(namespace) = world.find("", "namespaces", "", review.namespace).await? else {
            let name = review.namespace;
            let why = format!("failed to lookup namespace \"{name}\": namespaces \"{name}\" not found");
            annotate(review, "error", &why);
            return Ok(());
        };
        let (policy, errors) = self.policy(&decoded(&namespace)?);
        if self.exempts_class(template) {
            annotate(review, EXEMPT, "runtimeClass");
            return Ok(());
        }
        if !errors.is_empty()
            || policy.warn.level > Level::Privileged
            || policy.audit.level > Level::Privileged
        {
            tell_errors(review, &errors);
            audit_and_warn(review, &policy, &whole(template), true);
        }
        Ok(())
    }
}

/// The pods, those first whose controller has none before them. Pure.
fn by_novelty(pods: Vec<Arc<Object>>) -> Vec<Arc<Object>> {
    let mut seen = HashSet::new();
    let is_first = |pod: &Arc<Object>| {
        let controller = pod.meta().controller();
        controller.is_none_or(|owner| seen.insert(owner.uid.clone()))
    };
    let (mut first, more): (Vec<_>, Vec<_>) = pods.into_iter().partition(is_first);
    first.extend(more);
    first
}

/// What is known of a namespace's pods after some of them were held against a new standard.
#[derive(Debug, Default)]
struct Judged {
    count: usize,
    total: usize,
    /// The names of pods by the reasons that speak against them.
    violations: BTreeMap<String, Vec<String>>,
}

impl Judged {
    fn add(&mut self, asked: Standard, pod: &Object) -> Result<(), Status> {
        let tree = decoded(pod)?;
        let findings = judge(asked, &whole(&tree));
        if !findings.is_empty() {
            self.violations.entry(reasons(&findings)).or_default().push(pod.meta().name.clone());
        }
        self.count += 1;
        Ok(())
    }

    /// A line for each set of reasons, under their heads.
    fn warnings(self, namespace: &str, asked: Standard) -> Vec<String> {
        let Self { count, total, violations } = self;
        let mut lines: Vec<String> = violations
            .into_iter()
            .map(|(reasons, names)| {
                let first = names.iter().min().map(String::as_str).unwrap_or_default();
                match names.len() - 1 {
                    0 => format!("{first}: {reasons}"),
                    1 => format!("{first} (and 1 other pod): {reasons}"),
                    more => format!("{first} (and {more} other pods): {reasons}"),
                }
            })
            .collect();
        lines.sort_unstable();
        if !lines.is_empty() {
            let head = format!(
                "existing pods in namespace \"{namespace}\" violate the new PodSecurity enforce level \"{asked}\""
            );
            lines.insert(0, head);
        }
        if count < total {
            let head = format!(
                "new PodSecurity enforce level only checked against the first {count} of {total} existing pods"
            );
            lines.insert(0, head);
        }
        lines
    }
}

fn whole(pod: &Value) -> Pod<'_> {
    Pod { metadata: tree::at(pod, &["metadata"]), spec: tree::at(pod, &["spec"]) }
}

fn audit_and_warn(review: &Review<'_>, policy: &Policy, pod: &Pod<'_>, warn: bool) {
    let sentence = |standard: Standard, findings: &[Finding]| {
        format!("would violate PodSecurity \"{standard}\": {}", details(findings))
    };
    let audited = judge(policy.audit, pod);
    if !audited.is_empty() {
        annotate(review, "audit-violations", &sentence(policy.audit, &audited));
    }
    // Who is refused anyway is told why in the refusal.
    let warned = if warn { judge(policy.warn, pod) } else { Vec::new() };
    if !warned.is_empty() {
        review.notes.warn(sentence(policy.warn, &warned));
    }
}

fn tell_errors(review: &Review<'_>, errors: &field::FieldErrors) {
    let lines = errors.iter().map(|error| format!("{}: {}", error.field, error.message)).collect();
    if let Some(errors) = super::aggregate(lines) {
        annotate(review, "error", &format!("Failed to parse policy: {errors}"));
    }
}

fn annotate(review: &Review<'_>, key: &str, value: &str) {
    review.notes.annotate(format!("{PREFIX}{key}"), value);
}

/// Whether an update changes anything that the standards look at: of a pod that runs only images, and ephemeral
/// containers, which come anew. Pure.
fn changes(pod: &Value, old: &Value) -> bool {
    let list = |pod, name| -> &[Value] { tree::items(pod, &["spec", name]) };
    let image = |container: &Value| tree::text(container, &["image"]).to_owned();
    let fixed = ["containers", "initContainers"].iter().any(|name| {
        let (new, old) = (list(pod, name), list(old, name));
        new.len() != old.len() || new.iter().zip(old).any(|(new, old)| image(new) != image(old))
    });
    let ephemeral = "ephemeralContainers";
    fixed
        || list(pod, ephemeral).iter().any(|new| {
            let same = |known: &&Value| known["name"] == new["name"];
            list(old, ephemeral).iter().find(same).is_none_or(|old| image(new) != image(old))
        })
}
