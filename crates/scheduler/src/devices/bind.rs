//! Writes what claims get and for whom, and waits until the devices are ready where they have to be.
//! Source: `DynamicResources.PreBind`, `bindClaim`, `Unreserve`, `PostFilter`.

use std::sync::Arc;
use std::time::Duration;

use api::{DeleteOptions, Key, PatchType, Reason, Status};
use jiff::Timestamp;
use reconcile::{EventType, kinds};
use serde_json::{Value, json};

use super::extended::{self, Mapping};
use super::of_pod::{Found, Special, is_ready};
use super::types::{Allocation, Claim};
use tokio_util::sync::CancellationToken;

use crate::Shared;
use crate::bind::{PUSHED_OUT, still_wanted};
use crate::storage::types::Version;
use crate::types::Pod;

/// What holds the deletion of a claim with devices back. Source: `resource.Finalizer`.
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// So often a write that met another version is tried. Source: `retry.DefaultRetry`.
const TRIES: usize = 5;

/// What the claims of a pod get: those that have devices already get none.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The claims; or why nothing was found.
    pub found: Result<Found, String>,
    /// How long devices may take to be ready.
    pub timeout: Duration,
}

/// Writes a plan, and waits until the devices are ready; or why they are not. `made` becomes the claim that is made, also
/// where it fails after that.
pub(crate) async fn carry_out(
    shared: &Shared,
    pod: &Pod,
    plan: &Plan,
    pushed_out: &CancellationToken,
    made: &mut Option<Version>,
) -> Result<(), String> {
    let found = plan.found.as_ref().map_err(Clone::clone)?;
    let claims = &found.gets;
    let told = {
        let devices = &mut shared.state.lock().cluster.devices;
        devices.waiting.follow(claims.iter().map(|(claim, _)| &claim.version.key))
    };
    let begun = shared.clock.now();
    let mut written = Vec::with_capacity(claims.len());
    for (claim, allocation) in claims {
        still_wanted(pushed_out)?;
        written.push(Arc::new(write(shared, pod, claim, allocation.as_deref()).await?));
    }
    if let Some(special) = &found.special {
        still_wanted(pushed_out)?;
        let claim = create(shared, pod, special).await?;
        *made = Some(claim.version.clone());
        shared.state.lock().cluster.devices.waiting.follow_too(&told, &claim.version.key);
        written.push(give(shared, pod, &claim, special).await?);
    }
    let waits = |claim: &&Arc<Claim>| {
        let devices = claim.allocation.iter().flat_map(|allocation| &allocation.devices);
        devices.into_iter().any(|device| !device.binding_conditions.is_empty())
    };
    written.retain(|claim| waits(&claim));
    if written.is_empty() {
        return Ok(());
    }
    let message = format!("waiting for binding conditions for device on node {}", pod.node);
    shared.event(pod, pod, EventType::Normal, "BindingConditionsPending", message);
    let deadline = deadline(begun, plan.timeout, &written);
    loop {
        if are_ready(shared, pod, &written)? {
            return Ok(());
        }
        tokio::select! {
            () = told.notified() => {}
            () = pushed_out.cancelled() => return Err(PUSHED_OUT.to_owned()),
            () = shared.clock.sleep_until(deadline) => return Err("device binding timeout".to_owned()),
        }
    }
}

/// Until when devices may become ready. They had been given to a claim before if this is another attempt, whose time does
/// not begin anew.
pub(super) fn deadline(begun: Timestamp, timeout: Duration, claims: &[Arc<Claim>]) -> Timestamp {
    let given = claims.iter().filter_map(|claim| claim.allocation.as_ref()?.since);
    let first = given.fold(begun, Timestamp::min);
    first.saturating_add(timeout).unwrap_or(Timestamp::MAX)
}

/// Whether all devices are ready, or why they will not be.
fn are_ready(shared: &Shared, pod: &Pod, written: &[Arc<Claim>]) -> Result<bool, String> {
    let cluster = &shared.state.lock().cluster;
    if !cluster.has_pod(&pod.uid) {
        return Err(format!("pod does not exist any more: pod {:?} not found", pod.key.name));
    }
    let devices = &cluster.devices;
    for claim in written {
        let key = &claim.version.key;
        let held = devices.claim(key).filter(|held| held.version.uid == claim.version.uid);
        let held = held.ok_or_else(|| format!("could not find ResourceClaim \"{key}\""))?;
        if held.version.revision < claim.version.revision {
            return Ok(false);
        }
        if held.allocation.is_none() {
            return Err(format!("claim {key} is not allocated any more"));
        }
        if !is_ready(held)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Writes what a claim gets, if it gets something, and that the pod uses it.
async fn write(
    shared: &Shared,
    pod: &Pod,
    planned: &Claim,
    allocation: Option<&Allocation>,
) -> Result<Claim, String> {
    let mut known: Option<Claim> = None;
    if planned.is_reserved_for(&pod.uid) {
        // An attempt before this one may have taken that back since, which need not have been told yet.
        known = Some(look(shared, &planned.version.key, "").await?);
    }
    let mut last = None;
    for _ in 0..TRIES {
        if let Some(known) = known.take_if(|known| known.is_reserved_for(&pod.uid) && allocation.is_none()) {
            return still_holds(planned, &known, false).map(|()| known);
        }
        let claim = known.as_ref().unwrap_or(planned);
        still_holds(planned, claim, allocation.is_some())?;
        match write_once(shared, pod, claim, allocation).await? {
            Ok(written) => {
                let key = &written.version.key;
                shared.state.lock().cluster.devices.written(key, written.version.revision);
                return Ok(written);
            }
            Err(conflict) => last = Some(conflict),
        }
        // Somebody has changed the claim meanwhile, which may mean nothing: it is looked at anew.
        known = Some(look(shared, &planned.version.key, " after conflict").await?);
    }
    Err(last.unwrap_or_default())
}

/// Makes the claim for a pod's extended resources.
async fn create(shared: &Shared, pod: &Pod, special: &Special) -> Result<Claim, String> {
    let (resource, body) = (kinds::RESOURCE_CLAIMS.gvr(), extended::body(pod, &special.claim));
    let created = shared.client.create(&resource, &pod.key.namespace, &body).await;
    if let Some(metrics) = &shared.metrics {
        metrics.claim_made(created.is_ok());
    }
    // Upstream has no name to tell either.
    let failed = |why: &str| format!("create claim for extended resources {}/: {why}", pod.key.namespace);
    let created = created.map_err(|status| failed(&status.message))?;
    Claim::decode(&created).map_err(|error| failed(&error.to_string()))
}

/// Gives a claim that was made for a pod's extended resources its devices, and says on the pod which requests of it its
/// containers' resources are.
async fn give(shared: &Shared, pod: &Pod, claim: &Claim, special: &Special) -> Result<Arc<Claim>, String> {
    let written = Arc::new(write(shared, pod, claim, Some(&special.allocation)).await?);
    shared.state.lock().cluster.devices.made(&written, &pod.uid);
    let mappings: Vec<Value> = special.mappings.iter().map(Mapping::to_json).collect();
    let said = json!({ "requestMappings": mappings, "resourceClaimName": written.version.key.name });
    let status = json!({ "extendedResourceClaimStatus": said });
    let patch = json!({ "metadata": { "uid": &*pod.uid }, "status": status });
    let kind = PatchType::StrategicMerge;
    let patched = shared.client.patch(&kinds::PODS.gvr(), &pod.key, "status", kind, &patch).await;
    patched.map_err(|status| {
        format!("update pod {} ExtendedResourceClaimStatus: {}", pod.key, status.message)
    })?;
    Ok(written)
}

/// Deletes a claim that was made for a pod's extended resources, with what it has. Source: `deleteClaim`.
pub(crate) async fn delete(shared: &Shared, claim: &Version) -> Result<(), String> {
    let (resource, key) = (kinds::RESOURCE_CLAIMS.gvr(), &claim.key);
    let unprotected = json!({ "metadata": {
        "uid": claim.uid, "$deleteFromPrimitiveList/finalizers": [FINALIZER] } });
    let gone = |status: &Status| matches!(status.reason, Reason::NotFound | Reason::Conflict);
    match shared.client.patch(&resource, key, "", PatchType::StrategicMerge, &unprotected).await {
        Err(status) if !gone(&status) => {
            return Err(format!("update resourceclaim {key}: {}", status.message));
        }
        _ => {}
    }
    let options = DeleteOptions { precondition_uid: Some(claim.uid.clone()), ..DeleteOptions::default() };
    match shared.client.delete(&resource, key, options).await {
        Err(status) if !gone(&status) => return Err(status.message),
        _ => {}
    }
    shared.state.lock().cluster.devices.deleted(key);
    Ok(())
}

/// A claim as the server has it.
async fn look(shared: &Shared, key: &Key, why: &str) -> Result<Claim, String> {
    let object = shared.client.get(&kinds::RESOURCE_CLAIMS.gvr(), key).await;
    let object = object.map_err(|status| format!("get updated claim {key}{why}: {}", status.message))?;
    Claim::decode(&object).map_err(|error| error.to_string())
}

/// Whether what was planned can be done with a claim as it is now, or why not. The devices that a claim gets were free
/// for the one that was planned for; and a claim that had some lets the pod go to this node only while it has these.
pub(super) fn still_holds(planned: &Claim, now: &Claim, gets: bool) -> Result<(), String> {
    let key = &planned.version.key;
    let meanwhile = if now.version.uid != planned.version.uid {
        "got replaced by another one"
    } else if now.terminating {
        "got deleted"
    } else if gets && now.allocation.is_some() {
        "got allocated elsewhere"
    } else if !gets && now.allocation.is_none() {
        "got deallocated"
    } else if !gets && now.allocation != planned.allocation {
        "got other devices"
    } else {
        return Ok(());
    };
    Err(format!("claim {key} {meanwhile} in the meantime"))
}

/// Writes it once, unless the claim has been changed: then gives what the server says of that.
async fn write_once(
    shared: &Shared,
    pod: &Pod,
    claim: &Claim,
    allocation: Option<&Allocation>,
) -> Result<Result<Claim, String>, String> {
    let key = &claim.version.key;
    let mut revision = claim.version.revision;
    if allocation.is_some() && !claim.finalizers.iter().any(|held| held == FINALIZER) {
        let finalizers: Vec<&str> = claim.finalizers.iter().map(String::as_str).chain([FINALIZER]).collect();
        let patch = json!({ "metadata": { "finalizers": finalizers } });
        match patched(shared, &claim.version, revision, "", patch).await {
            Ok(written) => revision = written.version.revision,
            Err(status) => return refused(format!("add finalizer to claim {key}"), &status),
        }
    }
    let user = json!({ "resource": "pods", "name": pod.key.name, "uid": &*pod.uid });
    let users: Vec<&Value> = claim.reserved.iter().chain([&user]).collect();
    let mut status = json!({ "reservedFor": users });
    if let Some(allocation) = allocation {
        let mut raw = allocation.raw.clone();
        raw["allocationTimestamp"] = reconcile::time::seconds(shared.clock.now()).into();
        status["allocation"] = raw;
    }
    match patched(shared, &claim.version, revision, "status", json!({ "status": status })).await {
        Ok(written) => Ok(Ok(written)),
        Err(status) => {
            let what = if allocation.is_some() { "allocation and reservation" } else { "reservation" };
            refused(format!("add {what} to claim {key}"), &status)
        }
    }
}

fn refused(what: String, status: &Status) -> Result<Result<Claim, String>, String> {
    let why = format!("{what}: {}", status.message);
    if status.reason == Reason::Conflict { Ok(Err(why)) } else { Err(why) }
}

/// Changes a claim, if it is still this version.
async fn patched(
    shared: &Shared,
    version: &Version,
    revision: i64,
    subresource: &str,
    mut patch: Value,
) -> Result<Claim, Status> {
    patch["metadata"]["uid"] = version.uid.as_str().into();
    patch["metadata"]["resourceVersion"] = revision.to_string().into();
    let resource = kinds::RESOURCE_CLAIMS.gvr();
    let written = shared.client.patch(&resource, &version.key, subresource, PatchType::Merge, &patch).await?;
    Claim::decode(&written).map_err(|error| Status::internal(error.to_string()))
}

/// A pod that goes to no node uses its claims no more. They keep their devices, which it may get after all; the one that
/// was made for its extended resources goes.
pub(crate) async fn release(shared: &Shared, pod: &Pod, made: Option<Version>) {
    if let Some(made) = made
        && let Err(error) = delete(shared, &made).await
    {
        // It is left over for the next attempt, which begins with deleting it.
        tracing::warn!(claim = %made.key, error, "the claim stays");
    }
    for name in pod.devices.iter().filter_map(|named| named.name()) {
        let key = Key::new(pod.key.namespace.as_str(), name);
        let resource = kinds::RESOURCE_CLAIMS.gvr();
        let held = match shared.client.get(&resource, &key).await {
            Ok(object) => Claim::decode(&object).ok().filter(|claim| claim.is_reserved_for(&pod.uid)),
            Err(error) => {
                tracing::debug!(claim = %key, %error, "claim not looked at");
                None
            }
        };
        let Some(held) = held else { continue };
        let gone = json!([{ "$patch": "delete", "uid": &*pod.uid }]);
        let patch = json!({ "metadata": { "uid": held.version.uid }, "status": { "reservedFor": gone } });
        let kind = PatchType::StrategicMerge;
        if let Err(error) = shared.client.patch(&resource, &key, "status", kind, &patch).await {
            // The pod is tried again, and comes here again.
            tracing::warn!(claim = %key, %error, "the claim stays reserved");
        }
    }
}

/// Takes its devices from a claim that nobody else uses, so that it gets others.
pub(crate) async fn deallocate(shared: &Shared, pod: &Pod, claim: &Version) -> Result<(), String> {
    let status = json!({ "allocation": null, "reservedFor": null, "devices": null });
    let patched = patched(shared, claim, claim.revision, "status", json!({ "status": status })).await;
    patched.map(drop).map_err(|status| {
        tracing::debug!(pod = %pod.key, claim = %claim.key, error = %status, "claim not deallocated");
        status.message
    })
}
