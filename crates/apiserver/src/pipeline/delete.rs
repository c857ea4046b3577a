//! Delete and deletecollection: preconditions, grace, finalizers, propagation. Source: `registry/rest/delete.go`,
//! `registry/generic/registry/store.go`.

use std::sync::Arc;
use std::time::Duration;

use api::{DeleteOptions, Key, ListOptions, Object, Propagation, Response, Status};
use serde_json::Value;

use super::txn::Outcome;
use super::write::{Live, unsaved};
use super::{Asked, Pipeline, meta};
use crate::admission::{self, Operation, Options};
use crate::tree;

/// How often a deletion is repeated after another writer came in between.
const ATTEMPTS_MAX: u32 = 16;
/// The longest grace, 136 years: moments beyond it may not be sayable.
const GRACE_SECONDS_MAX: i64 = u32::MAX as i64;
const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// What a deletion does to an object. Pure.
#[derive(Debug, PartialEq)]
enum Plan {
    /// Nothing keeps it; where the kind's deletions answer with the object, how that looks at its end.
    Remove(Option<Box<Value>>),
    /// It stays for now, changed like this.
    Mark(Box<Value>),
    /// It is on its way already.
    Pending,
}

/// Whether a transaction stands behind an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proof {
    Committed,
    None,
}

impl Pipeline {
    pub(super) async fn delete(
        &self,
        asked: &Asked<'_>,
        options: &DeleteOptions,
    ) -> Result<Response, Status> {
        if options.ignore_read_error {
            return self.delete_unreadable(asked, options).await;
        }
        let key = Key::new(asked.namespace, asked.name);
        for attempt in 0..ATTEMPTS_MAX {
            let Live { object, from_cache, .. } = self.live(asked, &key, attempt).await?;
            let answer = match self.delete_once(asked, options, &key, object.clone(), attempt).await {
                Ok(Some((response, Proof::Committed))) => return Ok(response),
                Ok(Some((response, Proof::None))) => Ok(response),
                Ok(None) => continue,
                Err(status) => Err(status),
            };
            // Only a transaction proves that what the cache showed was not out of date.
            if !from_cache || self.is_present(asked, &key, &object).await? {
                return answer;
            }
        }
        Err(asked.conflict("it is being changed by others all the time; try again"))
    }

    async fn delete_once(
        &self,
        asked: &Asked<'_>,
        options: &DeleteOptions,
        key: &Key,
        live: Arc<Object>,
        attempt: u32,
    ) -> Result<Option<(Response, Proof)>, Status> {
        check_preconditions(
            asked,
            options,
            &live.meta().name,
            [&live.meta().uid, &live.meta().resource_version],
        )?;
        let old: Value = live.decode().map_err(|error| Status::internal(error.to_string()))?;
        let review = self.review_of(
            asked,
            Operation::Delete,
            Options::Delete(options),
            &asked.notes,
            asked.name,
            Some(&old),
        );
        if !asked.admitted {
            admission::validate(&self.parts.admission, &review, None, self).await?;
        }
        let uid = live.meta().uid.clone();
        let (outcome, last) = match self.plan_delete(asked, options, &old) {
            Plan::Pending => return Ok(Some((self.kept(asked, live).await?, Proof::None))),
            Plan::Remove(last) if options.dry_run => {
                let last = last.map(|last| unsaved(&last)).transpose()?;
                return Ok(Some((self.deleted(asked, uid, last).await?, Proof::None)));
            }
            Plan::Mark(new) if options.dry_run => {
                return Ok(Some((self.kept(asked, unsaved(&new)?).await?, Proof::None)));
            }
            Plan::Remove(last) => {
                let companions = asked.strategy.companions(self, Some(&old), None, attempt)?;
                (self.remove(asked, key, live.revision(), companions).await?, last)
            }
            Plan::Mark(new) => (self.put(asked, key, &new, live.revision(), Default::default()).await?, None),
        };
        Ok(match outcome {
            Outcome::Deleted(revision) => {
                let last = last.map(|mut last| {
                    // What is gone is shown as of its deletion.
                    tree::metadata(&mut last).insert("resourceVersion".into(), revision.to_string().into());
                    unsaved(&last)
                });
                Some((self.deleted(asked, uid, last.transpose()?).await?, Proof::Committed))
            }
            Outcome::Written(object) => {
                self.tell_admission(asked, &object).await;
                Some((self.kept(asked, object).await?, Proof::Committed))
            }
            Outcome::Raced | Outcome::CompanionTaken => None,
        })
    }

    /// The answer about an object that is still there.
    async fn kept(&self, asked: &Asked<'_>, object: Arc<Object>) -> Result<Response, Status> {
        let object = self.present(asked, object).await?;
        Ok(Response::Object { object, created: false, warnings: Vec::new() })
    }

    /// The answer about one that is gone. Source: `Store.finalizeDelete` of `registry/generic/registry`.
    async fn deleted(
        &self,
        asked: &Asked<'_>,
        uid: String,
        last: Option<Arc<Object>>,
    ) -> Result<Response, Status> {
        let object = match last {
            Some(last) => Some(self.present(asked, last).await?),
            None => None,
        };
        Ok(Response::Deleted { uid, object, warnings: Vec::new() })
    }

    /// Admission asks the cache whether a namespace still takes objects: who has been told that its deletion began finds
    /// it closed. A cache that is late stays so without holding up the answer for long.
    async fn tell_admission(&self, asked: &Asked<'_>, written: &Object) {
        if asked.stored.group.is_empty() && asked.stored.kind == "Namespace" {
            let _ = self.cache(&asked.stored).wait_for_or_progress(written.revision()).await;
        }
    }

    fn plan_delete(&self, asked: &Asked<'_>, options: &DeleteOptions, old: &Value) -> Plan {
        let grace = asked.strategy.grace_seconds(old, options);
        let left = grace_left(old);
        let mut new = old.clone();
        let finalizers = finalizers_after(asked, options, old);
        set_finalizers(&mut new, &finalizers);
        if !meta::terminating(old) {
            self.mark(&mut new, grace.unwrap_or(0), asked.strategy.generation());
            asked.strategy.deletion_began(&mut new);
        } else if grace.is_some() && left > 0 {
            // A second deletion may only shorten the grace, and changes nothing else unless it does.
            // One below zero is the shortest that there is, and never none. Source: `rest.BeforeDelete`.
            let wanted = options.grace_period_seconds.map(|wanted| if wanted < 0 { 1 } else { wanted });
            match wanted.filter(|wanted| *wanted < left) {
                Some(wanted) => self.shorten(&mut new, wanted),
                None => return Plan::Pending,
            }
        }
        if self.may_vanish(asked, &new) {
            let shown = || Box::new(if grace.is_some() { new } else { old.clone() });
            Plan::Remove(asked.kind.returns_deleted().then(shown))
        } else if new == *old {
            Plan::Pending
        } else {
            Plan::Mark(Box::new(new))
        }
    }

    /// Sets the end of the grace.
    fn mark(&self, object: &mut Value, grace_seconds: i64, count: bool) {
        let grace = grace_seconds.clamp(0, GRACE_SECONDS_MAX);
        let start = self.parts.clock.now();
        set_grace(object, start.saturating_add(seconds(grace)).unwrap_or(start), grace);
        if count {
            let metadata = tree::metadata(object);
            let generation = metadata.get("generation").and_then(Value::as_i64).unwrap_or(0);
            metadata.insert("generation".into(), (generation + 1).into());
        }
    }

    /// Shortens the grace, counted from the same beginning. It does not end in the past: what is left then is the shortest
    /// grace that there is, so that whoever waits for its end ends it.
    fn shorten(&self, object: &mut Value, grace: i64) {
        let (now, before) = (self.parts.clock.now(), grace_left(object).min(GRACE_SECONDS_MAX));
        let end = tree::text(object, &["metadata", "deletionTimestamp"]).parse::<jiff::Timestamp>();
        let start = end.ok().and_then(|end| end.saturating_sub(seconds(before)).ok()).unwrap_or(now);
        let end = start.saturating_add(seconds(grace)).unwrap_or(start);
        if end < now {
            set_grace(object, now, grace.min(1));
        } else {
            set_grace(object, end, grace);
        }
    }

    pub(super) async fn delete_collection(
        &self,
        asked: &Asked<'_>,
        options: &DeleteOptions,
        selection: &ListOptions,
    ) -> Result<Response, Status> {
        let mut list = self.list(asked, selection).await?;
        for item in &list.items {
            let one = Asked {
                user: asked.user,
                verb: asked.verb,
                kind: asked.kind.clone(),
                stored: asked.stored.clone(),
                resource: asked.resource.clone(),
                strategy: asked.strategy.clone(),
                namespace: &item.meta().namespace,
                name: &item.meta().name,
                subresource: "",
                admitted: false,
                notes: asked.notes.clone(),
            };
            match self.delete(&one, options).await {
                Err(status) if status.reason != api::Reason::NotFound => return Err(status),
                _ => {}
            }
        }
        list.continue_token.clear();
        Ok(Response::List(list))
    }
}

/// Whether an object of this uid and resource version is the one that is to go. Source: `rest.BeforeDelete`, whose
/// conflicts name the kind.
pub(super) fn check_preconditions(
    asked: &Asked<'_>,
    options: &DeleteOptions,
    name: &str,
    [uid, version]: [&str; 2],
) -> Result<(), Status> {
    let conflict = |field: &str, wanted: &str, present: &str, then: &str| {
        let why = format!(
            "the {field} in the precondition ({wanted}) does not match the {field} in record ({present}). The object \
             might have been {then}"
        );
        Err(Status::conflict(&asked.kind.group, &asked.kind.kind, name, &why))
    };
    match (&options.precondition_uid, &options.precondition_resource_version) {
        (Some(wanted), _) if wanted != uid => conflict("UID", wanted, uid, "deleted and then recreated"),
        (_, Some(wanted)) if wanted != version => conflict("ResourceVersion", wanted, version, "modified"),
        _ => Ok(()),
    }
}

/// The grace that a deletion has given, in seconds.
fn grace_left(object: &Value) -> i64 {
    match tree::at(object, &["metadata", "deletionGracePeriodSeconds"]).as_i64() {
        Some(given) if given < 0 => 1,
        given => given.unwrap_or(0),
    }
}

fn seconds(count: i64) -> Duration {
    Duration::from_secs(count.unsigned_abs())
}

fn set_grace(object: &mut Value, end: jiff::Timestamp, grace: i64) {
    let metadata = tree::metadata(object);
    metadata.insert("deletionTimestamp".into(), meta::rfc3339(end).into());
    metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
}

/// Upstream's explanation where another object of the name is meant.
pub(super) fn other_uid(uid: &str, live: &Object) -> String {
    format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", live.meta().uid)
}

/// The finalizers after the choice of what happens to dependents.
fn finalizers_after(asked: &Asked<'_>, options: &DeleteOptions, old: &Value) -> Vec<String> {
    let mut finalizers = meta::finalizers(old);
    let has = |name: &str| finalizers.iter().any(|known| known == name);
    let orphan = match options.propagation {
        Some(propagation) => propagation == Propagation::Orphan,
        None => has(ORPHAN) || (!has(FOREGROUND) && asked.strategy.orphans_by_default()),
    };
    let foreground = match options.propagation {
        Some(propagation) => propagation == Propagation::Foreground,
        None => has(FOREGROUND),
    };
    for (name, wanted) in [(ORPHAN, orphan), (FOREGROUND, foreground)] {
        finalizers.retain(|known| known != name);
        if wanted {
            finalizers.push(name.to_owned());
        }
    }
    finalizers
}

fn set_finalizers(object: &mut Value, finalizers: &[String]) {
    let metadata = tree::metadata(object);
    if finalizers.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".into(), finalizers.to_vec().into());
    }
}
