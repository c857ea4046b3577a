//! Roles and bindings as decisions need them: bindings by their subjects, so that a decision looks at those of its user
//! only, however many there are. Source: `pkg/registry/rbac/validation/rule.go`, which scans them all.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use api::Object;
use api::connect::User;
use serde::Deserialize;

use super::Rule;
use crate::authn::names;
use crate::cache::{Change, Changes};

/// The four resources, in the order of [`Index::seen`].
pub(super) const SOURCES: [Source; 4] =
    [Source::ClusterRoles, Source::Roles, Source::ClusterRoleBindings, Source::RoleBindings];

/// A resource that the index is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    ClusterRoles,
    Roles,
    ClusterRoleBindings,
    RoleBindings,
}

impl Source {
    pub(super) fn resource(self) -> &'static str {
        match self {
            Self::ClusterRoles => "clusterroles",
            Self::Roles => "roles",
            Self::ClusterRoleBindings => "clusterrolebindings",
            Self::RoleBindings => "rolebindings",
        }
    }

    fn holds_roles(self) -> bool {
        matches!(self, Self::ClusterRoles | Self::Roles)
    }

    fn is_namespaced(self) -> bool {
        matches!(self, Self::Roles | Self::RoleBindings)
    }
}

/// A subject of a binding. Source: rbac/v1 `Subject`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Subject {
    kind: String,
    name: String,
    namespace: String,
}

impl Subject {
    /// The subject as decisions compare it; `None` if it means nobody. A service account is its user.
    fn holder(&self, namespace: &str) -> Option<Holder> {
        match self.kind.as_str() {
            "User" => Some(Holder::User(self.name.clone())),
            "Group" => Some(Holder::Group(self.name.clone())),
            "ServiceAccount" => {
                let namespace = if self.namespace.is_empty() { namespace } else { &self.namespace };
                let user = format!("{}{namespace}:{}", names::SERVICE_ACCOUNT_PREFIX, self.name);
                (!namespace.is_empty()).then_some(Holder::User(user))
            }
            _ => None,
        }
    }

    /// `Group "system:masters"`, as reasons name it.
    fn describe(&self, namespace: &str) -> String {
        if self.kind != "ServiceAccount" {
            return format!("{} \"{}\"", self.kind, self.name);
        }
        let namespace = if self.namespace.is_empty() { namespace } else { &self.namespace };
        format!("{} \"{}/{namespace}\"", self.kind, self.name)
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Holder {
    User(String),
    Group(String),
}

impl Holder {
    fn is(&self, user: &User) -> bool {
        match self {
            Self::User(name) => user.name == *name,
            Self::Group(name) => user.groups.contains(name),
        }
    }
}

/// Which role a binding binds. Source: rbac/v1 `RoleRef`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct RoleRef {
    kind: String,
    name: String,
}

/// A binding's fields that count.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Binding {
    role_ref: RoleRef,
    subjects: Vec<Subject>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Role {
    rules: Vec<Rule>,
}

/// A binding that holds for a user, under its place and name.
pub(super) struct Held<'a> {
    namespace: &'a str,
    name: &'a str,
    binding: &'a Binding,
}

impl Held<'_> {
    /// `ClusterRoleBinding "a" of ClusterRole "b" to Group "c"`, as upstream's reasons say it.
    pub(super) fn describe(&self, user: &User) -> String {
        let applies =
            |subject: &&Subject| subject.holder(self.namespace).is_some_and(|holder| holder.is(user));
        let subject = self.binding.subjects.iter().find(applies);
        let subject = subject.map(|subject| subject.describe(self.namespace)).unwrap_or_default();
        let RoleRef { kind, name } = &self.binding.role_ref;
        let binding = if self.namespace.is_empty() {
            format!("ClusterRoleBinding \"{}\"", self.name)
        } else {
            format!("RoleBinding \"{}/{}\"", self.name, self.namespace)
        };
        format!("{binding} of {kind} \"{name}\" to {subject}")
    }
}

/// The bindings of one namespace, or of the cluster.
#[derive(Debug, Default)]
struct Scope {
    bindings: HashMap<String, Binding>,
    by_user: HashMap<String, BTreeSet<String>>,
    by_group: HashMap<String, BTreeSet<String>>,
}

impl Scope {
    fn subjects_of(&mut self, holder: Holder) -> &mut BTreeSet<String> {
        match holder {
            Holder::User(name) => self.by_user.entry(name).or_default(),
            Holder::Group(name) => self.by_group.entry(name).or_default(),
        }
    }

    fn insert(&mut self, namespace: &str, name: &str, binding: Binding) {
        self.remove(namespace, name);
        for holder in binding.subjects.iter().filter_map(|subject| subject.holder(namespace)) {
            self.subjects_of(holder).insert(name.to_owned());
        }
        self.bindings.insert(name.to_owned(), binding);
    }

    fn remove(&mut self, namespace: &str, name: &str) {
        let Some(binding) = self.bindings.remove(name) else { return };
        for holder in binding.subjects.iter().filter_map(|subject| subject.holder(namespace)) {
            let (index, who) = match holder {
                Holder::User(who) => (&mut self.by_user, who),
                Holder::Group(who) => (&mut self.by_group, who),
            };
            if let Some(names) = index.get_mut(&who) {
                names.remove(name);
                if names.is_empty() {
                    index.remove(&who);
                }
            }
        }
    }

    /// The names of the bindings that hold for a user, each once.
    fn of(&self, user: &User) -> BTreeSet<&str> {
        let groups = user.groups.iter().filter_map(|group| self.by_group.get(group));
        self.by_user.get(&user.name).into_iter().chain(groups).flatten().map(String::as_str).collect()
    }
}

/// Roles and bindings. Namespace `""` is the cluster's own.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// The revision up to which each source is in the index.
    pub(super) seen: [i64; 4],
    roles: HashMap<String, HashMap<String, Vec<Rule>>>,
    scopes: HashMap<String, Scope>,
}

impl Index {
    /// Takes in what happened to a source.
    pub(super) fn take(&mut self, slot: usize, changes: Changes) {
        let Some(source) = SOURCES.get(slot).copied() else { return };
        match changes {
            Changes::None => {}
            Changes::Some(changes) => {
                for change in &changes {
                    self.change(source, change);
                }
                self.seen[slot] = changes.last().map_or(self.seen[slot], |change| change.revision);
            }
            Changes::All(objects, revision) => {
                self.clear(source);
                objects.iter().for_each(|object| self.put(source, object));
                self.seen[slot] = revision;
            }
        }
    }

    fn change(&mut self, source: Source, change: &Arc<Change>) {
        if change.deleted {
            let meta = change.new.meta();
            self.remove(source, &meta.namespace, &meta.name);
        } else {
            self.put(source, &change.new);
        }
    }

    /// An object that cannot be read grants nothing.
    fn put(&mut self, source: Source, object: &Object) {
        let (namespace, name) = (&object.meta().namespace, &object.meta().name);
        if source.holds_roles() {
            let role: Role = object.decode().unwrap_or_default();
            self.roles.entry(namespace.clone()).or_default().insert(name.clone(), role.rules);
        } else {
            let binding: Binding = object.decode().unwrap_or_default();
            self.scopes.entry(namespace.clone()).or_default().insert(namespace, name, binding);
        }
    }

    fn remove(&mut self, source: Source, namespace: &str, name: &str) {
        if source.holds_roles() {
            if let Some(roles) = self.roles.get_mut(namespace) {
                roles.remove(name);
                if roles.is_empty() {
                    self.roles.remove(namespace);
                }
            }
        } else if let Some(scope) = self.scopes.get_mut(namespace) {
            scope.remove(namespace, name);
            if scope.bindings.is_empty() {
                self.scopes.remove(namespace);
            }
        }
    }

    fn clear(&mut self, source: Source) {
        let kept = |namespace: &String| namespace.is_empty() == source.is_namespaced();
        if source.holds_roles() {
            self.roles.retain(|namespace, _| kept(namespace));
        } else {
            self.scopes.retain(|namespace, _| kept(namespace));
        }
    }

    /// The bindings that hold for a user in a namespace (empty: those of the cluster only), each with the rules of its
    /// role, or with upstream's words for a role that is not there.
    pub(super) fn held<'a>(
        &'a self,
        user: &'a User,
        namespace: &'a str,
    ) -> impl Iterator<Item = (Held<'a>, Result<&'a [Rule], String>)> {
        let places = if namespace.is_empty() { vec![""] } else { vec!["", namespace] };
        places.into_iter().filter_map(|place| Some((place, self.scopes.get(place)?))).flat_map(
            move |(namespace, scope)| {
                scope.of(user).into_iter().filter_map(move |name| {
                    let (name, binding) = scope.bindings.get_key_value(name)?;
                    Some((Held { namespace, name, binding }, self.rules(namespace, &binding.role_ref)))
                })
            },
        )
    }

    fn rules(&self, namespace: &str, role: &RoleRef) -> Result<&[Rule], String> {
        let (place, word) = match role.kind.as_str() {
            "ClusterRole" => ("", "clusterrole"),
            "Role" => (namespace, "role"),
            other => return Err(format!("unsupported role reference kind: \"{other}\"")),
        };
        let found = self.roles.get(place).and_then(|roles| roles.get(&role.name)).map(Vec::as_slice);
        found.ok_or_else(|| format!("{word}.rbac.authorization.k8s.io \"{}\" not found", role.name))
    }
}
