//! One rule of a role, and what it allows. Source: rbac/v1 `PolicyRule`, `pkg/apis/rbac/v1/evaluation_helpers.go`.

use serde::{Deserialize, Serialize};

use crate::authz::Attributes;

/// Stands for everything in every list of a rule.
pub(crate) const ALL: &str = "*";

/// A rule: what may be done (`verbs`) to which resources, or under which paths. Serializes as rbac/v1 does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "upstream's names: rbac/v1 PolicyRule")]
pub struct Rule {
    pub verbs: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    /// `pods`, `pods/log`, `*/scale`, `*`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    /// Empty: all names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    /// Paths; a last `*` stands for any rest.
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub non_resource_urls: Vec<String>,
}

impl Rule {
    /// Whether the rule allows what is asked.
    pub fn allows(&self, asked: &Attributes) -> bool {
        if !any(&self.verbs, &asked.verb) {
            return false;
        }
        if !asked.is_resource {
            return self.non_resource_urls.iter().any(|path| covers_path(path, &asked.path));
        }
        any(&self.api_groups, &asked.group)
            && self.resources.iter().any(|known| names_resource(known, &asked.resource, &asked.subresource))
            && (self.resource_names.is_empty() || self.resource_names.contains(&asked.name))
    }
}

/// Whether a list holds `asked`, or everything.
pub(super) fn any(allowed: &[String], asked: &str) -> bool {
    allowed.iter().any(|known| known == ALL || known == asked)
}

/// Whether a rule's resource is `resource`, or its `subresource` where that is asked for.
fn names_resource(known: &str, resource: &str, subresource: &str) -> bool {
    if known == ALL {
        return true;
    }
    let (of, part) = known.split_once('/').unwrap_or((known, ""));
    part == subresource && (of == resource || (of == ALL && !part.is_empty()))
}

/// Whether a rule's path is `path` or begins it.
pub(super) fn covers_path(known: &str, path: &str) -> bool {
    known == path || known.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(texts: &str) -> Vec<String> {
        texts.split(' ').filter(|text| !text.is_empty()).map(str::to_owned).collect()
    }

    #[test]
    fn a_rule_allows_what_all_its_lists_allow() {
        let rule = |verbs: &str, groups: &str, resources: &str, names: &str| Rule {
            verbs: list(verbs),
            api_groups: groups.split(' ').map(str::to_owned).collect(),
            resources: list(resources),
            resource_names: list(names),
            ..Rule::default()
        };
        // verb, group, resource with subresource, name
        let cases = [
            (rule("get list", "", "pods", ""), ("get", "", "pods", "a"), true),
            (rule("get list", "", "pods", ""), ("watch", "", "pods", "a"), false),
            (rule("*", "", "pods", ""), ("eat", "", "pods", ""), true),
            (rule("get", "apps", "pods", ""), ("get", "", "pods", ""), false),
            (rule("get", "*", "pods", ""), ("get", "x", "pods", ""), true),
            (rule("get", "", "pods", ""), ("get", "", "pods/log", "a"), false),
            (rule("get", "", "pods/log", ""), ("get", "", "pods/log", "a"), true),
            (rule("get", "", "pods/log", ""), ("get", "", "pods", "a"), false),
            (rule("get", "", "*", ""), ("get", "", "pods/log", "a"), true),
            (rule("get", "*", "*/scale", ""), ("get", "apps", "deployments/scale", "a"), true),
            (rule("get", "*", "*/scale", ""), ("get", "apps", "deployments/status", "a"), false),
            (rule("get", "*", "*/scale", ""), ("get", "apps", "deployments", "a"), false),
            (rule("get", "*", "*/", ""), ("get", "apps", "deployments", "a"), false),
            (rule("get", "", "pods", "a b"), ("get", "", "pods", "b"), true),
            (rule("get", "", "pods", "a b"), ("get", "", "pods", "c"), false),
            (rule("list", "", "pods", "a b"), ("list", "", "pods", ""), false),
        ];
        for (rule, (verb, group, resource, name), allowed) in cases {
            let (of, part) = resource.split_once('/').unwrap_or((resource, ""));
            let asked = Attributes {
                verb: verb.into(),
                group: group.into(),
                resource: of.into(),
                subresource: part.into(),
                name: name.into(),
                is_resource: true,
                ..Attributes::default()
            };
            assert_eq!(rule.allows(&asked), allowed, "{rule:?} {resource} {name}");
        }
    }

    #[test]
    fn paths_are_whole_or_begun() {
        let cases = [
            ("/api", "/api", true),
            ("/api", "/api/", false),
            ("/api/*", "/api/v1", true),
            ("/api/*", "/api", false),
            ("*", "/anything", true),
            ("/metrics", "/metrics/slis", false),
        ];
        for (known, path, allowed) in cases {
            let rule = Rule { verbs: list("get"), non_resource_urls: list(known), ..Rule::default() };
            let asked = Attributes { verb: "get".into(), path: path.into(), ..Attributes::default() };
            assert_eq!(rule.allows(&asked), allowed, "{known} {path}");
            let resource = Attributes { is_resource: true, resource: "pods".into(), ..asked };
            assert!(!rule.allows(&resource), "{known}");
        }
    }
}
