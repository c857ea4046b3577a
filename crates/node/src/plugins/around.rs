//! What the mounting of volumes asks of the node and of the API.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::{Key, PatchType};
use async_trait::async_trait;
use k8s_openapi::ByteString;
use reconcile::{EventType, kinds};
use serde::Deserialize;
use serde_json::{Value, json};

use super::driver::{Driver, Texts};
use super::in_use::is_attached;
use crate::deps::Deps;
use crate::pod::PodView;
use crate::sources::look_up;
use crate::tokens;
use crate::volumes::csi::{Around, Growth, Mounted, SecretRef, TokenRequest, tokens_of};

#[derive(Default, Deserialize)]
#[serde(default)]
struct SecretView {
    data: std::collections::BTreeMap<String, ByteString>,
}

/// A projection of `storage.k8s.io/v1.VolumeAttachment`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct AttachmentView {
    metadata: api::ObjectMeta,
    status: AttachmentStatus,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct AttachmentStatus {
    attached: bool,
    attachment_metadata: Texts,
    attach_error: Option<AttachError>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AttachError {
    message: String,
}

/// How a claim is told that its file system has a size: nobody waits for that any more. Pure. Source:
/// `MarkFSResizeFinished`.
fn told_of_growth(claim: &Value, size: &str) -> Value {
    let waits = ["FileSystemResizePending", "Resizing", "NodeResizeError"];
    let conditions = claim["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let kept: Vec<Value> = conditions
        .into_iter()
        .filter(|condition| !waits.iter().any(|kind| condition["type"] == *kind))
        .collect();
    json!({
        "metadata": { "resourceVersion": claim["metadata"]["resourceVersion"] },
        "status": {
            "capacity": { "storage": size }, "conditions": kept,
            "allocatedResourceStatuses": { "storage": null },
        },
    })
}

/// What an attachment says, once it is there. Source: `verifyAttachmentStatus`.
fn attached(view: AttachmentView) -> Result<Texts, String> {
    if view.metadata.is_terminating() {
        return Err("volume attachment is being deleted".to_owned());
    }
    match view.status.attach_error {
        _ if view.status.attached => Ok(view.status.attachment_metadata),
        Some(error) => Err(error.message),
        None => Err("the volume is not attached yet".to_owned()),
    }
}

#[async_trait]
impl Around for Deps {
    fn driver(&self, name: &str) -> Option<Arc<Driver>> {
        self.plugins.driver(name)
    }

    fn told(&self, path: &Path) -> PathBuf {
        let within = path.strip_prefix(&self.config.data_dir);
        within.map_or_else(|_| path.to_owned(), |within| self.config.shown_as.join(within))
    }

    fn mounted(&self) -> &Mounted {
        &self.plugins.mounted
    }

    async fn secret(&self, secret: &SecretRef) -> Result<Texts, String> {
        let key = Key::new(&*secret.namespace, &*secret.name);
        let found = look_up(self, &kinds::SECRETS, &key).await.map_err(|status| status.to_string())?;
        let found = found.ok_or_else(|| format!("secrets \"{}\" not found", secret.name))?;
        // Never the decoder's own message: it may quote what is secret.
        let view: SecretView = found.decode().map_err(|_| "the secret is not readable".to_owned())?;
        let texts = view.data.into_iter().map(|(key, value)| {
            let text = String::from_utf8(value.0);
            text.map(|text| (key.clone(), text)).map_err(|_| format!("its key {key} is no text"))
        });
        texts.collect()
    }

    async fn tokens(&self, pod: &PodView, requests: &[TokenRequest]) -> Result<String, String> {
        let mut answers = Vec::new();
        for request in requests {
            let seconds = request.expiration_seconds.unwrap_or(3600);
            let token = tokens::for_driver(self, pod, &request.audience, seconds).await;
            let (token, expires) = token.map_err(|status| format!("failed to fetch token: {status}"))?;
            answers.push((request.audience.clone(), token, expires));
        }
        Ok(tokens_of(&answers))
    }

    async fn in_use(&self, name: &str) -> Result<(), String> {
        self.plugins.in_use.add(name).await
    }

    async fn grown(&self, pod: &PodView, growth: &Growth, volume: &str) -> Result<(), String> {
        let claims = kinds::PERSISTENT_VOLUME_CLAIMS.gvr();
        let key = Key::new(&*pod.metadata.namespace, &*growth.claim);
        let failed = |status: api::Status| format!("failed to tell claim {key} of its size: {status}");
        let claim = self.client.get(&claims, &key).await.map_err(failed)?;
        let claim: Value = claim.decode().map_err(|error| error.to_string())?;
        let patch = told_of_growth(&claim, &growth.size);
        self.client.patch(&claims, &key, "status", PatchType::Merge, &patch).await.map_err(failed)?;
        let message = format!("MountVolume.NodeExpandVolume succeeded for volume \"{volume}\"");
        self.event(pod, None, EventType::Normal, "FileSystemResizeSuccessful", message);
        Ok(())
    }

    fn not_grown(&self, pod: &PodView, message: String) {
        self.event(pod, None, EventType::Warning, "FileSystemResizeFailed", message);
    }

    fn not_in_use(&self, name: &str) {
        self.plugins.in_use.remove(name);
    }

    async fn attached(&self, name: &str, object: &str) -> Result<Texts, String> {
        let mut news = self.caches.nodes.subscribe();
        while !is_attached(self, name) {
            news.changed().await;
        }
        let failed =
            |status: api::Status| format!("failed to get the volume's attachment {object}: {status}");
        let gvr = kinds::VOLUME_ATTACHMENTS.gvr();
        let found = self.client.get(&gvr, &Key::new("", object)).await.map_err(failed)?;
        attached(found.decode().map_err(|error| error.to_string())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_that_has_grown_waits_for_nothing() {
        let claim = json!({ "metadata": { "resourceVersion": "7" }, "status": { "conditions": [
            { "type": "FileSystemResizePending" }, { "type": "ModifyVolumeError" }] } });
        let patch = told_of_growth(&claim, "5Gi");
        assert_eq!(patch["status"]["conditions"], json!([{ "type": "ModifyVolumeError" }]));
        assert_eq!(patch["status"]["capacity"]["storage"], "5Gi");
        assert!(patch["status"]["allocatedResourceStatuses"]["storage"].is_null());
        assert_eq!(patch["metadata"]["resourceVersion"], "7");
    }

    #[test]
    fn only_what_is_attached_is_mounted() {
        let of = |meta: serde_json::Value, status: serde_json::Value| {
            attached(serde_json::from_value(json!({ "metadata": meta, "status": status })).unwrap())
        };
        let said = json!({ "attached": true, "attachmentMetadata": { "device": "vdb" } });
        assert_eq!(of(json!({}), said.clone()).unwrap()["device"], "vdb");
        let going = json!({ "deletionTimestamp": "2026-01-01T00:00:00Z" });
        assert!(of(going, said).unwrap_err().contains("being deleted"));
        let failed = json!({ "attached": false, "attachError": { "message": "no such disk" } });
        assert_eq!(of(json!({}), failed).unwrap_err(), "no such disk");
        assert!(of(json!({}), json!({})).unwrap_err().contains("not attached yet"));
    }
}
