//! The audit policy: which requests are written down and how much of them, by the first rule that matches.
//! Source: `audit.k8s.io/v1`, `apiserver/pkg/audit/policy`, `apiserver/pkg/apis/audit/validation`.

use api::connect::User;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::field::{FieldError, FieldErrors};
use crate::names::name_problems;
use crate::strategy::NameRule;

/// How much of a request is written down; each level holds those before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[allow(missing_docs, reason = "upstream's names")]
pub(crate) enum Level {
    #[default]
    None,
    Metadata,
    Request,
    RequestResponse,
}

/// The moments at which events are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[allow(missing_docs, reason = "upstream's names")]
pub(crate) enum Stage {
    RequestReceived,
    ResponseStarted,
    ResponseComplete,
    Panic,
}

const LEVELS: [(&str, Level); 4] = [
    ("None", Level::None),
    ("Metadata", Level::Metadata),
    ("Request", Level::Request),
    ("RequestResponse", Level::RequestResponse),
];
const STAGES: [(&str, Stage); 4] = [
    ("RequestReceived", Stage::RequestReceived),
    ("ResponseStarted", Stage::ResponseStarted),
    ("ResponseComplete", Stage::ResponseComplete),
    ("Panic", Stage::Panic),
];

/// A request as rules see it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    /// Who asks; absent where nobody knows.
    pub(crate) user: Option<&'a User>,
    /// `get`, `list`, …; the lower-case method for what is no resource.
    pub(crate) verb: &'a str,
    /// The resource, if it is one.
    pub(crate) resource: Option<Target<'a>>,
    /// The path.
    pub(crate) path: &'a str,
}

/// What a request for a resource names; empty where it names none.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "the parts of a resource's path")]
pub(crate) struct Target<'a> {
    pub(crate) group: &'a str,
    pub(crate) version: &'a str,
    pub(crate) resource: &'a str,
    pub(crate) subresource: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
}

/// What the policy says about a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) level: Level,
    /// Stages of which nothing is written.
    pub(crate) omit: Vec<Stage>,
    pub(crate) omit_managed_fields: bool,
}

/// A policy.
#[derive(Debug, Default)]
pub(crate) struct Policy {
    rules: Vec<(Rule, Verdict)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    #[serde(default, rename = "metadata")]
    _metadata: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    rules: Vec<Rule>,
    #[serde(default)]
    omit_stages: Vec<String>,
    #[serde(default)]
    omit_managed_fields: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    #[serde(default)]
    level: String,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    user_groups: Vec<String>,
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(default)]
    resources: Vec<GroupResources>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default, rename = "nonResourceURLs")]
    urls: Vec<String>,
    #[serde(default)]
    omit_stages: Vec<String>,
    omit_managed_fields: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct GroupResources {
    #[serde(default)]
    group: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    resource_names: Vec<String>,
}

impl Policy {
    /// Reads the text of a policy file.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, String> {
        let read: File =
            serde_yaml_ng::from_slice(text).map_err(|error| format!("failed decoding: {error}"))?;
        if (read.api_version.as_str(), read.kind.as_str()) != ("audit.k8s.io/v1", "Policy") {
            return Err(format!(
                "unknown group version field {} in policy; apiVersion audit.k8s.io/v1 and kind Policy are known",
                read.api_version
            ));
        }
        let errors = check(&read);
        if !errors.is_empty() {
            let said: Vec<String> =
                errors.iter().map(|error| format!("{}: {}", error.field, error.message)).collect();
            return Err(said.join(", "));
        }
        if read.rules.is_empty() {
            return Err("loaded illegal policy with 0 rules".to_owned());
        }
        let verdict = |rule: &Rule| {
            let omitted = read.omit_stages.iter().chain(&rule.omit_stages);
            Verdict {
                level: known(&LEVELS, &rule.level).unwrap_or_default(),
                omit: omitted.filter_map(|stage| known(&STAGES, stage)).collect(),
                omit_managed_fields: rule.omit_managed_fields.unwrap_or(read.omit_managed_fields),
            }
        };
        let verdicts: Vec<Verdict> = read.rules.iter().map(verdict).collect();
        Ok(Self { rules: read.rules.into_iter().zip(verdicts).collect() })
    }

    /// What is to be written of a request; nothing where no rule matches.
    pub(crate) fn judge(&self, subject: &Subject<'_>) -> Verdict {
        let rule = self.rules.iter().find(|(rule, _)| rule.matches(subject));
        rule.map(|(_, verdict)| verdict.clone()).unwrap_or_default()
    }
}

fn known<T: Copy>(table: &[(&str, T)], name: &str) -> Option<T> {
    table.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
}

/// Whether a list says nothing, or names something.
fn names(list: &[String], wanted: &str) -> bool {
    list.is_empty() || list.iter().any(|known| known == wanted)
}

impl Rule {
    fn matches(&self, subject: &Subject<'_>) -> bool {
        let user = subject.user;
        let users = self.users.is_empty() || user.is_some_and(|user| names(&self.users, &user.name));
        let in_group = |user: &User| user.groups.iter().any(|group| self.user_groups.contains(group));
        let groups = self.user_groups.is_empty() || user.is_some_and(in_group);
        if !users || !groups || !names(&self.verbs, subject.verb) {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            return subject.resource.is_some_and(|target| self.covers(&target));
        }
        self.urls.is_empty()
            || (subject.resource.is_none() && self.urls.iter().any(|url| is_path(url, subject.path)))
    }

    fn covers(&self, target: &Target<'_>) -> bool {
        let covers = |one: &GroupResources| {
            (one.group == target.group || one.group == "*")
                && (one.resources.is_empty()
                    || (names(&one.resource_names, target.name)
                        && one.resources.iter().any(|pattern| is_resource(pattern, target))))
        };
        names(&self.namespaces, target.namespace)
            && (self.resources.is_empty() || self.resources.iter().any(covers))
    }
}

/// `*`, `pods`, `pods/status`, `*/scale`, `pods/*`.
fn is_resource(pattern: &str, target: &Target<'_>) -> bool {
    match pattern.split_once('/') {
        None if pattern == "*" => true,
        None => target.subresource.is_empty() && pattern == target.resource,
        Some((resource, "*")) => resource == target.resource,
        Some(("*", subresource)) => subresource == target.subresource,
        Some((resource, subresource)) => resource == target.resource && subresource == target.subresource,
    }
}

fn is_path(pattern: &str, path: &str) -> bool {
    pattern == path || pattern.strip_suffix('*').is_some_and(|start| path.starts_with(start))
}

fn check(read: &File) -> FieldErrors {
    let mut errors = FieldErrors::new();
    check_stages(&read.omit_stages, "omitStages", &mut errors);
    for (at, rule) in read.rules.iter().enumerate() {
        let field = |name: &str| format!("rules[{at}].{name}");
        let levels = LEVELS.map(|(name, _)| name);
        if rule.level.is_empty() {
            errors.push(FieldError::required(field("level"), ""));
        } else if !levels.contains(&rule.level.as_str()) {
            errors.push(FieldError::not_supported(field("level"), &json!(rule.level), &levels));
        }
        for (at, url) in rule.urls.iter().enumerate().filter(|(_, url)| *url != "*") {
            let field = || format!("{}[{at}]", field("nonResourceURLs"));
            if !url.starts_with('/') {
                let detail = "non-resource URL rules must begin with a '/' character";
                errors.push(FieldError::invalid(field(), &json!(url), detail));
            }
            if url.trim_end_matches('*').len() + 1 < url.len() || url.trim_end_matches('*').contains('*') {
                let detail = "non-resource URL wildcards '*' must be the final character of the rule";
                errors.push(FieldError::invalid(field(), &json!(url), detail));
            }
        }
        for one in &rule.resources {
            let group = one.group.as_str();
            let problems = name_problems(NameRule::Subdomain, group);
            if !group.is_empty() && group != "*" && !problems.is_empty() {
                let field = field("resources.group");
                errors.push(FieldError::invalid(field, &json!(group), &problems.join(",")));
            }
            if !one.resource_names.is_empty() && one.resources.is_empty() {
                let detail = "using resourceNames requires at least one resource";
                let names = json!(one.resource_names);
                errors.push(FieldError::invalid(field("resources.resourceNames"), &names, detail));
            }
        }
        check_stages(&rule.omit_stages, &field("omitStages"), &mut errors);
        let of_resources = !rule.resources.is_empty() || !rule.namespaces.is_empty();
        if !rule.urls.is_empty() && of_resources {
            let detail = "rules cannot apply to both regular resources and non-resource URLs";
            errors.push(FieldError::invalid(field("nonResourceURLs"), &json!(rule.urls), detail));
        }
    }
    errors
}

fn check_stages(stages: &[String], field: &str, errors: &mut FieldErrors) {
    for (at, stage) in stages.iter().enumerate().filter(|(_, stage)| known(&STAGES, stage).is_none()) {
        let detail = format!("allowed stages are {}", STAGES.map(|(name, _)| name).join(","));
        errors.push(FieldError::invalid(format!("{field}[{at}]"), &json!(stage), &detail));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of upstream's documentation, more or less.
    const EXAMPLE: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - {level: None, users: ["system:kube-proxy"], verbs: [watch], resources: [{group: "", resources: [endpoints, services]}]}
  - {level: None, userGroups: ["system:authenticated"], nonResourceURLs: ["/api*", /version]}
  - {level: Metadata, resources: [{group: "", resources: [secrets, "pods/log", "*/token"]}], omitStages: [ResponseStarted]}
  - {level: Request, namespaces: [kube-system], resources: [{group: "", resources: [configmaps], resourceNames: [a]}]}
  - {level: RequestResponse, resources: [{group: apps, resources: ["deployments/*"]}], omitManagedFields: true}
  - {level: Metadata, resources: [{group: "*"}]}
"#;

    #[test]
    fn the_first_rule_that_matches_decides() {
        let policy = Policy::parse(EXAMPLE.as_bytes()).unwrap();
        let user = |name: &str, groups: &[&str]| User {
            name: name.into(),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            ..User::default()
        };
        let (proxy, jane) = (user("system:kube-proxy", &[]), user("jane", &["system:authenticated"]));
        let level = |who: &User, verb: &str, group: &str, resource: &str, namespace: &str, name: &str| {
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            let target = Target { group, version: "v1", resource, subresource, namespace, name };
            policy.judge(&Subject { user: Some(who), verb, resource: Some(target), path: "" }).level
        };
        assert_eq!(level(&proxy, "watch", "", "services", "a", ""), Level::None);
        assert_eq!(level(&proxy, "list", "", "services", "a", ""), Level::Metadata);
        assert_eq!(level(&jane, "get", "", "secrets", "kube-system", "a"), Level::Metadata);
        assert_eq!(level(&jane, "get", "", "configmaps", "kube-system", "a"), Level::Request);
        assert_eq!(level(&jane, "get", "", "configmaps", "kube-system", "b"), Level::Metadata);
        assert_eq!(level(&jane, "update", "apps", "deployments/scale", "a", "b"), Level::RequestResponse);
        assert_eq!(level(&jane, "update", "apps", "deployments", "a", "b"), Level::RequestResponse);
        let path = |user, path| policy.judge(&Subject { user, verb: "get", resource: None, path }).level;
        assert_eq!((path(Some(&jane), "/apis/x"), path(None, "/apis/x")), (Level::None, Level::None));
        let target = Target {
            group: "",
            version: "v1",
            resource: "serviceaccounts",
            subresource: "token",
            namespace: "",
            name: "",
        };
        let token = policy.judge(&Subject { user: None, verb: "create", resource: Some(target), path: "" });
        let omit = vec![Stage::RequestReceived, Stage::ResponseStarted];
        assert_eq!(token, Verdict { level: Level::Metadata, omit, omit_managed_fields: false });
    }

    #[test]
    fn a_policy_that_cannot_be_used_says_why() {
        for (rest, expected) in [
            ("rules: []", "0 rules"),
            ("rules: [{}]", "rules[0].level: Required value"),
            ("rules: [{level: All}]", "rules[0].level: Unsupported value: \"All\""),
            ("rules: [{level: None, nonResourceURLs: [a]}]", "must begin with a '/'"),
            ("rules: [{level: None, nonResourceURLs: ['/a*b']}]", "must be the final character"),
            ("rules: [{level: None, nonResourceURLs: [/], namespaces: [a]}]", "cannot apply to both"),
            ("rules: [{level: None, resources: [{resourceNames: [a]}]}]", "requires at least one resource"),
            ("rules: [{level: None, resources: [{group: a/v1}]}]", "rules[0].resources.group: Invalid value"),
            ("omitStages: [Later]\nrules: [{level: None}]", "omitStages[0]: Invalid value: \"Later\""),
            ("rules: [{level: None, who: me}]", "unknown field"),
        ] {
            let said =
                Policy::parse(format!("apiVersion: audit.k8s.io/v1\nkind: Policy\n{rest}\n").as_bytes());
            let said = said.unwrap_err();
            assert!(said.contains(expected), "{rest}: {said}");
        }
        assert!(Policy::parse(b"apiVersion: audit.k8s.io/v1beta1\nkind: Policy").is_err());
    }
}
