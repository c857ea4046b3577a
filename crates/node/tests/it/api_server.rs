//! An API server in memory: objects by resource and key, watches, merge patches (lists of conditions by their type), and
//! graceful deletion of pods. It stands for the real one, whose own tests show that it keeps these promises.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{
    Call, DeleteOptions, List, ListOptions, Object, Reason, Request, Response, Status, WatchEvent,
    WatchEventKind, WatchStream,
};
use async_trait::async_trait;
use base::clock::{Clock, VirtualClock};
use client::Transport;
use futures::StreamExt as _;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{broadcast, watch};

/// Group and resource, namespace, name.
type Id = (String, String, String);

#[derive(Clone)]
struct Happened {
    resource: String,
    event: WatchEvent,
}

pub(crate) struct ApiServer {
    objects: Mutex<(i64, BTreeMap<Id, Value>)>,
    happened: broadcast::Sender<Happened>,
    clock: VirtualClock,
    /// Every status patch of a pod.
    pub(crate) patches: Mutex<Vec<Value>>,
    /// Whether tokens are refused.
    pub(crate) refuses_tokens: Mutex<bool>,
    /// Whether new pods are refused.
    pub(crate) refuses_pods: Mutex<bool>,
    /// Whether who asks for a token waits for ever.
    pub(crate) holds_tokens: Mutex<bool>,
    /// How many tokens were asked for.
    pub(crate) tokens_asked: Mutex<u32>,
    /// Counts every change of any fake.
    changed: watch::Sender<u64>,
}

fn object(value: &Value) -> Arc<Object> {
    Arc::new(Object::parse(value.to_string().into()).unwrap())
}

impl ApiServer {
    pub(crate) fn new(clock: VirtualClock, changed: watch::Sender<u64>) -> Arc<Self> {
        let (happened, _) = broadcast::channel(1 << 16);
        Arc::new(Self {
            objects: Mutex::new((1, BTreeMap::new())),
            happened,
            clock,
            patches: Mutex::default(),
            refuses_tokens: Mutex::default(),
            refuses_pods: Mutex::default(),
            holds_tokens: Mutex::default(),
            tokens_asked: Mutex::default(),
            changed,
        })
    }

    pub(crate) fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        self.objects.lock().1.get(&(resource.into(), namespace.into(), name.into())).cloned()
    }

    pub(crate) fn list(&self, resource: &str) -> Vec<Value> {
        let objects = self.objects.lock();
        objects.1.iter().filter(|(id, _)| id.0 == resource).map(|(_, value)| value.clone()).collect()
    }

    /// Stores an object, as a change that watchers see.
    pub(crate) fn put(&self, resource: &str, mut value: Value) -> Arc<Object> {
        let mut objects = self.objects.lock();
        objects.0 += 1;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let id =
            (resource.to_owned(), text(&value["metadata"]["namespace"]), text(&value["metadata"]["name"]));
        if value["metadata"]["uid"].is_null() {
            value["metadata"]["uid"] = base::id::uuid().into();
        }
        if value["metadata"]["creationTimestamp"].is_null() {
            value["metadata"]["creationTimestamp"] = reconcile::time::seconds(self.clock.now()).into();
        }
        value["metadata"]["resourceVersion"] = objects.0.to_string().into();
        let known = objects.1.insert(id, value.clone()).is_some();
        let kind = if known { WatchEventKind::Modified } else { WatchEventKind::Added };
        let object = object(&value);
        self.tell(resource, kind, object.clone());
        object
    }

    pub(crate) fn remove(&self, resource: &str, namespace: &str, name: &str) {
        let mut objects = self.objects.lock();
        objects.0 += 1;
        if let Some(mut value) = objects.1.remove(&(resource.into(), namespace.into(), name.into())) {
            value["metadata"]["resourceVersion"] = objects.0.to_string().into();
            self.tell(resource, WatchEventKind::Deleted, object(&value));
        }
    }

    fn tell(&self, resource: &str, kind: WatchEventKind, object: Arc<Object>) {
        let event = WatchEvent { kind, object, initial_events_end: false };
        let _ = self.happened.send(Happened { resource: resource.to_owned(), event });
        self.changed.send_modify(|count| *count += 1);
    }

    /// Deletes a pod as a user does: it goes when its node says so.
    pub(crate) fn delete_pod(&self, name: &str, grace_seconds: i64) {
        let mut pod = self.get("pods", "default", name).unwrap();
        let at = self.clock.now() + std::time::Duration::from_secs(grace_seconds.unsigned_abs());
        pod["metadata"]["deletionTimestamp"] = reconcile::time::seconds(at).into();
        pod["metadata"]["deletionGracePeriodSeconds"] = grace_seconds.into();
        self.put("pods", pod);
    }

    fn watch(&self, resource: &str, options: &ListOptions) -> WatchStream {
        let receiver = self.happened.subscribe();
        let selects = selector(options);
        let objects = self.objects.lock();
        let mut initial: Vec<WatchEvent> = objects
            .1
            .iter()
            .filter(|(id, _)| id.0 == resource)
            .map(|(_, value)| object(value))
            .filter(|object| selects(object))
            .map(|object| WatchEvent { kind: WatchEventKind::Added, object, initial_events_end: false })
            .collect();
        let bookmark = object(&json!({"metadata": {"resourceVersion": objects.0.to_string()}}));
        initial.push(WatchEvent {
            kind: WatchEventKind::Bookmark,
            object: bookmark,
            initial_events_end: true,
        });
        let resource = resource.to_owned();
        let later = futures::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.ok().map(|happened| (happened, receiver))
        })
        .filter_map(move |happened: Happened| {
            let wanted = happened.resource == resource && selects(&happened.event.object);
            std::future::ready(wanted.then(|| Ok(vec![happened.event])))
        });
        futures::stream::iter([Ok(initial)]).chain(later).boxed()
    }

    fn patch(&self, request: &Request, body: &Value) -> Result<Arc<Object>, Status> {
        let resource = &request.resource.resource;
        let mut value = self
            .get(resource, &request.namespace, &request.name)
            .ok_or_else(|| Status::not_found("", resource, &request.name))?;
        let uid = &body["metadata"]["uid"];
        if !uid.is_null() && *uid != value["metadata"]["uid"] {
            return Err(Status::conflict("", resource, &request.name, "uid differs"));
        }
        if resource == "pods" && request.subresource == "status" {
            self.patches.lock().push(body.clone());
        }
        merge(&mut value, body);
        Ok(self.put(resource, value))
    }

    fn delete(&self, request: &Request, options: &DeleteOptions) -> Result<Response, Status> {
        let resource = &request.resource.resource;
        let value = self
            .get(resource, &request.namespace, &request.name)
            .ok_or_else(|| Status::not_found("", resource, &request.name))?;
        let uid = value["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        if options.precondition_uid.as_ref().is_some_and(|wanted| *wanted != uid) {
            return Err(Status::conflict("", resource, &request.name, "uid differs"));
        }
        self.remove(resource, &request.namespace, &request.name);
        Ok(Response::Deleted { uid, object: None, warnings: Vec::new() })
    }

    /// Removes the ResourceSlices that a selector means.
    fn remove_slices(&self, selector: &str) {
        let terms: Vec<(&str, &str)> = selector.split(',').filter_map(|term| term.split_once('=')).collect();
        for slice in self.list("resourceslices") {
            let has = |(field, value): &(&str, &str)| {
                slice["spec"][field.strip_prefix("spec.").unwrap_or(field)] == *value
            };
            if terms.iter().all(has) {
                self.remove("resourceslices", "", slice["metadata"]["name"].as_str().unwrap_or_default());
            }
        }
    }

    fn create(&self, request: &Request, mut body: Value) -> Result<Arc<Object>, Status> {
        let resource = &request.resource.resource;
        if request.subresource == "token" {
            *self.tokens_asked.lock() += 1;
            self.changed.send_modify(|count| *count += 1);
            if *self.refuses_tokens.lock() {
                return Err(Status::internal("no tokens today"));
            }
            let expires = self.clock.now() + std::time::Duration::from_secs(3600);
            return Ok(object(&json!({"metadata": {}, "status": {
                "token": format!("token-of-{}-at-{}", request.name, self.clock.now()),
                "expirationTimestamp": reconcile::time::seconds(expires)}})));
        }
        if resource == "pods" && *self.refuses_pods.lock() {
            self.changed.send_modify(|count| *count += 1);
            return Err(Status::internal("no pods today"));
        }
        let mut name = body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        if let (true, Some(prefix)) = (name.is_empty(), body["metadata"]["generateName"].as_str()) {
            name = format!("{prefix}{}", &base::id::uuid()[..8]);
            body["metadata"]["name"] = name.clone().into();
        }
        if resource == "events" {
            // Their names hold the time, which stands still here.
            name = base::id::uuid();
            body["metadata"]["name"] = name.clone().into();
        }
        if self.get(resource, &request.namespace, &name).is_some() {
            return Err(Status::already_exists("", resource, &name));
        }
        body["metadata"]["namespace"] = request.namespace.clone().into();
        Ok(self.put(resource, body))
    }
}

fn selector(options: &ListOptions) -> impl Fn(&Object) -> bool + Send + 'static {
    let node = options.field_selector.strip_prefix("spec.nodeName=").map(str::to_owned);
    let name = options.field_selector.strip_prefix("metadata.name=").map(str::to_owned);
    move |object| {
        node.as_deref().is_none_or(|node| object.node_name() == Some(node))
            && name.as_deref().is_none_or(|name| object.meta().name == name)
    }
}

/// RFC 7386, but conditions are merged by their type and `$patch` elements are left out.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (name, value) in fields {
        match value {
            Value::Null => drop(target.as_object_mut().unwrap().remove(name)),
            Value::Array(items) if name == "conditions" => {
                let list = target[name].take();
                let mut list = list.as_array().cloned().unwrap_or_default();
                for item in items {
                    if item["$patch"] == "delete" {
                        list.retain(|known| known["type"] != item["type"]);
                        continue;
                    }
                    match list.iter_mut().find(|known| known["type"] == item["type"]) {
                        Some(known) => merge(known, item),
                        None => list.push(item.clone()),
                    }
                }
                target[name] = list.into();
            }
            Value::Array(items) => {
                let kept = items.iter().filter(|item| item["$patch"].is_null());
                target[name] = kept.cloned().collect();
            }
            value => merge(&mut target[name], value),
        }
    }
}

#[async_trait]
impl Transport for ApiServer {
    async fn send(&self, request: Request) -> Result<Response, Status> {
        let decode = |body: &bytes::Bytes| -> Value { serde_json::from_slice(body).unwrap() };
        let resource = request.resource.resource.clone();
        if request.subresource == "token" && *self.holds_tokens.lock() {
            *self.tokens_asked.lock() += 1;
            self.changed.send_modify(|count| *count += 1);
            return std::future::pending().await;
        }
        let object = match &request.call {
            Call::Get { .. } => self
                .get(&resource, &request.namespace, &request.name)
                .map(|value| object(&value))
                .ok_or_else(|| Status::not_found("", &resource, &request.name))?,
            Call::Create { body, .. } => self.create(&request, decode(body))?,
            Call::Patch { body, .. } => self.patch(&request, &decode(body))?,
            Call::Watch(options) => return Ok(Response::Watch(self.watch(&resource, options))),
            Call::List(_) => return Ok(Response::List(List::default())),
            Call::Delete(options) => return self.delete(&request, options),
            Call::DeleteCollection(_, options) => {
                self.remove_slices(&options.field_selector);
                return Ok(Response::List(List::default()));
            }
            other => return Err(Status::new(Reason::MethodNotAllowed, format!("{:?}", other.verb()))),
        };
        Ok(Response::Object { object, created: false, warnings: Vec::new() })
    }
}
