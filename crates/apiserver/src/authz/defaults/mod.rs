//! The roles and bindings that every cluster has: a table (`roles.txt`), read into objects.
//! Source: `plugin/pkg/auth/authorizer/rbac/bootstrappolicy`.

mod reconcile;

use serde_json::{Map, Value, json};

use super::rbac::{GROUP, Rule};

pub(crate) use reconcile::reconcile;

const TABLE: &str = include_str!("roles.txt");
/// The role whose rules the node authorizer goes by.
const NODE: &str = "system:node";
const CONTROLLER: &str = "system:controller:";
const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["create", "update", "patch", "delete", "deletecollection"];

/// One object of the table.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Item {
    /// `clusterroles`, `roles`, `clusterrolebindings` or `rolebindings`.
    pub(crate) resource: &'static str,
    /// Empty for those of the cluster.
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// The object, as a client would create it.
    pub(crate) object: Value,
}

/// The table, read.
#[derive(Debug, Default)]
pub(crate) struct Defaults {
    pub(crate) items: Vec<Item>,
    /// The rules of nodes.
    pub(crate) node: Vec<Rule>,
    /// Lines that say nothing that is understood: none, a test says.
    unread: Vec<&'static str>,
}

/// Reads the table.
pub(crate) fn parsed() -> Defaults {
    let mut found = Defaults::default();
    for line in TABLE.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        let understood = match line.strip_prefix("  ") {
            Some(rule) => found.add_rule(rule),
            None => found.begin(line),
        };
        if understood.is_none() {
            found.unread.push(line);
        }
    }
    found
}

impl Defaults {
    fn begin(&mut self, line: &str) -> Option<()> {
        let mut words = line.split_whitespace();
        match words.next()? {
            "clusterrole" => {
                let name = words.next()?;
                let (mut labels, mut fields) = (labels(), Map::new());
                for word in words {
                    let (key, value) = word.split_once('=')?;
                    let label = format!("rbac.authorization.k8s.io/aggregate-to-{value}");
                    match key {
                        "into" => {
                            labels.insert(label, "true".into());
                        }
                        "from" => {
                            let selectors = json!([{ "matchLabels": { label: "true" } }]);
                            fields.insert(
                                "aggregationRule".into(),
                                json!({ "clusterRoleSelectors": selectors }),
                            );
                        }
                        _ => return None,
                    }
                }
                self.push("clusterroles", "", name, labels, fields);
            }
            "controller" => {
                let account = words.next()?;
                let name = format!("{CONTROLLER}{account}");
                let subject = subject(&format!("account:kube-system:{account}"))?;
                self.push(
                    "clusterrolebindings",
                    "",
                    &name,
                    labels(),
                    binding("ClusterRole", &name, &[subject]),
                );
                self.push("clusterroles", "", &name, labels(), Map::new());
            }
            "role" => self.push("roles", words.next()?, words.next()?, labels(), Map::new()),
            "clusterrolebinding" => {
                let name = words.next()?;
                let (role, subjects) = bound(name, words)?;
                self.push(
                    "clusterrolebindings",
                    "",
                    name,
                    labels(),
                    binding("ClusterRole", &role, &subjects),
                );
            }
            "rolebinding" => {
                let (namespace, name) = (words.next()?, words.next()?);
                let (role, subjects) = bound(name, words)?;
                self.push("rolebindings", namespace, name, labels(), binding("Role", &role, &subjects));
            }
            _ => return None,
        }
        Some(())
    }

    fn push(
        &mut self,
        resource: &'static str,
        namespace: &str,
        name: &str,
        labels: Map<String, Value>,
        fields: Map<String, Value>,
    ) {
        let annotations = json!({ AUTO_UPDATE: "true" });
        let mut object =
            json!({ "metadata": { "name": name, "labels": labels, "annotations": annotations } });
        if let Some(object) = object.as_object_mut() {
            object.extend(fields);
        }
        self.items.push(Item { resource, namespace: namespace.into(), name: name.into(), object });
    }

    fn add_rule(&mut self, line: &str) -> Option<()> {
        let rule = rule(line)?;
        let role = self.items.last_mut().filter(|item| item.resource.ends_with("roles"))?;
        if role.name == NODE {
            self.node.push(rule.clone());
        }
        let rules = role.object.as_object_mut()?.entry("rules").or_insert_with(|| json!([]));
        rules.as_array_mut()?.push(serde_json::to_value(rule).ok()?);
        Some(())
    }
}

/// Whether the server may bring the object up to date.
pub(super) const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

fn labels() -> Map<String, Value> {
    Map::from_iter([("kubernetes.io/bootstrapping".to_owned(), "rbac-defaults".into())])
}

fn binding(kind: &str, role: &str, subjects: &[Value]) -> Map<String, Value> {
    let mut fields = Map::new();
    fields.insert("roleRef".into(), json!({ "apiGroup": GROUP, "kind": kind, "name": role }));
    if !subjects.is_empty() {
        fields.insert("subjects".into(), subjects.into());
    }
    fields
}

/// The role and the subjects of a binding.
fn bound<'a>(name: &str, words: impl Iterator<Item = &'a str>) -> Option<(String, Vec<Value>)> {
    let (mut role, mut subjects) = (name.to_owned(), Vec::new());
    for word in words {
        match word.strip_prefix("role=") {
            Some(other) => role = other.to_owned(),
            None => subjects.push(subject(word)?),
        }
    }
    Some((role, subjects))
}

fn subject(word: &str) -> Option<Value> {
    let (kind, name) = word.split_once(':')?;
    Some(match kind {
        "group" => json!({ "apiGroup": GROUP, "kind": "Group", "name": name }),
        "user" => json!({ "apiGroup": GROUP, "kind": "User", "name": name }),
        "account" => {
            let (namespace, name) = name.split_once(':')?;
            json!({ "kind": "ServiceAccount", "name": name, "namespace": namespace })
        }
        _ => return None,
    })
}

/// `VERBS GROUPS RESOURCES [names=NAMES]` or `VERBS path PATHS`; lists come out sorted, as upstream keeps them.
fn rule(line: &str) -> Option<Rule> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let sorted = |mut list: Vec<String>| {
        list.sort_unstable();
        list
    };
    let list = |text: &str| sorted(text.split(',').map(str::to_owned).collect());
    let groups = |text: &str| {
        sorted(text.split(',').map(|group| if group == "core" { "" } else { group }.to_owned()).collect())
    };
    Some(match words.as_slice() {
        [verbs_, "path", paths] => {
            Rule { verbs: verbs(verbs_), non_resource_urls: list(paths), ..Rule::default() }
        }
        [verbs_, of, resources, names @ ..] => Rule {
            verbs: verbs(verbs_),
            api_groups: groups(of),
            resources: list(resources),
            resource_names: match names {
                [] => Vec::new(),
                [names] => list(names.strip_prefix("names=")?),
                _ => return None,
            },
            ..Rule::default()
        },
        _ => return None,
    })
}

fn verbs(text: &str) -> Vec<String> {
    let mut verbs: Vec<String> = text
        .split(',')
        .flat_map(|verb| match verb {
            "read" => READ.to_vec(),
            "write" => WRITE.to_vec(),
            one => vec![one],
        })
        .map(str::to_owned)
        .collect();
    verbs.sort_unstable();
    verbs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(resource: &str, name: &str) -> Value {
        let found = parsed();
        let item = found.items.iter().find(|item| item.resource == resource && item.name == name);
        item.unwrap_or_else(|| panic!("{resource} {name}")).object.clone()
    }

    #[test]
    fn every_line_of_the_table_says_something_and_nothing_twice() {
        let found = parsed();
        assert_eq!(found.unread, [""; 0]);
        let mut places: Vec<_> =
            found.items.iter().map(|item| (item.resource, &item.namespace, &item.name)).collect();
        let all = places.len();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), all);
        assert!(!found.node.is_empty());
        // Whatever is bound is there.
        for item in found.items.iter().filter(|item| item.resource.ends_with("bindings")) {
            let role = &item.object["roleRef"];
            let resource = if role["kind"] == "Role" { "roles" } else { "clusterroles" };
            let is_it = |other: &&Item| {
                other.resource == resource
                    && role["name"] == other.name.as_str()
                    && (resource == "clusterroles" || other.namespace == item.namespace)
            };
            assert!(found.items.iter().any(|other| is_it(&other)), "{}", item.name);
        }
    }

    #[test]
    fn lines_become_objects_as_upstream_has_them() {
        let view = object("clusterroles", "view");
        let labels = json!({
            "kubernetes.io/bootstrapping": "rbac-defaults", "rbac.authorization.k8s.io/aggregate-to-edit": "true",
        });
        assert_eq!(view["metadata"]["labels"], labels);
        assert_eq!(view["metadata"]["annotations"], json!({ AUTO_UPDATE: "true" }));
        let selectors = json!([{ "matchLabels": { "rbac.authorization.k8s.io/aggregate-to-view": "true" } }]);
        assert_eq!(view["aggregationRule"]["clusterRoleSelectors"], selectors);
        assert_eq!(view["rules"], Value::Null);
        let admin = object("clusterroles", "cluster-admin");
        let rules = json!([
            { "apiGroups": ["*"], "resources": ["*"], "verbs": ["*"] }, { "nonResourceURLs": ["*"], "verbs": ["*"] },
        ]);
        assert_eq!(admin["rules"], rules);
        let signer = object("clusterroles", "system:certificates.k8s.io:kubelet-serving-approver");
        assert_eq!(signer["rules"][0]["resourceNames"], json!(["kubernetes.io/kubelet-serving"]));
        let events = object("clusterroles", "system:controller:job-controller");
        let last = json!({
            "apiGroups": ["", "events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch", "update"],
        });
        assert_eq!(events["rules"].as_array().unwrap().last().unwrap(), &last);
        let bound = object("clusterrolebindings", "system:controller:job-controller");
        let account =
            json!([{ "kind": "ServiceAccount", "name": "job-controller", "namespace": "kube-system" }]);
        assert_eq!(bound["subjects"], account);
        let role = json!({
            "apiGroup": GROUP, "kind": "Role", "name": "extension-apiserver-authentication-reader",
        });
        assert_eq!(
            object("rolebindings", "system::extension-apiserver-authentication-reader")["roleRef"],
            role
        );
        assert_eq!(object("clusterrolebindings", "system:node")["subjects"], Value::Null);
    }
}
