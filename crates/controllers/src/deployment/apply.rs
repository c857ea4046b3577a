//! Carries out a Deployment's plan.

use std::collections::HashMap;
use std::sync::Arc;

use api::{DeleteOptions, Key, Object, PatchType, Reason, Status};
use base::BoxError;
use reconcile::{Action, EventType, Involved, kinds};
use serde_json::{Value, json};

use super::plan::{Plan, Snapshot, Step, plan};
use super::types::{Deployment, REVISION};
use super::{Worker, status, template};
use crate::claim::{Claim, ignore_gone, ignore_missing, is_ending_namespace};
use crate::context::decode;
use crate::pods::Pod;
use crate::replicaset::{self, Set};
use crate::selector::Select;

/// What a pass carries from step to step.
struct Pass<'a> {
    key: &'a Key,
    deployment: &'a Deployment,
    involved: Involved,
    /// The version of each set that the plan was made for, or that the pass has written since. A set that someone else
    /// changed meanwhile refuses the step, and the pass begins anew with what is true then.
    versions: HashMap<String, String>,
}

impl Worker {
    /// One pass over one Deployment.
    pub(super) async fn sync(&self, key: &Key) -> Result<Action, BoxError> {
        let Some(object) = self.deployments.get(key) else { return Ok(Action::Done) };
        let deployment: Deployment = decode(&object)?;
        let involved = Involved::object(&kinds::DEPLOYMENTS, &object);
        if deployment.spec.selector.is_empty() {
            let message = "This deployment is selecting all pods. A non-empty selector is required.";
            self.events.event(involved, EventType::Warning, "SelectingAll", message);
            return Ok(Action::Done);
        }
        let claim = Claim {
            ctx: &self.ctx,
            owner_kind: kinds::DEPLOYMENTS,
            owner: &deployment.metadata,
            selector: &deployment.spec.selector,
            objects: &self.sets,
            finalizer: None,
        };
        let objects = claim.run(|_| true).await?;
        let sets: Vec<Set> = objects
            .iter()
            .map(|set| replicaset::decode(&replicaset::REPLICA_SET, set))
            .collect::<Result<_, _>>()?;
        let versions = sets
            .iter()
            .map(|set| (set.metadata.name.clone(), set.metadata.resource_version.clone()))
            .collect();
        let sets_with_pods = if deployment.recreates() { self.sets_with_pods(&sets) } else { Vec::new() };
        let now = self.ctx.clock.now();
        let Plan { steps, again } =
            plan(Snapshot { deployment: deployment.clone(), sets, sets_with_pods, now });
        let mut pass = Pass { key, deployment: &deployment, involved, versions };
        for step in steps {
            if !self.carry_out(&mut pass, step).await? {
                return Ok(Action::Done);
            }
        }
        Ok(again.map_or(Action::Done, Action::After))
    }

    /// Uids of the sets that have pods which may still run. Source: `oldPodsRunning`.
    fn sets_with_pods(&self, sets: &[Set]) -> Vec<String> {
        let runs = |pod: &Arc<Object>| decode::<Pod>(pod).map_or(true, |pod| !pod.is_finished());
        let has = |set: &&Set| {
            let meta = &set.metadata;
            self.pods
                .owned_by(&meta.uid)
                .iter()
                .any(|pod| pod.meta().namespace == meta.namespace && runs(pod))
        };
        sets.iter().filter(has).map(|set| set.metadata.uid.clone()).collect()
    }

    /// One step; `false` ends the pass without an error.
    async fn carry_out(&self, pass: &mut Pass<'_>, step: Step) -> Result<bool, BoxError> {
        let namespace = pass.key.namespace.as_str();
        match step {
            Step::Create { name, replicas, body } => return self.create(pass, &name, replicas, &body).await,
            Step::Scale { name, from, to, patch } => {
                self.patch_set(pass, &name, patch).await?;
                if from != to {
                    let direction = if to > from { "up" } else { "down" };
                    self.note_scaling(
                        pass,
                        &format!("Scaled {direction} replica set {name} from {from} to {to}"),
                    );
                }
            }
            Step::Patch { name, patch } => self.patch_set(pass, &name, patch).await?,
            Step::Delete { name, uid } => {
                let options = DeleteOptions { precondition_uid: Some(uid), ..DeleteOptions::default() };
                let set = Key::new(namespace, name);
                ignore_gone(self.ctx.client.delete(&kinds::REPLICA_SETS.gvr(), &set, options).await)?;
            }
            Step::Rollback(rollback) => {
                let resource = kinds::DEPLOYMENTS.gvr();
                let client = &self.ctx.client;
                let written = client.patch(&resource, pass.key, "", PatchType::Json, &rollback.patch).await;
                if let Some(object) = ignore_missing(written)? {
                    self.ctx.caught_up(&self.deployments, object.revision()).await;
                    let (involved, message) = (pass.involved.clone(), rollback.message);
                    self.events.event(involved, rollback.event_type, rollback.reason, message);
                }
            }
            Step::Revision(revision) => {
                let patch = json!({ "metadata": { "annotations": { REVISION: revision } } });
                self.patch_deployment(pass, "", patch).await?;
            }
            Step::Status(next) => self.patch_deployment(pass, "status", status::patch(&next)).await?,
        }
        Ok(true)
    }

    /// Changes the Deployment by a merge patch, if it is still the same object.
    async fn patch_deployment(
        &self,
        pass: &Pass<'_>,
        subresource: &str,
        mut patch: Value,
    ) -> Result<(), BoxError> {
        patch["metadata"]["uid"] = pass.deployment.metadata.uid.as_str().into();
        let resource = kinds::DEPLOYMENTS.gvr();
        let written = self.ctx.client.patch(&resource, pass.key, subresource, PatchType::Merge, &patch).await;
        if let Some(object) = ignore_missing(written)? {
            self.ctx.caught_up(&self.deployments, object.revision()).await;
        }
        Ok(())
    }

    async fn patch_set(&self, pass: &mut Pass<'_>, name: &str, mut patch: Value) -> Result<(), BoxError> {
        if let Some(version) = pass.versions.get(name).filter(|version| !version.is_empty()) {
            patch["metadata"]["resourceVersion"] = version.as_str().into();
        }
        let key = Key::new(pass.key.namespace.as_str(), name);
        let resource = kinds::REPLICA_SETS.gvr();
        let object = self.ctx.client.patch(&resource, &key, "", PatchType::Merge, &patch).await?;
        self.written(pass, &object).await;
        Ok(())
    }

    async fn written(&self, pass: &mut Pass<'_>, object: &Object) {
        pass.versions.insert(object.meta().name.clone(), object.meta().resource_version.clone());
        self.ctx.caught_up(&self.sets, object.revision()).await;
    }

    fn note_scaling(&self, pass: &Pass<'_>, message: &str) {
        self.events.event(pass.involved.clone(), EventType::Normal, "ScalingReplicaSet", message);
    }

    async fn create(
        &self,
        pass: &mut Pass<'_>,
        name: &str,
        replicas: i64,
        body: &Value,
    ) -> Result<bool, BoxError> {
        let resource = kinds::REPLICA_SETS.gvr();
        match self.ctx.client.create(&resource, &pass.key.namespace, body).await {
            Ok(object) => {
                self.written(pass, &object).await;
                if replicas > 0 {
                    self.note_scaling(pass, &format!("Scaled up replica set {name} from 0 to {replicas}"));
                }
                Ok(true)
            }
            Err(error) if error.reason == Reason::AlreadyExists => self.resolve_collision(pass, name).await,
            // Nothing can be made in a namespace that is being deleted, and soon nobody will want it.
            Err(error) if is_ending_namespace(&error) => Ok(false),
            Err(error) => {
                self.note_failed_create(pass, name, &error).await?;
                Err(error.into())
            }
        }
    }

    /// A set of that name is there: either it is the one that was meant and the cache is behind, or two templates have
    /// one hash, and the next attempt uses another name.
    async fn resolve_collision(&self, pass: &mut Pass<'_>, name: &str) -> Result<bool, BoxError> {
        let key = Key::new(pass.key.namespace.as_str(), name);
        let object = self.ctx.client.get(&kinds::REPLICA_SETS.gvr(), &key).await?;
        let set = replicaset::decode(&replicaset::REPLICA_SET, &object)?;
        let ours = set.metadata.controller().is_some_and(|owner| owner.uid == pass.deployment.metadata.uid);
        if ours && template::equal(&set.spec.template, &pass.deployment.spec.template) {
            self.written(pass, &object).await;
            return Err(Status::conflict("apps", "replicasets", name, "it was made meanwhile").into());
        }
        let collisions = pass.deployment.status.collision_count.unwrap_or(0).saturating_add(1);
        tracing::debug!(deployment = %pass.key, set = name, collisions, "two templates have one hash");
        self.patch_deployment(pass, "status", json!({ "status": { "collisionCount": collisions } })).await?;
        Ok(false)
    }

    async fn note_failed_create(&self, pass: &Pass<'_>, name: &str, error: &Status) -> Result<(), BoxError> {
        let message = format!("Failed to create new replica set {name:?}: {error}");
        self.events.event(
            pass.involved.clone(),
            EventType::Warning,
            "ReplicaSetCreateError",
            message.as_str(),
        );
        if pass.deployment.deadline_s().is_none() {
            return Ok(());
        }
        let now = self.ctx.clock.now();
        let failed = status::condition("Progressing", "False", "ReplicaSetCreateError", &message, now);
        let held = pass.deployment.condition("Progressing");
        if held.is_some_and(|held| held.reason == failed.reason) {
            return Ok(());
        }
        let mut conditions = pass.deployment.status.conditions.clone();
        conditions.retain(|held| held.r#type != "Progressing");
        conditions.push(failed);
        self.patch_deployment(pass, "status", json!({ "status": { "conditions": conditions } })).await
    }
}
