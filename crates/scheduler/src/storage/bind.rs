//! Carries out a plan for a pod's claims, and waits until they are bound: the scheduler says which volume is kept for which
//! claim and for which node a volume is to be made; controller and provisioner do the rest. Source: `BindPodVolumes`.

use std::sync::Arc;

use api::{Key, PatchType, Status};
use reconcile::kinds;
use serde_json::json;

use super::Storage;
use super::matching::Plan;
use super::types::{Claim, SELECTED_NODE, Volume};
use tokio_util::sync::CancellationToken;

use crate::Shared;
use crate::bind::{PUSHED_OUT, still_wanted};
use crate::cluster::Cluster;
use crate::types::Pod;

/// This was bound by a controller, which so may unbind it. Source: `volume.AnnBoundByController`.
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";

/// A plan with the versions in which what it says is written.
struct Written<'a> {
    plan: &'a Plan,
    volumes: Vec<i64>,
    claims: Vec<i64>,
}

/// Writes a plan, and waits until the claims are bound; or why they are not.
pub(crate) async fn carry_out(
    shared: &Shared,
    pod: &Pod,
    plan: &Plan,
    pushed_out: &CancellationToken,
) -> Result<(), String> {
    let keys = plan.bindings.iter().map(|(_, claim)| claim).chain(&plan.provisions);
    let told = {
        let storage = &mut shared.state.lock().cluster.storage;
        storage.waiting.follow(keys.map(|claim| &claim.version.key))
    };
    let deadline = shared.clock.now().saturating_add(plan.timeout).unwrap_or(jiff::Timestamp::MAX);
    let written = write(shared, plan, pushed_out).await?;
    loop {
        if written.is_done(&shared.state.lock().cluster, pod).map_err(waiting)? {
            return Ok(());
        }
        tokio::select! {
            () = told.notified() => {}
            () = pushed_out.cancelled() => return Err(PUSHED_OUT.to_owned()),
            () = shared.clock.sleep_until(deadline) => {
                return Err(waiting("context deadline exceeded".to_owned()));
            }
        }
    }
}

fn waiting(why: String) -> String {
    format!("binding volumes: {why}")
}

/// What is written is kept account of; a pod that is pushed out begins with no further claim.
async fn write<'a>(
    shared: &Shared,
    plan: &'a Plan,
    pushed_out: &CancellationToken,
) -> Result<Written<'a>, String> {
    let mut written = Written { plan, volumes: Vec::new(), claims: Vec::new() };
    for (volume, claim) in &plan.bindings {
        still_wanted(pushed_out)?;
        let revision = keep(shared, volume, claim).await.map_err(|status| status.to_string())?;
        shared.state.lock().cluster.storage.volume_written(&volume.version.key.name, revision);
        written.volumes.push(revision);
    }
    for claim in &plan.provisions {
        still_wanted(pushed_out)?;
        let revision = choose(shared, claim, &plan.node).await.map_err(|status| status.to_string())?;
        shared.state.lock().cluster.storage.claim_written(&claim.version.key, revision);
        written.claims.push(revision);
    }
    Ok(written)
}

/// Says on a volume that a claim is to have it, if nobody has changed the volume; gives the version that says so.
/// Source: `volume.GetBindVolumeToClaim`.
async fn keep(shared: &Shared, volume: &Arc<Volume>, claim: &Claim) -> Result<i64, Status> {
    let held = volume.claim.as_ref();
    if held.is_some_and(|held| held.uid == claim.version.uid) {
        return Ok(volume.version.revision);
    }
    let (version, key) = (&claim.version, &claim.version.key);
    let mut patch = json!({
        "metadata": { "uid": volume.version.uid, "resourceVersion": volume.version.revision.to_string() },
        "spec": { "claimRef": {
            "kind": kinds::PERSISTENT_VOLUME_CLAIMS.kind, "apiVersion": kinds::PERSISTENT_VOLUME_CLAIMS.api_version(),
            "namespace": key.namespace, "name": key.name, "uid": version.uid,
            "resourceVersion": version.revision.to_string(),
        } },
    });
    // What somebody kept for the claim is not the controller's to give away.
    if held.is_none() {
        patch["metadata"]["annotations"] = json!({ BOUND_BY_CONTROLLER: "yes" });
    }
    let resource = kinds::PERSISTENT_VOLUMES.gvr();
    let written = shared.client.patch(&resource, &volume.version.key, "", PatchType::Merge, &patch).await?;
    Ok(written.revision())
}

/// Says on a claim for which node its volume is to be made; gives the version that says so.
async fn choose(shared: &Shared, claim: &Claim, node: &str) -> Result<i64, Status> {
    if claim.node.as_deref() == Some(node) {
        return Ok(claim.version.revision);
    }
    let patch = json!({ "metadata": {
        "uid": claim.version.uid, "resourceVersion": claim.version.revision.to_string(),
        "annotations": { SELECTED_NODE: node },
    } });
    let resource = kinds::PERSISTENT_VOLUME_CLAIMS.gvr();
    let written = shared.client.patch(&resource, &claim.version.key, "", PatchType::Merge, &patch).await?;
    Ok(written.revision())
}

impl Written<'_> {
    /// Whether all claims are bound, or why they will not be. Source: `checkBindings`.
    fn is_done(&self, cluster: &Cluster, pod: &Pod) -> Result<bool, String> {
        let storage = &cluster.storage;
        if !cluster.has_pod(&pod.uid) {
            return Err(format!("pod does not exist any more: pod {:?} not found", pod.key.name));
        }
        let node = &self.plan.node;
        let Some(state) = cluster.named(node) else {
            return Err(format!("failed to get node {node:?}: node {node:?} not found"));
        };
        let reached = |volume: &Volume| {
            let name = &volume.version.key.name;
            let refused = format!(
                "pv {name:?} node affinity doesn't match node {node:?}: no matching NodeSelectorTerms"
            );
            if volume.reaches(state.node()) { Ok(()) } else { Err(refused) }
        };
        let mut done = true;
        for ((volume, claim), written) in self.plan.bindings.iter().zip(&self.volumes) {
            let name = &volume.version.key.name;
            let Some(held) = storage.volume(name) else {
                return Err(format!("failed to check binding: could not find v1.PersistentVolume {name:?}"));
            };
            let current = current(storage, &claim.version.key, "binding")?;
            if held.version.revision < *written {
                done = false;
                continue;
            }
            reached(held)?;
            if held.claim.as_ref().is_none_or(|held| held.uid.is_empty()) {
                return Err(format!("ClaimRef got reset for pv {name:?}"));
            }
            done &= current.bound;
        }
        for (claim, written) in self.plan.provisions.iter().zip(&self.claims) {
            let held = current(storage, &claim.version.key, "provisioning pvc")?;
            if held.version.revision < *written {
                done = false;
                continue;
            }
            if held.node.as_ref() != Some(node) {
                // Whoever could not make a volume takes the choice back.
                return Err(format!("provisioning failed for PVC {:?}", claim.version.key.name));
            }
            match storage.volume(&held.volume) {
                Some(volume) => {
                    reached(volume)?;
                    done &= held.bound;
                }
                // Its news may come later than the claim's.
                None => done = false,
            }
        }
        Ok(done)
    }
}

fn current<'a>(storage: &'a Storage, key: &Key, what: &str) -> Result<&'a Arc<Claim>, String> {
    storage
        .claim(key)
        .ok_or_else(|| format!("failed to check {what}: could not find v1.PersistentVolumeClaim \"{key}\""))
}
