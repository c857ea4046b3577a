//! Answers CertificateSigningRequests: approves what a node may have, signs what is approved (for nodes and for clients of
//! the API server), and removes what is old. Source: `k8s.io/kubernetes/pkg/controller/certificates` (approver, signer, cleaner).

mod plan;

use std::sync::Arc;

use api::{DeleteOptions, GroupVersionResource, Key, Object, PatchType};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reconcile::ports::{CertificateAuthority, CertificateSubject};
use reconcile::{Action, Informer, Reconcile, kinds, run_workers};
use serde_json::{Value, json};

use crate::claim::{ignore_gone, ignore_missing};
use crate::context::{Ctx, decode, ready};
use crate::node_lifecycle::Node;

use plan::recognized;
pub use plan::{CLIENT, NODE_CLIENT, NODE_SERVING, Plan, Request, plan};

const NAME: &str = "certificates-controller";

/// The controller.
pub struct Certificates {
    ctx: Ctx,
    authority: Arc<dyn CertificateAuthority>,
}

impl Certificates {
    /// A controller over these handles, which signs with `authority`.
    pub fn new(ctx: &Ctx, authority: Arc<dyn CertificateAuthority>) -> Self {
        Self { ctx: ctx.named(NAME), authority }
    }
}

#[async_trait]
impl Component for Certificates {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let worker = Arc::new(Worker {
            ctx: self.ctx.clone(),
            authority: self.authority.clone(),
            requests: self.ctx.informers.get(kinds::CERTIFICATE_SIGNING_REQUESTS),
            nodes: self.ctx.informers.get(kinds::NODES),
        });
        let queue = self.ctx.queue("certificate");
        let listener = queue.clone();
        if !ready(&ctx, &[&worker.requests, &worker.nodes]).await {
            return Ok(());
        }
        let _registration = worker.requests.on_change(move |change| listener.add(change.key.clone()));
        run_workers(&ctx, NAME, &queue, 1, worker).await;
        Ok(())
    }
}

struct Worker {
    ctx: Ctx,
    authority: Arc<dyn CertificateAuthority>,
    requests: Informer,
    nodes: Informer,
}

impl Worker {
    fn read(&self, request: &Request) -> Result<(String, CertificateSubject), String> {
        let pem = STANDARD.decode(&request.spec.request).map_err(|error| error.to_string())?;
        let pem = String::from_utf8(pem).map_err(|error| error.to_string())?;
        let asked = self.authority.read(&pem).map_err(|error| base::error::chain(&*error))?;
        Ok((pem, asked))
    }

    fn is_ready_node(&self, name: &str) -> bool {
        let node = self.nodes.get(&Key::new("", name)).and_then(|object| object.decode::<Node>().ok());
        node.is_some_and(|node| node.condition("Ready").is_some_and(|ready| ready.status == "True"))
    }

    /// Whether roles allow whoever asked to have such a certificate. Source: `sarApprover.authorize`.
    async fn may_create(&self, request: &Request, subresource: &str) -> Result<bool, BoxError> {
        let spec = &request.spec;
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {
                "user": spec.username, "uid": spec.uid, "groups": spec.groups, "extra": spec.extra,
                "resourceAttributes": {
                    "group": "certificates.k8s.io", "resource": "certificatesigningrequests", "verb": "create",
                    "subresource": subresource, "version": "*",
                },
            },
        });
        let resource = GroupVersionResource::new("authorization.k8s.io", "v1", "subjectaccessreviews");
        let answer: Value = decode(&*self.ctx.client.create(&resource, "", &review).await?)?;
        Ok(answer["status"]["allowed"] == true)
    }

    /// Adds a condition; through `approval` where it is a decision, through `status` where it is an outcome.
    async fn conclude(
        &self,
        object: &Object,
        subresource: &str,
        (kind, reason, message): (&str, &str, &str),
    ) -> Result<(), BoxError> {
        let now = reconcile::time::seconds(self.ctx.clock.now());
        let patch = json!({
            "metadata": { "uid": object.meta().uid },
            "status": { "conditions": [{
                "type": kind, "status": "True", "reason": reason, "message": message,
                "lastUpdateTime": now, "lastTransitionTime": now,
            }] },
        });
        self.patch(object, subresource, &patch).await
    }

    async fn patch(&self, object: &Object, subresource: &str, patch: &Value) -> Result<(), BoxError> {
        let gvr = kinds::CERTIFICATE_SIGNING_REQUESTS.gvr();
        let kind = PatchType::StrategicMerge;
        let written =
            ignore_missing(self.ctx.client.patch(&gvr, &object.key(), subresource, kind, patch).await)?;
        if let Some(written) = written {
            self.ctx.caught_up(&self.requests, written.revision()).await;
        }
        Ok(())
    }
}

#[async_trait]
impl Reconcile<Key> for Worker {
    async fn reconcile(&self, key: &Key) -> Result<Action, BoxError> {
        let Some(object) = self.requests.get(key) else { return Ok(Action::Done) };
        let request: Request = decode(&object)?;
        let read = self.read(&request);
        let asked = read.as_ref().map(|(_, asked)| asked.clone()).map_err(Clone::clone);
        match plan(&request, &asked, |name| self.is_ready_node(name), self.ctx.clock.now()) {
            Plan::Wait(left) => {
                let Some((subresource, message)) = recognized(&request, &asked) else {
                    return Ok(Action::After(left));
                };
                if !self.may_create(&request, subresource).await? {
                    // Roles may come: as upstream, it is asked again.
                    let why = "the subject access review was not approved";
                    return Err(format!("{key} is recognized as {subresource}, but {why}").into());
                }
                self.conclude(&object, "approval", ("Approved", "AutoApproved", message)).await?;
            }
            Plan::Remove => {
                let gvr = kinds::CERTIFICATE_SIGNING_REQUESTS.gvr();
                let options = DeleteOptions {
                    precondition_uid: Some(object.meta().uid.clone()),
                    ..DeleteOptions::default()
                };
                ignore_gone(self.ctx.client.delete(&gvr, key, options).await)?;
            }
            Plan::Approve(message) => {
                self.conclude(&object, "approval", ("Approved", "AutoApproved", message)).await?;
            }
            Plan::Deny(reason, message) => {
                self.conclude(&object, "approval", ("Denied", reason, &message)).await?;
            }
            Plan::Fail(message) => {
                self.conclude(&object, "status", ("Failed", "SignerValidationFailure", &message)).await?;
            }
            Plan::Sign(good_for, life) => {
                let (pem, asked) = read?;
                let certificate = self.authority.sign(&pem, &asked, good_for, life)?;
                let patch = json!({
                    "metadata": { "uid": object.meta().uid },
                    "status": { "certificate": STANDARD.encode(certificate) },
                });
                self.patch(&object, "status", &patch).await?;
            }
        }
        Ok(Action::Done)
    }
}
