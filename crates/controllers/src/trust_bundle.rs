//! The authority of the API server's serving certificate as a ClusterTrustBundle, which pods mount by its signer's name.
//! Source: `k8s.io/kubernetes/pkg/controller/certificates/clustertrustbundlepublisher`.

use std::sync::Arc;
use std::time::Instant;

use api::{DeleteOptions, Key, Object, PatchType, Reason};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use reconcile::{Action, Informer, Queue, Reconcile, kinds, run_workers};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::claim::{ignore_gone, ignore_missing};
use crate::context::{Ctx, decode, ready};

const NAME: &str = "kube-apiserver-serving-clustertrustbundle-publisher-controller";
const SIGNER: &str = "kubernetes.io/kube-apiserver-serving";

/// The controller.
pub struct TrustBundle {
    ctx: Ctx,
}

impl TrustBundle {
    /// A controller over these handles.
    pub fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.named(NAME) }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Bundle {
    spec: Spec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    signer_name: String,
    trust_bundle: String,
}

/// Another authority has another name, so that no pod sees a bundle change under it. Source: `constructBundleName`.
fn bundle_name(root_ca_pem: &str) -> String {
    let digest = Sha256::digest(root_ca_pem);
    let hash: String = digest.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    format!("{}:{hash}", SIGNER.replace('/', ":"))
}

struct Worker {
    ctx: Ctx,
    bundles: Informer,
}

#[async_trait]
impl Component for TrustBundle {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let bundles = self.ctx.informers.get(kinds::CLUSTER_TRUST_BUNDLES);
        let queue: Queue<()> = self.ctx.queue("ca_cert_publisher_cluster_trust_bundles");
        let keys = queue.clone();
        let _registration = bundles.on_change(move |change| {
            if change.latest().is_some_and(|bundle| is_ours(bundle)) {
                keys.add(());
            }
        });
        if !ready(&ctx, &[&bundles]).await {
            return Ok(());
        }
        queue.add(());
        let (mut renewals, keys) = (self.ctx.root_ca_pem.clone(), queue.clone());
        ctx.spawn(async move {
            while renewals.changed().await.is_ok() {
                keys.add(());
            }
        });
        let worker = Arc::new(Worker { ctx: self.ctx.clone(), bundles });
        run_workers(&ctx, NAME, &queue, 1, worker).await;
        Ok(())
    }
}

fn is_ours(bundle: &Object) -> bool {
    decode::<Bundle>(bundle).is_ok_and(|bundle| bundle.spec.signer_name == SIGNER)
}

#[async_trait]
impl Reconcile<()> for Worker {
    async fn reconcile(&self, (): &()) -> Result<Action, BoxError> {
        let begun = Instant::now();
        let done = self.sync().await;
        if let Some(figures) = &self.ctx.figures {
            figures.trust_bundle.synced(&done, begun.elapsed());
        }
        done
    }
}

impl Worker {
    async fn sync(&self) -> Result<Action, BoxError> {
        let pem = self.ctx.root_ca_pem.borrow().clone();
        if pem.is_empty() {
            return Ok(Action::Done);
        }
        let name = bundle_name(&pem);
        self.publish(&name, &pem).await?;
        // Those of former authorities.
        for former in self.bundles.list().iter().filter(|held| held.meta().name != name && is_ours(held)) {
            let options = DeleteOptions {
                precondition_uid: Some(former.meta().uid.clone()),
                ..DeleteOptions::default()
            };
            ignore_gone(self.ctx.client.delete(self.bundles.resource(), &former.key(), options).await)?;
        }
        Ok(Action::Done)
    }

    async fn publish(&self, name: &str, pem: &str) -> Result<(), BoxError> {
        let (resource, key) = (self.bundles.resource(), Key::new("", name));
        let spec = json!({ "signerName": SIGNER, "trustBundle": pem });
        let Some(held) = self.bundles.get(&key) else {
            let kind = kinds::CLUSTER_TRUST_BUNDLES;
            let body = json!({
                "apiVersion": kind.api_version(), "kind": kind.kind, "metadata": { "name": name }, "spec": spec,
            });
            return match self.ctx.client.create(resource, "", &body).await {
                Ok(_) => Ok(()),
                // The same is refused again: another authority brings this back.
                Err(status) if status.reason == Reason::Invalid => {
                    tracing::warn!(bundle = name, error = %status, "the authority cannot be published");
                    Ok(())
                }
                // One that is there already comes into the cache, and this back.
                Err(status) => Err(status.into()),
            };
        };
        if decode::<Bundle>(&held)?.spec.trust_bundle != pem {
            let patch = json!({ "metadata": { "uid": held.meta().uid }, "spec": spec });
            ignore_missing(self.ctx.client.patch(resource, &key, "", PatchType::Merge, &patch).await)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_named_by_its_signer_and_content() {
        // sha256sum of "pem".
        assert_eq!(bundle_name("pem"), "kubernetes.io:kube-apiserver-serving:f0aeace912cf19dc1c6fffd4");
    }
}
