//! Auditing: who asked for what, when, and what became of it. A policy says how much of which requests is written down; the
//! events go to a log and to a webhook. Source: `audit.k8s.io/v1`, `apiserver/pkg/audit`, `endpoints/filters/audit.go`.
//!
//! Requests over the network and those of components in this process are written alike. A request makes its events in
//! memory and never waits for where they go.

mod event;
mod file;
mod policy;
mod sinks;

use std::collections::BTreeMap;
use std::sync::Arc;

use api::connect::User;
use api::{Response, Status};
use base::clock::SharedClock;
use base::lifecycle::Context;
use parking_lot::Mutex;
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use crate::protection::Audit;
use crate::remote::{FileError, Service};
use event::Event;
use policy::{Level, Policy};
use sinks::{Idle, Queues, Sink};

pub(crate) use policy::{Stage, Subject, Target, Verdict};

/// The annotations of every event whose request was authorized or refused.
pub(crate) const DECISION: &str = "authorization.k8s.io/decision";
pub(crate) const REASON: &str = "authorization.k8s.io/reason";
/// Of a client's name for its software so much is kept. Source: `maxUserAgentLength`.
const AGENT_MAX: usize = 1024;
/// A body is written down if it is at most so long, in bytes: every single object is, and lists of a few hundred are. A
/// longer one is left out whole and the event says so, as upstream's truncating backend does; upstream writes all where
/// that is not asked for, but a list of everything would stand in memory once more for each request for it.
const BODY_BYTES_MAX: usize = 3 << 20;
/// Says of an event that bodies were left out. Source: `plugin/pkg/audit/truncate`.
const TRUNCATED: &str = "audit.k8s.io/truncated";

/// What is counted. Source: `apiserver/pkg/audit/metrics.go`.
#[derive(Clone)]
pub(crate) struct Metrics {
    events: IntCounter,
    levels: IntCounterVec,
    failed: IntCounterVec,
}

impl Metrics {
    /// All at zero.
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let events = IntCounter::new("apiserver_audit_event_total", "Audit events that were made.")?;
        let vec = |name: &str, help: &str, label: &str| IntCounterVec::new(Opts::new(name, help), &[label]);
        let levels = vec("apiserver_audit_level_total", "Requests by the level of their audit.", "level")?;
        let failed = vec("apiserver_audit_error_total", "Audit events that were lost.", "plugin")?;
        registry.register(Box::new(events.clone()))?;
        registry.register(Box::new(levels.clone()))?;
        registry.register(Box::new(failed.clone()))?;
        Ok(Self { events, levels, failed })
    }
}

/// Decides what is audited, and hands it on.
pub(crate) struct Auditor {
    policy: Policy,
    queues: Queues,
    /// The sinks until their tasks run.
    idle: Mutex<Vec<Idle>>,
    clock: SharedClock,
    metrics: Metrics,
}

/// What an event says from the beginning.
pub(crate) struct Begin<'a> {
    pub(crate) subject: Subject<'a>,
    pub(crate) audit_id: &'a str,
    pub(crate) uri: &'a str,
    pub(crate) user_agent: &'a str,
    pub(crate) source_ips: Vec<String>,
}

impl Auditor {
    /// Reads the policy and opens the sinks; `None` where nothing is to be audited.
    pub(crate) fn open(
        options: &Audit,
        clock: SharedClock,
        metrics: Metrics,
    ) -> Result<Option<Arc<Self>>, FileError> {
        let Some(path) = &options.policy_file else { return Ok(None) };
        let text = std::fs::read(path).map_err(|error| FileError::new(path, error))?;
        let policy = Policy::parse(&text).map_err(|cause| FileError::new(path, cause))?;
        let mut sinks = Vec::new();
        if let Some(path) = &options.log_path {
            let log = file::Log::open(path, options, clock.clone());
            sinks.push(Sink::Log(log.map_err(|error| FileError::new(path, error))?));
        }
        if let Some(path) = &options.webhook_config_file {
            sinks.push(Sink::Webhook(Service::from_kubeconfig(path)?));
        }
        if sinks.is_empty() {
            return Ok(None);
        }
        let (queues, idle) = Queues::new(sinks, &metrics.failed);
        Ok(Some(Arc::new(Self { policy, queues, idle: Mutex::new(idle), clock, metrics })))
    }

    /// Runs the sinks as tasks of a component. They end when it does and their queues are empty.
    pub(crate) fn run(&self, ctx: &Context) {
        for idle in std::mem::take(&mut *self.idle.lock()) {
            ctx.spawn_draining(idle.run(ctx.clone()));
        }
    }

    /// The record of a request; `None` where the policy wants none.
    pub(crate) fn begin(self: &Arc<Self>, begin: Begin<'_>) -> Option<Record> {
        let verdict = self.policy.judge(&begin.subject);
        let level = verdict.level;
        self.metrics.levels.with_label_values(&[&format!("{level:?}")]).inc();
        if level == Level::None {
            return None;
        }
        let now = event::micro_time(self.clock.now());
        let mut user_agent: String = begin.user_agent.chars().take(AGENT_MAX).collect();
        if user_agent.len() < begin.user_agent.len() {
            user_agent.push_str("...TRUNCATED");
        }
        let event = Event {
            kind: "Event",
            api_version: "audit.k8s.io/v1",
            level,
            audit_id: begin.audit_id.to_owned(),
            stage: Stage::RequestReceived,
            request_uri: begin.uri.to_owned(),
            verb: begin.subject.verb.to_owned(),
            user: event::user(begin.subject.user.unwrap_or(&User::default())),
            impersonated_user: None,
            source_ips: begin.source_ips,
            user_agent,
            object_ref: begin.subject.resource.as_ref().map(event::object_ref),
            response_status: None,
            request_object: None,
            response_object: None,
            request_received_timestamp: now.clone(),
            stage_timestamp: now,
            annotations: Default::default(),
        };
        let state = Mutex::new(State { event, over: false });
        Some(Record(Arc::new(Inner { auditor: self.clone(), verdict, state })))
    }
}

struct State {
    event: Event,
    over: bool,
}

struct Inner {
    auditor: Arc<Auditor>,
    verdict: Verdict,
    state: Mutex<State>,
}

impl Inner {
    fn emit(&self, state: &mut State, stage: Stage) {
        state.event.stage = stage;
        state.event.stage_timestamp = event::micro_time(self.auditor.clock.now());
        if !self.verdict.omit.contains(&stage) {
            self.auditor.metrics.events.inc();
            self.auditor.queues.put(state.event.clone());
        }
    }
}

impl Drop for Inner {
    /// A request whose record ends without its end went away with its client, or with a panic.
    fn drop(&mut self) {
        let mut state = self.state.lock();
        if std::mem::replace(&mut state.over, true) {
            return;
        }
        let stage = if std::thread::panicking() {
            let failure = Status::internal("APIServer panic'd");
            state.event.response_status = Some(event::response_status(500, Some(&failure)));
            Stage::Panic
        } else {
            Stage::ResponseComplete
        };
        if state.event.response_status.is_none() {
            let early = serde_json::json!({
                "metadata": {}, "status": "Success", "message": "Connection closed early", "code": 200,
            });
            state.event.response_status = Some(early);
        }
        self.emit(&mut state, stage);
    }
}

/// What is being written down of one request. Its last event is made when the last clone goes, at the latest.
#[derive(Clone)]
pub(crate) struct Record(Arc<Inner>);

impl Record {
    /// The request has come.
    pub(crate) fn received(&self) {
        let mut state = self.0.state.lock();
        self.0.emit(&mut state, Stage::RequestReceived);
    }

    /// Says all that admission and authorization have to say.
    pub(crate) fn annotate_all(&self, said: BTreeMap<String, String>) {
        let mut state = self.0.state.lock();
        for (key, value) in said {
            state.event.annotations.entry(key).or_insert(value);
        }
    }

    /// The request is made for another user.
    pub(crate) fn impersonated(&self, user: &User) {
        self.0.state.lock().event.impersonated_user = Some(event::user(user));
    }

    /// The request's body, as JSON.
    pub(crate) fn request(&self, body: &[u8]) {
        if self.0.verdict.level >= Level::Request && !body.is_empty() && self.fits(body.len()) {
            let body = event::body(body, self.0.verdict.omit_managed_fields);
            self.0.state.lock().event.request_object = body;
        }
    }

    /// Whether a body of so many bytes is written down; the event says so if not.
    fn fits(&self, bytes: usize) -> bool {
        let fits = bytes <= BODY_BYTES_MAX;
        if !fits {
            self.0.state.lock().event.annotations.insert(TRUNCATED.to_owned(), "true".to_owned());
        }
        fits
    }

    /// Whether the response's body is wanted.
    pub(crate) fn wants_response(&self) -> bool {
        self.0.verdict.level >= Level::RequestResponse
    }

    /// The response's body, as JSON.
    pub(crate) fn response(&self, body: &[u8]) {
        if self.wants_response() && self.fits(body.len()) {
            let body = event::body(body, self.0.verdict.omit_managed_fields);
            self.0.state.lock().event.response_object = body;
        }
    }

    /// The same of an answer that is not written yet.
    pub(crate) fn responded(&self, response: &Response) {
        if !self.wants_response() {
            return;
        }
        match response {
            Response::Object { object, .. } | Response::Deleted { object: Some(object), .. } => {
                self.response(object.bytes());
            }
            Response::List(list) => {
                // Looked at before anything is copied.
                if self.fits(list.items.iter().map(|item| item.bytes().len()).sum()) {
                    let items = list.items.iter().map(|item| item.bytes().as_ref());
                    let body = event::list(list.revision, items, self.0.verdict.omit_managed_fields);
                    self.0.state.lock().event.response_object = body;
                }
            }
            Response::Deleted { uid, .. } => {
                let status = serde_json::json!({
                    "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                    "details": { "uid": uid },
                });
                self.response(status.to_string().as_bytes());
            }
            Response::Watch(_) => {}
        }
    }

    /// The answer's code, or its failure.
    pub(crate) fn answered(&self, code: u16, failure: Option<&Status>) {
        let mut state = self.0.state.lock();
        if let Some(failure) = failure.filter(|_| self.wants_response()) {
            state.event.response_object = event::body(failure.to_json().to_string().as_bytes(), false);
        }
        state.event.response_status = Some(event::response_status(code, failure));
    }

    /// A stage of a request that goes on.
    pub(crate) fn started(&self) {
        let mut state = self.0.state.lock();
        self.0.emit(&mut state, Stage::ResponseStarted);
    }

    /// The answer has been given.
    pub(crate) fn complete(&self) {
        let mut state = self.0.state.lock();
        if !std::mem::replace(&mut state.over, true) {
            self.0.emit(&mut state, Stage::ResponseComplete);
        }
    }

    /// Nothing more is written of it: all has been said.
    pub(crate) fn close(&self) {
        self.0.state.lock().over = true;
    }
}
