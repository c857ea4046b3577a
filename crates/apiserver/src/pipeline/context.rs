//! What strategies and admission see of the pipeline.

use std::sync::Arc;
use std::time::Duration;

use api::{Key, Object, Status};
use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::Value;
use store::RangeRequest;

use super::Pipeline;
use crate::admission::{Metrics, Unanswered, Users, World};
use crate::authz::{Attributes, Decision};
use crate::cache::{Changes, unavailable};
use crate::storage;
use crate::strategy::{Settings, View};
use crate::words::{Catalog, Kind};

impl View for Pipeline {
    fn peek(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Arc<Object>> {
        let kind = self.parts.catalog.storage_of(group, resource)?;
        self.cache(&kind).peek(namespace, name)
    }

    fn objects(&self, group: &str, resource: &str) -> Vec<Arc<Object>> {
        World::all(self, group, resource, "")
    }

    fn now(&self) -> jiff::Timestamp {
        self.parts.clock.now()
    }

    fn settings(&self) -> &Settings {
        &self.parts.settings
    }
}

#[async_trait]
impl World for Pipeline {
    async fn find(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Object>>, Status> {
        let Some(kind) = self.parts.catalog.storage_of(group, resource) else { return Ok(None) };
        match self.cache(&kind).peek(namespace, name) {
            Some(object) => Ok(Some(object)),
            None => self.read_stored(&kind, &Key::new(namespace, name)).await,
        }
    }

    fn all(&self, group: &str, resource: &str, namespace: &str) -> Vec<Arc<Object>> {
        let Some(kind) = self.parts.catalog.storage_of(group, resource) else { return Vec::new() };
        self.cache(&kind).list(namespace, 0, |_| true).items
    }

    async fn read(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Object>>, Status> {
        let Some(kind) = self.parts.catalog.storage_of(group, resource) else { return Ok(None) };
        self.read_stored(&kind, &Key::new(namespace, name)).await
    }

    async fn write_status(
        &self,
        group: &str,
        resource: &str,
        old: &Object,
        new: Value,
    ) -> Result<bool, Status> {
        self.put_status(group, resource, old, new).await
    }

    fn moment(&self) -> Timestamp {
        self.parts.clock.now()
    }

    fn changes(&self, group: &str, resource: &str, revision: i64) -> Changes {
        let Some(kind) = self.parts.catalog.storage_of(group, resource) else { return Changes::None };
        self.cache(&kind).changes(revision)
    }

    async fn decide(&self, attributes: &Attributes) -> Decision {
        Pipeline::decide(self, attributes).await
    }

    fn catalog(&self) -> Arc<Catalog> {
        self.parts.catalog.clone()
    }

    async fn convert(&self, object: Value, from: &Kind, to: &Kind) -> Result<Value, Status> {
        if to.custom.is_none() {
            return Ok(self.parts.catalog.convert(object, from, to));
        }
        let converted = super::convert::trees(&self.webhooks, to, vec![object]).await?;
        converted.into_iter().next().ok_or_else(|| Status::internal("a conversion gave nothing"))
    }

    async fn ask(
        &self,
        (client, users): (&Value, Option<&Users>),
        review: &Value,
        within: Duration,
    ) -> Result<Value, Unanswered> {
        let client = self.webhooks.client(client, users);
        let client =
            client.map_err(|error| Unanswered::new(500, format!("could not get REST client: {error}")))?;
        let answer = client.post(review, within, true).await;
        answer.map_err(|failed| failed.within("failed to call webhook"))
    }

    fn figures(&self) -> Option<&Metrics> {
        Some(&self.parts.admission_metrics)
    }
}

impl Pipeline {
    /// Reads one object from the store itself.
    pub(crate) async fn read_stored(&self, stored: &Kind, key: &Key) -> Result<Option<Arc<Object>>, Status> {
        let path = store_key(stored, key);
        let read = self.parts.store.range(RangeRequest::key(path)).await.map_err(unavailable)?;
        let Some(kv) = read.kvs.first() else { return Ok(None) };
        // What the cache has of this very revision need not be read again.
        let cache = self.caches.read().get(&storage::prefix(&stored.group, &stored.plural)).cloned();
        let cached = cache.and_then(|cache| cache.peek(&key.namespace, &key.name));
        if let Some(object) = cached.filter(|object| object.revision() == kv.mod_revision) {
            return Ok(Some(object));
        }
        Ok(storage::read(stored, &kv.key, &kv.value, kv.mod_revision).map(Arc::new))
    }
}

/// An object's key in the store.
pub(crate) fn store_key(stored: &Kind, key: &Key) -> String {
    storage::prefix(&stored.group, &stored.plural) + &storage::suffix(&key.namespace, &key.name)
}
