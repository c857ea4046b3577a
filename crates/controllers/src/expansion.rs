//! Claims that are to grow. Whoever made their volume does it (a driver's resizer, and the node); this controller says that
//! it is waited for. Source: `k8s.io/kubernetes/pkg/controller/volume/expand`, of which drivers took over the rest.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{Key, Object, ObjectMeta};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use reconcile::{Action, EventRecorder, EventType, Informer, Involved, Queue, Reconcile, kinds};
use serde::Deserialize;

use crate::amount::storage;
use crate::context::{Ctx, decode, work};

const NAME: &str = "persistentvolume-expander-controller";
/// The source of its events. Source: `NewExpandController`.
const EVENTS: &str = "volume_expand";

/// The controller.
pub struct Expansion {
    ctx: Ctx,
}

impl Expansion {
    /// A controller over these handles.
    pub fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.named(NAME) }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Claim {
    metadata: ObjectMeta,
    spec: ClaimSpec,
    status: ClaimStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClaimSpec {
    volume_name: String,
    resources: Requests,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Requests {
    requests: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ClaimStatus {
    phase: String,
    capacity: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Volume {
    spec: VolumeSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct VolumeSpec {
    claim_ref: Option<ClaimRef>,
    csi: Option<serde::de::IgnoredAny>,
}

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct ClaimRef {
    namespace: String,
    name: String,
    uid: String,
}

impl Claim {
    /// Whether it asks for more than it has.
    fn grows(&self) -> bool {
        self.status.phase == "Bound"
            && storage(&self.spec.resources.requests) > storage(&self.status.capacity)
    }

    /// Whether there is something new to say of it: it was not bound, or asks for more, or has got more. What else a resizer
    /// writes on its way is no news.
    fn is_news(&self, old: Option<&Self>) -> bool {
        let news = |old: &Self| {
            old.status.phase != "Bound"
                || storage(&self.spec.resources.requests) > storage(&old.spec.resources.requests)
                || storage(&self.status.capacity) > storage(&old.status.capacity)
        };
        self.grows() && old.is_none_or(news)
    }
}

struct Worker {
    claims: Informer,
    volumes: Informer,
    events: EventRecorder,
}

#[async_trait]
impl Component for Expansion {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let worker = Arc::new(Worker {
            claims: self.ctx.informers.get(kinds::PERSISTENT_VOLUME_CLAIMS),
            volumes: self.ctx.informers.get(kinds::PERSISTENT_VOLUMES),
            events: EventRecorder::new(self.ctx.client.clone(), self.ctx.clock.clone(), EVENTS, ""),
        });
        let queue: Queue<Key> = self.ctx.queue("volume_expand");
        let (keys, bound) = (queue.clone(), queue.clone());
        let _registrations = [
            worker.claims.on_change(move |change| {
                let read = |claim: &Option<Arc<Object>>| decode::<Claim>(claim.as_ref()?).ok();
                if read(&change.new).is_some_and(|claim| claim.is_news(read(&change.old).as_ref())) {
                    keys.add(change.key.clone());
                }
            }),
            // A claim whose volume comes late, or is bound late, is looked at then.
            worker.volumes.on_change(move |change| {
                let claim = |volume: &Option<Arc<Object>>| {
                    decode::<Volume>(volume.as_ref()?)
                        .ok()?
                        .spec
                        .claim_ref
                        .filter(|held| !held.uid.is_empty())
                };
                let held = claim(&change.new).filter(|held| claim(&change.old).as_ref() != Some(held));
                if let Some(held) = held {
                    bound.add(Key::new(held.namespace, held.name));
                }
            }),
        ];
        work(&ctx, NAME, &[&worker.claims, &worker.volumes], &queue, 1, &worker).await
    }
}

#[async_trait]
impl Reconcile<Key> for Worker {
    async fn reconcile(&self, key: &Key) -> Result<Action, BoxError> {
        let Some(object) = self.claims.get(key) else { return Ok(Action::Done) };
        let claim: Claim = decode(&object)?;
        let volume = self.volumes.get(&Key::new("", claim.spec.volume_name.as_str()));
        let Some(volume) = volume.filter(|_| claim.grows()) else { return Ok(Action::Done) };
        let volume: Volume = decode(&volume)?;
        if volume.spec.claim_ref.is_none_or(|held| held.uid != claim.metadata.uid) {
            return Ok(Action::Done);
        }
        // Of a driver's volume that is how it goes; of any other nobody may be there to do it.
        let kind = if volume.spec.csi.is_some() { EventType::Normal } else { EventType::Warning };
        let involved = Involved::object(&kinds::PERSISTENT_VOLUME_CLAIMS, &object);
        let message = "waiting for an external controller to expand this PVC";
        self.events.event(involved, kind, "ExternalExpanding", message);
        Ok(Action::Done)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bound_claims_grow_to_what_they_ask_for() {
        let grows = |phase: &str, asked: &str, held: &str| {
            let claim = json!({ "spec": { "resources": { "requests": { "storage": asked } } },
                "status": { "phase": phase, "capacity": { "storage": held } } });
            serde_json::from_value::<Claim>(claim).unwrap().grows()
        };
        assert!(grows("Bound", "2Gi", "1Gi"));
        assert!(
            !grows("Bound", "1Gi", "1024Mi")
                && !grows("Bound", "1Gi", "2Gi")
                && !grows("Pending", "2Gi", "1Gi")
        );
    }

    #[test]
    fn what_a_resizer_writes_on_its_way_is_no_news() {
        let claim = |phase: &str, asked: &str, held: &str| -> Claim {
            let claim = json!({ "spec": { "resources": { "requests": { "storage": asked } } },
                "status": { "phase": phase, "capacity": { "storage": held } } });
            serde_json::from_value(claim).unwrap()
        };
        let old = claim("Bound", "2Gi", "1Gi");
        assert!(old.is_news(None) && old.is_news(Some(&claim("Pending", "2Gi", "1Gi"))));
        assert!(!claim("Bound", "2Gi", "1Gi").is_news(Some(&old)));
        // It asks for still more, or has got a part.
        assert!(claim("Bound", "3Gi", "1Gi").is_news(Some(&old)));
        assert!(claim("Bound", "3Gi", "2Gi").is_news(Some(&claim("Bound", "3Gi", "1Gi"))));
        assert!(!claim("Bound", "2Gi", "2Gi").is_news(Some(&old)));
    }
}
