//! What is there from the start: namespaces, priority classes, the service range, Services `default/kubernetes` and
//! `kube-system/kube-dns`. Written through the pipeline like everything else; what exists is left alone or brought up
//! to date.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use api::connect::User;
use api::{
    Call, GroupVersionResource, ListOptions, PatchType, Reason, Request, Response, Status, WatchEvent,
    WatchEventKind, WriteOptions,
};
use base::BoxError;
use futures::StreamExt;
use futures::stream::{BoxStream, SelectAll};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::authn;
use crate::pipeline::Pipeline;

/// The field manager of what is written here.
const MANAGER: &str = "skiff-bootstrap";

/// The facts that the objects are made of.
#[derive(Debug, Clone)]
pub(crate) struct Bootstrap {
    pub(crate) addresses: Vec<IpAddr>,
    /// Where several servers share a store: the addresses of those that are there; empty as long as they are not known.
    pub(crate) servers: Option<BTreeSet<IpAddr>>,
    /// Held while objects are written, so that what is written last is what is known last.
    pub(crate) writing: Arc<tokio::sync::Mutex<()>>,
    pub(crate) port: u16,
    pub(crate) service_ranges: Vec<(IpAddr, u8)>,
    pub(crate) kubernetes: Option<IpAddr>,
    pub(crate) dns: Option<IpAddr>,
}

/// What a watch says next; `None` when it has ended.
type Said = Option<Result<Vec<WatchEvent>, Status>>;

/// The watches of all bootstrap objects.
pub(crate) struct Watched {
    events: SelectAll<BoxStream<'static, Said>>,
}

impl Watched {
    /// Returns when one of the objects has been deleted, or a watch ended: time to apply again.
    pub(crate) async fn disturbed(&mut self) -> Result<(), Status> {
        while let Some(Some(batch)) = self.events.next().await {
            if batch?.iter().any(|event| event.kind == WatchEventKind::Deleted) {
                break;
            }
        }
        Ok(())
    }
}

/// One object: resource, namespace, content.
struct Item {
    resource: GroupVersionResource,
    namespace: &'static str,
    object: Value,
    /// Whether an existing object is made to agree.
    keep_current: bool,
}

impl Bootstrap {
    /// Applies everything as it is known when its turn comes.
    pub(crate) async fn apply(state: &Mutex<Self>, pipeline: &Pipeline) -> Result<(), BoxError> {
        let writing = state.lock().writing.clone();
        let _turn = writing.lock().await;
        let present = state.lock().clone();
        let user = administrator();
        for item in present.items() {
            // The other servers' endpoints stay until they are known.
            if item.keep_current && present.servers.as_ref().is_some_and(BTreeSet::is_empty) {
                continue;
            }
            let name = item.object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let result = apply_item(pipeline, &user, item, &name).await;
            result.map_err(|status| format!("bootstrap object {name}: {status}"))?;
        }
        Ok(())
    }

    /// Watches every object of [`Bootstrap::apply`]. Begun before applying, it misses no deletion after.
    pub(crate) async fn watch(&self, pipeline: &Pipeline) -> Result<Watched, Status> {
        let mut streams = Vec::new();
        for item in self.items() {
            let name = item.object["metadata"]["name"].as_str().unwrap_or_default();
            let field_selector = format!("metadata.name={name}");
            let request = Request {
                resource: item.resource,
                namespace: item.namespace.to_owned(),
                name: String::new(),
                subresource: String::new(),
                call: Call::Watch(ListOptions { field_selector, ..ListOptions::default() }),
            };
            let Response::Watch(stream) = pipeline.call(&administrator(), request).await? else {
                return Err(Status::internal("a watch was answered with something else"));
            };
            streams.push(stream.map(Some).chain(futures::stream::iter([None])).boxed());
        }
        Ok(Watched { events: futures::stream::select_all(streams) })
    }

    fn items(&self) -> Vec<Item> {
        let mut items: Vec<Item> = ["default", "kube-system", "kube-public", "kube-node-lease"]
            .iter()
            .map(|name| cluster("", "v1", "namespaces", json!({ "metadata": { "name": name } })))
            .collect();
        for (name, value) in
            [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)]
        {
            let description = match name {
                "system-node-critical" => {
                    "Used for system critical pods that must not be moved from their current node."
                }
                _ => {
                    "Used for system critical pods that must run in the cluster, but can be moved to another node if \
                      necessary."
                }
            };
            items.push(cluster(
                "scheduling.k8s.io",
                "v1",
                "priorityclasses",
                json!({ "metadata": { "name": name }, "value": value, "description": description }),
            ));
        }
        let ranges: Vec<String> =
            self.service_ranges.iter().map(|(base, length)| format!("{base}/{length}")).collect();
        if !ranges.is_empty() {
            let object = json!({ "metadata": { "name": "kubernetes" }, "spec": { "cidrs": ranges } });
            items.push(cluster("networking.k8s.io", "v1", "servicecidrs", object));
        }
        items.extend(self.kubernetes.map(|address| kubernetes_service(address, self.port)));
        items.extend(self.kubernetes.into_iter().flat_map(|_| self.kubernetes_endpoints()));
        items.extend(self.dns.map(dns_service));
        items
    }

    /// This server's address among the endpoints of `default/kubernetes`.
    pub(crate) fn own_endpoint(&self) -> Option<IpAddr> {
        let reachable = |address: &&IpAddr| !address.is_loopback() && !address.is_unspecified();
        self.addresses.iter().find(reachable).or(self.addresses.first()).copied()
    }

    /// The servers' addresses as the endpoints of `default/kubernetes`.
    fn kubernetes_endpoints(&self) -> Vec<Item> {
        let Some(own) = self.own_endpoint() else { return Vec::new() };
        let others = self.servers.iter().flatten().filter(|address| address.is_ipv4() == own.is_ipv4());
        let addresses: BTreeSet<IpAddr> = others.copied().chain([own]).collect();
        let family = if own.is_ipv4() { "IPv4" } else { "IPv6" };
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let old_form: Vec<Value> = addresses.iter().map(|address| json!({ "ip": address })).collect();
        let new_form: Vec<Value> = addresses
            .iter()
            .map(|address| json!({ "addresses": [address], "conditions": { "ready": true } }))
            .collect();
        let metadata = json!({
            "name": "kubernetes", "labels": { "endpointslice.kubernetes.io/skip-mirror": "true" },
        });
        let endpoints = json!({
            "metadata": metadata,
            "subsets": [{
                "addresses": old_form,
                "ports": [{ "name": "https", "port": self.port, "protocol": "TCP" }],
            }],
        });
        let slice = json!({
            "metadata": { "name": "kubernetes", "labels": { "kubernetes.io/service-name": "kubernetes" } },
            "addressType": family,
            "endpoints": new_form,
            "ports": [{ "name": "https", "port": self.port, "protocol": "TCP" }],
        });
        let current = |resource: GroupVersionResource, object| Item {
            resource,
            namespace: "default",
            object,
            keep_current: true,
        };
        vec![
            current(GroupVersionResource::new("", "v1", "endpoints"), endpoints),
            current(GroupVersionResource::new("discovery.k8s.io", "v1", "endpointslices"), slice),
        ]
    }
}

fn cluster(group: &str, version: &str, resource: &str, object: Value) -> Item {
    let resource = GroupVersionResource::new(group, version, resource);
    Item { resource, namespace: "", object, keep_current: false }
}

fn kubernetes_service(address: IpAddr, port: u16) -> Item {
    let object = json!({
        "metadata": {
            "name": "kubernetes", "labels": { "component": "apiserver", "provider": "kubernetes" },
        },
        "spec": {
            "clusterIP": address.to_string(),
            "ports": [{ "name": "https", "port": 443, "protocol": "TCP", "targetPort": port }],
            "sessionAffinity": "None", "type": "ClusterIP",
        },
    });
    let resource = GroupVersionResource::new("", "v1", "services");
    Item { resource, namespace: "default", object, keep_current: false }
}

fn dns_service(address: IpAddr) -> Item {
    let object = json!({
        "metadata": {
            "name": "kube-dns",
            "labels": {
                "k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS",
            },
        },
        "spec": {
            "clusterIP": address.to_string(),
            "ports": [
                { "name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53 },
                { "name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53 },
            ],
            "type": "ClusterIP",
        },
    });
    let resource = GroupVersionResource::new("", "v1", "services");
    Item { resource, namespace: "kube-system", object, keep_current: false }
}

const SERVER: &str = "system:apiserver";

/// Whether that is the server itself, whose own addresses may be such as nobody else may name: a machine without a network
/// has none but loopback. Whoever can take this identity may do everything already.
pub(crate) fn is_server(user: &User) -> bool {
    user.name == SERVER && user.groups.iter().any(|group| group == authn::names::MASTERS)
}

/// The identity under which the server writes its own objects.
pub(crate) fn administrator() -> User {
    authn::authenticated(User {
        name: SERVER.into(),
        groups: vec![authn::names::MASTERS.into()],
        ..User::default()
    })
}

async fn apply_item(pipeline: &Pipeline, user: &User, item: Item, name: &str) -> Result<(), Status> {
    let bytes = serde_json::to_vec(&item.object).map_err(|error| Status::internal(error.to_string()))?;
    let options = || WriteOptions { field_manager: MANAGER.into(), ..WriteOptions::default() };
    let request = |name: &str, call: Call| Request {
        resource: item.resource.clone(),
        namespace: item.namespace.to_owned(),
        name: name.to_owned(),
        subresource: String::new(),
        call,
    };
    let create = Call::Create { body: bytes.clone().into(), options: options() };
    match pipeline.call(user, request("", create)).await {
        Err(status) if status.reason == Reason::AlreadyExists => {}
        other => return other.map(drop),
    }
    if !item.keep_current {
        return Ok(());
    }
    let call = Call::Patch { kind: PatchType::Merge, body: bytes.into(), options: options() };
    pipeline.call(user, request(name, call)).await.map(drop)
}
