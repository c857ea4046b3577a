//! What a pod worker knows.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, PodStatus};
use reconcile::EventType;
use serde_json::{Map, Value};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::mailbox::Mailbox;
use super::ops::Outcome;
use super::patch::own_fields;
use super::resize::Resizes;
use super::{grace_end, stop};
use crate::admission::Refusal;
use crate::admission::preemption::{PREEMPTED, PREEMPTING};
use crate::deps::Deps;
use crate::eviction::{EVICTED, Verdict};
use crate::pod::PodView;
use crate::pod::plan::{ImageState, ProbeState, StartFailure, Step, Waiting};
use crate::pod::status::container_id;
use crate::probes::{ProbeReport, Prober, listening};
use crate::sources;
use crate::tokens::Tokens;

/// The worker of one pod.
pub(crate) struct PodWorker {
    pub(super) deps: Arc<Deps>,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) pod: Arc<PodView>,
    pub(super) gone: bool,
    /// The pod's file is gone.
    pub(super) withdrawn: bool,
    /// Whom the API knows the pod as: the uid of a file's pod is that of its copy, which may not be there.
    pub(super) known_as: Option<String>,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) resizes: Resizes,

    pub(super) sandbox: Step,
    pub(super) sandbox_failures: u32,
    pub(super) volumes: Step,
    pub(super) volume_failures: u32,
    /// Absent while a step uses them.
    pub(super) tokens: Option<Tokens>,
    pub(super) refresh_due: bool,
    /// When a refresh of the volumes that failed is tried again.
    pub(super) refresh_retry_at: Option<Timestamp>,

    /// All by container name.
    pub(super) image_names: HashMap<String, String>,
    pub(super) images: HashMap<String, ImageState>,
    pub(super) image_failures: HashMap<String, u32>,
    pub(super) start_failures: HashMap<String, StartFailure>,
    pub(super) start_failure_counts: HashMap<String, u32>,
    pub(super) starting: Option<String>,
    /// What the last plan made wait.
    pub(super) waiting: BTreeMap<String, Waiting>,

    /// All by container id.
    pub(super) killing: Vec<String>,
    pub(super) removing: HashSet<String>,
    pub(super) probes: HashMap<String, ProbeState>,
    pub(super) probers: HashMap<String, Prober>,
    pub(super) messages: HashMap<String, String>,

    pub(super) finishing: bool,
    /// `reason` and `message` of a pod that the node fails.
    pub(super) failure: Option<(String, String)>,
    /// That of an eviction.
    pub(super) eviction: Option<Verdict>,
    /// By when evictions want it to have ended, however much time it has otherwise.
    pub(super) evicted_by: Option<Timestamp>,
    /// Until when the containers of a pod that has to go are given time; there while they are being stopped.
    pub(super) stopping: Option<watch::Sender<Timestamp>>,

    /// The status as it is now.
    pub(super) status: PodStatus,
    /// Its fields as they ought to be on the server, …
    pub(super) wanted: Map<String, Value>,
    /// … as they are there, …
    pub(super) known: Map<String, Value>,
    /// … and as they are being written.
    pub(super) writing: Option<Map<String, Value>>,
    /// Another copy has come since: what is known of the old one says nothing.
    pub(super) renewed: bool,
    pub(super) write_failures: u32,
    pub(super) write_retry_at: Option<Timestamp>,

    pub(super) ops: FuturesUnordered<BoxFuture<'static, Outcome>>,
    pub(super) reports: (mpsc::UnboundedSender<ProbeReport>, mpsc::UnboundedReceiver<ProbeReport>),
    /// Ends steps that need not come to an end when the pod does.
    pub(super) cancel: CancellationToken,
    /// Ends those that make volumes, also when the pod has run its course. A child of the other.
    pub(super) uses_volumes: CancellationToken,
}

impl PodWorker {
    /// A worker that knows nothing but its pod.
    pub(crate) fn new(deps: Arc<Deps>, mailbox: Arc<Mailbox>, pod: PodView) -> Self {
        let references = sources::references(&pod);
        let held = deps.watched.hold(&pod.metadata.namespace, &references);
        mailbox.interested_in(&pod.metadata.namespace, references, held);
        let containers = pod
            .containers()
            .map(|(_, container)| (container.name.clone(), container.image.clone().unwrap_or_default()));
        let image_names = containers.collect();
        let addresses = pod.status.pod_ips.iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect();
        let cancel = CancellationToken::new();
        let known_as = (!pod.is_of_a_file()).then(|| pod.uid().to_owned());
        Self {
            known: own_fields(&pod.status),
            resizes: Resizes::of(&pod),
            status: pod.status.clone(),
            deps,
            mailbox,
            pod: Arc::new(pod),
            gone: false,
            withdrawn: false,
            known_as,
            addresses,
            sandbox: Step::Todo,
            sandbox_failures: 0,
            volumes: Step::Todo,
            volume_failures: 0,
            tokens: Some(Tokens::default()),
            refresh_due: false,
            refresh_retry_at: None,
            image_names,
            images: HashMap::new(),
            image_failures: HashMap::new(),
            start_failures: HashMap::new(),
            start_failure_counts: HashMap::new(),
            starting: None,
            waiting: BTreeMap::new(),
            killing: Vec::new(),
            removing: HashSet::new(),
            probes: HashMap::new(),
            probers: HashMap::new(),
            messages: HashMap::new(),
            finishing: false,
            failure: None,
            eviction: None,
            evicted_by: None,
            stopping: None,
            wanted: Map::new(),
            writing: None,
            renewed: false,
            write_failures: 0,
            write_retry_at: None,
            ops: FuturesUnordered::new(),
            reports: mpsc::unbounded_channel(),
            uses_volumes: cancel.child_token(),
            cancel,
        }
    }

    /// The pod as it is known.
    pub(crate) fn pod(&self) -> &PodView {
        &self.pod
    }

    /// The node does not take the pod: it fails without having begun.
    pub(crate) fn reject(&mut self, Refusal { reason, message }: Refusal) {
        let told = format!("Pod was rejected: {message}");
        self.deps.event(&self.pod, None, EventType::Warning, &reason, message);
        self.failure = Some((reason, told));
    }

    /// The pod has to go for the sake of a critical one.
    pub(super) fn preempt(&mut self) {
        if self.failure.is_none() && !self.pod.is_terminal() {
            self.deps.event(&self.pod, None, EventType::Warning, PREEMPTING, PREEMPTED);
            self.failure = Some((PREEMPTING.to_owned(), PREEMPTED.to_owned()));
        }
    }

    /// The pod has to go, for what it holds, for what the node is short of, or since the machine goes down. One that ends already may get less time.
    pub(super) fn evict(&mut self, verdict: Verdict) {
        let by = self.at_most(grace_end(&self.deps, verdict.grace_seconds));
        self.evicted_by = Some(by);
        if let Some(deadline) = &self.stopping {
            stop::bring_nearer(deadline, by);
        }
        if self.failure.is_none() && !self.pod.is_terminal() {
            if verdict.reason == EVICTED {
                self.deps.event(&self.pod, None, EventType::Warning, EVICTED, verdict.message.clone());
            }
            self.failure = Some((verdict.reason.to_owned(), verdict.message.clone()));
            self.eviction = Some(verdict);
        }
    }

    /// A deadline, or that of an eviction where it is nearer.
    pub(super) fn at_most(&self, deadline: Timestamp) -> Timestamp {
        self.evicted_by.map_or(deadline, |by| by.min(deadline))
    }

    pub(super) fn push(&self, op: impl Future<Output = Outcome> + Send + 'static) {
        self.ops.push(Box::pin(op));
    }

    /// What probes are assumed to say before they have: what the API heard of this very run, or that a container without
    /// a probe is fine (and ready, unless it names ports that it is yet to listen to).
    pub(super) fn initial_probe_state(&self, container: &Container, id: &str) -> ProbeState {
        let known = self.pod.reported(&container.name);
        let known = known.filter(|known| known.container_id.as_deref() == Some(container_id(id).as_str()));
        let was_started = known.is_some_and(|known| known.started == Some(true));
        let was_ready = known.is_some_and(|known| known.ready);
        ProbeState {
            started: container.startup_probe.is_none() || was_started,
            ready: (container.readiness_probe.is_none() && listening::expected(container).is_empty())
                || was_ready,
            liveness_failed: false,
            startup_failed: false,
        }
    }
}
