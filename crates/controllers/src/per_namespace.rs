//! Objects that every namespace has: the ServiceAccount `default`, and the ConfigMap with the API server's certificate
//! authority. Source: `k8s.io/kubernetes/pkg/controller/{serviceaccount,certificates/rootcacertpublisher}`.

use std::sync::Arc;
use std::time::Instant;

use api::{Key, Object, PatchType, Reason};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use reconcile::{Action, Informer, Kind, Queue, Reconcile, kinds, run_workers};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::claim::{ignore_missing, is_ending_namespace};
use crate::context::{Ctx, decode, ready};

/// What is kept in every namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// The ServiceAccount `default`.
    ServiceAccount,
    /// The ConfigMap `kube-root-ca.crt`.
    RootCa,
}

const DESCRIPTION: &str = "kubernetes.io/description";
/// What clients read there, to the letter. Source: `rootcacertpublisher.Description`.
const ROOT_CA_DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal \
                                   endpoints such as the internal service IP or kubernetes.default.svc. No other usage is \
                                   guaranteed across distributions of Kubernetes clusters.";

impl Kept {
    fn component(self) -> &'static str {
        match self {
            Self::ServiceAccount => "serviceaccount-controller",
            Self::RootCa => "root-ca-certificate-publisher-controller",
        }
    }

    fn queue(self) -> &'static str {
        match self {
            Self::ServiceAccount => "serviceaccount",
            Self::RootCa => "root_ca_cert_publisher",
        }
    }

    fn kind(self) -> Kind {
        match self {
            Self::ServiceAccount => kinds::SERVICE_ACCOUNTS,
            Self::RootCa => kinds::CONFIG_MAPS,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::ServiceAccount => "default",
            Self::RootCa => "kube-root-ca.crt",
        }
    }

    /// What the object must hold beside its name; a merge patch too.
    fn content(self, root_ca_pem: &str) -> Value {
        match self {
            Self::ServiceAccount => json!({}),
            Self::RootCa => json!({
                "metadata": { "annotations": { DESCRIPTION: ROOT_CA_DESCRIPTION } },
                "data": { "ca.crt": root_ca_pem },
            }),
        }
    }

    fn body(self, root_ca_pem: &str) -> Value {
        let kind = self.kind();
        let mut body = self.content(root_ca_pem);
        body["apiVersion"] = kind.api_version().into();
        body["kind"] = kind.kind.into();
        body["metadata"]["name"] = self.name().into();
        body
    }

    /// The patch that an existing object needs, if any.
    fn repair(self, held: &Value, root_ca_pem: &str) -> Option<Value> {
        let wanted = self.content(root_ca_pem);
        let described =
            held["metadata"]["annotations"][DESCRIPTION].as_str().is_some_and(|text| !text.is_empty());
        (self == Self::RootCa && (held["data"] != wanted["data"] || !described)).then(|| {
            // Keys that somebody added go: the whole map is ours.
            let mut patch = wanted;
            for key in held["data"].as_object().into_iter().flat_map(serde_json::Map::keys) {
                if key != "ca.crt" {
                    patch["data"][key] = Value::Null;
                }
            }
            patch
        })
    }
}

/// Keeps one object in every namespace.
pub struct PerNamespace {
    ctx: Ctx,
    kept: Kept,
}

impl PerNamespace {
    /// A controller over these handles.
    pub fn new(ctx: &Ctx, kept: Kept) -> Self {
        Self { ctx: ctx.named(kept.component()), kept }
    }
}

#[async_trait]
impl Component for PerNamespace {
    fn name(&self) -> &'static str {
        self.kept.component()
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let kept = self.kept;
        let namespaces = self.ctx.informers.get(kinds::NAMESPACES);
        let objects = self.ctx.informers.get(kept.kind());
        let queue: Queue<String> = self.ctx.queue(kept.queue());
        let (from_namespaces, from_objects) = (queue.clone(), queue.clone());
        let _registrations = [
            namespaces.on_change(move |change| from_namespaces.add(change.key.name.clone())),
            objects.on_change(move |change| {
                if change.key.name == kept.name() {
                    from_objects.add(change.key.namespace.clone());
                }
            }),
        ];
        if !ready(&ctx, &[&namespaces, &objects]).await {
            return Ok(());
        }
        if kept == Kept::RootCa {
            ctx.spawn(follow_authority(self.ctx.root_ca_pem.clone(), namespaces.clone(), queue.clone()));
        }
        let worker = Arc::new(Worker { ctx: self.ctx.clone(), kept, namespaces, objects });
        run_workers(&ctx, kept.component(), &queue, 1, worker).await;
        Ok(())
    }
}

/// A renewed authority concerns every namespace.
async fn follow_authority(
    mut root_ca_pem: watch::Receiver<Arc<str>>,
    namespaces: Informer,
    queue: Queue<String>,
) {
    while root_ca_pem.changed().await.is_ok() {
        namespaces.list().iter().for_each(|namespace| queue.add(namespace.meta().name.clone()));
    }
}

struct Worker {
    ctx: Ctx,
    kept: Kept,
    namespaces: Informer,
    objects: Informer,
}

#[async_trait]
impl Reconcile<String> for Worker {
    async fn reconcile(&self, namespace: &String) -> Result<Action, BoxError> {
        let begun = Instant::now();
        let done = self.sync(namespace).await;
        if let Some(figures) = self.ctx.figures.as_ref().filter(|_| self.kept == Kept::RootCa) {
            figures.root_ca.synced(&done, begun.elapsed());
        }
        done
    }
}

impl Worker {
    async fn sync(&self, namespace: &str) -> Result<Action, BoxError> {
        let alive = |held: &Arc<Object>| !held.meta().is_terminating();
        if self.namespaces.get(&Key::new("", namespace)).filter(alive).is_none() {
            return Ok(Action::Done);
        }
        let key = Key::new(namespace, self.kept.name());
        let resource = self.kept.kind().gvr();
        let ca = &*self.ctx.root_ca_pem.borrow().clone();
        let Some(held) = self.objects.get(&key) else {
            return match self.ctx.client.create(&resource, namespace, &self.kept.body(ca)).await {
                Ok(_) => Ok(Action::Done),
                // It was made meanwhile, or the namespace is on its way out.
                Err(status) if matches!(status.reason, Reason::AlreadyExists | Reason::NotFound) => {
                    Ok(Action::Done)
                }
                Err(status) if is_ending_namespace(&status) => Ok(Action::Done),
                Err(status) => Err(status.into()),
            };
        };
        if let Some(patch) = self.kept.repair(&decode(&held)?, ca) {
            ignore_missing(self.ctx.client.patch(&resource, &key, "", PatchType::Merge, &patch).await)?;
        }
        Ok(Action::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_authority_is_repaired_and_additions_go() {
        let kept = Kept::RootCa;
        let body = kept.body("pem");
        assert_eq!(body["metadata"]["name"], "kube-root-ca.crt");
        assert!(kept.repair(&body, "pem").is_none());
        let mut untold = body.clone();
        untold["metadata"]["annotations"] = json!({});
        let patch = kept.repair(&untold, "pem").unwrap();
        assert_eq!(patch["metadata"], json!({ "annotations": { DESCRIPTION: ROOT_CA_DESCRIPTION } }));
        let patch = kept.repair(&json!({ "data": { "ca.crt": "old", "x": "y" } }), "pem").unwrap();
        assert_eq!(patch["data"], json!({ "ca.crt": "pem", "x": null }));
        assert!(Kept::ServiceAccount.repair(&json!({}), "pem").is_none());
    }
}
