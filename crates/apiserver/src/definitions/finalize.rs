//! The end of a definition: its objects are deleted, and when the last is gone the definition may go too.
//! Source: `apiextensions-apiserver/pkg/controller/finalizer`.

use std::collections::BTreeSet;
use std::sync::Weak;
use std::time::Duration;

use api::{Call, DeleteOptions, GroupVersionResource, Key, ListOptions, Request, Status};
use base::backoff::Policy;
use serde_json::Value;

use super::{FINALIZER, GROUP, PLURAL, identity, names, write};
use crate::pipeline::Pipeline;
use crate::strategy::View as _;
use crate::tree;

/// Delays between attempts while something fails.
const RETRY: Policy = Policy { first: Duration::from_millis(100), max: Duration::from_secs(10) };

/// Deletes all objects of a definition's rows, waits until they are gone, and lets go of the definition.
pub(super) async fn finish(pipeline: Weak<Pipeline>, name: String, rows: Vec<GroupVersionResource>) {
    let mut failures = 0;
    while let Some(present) = pipeline.upgrade() {
        let result = match emptied(&present, &rows).await {
            Ok(()) => released(&present, &name).await,
            Err(status) => Err(status),
        };
        drop(present);
        match result {
            Ok(()) => return,
            Err(status) if status.code == 404 => return,
            Err(status) => {
                failures += 1;
                tracing::warn!(definition = name, %status, "the end of a CustomResourceDefinition is tried again");
                tokio::time::sleep(RETRY.delay(failures)).await;
            }
        }
    }
}

/// Deletes the objects of a row that is served, best of the one that needs no conversion, and waits until none is left: finalizers may hold them.
async fn emptied(pipeline: &Pipeline, rows: &[GroupVersionResource]) -> Result<(), Status> {
    let served =
        rows.iter().filter_map(|row| pipeline.catalog().find(row).filter(|row| !row.verbs.is_empty()));
    let Some(row) = served.min_by_key(|row| !row.is_storage_version()) else { return Ok(()) };
    let mut told = 0;
    loop {
        let Some(stored) = pipeline.catalog().storage_of(&row.group, &row.plural) else { return Ok(()) };
        let cache = pipeline.cache(&stored);
        let mut changes = cache.revisions();
        cache.make_current().await?;
        let left = cache.len();
        if left == 0 && !cache.is_ended() {
            return Ok(());
        }
        if left != told {
            let objects = cache.list("", 0, |_| true).items;
            let namespaces: BTreeSet<_> = objects.iter().map(|object| &object.meta().namespace).collect();
            for namespace in namespaces {
                let call = Call::DeleteCollection(DeleteOptions::default(), ListOptions::default());
                let request = Request {
                    resource: row.resource(),
                    namespace: namespace.clone(),
                    name: String::new(),
                    subresource: String::new(),
                    call,
                };
                pipeline.call(&identity(), request).await?;
            }
            told = left;
            continue;
        }
        // A cache that has ended has a successor by now.
        if !cache.is_ended() {
            let _ = changes.changed().await;
        }
    }
}

/// Takes the finalizer from a definition.
async fn released(pipeline: &Pipeline, name: &str) -> Result<(), Status> {
    let kind =
        pipeline.catalog().storage_of(GROUP, PLURAL).ok_or_else(|| Status::internal("no definitions"))?;
    let Some(live) = pipeline.read_stored(&kind, &Key::new("", name)).await? else { return Ok(()) };
    let mut crd: Value = live.decode().map_err(|error| Status::internal(error.to_string()))?;
    let now = crate::rfc3339(pipeline.now());
    let message = "removed all instances";
    let status = tree::member(&mut crd, "status");
    names::set(status, "Terminating", false, "InstanceDeletionCompleted", message, &now);
    let written = write(pipeline, &crd, "status").await?;
    let mut crd: Value = written.decode().map_err(|error| Status::internal(error.to_string()))?;
    let left: Vec<Value> = tree::items(&crd, &["metadata", "finalizers"])
        .iter()
        .filter(|held| *held != FINALIZER)
        .cloned()
        .collect();
    tree::metadata(&mut crd).insert("finalizers".into(), left.into());
    write(pipeline, &crd, "").await.map(|_| ())
}
