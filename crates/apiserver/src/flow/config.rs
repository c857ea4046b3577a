//! What the FlowSchemas and PriorityLevelConfigurations of a cluster say, read for use. The mandatory ones are always
//! there, also where nobody has stored them yet. Source: `flowcontrol.apiserver.k8s.io/v1`.

use std::collections::HashMap;
use std::sync::Arc;

use api::Object;
use api::connect::User;
use serde::Deserialize;

use super::defaults;
use super::metrics::Counted;
use super::queues::Queuing;
use super::seats::Share;

/// Stands for everything in rules.
const ALL: &str = "*";
/// The level and the schema that take what nobody else does.
pub(super) const CATCH_ALL: &str = "catch-all";

/// What a request is known by before anybody looks at it closely.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Digest<'a> {
    /// Who asks.
    pub(crate) user: &'a User,
    /// `list`, `create`, …; the lower-case method for what is no resource.
    pub(crate) verb: &'a str,
    /// The resource, if it is one.
    pub(crate) resource: Option<Named<'a>>,
    /// The path, where it is none.
    pub(crate) path: &'a str,
}

/// A resource that is asked for.
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs, reason = "the parts of a resource's path")]
pub(crate) struct Named<'a> {
    pub(crate) group: &'a str,
    /// Only shown, as the name.
    pub(crate) version: &'a str,
    pub(crate) name: &'a str,
    pub(crate) resource: &'a str,
    pub(crate) subresource: &'a str,
    pub(crate) namespace: &'a str,
}

/// What tells the flows of a schema apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[allow(clippy::enum_variant_names, reason = "upstream's names")]
pub(super) enum By {
    #[serde(rename = "ByUser")]
    User,
    #[serde(rename = "ByNamespace")]
    Namespace,
}

/// One priority level.
#[derive(Debug, Clone)]
pub(super) struct Level {
    pub(super) name: Arc<str>,
    pub(super) uid: String,
    pub(super) exempt: bool,
    pub(super) share: Share,
    pub(super) queuing: Option<Queuing>,
}

/// One flow schema, with its level and its figures.
pub(crate) struct Schema {
    pub(super) name: Arc<str>,
    pub(super) uid: String,
    pub(super) level: Arc<str>,
    pub(super) level_uid: String,
    precedence: i64,
    by: Option<By>,
    rules: Vec<Rule>,
    pub(super) counted: Counted,
}

impl Schema {
    /// The UIDs of schema and level, as answers name them.
    pub(crate) fn uids(&self) -> (&str, &str) {
        (&self.uid, &self.level_uid)
    }

    /// What tells a request's flow from the schema's others.
    pub(super) fn distinguisher<'a>(&self, digest: &Digest<'a>) -> &'a str {
        match self.by {
            None => "",
            Some(By::User) => &digest.user.name,
            Some(By::Namespace) => digest.resource.map_or("", |resource| resource.namespace),
        }
    }
}

/// Everything, in the order in which requests are compared with it.
pub(super) struct Config {
    pub(super) levels: Vec<Level>,
    pub(super) schemas: Vec<Arc<Schema>>,
}

impl Config {
    /// Reads stored objects; `counted` makes the figures of a schema and its level. What cannot be read and what names a
    /// level that is not there has no effect.
    pub(super) fn read(
        levels: &[Arc<Object>],
        schemas: &[Arc<Object>],
        counted: impl Fn(&str, &str) -> Counted,
    ) -> Self {
        let mut levels: Vec<Level> = levels.iter().filter_map(|object| level(object)).collect();
        let mut known: Vec<(Head, SchemaSpec)> = schemas.iter().filter_map(|object| parsed(object)).collect();
        for (resource, object) in defaults::mandatory() {
            let named = |name: &str| object["metadata"]["name"] == name;
            let Ok(bytes) = serde_json::to_vec(&object) else { continue };
            let Ok(object) = Object::parse(bytes.into()) else { continue };
            if resource == defaults::LEVELS && !levels.iter().any(|level| named(&level.name)) {
                levels.extend(level(&object));
            } else if resource == defaults::SCHEMAS && !known.iter().any(|(head, _)| named(&head.name)) {
                known.extend(parsed(&object));
            }
        }
        let by_name: HashMap<&str, &Level> =
            levels.iter().map(|level| (level.name.as_ref(), level)).collect();
        let mut schemas: Vec<Arc<Schema>> = known
            .into_iter()
            .filter_map(|(head, spec)| {
                let level = by_name.get(spec.priority_level_configuration.name.as_str())?;
                Some(Arc::new(Schema {
                    counted: counted(&level.name, &head.name),
                    name: head.name.into(),
                    uid: head.uid,
                    level: level.name.clone(),
                    level_uid: level.uid.clone(),
                    precedence: spec.matching_precedence,
                    by: spec.distinguisher_method.map(|method| method.by),
                    rules: spec.rules,
                }))
            })
            .collect();
        schemas.sort_by(|one, other| (one.precedence, &one.name).cmp(&(other.precedence, &other.name)));
        Self { levels, schemas }
    }

    /// The first schema that a request matches. The last is the one for everything, so that there is one unless somebody
    /// changed that; then it takes what is left.
    pub(super) fn classify(&self, digest: &Digest<'_>) -> Option<&Arc<Schema>> {
        let matching =
            self.schemas.iter().find(|schema| schema.rules.iter().any(|rule| rule.matches(digest)));
        matching.or_else(|| self.schemas.iter().find(|schema| schema.name.as_ref() == CATCH_ALL))
    }
}

/// Name and UID.
struct Head {
    name: String,
    uid: String,
}

fn parsed(object: &Object) -> Option<(Head, SchemaSpec)> {
    #[derive(Deserialize)]
    struct View {
        spec: SchemaSpec,
    }
    let view: View = object.decode().ok()?;
    let meta = object.meta();
    Some((Head { name: meta.name.clone(), uid: meta.uid.clone() }, view.spec))
}

fn level(object: &Object) -> Option<Level> {
    let LevelView { spec } = object.decode().ok()?;
    let (own, exempt) = match (spec.exempt, spec.limited) {
        (Some(own), _) if spec.kind == "Exempt" => (own, true),
        (None, _) if spec.kind == "Exempt" => (LevelPart::default(), true),
        (_, Some(own)) => (own, false),
        _ => return None,
    };
    let queuing = own.limit_response.filter(|response| response.kind == "Queue");
    let queuing = queuing.and_then(|response| response.queuing).map(|queuing| Queuing {
        queues: queuing.queues.clamp(1, QUEUES_MAX),
        hand: queuing.hand_size.clamp(1, queuing.queues.clamp(1, QUEUES_MAX)),
        length: queuing.queue_length_limit.max(1),
    });
    let share = Share {
        shares: own.nominal_concurrency_shares.unwrap_or(if exempt { 0 } else { 30 }),
        lendable: own.lendable_percent.unwrap_or(0).min(100),
        borrowing: own.borrowing_limit_percent,
    };
    let meta = object.meta();
    Some(Level { name: meta.name.as_str().into(), uid: meta.uid.clone(), exempt, share, queuing })
}

/// A level may ask for ten million queues; so many are made. Hands of so many differ as much as can be told.
const QUEUES_MAX: usize = 4096;

#[derive(Deserialize)]
struct LevelView {
    spec: LevelSpec,
}

#[derive(Deserialize)]
struct LevelSpec {
    #[serde(rename = "type")]
    kind: String,
    exempt: Option<LevelPart>,
    limited: Option<LevelPart>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LevelPart {
    nominal_concurrency_shares: Option<u32>,
    lendable_percent: Option<u32>,
    borrowing_limit_percent: Option<u32>,
    limit_response: Option<LimitResponse>,
}

#[derive(Deserialize)]
struct LimitResponse {
    #[serde(rename = "type")]
    kind: String,
    queuing: Option<QueuingView>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct QueuingView {
    #[serde(default = "queues")]
    queues: usize,
    #[serde(default = "hand_size")]
    hand_size: usize,
    #[serde(default = "queue_length_limit")]
    queue_length_limit: usize,
}

fn queues() -> usize {
    64
}

fn hand_size() -> usize {
    8
}

fn queue_length_limit() -> usize {
    50
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SchemaSpec {
    priority_level_configuration: NameRef,
    #[serde(default = "precedence")]
    matching_precedence: i64,
    distinguisher_method: Option<Method>,
    #[serde(default)]
    rules: Vec<Rule>,
}

fn precedence() -> i64 {
    1000
}

#[derive(Deserialize)]
struct NameRef {
    name: String,
}

#[derive(Deserialize)]
struct Method {
    #[serde(rename = "type")]
    by: By,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    subjects: Vec<Subject>,
    #[serde(default)]
    resource_rules: Vec<ResourceRule>,
    #[serde(default)]
    non_resource_rules: Vec<PathRule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Subject {
    user: Option<NameRef>,
    group: Option<NameRef>,
    service_account: Option<AccountRef>,
}

#[derive(Deserialize)]
struct AccountRef {
    namespace: String,
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ResourceRule {
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(default)]
    api_groups: Vec<String>,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default)]
    cluster_scope: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PathRule {
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(rename = "nonResourceURLs", default)]
    urls: Vec<String>,
}

fn any(list: &[String], text: &str) -> bool {
    list.iter().any(|known| known == ALL || known == text)
}

impl Rule {
    fn matches(&self, digest: &Digest<'_>) -> bool {
        self.subjects.iter().any(|subject| subject.is(digest.user))
            && match &digest.resource {
                Some(resource) => self.resource_rules.iter().any(|rule| rule.matches(digest.verb, resource)),
                None => self.non_resource_rules.iter().any(|rule| rule.matches(digest.verb, digest.path)),
            }
    }
}

impl Subject {
    fn is(&self, user: &User) -> bool {
        if let Some(NameRef { name }) = &self.user {
            return name == ALL || *name == user.name;
        }
        if let Some(NameRef { name }) = &self.group {
            return name == ALL || user.groups.contains(name);
        }
        let Some(account) = &self.service_account else { return false };
        let named = user.name.strip_prefix(crate::authn::names::SERVICE_ACCOUNT_PREFIX);
        let Some((namespace, name)) = named.and_then(|named| named.split_once(':')) else { return false };
        namespace == account.namespace && (account.name == ALL || name == account.name)
    }
}

impl ResourceRule {
    fn matches(&self, verb: &str, asked: &Named<'_>) -> bool {
        any(&self.verbs, verb)
            && any(&self.api_groups, asked.group)
            && self.resources.iter().any(|known| known == ALL || is_resource(known, asked))
            && if asked.namespace.is_empty() {
                self.cluster_scope
            } else {
                any(&self.namespaces, asked.namespace)
            }
    }
}

/// `pods`, or `pods/status`.
fn is_resource(known: &str, asked: &Named<'_>) -> bool {
    match known.split_once('/') {
        None => asked.subresource.is_empty() && known == asked.resource,
        Some((resource, subresource)) => resource == asked.resource && subresource == asked.subresource,
    }
}

impl PathRule {
    fn matches(&self, verb: &str, path: &str) -> bool {
        let covers = |url: &String| {
            let stem = url.trim_end_matches('*').trim_end_matches('/');
            url == ALL || url == path || path.strip_prefix(stem).is_some_and(|rest| rest.starts_with('/'))
        };
        any(&self.verbs, verb) && self.urls.iter().any(covers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suggested() -> Config {
        let objects = |wanted| -> Vec<Arc<Object>> {
            let all = defaults::all().into_iter().filter(|(resource, _, _)| *resource == wanted);
            all.map(|(_, object, _)| Arc::new(Object::parse(object.to_string().into()).unwrap())).collect()
        };
        Config::read(&objects(defaults::LEVELS), &objects(defaults::SCHEMAS), |_, _| Counted::default())
    }

    fn user(name: &str, groups: &[&str]) -> User {
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        User { name: name.into(), groups, ..User::default() }
    }

    fn pods<'a>(user: &'a User, verb: &'a str) -> Digest<'a> {
        let resource = Named { resource: "pods", namespace: "ns", ..Named::default() };
        Digest { user, verb, resource: Some(resource), path: "" }
    }

    #[test]
    fn requests_are_classified_as_upstream_does() {
        let config = suggested();
        let class = |digest: &Digest<'_>| config.classify(digest).unwrap().name.to_string();
        let everybody = "system:authenticated";
        let node = user("system:node:a", &["system:nodes", everybody]);
        for (who, expected) in [
            (&user("admin", &["system:masters", everybody]), "exempt"),
            (&node, "system-nodes"),
            (&user("system:kube-scheduler", &[everybody]), "kube-scheduler"),
            (&user("system:kube-controller-manager", &[everybody]), "kube-controller-manager"),
            (
                &user("system:serviceaccount:kube-system:x", &["system:serviceaccounts", everybody]),
                "kube-system-service-accounts",
            ),
            (
                &user("system:serviceaccount:kube-systemx:x", &["system:serviceaccounts", everybody]),
                "service-accounts",
            ),
            (&user("jane", &[everybody]), "global-default"),
            (&user("system:anonymous", &["system:unauthenticated"]), "global-default"),
            (&user("nobody", &[]), "catch-all"),
        ] {
            assert_eq!(class(&pods(who, "list")), expected, "{}", who.name);
        }
        let resource = |group, resource, subresource, namespace| Named {
            group,
            resource,
            subresource,
            namespace,
            ..Named::default()
        };
        let lease = resource("coordination.k8s.io", "leases", "", "kube-node-lease");
        let status = resource("", "nodes", "status", "");
        for (named, expected) in [(lease, "system-node-high"), (status, "system-node-high")] {
            assert_eq!(class(&Digest { resource: Some(named), ..pods(&node, "update") }), expected);
        }
        let path = |path| {
            class(&Digest { user: &user("", &["system:unauthenticated"]), verb: "get", resource: None, path })
        };
        assert_eq!((path("/livez").as_str(), path("/livez/ping").as_str()), ("probes", "probes"));
        assert_eq!(
            (path("/livezz").as_str(), path("/version").as_str()),
            ("global-default", "global-default")
        );
    }

    #[test]
    fn the_mandatory_ones_are_there_without_being_stored() {
        let config = Config::read(&[], &[], |_, _| Counted::default());
        let (admin, jane) = (user("a", &["system:masters"]), user("jane", &["system:authenticated"]));
        assert_eq!(config.classify(&pods(&admin, "get")).unwrap().name.as_ref(), "exempt");
        let schema = config.classify(&pods(&jane, "get")).unwrap();
        assert_eq!((schema.name.as_ref(), schema.distinguisher(&pods(&jane, "get"))), ("catch-all", "jane"));
        assert!(config.levels.iter().all(|level| level.queuing.is_none()));
    }

    #[test]
    fn a_level_cannot_ask_for_more_queues_than_memory() {
        let huge = serde_json::json!({ "metadata": { "name": "x" }, "spec": { "type": "Limited", "limited": {
            "limitResponse": { "type": "Queue", "queuing": { "queues": 10_000_000, "handSize": 1 } } } } });
        let level = level(&Object::parse(huge.to_string().into()).unwrap()).unwrap();
        assert_eq!((level.queuing.unwrap().queues, level.share.shares), (QUEUES_MAX, 30));
    }
}
