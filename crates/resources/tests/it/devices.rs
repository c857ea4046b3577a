//! Devices (DRA), shown through the API: who gets admin access to them.

use api::connect::User;
use http::Method;
use serde_json::{Value, json};

use crate::admission::{label, post, shop};
use crate::cluster::Cluster;
use crate::http_front::{Answer, JSON, get, send, write};

const MERGE: &str = "application/merge-patch+json";
const LABEL: &str = "resource.kubernetes.io/admin-access";
const REFUSAL: &str = "Forbidden: admin access to devices requires the `resource.kubernetes.io/admin-access: true` label \
                       on the containing namespace";

fn path(version: &str, resource: &str) -> String {
    format!("/apis/resource.k8s.io/{version}/namespaces/shop/{resource}")
}

/// A claim or a template, as a version has it, whose second request says this of admin access.
fn object(version: &str, resource: &str, name: &str, admin: Option<bool>) -> Value {
    let own = json!({ "deviceClassName": "gpu", "adminAccess": admin });
    let request = if version == "v1beta1" {
        json!({ "name": "b", "deviceClassName": "gpu", "adminAccess": admin })
    } else {
        json!({ "name": "b", "exactly": own })
    };
    let choice = json!({ "name": "a", "firstAvailable": [{ "name": "x", "deviceClassName": "gpu" }] });
    let spec = json!({ "devices": { "requests": [choice, request] } });
    let spec = if resource == "resourceclaims" { spec } else { json!({ "spec": spec }) };
    json!({ "metadata": { "name": name }, "spec": spec })
}

async fn set_label(cluster: &Cluster, value: Option<&str>) {
    let answer = label(cluster, json!({ LABEL: value })).await;
    assert_eq!(answer.code, 200, "{}", answer.message());
}

#[tokio::test]
async fn claims_ask_for_admin_access_where_the_namespace_says_so() {
    let cluster = shop().await;
    let at = "spec.devices.requests[1].adminAccess";
    let mut made = 0;
    for granted in [None, Some("True"), Some("true"), None] {
        set_label(&cluster, granted).await;
        for version in ["v1", "v1beta2", "v1beta1"] {
            for (kind, resource) in
                [("ResourceClaim", "resourceclaims"), ("ResourceClaimTemplate", "resourceclaimtemplates")]
            {
                for admin in [None, Some(false), Some(true)] {
                    made += 1;
                    let name = format!("n{made}");
                    let body = object(version, resource, &name, admin);
                    let answer = post(&cluster, &path(version, resource), body).await;
                    let what = format!("{granted:?} {version} {resource} {admin:?}: {}", answer.message());
                    if admin != Some(true) || granted == Some("true") {
                        assert_eq!(answer.code, 201, "{what}");
                        continue;
                    }
                    assert_eq!(answer.code, 422, "{what}");
                    let expected = format!("{kind}.resource.k8s.io \"{name}\" is invalid: {at}: {REFUSAL}");
                    assert_eq!(answer.message(), expected, "{what}");
                    let cause = json!({ "reason": "FieldValueForbidden", "message": REFUSAL, "field": at });
                    assert_eq!(answer.json()["details"]["causes"], json!([cause]), "{what}");
                }
            }
        }
    }
}

/// Writes a claim's status: a device that was allocated, for these users.
async fn allocate(cluster: &Cluster, admin: Option<bool>, users: &[&str]) -> Answer {
    let device = json!({ "request": "b", "driver": "a.example.com", "pool": "p", "device": "d",
        "adminAccess": admin });
    let users: Vec<Value> =
        users.iter().map(|name| json!({ "resource": "pods", "name": name, "uid": name })).collect();
    let status = json!({ "allocation": { "devices": { "results": [device] } }, "reservedFor": users });
    let path = path("v1", "resourceclaims") + "/c/status";
    write(cluster, Method::PATCH, &path, MERGE, json!({ "status": status }).to_string()).await
}

#[tokio::test]
async fn claims_are_allocated_with_admin_access_where_the_namespace_says_so() {
    let cluster = shop().await;
    let claims = path("v1", "resourceclaims");
    let created = post(&cluster, &claims, object("v1", "resourceclaims", "c", None)).await;
    assert_eq!(created.code, 201, "{}", created.message());
    let refused = allocate(&cluster, Some(true), &[]).await;
    let expected = format!(
        "ResourceClaim.resource.k8s.io \"c\" is invalid: status.allocation.devices.results[0].adminAccess: {REFUSAL}"
    );
    assert_eq!((refused.code, refused.message()), (422, expected));

    set_label(&cluster, Some("true")).await;
    let granted = allocate(&cluster, Some(true), &[]).await;
    assert_eq!(granted.code, 200, "{}", granted.message());

    // What was granted stays, and so does the rest of the object changeable.
    set_label(&cluster, None).await;
    let used = allocate(&cluster, Some(true), &["p"]).await;
    assert_eq!(used.code, 200, "{}", used.message());
    let note = json!({ "metadata": { "annotations": { "a": "b" } } }).to_string();
    let noted = write(&cluster, Method::PATCH, &format!("{claims}/c"), MERGE, note).await;
    assert_eq!(noted.code, 200, "{}", noted.message());
    let now = get(&cluster, &format!("{claims}/c"), JSON).await.json();
    assert_eq!(now["status"]["allocation"]["devices"]["results"][0]["adminAccess"], true);
    assert_eq!(now["status"]["reservedFor"][0]["name"], "p");
}

/// Lets `driver` do something with claims, beside what it may already.
async fn grant(cluster: &Cluster, name: &str, verbs: &[&str], part: &str, names: &[&str]) {
    let rule = json!({ "verbs": verbs, "apiGroups": ["resource.k8s.io"], "resources": [format!("resourceclaims/{part}")],
        "resourceNames": names });
    let group = "/apis/rbac.authorization.k8s.io/v1";
    let role = json!({ "metadata": { "name": name }, "rules": [rule] });
    assert_eq!(post(cluster, &format!("{group}/clusterroles"), role).await.code, 201);
    let binding = json!({ "metadata": { "name": name },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name },
        "subjects": [{ "kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "driver" }] });
    assert_eq!(post(cluster, &format!("{group}/clusterrolebindings"), binding).await.code, 201);
}

#[tokio::test]
async fn a_status_is_written_by_whoever_may_write_its_parts() {
    let cluster = shop().await;
    let claims = path("v1", "resourceclaims");
    let created = post(&cluster, &claims, object("v1", "resourceclaims", "c", None)).await;
    assert_eq!(created.code, 201, "{}", created.message());
    grant(&cluster, "status", &["patch"], "status", &[]).await;
    let driver =
        User { name: "driver".into(), groups: vec!["system:authenticated".into()], ..User::default() };
    let patch = async |status: Value| {
        let (path, body) = (format!("{claims}/c/status"), json!({ "status": status }).to_string());
        send(&cluster, Some(&driver), Method::PATCH, &path, &[("content-type", MERGE)], body).await
    };
    let device = json!({ "driver": "a.example.com", "pool": "p", "device": "d" });
    let mut result = device.clone();
    result["request"] = "b".into();
    let allocation = json!({ "allocation": { "devices": { "results": [result] } } });
    let refused = patch(allocation.clone()).await;
    assert_eq!(
        (refused.code, refused.message().as_str()),
        (
            422,
            "ResourceClaim.resource.k8s.io \"c\" is invalid: status: Forbidden: changing status.allocation or \
             status.reservedFor requires resource=\"resourceclaims/binding\", verb=\"patch\" permission: \
             resourceclaims.resource.k8s.io is forbidden: User \"driver\" cannot patch resource \
             \"resourceclaims/binding\" in API group \"resource.k8s.io\" at the cluster scope"
        )
    );
    grant(&cluster, "binding", &["patch"], "binding", &[]).await;
    let allocated = patch(allocation).await;
    assert_eq!(allocated.code, 200, "{}", allocated.message());

    let told = json!({ "devices": [device] });
    let refused = patch(told.clone()).await;
    assert_eq!(
        (refused.code, refused.message().as_str()),
        (
            422,
            "ResourceClaim.resource.k8s.io \"c\" is invalid: status.devices: Forbidden: changing status.devices \
             requires resource=\"resourceclaims/driver\", verb=\"[arbitrary-node:patch]\" permission: \
             resourceclaims.resource.k8s.io \"a.example.com\" is forbidden: User \"driver\" cannot \
             arbitrary-node:patch resource \"resourceclaims/driver\" in API group \"resource.k8s.io\" in the \
             namespace \"shop\""
        )
    );
    grant(&cluster, "driver", &["arbitrary-node:patch"], "driver", &["a.example.com"]).await;
    let written = patch(told).await;
    assert_eq!(written.code, 200, "{}", written.message());
}

#[tokio::test]
async fn taints_of_devices_say_since_when_they_are_there() {
    let cluster = shop().await;
    let moment = |value: &Value| value.as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
    let slices = "/apis/resource.k8s.io/v1/resourceslices";
    let pool = json!({ "name": "p", "generation": 1, "resourceSliceCount": 1 });
    let taint = json!({ "key": "sick", "effect": "NoExecute" });
    let slice = json!({ "metadata": { "name": "s" }, "spec": { "driver": "a.example.com", "nodeName": "n", "pool": pool,
        "devices": [{ "name": "d", "taints": [taint] }] } });
    let made = crate::admission::made(&cluster, slices, slice).await;
    let since = made["spec"]["devices"][0]["taints"][0]["timeAdded"].clone();
    assert!(moment(&since).is_some(), "{since}");
    let another = json!({ "metadata": { "labels": { "a": "b" } } }).to_string();
    let noted = write(&cluster, Method::PATCH, &format!("{slices}/s"), MERGE, another).await.json();
    assert_eq!(noted["spec"]["devices"][0]["taints"][0]["timeAdded"], since);

    for version in ["v1", "v1beta2"] {
        let rules = format!("/apis/resource.k8s.io/{version}/devicetaintrules");
        if get(&cluster, &rules, JSON).await.code == 404 {
            continue;
        }
        let name = format!("rule-{version}");
        let rule = json!({ "metadata": { "name": name }, "spec": { "deviceSelector": { "driver": "a.example.com" },
            "taint": { "key": "sick", "effect": "None" } } });
        let made = crate::admission::made(&cluster, &rules, rule).await;
        assert!(moment(&made["spec"]["taint"]["timeAdded"]).is_some(), "{version}");
        let change = async |taint: Value| {
            let body = json!({ "spec": { "taint": taint } }).to_string();
            write(&cluster, Method::PATCH, &format!("{rules}/{name}"), MERGE, body).await.json()["spec"]["taint"].clone()
        };
        let old = "2020-01-01T00:00:00Z";
        assert_eq!(change(json!({ "timeAdded": old })).await["timeAdded"], old);
        assert_eq!(change(json!({ "value": "v" })).await["timeAdded"], old);
        let executes = change(json!({ "effect": "NoExecute" })).await;
        assert!(moment(&executes["timeAdded"]) > moment(&json!(old)), "{version}: {executes}");
    }
}
