//! Claims that are to grow. Whoever made their volume does it (a driver's resizer, and the node); this controller says that
//! it is waited for. Source: `k8s.io/kubernetes/pkg/controller/volume/expand`, of which drivers took over the rest.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::quantity::Quantity;
use api::{Key, Object, ObjectMeta};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use reconcile::{Action, EventRecorder, EventType, Informer, Involved, Queue, Reconcile, kinds, run_workers};
use serde::Deserialize;

use crate::context::{Ctx, decode};

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

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ClaimRef {
    uid: String,
}

fn size(amounts: &BTreeMap<String, String>) -> Quantity {
    amounts.get("storage").and_then(|text| text.parse().ok()).unwrap_or(Quantity::ZERO)
}

impl Claim {
    /// Whether it asks for more than it has.
    fn grows(&self) -> bool {
        self.status.phase == "Bound" && size(&self.spec.resources.requests) > size(&self.status.capacity)
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
        let keys = queue.clone();
        let _registration = worker.claims.on_change(move |change| {
            let grows = |object: &Arc<Object>| decode::<Claim>(object).is_ok_and(|claim| claim.grows());
            // What a resizer writes on its way is no news.
            let began = change.new.as_ref().is_some_and(grows) && !change.old.as_ref().is_some_and(grows);
            if began {
                keys.add(change.key.clone());
            }
        });
        tokio::select! {
            () = ctx.cancelled() => return Ok(()),
            () = async { tokio::join!(worker.claims.synced(), worker.volumes.synced()); } => {}
        }
        ctx.ready();
        run_workers(&ctx, NAME, &queue, 1, worker).await;
        Ok(())
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
}
