//! StorageVersionMigrations: every object of a resource is written anew, so that it lies in the store as it would be
//! written now, in its storage version and under the present key. Of a custom resource the definition then has no other
//! stored version any more.
//! Source: `k8s.io/kubernetes/pkg/controller/storageversionmigrator` (its three controllers, of which each does a step).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::catalog::{Catalog as Rows, Row};
use api::{GroupVersionResource, Key, ListOptions, Object, ObjectMeta, PatchType, Reason, Status};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use jiff::Timestamp;
use reconcile::{Action, Informer, Queue, Reconcile, kinds, run_workers};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::claim::{ignore_gone, ignore_missing};
use crate::context::{Ctx, decode, ready};
use crate::followed::on_served;

const NAME: &str = "storage-version-migrator-controller";
/// Under which name it writes definitions. Source: `MigrationRunnerControllerName`.
const DEFINITIONS_MANAGER: &str = "migration-runner-controller";
/// So many resources are migrated at a time. Source: `workers`.
const WORKERS: usize = 5;
/// Of one resource so many objects are written in a [`BEAT`] at most: others want to write, too.
const BATCH: usize = 50;
const BEAT: Duration = Duration::from_millis(500);
/// So many objects are read at once.
const PAGE: u64 = 500;
/// So long after it was made a migration waits for its resource, which may only have been made itself.
/// Source: `SVMController.sync`.
const YOUNG: Duration = Duration::from_secs(60);

const RUNNING: &str = "Running";
const SUCCEEDED: &str = "Succeeded";
const FAILED: &str = "Failed";
/// The condition of a definition whose objects are migrated.
const MIGRATING: &str = "StorageMigrating";

/// The controller.
pub struct StorageMigrations {
    ctx: Ctx,
}

impl StorageMigrations {
    /// A controller over these handles.
    pub fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.named(NAME) }
    }
}

#[async_trait]
impl Component for StorageMigrations {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let migrations = self.ctx.informers.get(kinds::STORAGE_VERSION_MIGRATIONS);
        let queue: Queue<Resource> = self.ctx.queue(NAME);
        let keys = queue.clone();
        let _registration = migrations.on_change(move |change| {
            let held = change.latest().and_then(|object| decode::<Migration>(object).ok());
            if let Some(migration) = held {
                keys.add(migration.spec.resource);
            }
        });
        if !ready(&ctx, &[&migrations]).await {
            return Ok(());
        }
        let (waiting, keys) = (migrations.clone(), queue.clone());
        on_served(&ctx, self.ctx.catalog.watch(), move |_| {
            let held = waiting.list().into_iter().filter_map(|object| decode::<Migration>(&object).ok());
            held.filter(|held| !held.has_ended()).for_each(|held| keys.add(held.spec.resource));
        });
        let worker = Arc::new(Worker { ctx: self.ctx.clone(), component: ctx.clone(), migrations });
        run_workers(&ctx, NAME, &queue, WORKERS, worker).await;
        Ok(())
    }
}

/// `meta/v1.GroupResource`: one migration of it runs at a time.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(default)]
struct Resource {
    group: String,
    resource: String,
}

/// `storagemigration/v1.StorageVersionMigration`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Migration {
    metadata: ObjectMeta,
    spec: Spec,
    status: MigrationStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Spec {
    resource: Resource,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct MigrationStatus {
    /// Kept whole.
    conditions: Vec<Value>,
    resource_version: String,
}

impl Migration {
    fn is(&self, condition: &str) -> bool {
        self.status.conditions.iter().any(|held| held["type"] == condition && held["status"] == "True")
    }

    fn has(&self, condition: &str) -> bool {
        self.status.conditions.iter().any(|held| held["type"] == condition)
    }

    fn has_ended(&self) -> bool {
        self.is(SUCCEEDED) || self.is(FAILED)
    }

    /// How long it still waits for its resource; nothing if it has waited long enough.
    fn while_young(&self, now: Timestamp) -> Option<Duration> {
        let left = (self.metadata.creation_timestamp? + YOUNG).duration_since(now);
        Duration::try_from(left).ok().filter(|left| !left.is_zero())
    }

    /// Its conditions once one is true. With its end it does not run any more. Source: `setStatusConditions`.
    fn with(&self, condition: &str, reason: &str, message: &str, now: Timestamp) -> Vec<Value> {
        let mut conditions: Vec<Value> =
            self.status.conditions.iter().filter(|held| held["type"] != condition).cloned().collect();
        if condition != RUNNING {
            for held in conditions.iter_mut().filter(|held| held["type"] == RUNNING) {
                held["status"] = "False".into();
            }
        }
        conditions.push(json!({
            "type": condition, "status": "True", "reason": reason, "message": message,
            "lastTransitionTime": reconcile::time::seconds(now),
        }));
        conditions
    }
}

/// What the server says of a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    /// It is read and written in this version: the one that is stored, if clients may ask for it.
    Served(GroupVersionResource),
    /// It is there, and cannot be listed or changed.
    Unfit,
    /// It is not there, or not yet.
    Unknown,
}

/// The next step for a resource.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// One that has ended runs no more: its definition is told.
    Finish,
    /// There is nothing that could be written.
    Fail(&'static str),
    /// Objects up to the present version are to be written.
    Date,
    /// It is its turn.
    Begin,
    /// It writes, perhaps once more after a restart.
    Rewrite,
    /// Its resource may still come, until then.
    Wait(Duration),
}

/// What comes next among all migrations of a resource, and for which. One whose resource nobody knows waits for it without
/// end, unless it was there once. Pure. Source: `manageAdmission`, the two `sync`, `isResourceMigratable`.
fn plan<'a>(all: &'a [Migration], standing: &Standing, now: Timestamp) -> Option<(&'a Migration, Step)> {
    if let Some(ended) = all.iter().find(|held| held.has_ended() && held.has(RUNNING)) {
        return Some((ended, Step::Finish));
    }
    let mut waiting: Vec<&Migration> = all.iter().filter(|held| !held.has_ended()).collect();
    waiting.sort_by_key(|held| (held.metadata.creation_timestamp, held.metadata.name.as_str()));
    let undated = waiting.iter().find(|held| held.status.resource_version.is_empty());
    match (undated, standing) {
        (Some(undated), Standing::Served(_)) => return Some((undated, Step::Date)),
        (Some(undated), Standing::Unfit) => {
            return Some((undated, Step::Fail("resource does not exist in discovery")));
        }
        _ => {}
    }
    let Some(running) = waiting.iter().find(|held| held.is(RUNNING)) else {
        return waiting.first().map(|first| (*first, Step::Begin));
    };
    match standing {
        Standing::Served(_) => Some((running, Step::Rewrite)),
        _ if running.status.resource_version.is_empty() => None,
        _ => Some((running, running.while_young(now).map_or(Step::Fail("resource not found"), Step::Wait))),
    }
}

/// How a resource stands among what the server serves.
fn standing(rows: &Rows, resource: &Resource) -> Standing {
    let is_meant = |row: &&Arc<Row>| *row.group == *resource.group && *row.plural == *resource.resource;
    let all: Vec<&Arc<Row>> = rows.rows().filter(is_meant).collect();
    let fit = || all.iter().filter(|row| row.serves("list") && row.serves("patch"));
    match fit().find(|row| row.is_storage_version()).or_else(|| fit().next()) {
        Some(row) => Standing::Served(row.resource()),
        None if all.is_empty() => Standing::Unknown,
        None => Standing::Unfit,
    }
}

/// An object that is to be written as it is: no more of it is kept meanwhile.
struct Stored {
    key: Key,
    uid: String,
    revision: i64,
}

impl From<&Object> for Stored {
    fn from(object: &Object) -> Self {
        Self { key: object.key(), uid: object.meta().uid.clone(), revision: object.revision() }
    }
}

/// How a rewrite came out.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// Everything lies as it should.
    Done,
    /// An object cannot be written.
    Refused,
    /// The component ends, or nobody wants it any more.
    Stopped,
}

/// What the write of an object says of the migration.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// The object is as it should be, or gone.
    Fine,
    /// It is to be tried again later.
    Later,
    /// It will not do.
    Refused,
}

/// Somebody who has written the object meanwhile, or made it anew, has done what was to be done; who has deleted it, too.
fn verdict(status: &Status) -> Verdict {
    match status.reason {
        Reason::Conflict | Reason::NotFound => Verdict::Fine,
        Reason::TooManyRequests | Reason::Timeout | Reason::ServerTimeout | Reason::ServiceUnavailable => {
            Verdict::Later
        }
        _ => Verdict::Refused,
    }
}

/// The part of `apiextensions/v1.CustomResourceDefinition` that tells of storage.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Definition {
    metadata: ObjectMeta,
    spec: DefinitionSpec,
    status: DefinitionStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DefinitionSpec {
    versions: Vec<Version>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Version {
    name: String,
    storage: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DefinitionStatus {
    conditions: Vec<Migrating>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Migrating {
    r#type: String,
    observed_generation: i64,
}

impl Definition {
    /// Its status once its migration has ended: what was stored otherwise is so no more, unless the definition has changed
    /// since it began. Source: `finishCRDMigration`, which says so of failed ones, too.
    fn ended(&self, succeeded: bool, now: Timestamp) -> Value {
        let generation = self.metadata.generation;
        let conditions = &self.status.conditions;
        let same =
            conditions.iter().any(|held| held.r#type == MIGRATING && held.observed_generation == generation);
        let (reason, message) = match (succeeded, same) {
            (true, true) => (
                "MigrationSucceeded",
                "The migration has succeeded and the stored versions have been updated",
            ),
            (true, false) => (
                "MigrationSucceeded",
                "The migration has succeeded but the stored versions have not been updated due to a generation \
                 mismatch",
            ),
            (false, _) => ("MigrationFailed", "The migration has failed"),
        };
        let mut status = json!({ "conditions": [self.condition("False", reason, message, now)] });
        let stored = self.spec.versions.iter().find(|version| version.storage);
        if let Some(version) = stored.filter(|_| succeeded && same) {
            status["storedVersions"] = json!([version.name]);
        }
        status
    }

    fn condition(&self, status: &str, reason: &str, message: &str, now: Timestamp) -> Value {
        json!({
            "type": MIGRATING, "status": status, "reason": reason, "message": message,
            "observedGeneration": self.metadata.generation, "lastTransitionTime": reconcile::time::seconds(now),
        })
    }
}

struct Worker {
    ctx: Ctx,
    component: Context,
    migrations: Informer,
}

#[async_trait]
impl Reconcile<Resource> for Worker {
    async fn reconcile(&self, resource: &Resource) -> Result<Action, BoxError> {
        let all: HashMap<String, Arc<Object>> =
            self.migrations.list().into_iter().map(|object| (object.meta().uid.clone(), object)).collect();
        let read = all.values().map(|object| decode::<Migration>(object)).collect::<Result<Vec<_>, _>>()?;
        let of_resource: Vec<Migration> =
            read.into_iter().filter(|held| held.spec.resource == *resource).collect();
        let standing = standing(&self.ctx.catalog.rows(), resource);
        let Some((migration, step)) = plan(&of_resource, &standing, self.ctx.clock.now()) else {
            return Ok(Action::Done);
        };
        if let Step::Wait(left) = step {
            return Ok(Action::After(left));
        }
        if let Some(object) = all.get(&migration.metadata.uid) {
            self.take(migration, object, step, standing).await?;
        }
        Ok(Action::Done)
    }
}

impl Worker {
    /// Takes a step; what it writes brings the next.
    async fn take(
        &self,
        migration: &Migration,
        object: &Object,
        step: Step,
        standing: Standing,
    ) -> Result<(), BoxError> {
        let now = self.ctx.clock.now();
        let failed = |why: &str| migration.with(FAILED, "StorageVersionMigrationFailed", why, now);
        match (step, standing) {
            (Step::Finish, _) => {
                let succeeded = migration.is(SUCCEEDED);
                self.tell(migration, |definition| definition.ended(succeeded, now)).await?;
                let mut conditions = migration.status.conditions.clone();
                conditions.retain(|held| held["type"] != RUNNING);
                self.write(object, json!({ "conditions": conditions })).await
            }
            (Step::Begin, _) => {
                let message = format!("Migration {} is running", migration.metadata.name);
                let migrating = |definition: &Definition| {
                    let condition = definition.condition("True", "MigrationRunning", &message, now);
                    json!({ "conditions": [condition] })
                };
                self.tell(migration, migrating).await?;
                let running = migration.with(RUNNING, "MigrationRunning", "The migration is running", now);
                self.write(object, json!({ "conditions": running })).await
            }
            (Step::Date, Standing::Served(resource)) => {
                let options = ListOptions { limit: 1, ..ListOptions::default() };
                let list = self.ctx.client.list(&resource, "", options).await?;
                self.write(object, json!({ "resourceVersion": list.revision.to_string() })).await
            }
            (Step::Rewrite, Standing::Served(resource)) => {
                let conditions = match self.rewrite(migration, &resource).await? {
                    Outcome::Stopped => return Ok(()),
                    Outcome::Done => migration.with(SUCCEEDED, "StorageVersionMigrationSucceeded", "", now),
                    Outcome::Refused => failed("migration encountered unhandled error"),
                };
                self.write(object, json!({ "conditions": conditions })).await
            }
            (Step::Fail(why), _) => self.write(object, json!({ "conditions": failed(why) })).await,
            // Planned for what is served alone.
            (Step::Date | Step::Rewrite | Step::Wait(_), _) => Ok(()),
        }
    }

    /// Writes the status of a migration as it was looked at.
    async fn write(&self, object: &Object, status: Value) -> Result<(), BoxError> {
        let seen = json!({ "uid": object.meta().uid, "resourceVersion": object.revision().to_string() });
        let patch = json!({ "metadata": seen, "status": status });
        let (resource, key) = (self.migrations.resource(), object.key());
        let written = self.ctx.client.patch(resource, &key, "status", PatchType::Merge, &patch).await;
        if let Some(written) = ignore_missing(written)? {
            self.ctx.caught_up(&self.migrations, written.revision()).await;
        }
        Ok(())
    }

    /// Tells the definition of a custom resource.
    async fn tell(
        &self,
        migration: &Migration,
        status: impl FnOnce(&Definition) -> Value,
    ) -> Result<(), BoxError> {
        let Resource { group, resource } = &migration.spec.resource;
        let (kind, key) = (kinds::CUSTOM_RESOURCE_DEFINITIONS, Key::new("", format!("{resource}.{group}")));
        let Some(object) = ignore_missing(self.ctx.client.get(&kind.gvr(), &key).await)? else {
            return Ok(());
        };
        let definition: Definition = decode(&object)?;
        // For the definition that was looked at: another may be stored otherwise.
        let body = json!({
            "apiVersion": kind.api_version(), "kind": kind.kind,
            "metadata": { "name": key.name, "uid": definition.metadata.uid,
                "resourceVersion": object.revision().to_string() },
            "status": status(&definition),
        });
        let client = self.ctx.client.for_manager(DEFINITIONS_MANAGER);
        ignore_missing(client.patch(&kind.gvr(), &key, "status", PatchType::Apply, &body).await)?;
        Ok(())
    }

    /// Writes every object as it is.
    async fn rewrite(
        &self,
        migration: &Migration,
        resource: &GroupVersionResource,
    ) -> Result<Outcome, BoxError> {
        let objects = self.objects(resource).await?;
        for batch in objects.chunks(BATCH) {
            let began = self.ctx.clock.now();
            for Stored { key, uid, revision } in batch {
                if self.component.cancel().is_cancelled() || self.is_unwanted(migration) {
                    return Ok(Outcome::Stopped);
                }
                let seen = json!({ "uid": uid, "resourceVersion": revision.to_string() });
                let patch = json!({ "metadata": seen });
                let written = self.ctx.client.patch(resource, key, "", PatchType::Merge, &patch).await;
                let Err(status) = ignore_gone(written) else { continue };
                match verdict(&status) {
                    Verdict::Fine => {}
                    // What is written already changes nothing the next time.
                    Verdict::Later => return Err(format!("cannot write {key} now: {status}").into()),
                    Verdict::Refused => {
                        let name = &migration.metadata.name;
                        tracing::warn!(migration = %name, object = %key, error = %status, "not migrated");
                        return Ok(Outcome::Refused);
                    }
                }
            }
            if batch.len() == BATCH {
                tokio::select! {
                    () = self.component.cancelled() => return Ok(Outcome::Stopped),
                    () = self.ctx.clock.sleep_until(began + BEAT) => {}
                }
            }
        }
        Ok(Outcome::Done)
    }

    fn is_unwanted(&self, migration: &Migration) -> bool {
        self.migrations.by_uid(&migration.metadata.uid).is_none()
    }

    /// All objects. They are named without a pause, since a list of pages does not stay readable for long.
    async fn objects(&self, resource: &GroupVersionResource) -> Result<Vec<Stored>, BoxError> {
        let mut objects = Vec::new();
        let mut options = ListOptions { limit: PAGE, ..ListOptions::default() };
        loop {
            let page = self.ctx.client.list(resource, "", options.clone()).await?;
            objects.extend(page.items.iter().map(|object| Stored::from(&**object)));
            if page.continue_token.is_empty() {
                return Ok(objects);
            }
            options.continue_token = page.continue_token;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    fn migration(name: &str, created: i64, version: &str, conditions: &[(&str, &str)]) -> Migration {
        let conditions: Vec<Value> =
            conditions.iter().map(|(kind, status)| json!({ "type": kind, "status": status })).collect();
        serde_json::from_value(json!({
            "metadata": { "name": name, "uid": name, "creationTimestamp": at(created).to_string() },
            "spec": { "resource": { "resource": "configmaps" } },
            "status": { "resourceVersion": version, "conditions": conditions },
        }))
        .unwrap()
    }

    fn next<'a>(all: &'a [Migration], standing: &Standing) -> Option<(&'a str, Step)> {
        plan(all, standing, at(10)).map(|(held, step)| (held.metadata.name.as_str(), step))
    }

    #[test]
    fn one_after_the_other_is_dated_begins_writes_and_finishes() {
        let served = Standing::Served(GroupVersionResource::new("", "v1", "configmaps"));
        let new = migration("new", 5, "", &[]);
        let waits = migration("waits", 3, "7", &[]);
        let older = migration("older", 1, "7", &[]);
        let runs = migration("runs", 9, "7", &[(RUNNING, "True")]);
        let ended = migration("ended", 0, "7", &[(RUNNING, "False"), (SUCCEEDED, "True")]);
        let done = migration("done", 0, "7", &[(FAILED, "True")]);
        assert_eq!(next(&[], &served), None);
        assert_eq!(next(std::slice::from_ref(&done), &served), None);
        assert_eq!(next(&[new.clone(), waits.clone(), done], &served), Some(("new", Step::Date)));
        assert_eq!(next(&[waits.clone(), older.clone()], &served), Some(("older", Step::Begin)));
        assert_eq!(next(&[waits, older, runs.clone()], &served), Some(("runs", Step::Rewrite)));
        assert_eq!(next(&[runs, ended], &served), Some(("ended", Step::Finish)));
        let unfit = Step::Fail("resource does not exist in discovery");
        assert_eq!(next(&[new], &Standing::Unfit), Some(("new", unfit)));
    }

    #[test]
    fn a_resource_that_nobody_knows_is_waited_for() {
        let (new, begun) = (migration("new", 5, "", &[]), migration("begun", 1, "", &[(RUNNING, "True")]));
        assert_eq!(next(std::slice::from_ref(&new), &Standing::Unknown), Some(("new", Step::Begin)));
        assert_eq!(next(&[new, begun], &Standing::Unknown), None);
        let gone = |created| migration("gone", created, "7", &[(RUNNING, "True")]);
        let wait = Step::Wait(Duration::from_secs(20));
        assert_eq!(next(&[gone(-30)], &Standing::Unknown), Some(("gone", wait)));
        assert_eq!(next(&[gone(-50)], &Standing::Unknown), Some(("gone", Step::Fail("resource not found"))));
    }

    #[test]
    fn a_migration_that_ends_runs_no_more() {
        let runs = migration("m", 0, "7", &[(RUNNING, "True")]);
        let conditions = runs.with(SUCCEEDED, "StorageVersionMigrationSucceeded", "", at(1));
        let told: Vec<_> = conditions.iter().map(|held| (&held["type"], &held["status"])).collect();
        assert_eq!(told, [(&json!(RUNNING), &json!("False")), (&json!(SUCCEEDED), &json!("True"))]);
    }

    #[test]
    fn a_definition_has_no_other_stored_version_if_it_is_the_one_that_was_migrated() {
        let definition = |observed: i64| -> Definition {
            serde_json::from_value(json!({
                "metadata": { "generation": 4 },
                "spec": { "versions": [{ "name": "v1", "storage": false }, { "name": "v2", "storage": true }] },
                "status": { "conditions": [{ "type": MIGRATING, "observedGeneration": observed }] },
            }))
            .unwrap()
        };
        assert_eq!(definition(4).ended(true, at(0))["storedVersions"], json!(["v2"]));
        for (observed, succeeded) in [(3, true), (4, false)] {
            assert!(definition(observed).ended(succeeded, at(0))["storedVersions"].is_null());
        }
        let condition = &definition(3).ended(true, at(0))["conditions"][0];
        assert!(condition["message"].as_str().unwrap().ends_with("due to a generation mismatch"));
    }

    #[test]
    fn resources_are_met_in_the_version_that_is_stored() {
        let rows = Rows::builtin();
        let found = |group: &str, resource: &str| {
            standing(&rows, &Resource { group: group.into(), resource: resource.into() })
        };
        let first =
            |group: &str, resource: &str| Standing::Served(GroupVersionResource::new(group, "v1", resource));
        assert_eq!(found("", "configmaps"), first("", "configmaps"));
        assert_eq!(found("resource.k8s.io", "resourceclaims"), first("resource.k8s.io", "resourceclaims"));
        assert_eq!(
            (found("", "bindings"), found("example.com", "boats")),
            (Standing::Unfit, Standing::Unknown)
        );
    }
}
