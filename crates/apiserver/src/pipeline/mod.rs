//! The one way in: every read and write of cluster state, whoever asks and from wherever.

mod audited;
mod bootstrap_tokens;
mod claim_rights;
mod compared;
mod computed;
mod context;
mod convert;
mod corrupt;
mod delete;
mod eviction;
mod expiry;
mod meta;
mod metrics;
mod privileges;
mod read;
mod reviews;
mod scale;
mod secret_tokens;
mod subresource;
mod tokens;
mod txn;
mod write;

use std::sync::{Arc, OnceLock};
use std::time::Instant;

pub(crate) use compared::Comparisons;
pub use meta::rfc3339;
pub(crate) use write::MODIFIED;

use api::connect::User;
use api::{Call, GroupVersionResource, Reason, Request, Response, Status, Verb, WriteOptions};
use base::clock::SharedClock;
use base::lifecycle::Tasks;
use foldhash::HashMap;
use parking_lot::RwLock;
use serde_json::Value;
use store::Store;
use tokio::sync::watch;

use crate::admission::{self, Chain, Notes, Operation, Options, Review};
use crate::aggregation::Aggregator;
use crate::audit::{self, Auditor};
use crate::authn::TokenAuthenticator;
use crate::authn::token::Tokens;
use crate::authz::{self, Attributes, Authorizer, Decision, Webhook, joined, rbac};
use crate::cache::Cache;
use crate::definitions;
use crate::encryption::Sealed;
use crate::proxy::Egress;
use crate::selection::selected;
use crate::strategy::{Settings, Strategies, Strategy};
use crate::usage::Usage;
use crate::webhook::{Services, Webhooks};
use crate::words::{Catalog, Kind};

/// What the pipeline is made of.
pub struct Parts {
    /// The kinds.
    pub catalog: Arc<Catalog>,
    /// What is special about them.
    pub strategies: Strategies,
    /// Admission links in order.
    pub admission: Chain,
    /// What is counted of them.
    pub(crate) admission_metrics: admission::Metrics,
    /// Who may do what.
    pub authorizer: Arc<dyn Authorizer>,
    /// What is counted of decisions.
    pub(crate) authorization_metrics: authz::Metrics,
    /// What is counted of updates.
    pub(crate) comparisons: Comparisons,
    /// Who is asked where no authorizer here allows it.
    pub(crate) webhook: Option<Webhook>,
    /// Who judges tokens that are not the server's own, in order.
    pub authenticators: Vec<Arc<dyn TokenAuthenticator>>,
    /// Service account tokens.
    pub tokens: Tokens,
    /// The store.
    pub store: Arc<dyn Store>,
    /// The same, where its values are encrypted.
    pub(crate) sealed: Option<Arc<Sealed>>,
    /// What is written down of requests.
    pub(crate) auditor: Option<Arc<Auditor>>,
    /// What nodes tell of their use of resources.
    pub(crate) usage: Usage,
    /// How connections to addresses of the cluster are opened.
    pub(crate) egress: Arc<dyn Egress>,
    /// Time.
    pub clock: SharedClock,
    /// Ranges of addresses and ports.
    pub settings: Settings,
}

/// The object itself, and the subresources whose requests carry it whole and change a part of it.
const OF_THE_OBJECT: [&str; 6] = ["", "status", "approval", "finalize", "ephemeralcontainers", "resize"];

/// What a webhook that is named by a Service is found by.
const WHERE_SERVICES_ARE: [(&str, &str); 2] = [("", "services"), ("discovery.k8s.io", "endpointslices")];

/// The groups whose objects take effect before their change is answered: rights, and what configures admission.
const AT_ONCE: [&str; 2] = [rbac::GROUP, admission::rules::GROUP];

/// The pipeline. Shared behind an `Arc` by the HTTP front and every in-process transport.
pub struct Pipeline {
    parts: Parts,
    caches: RwLock<HashMap<String, Arc<Cache>>>,
    /// Clients of the webhooks that are asked.
    pub(crate) webhooks: Arc<Webhooks>,
    expiry: expiry::Expiry,
    pub(crate) definitions: definitions::Progress,
    /// The way to extension API servers, for components of this process.
    aggregator: OnceLock<Arc<Aggregator>>,
    /// Where the spans begin in which patient writes gather.
    started: Instant,
    tasks: Tasks,
}

/// How far a cache has to come to show what a request did.
enum Reach {
    Nothing,
    Revision(i64),
    /// What is gone has no revision that the answer tells.
    Newest,
}

impl Reach {
    fn of(verb: Verb, answer: &Result<Response, Status>) -> Self {
        match (verb, answer) {
            (Verb::Create | Verb::Update | Verb::Patch, Ok(Response::Object { object, .. })) => {
                Self::Revision(object.revision())
            }
            (Verb::Delete | Verb::DeleteCollection, Ok(_)) => Self::Newest,
            _ => Self::Nothing,
        }
    }
}

/// A request that passed authorization, with what every verb needs.
pub(crate) struct Asked<'a> {
    pub(crate) user: &'a User,
    pub(crate) verb: Verb,
    /// The kind in the version asked for.
    pub(crate) kind: Arc<Kind>,
    /// The same kind in its storage version.
    pub(crate) stored: Arc<Kind>,
    /// The resource of the storage version.
    pub(crate) resource: GroupVersionResource,
    pub(crate) strategy: Arc<dyn Strategy>,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) subresource: &'a str,
    /// Whether admission has seen what this is a part of.
    pub(crate) admitted: bool,
    /// What is to be told besides the answer.
    pub(crate) notes: Arc<Notes>,
}

impl Pipeline {
    /// Builds the pipeline; caches are filled as soon as it runs in a tokio runtime.
    pub fn new(parts: Parts) -> Arc<Self> {
        let tasks = Tasks::default();
        let mut caches = HashMap::default();
        let mut cache = |kind: &Kind| {
            let prefix = crate::storage::prefix(&kind.group, &kind.plural);
            let fresh = || filling(&parts, &tasks, kind);
            caches.entry(prefix).or_insert_with(fresh).clone()
        };
        parts.catalog.stored().iter().for_each(|kind| drop(cache(kind)));
        let [services, slices] = WHERE_SERVICES_ARE.map(|(group, resource)| {
            let kind = parts.catalog.storage_of(group, resource);
            #[allow(clippy::expect_used, reason = "a built-in kind: no input reaches it")]
            cache(&kind.expect("the catalog has Services and EndpointSlices"))
        });
        let pipeline = Arc::new(Self {
            webhooks: Arc::new(Webhooks::new(Services::new(services, slices, parts.egress.clone()))),
            parts,
            caches: RwLock::new(caches),
            expiry: expiry::Expiry::default(),
            definitions: definitions::Progress::default(),
            aggregator: OnceLock::new(),
            started: Instant::now(),
            tasks,
        });
        pipeline.spawn(definitions::follow(Arc::downgrade(&pipeline)));
        pipeline.spawn(crate::policies::follow(Arc::downgrade(&pipeline)));
        pipeline
    }

    /// From now on, what extension API servers serve is read from them.
    pub(crate) fn aggregate_by(&self, aggregator: Arc<Aggregator>) {
        // It is told once, when the server is built.
        let _ = self.aggregator.set(aggregator);
    }

    /// What extension API servers serve at present.
    pub fn extensions(&self) -> Vec<crate::aggregation::Extension> {
        self.aggregator.get().map(|aggregator| aggregator.extensions()).unwrap_or_default()
    }

    /// Answers a request of a caller in this process, authorized here. The identity is believed
    /// ([`crate::authn::in_process`]); the HTTP front, whose users prove theirs, has its own way in.
    pub async fn call(&self, user: &User, request: Request) -> Result<Response, Status> {
        let user = crate::authn::in_process(user);
        if let Some(auditor) = &self.parts.auditor {
            return self.call_audited(auditor, &user, request).await;
        }
        self.authorize(&attributes(&user, &request)).await?;
        let notes = Arc::default();
        self.call_authorized(&user, request, &notes).await
    }

    /// Answers a request whose authorization is done; what admission has to say besides comes into `notes`.
    pub(crate) async fn call_authorized(
        &self,
        user: &User,
        request: Request,
        notes: &Arc<Notes>,
    ) -> Result<Response, Status> {
        let defines = request.resource.group == definitions::GROUP
            && request.resource.resource == definitions::PLURAL
            && !matches!(request.call, Call::Get { .. } | Call::List(_) | Call::Watch(_));
        let answer = self.dispatch(user, request, notes).await?;
        if defines && !definitions::is_own(user) {
            let written = match &answer {
                Response::Object { object, .. } => Some(object.revision()),
                _ => None,
            };
            Box::pin(self.settle_definitions(written)).await?;
        }
        Ok(answer)
    }

    /// A change of a CustomResourceDefinition is answered once it is served.
    async fn settle_definitions(&self, written: Option<i64>) -> Result<(), Status> {
        let revision = match written {
            Some(revision) => revision,
            None => self.store().current_revision().await.map_err(crate::cache::unavailable)?,
        };
        let Some(kind) = self.parts.catalog.storage_of(definitions::GROUP, definitions::PLURAL) else {
            return Ok(());
        };
        self.cache(&kind).wait_for_or_progress(revision).await?;
        self.definitions.reached(revision).await;
        Ok(())
    }

    async fn dispatch(&self, user: &User, request: Request, notes: &Arc<Notes>) -> Result<Response, Status> {
        if let Some(aggregator) = self.aggregator.get()
            && let Some(answer) = aggregator.read(self, user, &request).await
        {
            return answer;
        }
        let kind = self.kind(&request.resource)?;
        check_served(&kind, &request.subresource, request.call.verb())?;
        if let Some(answer) = self.computed(&kind, &request).await {
            return answer;
        }
        if (kind.group.as_ref(), kind.plural.as_ref()) == ("", "bindings") {
            return Box::pin(self.bind_named(user, &kind, &request, notes)).await;
        }
        // Custom resources are worked on in the version asked for, and converted where they are read and written.
        let stored = if kind.custom.is_some() { kind.clone() } else { self.parts.catalog.stored_kind(&kind) };
        let strategy = self.parts.strategies.of(&stored.group, &stored.plural).clone();
        let asked = Asked {
            user,
            verb: request.call.verb(),
            kind,
            resource: stored.resource(),
            stored,
            strategy,
            namespace: &request.namespace,
            name: &request.name,
            subresource: &request.subresource,
            admitted: false,
            notes: notes.clone(),
        };
        asked.check_scope(&request.call)?;
        if matches!(asked.kind.group.as_ref(), "authentication.k8s.io" | "authorization.k8s.io") {
            return Box::pin(self.review(&asked, &request.call)).await;
        }
        if !OF_THE_OBJECT.contains(&request.subresource.as_str()) {
            return Box::pin(self.subresource(&asked, request.call)).await;
        }
        let verb = request.call.verb();
        let answer = match request.call {
            Call::Get { resource_version } => self.get(&asked, &resource_version).await,
            Call::List(options) => self.list(&asked, &options).await.map(Response::List),
            Call::Watch(options) => self.watch(&asked, &options).await.map(Response::Watch),
            // Writes apart, as reads would have to hold the room that they take.
            Call::Create { body, options } => Box::pin(self.create(&asked, &body, &options)).await,
            Call::Update { body, options } => Box::pin(self.update(&asked, &body, &options)).await,
            Call::Patch { kind, body, options } => Box::pin(self.patch(&asked, kind, &body, &options)).await,
            Call::Delete(options) => Box::pin(self.delete(&asked, &options)).await,
            Call::DeleteCollection(options, list) => {
                Box::pin(self.delete_collection(&asked, &options, &list)).await
            }
        };
        let consulted = (asked.stored.group.as_ref(), asked.stored.plural.as_ref());
        if AT_ONCE.contains(&consulted.0) || admission::CONSULTED.contains(&consulted) {
            let reach = Reach::of(verb, &answer);
            self.take_effect(&asked.stored, reach).await;
        }
        answer
    }

    /// Lets a change of what authorization and admission read reach the cache before it is answered: who was told of a
    /// right has it, who was told of a limit meets it.
    async fn take_effect(&self, stored: &Kind, reach: Reach) {
        let cache = self.cache(stored);
        let seen = match reach {
            Reach::Nothing => Ok(()),
            Reach::Revision(revision) => cache.wait_for(revision).await,
            Reach::Newest => cache.make_current().await,
        };
        if let Err(error) = seen {
            tracing::warn!(%error, prefix = cache.prefix(), "a change is written and not in effect yet");
        }
    }

    /// Admits a connection through a subresource; `options` is what upstream calls its object.
    pub(crate) async fn admit_connection(
        &self,
        user: &User,
        kind: &Kind,
        [namespace, name, subresource]: [&str; 3],
        mut options: Value,
        notes: &Notes,
    ) -> Result<(), Status> {
        let resource = kind.resource();
        let review = Review {
            user,
            operation: Operation::Connect,
            options: Options::Connect,
            asked: kind,
            kind,
            resource: &resource,
            subresource,
            namespace,
            name,
            prefix: "",
            old: None,
            notes,
            rounds: Default::default(),
        };
        admission::mutate(&self.parts.admission, &review, &mut options, self).await?;
        admission::validate(&self.parts.admission, &review, Some(&options), self).await
    }

    /// Admits what is created at a subresource and is no object of the kind: a binding, an eviction, a request for a
    /// token.
    async fn admit_part(
        &self,
        asked: &Asked<'_>,
        mut part: Value,
        options: &WriteOptions,
    ) -> Result<Value, Status> {
        let options = Options::Write(options);
        let review = self.review_of(asked, Operation::Create, options, &asked.notes, asked.name, None);
        admission::mutate(&self.parts.admission, &review, &mut part, self).await?;
        admission::validate(&self.parts.admission, &review, Some(&part), self).await?;
        Ok(part)
    }

    /// 403 unless the authorizer allows it.
    pub async fn authorize(&self, attributes: &Attributes) -> Result<(), Status> {
        judged(attributes, self.decide(attributes).await)
    }

    /// As [`Pipeline::authorize`], for the request itself: where there is auditing, the decision is told it.
    pub(crate) async fn authorize_noted(&self, attributes: &Attributes, notes: &Notes) -> Result<(), Status> {
        let since = Instant::now();
        let decision = self.decide(attributes).await;
        self.parts.authorization_metrics.attempted(&decision, since.elapsed());
        if self.parts.auditor.is_some() {
            let (word, reason) = match &decision {
                Decision::Allow { reason } => ("allow", reason),
                Decision::Deny { reason } | Decision::NoOpinion { reason } => ("forbid", reason),
            };
            notes.annotate(audit::DECISION, word);
            notes.annotate(audit::REASON, reason.as_str());
        }
        judged(attributes, decision)
    }

    /// What is written down of requests, if anything is.
    pub(crate) fn auditor(&self) -> Option<&Arc<Auditor>> {
        self.parts.auditor.as_ref()
    }

    /// How many objects there are of a resource.
    pub(crate) fn count(&self, group: &str, resource: &str) -> usize {
        let stored = self.parts.catalog.storage_of(group, resource);
        stored.map_or(0, |stored| self.cache(&stored).len())
    }

    /// What the authorizers say.
    pub(crate) async fn decide(&self, attributes: &Attributes) -> Decision {
        let decision = self.parts.authorizer.authorize(attributes, self);
        let figures = &self.parts.authorization_metrics;
        let (Some(webhook), Decision::NoOpinion { reason }) = (&self.parts.webhook, &decision) else {
            figures.decided(attributes, &decision);
            return decision;
        };
        let asked = webhook.decide(attributes).await;
        figures.webhook_decided(&asked);
        match asked {
            Decision::NoOpinion { reason: more } => {
                Decision::NoOpinion { reason: joined(reason.clone(), &more) }
            }
            other => other,
        }
    }

    /// Serves a row from now on: requests, discovery and OpenAPI have it when this returns. A row of a new resource gets
    /// a cache, which is filled first.
    pub async fn serve(&self, row: Kind) {
        if row.is_stored() && row.is_storage_version() {
            self.cache(&row).synced().await;
        }
        self.parts.catalog.insert(row);
    }

    /// Serves the rows of a CustomResourceDefinition from now on. If what it says has `changed`, its objects are read anew:
    /// those who watch them begin again.
    pub(crate) async fn serve_definition(&self, rows: Vec<Kind>, changed: bool) {
        let stored = rows.iter().find(|row| row.is_storage_version());
        let fresh = stored.filter(|_| changed).map(|stored| filling(&self.parts, &self.tasks, stored));
        if let Some(cache) = &fresh {
            cache.synced().await;
        }
        for row in rows {
            self.parts.catalog.insert(row);
        }
        if let Some(cache) = fresh {
            let before = self.caches.write().insert(cache.prefix().to_owned(), cache);
            before.into_iter().for_each(|cache| cache.end());
        }
    }

    /// Runs a task that ends, at the latest, with the pipeline.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Serves a row no longer. Its watches end; what is stored of it stays in the store.
    pub fn withdraw(&self, resource: &GroupVersionResource) {
        let Some(row) = self.parts.catalog.find(resource) else { return };
        self.parts.catalog.remove(resource);
        if row.is_storage_version() && self.parts.catalog.storage_of(&row.group, &row.plural).is_none() {
            let cache = self.caches.write().remove(&crate::storage::prefix(&row.group, &row.plural));
            cache.into_iter().for_each(|cache| cache.end());
        }
    }

    /// The kinds.
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.parts.catalog
    }

    /// Service account tokens.
    pub fn tokens(&self) -> &Tokens {
        &self.parts.tokens
    }

    /// Tells when other keys encrypt the store, if any do.
    pub fn key_changes(&self) -> Option<watch::Receiver<u64>> {
        self.sealed().map(|sealed| sealed.keys().changes())
    }

    /// The store's encryption, if there is any.
    pub(crate) fn sealed(&self) -> Option<&Arc<Sealed>> {
        self.parts.sealed.as_ref()
    }

    /// The store, for its health.
    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        &self.parts.store
    }

    /// Returns once every cache has been filled, and everything that is defined is served.
    pub async fn synced(&self) {
        self.definitions.begun().await;
        let caches: Vec<_> = self.caches.read().values().cloned().collect();
        for cache in caches {
            cache.synced().await;
        }
    }

    /// The stored resources whose caches are not filled yet.
    pub fn unsynced(&self) -> Vec<String> {
        let caches = self.caches.read();
        caches.values().filter(|cache| cache.revision() == 0).map(|cache| cache.prefix().to_owned()).collect()
    }

    /// What the caches of stored resources have been told: group and resource, events, fillings, and the revision reached.
    pub(crate) fn cache_counts(&self) -> Vec<(String, String, [u64; 2], store::Revision)> {
        let count = |kind: Arc<Kind>| {
            let caches = self.caches.read();
            let cache = caches.get(&crate::storage::prefix(&kind.group, &kind.plural))?;
            Some((kind.group.to_string(), kind.plural.to_string(), cache.counts(), cache.revision()))
        };
        self.parts.catalog.stored().into_iter().filter_map(count).collect()
    }

    /// How many objects there are of each stored resource (`pods`, `deployments.apps`).
    pub fn object_counts(&self) -> Vec<(String, String, usize)> {
        let count = |kind: Arc<Kind>| {
            self.caches
                .read()
                .get(&crate::storage::prefix(&kind.group, &kind.plural))
                .map(|cache| (kind.group.to_string(), kind.plural.to_string(), cache.len()))
        };
        self.parts.catalog.stored().into_iter().filter_map(count).collect()
    }

    /// Ends the caches' tasks.
    pub async fn shutdown(&self) {
        self.tasks.shutdown().await;
    }

    pub(crate) fn kind(&self, resource: &GroupVersionResource) -> Result<Arc<Kind>, Status> {
        self.parts.catalog.find(resource).filter(|kind| !kind.verbs.is_empty()).ok_or_else(not_served)
    }

    /// The cache of a stored kind, made on first use.
    pub(crate) fn cache(&self, stored: &Kind) -> Arc<Cache> {
        let prefix = crate::storage::prefix(&stored.group, &stored.plural);
        if let Some(cache) = self.caches.read().get(&prefix) {
            return cache.clone();
        }
        let mut caches = self.caches.write();
        let fresh = || filling(&self.parts, &self.tasks, stored);
        caches.entry(prefix.clone()).or_insert_with(fresh).clone()
    }
}

/// A cache that is being filled.
fn filling(parts: &Parts, tasks: &Tasks, stored: &Kind) -> Arc<Cache> {
    let cache = Cache::new(parts.store.clone(), parts.sealed.clone(), stored.clone());
    tasks.spawn(cache.clone().feed());
    cache
}

impl Asked<'_> {
    /// Whether the request's namespace and name fit the kind and the verb.
    fn check_scope(&self, call: &Call) -> Result<(), Status> {
        if !self.kind.namespaced && !self.namespace.is_empty() {
            return Err(not_served());
        }
        let named =
            matches!(call, Call::Get { .. } | Call::Update { .. } | Call::Patch { .. } | Call::Delete(_));
        if named && self.name.is_empty() {
            return Err(Status::bad_request("name is required"));
        }
        if !self.kind.namespaced || !self.namespace.is_empty() {
            return Ok(());
        }
        // Across namespaces there are lists and watches; nothing has a name there.
        match call {
            Call::List(_) | Call::Watch(_) => Ok(()),
            _ if named => Err(not_served()),
            _ => Err(not_allowed()),
        }
    }

    /// What follows from this, by another part of the same object; admission has seen enough of it.
    pub(crate) fn part<'b>(&'b self, subresource: &'b str, user: &'b User) -> Asked<'b> {
        Asked {
            user,
            verb: self.verb,
            kind: self.kind.clone(),
            stored: self.stored.clone(),
            resource: self.resource.clone(),
            strategy: self.strategy.clone(),
            namespace: self.namespace,
            name: self.name,
            subresource,
            admitted: true,
            notes: self.notes.clone(),
        }
    }

    pub(crate) fn not_found(&self) -> Status {
        Status::not_found(&self.kind.group, &self.kind.plural, self.name)
    }

    pub(crate) fn conflict(&self, why: &str) -> Status {
        Status::conflict(&self.kind.group, &self.kind.plural, self.name, why)
    }
}

/// Whether a row serves what is asked: 404 for a subresource that it has not, 405 for a verb.
pub(crate) fn check_served(kind: &Kind, subresource: &str, verb: Verb) -> Result<(), Status> {
    let verbs = match subresource {
        "" => &kind.verbs,
        name => &kind.subresource(name).ok_or_else(not_served)?.verbs,
    };
    if verbs.iter().any(|served| served == verb.as_str()) {
        return Ok(());
    }
    if kind.custom.is_some() && subresource.is_empty() {
        let message =
            format!("{} not allowed while custom resource definition is terminating", verb.as_str());
        return Err(Status::new(Reason::MethodNotAllowed, message));
    }
    Err(not_allowed())
}

fn not_allowed() -> Status {
    Status::new(Reason::MethodNotAllowed, "the server does not allow this method on the requested resource")
}

/// 403 unless it was allowed.
fn judged(attributes: &Attributes, decision: Decision) -> Result<(), Status> {
    let reason = match decision {
        Decision::Allow { .. } => return Ok(()),
        Decision::Deny { reason } | Decision::NoOpinion { reason } if reason.is_empty() => reason,
        Decision::Deny { reason } | Decision::NoOpinion { reason } => format!(": {reason}"),
    };
    let sentence = attributes.sentence();
    if !attributes.is_resource {
        return Err(Status::new(Reason::Forbidden, format!("forbidden: {sentence}{reason}")));
    }
    let what = api::status::qualified(&attributes.group, &attributes.resource);
    let subject = if attributes.name.is_empty() { what } else { format!("{what} \"{}\"", attributes.name) };
    let message = format!("{subject} is forbidden: {sentence}{reason}");
    Err(Status::new(Reason::Forbidden, message).about(
        &attributes.group,
        &attributes.resource,
        &attributes.name,
    ))
}

fn not_served() -> Status {
    Status::new(Reason::NotFound, "the server could not find the requested resource")
}

/// The namespace that a request concerns: a namespace is in itself. Source: `endpoints/request/requestinfo.go`.
pub(crate) fn concerned<'a>([group, resource]: [&str; 2], namespace: &'a str, name: &'a str) -> &'a str {
    let is_namespace = group.is_empty() && resource == "namespaces";
    if is_namespace { name } else { namespace }
}

/// The attributes of a request.
pub fn attributes(user: &User, request: &Request) -> Attributes {
    let selectors = match &request.call {
        Call::List(options) | Call::Watch(options) | Call::DeleteCollection(_, options) => {
            (options.field_selector.clone(), options.label_selector.clone())
        }
        _ => Default::default(),
    };
    // A list or watch of the one object that its selector names is about that object.
    let named = selected(&selectors.0, "metadata.name").filter(|_| request.name.is_empty());
    let named = named.filter(|_| matches!(request.call, Call::List(_) | Call::Watch(_)));
    let name = named.unwrap_or(&request.name).to_owned();
    let resource = [request.resource.group.as_str(), &request.resource.resource];
    Attributes {
        user: user.clone(),
        verb: request.call.verb().as_str().into(),
        namespace: concerned(resource, &request.namespace, &request.name).to_owned(),
        group: request.resource.group.clone(),
        version: request.resource.version.clone(),
        resource: request.resource.resource.clone(),
        subresource: request.subresource.clone(),
        name,
        is_resource: true,
        path: String::new(),
        field_selector: selectors.0,
        label_selector: selectors.1,
    }
}
