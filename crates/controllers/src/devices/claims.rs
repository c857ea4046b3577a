//! Claims to devices: those of pods are made from their templates, and what no pod uses any more is free again.
//! Source: `k8s.io/kubernetes/pkg/controller/resourceclaim`.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use api::{DeleteOptions, Key, Object, ObjectMeta, PatchType, Reason};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use parking_lot::Mutex;
use reconcile::{
    Action, Change, EventRecorder, EventType, Informer, Involved, Queue, Reconcile, kinds, run_workers,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::links::Links;
use super::{
    Claim, Consumer, FINALIZER, Named, POD_CLAIM_NAME, Pod, PodClaim, claim_key, has_claims, stranger,
};
use crate::claim::{ignore_gone, ignore_missing, is_ending_namespace};
use crate::context::{Ctx, controller_ref, decode, ready};
use crate::figures::made::{Counts, count_one};

const NAME: &str = "resource-claim-controller";
/// The source of its events. Source: `Controller.Run`.
const EVENTS: &str = "resource_claim";
/// Under which name it writes the status of pods. Source: `fieldManager`.
const STATUS_MANAGER: &str = "ResourceClaimController";
/// Source: `--concurrent-resource-claim-syncs`.
const WORKERS: usize = 50;
/// The annotation of a claim that the scheduler made for extended resources. Source: `ExtendedResourceClaimAnnotation`.
const EXTENDED: &str = "resource.kubernetes.io/extended-resource-claim";
/// Longest base of a generated name: it leaves room for what the server adds. Source: `handleClaim`.
const BASE_MAX: usize = 57;

/// The controller.
pub struct ResourceClaims {
    ctx: Ctx,
}

impl ResourceClaims {
    /// A controller over these handles.
    pub fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.named(NAME) }
    }
}

/// What is looked at.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Item {
    /// A pod that lacks something of its claims.
    Pod(Key),
    /// A claim that somebody may use no more.
    Claim(Key),
}

#[async_trait]
impl Component for ResourceClaims {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let worker = Arc::new(Worker {
            ctx: self.ctx.clone(),
            pods: self.ctx.informers.get(kinds::PODS),
            claims: self.ctx.informers.get(kinds::RESOURCE_CLAIMS),
            templates: self.ctx.informers.get(kinds::RESOURCE_CLAIM_TEMPLATES),
            events: EventRecorder::new(self.ctx.client.clone(), self.ctx.clock.clone(), EVENTS, ""),
            users: Mutex::default(),
            queue: self.ctx.queue("resource_claim"),
        });
        let (by_pods, by_claims, by_templates) = (worker.clone(), worker.clone(), worker.clone());
        let _registrations = [
            worker.pods.on_change(move |change| by_pods.pod_changed(change)),
            worker.claims.on_change(move |change| by_claims.claim_changed(change)),
            worker.templates.on_change(move |change| {
                if change.old.is_none() {
                    by_templates.look_at_users(&Thing::Template(change.key.clone()));
                }
            }),
        ];
        if !ready(&ctx, &[&worker.pods, &worker.claims, &worker.templates]).await {
            return Ok(());
        }
        let claims = worker.claims.clone();
        let tell = move || counted(&claims.list());
        let _told = self.ctx.figures.as_ref().map(|figures| figures.claims.all.by(tell));
        run_workers(&ctx, NAME, &worker.queue, WORKERS, worker.clone()).await;
        Ok(())
    }
}

/// Whether a claim gives its pods what is otherwise for administrators. Source: `needsAdminAccess`.
fn is_for_admins(spec: &Value) -> bool {
    let requests = spec["devices"]["requests"].as_array().into_iter().flatten();
    requests.into_iter().any(|request| request["exactly"]["adminAccess"] == true)
}

/// Claims by whether they are allocated, are for administrators, and where they come from. Source: `customCollector`.
fn counted(claims: &[Arc<Object>]) -> Counts {
    let mut counts = Counts::new();
    for claim in claims.iter().filter_map(|claim| decode::<Value>(claim).ok()) {
        let said = |holds: bool| if holds { "true" } else { "false" };
        let annotations = &claim["metadata"]["annotations"];
        let source = if annotations[EXTENDED].is_string() {
            "extended_resource"
        } else if annotations[POD_CLAIM_NAME].is_string() {
            "resource_claim_template"
        } else {
            ""
        };
        let allocated = said(!claim["status"]["allocation"].is_null());
        count_one(&mut counts, [allocated, said(is_for_admins(&claim["spec"])), source]);
    }
    counts
}

/// What pods name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    /// A claim.
    Claim(Key),
    /// A template from which a claim is still to be made.
    Template(Key),
}

/// What a pod lacks.
#[derive(Debug, PartialEq, Eq)]
enum Step<'p> {
    /// A claim for an entry of its list, from a template.
    Make(&'p PodClaim, &'p str),
    /// A place among those for whom a claim is reserved: nobody has scheduled it who would have done so.
    Reserve(&'p str),
}

/// What a pod lacks, as far as the claims that are known tell. Pure. Source: `podNeedsWork`.
fn steps<'p>(pod: &'p Pod, claim_named: impl Fn(&str) -> Option<Claim>) -> Vec<Step<'p>> {
    // Nothing is made for a pod that has ended: it would be deleted as soon as it is there.
    if pod.metadata.is_terminating() || pod.is_done() {
        return Vec::new();
    }
    let step = |listed: &'p PodClaim| {
        let named = pod.named(listed);
        if let Named::Pending(template) = named {
            return Some(Step::Make(listed, template));
        }
        let name = named.claim()?;
        let Some(claim) = claim_named(name) else {
            // One that somebody deleted is made again; those of users are for users to make.
            return listed.resource_claim_template_name.as_deref().map(|from| Step::Make(listed, from));
        };
        if matches!(named, Named::Own(_)) && stranger(&pod.metadata, &claim.metadata).is_some() {
            return None;
        }
        let wanted = !pod.spec.node_name.is_empty()
            && claim.status.allocation.is_some()
            && !claim.metadata.is_terminating()
            && !claim.is_reserved_for(&pod.metadata);
        wanted.then_some(Step::Reserve(name))
    };
    pod.spec.resource_claims.iter().filter_map(step).collect()
}

/// What a pod names, for news about it.
fn things(pod: &Pod) -> BTreeSet<Thing> {
    let claims = pod.claim_names().map(|name| Thing::Claim(claim_key(&pod.metadata, name)));
    let templates = pod.spec.resource_claims.iter().filter_map(|listed| match pod.named(listed) {
        Named::Pending(template) => Some(Thing::Template(claim_key(&pod.metadata, template))),
        _ => None,
    });
    claims.chain(templates).collect()
}

/// Whether pods that name a claim may lack something since it changed.
fn concerns_pods(old: Option<&Claim>, new: Option<&Claim>) -> bool {
    let (Some(old), Some(new)) = (old, new) else { return true };
    let allocated = old.status.allocation.is_some() != new.status.allocation.is_some();
    allocated || old.status.reserved_for.iter().any(|user| !new.status.reserved_for.contains(user))
}

/// From what the server makes a claim's name: of long names a part of both, in proportion. Source: `handleClaim`.
fn base_name(pod: &str, listed: &str) -> String {
    let whole = format!("{pod}-{listed}-");
    if whole.len() <= BASE_MAX {
        return whole;
    }
    let part = |name: &str| name.get(..name.len() * BASE_MAX / whole.len()).unwrap_or(name).to_owned();
    format!("{}-{}", part(pod), part(listed))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Template {
    spec: TemplateSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TemplateSpec {
    metadata: ObjectMeta,
    /// Kept whole: its unknown fields go into the claim too.
    spec: Value,
}

/// The claim that a pod wants. Pure.
fn claim_from(pod: &ObjectMeta, listed: &str, template: &Template) -> Value {
    let mut annotations = template.spec.metadata.annotations.clone();
    annotations.insert(POD_CLAIM_NAME.to_owned(), listed.to_owned());
    json!({
        "apiVersion": kinds::RESOURCE_CLAIMS.api_version(), "kind": kinds::RESOURCE_CLAIMS.kind,
        "metadata": {
            "generateName": base_name(&pod.name, listed), "namespace": pod.namespace,
            "labels": template.spec.metadata.labels, "annotations": annotations,
            "ownerReferences": [controller_ref(&kinds::PODS, pod)],
        },
        "spec": template.spec.spec,
    })
}

/// The one of these claims that was made for this entry of a pod's list.
fn made_for(pod: &ObjectMeta, listed: &str, claims: &[Arc<Object>]) -> Option<String> {
    let fits = |claim: &&Arc<Object>| {
        !claim.meta().is_terminating()
            && stranger(pod, claim.meta()).is_none()
            && claim.annotation(POD_CLAIM_NAME).is_some_and(|name| name == listed)
    };
    claims.iter().filter(fits).map(|claim| claim.meta().name.clone()).min()
}

/// What a pod's status says of its claims once these (by entry of its list) are known too. Everything is said again: an
/// applier takes away what it says no more.
fn told(pod: &Pod, made: &[(&str, String)]) -> Vec<Value> {
    let known = pod.status.resource_claim_statuses.iter();
    let known = known.filter(|held| made.iter().all(|(listed, _)| *listed != held.name));
    let known = known.map(|held| {
        let mut entry = Map::new();
        entry.insert("name".into(), held.name.as_str().into());
        if let Some(name) = &held.resource_claim_name {
            entry.insert("resourceClaimName".into(), name.as_str().into());
        }
        Value::Object(entry)
    });
    let made = made.iter().map(|(listed, name)| json!({ "name": listed, "resourceClaimName": name }));
    known.chain(made).collect()
}

/// What is known of the pod that a claim was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// It may still run, or is not known (yet), or there is none.
    MayRun,
    /// It will not run any more.
    Done,
}

/// What is to be done about a claim.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    /// Uids of those who use it no more.
    released: Vec<String>,
    /// Its devices are free.
    deallocate: bool,
    /// It needs no protection any more.
    unprotect: bool,
    /// Nobody will use it again.
    delete: bool,
}

/// Decides about a claim, of whose users these are gone. Pure. Source: `syncClaim`.
fn plan(claim: &Claim, gone: &HashSet<String>, owner: Owner) -> Plan {
    let users = || claim.status.reserved_for.iter();
    let released: Vec<String> =
        users().map(|user| user.uid.clone()).filter(|uid| gone.contains(uid)).collect();
    if released.len() < users().count() {
        return Plan { released, ..Plan::default() };
    }
    // Devices are freed by the last who lets go, or with a claim that goes: one that is allocated and has not been used
    // yet may just be on its way to be.
    let is_protected = claim.metadata.finalizers.iter().any(|held| held == FINALIZER);
    let ends = is_protected && (!released.is_empty() || claim.metadata.is_terminating());
    Plan {
        released,
        deallocate: ends && claim.status.allocation.is_some(),
        unprotect: ends,
        delete: owner == Owner::Done && !claim.metadata.is_terminating(),
    }
}

/// The change of a claim's status that a plan wants, for the version that was looked at: a user that came meanwhile makes
/// it fail.
fn status_patch(object: &Object, plan: &Plan) -> Value {
    let users: Vec<Value> =
        plan.released.iter().map(|uid| json!({ "$patch": "delete", "uid": uid })).collect();
    let mut status = json!({ "reservedFor": users });
    if plan.deallocate {
        status["allocation"] = Value::Null;
    }
    json!({ "metadata": seen(object), "status": status })
}

/// The object as it was looked at.
fn seen(object: &Object) -> Value {
    json!({ "uid": object.meta().uid, "resourceVersion": object.revision().to_string() })
}

struct Worker {
    ctx: Ctx,
    pods: Informer,
    claims: Informer,
    templates: Informer,
    events: EventRecorder,
    users: Mutex<Links<Key, Thing>>,
    queue: Queue<Item>,
}

impl Worker {
    fn claim(&self, key: &Key) -> Option<Claim> {
        self.claims.get(key).and_then(|object| decode(&object).ok())
    }

    fn steps<'p>(&self, pod: &'p Pod) -> Vec<Step<'p>> {
        steps(pod, |name| self.claim(&claim_key(&pod.metadata, name)))
    }

    fn pod_changed(&self, change: &Change) {
        let read = |object: &Option<Arc<Object>>| {
            object.as_ref().filter(|pod| has_claims(pod)).and_then(|pod| decode::<Pod>(pod).ok())
        };
        let (old, new) = (read(&change.old), read(&change.new));
        if old.is_none() && new.is_none() {
            return;
        }
        self.users.lock().set(&change.key, new.as_ref().map(things).unwrap_or_default());
        let same = |pod: &&Pod| new.as_ref().is_some_and(|new| new.metadata.uid == pod.metadata.uid);
        let gone = old.as_ref().filter(|old| !same(old));
        let done = new.as_ref().filter(|pod| pod.is_done());
        for pod in gone.into_iter().chain(done) {
            for name in pod.claim_names() {
                self.queue.add(Item::Claim(claim_key(&pod.metadata, name)));
            }
        }
        if new.is_some_and(|pod| !self.steps(&pod).is_empty()) {
            self.queue.add(Item::Pod(change.key.clone()));
        }
    }

    fn claim_changed(&self, change: &Change) {
        // Also a new one may be reserved for a pod that is gone by now.
        if change.new.is_some() {
            self.queue.add(Item::Claim(change.key.clone()));
        }
        let read =
            |object: &Option<Arc<Object>>| object.as_ref().and_then(|claim| decode::<Claim>(claim).ok());
        if concerns_pods(read(&change.old).as_ref(), read(&change.new).as_ref()) {
            self.look_at_users(&Thing::Claim(change.key.clone()));
        }
    }

    fn look_at_users(&self, thing: &Thing) {
        let pods = self.users.lock().of(thing);
        for key in pods {
            let pod = self.pods.get(&key).and_then(|object| decode::<Pod>(&object).ok());
            if pod.is_some_and(|pod| !self.steps(&pod).is_empty()) {
                self.queue.add(Item::Pod(key));
            }
        }
    }
}

#[async_trait]
impl Reconcile<Item> for Worker {
    async fn reconcile(&self, item: &Item) -> Result<Action, BoxError> {
        match item {
            Item::Pod(key) => self.provide(key).await?,
            Item::Claim(key) => self.free(key).await?,
        }
        Ok(Action::Done)
    }
}

/// Pods get what they lack.
impl Worker {
    async fn provide(&self, key: &Key) -> Result<(), BoxError> {
        let Some(object) = self.pods.get(key) else { return Ok(()) };
        let pod: Pod = decode(&object)?;
        let steps = self.steps(&pod);
        let mut made = Vec::new();
        for step in &steps {
            let Step::Make(listed, template) = step else { continue };
            match self.make(&pod, listed, template).await {
                Ok(name) => made.extend(name.map(|name| (listed.name.as_str(), name))),
                Err(why) => {
                    let message = format!("PodResourceClaim {}: {why}", listed.name);
                    let involved = Involved::object(&kinds::PODS, &object);
                    let reason = "FailedResourceClaimCreation";
                    self.events.event(involved, EventType::Warning, reason, message.as_str());
                    return Err(format!("pod {key}, {message}").into());
                }
            }
        }
        if !made.is_empty() {
            self.tell(key, &pod, &made).await?;
        }
        for step in &steps {
            if let Step::Reserve(name) = step {
                self.reserve(&pod, name).await?;
            }
        }
        Ok(())
    }

    /// The name of the claim for an entry of a pod's list, made if there is none; nothing where the namespace ends.
    async fn make(&self, pod: &Pod, listed: &PodClaim, template: &str) -> Result<Option<String>, String> {
        if let Some(held) = self.made_before(pod, listed).await? {
            return Ok(Some(held));
        }
        let template = self.template(&claim_key(&pod.metadata, template)).await?;
        let body = claim_from(&pod.metadata, &listed.name, &template);
        let made = self.ctx.client.create(self.claims.resource(), &pod.metadata.namespace, &body).await;
        if let Some(figures) = &self.ctx.figures {
            figures.claims.created(made.is_ok(), is_for_admins(&template.spec.spec));
        }
        match made {
            Ok(object) => {
                // Before the pod says so: whoever reads that finds it.
                self.ctx.caught_up(&self.claims, object.revision()).await;
                Ok(Some(object.meta().name.clone()))
            }
            Err(status) if is_ending_namespace(&status) => Ok(None),
            // Upstream has no name to tell here either.
            Err(status) => Err(format!("create ResourceClaim : {status}")),
        }
    }

    /// A claim that was made already: the pod's status could not be written then, or the cache does not show it yet.
    async fn made_before(&self, pod: &Pod, listed: &PodClaim) -> Result<Option<String>, String> {
        if let Named::Own(name) = pod.named(listed) {
            match self.ctx.client.get(self.claims.resource(), &claim_key(&pod.metadata, name)).await {
                Ok(_) => return Ok(Some(name.to_owned())),
                Err(status) if status.reason == Reason::NotFound => {}
                Err(status) => return Err(status.to_string()),
            }
        }
        Ok(made_for(&pod.metadata, &listed.name, &self.claims.owned_by(&pod.metadata.uid)))
    }

    async fn template(&self, key: &Key) -> Result<Template, String> {
        let object = match self.templates.get(key) {
            Some(object) => object,
            // It may be so new that the cache does not show it.
            None => {
                let asked = self.ctx.client.get(self.templates.resource(), key).await;
                asked.map_err(|status| format!("resource claim template {:?}: {status}", key.name))?
            }
        };
        decode(&object).map_err(|error| error.to_string())
    }

    async fn tell(&self, key: &Key, pod: &Pod, made: &[(&str, String)]) -> Result<(), BoxError> {
        let body = json!({
            "apiVersion": kinds::PODS.api_version(), "kind": kinds::PODS.kind,
            "metadata": { "name": key.name, "namespace": key.namespace, "uid": pod.metadata.uid },
            "status": { "resourceClaimStatuses": told(pod, made) },
        });
        let client = self.ctx.client.for_manager(STATUS_MANAGER);
        let written = client.patch(self.pods.resource(), key, "status", PatchType::Apply, &body).await;
        if let Some(written) = ignore_missing(written)? {
            self.ctx.caught_up(&self.pods, written.revision()).await;
        }
        Ok(())
    }

    async fn reserve(&self, pod: &Pod, name: &str) -> Result<(), BoxError> {
        let Some(claim) = self.claims.get(&claim_key(&pod.metadata, name)) else { return Ok(()) };
        let user = json!({ "resource": "pods", "name": pod.metadata.name, "uid": pod.metadata.uid });
        let patch = json!({ "metadata": seen(&claim), "status": { "reservedFor": [user] } });
        self.patch(&claim, "status", &patch).await?;
        Ok(())
    }

    async fn patch(
        &self,
        claim: &Object,
        subresource: &str,
        patch: &Value,
    ) -> Result<Option<Arc<Object>>, BoxError> {
        let (client, kind) = (&self.ctx.client, PatchType::StrategicMerge);
        let patched = client.patch(self.claims.resource(), &claim.key(), subresource, kind, patch).await;
        Ok(ignore_missing(patched)?)
    }
}

/// Claims are freed.
impl Worker {
    async fn free(&self, key: &Key) -> Result<(), BoxError> {
        let Some(object) = self.claims.get(key) else { return Ok(()) };
        let claim: Claim = decode(&object)?;
        let mut gone = HashSet::new();
        for user in claim.status.reserved_for.iter().filter(|user| user.is_pod()) {
            if self.is_gone(&key.namespace, user).await? {
                gone.insert(user.uid.clone());
            }
        }
        let plan = plan(&claim, &gone, self.owner(&claim.metadata));
        let mut held = Some(object);
        if let Some(seen) = held.take_if(|_| plan.deallocate || !plan.released.is_empty()) {
            held = self.patch(&seen, "status", &status_patch(&seen, &plan)).await?;
        }
        if let Some(freed) = held.filter(|_| plan.unprotect) {
            let mut metadata = seen(&freed);
            metadata["$deleteFromPrimitiveList/finalizers"] = json!([FINALIZER]);
            self.patch(&freed, "", &json!({ "metadata": metadata })).await?;
        }
        if plan.delete {
            let uid = Some(claim.metadata.uid.clone());
            let options = DeleteOptions { precondition_uid: uid, ..DeleteOptions::default() };
            ignore_gone(self.ctx.client.delete(self.claims.resource(), key, options).await)?;
        }
        Ok(())
    }

    /// Whether a pod uses a claim no more. One that the cache does not show may be there all the same, and on its way to
    /// a node: only the server knows.
    async fn is_gone(&self, namespace: &str, user: &Consumer) -> Result<bool, BoxError> {
        let key = Key::new(namespace, user.name.as_str());
        if let Some(held) = self.pods.get(&key).filter(|held| held.meta().uid == user.uid) {
            return Ok(decode::<Pod>(&held)?.is_done());
        }
        let live = ignore_missing(self.ctx.client.get(self.pods.resource(), &key).await)?;
        Ok(live.is_none_or(|pod| pod.meta().uid != user.uid))
    }

    /// What the cache says of the pod that a claim was made for. Of one that is not there the garbage collector knows more.
    fn owner(&self, claim: &ObjectMeta) -> Owner {
        let owner = claim.controller().filter(|owner| owner.api_version == "v1" && owner.kind == "Pod");
        let Some(owner) = owner else { return Owner::MayRun };
        let Some(held) = self.pods.get(&Key::new(claim.namespace.as_str(), owner.name.as_str())) else {
            return Owner::MayRun;
        };
        let done = || decode::<Pod>(&held).is_ok_and(|pod| pod.is_done());
        if held.meta().uid == owner.uid && done() { Owner::Done } else { Owner::MayRun }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(node: &str, phase: &str, status: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": { "name": "p", "namespace": "ns", "uid": "u" },
            "spec": { "nodeName": node, "resourceClaims": [
                { "name": "made", "resourceClaimTemplateName": "t" },
                { "name": "given", "resourceClaimName": "shared" },
            ] },
            "status": { "phase": phase, "resourceClaimStatuses": status },
        }))
        .unwrap()
    }

    fn claim(name: &str, owner: &str, users: &[&str], deleted: bool) -> Claim {
        let users: Vec<Value> =
            users.iter().map(|uid| json!({ "resource": "pods", "name": uid, "uid": uid })).collect();
        let deleted = if deleted { json!("2024-01-01T00:00:00Z") } else { Value::Null };
        serde_json::from_value(json!({
            "metadata": { "name": name, "namespace": "ns", "uid": name, "deletionTimestamp": deleted,
                "finalizers": [FINALIZER], "ownerReferences": [{ "apiVersion": "v1", "kind": "Pod", "name": owner,
                    "uid": owner, "controller": true }] },
            "status": { "allocation": {}, "reservedFor": users },
        }))
        .unwrap()
    }

    fn gone(uids: &[&str]) -> HashSet<String> {
        uids.iter().map(|uid| (*uid).to_owned()).collect()
    }

    #[test]
    fn pods_lack_claims_and_their_place_in_them() {
        let make = |pod: &Pod| steps(pod, |_| None).len();
        assert_eq!(make(&pod("", "Pending", json!([]))), 1);
        assert_eq!(make(&pod("", "Pending", json!([{ "name": "made", "resourceClaimName": "lost" }]))), 1);
        assert_eq!(make(&pod("", "Pending", json!([{ "name": "made" }]))), 0);
        assert_eq!(make(&pod("", "Succeeded", json!([]))), 0);
        let known = json!([{ "name": "made", "resourceClaimName": "own" }]);
        let holds = |pod: &Pod, users: &[&str], deleted: bool| {
            let held = |name: &str| Some(claim(name, "u", users, deleted));
            steps(pod, held).iter().map(|step| format!("{step:?}")).collect::<Vec<_>>()
        };
        let reserve = [r#"Reserve("own")"#, r#"Reserve("shared")"#];
        assert!(holds(&pod("", "Pending", known.clone()), &[], false).is_empty());
        assert_eq!(holds(&pod("n", "Pending", known.clone()), &["other"], false), reserve);
        assert!(holds(&pod("n", "Pending", known.clone()), &["u"], false).is_empty());
        assert!(holds(&pod("n", "Pending", known.clone()), &[], true).is_empty());
        // One that another pod owns is left alone.
        let strangers = pod("n", "Pending", known);
        assert_eq!(steps(&strangers, |name| Some(claim(name, "v", &[], false))), [Step::Reserve("shared")]);
    }

    #[test]
    fn claims_are_made_from_their_template_under_a_name_that_fits() {
        assert_eq!(base_name("web-1", "gpu"), "web-1-gpu-");
        let long = base_name(&"p".repeat(60), &"c".repeat(40));
        assert_eq!(long, format!("{}-{}", "p".repeat(33), "c".repeat(22)));
        let template: Template = serde_json::from_value(json!({ "spec": {
            "metadata": { "labels": { "a": "b" }, "annotations": { "c": "d" } }, "spec": { "future": 1 } } }))
        .unwrap();
        let made = claim_from(&pod("", "", json!([])).metadata, "made", &template);
        assert_eq!(made["metadata"]["annotations"], json!({ "c": "d", POD_CLAIM_NAME: "made" }));
        assert_eq!(
            (&made["metadata"]["labels"]["a"], &made["spec"]["future"], &made["metadata"]["generateName"]),
            (&json!("b"), &json!(1), &json!("p-made-"))
        );
    }

    #[test]
    fn what_was_made_is_found_again() {
        let pod = pod("", "", json!([])).metadata;
        let made = |name: &str, listed: &str, owner: &ObjectMeta| {
            let mut body = claim_from(owner, listed, &Template::default());
            body["metadata"]["name"] = name.into();
            Arc::new(Object::parse(serde_json::to_vec(&body).unwrap().into()).unwrap())
        };
        let other = ObjectMeta { uid: "v".into(), ..pod.clone() };
        let held = [made("x", "made", &other), made("y", "other", &pod), made("z", "made", &pod)];
        assert_eq!(made_for(&pod, "made", &held).as_deref(), Some("z"));
        assert_eq!(made_for(&pod, "third", &held), None);
    }

    #[test]
    fn everything_that_is_known_is_told_again() {
        let pod = pod(
            "",
            "",
            json!([{ "name": "a", "resourceClaimName": "x" }, { "name": "b" }, { "name": "c", "resourceClaimName": "y" }]),
        );
        let told = told(&pod, &[("c", "z".to_owned())]);
        let wanted = json!([{ "name": "a", "resourceClaimName": "x" }, { "name": "b" },
            { "name": "c", "resourceClaimName": "z" }]);
        assert_eq!(json!(told), wanted);
    }

    #[test]
    fn the_last_who_lets_go_frees_the_devices() {
        let held = claim("c", "p", &["one", "two"], false);
        assert_eq!(plan(&held, &gone(&[]), Owner::MayRun), Plan::default());
        let one = Plan { released: vec!["one".into()], ..Plan::default() };
        assert_eq!(plan(&held, &gone(&["one"]), Owner::Done), one);
        let both = plan(&held, &gone(&["one", "two"]), Owner::MayRun);
        assert_eq!(
            (both.released.len(), both.deallocate, both.unprotect, both.delete),
            (2, true, true, false)
        );
        assert!(plan(&held, &gone(&["one", "two"]), Owner::Done).delete);
        // One that is allocated and not used yet may be so in a moment; one that is deleted will not be.
        assert_eq!(plan(&claim("c", "p", &[], false), &gone(&[]), Owner::MayRun), Plan::default());
        let ended = plan(&claim("c", "p", &[], true), &gone(&[]), Owner::Done);
        assert_eq!((ended.deallocate, ended.unprotect, ended.delete), (true, true, false));
        // Whoever allocated without the finalizer is to free it.
        let mut foreign = claim("c", "p", &["one"], false);
        foreign.metadata.finalizers.clear();
        let freed = plan(&foreign, &gone(&["one"]), Owner::MayRun);
        assert_eq!((freed.released.len(), freed.deallocate, freed.unprotect), (1, false, false));
    }

    #[test]
    fn pods_hear_of_claims_that_come_go_or_lose_somebody() {
        let held = claim("c", "p", &["one"], false);
        let more = claim("c", "p", &["one", "two"], false);
        let mut free = held.clone();
        free.status.allocation = None;
        assert!(concerns_pods(None, Some(&held)) && concerns_pods(Some(&held), None));
        assert!(concerns_pods(Some(&free), Some(&held)) && concerns_pods(Some(&more), Some(&held)));
        assert!(!concerns_pods(Some(&held), Some(&more)));
    }
}
