//! Roles and bindings, told of by a cache of few words.

use std::sync::Arc;

use api::{Object, Status};
use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::*;
use crate::authn;
use crate::cache::Change;

/// Roles and bindings as the caches tell of them: one list of changes per resource, all after revision 1.
#[derive(Default)]
struct Told {
    changes: Mutex<Vec<(String, Arc<Change>)>>,
}

#[async_trait]
impl World for Told {
    async fn find(&self, _: &str, _: &str, _: &str, _: &str) -> Result<Option<Arc<Object>>, Status> {
        Ok(None)
    }

    fn all(&self, _: &str, _: &str, _: &str) -> Vec<Arc<Object>> {
        Vec::new()
    }

    fn changes(&self, _: &str, resource: &str, revision: i64) -> Changes {
        let changes = self.changes.lock();
        let news = changes.iter().filter(|(of, change)| of == resource && change.revision > revision);
        let news: Vec<_> = news.map(|(_, change)| change.clone()).collect();
        match (revision, news.is_empty()) {
            (0, true) => Changes::All(Vec::new(), 1),
            (_, true) => Changes::None,
            _ => Changes::Some(news),
        }
    }
}

impl Told {
    fn tell(&self, resource: &str, object: &Value, deleted: bool) {
        let mut changes = self.changes.lock();
        let revision = 2 + i64::try_from(changes.len()).unwrap();
        let new = Arc::new(Object::parse(serde_json::to_vec(object).unwrap().into()).unwrap());
        changes.push((resource.to_owned(), Arc::new(Change { revision, old: None, new, deleted })));
    }

    fn put(&self, resource: &str, object: Value) {
        self.tell(resource, &object, false);
    }

    fn delete(&self, resource: &str, namespace: &str, name: &str) {
        self.tell(resource, &json!({ "metadata": { "namespace": namespace, "name": name } }), true);
    }

    fn role(&self, namespace: &str, name: &str, verbs: &[&str], resource: &str) {
        let of = if namespace.is_empty() { "clusterroles" } else { "roles" };
        let rules = json!([{ "apiGroups": [""], "resources": [resource], "verbs": verbs }]);
        self.put(of, json!({ "metadata": { "namespace": namespace, "name": name }, "rules": rules }));
    }

    fn bind(&self, namespace: &str, name: &str, role: (&str, &str), subject: Value) {
        let of = if namespace.is_empty() { "clusterrolebindings" } else { "rolebindings" };
        self.put(
            of,
            json!({
                "metadata": { "namespace": namespace, "name": name },
                "roleRef": { "kind": role.0, "name": role.1 }, "subjects": [subject],
            }),
        );
    }
}

fn user(name: &str, groups: &[&str]) -> User {
    let groups = groups.iter().map(|group| (*group).to_owned()).collect();
    User { name: name.into(), groups, ..User::default() }
}

fn asks(user: &User, verb: &str, namespace: &str, resource: &str) -> Attributes {
    Attributes {
        user: user.clone(),
        verb: verb.into(),
        namespace: namespace.into(),
        resource: resource.into(),
        is_resource: true,
        ..Attributes::default()
    }
}

fn allowed(reason: &str) -> Decision {
    Decision::Allow { reason: format!("RBAC: allowed by {reason}") }
}

fn silent() -> Decision {
    Decision::NoOpinion { reason: String::new() }
}

#[test]
fn a_binding_holds_for_its_subjects_where_it_is() {
    let (world, rbac) = (Told::default(), Rbac::default());
    world.role("", "reader", &["get"], "pods");
    world.role("a", "writer", &["update"], "pods");
    world.bind("", "all", ("ClusterRole", "reader"), json!({ "kind": "Group", "name": "staff" }));
    world.bind("a", "here", ("ClusterRole", "reader"), json!({ "kind": "User", "name": "jane" }));
    world.bind("a", "own", ("Role", "writer"), json!({ "kind": "ServiceAccount", "name": "bot" }));
    world.bind(
        "b",
        "far",
        ("ClusterRole", "reader"),
        json!({ "kind": "ServiceAccount", "name": "bot", "namespace": "a" }),
    );
    let (jane, bob) = (user("jane", &[]), user("bob", &["staff"]));
    let bot = authn::service_account("a", "bot", "");
    let of = |who: &str| format!("of ClusterRole \"reader\" to {who}");
    let cases = [
        (&bob, "get", "b", allowed(&format!("ClusterRoleBinding \"all\" {}", of("Group \"staff\"")))),
        (&bob, "get", "", allowed(&format!("ClusterRoleBinding \"all\" {}", of("Group \"staff\"")))),
        (&bob, "update", "b", silent()),
        (&jane, "get", "a", allowed(&format!("RoleBinding \"here/a\" {}", of("User \"jane\"")))),
        (&jane, "get", "b", silent()),
        (&jane, "get", "", silent()),
        (
            &bot,
            "update",
            "a",
            allowed("RoleBinding \"own/a\" of Role \"writer\" to ServiceAccount \"bot/a\""),
        ),
        (&bot, "update", "b", silent()),
        (&bot, "get", "b", allowed(&format!("RoleBinding \"far/b\" {}", of("ServiceAccount \"bot/a\"")))),
    ];
    for (user, verb, namespace, decision) in cases {
        assert_eq!(rbac.authorize(&asks(user, verb, namespace, "pods"), &world), decision, "{}", user.name);
    }
    assert_eq!(rbac.rules(&bot, "a", &world).rules.len(), 1);
}

#[test]
fn what_changes_counts_for_the_next_question() {
    let (world, rbac) = (Told::default(), Rbac::default());
    let jane = user("jane", &[]);
    let question = asks(&jane, "get", "a", "pods");
    let may = || matches!(rbac.authorize(&question, &world), Decision::Allow { .. });
    assert!(!may());
    let subject = |name: &str| json!({ "kind": "User", "name": name });
    world.bind("a", "b", ("Role", "reader"), subject("jane"));
    let reason = "RBAC: role.rbac.authorization.k8s.io \"reader\" not found".to_owned();
    assert_eq!(rbac.authorize(&question, &world), Decision::NoOpinion { reason });
    let rules = rbac.rules(&jane, "a", &world);
    assert!(rules.incomplete && rules.error.contains("\"reader\" not found"));
    world.role("a", "reader", &["get"], "pods");
    assert!(may());
    world.bind("a", "b", ("Role", "reader"), subject("bob"));
    assert!(!may());
    world.bind("a", "b", ("Role", "reader"), subject("jane"));
    assert!(may());
    world.role("a", "reader", &["list"], "pods");
    assert!(!may());
    world.role("a", "reader", &["get"], "pods");
    world.delete("rolebindings", "a", "b");
    assert!(!may());
}

#[test]
fn a_cache_that_was_filled_anew_replaces_what_was_known() {
    let rbac = Rbac::default();
    let object = |value: Value| Arc::new(Object::parse(value.to_string().into()).unwrap());
    let mut index = rbac.index.write();
    let binding = |name: &str, namespace: &str| {
        object(json!({
            "metadata": { "name": name, "namespace": namespace },
            "roleRef": { "kind": "ClusterRole", "name": "r" }, "subjects": [{ "kind": "User", "name": "jane" }],
        }))
    };
    index.take(2, Changes::All(vec![binding("x", "")], 5));
    index.take(3, Changes::All(vec![binding("y", "a")], 6));
    assert_eq!((index.seen, index.held(&user("jane", &[]), "a").count()), ([0, 0, 5, 6], 2));
    index.take(2, Changes::All(Vec::new(), 9));
    assert_eq!((index.seen, index.held(&user("jane", &[]), "a").count()), ([0, 0, 9, 6], 1));
}
