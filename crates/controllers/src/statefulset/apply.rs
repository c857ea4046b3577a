//! Carries out a StatefulSet's plan.

use std::collections::BTreeSet;

use api::{DeleteOptions, Key, Object, PatchType, Reason, Status};
use base::BoxError;
use futures::future::join_all;
use reconcile::{Action, EventType, Involved, kinds};
use serde_json::Value;

use super::claims::{self, ClaimStep, Held};
use super::plan::{Plan, Snapshot, Step, finished, plan};
use super::types::{Member, StatefulSet, StatefulSetStatus};
use super::{Worker, identity, status};
use crate::claim::{Claim, ignore_missing};
use crate::context::decode;
use crate::history::{self, History, Newest, Revision, newest};
use crate::selector::Select;

/// The label of a revision that carries its hash.
const HASH_LABEL: &str = "controller.kubernetes.io/hash";
/// How many revisions that nothing needs are kept. Source: `SetDefaults_StatefulSet`.
const HISTORY_LIMIT: i64 = 10;
/// At most so many pods are worked on at once. Source: `MaxBatchSize`.
const BATCH_MAX: usize = 500;

/// The two versions between which a rolling update goes.
struct Versions {
    current: Revision,
    update: Revision,
    collisions: i32,
}

impl Versions {
    fn names(&self) -> (&str, &str) {
        (&self.current.metadata.name, &self.update.metadata.name)
    }
}

/// What a pass carries from step to step.
struct Pass<'a> {
    key: &'a Key,
    set: &'a StatefulSet,
    involved: Involved,
    versions: &'a Versions,
    /// The template of the current revision.
    current: Value,
}

impl Worker {
    /// One pass over one StatefulSet.
    pub(super) async fn sync(&self, key: &Key) -> Result<Action, BoxError> {
        let Some(object) = self.sets.get(key) else {
            self.expectations.forget(key);
            self.ctx.figures.iter().for_each(|figures| figures.unbound(key));
            return Ok(Action::Done);
        };
        let set: StatefulSet = decode(&object)?;
        if set.spec.selector.is_empty() {
            return Ok(Action::Done);
        }
        // Read before the pods: an observation that comes in between only makes the next pass come sooner.
        let wait = self.expectations.wait(key, &set.metadata.uid);
        let history = History {
            ctx: &self.ctx,
            revisions: &self.revisions,
            owner_kind: kinds::STATEFUL_SETS,
            owner: &set.metadata,
            selector: &set.spec.selector,
        };
        let members = self.members(&set).await?;
        if set.metadata.is_terminating() {
            return self.only_count(key, &set, &members).await;
        }
        let revisions = history.matching().await?;
        let versions = versions(&set, &history, &revisions).await?;
        let claims = self.claims_of(&set, &members);
        let plan = plan(&Snapshot {
            set: &set,
            revisions: versions.names(),
            collisions: versions.collisions,
            members: &members,
            claims: &claims,
            now: self.ctx.clock.now(),
        });
        let current = versions.current.template().ok_or_else(|| {
            format!("revision {} of {key} holds no template", versions.current.metadata.name)
        })?;
        let pass = Pass {
            key,
            set: &set,
            involved: Involved::object(&kinds::STATEFUL_SETS, &object),
            versions: &versions,
            current,
        };
        let Plan { phases, status, again, bounds } = plan;
        if let (Some(figures), Some((most, missing))) = (&self.ctx.figures, bounds) {
            let policy = if set.is_ordered() { "OrderedReady" } else { "Parallel" };
            figures.bounded(key, policy, most, missing);
        }
        let result = if wait.is_none() { self.carry_out(&pass, phases).await } else { Ok(0) };
        let replaced = *result.as_ref().unwrap_or(&0);
        let written = self.write_status(key, &set, finished(&set, status, replaced)).await;
        let (current, update) = versions.names();
        let live = members.iter().map(Member::revision).chain([current, update]).collect();
        let limit = set.spec.revision_history_limit.unwrap_or(HISTORY_LIMIT);
        let truncated = history.delete(history::surplus(&revisions, &live, limit)).await;
        result?;
        written?;
        truncated?;
        Ok(Action::after(wait.into_iter().chain(again)))
    }

    /// A set that is being deleted changes nothing any more, also no history: what it counts is told.
    async fn only_count(&self, key: &Key, set: &StatefulSet, members: &[Member]) -> Result<Action, BoxError> {
        let held = &set.status;
        let revisions = (held.current_revision.as_str(), held.update_revision.as_str());
        let now = self.ctx.clock.now();
        let next = status::status(set, revisions, held.collision_count, members.iter(), now);
        self.write_status(key, set, next).await?;
        Ok(Action::Done)
    }

    /// The set's pods after adoption and release: by its selector and by their names.
    async fn members(&self, set: &StatefulSet) -> Result<Vec<Member>, BoxError> {
        let claim = Claim {
            ctx: &self.ctx,
            owner_kind: kinds::STATEFUL_SETS,
            owner: &set.metadata,
            selector: &set.spec.selector,
            objects: &self.pods,
            finalizer: None,
        };
        let name = &set.metadata.name;
        let is_member = |pod: &Object| identity::ordinal(name, &pod.meta().name).is_some();
        let pods = claim.run_among(is_member, |_| true).await?;
        pods.iter().filter_map(|pod| Member::decode(set, pod).transpose()).collect()
    }

    /// The claims of the set's pods, those that are wanted and those that are too many.
    fn claims_of(&self, set: &StatefulSet, members: &[Member]) -> Held {
        if set.spec.volume_claim_templates.is_empty() {
            return Held::new();
        }
        let held: BTreeSet<i64> = members.iter().map(|member| member.ordinal).collect();
        let wanted = set.ordinals(&held);
        let beyond = held.into_iter().filter(|ordinal| !set.wants(*ordinal));
        wanted
            .into_iter()
            .chain(beyond)
            .flat_map(|ordinal| claims::names(set, ordinal))
            .filter_map(|(_, name)| {
                let key = Key::new(set.metadata.namespace.as_str(), name.as_str());
                self.claims.get(&key).map(|claim| (name, claim.meta().clone()))
            })
            .collect()
    }

    /// Gives how many pods were deleted for the rolling update. A failure ends the pass after the steps that were under way.
    async fn carry_out(&self, pass: &Pass<'_>, phases: Vec<Vec<Step>>) -> Result<i64, BoxError> {
        let victims = phases.iter().flatten().filter_map(|step| match step {
            Step::Delete { uid, .. } => Some(uid.clone()),
            _ => None,
        });
        self.expectations.expect(pass.key, &pass.set.metadata.uid, 0, victims);
        let mut replaced = 0;
        let mut phases = phases.into_iter();
        for phase in phases.by_ref() {
            if let Err(error) = self.carry_out_phase(pass, &phase).await {
                phases.flatten().for_each(|step| self.not_done(pass, &step));
                return Err(error);
            }
            let rolling = phase.iter().filter(|step| matches!(step, Step::Delete { rolling: true, .. }));
            replaced += i64::try_from(rolling.count()).unwrap_or(0);
        }
        Ok(replaced)
    }

    /// The steps of a phase one after the other, or with parallel pods in batches that double as long as all succeed.
    /// Source: `runForAll`, `slowStartBatch`.
    async fn carry_out_phase(&self, pass: &Pass<'_>, mut steps: &[Step]) -> Result<(), BoxError> {
        let mut size = 1;
        while !steps.is_empty() {
            let (batch, rest) = steps.split_at(size.min(steps.len()));
            let results = join_all(batch.iter().map(|step| self.carry_out_step(pass, step))).await;
            let errors: Vec<BoxError> = results.into_iter().filter_map(Result::err).collect();
            if !errors.is_empty() {
                for step in rest {
                    self.not_done(pass, step);
                }
                return Err(joined(errors));
            }
            steps = rest;
            if !pass.set.is_ordered() {
                size = (2 * size).min(BATCH_MAX);
            }
        }
        Ok(())
    }

    fn not_done(&self, pass: &Pass<'_>, step: &Step) {
        if let Step::Delete { uid, .. } = step {
            self.expectations.deletion_observed(pass.key, uid);
        }
    }

    async fn carry_out_step(&self, pass: &Pass<'_>, step: &Step) -> Result<(), BoxError> {
        match step {
            Step::Create { ordinal, updated, claims } => self.create(pass, *ordinal, *updated, claims).await,
            Step::Claims { ordinal, claims } => {
                let pod = identity::pod_name(pass.set, *ordinal);
                self.arrange_claims(pass, &pod, claims).await
            }
            Step::Update { ordinal, patch, claims } => {
                let pod = identity::pod_name(pass.set, *ordinal);
                let result = self.update(pass, &pod, patch.as_ref(), claims).await;
                self.note_pod(pass, "update", &pod, result.as_ref().err());
                result
            }
            Step::Delete { ordinal, uid, .. } => {
                let result = self.delete(pass, *ordinal, uid).await;
                if result.is_err() {
                    self.not_done(pass, step);
                }
                result
            }
        }
    }

    async fn create(
        &self,
        pass: &Pass<'_>,
        ordinal: i64,
        updated: bool,
        claims: &[ClaimStep],
    ) -> Result<(), BoxError> {
        let name = identity::pod_name(pass.set, ordinal);
        if let Err(error) = self.arrange_claims(pass, &name, claims).await {
            self.note_pod(pass, "create", &name, Some(&error));
            return Err(error);
        }
        let (current, update) = pass.versions.names();
        let (template, revision) =
            if updated { (&pass.set.spec.template, update) } else { (&pass.current, current) };
        let body = identity::pod(pass.set, template, revision, ordinal);
        let created = self.ctx.client.create(&kinds::PODS.gvr(), &pass.key.namespace, &body).await;
        match created {
            Ok(pod) => {
                self.note_pod(pass, "create", &name, None);
                self.ctx.caught_up(&self.pods, pod.revision()).await;
                Ok(())
            }
            // The cache is behind, or somebody else has the name.
            Err(status) if status.reason == Reason::AlreadyExists => Err(status.into()),
            Err(status) => {
                let error = status.into();
                self.note_pod(pass, "create", &name, Some(&error));
                Err(error)
            }
        }
    }

    async fn update(
        &self,
        pass: &Pass<'_>,
        pod: &str,
        patch: Option<&Value>,
        claims: &[ClaimStep],
    ) -> Result<(), BoxError> {
        self.arrange_claims(pass, pod, claims).await?;
        let Some(patch) = patch else { return Ok(()) };
        let key = Key::new(pass.key.namespace.as_str(), pod);
        let kind = PatchType::StrategicMerge;
        let patched = self.ctx.client.patch(&kinds::PODS.gvr(), &key, "", kind, patch).await;
        if let Some(pod) = ignore_missing(patched)? {
            self.ctx.caught_up(&self.pods, pod.revision()).await;
        }
        Ok(())
    }

    async fn delete(&self, pass: &Pass<'_>, ordinal: i64, uid: &str) -> Result<(), BoxError> {
        let name = identity::pod_name(pass.set, ordinal);
        let key = Key::new(pass.key.namespace.as_str(), name.as_str());
        let options = DeleteOptions { precondition_uid: Some(uid.to_owned()), ..DeleteOptions::default() };
        match self.ctx.client.delete(&kinds::PODS.gvr(), &key, options).await {
            Ok(()) => {
                self.note_pod(pass, "delete", &name, None);
                Ok(())
            }
            // It is gone, and another may have its name by now.
            Err(status) if matches!(status.reason, Reason::NotFound | Reason::Conflict) => {
                self.expectations.deletion_observed(pass.key, uid);
                Ok(())
            }
            Err(status) => {
                let error = status.into();
                self.note_pod(pass, "delete", &name, Some(&error));
                Err(error)
            }
        }
    }

    /// Makes the claims that a pod lacks and corrects the owners of others: all that can be done, before the errors.
    async fn arrange_claims(&self, pass: &Pass<'_>, pod: &str, steps: &[ClaimStep]) -> Result<(), BoxError> {
        let mut errors = Vec::new();
        for step in steps {
            match step {
                ClaimStep::Create { name, body } => {
                    errors.extend(self.create_claim(pass, pod, name, body).await.err());
                }
                ClaimStep::Going { name } => errors.push(format!("pvc {name} is being deleted").into()),
                ClaimStep::Own { name, patch } => {
                    errors.extend(self.patch_claim(pass, name, patch).await.err())
                }
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(joined(errors)) }
    }

    async fn create_claim(
        &self,
        pass: &Pass<'_>,
        pod: &str,
        name: &str,
        body: &Value,
    ) -> Result<(), BoxError> {
        let resource = kinds::PERSISTENT_VOLUME_CLAIMS.gvr();
        match self.ctx.client.create(&resource, &pass.key.namespace, body).await {
            Ok(claim) => {
                let message =
                    format!("create Claim {name} Pod {pod} in StatefulSet {} success", pass.key.name);
                self.note(pass, EventType::Normal, "SuccessfulCreate", message);
                self.ctx.caught_up(&self.claims, claim.revision()).await;
                Ok(())
            }
            Err(status) => {
                if status.reason != Reason::AlreadyExists {
                    let message = format!(
                        "create Claim {name} for Pod {pod} in StatefulSet {} failed error: {status}",
                        pass.key.name
                    );
                    self.note(pass, EventType::Warning, "FailedCreate", message);
                }
                Err(format!("failed to create PVC {name}: {status}").into())
            }
        }
    }

    async fn patch_claim(&self, pass: &Pass<'_>, name: &str, patch: &Value) -> Result<(), BoxError> {
        let key = Key::new(pass.key.namespace.as_str(), name);
        let resource = kinds::PERSISTENT_VOLUME_CLAIMS.gvr();
        let patched = self.ctx.client.patch(&resource, &key, "", PatchType::Merge, patch).await;
        let failed =
            |status: Status| format!("Could not update claim {name} for delete policy ownerRefs: {status}");
        let claim = patched.map_err(failed)?;
        self.ctx.caught_up(&self.claims, claim.revision()).await;
        Ok(())
    }

    fn note(&self, pass: &Pass<'_>, event_type: EventType, reason: &str, message: String) {
        self.events.event(pass.involved.clone(), event_type, reason, message);
    }

    /// Source: `recordPodEvent`.
    fn note_pod(&self, pass: &Pass<'_>, verb: &str, pod: &str, error: Option<&BoxError>) {
        let done = match verb {
            "create" => "Create",
            "update" => "Update",
            _ => "Delete",
        };
        let what = format!("{verb} Pod {pod} in StatefulSet {}", pass.key.name);
        match error {
            None => {
                let message = format!("{what} successful");
                self.note(pass, EventType::Normal, &format!("Successful{done}"), message);
            }
            Some(error) => {
                let message = format!("{what} failed error: {error}");
                self.note(pass, EventType::Warning, &format!("Failed{done}"), message);
            }
        }
    }

    async fn write_status(
        &self,
        key: &Key,
        set: &StatefulSet,
        next: StatefulSetStatus,
    ) -> Result<(), BoxError> {
        if next == set.status {
            return Ok(());
        }
        let patch = status::patch(&set.metadata.uid, &next);
        let resource = kinds::STATEFUL_SETS.gvr();
        let written = self.ctx.client.patch(&resource, key, "status", PatchType::Merge, &patch).await;
        if let Some(object) = ignore_missing(written)? {
            self.ctx.caught_up(&self.sets, object.revision()).await;
        }
        Ok(())
    }
}

/// The revisions between which the set is: that of its template, and the one that its status names.
async fn versions(
    set: &StatefulSet,
    history: &History<'_>,
    revisions: &[Revision],
) -> Result<Versions, BoxError> {
    let snapshot = history::Snapshot::of(&set.spec.template);
    let mut collisions = set.status.collision_count.unwrap_or(0);
    let update = match newest(&snapshot, revisions) {
        Newest::Is(held) => held.clone(),
        Newest::Again(held, number) => {
            history.renumber(held, number).await?;
            held.clone()
        }
        Newest::Made(number) => loop {
            let (name, hash) = snapshot.name(&set.metadata.name, Some(collisions));
            if let Some(made) = history.create(&snapshot, &name, (HASH_LABEL, &hash), number).await? {
                break made;
            }
            collisions = collisions.saturating_add(1);
        },
    };
    let current = revisions.iter().find(|revision| revision.metadata.name == set.status.current_revision);
    Ok(Versions { current: current.unwrap_or(&update).clone(), update, collisions })
}

/// Several errors as one. Source: `errors.NewAggregate`.
fn joined(mut errors: Vec<BoxError>) -> BoxError {
    if errors.len() == 1 {
        return errors.remove(0);
    }
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    format!("[{}]", texts.join(", ")).into()
}
