//! Claims to devices: pods that want their own or share one come, are scheduled, end and go, templates are missing, and
//! users delete claims under pods. A pod has one claim for each entry of its list, who uses a claim keeps it, and what
//! nobody uses is free again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::{DeleteOptions, Key, Object, PatchType, Status};
use controllers::devices::claims::ResourceClaims;
use controllers::garbage::GarbageCollector;
use reconcile::kinds::{PODS, RESOURCE_CLAIM_TEMPLATES as TEMPLATES, RESOURCE_CLAIMS as CLAIMS};
use serde_json::{Value, json};

use crate::kubelet::or_too_late;
use crate::witness::{Seen, Witness, value};
use crate::world::{NAMESPACE, World, seeds};

const STEPS: usize = 90;
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
const ENTRY: &str = "resource.kubernetes.io/pod-claim-name";
/// The entries of pods that want a claim of their own.
const OWN: [&str; 2] = ["gpu", "nic"];

async fn world(seed: u64) -> (World, Witness) {
    let world = World::new(seed, |ctx| {
        vec![Arc::new(ResourceClaims::new(ctx)), Arc::new(GarbageCollector::new(ctx))]
    })
    .await;
    let witness = Witness::of(&world, &[PODS, CLAIMS, TEMPLATES]).await;
    (world, witness)
}

fn requests() -> Value {
    json!({ "devices": { "requests": [{ "name": "r", "exactly": { "deviceClassName": "gpu" } }] } })
}

fn template() -> Value {
    json!({ "metadata": { "name": "t" }, "spec": { "spec": requests() } })
}

fn pod(chance: &mut fastrand::Rng, name: &str) -> Value {
    let mut listed: Vec<Value> = OWN[..chance.usize(0..=2)]
        .iter()
        .map(|entry| json!({ "name": entry, "resourceClaimTemplateName": "t" }))
        .collect();
    if chance.bool() {
        listed.push(json!({ "name": "given", "resourceClaimName": "shared" }));
    }
    let spec = json!({ "resourceClaims": listed, "containers": [{ "name": "c", "image": "c:1" }] });
    json!({ "metadata": { "name": name }, "spec": spec })
}

/// Whether a pod's containers may run, now or later. Source: `isPodDone`.
fn may_run(pod: &Object) -> bool {
    let phase = value(pod)["status"]["phase"].clone();
    let waits = pod.meta().is_terminating() && pod.node_name().is_none();
    phase != "Succeeded" && phase != "Failed" && !waits
}

fn users(claim: &Object) -> Vec<String> {
    let claim = value(claim);
    let users = claim["status"]["reservedFor"].as_array().cloned().unwrap_or_default();
    users.iter().map(|user| user["uid"].as_str().unwrap().to_owned()).collect()
}

fn is_allocated(claim: &Object) -> bool {
    value(claim)["status"]["allocation"].is_object()
}

fn entry(claim: &Object) -> Option<String> {
    claim.annotation(ENTRY)
}

/// The claims that a pod's status names, by entry.
fn told(pod: &Object) -> BTreeMap<String, String> {
    let pod = value(pod);
    let told = pod["status"]["resourceClaimStatuses"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    told.iter().map(|told| (text(&told["name"]), text(&told["resourceClaimName"]))).collect()
}

/// All claims of a pod, by entry of its list, as far as they are known.
fn claims_of(pod: &Object) -> Vec<Option<String>> {
    let told = told(pod);
    let held = value(pod);
    let listed = held["spec"]["resourceClaims"].as_array().cloned().unwrap_or_default();
    let name = |listed: &Value| match listed["resourceClaimName"].as_str() {
        Some(name) => Some(name.to_owned()),
        None => told.get(listed["name"].as_str().unwrap()).cloned(),
    };
    listed.iter().map(name).collect()
}

fn claim_named(witness: &Witness, name: &str) -> Option<Arc<Object>> {
    witness.all("ResourceClaim").find(|claim| claim.meta().name == name).cloned()
}

/// What always holds.
#[derive(Default)]
struct Always {
    /// Answers to creations that were lost: whoever asked cannot know that there is one.
    lost: usize,
    /// Claims beyond the one that each entry of a pod has.
    more: usize,
}

impl Always {
    fn look(&mut self, witness: &Witness, seen: &Seen) {
        match (seen.kind, &seen.before, &seen.after) {
            ("ResourceClaim", None, Some(claim)) => self.see_new(witness, claim),
            ("ResourceClaim", Some(before), Some(after)) => see_change(witness, before, after),
            _ => {}
        }
    }

    /// A pod has one claim for each entry of its list.
    fn see_new(&mut self, witness: &Witness, claim: &Object) {
        let Some(owner) = claim.meta().controller() else { return };
        let same = |other: &&Arc<Object>| entry(other) == entry(claim) && !other.meta().is_terminating();
        let count = witness.owned("ResourceClaim", &owner.uid).filter(same).count();
        self.more += usize::from(count > 1);
        assert!(self.more <= self.lost, "{} is one too many of {}", claim.key(), owner.name);
    }
}

/// Who uses a claim keeps it, and its devices stay as long as anybody does.
fn see_change(witness: &Witness, before: &Object, after: &Object) {
    let (was, is) = (users(before), users(after));
    let runs = |uid: &&String| witness.all("Pod").any(|pod| pod.meta().uid == **uid && may_run(pod));
    let cut: Vec<_> = was.iter().filter(|uid| !is.contains(uid)).filter(runs).collect();
    assert!(cut.is_empty(), "{} is taken from {cut:?}", after.key());
    if is_allocated(before) && !is_allocated(after) {
        assert!(is.is_empty(), "{} loses its devices under {is:?}", after.key());
    }
}

/// What the scheduler does for a pod: devices for one of its claims and a place in it, or at last a node.
async fn schedule(world: &mut World, witness: &Witness) {
    let waits = |pod: &&Arc<Object>| pod.node_name().is_none() && may_run(pod);
    let waiting: Vec<_> = witness.all("Pod").filter(waits).cloned().collect();
    let Some(pod) = world.chance.choice(&waiting).cloned() else { return };
    let Some(names) = claims_of(&pod).into_iter().collect::<Option<Vec<_>>>() else { return };
    for name in names {
        let Some(claim) = claim_named(witness, &name).filter(|claim| !claim.meta().is_terminating()) else {
            return;
        };
        if !users(&claim).contains(&pod.meta().uid) {
            // Now and then somebody else puts the pod on its node, and says nothing.
            if is_allocated(&claim) && world.chance.u8(0..4) == 0 {
                continue;
            }
            return allocate(world, &pod, &claim).await;
        }
    }
    world.bind(&pod).await;
}

async fn allocate(world: &World, pod: &Object, claim: &Object) {
    let version = json!({ "uid": claim.meta().uid, "resourceVersion": claim.revision().to_string() });
    let patch = |subresource: &'static str, patch: Value| {
        let (user, key) = (world.user.clone(), claim.key());
        async move { user.patch(&CLAIMS.gvr(), &key, subresource, PatchType::Merge, &patch).await }
    };
    if !claim.meta().finalizers.iter().any(|held| held == FINALIZER) {
        let mut metadata = version;
        metadata["finalizers"] = json!([FINALIZER]);
        return or_too_late(patch("", json!({ "metadata": metadata })).await);
    }
    let device = json!({ "request": "r", "driver": "a.example.com", "pool": "p", "device": "d" });
    let mut status = json!({});
    if !is_allocated(claim) {
        status["allocation"] = json!({ "devices": { "results": [device] } });
    }
    let mut reserved = value(claim)["status"]["reservedFor"].as_array().cloned().unwrap_or_default();
    reserved.push(json!({ "resource": "pods", "name": pod.meta().name, "uid": pod.meta().uid }));
    status["reservedFor"] = reserved.into();
    or_too_late(patch("status", json!({ "metadata": version, "status": status })).await);
}

fn or_there(done: Result<Arc<Object>, Status>) {
    if let Err(status) = done {
        assert_eq!(status.code, 409, "{status:?}");
    }
}

async fn delete_some(world: &mut World, witness: &Witness, kind: &reconcile::Kind) {
    let held: Vec<_> = witness.all(kind.kind).map(|held| held.key()).collect();
    let Some(key) = world.chance.choice(&held) else { return };
    or_too_late(world.user.delete(&kind.gvr(), key, DeleteOptions::default()).await);
}

/// Pods that are told to go do so.
async fn end_pods(world: &World, witness: &Witness) {
    let going: Vec<_> = witness.all("Pod").filter(|pod| pod.meta().is_terminating()).cloned().collect();
    for pod in going {
        world.end(&pod).await;
    }
}

async fn step(world: &mut World, witness: &Witness) {
    match world.chance.u8(0..32) {
        0..=5 => {
            let name = format!("p{}", world.chance.u8(0..5));
            let pod = pod(&mut world.chance, &name);
            or_there(world.user.create(&PODS.gvr(), NAMESPACE, &pod).await);
        }
        6 => or_there(world.user.create(&TEMPLATES.gvr(), NAMESPACE, &template()).await),
        7 if world.chance.u8(0..3) == 0 => delete_some(world, witness, &TEMPLATES).await,
        7 | 8 => {
            let shared = json!({ "metadata": { "name": "shared" }, "spec": requests() });
            or_there(world.user.create(&CLAIMS.gvr(), NAMESPACE, &shared).await);
        }
        9 => delete_some(world, witness, &CLAIMS).await,
        10 | 11 => delete_some(world, witness, &PODS).await,
        12 => {
            let bound = |pod: &&Arc<Object>| pod.node_name().is_some() && may_run(pod);
            let bound: Vec<_> = witness.all("Pod").filter(bound).cloned().collect();
            let Some(pod) = world.chance.choice(&bound).cloned() else { return };
            let end = *world.chance.choice(&["Succeeded", "Failed"]).unwrap();
            world.tell(&pod, end, false).await;
        }
        13 => end_pods(world, witness).await,
        14 => world.restart(),
        15 | 16 => {
            let seconds = world.chance.u64(1..200);
            world.pass(Duration::from_secs(seconds)).await;
        }
        17..=24 => schedule(world, witness).await,
        _ => world.settle().await,
    }
}

/// Every claim is used by pods that may run, or free and not about to go; every such pod has its claims.
fn check_end(witness: &Witness, lost: usize) {
    let mut more = 0;
    for claim in witness.all("ResourceClaim") {
        let runs = |uid: &String| witness.all("Pod").any(|pod| pod.meta().uid == *uid && may_run(pod));
        let users = users(claim);
        assert!(users.iter().all(runs), "{} is kept for a pod that is gone: {users:?}", claim.key());
        assert!(!claim.meta().is_terminating() || !users.is_empty(), "{} never goes", claim.key());
        if let Some(owner) = claim.meta().controller() {
            assert!(runs(&owner.uid), "{} outlives its pod", claim.key());
        }
    }
    for pod in witness.all("Pod").filter(|pod| may_run(pod) && !pod.meta().is_terminating()) {
        let names = claims_of(pod);
        for name in &names {
            let Some(name) = name else { panic!("{} lacks a claim: {:#}", pod.key(), value(pod)["status"]) };
            let claim = claim_named(witness, name);
            assert!(claim.is_some() || name == "shared", "{} of {} is gone", name, pod.key());
            let reserved = claim.is_none_or(|claim| {
                !is_allocated(&claim)
                    || claim.meta().is_terminating()
                    || users(&claim).contains(&pod.meta().uid)
            });
            assert!(reserved || pod.node_name().is_none(), "{} has no place in {name}", pod.key());
        }
        let own = names.iter().filter(|name| name.as_deref() != Some("shared")).count();
        more += witness.owned("ResourceClaim", &pod.meta().uid).count() - own;
    }
    assert!(more <= lost, "{more} claims too many");
}

async fn complete(world: &mut World, witness: &mut Witness, always: &mut Always) {
    for _ in 0..3 {
        world.pass(Duration::from_secs(1200)).await;
        witness.catch_up(|witness, seen| always.look(witness, seen)).await;
        end_pods(world, witness).await;
    }
    world.pass(Duration::from_secs(1200)).await;
    witness.catch_up(|witness, seen| always.look(witness, seen)).await;
    check_end(witness, always.lost);
    world.rest().await;
}

async fn story(seed: u64) {
    let (mut world, mut witness) = world(seed).await;
    let mut always = Always::default();
    world.faults.set(20);
    for _ in 0..STEPS {
        step(&mut world, &witness).await;
        always.lost = world.faults.lost_creations();
        witness.catch_up(|witness, seen| always.look(witness, seen)).await;
    }
    world.faults.set(0);
    or_there(world.user.create(&TEMPLATES.gvr(), NAMESPACE, &template()).await);
    complete(&mut world, &mut witness, &mut always).await;
    let pods: Vec<Key> = witness.all("Pod").map(|pod| pod.key()).collect();
    for pod in pods {
        or_too_late(world.user.delete(&PODS.gvr(), &pod, DeleteOptions::default()).await);
    }
    witness.catch_up(|_, _| {}).await;
    complete(&mut world, &mut witness, &mut always).await;
    let generated: Vec<_> = witness
        .all("ResourceClaim")
        .filter(|claim| entry(claim).is_some())
        .map(|claim| claim.key())
        .collect();
    assert!(generated.is_empty(), "left behind: {generated:?}");
    if let Some(shared) = claim_named(&witness, "shared") {
        assert!(users(&shared).is_empty());
    }
}

#[tokio::test]
async fn whatever_happens_claims_are_kept_for_those_who_use_them() {
    for seed in seeds(6) {
        println!("seed {seed}");
        story(seed).await;
    }
}
