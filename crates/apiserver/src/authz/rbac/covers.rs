//! Whether rules cover other rules: nobody gives away what he does not hold. Source:
//! `component-helpers/auth/rbac/validation/policy_comparator.go`, `pkg/registry/rbac/validation/policy_compact.go`.

use std::collections::{BTreeMap, BTreeSet};

use super::Rule;
use super::rule::{ALL, covers_path};

/// So many single rights of one request are compared at most; a role that says more is refused.
const RIGHTS_MAX: usize = 20_000;

/// What is not covered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Missing {
    /// Nothing.
    Nothing,
    /// These rights, as upstream's message lists them: sorted, one a line.
    Rights(Vec<String>),
    /// The rules are too large to be compared: they stand for so many rights.
    TooLarge(usize),
}

/// What `held` lacks of `wanted`.
pub(crate) fn missing(held: &[Rule], wanted: &[Rule]) -> Missing {
    let rights: usize = wanted.iter().map(count).fold(0, usize::saturating_add);
    if rights > RIGHTS_MAX {
        return Missing::TooLarge(rights);
    }
    let lacking: Vec<Right<'_>> = wanted
        .iter()
        .flat_map(rights_of)
        .filter(|right| !held.iter().any(|rule| right.is_covered_by(rule)))
        .collect();
    if lacking.is_empty() { Missing::Nothing } else { Missing::Rights(described(&lacking)) }
}

/// The rules among `wanted` of which `held` lacks something: whole rules, as reconciliation adds them.
pub(crate) fn missing_rules<'a>(held: &[Rule], wanted: &'a [Rule]) -> Vec<&'a Rule> {
    let covered =
        |rule: &Rule| rights_of(rule).iter().all(|right| held.iter().any(|known| right.is_covered_by(known)));
    wanted.iter().filter(|rule| !covered(rule)).collect()
}

/// One verb on one thing: what a rule is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Right<'a> {
    Resource { verb: &'a str, group: &'a str, resource: &'a str, name: Option<&'a str> },
    Path { verb: &'a str, path: &'a str },
}

fn count(rule: &Rule) -> usize {
    let of_resources = [rule.api_groups.len(), rule.resources.len(), rule.resource_names.len().max(1)];
    let of_resources = of_resources.into_iter().fold(rule.verbs.len(), usize::saturating_mul);
    of_resources.saturating_add(rule.verbs.len().saturating_mul(rule.non_resource_urls.len()))
}

fn rights_of(rule: &Rule) -> Vec<Right<'_>> {
    let mut rights = Vec::new();
    for verb in &rule.verbs {
        for group in &rule.api_groups {
            for resource in &rule.resources {
                let right = |name| Right::Resource { verb, group, resource, name };
                if rule.resource_names.is_empty() {
                    rights.push(right(None));
                }
                rights.extend(rule.resource_names.iter().map(|name| right(Some(name))));
            }
        }
        rights.extend(rule.non_resource_urls.iter().map(|path| Right::Path { verb, path }));
    }
    rights
}

fn holds(list: &[String], one: &str) -> bool {
    list.iter().any(|known| known == ALL || known == one)
}

impl Right<'_> {
    fn is_covered_by(&self, rule: &Rule) -> bool {
        match *self {
            Self::Path { verb, path } => {
                holds(&rule.verbs, verb)
                    && rule.non_resource_urls.iter().any(|known| covers_path(known, path))
            }
            Self::Resource { verb, group, resource, name } => {
                holds(&rule.verbs, verb)
                    && holds(&rule.api_groups, group)
                    && covers_resource(&rule.resources, resource)
                    && (rule.resource_names.is_empty()
                        || name.is_some_and(|name| rule.resource_names.iter().any(|known| known == name)))
            }
        }
    }
}

fn covers_resource(known: &[String], resource: &str) -> bool {
    let of_all = |part: &str| known.iter().any(|known| known.strip_prefix("*/") == Some(part));
    holds(known, resource) || resource.split_once('/').is_some_and(|(_, part)| of_all(part))
}

/// Rights on all objects of one resource are told together.
fn described(lacking: &[Right<'_>]) -> Vec<String> {
    let mut by_resource: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    let mut lines = BTreeSet::new();
    for right in lacking {
        match *right {
            Right::Resource { verb, group, resource, name: None } => {
                by_resource.entry((group, resource)).or_default().push(verb);
            }
            Right::Resource { verb, group, resource, name: Some(name) } => {
                lines.insert(format!(
                    "{{APIGroups:[\"{group}\"], Resources:[\"{resource}\"], ResourceNames:[\"{name}\"], Verbs:[\"{verb}\"]}}"
                ));
            }
            Right::Path { verb, path } => {
                lines.insert(format!("{{NonResourceURLs:[\"{path}\"], Verbs:[\"{verb}\"]}}"));
            }
        }
    }
    for ((group, resource), verbs) in by_resource {
        let verbs: Vec<String> = verbs.iter().map(|verb| format!("\"{verb}\"")).collect();
        let verbs = verbs.join(" ");
        lines.insert(format!("{{APIGroups:[\"{group}\"], Resources:[\"{resource}\"], Verbs:[{verbs}]}}"));
    }
    lines.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(texts: &str) -> Vec<String> {
        texts.split(' ').filter(|text| !text.is_empty()).map(str::to_owned).collect()
    }

    fn rule(verbs: &str, groups: &str, resources: &str, names: &str) -> Rule {
        Rule {
            verbs: list(verbs),
            api_groups: groups.split(' ').map(str::to_owned).collect(),
            resources: list(resources),
            resource_names: list(names),
            ..Rule::default()
        }
    }

    fn paths(verbs: &str, paths: &str) -> Rule {
        Rule { verbs: list(verbs), non_resource_urls: list(paths), ..Rule::default() }
    }

    #[test]
    fn what_is_held_covers_what_is_narrower() {
        let cases = [
            (rule("*", "*", "*", ""), rule("get", "apps", "deployments/scale", "a"), true),
            (rule("get list", "", "pods", ""), rule("list get", "", "pods", ""), true),
            (rule("get", "", "pods", ""), rule("get", "", "pods", "a"), true),
            (rule("get", "", "pods", "a"), rule("get", "", "pods", ""), false),
            (rule("get", "", "pods", "a b"), rule("get", "", "pods", "b"), true),
            (rule("get", "", "*/scale", ""), rule("get", "", "x/scale", ""), true),
            (rule("get", "", "*/scale", ""), rule("get", "", "x", ""), false),
            (rule("get", "", "pods", ""), rule("get", "", "pods/log", ""), false),
            (rule("get", "", "pods", ""), rule("*", "", "pods", ""), false),
            (paths("get", "/a/*"), paths("get", "/a/b /a/*"), true),
            (paths("get", "*"), paths("get", "/a"), true),
            (paths("get", "/a"), paths("get", "/a/*"), false),
            (rule("get", "", "pods", ""), Rule::default(), true),
        ];
        for (held, wanted, covered) in cases {
            let found = missing(std::slice::from_ref(&held), std::slice::from_ref(&wanted));
            assert_eq!(found == Missing::Nothing, covered, "{held:?} {wanted:?}");
            assert_eq!(missing_rules(&[held], &[wanted]).is_empty(), covered);
        }
    }

    #[test]
    fn what_is_missing_is_told_in_upstreams_form() {
        let held = [rule("get", "", "pods", "")];
        let wanted = [
            rule("get list watch", "", "pods secrets", ""),
            rule("update", "apps", "deployments", "web"),
            paths("get", "/metrics"),
        ];
        let Missing::Rights(lines) = missing(&held, &wanted) else { panic!("nothing is missing") };
        assert_eq!(
            lines,
            [
                r#"{APIGroups:[""], Resources:["pods"], Verbs:["list" "watch"]}"#,
                r#"{APIGroups:[""], Resources:["secrets"], Verbs:["get" "list" "watch"]}"#,
                r#"{APIGroups:["apps"], Resources:["deployments"], ResourceNames:["web"], Verbs:["update"]}"#,
                r#"{NonResourceURLs:["/metrics"], Verbs:["get"]}"#,
            ]
        );
    }

    #[test]
    fn a_role_that_multiplies_out_is_not_compared() {
        let many: String = (0..200).map(|number| format!("n{number} ")).collect();
        let huge = rule(&many, "a b c d", &many, "");
        assert_eq!(missing(&[], &[huge]), Missing::TooLarge(160_000));
    }
}
