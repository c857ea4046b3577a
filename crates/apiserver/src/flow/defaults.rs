//! The FlowSchemas and PriorityLevelConfigurations that every cluster has: the mandatory ones, which nobody can change, and
//! the suggested ones, which are kept as here as long as nobody says otherwise.
//! Source: `apiserver/pkg/apis/flowcontrol/bootstrap/default.go`.

use serde_json::{Value, json};

pub(super) const GROUP: &str = "flowcontrol.apiserver.k8s.io";
pub(super) const LEVELS: &str = "prioritylevelconfigurations";
pub(super) const SCHEMAS: &str = "flowschemas";
/// Says whether the server may bring a suggested object up to date.
pub(super) const AUTO_UPDATE: &str = "apf.kubernetes.io/autoupdate-spec";

/// Levels that queue: name, shares, lendable percent, queues, hand.
const QUEUING: [(&str, u32, u32, u32, u32); 6] = [
    ("system", 30, 33, 64, 6),
    ("node-high", 40, 25, 64, 6),
    ("leader-election", 10, 0, 16, 4),
    ("workload-high", 40, 50, 128, 6),
    ("workload-low", 100, 90, 128, 6),
    ("global-default", 20, 50, 128, 6),
];

/// What a schema is for.
enum Of {
    Everything,
    Probes,
    Elections,
    Nodes,
}

const EVERYBODY: &[(&str, &str)] = &[("Group", "system:unauthenticated"), ("Group", "system:authenticated")];
const NODES: &[(&str, &str)] = &[("Group", "system:nodes")];
const KUBE_SYSTEM: (&str, &str) = ("ServiceAccount", "kube-system");

/// A schema: name, level, precedence, what tells its flows apart, who, what.
type Row = (&'static str, &'static str, u32, &'static str, &'static [(&'static str, &'static str)], Of);

const ROWS: [Row; 11] = [
    ("exempt", "exempt", 1, "", &[("Group", "system:masters")], Of::Everything),
    ("probes", "exempt", 2, "", EVERYBODY, Of::Probes),
    (
        "system-leader-election",
        "leader-election",
        100,
        "ByUser",
        &[("User", "system:kube-controller-manager"), ("User", "system:kube-scheduler"), KUBE_SYSTEM],
        Of::Elections,
    ),
    ("system-node-high", "node-high", 400, "ByUser", NODES, Of::Nodes),
    ("system-nodes", "system", 500, "ByUser", NODES, Of::Everything),
    (
        "kube-controller-manager",
        "workload-high",
        800,
        "ByNamespace",
        &[("User", "system:kube-controller-manager")],
        Of::Everything,
    ),
    (
        "kube-scheduler",
        "workload-high",
        800,
        "ByNamespace",
        &[("User", "system:kube-scheduler")],
        Of::Everything,
    ),
    ("kube-system-service-accounts", "workload-high", 900, "ByNamespace", &[KUBE_SYSTEM], Of::Everything),
    (
        "service-accounts",
        "workload-low",
        9000,
        "ByUser",
        &[("Group", "system:serviceaccounts")],
        Of::Everything,
    ),
    ("global-default", "global-default", 9900, "ByUser", EVERYBODY, Of::Everything),
    ("catch-all", "catch-all", 10_000, "ByUser", EVERYBODY, Of::Everything),
];

/// Those that nobody can change.
const MANDATORY: [&str; 2] = ["exempt", "catch-all"];

/// All of them: resource, object, and whether it is mandatory. Levels come before the schemas that name them.
pub(super) fn all() -> Vec<(&'static str, Value, bool)> {
    let levels = [exempt(), catch_all()].into_iter().chain(QUEUING.iter().map(level));
    let levels = levels.map(|object| (LEVELS, object));
    let all = levels.chain(ROWS.iter().map(|row| (SCHEMAS, schema(row))));
    all.map(|(resource, object)| {
        let mandatory = MANDATORY.iter().any(|name| object["metadata"]["name"] == *name);
        (resource, object, mandatory)
    })
    .collect()
}

/// The mandatory ones.
pub(super) fn mandatory() -> impl Iterator<Item = (&'static str, Value)> {
    all().into_iter().filter(|(_, _, mandatory)| *mandatory).map(|(resource, object, _)| (resource, object))
}

fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": format!("{GROUP}/v1"), "kind": kind,
        "metadata": { "name": name, "annotations": { AUTO_UPDATE: "true" } },
        "spec": spec,
    })
}

fn exempt() -> Value {
    let exempt = json!({ "nominalConcurrencyShares": 0, "lendablePercent": 0 });
    object("PriorityLevelConfiguration", "exempt", json!({ "type": "Exempt", "exempt": exempt }))
}

fn catch_all() -> Value {
    let limited = json!({
        "nominalConcurrencyShares": 5, "lendablePercent": 0, "limitResponse": { "type": "Reject" },
    });
    object("PriorityLevelConfiguration", "catch-all", json!({ "type": "Limited", "limited": limited }))
}

fn level((name, shares, lendable, queues, hand): &(&str, u32, u32, u32, u32)) -> Value {
    let queuing = json!({ "queues": queues, "handSize": hand, "queueLengthLimit": 50 });
    let limited = json!({
        "nominalConcurrencyShares": shares, "lendablePercent": lendable,
        "limitResponse": { "type": "Queue", "queuing": queuing },
    });
    object("PriorityLevelConfiguration", name, json!({ "type": "Limited", "limited": limited }))
}

fn subject((kind, name): &(&str, &str)) -> Value {
    match *kind {
        "Group" => json!({ "kind": kind, "group": { "name": name } }),
        "User" => json!({ "kind": kind, "user": { "name": name } }),
        // All service accounts of a namespace.
        _ => json!({ "kind": kind, "serviceAccount": { "name": "*", "namespace": name } }),
    }
}

fn schema((name, level, precedence, by, who, of): &Row) -> Value {
    let resources = |verbs: &[&str], group: &str, resources: &[&str], cluster: bool| {
        let mut rule = json!({
            "verbs": verbs, "apiGroups": [group], "resources": resources, "namespaces": ["*"],
        });
        if cluster {
            rule["clusterScope"] = true.into();
        }
        rule
    };
    let leases = |verbs: &[&str]| resources(verbs, "coordination.k8s.io", &["leases"], false);
    let mut rule = match of {
        Of::Everything => json!({
            "resourceRules": [resources(&["*"], "*", &["*"], true)],
            "nonResourceRules": [{ "verbs": ["*"], "nonResourceURLs": ["*"] }],
        }),
        Of::Probes => json!({
            "nonResourceRules": [{ "verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"] }],
        }),
        Of::Elections => json!({ "resourceRules": [leases(&["get", "create", "update"])] }),
        Of::Nodes => json!({
            "resourceRules": [resources(&["*"], "", &["nodes", "nodes/status"], true), leases(&["*"])],
        }),
    };
    rule["subjects"] = who.iter().map(subject).collect();
    let mut spec = json!({
        "matchingPrecedence": precedence, "priorityLevelConfiguration": { "name": level }, "rules": [rule],
    });
    if !by.is_empty() {
        spec["distinguisherMethod"] = json!({ "type": by });
    }
    object("FlowSchema", name, spec)
}
