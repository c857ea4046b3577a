//! Deletion of what cannot be read: a value that no key opens is removed for who asks for that, may do that, and finds it
//! unreadable. Neither preconditions nor finalizers nor admission are looked at, since they lie within.
//! Source: KEP-3926, `registry/generic/registry/corrupt_obj_deleter.go`.

use api::{DeleteOptions, Key, Reason, Response, Status};
use store::{RangeRequest, Revision};

use super::context::store_key;
use super::txn::Outcome;
use super::{Asked, Pipeline};
use crate::authz::{Attributes, Decision};
use crate::cache::unavailable;

/// The right to do it.
const VERB: &str = "unsafe-delete-ignore-read-errors";
/// What the audit log is told of each attempt.
const ANNOTATION: &str = "apiserver.k8s.io/unsafe-delete-ignore-read-error";
/// How often it is tried again after another writer came in between.
const ATTEMPTS_MAX: u32 = 16;

impl Pipeline {
    pub(super) async fn delete_unreadable(
        &self,
        asked: &Asked<'_>,
        options: &DeleteOptions,
    ) -> Result<Response, Status> {
        asked.notes.annotate(ANNOTATION, "");
        self.check_right(asked).await?;
        let key = Key::new(asked.namespace, asked.name);
        for _ in 0..ATTEMPTS_MAX {
            let revision = self.unreadable(asked, &key).await?;
            if options.dry_run
                || matches!(
                    self.remove(asked, &key, revision, Default::default()).await?,
                    Outcome::Deleted(_)
                )
            {
                return Ok(Response::Deleted { uid: String::new(), object: None, warnings: Vec::new() });
            }
        }
        Err(asked.conflict("it is being changed by others all the time; try again"))
    }

    async fn check_right(&self, asked: &Asked<'_>) -> Result<(), Status> {
        let attributes = Attributes {
            user: asked.user.clone(),
            verb: VERB.to_owned(),
            namespace: asked.namespace.to_owned(),
            group: asked.resource.group.clone(),
            version: asked.resource.version.clone(),
            resource: asked.resource.resource.clone(),
            name: asked.name.to_owned(),
            is_resource: true,
            ..Attributes::default()
        };
        let reason = match self.decide(&attributes).await {
            Decision::Allow { .. } => return Ok(()),
            Decision::Deny { reason } | Decision::NoOpinion { reason } => reason,
        };
        let (group, resource) = (&asked.resource.group, &asked.resource.resource);
        let what = api::status::qualified(group, resource);
        let why = format!("not permitted to do {VERB:?}, reason: {reason}");
        let message = format!("{what} {:?} is forbidden: {why}", asked.name);
        Err(Status::new(Reason::Forbidden, message).about(group, resource, asked.name))
    }

    /// The revision of a value that cannot be read; one that can is not removed so.
    async fn unreadable(&self, asked: &Asked<'_>, key: &Key) -> Result<Revision, Status> {
        let path = store_key(&asked.stored, key);
        let sealed = self.parts.sealed.as_ref();
        let store = sealed.map_or(&self.parts.store, |sealed| sealed.inner());
        let read = store.range(RangeRequest::key(path.clone())).await.map_err(unavailable)?;
        let kv = read.kvs.first().ok_or_else(|| asked.not_found())?;
        if sealed.is_none_or(|sealed| sealed.opened(kv).is_ok()) {
            return Err(asked.conflict(&format!(
                "StorageError: invalid object, Code: 4, Key: {path}, ResourceVersion: 0, AdditionalErrorMsg: unsafe \
                 deletion is not allowed because the object is decodable from storage"
            )));
        }
        Ok(kv.mod_revision)
    }
}
