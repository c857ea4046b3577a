//! Get, list and watch.

use std::sync::Arc;
use std::time::Duration;

use api::{
    Key, List, ListOptions, Object, Reason, Response, Status, WatchEvent, WatchEventKind, WatchStream,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use store::{RangeEnd, RangeRequest, Revision, StoreError};

use super::{Asked, Pipeline, convert};
use crate::cache::{Cache, Filter, Scope, Snapshot, Start, WatchOptions, unavailable};
use crate::storage;
use crate::webhook::Webhooks;
use crate::words::{Kind, Selectors};

/// Where the next page of a list begins. Source: `storage/continue.go`.
#[derive(Serialize, Deserialize)]
struct Continue {
    v: String,
    rv: Revision,
    start: String,
}

const CONTINUE_VERSION: &str = "meta.k8s.io/v1";
/// A watch that asks for more time than a year gets a year: moments further away may not be sayable.
const WATCH_SECONDS_MAX: u64 = 365 * 24 * 60 * 60;
/// In a token: the list goes on with whatever is there.
const PRESENT: Revision = -1;

impl Pipeline {
    pub(super) async fn get(&self, asked: &Asked<'_>, resource_version: &str) -> Result<Response, Status> {
        let key = Key::new(asked.namespace, asked.name);
        let object = if resource_version.is_empty() {
            self.read_stored(&asked.stored, &key).await?
        } else {
            let cache = self.cache(&asked.stored);
            cache.wait_for(parse_revision(resource_version)?).await?;
            if let Some(refused) = cache.unreadable(asked.namespace, asked.name) {
                return Err(refused);
            }
            cache.peek(asked.namespace, asked.name)
        };
        let object = self.present(asked, object.ok_or_else(|| asked.not_found())?).await?;
        Ok(Response::Object { object, created: false, warnings: Vec::new() })
    }

    pub(super) async fn list(&self, asked: &Asked<'_>, options: &ListOptions) -> Result<List, Status> {
        crate::options::check_list(options)?;
        let selectors = self.selectors(asked, options)?;
        let limit = usize::try_from(options.limit).unwrap_or(usize::MAX);
        // A page of a version is a page of exactly that one, unless the client says otherwise.
        let unsaid = options.resource_version_match.is_empty() && limit > 0;
        let exact = options.resource_version_match == "Exact"
            || (unsaid && !matches!(options.resource_version.as_str(), "" | "0"));
        let mut list = if !options.continue_token.is_empty() {
            let token = decode_token(&options.continue_token, asked.namespace)?;
            self.list_at(asked, &selectors, limit, token.rv, &token.start).await?
        } else if exact {
            let revision = parse_revision(&options.resource_version)?;
            self.list_at(asked, &selectors, limit, revision, "").await?
        } else {
            let cache = self.cache(&asked.stored);
            current_enough(&cache, &options.resource_version).await?;
            // Where everything is selected, no object is looked at.
            let every = selectors.is_empty();
            let keep = |object: &Object| every || selectors.matches(object);
            let snapshot = cache.list(asked.namespace, limit, keep);
            readable(&snapshot, &selectors)?;
            let token = match snapshot.items.last() {
                Some(last) if snapshot.remaining > 0 => encode_token(snapshot.revision, last),
                _ => String::new(),
            };
            let remaining = (snapshot.remaining > 0 && selectors.is_empty()).then_some(snapshot.remaining);
            List { items: snapshot.items, revision: snapshot.revision, continue_token: token, remaining }
        };
        list.items = self.present_all(asked, list.items).await?;
        Ok(list)
    }

    /// A list from the store at a revision ([`PRESENT`]: whatever is there now), from the key after `after` on.
    async fn list_at(
        &self,
        asked: &Asked<'_>,
        selectors: &Selectors,
        limit: usize,
        revision: Revision,
        after: &str,
    ) -> Result<List, Status> {
        let prefix = storage::prefix(&asked.stored.group, &asked.stored.plural);
        let within =
            if asked.namespace.is_empty() { prefix.clone() } else { format!("{prefix}{}/", asked.namespace) };
        let end = RangeEnd::Before(crate::cache::prefix_end(within.as_bytes()).into());
        let mut from =
            if after.is_empty() { within.into_bytes() } else { format!("{prefix}{after}\0").into() };
        let mut items: Vec<Arc<Object>> = Vec::new();
        let mut revision = revision.max(0);
        loop {
            let want = if limit == 0 { 0 } else { limit - items.len() };
            let request =
                RangeRequest { end: end.clone(), revision, limit: want, ..RangeRequest::key(from.clone()) };
            let page = self.parts.store.range(request).await.map_err(|error| expired_page(error, after))?;
            if revision == 0 {
                revision = page.revision;
            }
            for kv in &page.kvs {
                let object = storage::read(&asked.stored, &kv.key, &kv.value, kv.mod_revision);
                items.extend(object.filter(|object| selectors.matches(object)).map(Arc::new));
            }
            let Some(last) = page.kvs.last().filter(|_| page.more) else {
                return Ok(List { items, revision, continue_token: String::new(), remaining: None });
            };
            if items.len() == limit {
                let start = String::from_utf8_lossy(&last.key[prefix.len()..]).into_owned();
                let remaining = selectors.is_empty().then(|| (page.count - page.kvs.len()) as u64);
                return Ok(List { items, revision, continue_token: token(revision, start), remaining });
            }
            from = last.key.to_vec();
            from.push(0);
        }
    }

    pub(super) async fn watch(
        &self,
        asked: &Asked<'_>,
        options: &ListOptions,
    ) -> Result<WatchStream, Status> {
        crate::options::check_watch(options)?;
        let selectors = self.selectors(asked, options)?;
        let cache = self.cache(&asked.stored);
        let start = self.watch_start(&cache, options).await?;
        let scope = scope(asked, &selectors);
        let namespace = asked.namespace.to_owned();
        let filter: Filter = Arc::new(move |object: &Object| {
            (namespace.is_empty() || object.meta().namespace == namespace) && selectors.matches(object)
        });
        let deadline = options
            .timeout_seconds
            .map(|after| tokio::time::Instant::now() + Duration::from_secs(after.min(WATCH_SECONDS_MAX)));
        let stream = cache.watch(WatchOptions {
            scope,
            filter,
            start,
            bookmarks: options.allow_watch_bookmarks,
            type_meta: (asked.kind.api_version(), asked.kind.kind.to_string()),
            deadline,
        })?;
        Ok(self.presented(asked, stream))
    }

    async fn watch_start(&self, cache: &Cache, options: &ListOptions) -> Result<Start, Status> {
        let version = options.resource_version.as_str();
        if options.send_initial_events == Some(true) {
            current_enough(cache, version).await?;
            return Ok(Start::Snapshot { mark_end: options.allow_watch_bookmarks });
        }
        match version {
            "" | "0" if options.send_initial_events == Some(false) => {
                current_enough(cache, version).await?;
                Ok(Start::After(cache.revision()))
            }
            // Upstream turns a watch from nothing into one with initial events: who takes bookmarks is told their end.
            "" | "0" => {
                current_enough(cache, version).await?;
                let mark_end = options.resource_version_match.is_empty() && options.allow_watch_bookmarks;
                Ok(Start::Snapshot { mark_end })
            }
            version => {
                let revision = parse_revision(version)?;
                cache.synced().await;
                cache.wait_for_or_progress(revision).await?;
                Ok(Start::After(revision))
            }
        }
    }

    /// The stream in the version asked for.
    fn presented(&self, asked: &Asked<'_>, stream: WatchStream) -> WatchStream {
        if asked.kind.custom.is_some() {
            let (webhooks, kind) = (self.webhooks.clone(), asked.kind.clone());
            return Box::pin(
                stream.then(move |batch| presented_custom(webhooks.clone(), kind.clone(), batch)),
            );
        }
        if asked.kind.is_storage_version() {
            return stream;
        }
        let (catalog, from, to) = (self.parts.catalog.clone(), asked.stored.clone(), asked.kind.clone());
        Box::pin(stream.map(move |batch| {
            let mut batch = batch?;
            for event in &mut batch {
                if event.kind != WatchEventKind::Bookmark {
                    event.object = catalog.convert_object(&event.object, &from, &to)?;
                }
            }
            Ok(batch)
        }))
    }

    fn selectors(&self, asked: &Asked<'_>, options: &ListOptions) -> Result<Selectors, Status> {
        let selectors = Selectors::parse(&asked.kind, &options.label_selector, &options.field_selector)?;
        // A list or watch of one name is a field selector spelled in the path.
        if asked.name.is_empty() {
            return Ok(selectors);
        }
        if !options.field_selector.is_empty() && selectors.name() != Some(asked.name) {
            let message = "fieldSelector metadata.name doesn't match requested name";
            return Err(Status::bad_request(message));
        }
        Ok(selectors.named(asked.name))
    }
}

/// The events of custom resources in a version.
async fn presented_custom(
    webhooks: Arc<Webhooks>,
    kind: Arc<Kind>,
    batch: Result<Vec<WatchEvent>, Status>,
) -> Result<Vec<WatchEvent>, Status> {
    let mut batch = batch?;
    let shows = |event: &&mut WatchEvent| event.kind != WatchEventKind::Bookmark;
    let objects = batch.iter_mut().filter(shows).map(|event| event.object.clone()).collect();
    let converted = convert::custom(&webhooks, &kind, objects).await?;
    for (event, object) in batch.iter_mut().filter(shows).zip(converted) {
        event.object = object;
    }
    Ok(batch)
}

/// A list lacks nothing: one of whose objects some cannot be read is refused, unless it is of another one alone.
fn readable(snapshot: &Snapshot, selectors: &Selectors) -> Result<(), Status> {
    let asked_for = |suffix: &str| {
        let name = suffix.rsplit('/').next().unwrap_or_default();
        selectors.name().is_none_or(|wanted| wanted == name)
    };
    let first = snapshot.unreadable.iter().find(|(suffix, _)| asked_for(suffix));
    let refused = |(_, why): &(Box<str>, Arc<str>)| unavailable(StoreError::Unreadable(why.to_string()));
    first.map(refused).map_or(Ok(()), Err)
}

fn scope(asked: &Asked<'_>, selectors: &Selectors) -> Scope {
    let namespaced = asked.kind.namespaced;
    if let Some(name) = selectors.name().filter(|_| !namespaced || !asked.namespace.is_empty()) {
        return Scope::Name(storage::suffix(asked.namespace, name));
    }
    if let Some(node) = selectors.node_name() {
        return Scope::Node(node.to_owned());
    }
    if let Some(uid) = selectors.owner() {
        return Scope::Owner(uid.to_owned());
    }
    if asked.namespace.is_empty() { Scope::All } else { Scope::Namespace(asked.namespace.to_owned()) }
}

/// Waits until the cache may answer a read that asks for `version`.
async fn current_enough(cache: &Cache, version: &str) -> Result<(), Status> {
    cache.synced().await;
    match version {
        "" => cache.make_current().await,
        "0" => Ok(()),
        version => cache.wait_for_or_progress(parse_revision(version)?).await,
    }
}

fn parse_revision(text: &str) -> Result<Revision, Status> {
    text.parse().ok().filter(|revision| *revision >= 0).ok_or_else(|| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let why = if digits { "value out of range" } else { "invalid syntax" };
        Status::bad_request(format!(
            "invalid resource version: resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: {why}"
        ))
    })
}

fn encode_token(revision: Revision, last: &Object) -> String {
    token(revision, storage::suffix(&last.meta().namespace, &last.meta().name))
}

fn token(revision: Revision, start: String) -> String {
    let token = Continue { v: CONTINUE_VERSION.into(), rv: revision, start };
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default())
}

/// Reads the token of a list within a namespace (empty: of all). A token is anybody's to write: it leads nowhere but into
/// the namespace that the request was authorized for.
fn decode_token(token: &str, namespace: &str) -> Result<Continue, Status> {
    let invalid =
        |why: &str| Status::bad_request(format!("invalid continue token: continue key is not valid{why}"));
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|error| invalid(&format!(": {error}")))?;
    let token: Continue = serde_json::from_slice(&bytes).map_err(|error| invalid(&format!(": {error}")))?;
    if token.v != CONTINUE_VERSION {
        return Err(invalid(&format!(": server does not recognize this encoded version {}", token.v)));
    }
    if token.rv <= 0 && token.rv != PRESENT {
        return Err(invalid(": incorrect encoded start resourceVersion (version meta.k8s.io/v1)"));
    }
    if token.start.is_empty() {
        return Err(invalid(": encoded start key empty (version meta.k8s.io/v1)"));
    }
    if !namespace.is_empty() && !token.start.starts_with(&format!("{namespace}/")) {
        return Err(invalid(&format!(": {}", token.start)));
    }
    Ok(token)
}

/// A list whose revision is gone cannot go on as it was; from `after` on it can with what is there now.
fn expired_page(error: store::StoreError, after: &str) -> Status {
    let store::StoreError::Compacted { .. } = error else { return unavailable(error) };
    if after.is_empty() {
        let message = "The resourceVersion for the provided list is too old.";
        return Status::new(Reason::Expired, message);
    }
    let mut status = Status::new(
        Reason::Expired,
        "The provided continue parameter is too old to display a consistent list result. You can start a new list \
         without the continue parameter, or use the continue token in this response to retrieve the remainder of the \
         results. Continuing with the provided token results in an inconsistent list - objects that were created, \
         modified, or deleted between the time the first chunk was returned and now may show up in the list.",
    );
    status.details.continue_token = token(PRESENT, after.to_owned());
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_stays_in_the_namespace_of_its_list() {
        let decode = |start: &str, namespace| decode_token(&token(7, start.to_owned()), namespace);
        assert_eq!(decode("a/x", "a").unwrap().start, "a/x");
        assert_eq!(decode("a/x", "").unwrap().start, "a/x");
        for elsewhere in ["b/x", "ab/x", "a", "", "/", "a\0/x"] {
            assert!(decode(elsewhere, "a").is_err(), "{elsewhere:?}");
        }
        assert!(decode_token("nonsense", "").is_err());
    }
}
