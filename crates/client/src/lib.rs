//! One transport to the API server, at the level of verb, resource, key, options and revisions. HTTPS and in-process
//! implement it; nothing above it knows which one it has.

pub mod discovery;
pub mod https;
pub mod kubeconfig;

use std::sync::Arc;

use api::{
    Call, DeleteOptions, GroupVersionResource, Key, List, ListOptions, Object, PatchType, Reason, Request,
    Response, Status, WatchStream, WriteOptions,
};
use async_trait::async_trait;
use bytes::Bytes;
use serde::Serialize;

/// Carries requests to the API server under one identity.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Sends one request.
    async fn send(&self, request: Request) -> Result<Response, Status>;
}

/// The verbs, spelled out over a [`Transport`]. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
    field_manager: Arc<str>,
}

impl Client {
    /// A client whose writes are recorded in managedFields under `field_manager`.
    pub fn new(transport: Arc<dyn Transport>, field_manager: &str) -> Self {
        Self { transport, field_manager: field_manager.into() }
    }

    /// The same connection under another field manager.
    #[must_use]
    pub fn for_manager(&self, field_manager: &str) -> Self {
        Self { transport: self.transport.clone(), field_manager: field_manager.into() }
    }

    /// Sends a request as it stands.
    pub async fn send(&self, request: Request) -> Result<Response, Status> {
        self.transport.send(request).await
    }

    fn write_options(&self) -> WriteOptions {
        WriteOptions { field_manager: self.field_manager.to_string(), ..WriteOptions::default() }
    }

    async fn object(
        &self,
        resource: &GroupVersionResource,
        key: &Key,
        subresource: &str,
        call: Call,
    ) -> Result<Arc<Object>, Status> {
        let request = Request {
            resource: resource.clone(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            subresource: subresource.to_owned(),
            call,
        };
        match self.transport.send(request).await? {
            Response::Object { object, .. } => Ok(object),
            _ => Err(unexpected("an object")),
        }
    }

    /// Reads one object, as new as the server has it.
    pub async fn get(&self, resource: &GroupVersionResource, key: &Key) -> Result<Arc<Object>, Status> {
        self.object(resource, key, "", Call::Get { resource_version: String::new() }).await
    }

    /// Creates an object in a namespace (empty: cluster scope).
    pub async fn create<T: Serialize + Sync>(
        &self,
        resource: &GroupVersionResource,
        namespace: &str,
        object: &T,
    ) -> Result<Arc<Object>, Status> {
        let call = Call::Create { body: encode(object)?, options: self.write_options() };
        self.object(resource, &Key::new(namespace, ""), "", call).await
    }

    /// Creates through a subresource of an object: `binding`, `eviction`, `token`.
    pub async fn create_subresource<T: Serialize + Sync>(
        &self,
        resource: &GroupVersionResource,
        key: &Key,
        subresource: &str,
        object: &T,
    ) -> Result<Arc<Object>, Status> {
        let call = Call::Create { body: encode(object)?, options: self.write_options() };
        self.object(resource, key, subresource, call).await
    }

    /// Replaces an object, or a subresource of it (`""`: the object itself).
    pub async fn update<T: Serialize + Sync>(
        &self,
        resource: &GroupVersionResource,
        key: &Key,
        subresource: &str,
        object: &T,
    ) -> Result<Arc<Object>, Status> {
        let call = Call::Update { body: encode(object)?, options: self.write_options() };
        self.object(resource, key, subresource, call).await
    }

    /// Patches an object, or a subresource of it (`""`: the object itself).
    pub async fn patch<T: Serialize + Sync>(
        &self,
        resource: &GroupVersionResource,
        key: &Key,
        subresource: &str,
        kind: PatchType,
        patch: &T,
    ) -> Result<Arc<Object>, Status> {
        let options = WriteOptions { force: kind == PatchType::Apply, ..self.write_options() };
        let call = Call::Patch { kind, body: encode(patch)?, options };
        self.object(resource, key, subresource, call).await
    }

    /// Deletes an object. What is gone already counts as deleted.
    pub async fn delete(
        &self,
        resource: &GroupVersionResource,
        key: &Key,
        options: DeleteOptions,
    ) -> Result<(), Status> {
        let request = Request {
            resource: resource.clone(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            subresource: String::new(),
            call: Call::Delete(options),
        };
        match self.transport.send(request).await {
            Err(status) if status.reason == Reason::NotFound => Ok(()),
            other => other.map(drop),
        }
    }

    /// Lists a namespace, or all (empty).
    pub async fn list(
        &self,
        resource: &GroupVersionResource,
        namespace: &str,
        options: ListOptions,
    ) -> Result<List, Status> {
        match self.collection(resource, namespace, Call::List(options)).await? {
            Response::List(list) => Ok(list),
            _ => Err(unexpected("a list")),
        }
    }

    /// Watches a namespace, or all (empty).
    pub async fn watch(
        &self,
        resource: &GroupVersionResource,
        namespace: &str,
        options: ListOptions,
    ) -> Result<WatchStream, Status> {
        match self.collection(resource, namespace, Call::Watch(options)).await? {
            Response::Watch(stream) => Ok(stream),
            _ => Err(unexpected("a watch")),
        }
    }

    async fn collection(
        &self,
        resource: &GroupVersionResource,
        namespace: &str,
        call: Call,
    ) -> Result<Response, Status> {
        let request = Request {
            resource: resource.clone(),
            namespace: namespace.to_owned(),
            name: String::new(),
            subresource: String::new(),
            call,
        };
        self.transport.send(request).await
    }
}

fn encode<T: Serialize>(value: &T) -> Result<Bytes, Status> {
    serde_json::to_vec(value)
        .map(Bytes::from)
        .map_err(|error| Status::internal(format!("encode request: {error}")))
}

fn unexpected(wanted: &str) -> Status {
    Status::internal(format!("the API server answered something else than {wanted}"))
}
