//! The claims of pods' ephemeral volumes: each is made from its template, and goes with its pod.
//! Source: `k8s.io/kubernetes/pkg/controller/volume/ephemeral`.

use std::sync::Arc;

use api::{Key, Object, ObjectMeta};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use reconcile::{Action, EventRecorder, EventType, Informer, Involved, Queue, Reconcile, kinds};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::context::{Ctx, controller_ref, decode, work};

const NAME: &str = "ephemeral-volume-controller";
/// The source of its events. Source: `NewController`.
const EVENTS: &str = "ephemeral_volume";
/// Source: `--concurrent-ephemeralvolume-syncs`.
const WORKERS: usize = 5;

/// The controller.
pub struct EphemeralVolumes {
    ctx: Ctx,
}

impl EphemeralVolumes {
    /// A controller over these handles.
    pub fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.named(NAME) }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Pod {
    metadata: ObjectMeta,
    spec: Spec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    volumes: Vec<Volume>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Volume {
    name: String,
    ephemeral: Option<Ephemeral>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Ephemeral {
    volume_claim_template: Template,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Template {
    metadata: Option<ObjectMeta>,
    /// Kept whole: its unknown fields go into the claim too.
    spec: Value,
}

/// The name of a volume's claim. Source: `ephemeral.VolumeClaimName`.
fn claim_name(pod: &ObjectMeta, volume: &str) -> String {
    format!("{}-{volume}", pod.name)
}

/// The claim that a pod's volume wants. Pure.
fn claim(pod: &ObjectMeta, name: &str, template: &Template) -> Value {
    let held = template.metadata.as_ref();
    json!({
        "apiVersion": "v1", "kind": kinds::PERSISTENT_VOLUME_CLAIMS.kind,
        "metadata": {
            "name": name, "namespace": pod.namespace,
            "labels": held.map(|meta| &meta.labels), "annotations": held.map(|meta| &meta.annotations),
            "ownerReferences": [controller_ref(&kinds::PODS, pod)],
        },
        "spec": template.spec,
    })
}

/// Why a claim of the right name is none of a pod. Source: `ephemeral.VolumeIsForPod`.
fn stranger(pod: &ObjectMeta, claim: &ObjectMeta) -> Option<String> {
    let owned = claim.controller().is_some_and(|owner| owner.uid == pod.uid);
    (!owned).then(|| {
        format!(
            "PVC {}/{} was not created for pod {}/{} (pod is not owner)",
            claim.namespace, claim.name, pod.namespace, pod.name
        )
    })
}

struct Worker {
    ctx: Ctx,
    pods: Informer,
    claims: Informer,
    events: EventRecorder,
}

#[async_trait]
impl Component for EphemeralVolumes {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let worker = Arc::new(Worker {
            ctx: self.ctx.clone(),
            pods: self.ctx.informers.get(kinds::PODS),
            claims: self.ctx.informers.get(kinds::PERSISTENT_VOLUME_CLAIMS),
            events: EventRecorder::new(self.ctx.client.clone(), self.ctx.clock.clone(), EVENTS, ""),
        });
        let queue: Queue<Key> = self.ctx.queue("ephemeral_volume");
        let keys = queue.clone();
        let _pods = worker.pods.on_change(move |change| {
            // What a pod mounts never changes.
            if change.old.is_none() && change.new.as_deref().is_some_and(mentions) {
                keys.add(change.key.clone());
            }
        });
        let (keys, pods) = (queue.clone(), worker.pods.clone());
        let _claims = worker.claims.on_change(move |change| {
            let Some(gone) = change.old.as_ref().filter(|_| change.new.is_none()) else { return };
            // One that somebody deletes is made again as long as its pod is there, …
            if let Some(pod) = gone.meta().controller().and_then(|owner| pods.by_uid(&owner.uid)) {
                keys.add(pod.key());
            }
            // … and one that was in the way is so no more.
            for pod in pods.in_namespace(&change.key.namespace) {
                if change.key.name.starts_with(&pod.meta().name) && mentions(&pod) {
                    keys.add(pod.key());
                }
            }
        });
        work(&ctx, NAME, &[&worker.pods, &worker.claims], &queue, WORKERS, &worker).await
    }
}

/// A glance at the bytes: few pods have such volumes.
fn mentions(pod: &Object) -> bool {
    std::str::from_utf8(pod.bytes()).is_ok_and(|text| text.contains("\"volumeClaimTemplate\""))
}

impl Worker {
    async fn make(&self, pod: &ObjectMeta, volume: &str, template: &Template) -> Result<(), String> {
        let name = claim_name(pod, volume);
        let key = Key::new(pod.namespace.as_str(), name.as_str());
        if let Some(held) = self.claims.get(&key) {
            return stranger(pod, held.meta()).map_or(Ok(()), Err);
        }
        let (resource, body) = (self.claims.resource(), claim(pod, &name, template));
        let made = self.ctx.client.create(resource, &pod.namespace, &body).await;
        self.ctx.figures.iter().for_each(|figures| figures.volumes.made_for_pod(made.is_ok()));
        made.map(drop).map_err(|status| format!("create PVC {name}: {status}"))
    }
}

#[async_trait]
impl Reconcile<Key> for Worker {
    async fn reconcile(&self, key: &Key) -> Result<Action, BoxError> {
        let Some(object) = self.pods.get(key) else { return Ok(Action::Done) };
        let pod: Pod = decode(&object)?;
        if pod.metadata.is_terminating() {
            return Ok(Action::Done);
        }
        for volume in &pod.spec.volumes {
            let Some(ephemeral) = &volume.ephemeral else { continue };
            let made = self.make(&pod.metadata, &volume.name, &ephemeral.volume_claim_template).await;
            if let Err(why) = made {
                let message = format!("ephemeral volume {}: {why}", volume.name);
                let involved = Involved::object(&kinds::PODS, &object);
                self.events.event(involved, EventType::Warning, "FailedBinding", message.as_str());
                return Err(format!("pod {key}, {message}").into());
            }
        }
        Ok(Action::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_made_from_their_template_and_belong_to_their_pod() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": "p", "namespace": "ns", "uid": "u" },
            "spec": { "volumes": [{ "name": "tmp", "ephemeral": { "volumeClaimTemplate": {
                "metadata": { "labels": { "a": "b" } }, "spec": { "future": 1 } } } }] },
        }))
        .unwrap();
        let volume = &pod.spec.volumes[0];
        let name = claim_name(&pod.metadata, &volume.name);
        let template = &volume.ephemeral.as_ref().unwrap().volume_claim_template;
        let made = claim(&pod.metadata, &name, template);
        assert_eq!(
            (&made["metadata"]["name"], &made["metadata"]["labels"]["a"], &made["spec"]["future"]),
            (&json!("p-tmp"), &json!("b"), &json!(1))
        );
        let meta: ObjectMeta = serde_json::from_value(made["metadata"].clone()).unwrap();
        assert_eq!(stranger(&pod.metadata, &meta), None);
        let other = ObjectMeta { uid: "v".into(), ..pod.metadata.clone() };
        let why = "PVC ns/p-tmp was not created for pod ns/p (pod is not owner)";
        assert_eq!(stranger(&other, &meta).as_deref(), Some(why));
    }
}
