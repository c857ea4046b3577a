//! What the mounting of volumes asks of the node and of the API.

use std::sync::Arc;

use api::Key;
use async_trait::async_trait;
use k8s_openapi::ByteString;
use reconcile::kinds;
use serde::Deserialize;

use super::driver::{Driver, Texts};
use super::in_use::is_attached;
use crate::deps::Deps;
use crate::pod::PodView;
use crate::sources::look_up;
use crate::tokens;
use crate::volumes::csi::{Around, Mounted, SecretRef, TokenRequest, tokens_of};

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
    use serde_json::json;

    use super::*;

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
