//! Decides the next steps of a Deployment from a snapshot of it and its sets.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::rollback::{self, Rollback};
use super::types::{
    DESIRED_REPLICAS, Deployment, DeploymentCondition, DeploymentStatus, MAX_REPLICAS, REVISION,
};
use super::{revision, status, template};
use crate::replicaset::Set;

/// What is known when deciding.
pub(super) struct Snapshot {
    pub(super) deployment: Deployment,
    /// The sets that belong to it.
    pub(super) sets: Vec<Set>,
    /// Uids of sets that still have pods which are not finished.
    pub(super) sets_with_pods: Vec<String>,
    pub(super) now: Timestamp,
}

/// One write. They are carried out in order; a failure ends the pass.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    /// Makes the set of a template that has none.
    Create { name: String, replicas: i64, body: Value },
    /// Changes a set's size and annotations.
    Scale { name: String, from: i64, to: i64, patch: Value },
    /// Changes a set's other fields.
    Patch { name: String, patch: Value },
    /// Deletes an old set.
    Delete { name: String, uid: String },
    /// Answers a rollback that was asked for.
    Rollback(Rollback),
    /// Writes the Deployment's revision.
    Revision(String),
    /// Writes the Deployment's status.
    Status(DeploymentStatus),
}

/// Steps, and when to look again though nothing changes.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    pub(super) again: Option<Duration>,
}

/// The snapshot as it will be when the steps so far are done.
pub(super) struct Planner {
    pub(super) deployment: Deployment,
    /// The status as it is stored.
    stored: DeploymentStatus,
    /// The set of the present template.
    pub(super) new: Option<Set>,
    /// All others, oldest first.
    pub(super) old: Vec<Set>,
    pub(super) now: Timestamp,
    sets_with_pods: Vec<String>,
    plan: Plan,
}

/// The next steps.
pub(super) fn plan(snapshot: Snapshot) -> Plan {
    let mut planner = Planner::new(snapshot);
    let deployment = &planner.deployment;
    if deployment.metadata.is_terminating() {
        planner.sync_revision(false);
        planner.finish(false);
    } else {
        planner.note_pause();
        let paused = planner.deployment.spec.paused;
        let asked = rollback::plan(&planner.deployment, &planner.all().collect::<Vec<_>>());
        let waits = asked.is_some();
        // A paused Deployment keeps its template; else the change that the answer is begins a pass of its own.
        if let Some(rollback) = asked.filter(|_| !paused) {
            planner.step(Step::Rollback(rollback));
            return planner.plan;
        }
        if paused || planner.is_scaling() {
            planner.sync_revision(false);
            planner.scale_proportionally();
            // The revision that is asked for must still be there when the pause is over.
            if paused && !waits {
                planner.clean_up();
            }
            planner.finish(false);
        } else if planner.deployment.recreates() {
            planner.recreate();
            planner.finish(true);
        } else {
            planner.roll();
            planner.finish(true);
        }
    }
    planner.plan
}

impl Planner {
    fn new(snapshot: Snapshot) -> Self {
        let Snapshot { deployment, mut sets, sets_with_pods, now } = snapshot;
        sets.sort_by(|a, b| {
            let age = |set: &Set| (set.metadata.creation_timestamp, set.metadata.name.clone());
            age(a).cmp(&age(b))
        });
        // The oldest of equals, so that every pass means the same one.
        let position =
            sets.iter().position(|set| template::equal(&set.spec.template, &deployment.spec.template));
        let new = position.map(|position| sets.remove(position));
        let stored = deployment.status.clone();
        Self { deployment, stored, new, old: sets, now, sets_with_pods, plan: Plan::default() }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Set> {
        self.old.iter().chain(&self.new)
    }

    pub(super) fn step(&mut self, step: Step) {
        self.plan.steps.push(step);
    }

    /// Puts a condition; one with the same status and reason stays as it is. Source: `SetDeploymentCondition`.
    pub(super) fn set_condition(&mut self, mut next: DeploymentCondition) {
        let conditions = &mut self.deployment.status.conditions;
        if let Some(held) = conditions.iter().find(|held| held.r#type == next.r#type) {
            if held.status == next.status && held.reason == next.reason {
                return;
            }
            if held.status == next.status {
                next.last_transition_time = held.last_transition_time;
            }
        }
        conditions.retain(|held| held.r#type != next.r#type);
        conditions.push(next);
    }

    /// A pause suspends the progress deadline, and says so. Source: `checkPausedConditions`.
    fn note_pause(&mut self) {
        let progressing = self.deployment.condition("Progressing");
        if self.deployment.deadline_s().is_none()
            || progressing.is_some_and(|held| held.reason == status::TIMED_OUT)
        {
            return;
        }
        let noted = progressing.is_some_and(|held| held.reason == status::PAUSED);
        let (reason, message) = match (self.deployment.spec.paused, noted) {
            (true, false) => (status::PAUSED, "Deployment is paused"),
            (false, true) => (status::RESUMED, "Deployment is resumed"),
            _ => return,
        };
        self.set_condition(status::condition("Progressing", "Unknown", reason, message, self.now));
    }

    /// Finds or makes the set of the present template and gives it its revision.
    /// Source: `getAllReplicaSetsAndSyncRevision`.
    pub(super) fn sync_revision(&mut self, create: bool) {
        let next = self.old.iter().map(revision::of).max().unwrap_or(0).saturating_add(1);
        if self.new.is_some() {
            self.refresh_new_set(next);
        } else if create {
            self.create_new_set(next);
        }
    }

    fn refresh_new_set(&mut self, next: i64) {
        let Some(new) = &mut self.new else { return };
        let mut annotations = new.metadata.annotations.clone();
        let changed = revision::annotate(&self.deployment, &mut annotations, next, true);
        let min_ready = self.deployment.spec.min_ready_seconds;
        if changed || new.spec.min_ready_seconds != min_ready {
            let patch = json!({
                "metadata": { "annotations": annotations },
                "spec": { "minReadySeconds": min_ready },
            });
            let name = new.metadata.name.clone();
            new.metadata.annotations.clone_from(&annotations);
            new.spec.min_ready_seconds = min_ready;
            self.step(Step::Patch { name, patch });
        }
        self.note_revision(annotations.get(REVISION).cloned());
        if self.deployment.deadline_s().is_some() && self.deployment.condition("Progressing").is_none() {
            let name = self.new.as_ref().map_or("", |set| set.metadata.name.as_str());
            let message = format!("Found new replica set {name:?}");
            let found = status::condition("Progressing", "True", "FoundNewReplicaSet", &message, self.now);
            self.set_condition(found);
        }
    }

    fn note_revision(&mut self, revision: Option<String>) {
        let Some(revision) = revision else { return };
        if self.deployment.metadata.annotations.get(REVISION) != Some(&revision) {
            self.deployment.metadata.annotations.insert(REVISION.to_owned(), revision.clone());
            self.step(Step::Revision(revision));
        }
    }

    fn create_new_set(&mut self, next: i64) {
        let (mut set, body) = revision::new_set(&self.deployment, next);
        let replicas = self.size_of_new(0);
        let mut body = body;
        body["spec"]["replicas"] = replicas.into();
        set.spec.replicas = Some(replicas);
        let name = set.metadata.name.clone();
        if self.deployment.deadline_s().is_some() {
            let message = format!("Created new replica set {name:?}");
            let created =
                status::condition("Progressing", "True", "NewReplicaSetCreated", &message, self.now);
            self.set_condition(created);
        }
        self.new = Some(set);
        self.step(Step::Create { name, replicas, body });
        self.note_revision(Some(next.to_string()));
    }

    /// Sets the size of a set (`None`: the new one) and the annotations that remember what it was sized for. Gives
    /// whether the size changed.
    pub(super) fn scale(&mut self, old_index: Option<usize>, to: i64) -> bool {
        let desired = self.deployment.replicas();
        let wanted = [
            (DESIRED_REPLICAS, desired.to_string()),
            (MAX_REPLICAS, desired.saturating_add(self.deployment.max_surge()).to_string()),
        ];
        let set = match old_index {
            Some(index) => self.old.get_mut(index),
            None => self.new.as_mut(),
        };
        let Some(set) = set else { return false };
        let from = set.replicas();
        let annotations = &mut set.metadata.annotations;
        if from == to && wanted.iter().all(|(name, value)| annotations.get(*name) == Some(value)) {
            return false;
        }
        let mut patched = Map::new();
        for (name, value) in wanted {
            annotations.insert(name.to_owned(), value.clone());
            patched.insert(name.to_owned(), value.into());
        }
        set.spec.replicas = Some(to);
        let name = set.metadata.name.clone();
        let patch = json!({ "metadata": { "annotations": patched }, "spec": { "replicas": to } });
        self.step(Step::Scale { name, from, to, patch });
        from != to
    }

    /// Deletes old sets beyond the history limit, the oldest revisions first. Source: `cleanupDeployment`.
    pub(super) fn clean_up(&mut self) {
        let limit = self.deployment.spec.revision_history_limit.unwrap_or(10).max(0);
        let Ok(limit) = usize::try_from(limit) else { return };
        let mut sets: Vec<&Set> = self.old.iter().filter(|set| !set.metadata.is_terminating()).collect();
        if sets.len() <= limit {
            return;
        }
        sets.sort_by_key(|set| revision::of(set));
        let surplus = sets.len() - limit;
        let steps: Vec<Step> = sets
            .into_iter()
            .take(surplus)
            .filter(|set| {
                set.replicas() == 0
                    && set.status.replicas == 0
                    && set.metadata.generation <= set.status.observed_generation
            })
            .map(|set| Step::Delete { name: set.metadata.name.clone(), uid: set.metadata.uid.clone() })
            .collect();
        self.plan.steps.extend(steps);
    }

    fn recreate(&mut self) {
        self.sync_revision(false);
        let mut scaled = false;
        for index in 0..self.old.len() {
            if self.old[index].replicas() > 0 {
                scaled |= self.scale(Some(index), 0);
            }
        }
        let new_uid = self.new.as_ref().map(|set| set.metadata.uid.as_str());
        let old_run = self.sets_with_pods.iter().any(|uid| Some(uid.as_str()) != new_uid);
        if scaled || old_run {
            return;
        }
        if self.new.is_none() {
            self.sync_revision(true);
        }
        if self.new.as_ref().is_some_and(|set| set.replicas() != self.deployment.replicas()) {
            self.scale(None, self.deployment.replicas());
        }
        self.clean_up_if_complete();
    }

    pub(super) fn clean_up_if_complete(&mut self) {
        if status::is_complete(&self.deployment, &self.stored) {
            self.clean_up();
        }
    }

    /// Writes the status, with the progress of a rollout if there is one.
    fn finish(&mut self, rollout: bool) {
        let counts = status::counts(self);
        self.set_condition(status::availability(&self.deployment, &counts, self.now));
        if rollout {
            status::note_progress(self, &counts);
        }
        let next = DeploymentStatus { conditions: self.deployment.status.conditions.clone(), ..counts };
        if rollout {
            self.plan.again = status::next_check(&self.deployment, &next, self.now);
        }
        if next != self.stored {
            self.step(Step::Status(next));
        }
    }
}
