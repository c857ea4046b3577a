//! Every built-in type to the wire and back, and against another implementation (k8s-pb, of Kubernetes 1.35).

use prost::Message as _;
use serde_json::{Map, Value, json};

use super::*;
use crate::Status;
use crate::schema::{Field, Scalar, Type, Union};

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// A value of a type as JSON has it: nothing empty that Go would leave out.
fn sample(ty: Typed<'_>, field: Option<&Field>, depth: u32, dice: &mut Dice) -> Option<Value> {
    if let Some(union) = field.and_then(Field::union) {
        return Some(match union {
            Union::SchemaOrBool if dice.below(2) == 0 => json!(dice.below(2) == 0),
            Union::SchemaOrArray if dice.below(2) == 0 => json!([{ "type": "a" }, { "type": "b" }]),
            Union::SchemaOrStrings => json!({ "a": { "type": "string" }, "b": ["c", "d"] }),
            _ => json!({ "type": "object" }),
        });
    }
    let zero = field.is_some_and(|field| field.shows_zero) && dice.below(3) == 0;
    Some(match ty.get() {
        Type::Scalar(scalar) => leaf(*scalar, zero, dice),
        Type::List { item, .. } => {
            let count = 1 + dice.below(3);
            let items = (0..count).filter_map(|_| sample(ty.of(*item), None, depth + 1, dice));
            let items: Vec<Value> = items.collect();
            (!items.is_empty()).then(|| items.into())?
        }
        Type::Map { value, .. } => {
            let mut map = Map::new();
            for key in ["a.b/c", "z", "k"] {
                map.insert(key.into(), sample(ty.of(*value), None, depth + 1, dice)?);
            }
            map.into()
        }
        Type::Struct(_) if depth > 12 => return None,
        Type::Struct(definition) => {
            let mut object = Map::new();
            // Deep down few fields are taken, so that objects end.
            let odds = if depth < 4 { 2 } else { 5 };
            for field in definition.fields.iter().filter(|field| field.number > 0) {
                if dice.below(odds) == 0
                    && let Some(value) = sample(ty.of(field.ty), Some(field), depth + 1, dice)
                {
                    object.insert(field.name.to_string(), value);
                }
            }
            object.into()
        }
    })
}

fn leaf(scalar: Scalar, zero: bool, dice: &mut Dice) -> Value {
    match scalar {
        Scalar::String if zero => json!(""),
        Scalar::String => json!(format!("text \"{}\" ü", dice.below(1000))),
        Scalar::Int32 | Scalar::Int64 if zero => json!(0),
        Scalar::Int32 => json!(-1 - i64::try_from(dice.below(1 << 31)).unwrap()),
        Scalar::Int64 => json!(1 + dice.below(1 << 40)),
        Scalar::Double => json!(0.5),
        Scalar::Bool => json!(!zero),
        Scalar::Bytes => json!(["AAECAw==", "c2VjcmV0", "/w=="][dice.below(3) as usize]),
        Scalar::Time => json!("2024-05-06T07:08:09Z"),
        Scalar::MicroTime => json!("2024-05-06T07:08:09.123456Z"),
        Scalar::Quantity => json!(["100m", "2Gi", "0"][dice.below(3) as usize]),
        Scalar::IntOrString if zero => json!(0),
        Scalar::IntOrString => [json!("25%"), json!(8080)][dice.below(2) as usize].clone(),
        Scalar::Any => json!({ "f:metadata": { "f:labels": {} }, "list": [1, true, null] }),
    }
}

fn kinds() -> Vec<(String, String, Typed<'static>)> {
    let schema = Schema::builtin();
    let mut kinds: Vec<_> = schema
        .definitions()
        .filter_map(|(_, id)| {
            let [group, version, kind] = schema.structure(id)?.kind.clone()?;
            let api_version =
                if group.is_empty() { version.to_string() } else { format!("{group}/{version}") };
            Some((api_version, kind.to_string(), schema.typed(id)))
        })
        .filter(|(_, _, ty)| speaks(*ty))
        .collect();
    kinds.sort_by(|one, other| (&one.0, &one.1).cmp(&(&other.0, &other.1)));
    kinds
}

fn sampled(api_version: &str, kind: &str, ty: Typed<'_>, seed: u64) -> Value {
    let mut object = sample(ty, None, 0, &mut Dice(seed)).unwrap();
    object["apiVersion"] = api_version.into();
    object["kind"] = kind.into();
    object
}

fn encoded(value: &Value) -> Vec<u8> {
    object(Schema::builtin(), value.to_string().as_bytes()).unwrap()
}

#[test]
fn every_kind_comes_back_from_the_wire() {
    let kinds = kinds();
    assert!(kinds.len() > 150, "only {} kinds have numbers", kinds.len());
    for (api_version, kind, ty) in kinds {
        for seed in 0..6 {
            let object = sampled(&api_version, &kind, ty, seed);
            let back = decode(Schema::builtin(), &encoded(&object)).unwrap();
            assert_eq!(back, object, "{api_version} {kind}, seed {seed}");
        }
    }
}

/// What k8s-pb makes of the wire form of a kind, written anew by its own encoder.
fn rewritten<M: prost::Message + Default>(body: &[u8]) -> Vec<u8> {
    use k8s_pb::apimachinery::pkg::runtime::Unknown;
    let mut unknown = Unknown::decode(&body[MAGIC.len()..]).unwrap();
    let message = M::decode(unknown.raw.as_deref().unwrap()).unwrap();
    unknown.raw = Some(message.encode_to_vec());
    [MAGIC, &unknown.encode_to_vec()].concat()
}

/// The places of `before` that `after` lacks; everything else has to be the same.
fn lost(before: &Value, after: &Value, place: &str, out: &mut Vec<String>) {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            for (name, value) in before {
                match after.get(name) {
                    Some(other) => lost(value, other, &format!("{place}.{name}"), out),
                    None => out.push(format!("{place}.{name}")),
                }
            }
            assert!(after.keys().all(|name| before.contains_key(name)), "{place}: {after:?} holds more");
        }
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => {
            before.iter().zip(after).for_each(|(before, after)| lost(before, after, place, out));
        }
        _ => assert_eq!(before, after, "{place}"),
    }
}

fn agreed<M: prost::Message + Default + k8s_pb::Resource>(newer: &mut Vec<String>) {
    let schema = Schema::builtin();
    let ty = schema.of_kind(M::GROUP, M::VERSION, M::KIND).map(|id| schema.typed(id)).unwrap();
    for seed in 0..6 {
        let object = sampled(M::API_VERSION, M::KIND, ty, seed);
        let ours = encoded(&object);
        let theirs = rewritten::<M>(&ours);
        lost(&object, &decode(schema, &theirs).unwrap(), M::KIND, newer);
        // Where it knows all fields, the bytes are the same.
        let all = decode(schema, &theirs).unwrap() == object;
        assert!(!all || theirs == ours, "{} {}, seed {seed}: other bytes", M::API_VERSION, M::KIND);
    }
}

/// Fields that came after Kubernetes 1.35.
const NEWER: &[&str] = &[
    ".attributes.a.b/c.strings",
    ".attributes.k.bools",
    ".attributes.k.ints",
    ".attributes.k.strings",
    ".attributes.z.versions",
    ".configMap.defaultUser",
    ".emptyDir.mode",
    ".grpc.mode",
    ".httpGet.protocol",
    ".items.user",
    ".volumeMounts.bindMountOptions",
    ".volumeMounts.volumeStatus",
    "CSIDriver.spec.preventPodSchedulingIfMissing",
    "CSINode.status",
    "Job.spec.scheduling",
    "Node.spec.podPreemptionPolicy",
    "Pod.status.nodeAllocatableResourceClaimStatuses",
    "PodCertificateRequest.spec.stubPKCS10Request",
    "ResourceSlice.spec.devices.nodeAllocatableResources",
    "ResourceSlice.spec.partitionTypeAttribute",
    "jobTemplate.spec.scheduling",
    "spec.evictionResponders",
    "spec.schedulingGroup",
];

macro_rules! agreed {
    ($newer:expr, $($kind:path),* $(,)?) => { $(agreed::<$kind>($newer);)* };
}

#[test]
fn k8s_pb_reads_what_is_written_and_writes_the_same() {
    use k8s_pb::{api, apiextensions_apiserver, kube_aggregator};
    let mut newer = Vec::new();
    agreed! {
        &mut newer,
        api::core::v1::Binding,
        api::core::v1::ConfigMap,
        api::core::v1::Endpoints,
        api::core::v1::Event,
        api::core::v1::LimitRange,
        api::core::v1::Namespace,
        api::core::v1::Node,
        api::core::v1::PersistentVolume,
        api::core::v1::PersistentVolumeClaim,
        api::core::v1::Pod,
        api::core::v1::PodTemplate,
        api::core::v1::ReplicationController,
        api::core::v1::ResourceQuota,
        api::core::v1::Secret,
        api::core::v1::Service,
        api::core::v1::ServiceAccount,
        kube_aggregator::pkg::apis::apiregistration::v1::APIService,
        api::apps::v1::ControllerRevision,
        api::apps::v1::DaemonSet,
        api::apps::v1::Deployment,
        api::apps::v1::ReplicaSet,
        api::apps::v1::StatefulSet,
        api::events::v1::Event,
        api::authentication::v1::SelfSubjectReview,
        api::authentication::v1::TokenReview,
        api::authorization::v1::LocalSubjectAccessReview,
        api::authorization::v1::SelfSubjectAccessReview,
        api::authorization::v1::SelfSubjectRulesReview,
        api::authorization::v1::SubjectAccessReview,
        api::autoscaling::v2::HorizontalPodAutoscaler,
        api::batch::v1::CronJob,
        api::batch::v1::Job,
        api::certificates::v1::CertificateSigningRequest,
        api::certificates::v1beta1::ClusterTrustBundle,
        api::certificates::v1beta1::PodCertificateRequest,
        api::networking::v1::IPAddress,
        api::networking::v1::Ingress,
        api::networking::v1::IngressClass,
        api::networking::v1::NetworkPolicy,
        api::networking::v1::ServiceCIDR,
        api::policy::v1::PodDisruptionBudget,
        api::rbac::v1::ClusterRole,
        api::rbac::v1::ClusterRoleBinding,
        api::rbac::v1::Role,
        api::rbac::v1::RoleBinding,
        api::storage::v1::CSIDriver,
        api::storage::v1::CSINode,
        api::storage::v1::CSIStorageCapacity,
        api::storage::v1::StorageClass,
        api::storage::v1::VolumeAttachment,
        api::storage::v1::VolumeAttributesClass,
        api::admissionregistration::v1::MutatingWebhookConfiguration,
        api::admissionregistration::v1::ValidatingAdmissionPolicy,
        api::admissionregistration::v1::ValidatingAdmissionPolicyBinding,
        api::admissionregistration::v1::ValidatingWebhookConfiguration,
        api::admissionregistration::v1beta1::MutatingAdmissionPolicy,
        api::admissionregistration::v1beta1::MutatingAdmissionPolicyBinding,
        apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
        api::scheduling::v1::PriorityClass,
        api::coordination::v1::Lease,
        api::coordination::v1beta1::LeaseCandidate,
        api::node::v1::RuntimeClass,
        api::discovery::v1::EndpointSlice,
        api::flowcontrol::v1::FlowSchema,
        api::flowcontrol::v1::PriorityLevelConfiguration,
        api::resource::v1::DeviceClass,
        api::resource::v1::ResourceClaim,
        api::resource::v1::ResourceClaimTemplate,
        api::resource::v1::ResourceSlice,
        api::resource::v1beta2::DeviceClass,
        api::resource::v1beta2::ResourceClaim,
        api::resource::v1beta2::ResourceClaimTemplate,
        api::resource::v1beta2::ResourceSlice,
        api::storagemigration::v1beta1::StorageVersionMigration,
    }
    newer.retain(|place| !NEWER.iter().any(|known| place.ends_with(known)));
    assert_eq!(newer, Vec::<String>::new(), "not known to k8s-pb");
}

#[test]
fn a_list_and_its_metadata_are_read_by_k8s_pb() {
    use k8s_pb::api::core::v1::ConfigMapList;
    let schema = Schema::builtin();
    let ty = schema.of_kind("", "v1", "ConfigMap").map(|id| schema.typed(id)).unwrap();
    let named = |name: &str| json!({ "metadata": { "name": name }, "data": { "k": "v" } }).to_string();
    for items in [Items::Whole(ty), Items::Metadata(schema)] {
        let mut body = Vec::new();
        for name in ["a", "b"] {
            items.item(named(name).as_bytes(), &mut body).unwrap();
        }
        let metadata = br#"{"resourceVersion":"7","continue":"c","remainingItemCount":3}"#;
        let head = items.head("v1", "ConfigMapList", metadata, body.len()).unwrap();
        let body = [head, body, Items::tail()].concat();
        let list = decode(schema, &body).unwrap();
        assert_eq!(
            list["metadata"],
            json!({ "resourceVersion": "7", "continue": "c", "remainingItemCount": 3 })
        );
        assert_eq!(list["items"][1]["metadata"]["name"], "b");
        assert_eq!(list["items"][0]["data"].is_object(), matches!(items, Items::Whole(_)));
        assert_eq!(rewritten::<ConfigMapList>(&body), body);
    }
}

#[test]
fn aggregated_discovery_is_read_by_k8s_pb() {
    use k8s_pb::api::apidiscovery::v2::APIGroupDiscoveryList;
    let kind = json!({ "group": "apps", "version": "v1", "kind": "Deployment" });
    let resource = json!({
        "resource": "deployments", "responseKind": kind, "scope": "Namespaced", "singularResource": "deployment",
        "verbs": ["get", "list"], "shortNames": ["deploy"], "categories": ["all"],
        "subresources": [{
            "subresource": "status", "responseKind": kind, "verbs": ["get"], "acceptedTypes": [kind],
        }],
    });
    let version = json!({ "version": "v1", "resources": [resource], "freshness": "Current" });
    let list = json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {},
        "items": [{ "metadata": { "name": "apps" }, "versions": [version] }],
    });
    let body = encoded(&list);
    assert_eq!(decode(Schema::builtin(), &body).unwrap(), list);
    assert_eq!(rewritten::<APIGroupDiscoveryList>(&body), body);
}

#[test]
fn an_event_is_a_message_after_its_length() {
    use k8s_pb::apimachinery::pkg::apis::meta::v1::WatchEvent;
    let object = json!({ "apiVersion": "v1", "kind": "Secret", "data": { "k": "c2VjcmV0" } });
    let body = encoded(&object);
    let frame = event("ADDED", &body);
    let (length, message) = frame.split_at(4);
    assert_eq!(u32::from_be_bytes(length.try_into().unwrap()) as usize, message.len());
    let read = WatchEvent::decode(message).unwrap();
    assert_eq!(read.r#type.as_deref(), Some("ADDED"));
    assert_eq!(read.object.unwrap().raw.as_deref(), Some(body.as_slice()));
}

#[test]
fn what_is_no_object_of_the_schema_is_an_error() {
    let schema = Schema::builtin();
    for wrong in [
        json!({ "apiVersion": "v1", "kind": "Nothing" }),
        json!({ "apiVersion": "v1", "kind": "Pod", "spec": 1 }),
        json!({ "apiVersion": "v1", "kind": "Pod", "spec": { "containers": [{ "name": {} }] } }),
        json!({ "apiVersion": "v1", "kind": "Secret", "data": { "k": "*" } }),
    ] {
        assert!(object(schema, wrong.to_string().as_bytes()).is_err(), "{wrong}");
    }
    let status = Status::not_found("", "pods", "x").to_json().to_string();
    let back = decode(schema, &object(schema, status.as_bytes()).unwrap()).unwrap();
    assert_eq!(
        (&back["kind"], &back["code"], &back["reason"]),
        (&json!("Status"), &json!(404), &json!("NotFound"))
    );
}
