//! Create, update and patch: decode, default, admit, own fields, prepare, validate, one transaction.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use api::{Key, Object, PatchType, Response, Status, Verb, WriteOptions};
use parking_lot::Mutex;
use serde_json::Value;

use super::txn::Outcome;
use super::{Asked, Pipeline, meta, scale};
use crate::admission::{self, Notes, Operation, Options, Review};
use crate::authz::Attributes;
use crate::bootstrap;
use crate::field;
use crate::lengthy;
use crate::options;
use crate::tree;
use crate::words::{self, Writer};

/// How often a write that nobody forbids is repeated after another writer came in between.
const ATTEMPTS_MAX: u32 = 16;
/// How many generated names are tried. Source: `maxNameGenerationCreateAttempts`.
const NAMES_MAX: u32 = 8;

/// The field of metadata that says who owns which field.
const MANAGED: &str = "managedFields";

/// The object that a change begins with.
pub(super) struct Live {
    pub(super) object: Arc<Object>,
    /// Whether it may be out of date; a transaction finds out.
    pub(super) from_cache: bool,
    /// Whether it lies in the store as it would be written now.
    pub(super) in_form: bool,
}

/// One attempt at a change that may have to be repeated.
struct Round<'a> {
    options: Options<'a>,
    owned: Option<&'a (Writer, Ownership)>,
    attempt: u32,
    /// What counts only if no other round follows.
    notes: Notes,
}

/// What an update makes of the present object: a tree in the version asked for, with warnings.
pub(super) type Change<'a> = dyn Fn(&Value) -> Result<(Value, Vec<String>), Status> + Send + Sync + 'a;

/// Whether an update replaces fields or applies an intent (whose ownership is computed while applying).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ownership {
    /// Compute from what changed.
    FromChange,
    /// Already in the object.
    Applied,
}

impl Pipeline {
    pub(super) async fn create(
        &self,
        asked: &Asked<'_>,
        body: &[u8],
        options: &WriteOptions,
    ) -> Result<Response, Status> {
        options::check_write(options::Write::Create, options)?;
        let (mut object, mut warnings) = words::decode(&asked.kind, body, options.field_validation)?;
        meta::fit_to_request(asked, &mut object)?;
        if !tree::text(&object, &["metadata", "resourceVersion"]).is_empty() {
            return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
        }
        let owned = self.writer(options, asked).map(|writer| (writer, Ownership::FromChange));
        let (object, more) = self.create_tree(asked, object, Options::Write(options), owned).await?;
        warnings.extend(more);
        Ok(Response::Object { object: self.present(asked, object).await?, created: true, warnings })
    }

    /// Creates from a tree in the version asked for. Who writes owns what it sent, and not what admission and the server
    /// add; admission sees the object before it has a generated name, a uid and what the strategy gives it.
    /// Source: `handlers/create.go`, `registry/generic/registry/store.go`.
    async fn create_tree(
        &self,
        asked: &Asked<'_>,
        mut object: Value,
        options: Options<'_>,
        owned: Option<(Writer, Ownership)>,
    ) -> Result<(Arc<Object>, Vec<String>), Status> {
        words::default(&asked.kind, &mut object);
        let mut object = self.parts.catalog.convert(object, &asked.kind, &asked.stored);
        self.default(asked, &mut object);
        meta::wipe(&mut object);
        if let Some((writer, Ownership::FromChange)) = &owned {
            words::own_changes(&asked.stored, None, &mut object, writer);
        }
        let given = tree::text(&object, &["metadata", "name"]).to_owned();
        let prefix = tree::text(&object, &["metadata", "generateName"]).to_owned();
        let review = self.review_of(asked, Operation::Create, options, &asked.notes, &given, None);
        let review = Review { prefix: &prefix, ..review };
        if self.let_change(&review, &mut object).await? {
            meta::fit_to_request(asked, &mut object)?;
        }
        self.default(asked, &mut object);
        asked.strategy.complete(&mut object);
        let generated = tree::text(&object, &["metadata", "name"]).is_empty();
        for attempt in 1.. {
            match self.create_named(asked, object, options).await? {
                Created::Stored(object, warnings) => return Ok((object, warnings)),
                Created::Taken(taken) if generated && attempt < NAMES_MAX => {
                    object = taken;
                    tree::metadata(&mut object).remove("name");
                }
                Created::Taken(taken) => return Err(exists(asked, &taken)),
            }
        }
        Err(busy(asked))
    }

    /// Creates an object that admission has changed under the name that it has or is given now.
    async fn create_named(
        &self,
        asked: &Asked<'_>,
        mut object: Value,
        options: Options<'_>,
    ) -> Result<Created, Status> {
        meta::begin(&mut object, self.parts.clock.now(), asked.strategy.generation());
        prepare_create(asked, &mut object);
        self.default(asked, &mut object);
        self.check_privileges(asked, &object, None).await?;
        let key = meta::key_of(&object);
        let mut errors = self.check_label(asked, &object, None).await;
        meta::validate(&object, asked, &mut errors);
        unhurried(asked, || {
            asked.strategy.validate(&object, &mut errors);
            asked.strategy.validate_create(&object, &mut errors);
            asked.strategy.validate_spoken(&asked.kind.group, &object, None, &mut errors);
            if !bootstrap::is_server(asked.user) {
                asked.strategy.validate_foreign(&object, None, &mut errors);
            }
        });
        add_schemas(&mut errors, |errors| words::validate(&asked.stored, &object, None, errors));
        errors.retain(|error| !asked.strategy.forgives(&asked.kind.version, error));
        field::check(&asked.kind.group, &asked.kind.kind, &key.name, &errors)?;
        let review = self.review_of(asked, Operation::Create, options, &asked.notes, &key.name, None);
        admission::validate(&self.parts.admission, &review, Some(&object), self).await?;
        let warnings = asked.strategy.warnings(&object);
        for attempt in 0..ATTEMPTS_MAX {
            let mut chosen = object.clone();
            let companions = asked.strategy.companions(self, None, Some(&mut chosen), attempt)?;
            if options.dry_run() {
                if self.read_stored(&asked.stored, &key).await?.is_some() {
                    return Ok(Created::Taken(object));
                }
                self.check_claims(companions).await?;
                return Ok(Created::Stored(self.unstored(asked, &chosen).await?, warnings));
            }
            match self.put(asked, &key, &chosen, 0, companions).await? {
                Outcome::Written(object) => return Ok(Created::Stored(object, warnings)),
                Outcome::Raced => return Ok(Created::Taken(object)),
                Outcome::CompanionTaken | Outcome::Deleted(_) => {}
            }
        }
        Err(busy(asked))
    }

    /// Lets admission change an object; whether a configured plugin did. Its managedFields go back to what they were where
    /// a plugin made nonsense of them. Source: `handlers/fieldmanager/admission.go`.
    async fn let_change(&self, review: &Review<'_>, object: &mut Value) -> Result<bool, Status> {
        let changed = admission::mutate(&self.parts.admission, review, object, self).await?;
        let Some(before) = review.rounds.owned_before() else { return Ok(changed) };
        if let Err(problem) = api::patch::apply::check_record(tree::at(object, &["metadata", MANAGED])) {
            review.notes.warn(format!(
                ".metadata.managedFields was in an invalid state after admission; this could be caused by an outdated \
                 mutating admission controller; please fix your requests: {problem}"
            ));
            let metadata = tree::metadata(object);
            metadata.remove(MANAGED);
            if before.is_array() {
                metadata.insert(MANAGED.into(), before);
            }
        }
        Ok(changed)
    }

    /// Schema defaults and those that depend on other fields, in the storage version.
    fn default(&self, asked: &Asked<'_>, object: &mut Value) {
        words::default(&asked.stored, object);
        asked.strategy.default(object);
        asked.strategy.date(object, None, self.parts.clock.now());
    }

    pub(super) async fn update(
        &self,
        asked: &Asked<'_>,
        body: &[u8],
        options: &WriteOptions,
    ) -> Result<Response, Status> {
        options::check_write(options::Write::Update, options)?;
        let decode = || {
            let (mut object, warnings) = words::decode(&asked.kind, body, options.field_validation)?;
            meta::same_object(asked, &mut object)?;
            words::default(&asked.kind, &mut object);
            Ok((object, warnings))
        };
        // Whoever has to try again reads the body again: that is rarer than a copy would be dear.
        let decoded = Mutex::new(Some(decode()?));
        let taken = || decoded.lock().take().map_or_else(decode, Ok);
        let change = |_: &Value| taken();
        let owned = self.writer(options, asked).map(|writer| (writer, Ownership::FromChange));
        match self.change(asked, &change, Options::Write(options), owned.clone()).await {
            Err(status)
                if status.reason == api::Reason::NotFound
                    && asked.strategy.create_on_update()
                    && asked.subresource.is_empty() =>
            {
                self.authorize_creation(asked).await?;
                let (mut object, mut warnings) = taken()?;
                tree::metadata(&mut object).remove("resourceVersion");
                let (object, more) = self.create_tree(asked, object, Options::Write(options), owned).await?;
                warnings.extend(more);
                Ok(Response::Object { object: self.present(asked, object).await?, created: true, warnings })
            }
            other => other,
        }
    }

    pub(super) async fn patch(
        &self,
        asked: &Asked<'_>,
        kind: PatchType,
        body: &bytes::Bytes,
        options: &WriteOptions,
    ) -> Result<Response, Status> {
        let what = if kind == PatchType::Apply { options::Write::Apply } else { options::Write::Patch };
        options::check_write(what, options)?;
        if kind == PatchType::StrategicMerge && asked.kind.custom.is_some() {
            return Err(no_strategic_merge());
        }
        let patch = words::Patch::parse(kind, body)?;
        let writer = self.writer(options, asked);
        if let words::Patch::Apply(intent) = patch {
            let Some(writer) = writer else { return Err(Status::internal("apply without a writer")) };
            // The intent is checked as a body of its own; what it does not say stays unsaid.
            let (intent, warnings) =
                words::decode_intent(&asked.kind, asked.subresource, &intent, options.field_validation)?;
            let apply = |live: Option<&Value>| {
                let mut new = words::apply(&asked.kind, live, &intent, &writer, options.force)?;
                meta::same_object(asked, &mut new)?;
                words::default(&asked.kind, &mut new);
                Ok::<_, Status>((new, warnings.clone()))
            };
            let change = |live: &Value| apply(Some(live));
            let owned = Some((writer.clone(), Ownership::Applied));
            return match self.change(asked, &change, Options::Write(options), owned.clone()).await {
                Err(status) if status.reason == api::Reason::NotFound && asked.subresource.is_empty() => {
                    self.authorize_creation(asked).await?;
                    let (object, mut warnings) = apply(None)?;
                    meant_another(asked, &object)?;
                    let (object, more) =
                        self.create_tree(asked, object, Options::Write(options), owned).await?;
                    warnings.extend(more);
                    Ok(Response::Object {
                        object: self.present(asked, object).await?,
                        created: true,
                        warnings,
                    })
                }
                other => other,
            };
        }
        let change = |live: &Value| {
            let patched = || words::patch(&asked.kind, live, &patch);
            let decoded = words::decode_tree(&asked.kind, patched()?, options.field_validation);
            let (mut object, warnings) = decoded.map_err(|status| misshapen(status, &patch, patched))?;
            meta::same_object(asked, &mut object)?;
            words::default(&asked.kind, &mut object);
            Ok((object, warnings))
        };
        let owned = writer.map(|writer| (writer, Ownership::FromChange));
        self.change(asked, &change, Options::Write(options), owned).await
    }

    /// Who updates or applies what is not there creates it, and needs the right to. Source: `handlers/update.go`,
    /// `withAuthorization`.
    async fn authorize_creation(&self, asked: &Asked<'_>) -> Result<(), Status> {
        let creation = Attributes {
            user: asked.user.clone(),
            verb: Verb::Create.as_str().into(),
            namespace: asked.namespace.into(),
            group: asked.kind.group.to_string(),
            version: asked.kind.version.to_string(),
            resource: asked.kind.plural.to_string(),
            name: asked.name.into(),
            is_resource: true,
            ..Attributes::default()
        };
        self.authorize(&creation).await
    }

    /// The conflict-retry loop around one change of one object (or of its status).
    pub(super) async fn change(
        &self,
        asked: &Asked<'_>,
        change: &Change<'_>,
        options: Options<'_>,
        owned: Option<(Writer, Ownership)>,
    ) -> Result<Response, Status> {
        let key = Key::new(asked.namespace, asked.name);
        for attempt in 0..ATTEMPTS_MAX {
            let live = self.live(asked, &key, attempt).await?;
            let round = Round { options, owned: owned.as_ref(), attempt, notes: Notes::default() };
            let answer = match self.change_once(asked, change, &live, &round).await {
                Ok(Some(response)) => Ok(response),
                Ok(None) => continue,
                Err(status) => Err(status),
            };
            // What the cache showed may have been out of date.
            if answer.is_err() && live.from_cache && !self.is_present(asked, &key, &live.object).await? {
                continue;
            }
            asked.notes.absorb(round.notes);
            return answer;
        }
        Err(busy(asked))
    }

    /// The object that a round begins with. The first asks the cache: it is nearly always right, and the transaction
    /// finds out if not.
    pub(super) async fn live(&self, asked: &Asked<'_>, key: &Key, attempt: u32) -> Result<Live, Status> {
        let cached =
            if attempt == 0 { self.cache(&asked.stored).peek(&key.namespace, &key.name) } else { None };
        let from_cache = cached.is_some();
        let object = match cached {
            Some(object) => object,
            None => self.read_stored(&asked.stored, key).await?.ok_or_else(|| asked.not_found())?,
        };
        let in_form = self.is_stored_form(asked, &object);
        let object = if asked.kind.custom.is_some() { self.present(asked, object).await? } else { object };
        Ok(Live { object, from_cache, in_form })
    }

    /// Whether an object that the cache showed is what the store has. To ask is cheaper than to do everything again, and
    /// nobody whom admission asks is asked twice.
    pub(super) async fn is_present(
        &self,
        asked: &Asked<'_>,
        key: &Key,
        shown: &Object,
    ) -> Result<bool, Status> {
        let stored = self.read_stored(&asked.stored, key).await?;
        Ok(stored.is_some_and(|stored| stored.revision() == shown.revision()))
    }

    /// One round: `None` if another writer came in between and the change may be repeated, or if nothing would be
    /// written and the cache, which may be out of date, is all that says so.
    async fn change_once(
        &self,
        asked: &Asked<'_>,
        change: &Change<'_>,
        live: &Live,
        round: &Round<'_>,
    ) -> Result<Option<Response>, Status> {
        let Live { object: live, from_cache, in_form } = live;
        let Round { options, owned, attempt, notes } = round;
        let dry_run = options.dry_run();
        let catalog = &self.parts.catalog;
        let old: Value = live.decode().map_err(|error| Status::internal(error.to_string()))?;
        let shown = if asked.kind.is_storage_version() || asked.kind.custom.is_some() {
            Cow::Borrowed(&old)
        } else {
            Cow::Owned(catalog.convert(old.clone(), &asked.stored, &asked.kind))
        };
        let (new, mut warnings) = change(&shown)?;
        drop(shown);
        self.precondition(asked, &new, live)?;
        let mut new = catalog.convert(new, &asked.kind, &asked.stored);
        self.prepare_update(asked, &mut new, &old);
        match owned {
            Some((writer, Ownership::FromChange)) => {
                words::own_changes(&asked.stored, Some(&old), &mut new, writer);
            }
            Some((_, Ownership::Applied)) => {}
            None => tree::copy(tree::at(&old, &["metadata"]), tree::member(&mut new, "metadata"), MANAGED),
        }
        let shown_old = shown_part(asked, &old);
        let review = self.review_of(asked, Operation::Update, *options, notes, asked.name, Some(&shown_old));
        self.mutate_change(asked, &review, &mut new, &old).await?;
        self.default(asked, &mut new);
        self.check_privileges(asked, &new, Some(&old)).await?;
        self.validate_update(asked, &new, &old).await?;
        let same = self.parts.comparisons.same(&new, &old) && *in_form;
        if !asked.admitted {
            let shown = shown_part(asked, &new);
            admission::validate(&self.parts.admission, &review, Some(&shown), self).await?;
        }
        if asked.subresource.is_empty() {
            warnings.extend(asked.strategy.warnings(&new));
        }
        let key = meta::key_of(&old);
        if *from_cache && (same || dry_run) && !self.is_present(asked, &key, live).await? {
            return Ok(None);
        }
        if same && (dry_run || !self.is_stale(asked, &key).await?) {
            let object = self.present(asked, live.clone()).await?;
            return Ok(Some(Response::Object { object, created: false, warnings }));
        }
        let companions = asked.strategy.companions(self, Some(&old), Some(&mut new), *attempt)?;
        if dry_run {
            self.check_claims(companions).await?;
            tree::metadata(&mut new).insert("resourceVersion".into(), live.revision().to_string().into());
            let object = self.present(asked, self.unstored(asked, &new).await?).await?;
            return Ok(Some(Response::Object { object, created: false, warnings }));
        }
        let outcome = if self.may_vanish(asked, &new) {
            let gone = asked.strategy.companions(self, Some(&old), None, *attempt)?;
            self.remove(asked, &key, live.revision(), gone).await?
        } else {
            self.put(asked, &key, &new, live.revision(), companions).await?
        };
        match outcome {
            Outcome::Written(object) => {
                let object = self.present(asked, object).await?;
                Ok(Some(Response::Object { object, created: false, warnings }))
            }
            Outcome::Deleted(revision) => {
                tree::metadata(&mut new).insert("resourceVersion".into(), revision.to_string().into());
                let object = self.present(asked, unsaved(&new)?).await?;
                Ok(Some(Response::Object { object, created: false, warnings }))
            }
            // The next round reads anew: a patch is computed again, and an update that names its version
            // then meets the conflict.
            Outcome::Raced | Outcome::CompanionTaken => Ok(None),
        }
    }

    /// Whether an object lies in the store under an old key, so that writing it as it is changes how it lies.
    async fn is_stale(&self, asked: &Asked<'_>, key: &Key) -> Result<bool, Status> {
        let Some(sealed) = self.sealed() else { return Ok(false) };
        let stale = sealed.is_stale(&super::context::store_key(&asked.stored, key)).await;
        stale.map_err(crate::cache::unavailable)
    }

    /// Lets admission change what an update makes of an object. What it may not change goes back, as with what clients send.
    async fn mutate_change(
        &self,
        asked: &Asked<'_>,
        review: &Review<'_>,
        new: &mut Value,
        old: &Value,
    ) -> Result<(), Status> {
        if asked.admitted {
            return Ok(());
        }
        if asked.subresource == scale::NAME {
            let mut shown = scale::shown(asked, new);
            if self.let_change(review, &mut shown).await? {
                scale::take(asked, &shown, new);
            }
        } else if self.let_change(review, new).await? {
            self.prepare_update(asked, new, old);
        }
        Ok(())
    }

    /// A conflict if the writer named the object or the version that it changes and that is not the present one.
    fn precondition(&self, asked: &Asked<'_>, new: &Value, live: &Object) -> Result<(), Status> {
        let (uid, present) = (tree::text(new, &["metadata", "uid"]), live.revision());
        if !uid.is_empty() && uid != live.meta().uid {
            let why = super::delete::other_uid(uid, live);
            return Err(asked.conflict(&why));
        }
        let version = tree::text(new, &["metadata", "resourceVersion"]);
        if version.is_empty() || version == "0" {
            if asked.strategy.unconditional_update() {
                return Ok(());
            }
            let errors = [field::FieldError::invalid(
                "metadata.resourceVersion",
                &Value::String(version.into()),
                "must be specified for an update",
            )];
            field::check(&asked.kind.group, &asked.kind.kind, asked.name, &errors)?;
        }
        if version.parse() == Ok(present) { Ok(()) } else { Err(asked.conflict(MODIFIED)) }
    }

    /// What writers may not change goes back to what it was; generation counts what they did change.
    fn prepare_update(&self, asked: &Asked<'_>, new: &mut Value, old: &Value) {
        // A custom resource whose status is no subresource has no status apart from the rest.
        let apart = asked.kind.custom.is_none() || asked.kind.subresource("status").is_some();
        match asked.subresource {
            "" => {}
            "status" => {
                isolate(new, old, |wanted, new| tree::copy(wanted, new, "status"));
                meta::keep(new, old, false);
                asked.strategy.prepare_status(new, old);
                return;
            }
            "approval" | "finalize" | "ephemeralcontainers" | "resize" => {
                let part = asked.subresource;
                isolate(new, old, |wanted, new| asked.strategy.take_part(part, wanted, new));
                self.default(asked, new);
                let changed = asked.strategy.generation() && meta::spec_differs(new, old, apart);
                return meta::keep(new, old, changed);
            }
            system => {
                // The system's own changes (binding, scale) touch what they name and nothing else.
                let counts = system == "scale" && meta::spec_differs(new, old, apart);
                return meta::keep(new, old, counts);
            }
        }
        if asked.kind.subresource("status").is_some() {
            tree::copy(old, new, "status");
        }
        self.default(asked, new);
        asked.strategy.prepare_update(new, old);
        asked.strategy.date(new, Some(old), self.parts.clock.now());
        let changed = asked.strategy.generation() && meta::spec_differs(new, old, apart);
        meta::keep(new, old, changed);
    }

    async fn validate_update(&self, asked: &Asked<'_>, new: &Value, old: &Value) -> Result<(), Status> {
        let mut errors = self.check_claim_rights(asked, new, old).await;
        errors.extend(self.check_label(asked, new, Some(old)).await);
        meta::validate(new, asked, &mut errors);
        meta::validate_change(new, old, &mut errors);
        match asked.subresource {
            "" => {
                unhurried(asked, || {
                    asked.strategy.validate(new, &mut errors);
                    asked.strategy.validate_update(new, old, &mut errors);
                    asked.strategy.validate_spoken(&asked.kind.group, new, Some(old), &mut errors);
                    if !bootstrap::is_server(asked.user) {
                        asked.strategy.validate_foreign(new, Some(old), &mut errors);
                    }
                });
                add_schemas(&mut errors, |errors| words::validate_change(&asked.stored, new, old, errors));
            }
            "status" => asked.strategy.validate_status(new, old, &mut errors),
            part => asked.strategy.validate_part(part, new, old, &mut errors),
        }
        add_schemas(&mut errors, |errors| words::validate(&asked.stored, new, Some(old), errors));
        errors.retain(|error| !asked.strategy.forgives(&asked.kind.version, error));
        field::check(&asked.kind.group, &asked.kind.kind, asked.name, &errors)
    }

    /// Whether an object whose deletion has begun has nothing left that keeps it.
    pub(super) fn may_vanish(&self, asked: &Asked<'_>, object: &Value) -> bool {
        let grace = tree::at(object, &["metadata", "deletionGracePeriodSeconds"]).as_i64().unwrap_or(0);
        meta::terminating(object)
            && meta::finalizers(object).is_empty()
            && grace == 0
            && !asked.strategy.keeps(object)
    }

    pub(super) fn review_of<'a>(
        &self,
        asked: &'a Asked<'_>,
        operation: Operation,
        options: Options<'a>,
        notes: &'a Notes,
        name: &'a str,
        old: Option<&'a Value>,
    ) -> Review<'a> {
        Review {
            user: asked.user,
            operation,
            options,
            asked: &asked.kind,
            kind: &asked.stored,
            resource: &asked.resource,
            subresource: asked.subresource,
            namespace: asked.namespace,
            name,
            prefix: "",
            old,
            notes,
            rounds: Default::default(),
        }
    }

    /// Who writes, for managedFields.
    pub(super) fn writer(&self, options: &WriteOptions, asked: &Asked<'_>) -> Option<Writer> {
        let manager =
            if options.field_manager.is_empty() { "unknown" } else { options.field_manager.as_str() };
        Some(Writer {
            manager: manager.chars().take(128).collect(),
            api_version: asked.kind.api_version(),
            subresource: asked.subresource.to_owned(),
            time: meta::rfc3339(self.parts.clock.now()),
        })
    }
}

/// What became of an object that was to be created.
enum Created {
    Stored(Arc<Object>, Vec<String>),
    /// Its name is taken; the object that has it now could not be made.
    Taken(Value),
}

/// 409 for an object whose name is taken; where the server chose it, whoever asked may ask again.
fn exists(asked: &Asked<'_>, object: &Value) -> Status {
    let name = tree::text(object, &["metadata", "name"]);
    let mut status = Status::already_exists(&asked.kind.group, &asked.kind.plural, name);
    if !tree::text(object, &["metadata", "generateName"]).is_empty() {
        status.message += ", the server was not able to generate a unique name for the object";
        status.details.retry_after_seconds = 1;
    }
    status
}

/// Fields of a new object that nobody may set are cleared.
fn prepare_create(asked: &Asked<'_>, object: &mut Value) {
    if asked.kind.subresource("status").is_some() && !asked.strategy.created_with_status() {
        tree::members(object).remove("status");
    }
    asked.strategy.signed(asked.user, object);
    asked.strategy.prepare_create(object);
}

/// What of an object a request to a subresource is about, as admission sees it.
fn shown_part<'v>(asked: &Asked<'_>, object: &'v Value) -> Cow<'v, Value> {
    if asked.subresource == scale::NAME {
        return Cow::Owned(scale::shown(asked, object));
    }
    Cow::Borrowed(object)
}

/// Validates; where that may take long, others do not wait for the thread meanwhile.
fn unhurried(asked: &Asked<'_>, validate: impl FnOnce()) {
    if asked.strategy.validation_is_lengthy() { lengthy::run(validate) } else { validate() }
}

/// Adds what the schema finds where the strategy, which knows upstream's words, found nothing.
fn add_schemas(errors: &mut field::FieldErrors, check: impl FnOnce(&mut field::FieldErrors)) {
    let mut more = Vec::new();
    check(&mut more);
    let fields: HashSet<&str> = errors.iter().map(|known| known.field.as_str()).collect();
    let known: HashSet<(&str, &str)> =
        errors.iter().map(|known| (known.field.as_str(), &*known.reason)).collect();
    let said = |found: &field::FieldError| {
        fields.contains(found.field.as_str())
            || above(&found.field).any(|field| known.contains(&(field, &*found.reason)))
    };
    more.retain(|found| !said(found));
    errors.extend(more);
}

/// The fields that a field is part of. Upstream names a list where the schema names its item.
fn above(field: &str) -> impl Iterator<Item = &str> {
    let is_item = field.ends_with(']');
    let cuts = field.match_indices(['.', '[']).filter(move |(_, cut)| *cut == "." || is_item);
    cuts.map(|(place, _)| &field[..place])
}

/// Upstream's explanation of a conflict.
pub(crate) const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

/// Who names the object's uid means one that there was: it is not made anew. Source: `handlers/patch.go`, `applyPatch`.
fn meant_another(asked: &Asked<'_>, object: &Value) -> Result<(), Status> {
    let uid = tree::text(object, &["metadata", "uid"]);
    if uid.is_empty() {
        return Ok(());
    }
    let why =
        format!("uid mismatch: the provided object specified uid {uid}, and no existing object was found");
    Err(Status::conflict(&asked.kind.group, &asked.kind.plural, asked.name, &why))
}

/// An update of a part of an object changes what `part` copies, the annotations, and nothing else.
fn isolate(new: &mut Value, old: &Value, part: impl Fn(&Value, &mut Value)) {
    let wanted = std::mem::replace(new, old.clone());
    part(&wanted, new);
    for field in ["annotations", "managedFields"] {
        tree::copy(tree::at(&wanted, &["metadata"]), tree::member(new, "metadata"), field);
    }
}

/// The 422 of a patch whose result is no object of the kind: shown is the result, and of a strategic merge the patch.
/// Source: `handlers/patch.go`.
pub(super) fn misshapen(
    status: Status,
    patch: &words::Patch,
    patched: impl FnOnce() -> Result<Value, Status>,
) -> Status {
    // What follows the colon is the decoder's own sentence.
    let problem = status.message.split_once(" cannot be handled as a ");
    let problem = problem.and_then(|(_, rest)| rest.split_once(": ")).map(|(_, problem)| problem.to_owned());
    let Some(problem) = problem else { return status };
    let (shown, problem) = match patch {
        words::Patch::Strategic(patch) => {
            (api::patch::shown(patch), unrestorable(&problem).unwrap_or(problem))
        }
        _ => match patched() {
            Ok(patched) => (patched.to_string(), problem),
            Err(_) => return status,
        },
    };
    let errors = [field::FieldError::invalid("patch", &Value::String(shown), &problem)];
    field::check("", "", "", &errors).err().unwrap_or(status)
}

/// The sentence of a decoder about a value of a wrong type in the words of the converter that upstream reads the result
/// of a strategic merge with. Source: `fromUnstructured` in `apimachinery/pkg/runtime/converter.go`.
fn unrestorable(problem: &str) -> Option<String> {
    let (found, rest) = problem.strip_prefix("json: cannot unmarshal ")?.split_once(" into Go ")?;
    let (_, wanted) = rest.rsplit_once(" of type ")?;
    let found = match found {
        "array" => "slice",
        "object" => "map",
        "number" => "int64",
        text if text.starts_with("number") => "float64",
        text => text,
    };
    Some(match wanted {
        list if list.starts_with("[]") => format!("cannot restore slice from {found}"),
        map if map.starts_with("map[") => format!("cannot restore map from {found}"),
        structure if structure.contains('.') => format!("cannot restore struct from: {found}"),
        // A number that is too large is one that upstream cuts off.
        "int32" | "int64" if found == "int64" => return None,
        "int32" | "int64" if found == "float64" => format!("cannot convert {found} to {wanted}"),
        "string" if found == "int64" => format!("cannot convert {found} to {wanted}"),
        scalar => format!("unrecognized type: {scalar}"),
    })
}

/// Custom resources have no strategy for their lists.
fn no_strategic_merge() -> Status {
    let message = "the body of the request was in an unknown format - accepted media types include: \
                   application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml";
    Status::new(api::Reason::UnsupportedMediaType, message)
}

fn busy(asked: &Asked<'_>) -> Status {
    let message = format!(
        "{} \"{}\" is being written by too many others at once; try again",
        asked.kind.plural, asked.name
    );
    Status::new(api::Reason::ServerTimeout, message)
}

/// An object that is not stored: dry runs and the last state of what went.
pub(super) fn unsaved(object: &Value) -> Result<Arc<Object>, Status> {
    let bytes = serde_json::to_vec(object).map_err(|error| Status::internal(error.to_string()))?;
    Object::parse(bytes.into()).map(Arc::new).map_err(|error| Status::internal(error.to_string()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{add_schemas, unrestorable};
    use crate::field::FieldError;

    #[test]
    fn what_a_strategy_says_of_a_list_is_not_said_of_its_item_again() {
        let wrong = |field: &str| FieldError::not_supported(field, &json!("x"), &["y"]);
        let mut errors = vec![wrong("spec.accessModes")];
        add_schemas(&mut errors, |found| {
            found.extend([
                wrong("spec.accessModes[0]"),
                wrong("spec.accessModesToo"),
                wrong("spec.other[1]"),
            ]);
        });
        let fields: Vec<&str> = errors.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(fields, ["spec.accessModes", "spec.accessModesToo", "spec.other[1]"]);
    }

    #[test]
    fn a_wrong_type_is_told_in_the_converters_words() {
        for (found, wanted, said) in [
            ("string", "int32", Some("unrecognized type: int32")),
            ("bool", "string", Some("unrecognized type: string")),
            ("number", "string", Some("cannot convert int64 to string")),
            ("number 1.5", "int32", Some("cannot convert float64 to int32")),
            ("string", "map[string]string", Some("cannot restore map from string")),
            ("object", "[]v1.Container", Some("cannot restore slice from map")),
            ("array", "v1.PodSpec", Some("cannot restore struct from: slice")),
            ("number", "int32", None),
        ] {
            let sentence =
                format!("json: cannot unmarshal {found} into Go struct field A.b.c of type {wanted}");
            assert_eq!(unrestorable(&sentence).as_deref(), said, "{sentence}");
        }
        assert_eq!(unrestorable("strict decoding error: unknown field \"a\""), None);
    }

    #[test]
    fn a_schema_is_silent_where_the_strategy_spoke() {
        let found = |field: &str| FieldError::required(field, "");
        let mut errors = vec![found("spec.accessModes"), found("spec.a[0].b")];
        add_schemas(&mut errors, |more| {
            more.extend(
                ["spec.accessModes[1]", "spec.a[0].b.c", "spec.a[0]", "spec.accessModesToo"].map(found),
            );
            more.push(FieldError::duplicate("spec.a[0].b", &json!(1)));
            more.push(FieldError::duplicate("spec.a[0].b.c", &json!(1)));
        });
        let all: Vec<_> = errors.iter().map(|error| error.field.as_str()).collect();
        let wanted = ["spec.accessModes", "spec.a[0].b", "spec.a[0]", "spec.accessModesToo", "spec.a[0].b.c"];
        assert_eq!(all, wanted);
    }

    /// A body of three megabytes holds hundreds of thousands of mistakes: each is looked up and compared with no other.
    #[test]
    fn a_multitude_of_mistakes_is_sorted_at_once() {
        let found = |number: usize| FieldError::required(format!("spec.containers[{number}].name"), "");
        let mut errors: Vec<FieldError> = (0..200_000).map(found).collect();
        add_schemas(&mut errors, |more| more.extend((0..200_000).map(found)));
        assert_eq!(errors.len(), 200_000);
    }
}
