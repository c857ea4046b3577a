//! The component: starts from what the runtime and the API hold, keeps one worker per pod, feeds them.

use std::collections::HashMap;
use std::sync::Arc;

use api::{Key, Object};
use async_trait::async_trait;
use base::BoxError;
use base::clock::SharedClock;
use base::lifecycle::{Component, Context, OnFailure};
use client::Client;
use engine_api::{ContainerEvent, ContainerEventKind, Images, Runtime};
use futures::StreamExt as _;
use parking_lot::Mutex;
use reconcile::ports::{ClusterDns, Drain, SandboxNetworks};
use reconcile::{Change, EventRecorder, Informers, kinds};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::admission::{Door, Refusal, Workers};
use crate::config::Config;
use crate::cpus::{self, Cpus};
use crate::deps::{Caches, Deps, blocking};
use crate::eviction::pressure::WatchedPressure;
use crate::eviction::{self, Manager};
use crate::figures::Figures;
use crate::groups::{self, Groups};
use crate::images::{self, Puller};
use crate::local_path;
use crate::plugins::{self, Plugins};
use crate::pod::spec::NodeFacts;
use crate::pod::{ContainerRecord, PodView};
use crate::registration::{self, allocatable, facts};
use crate::runtime_state::RuntimeState;
use crate::server::NodeServer;
use crate::shutdown::{self, Shutdown};
use crate::sources;
use crate::static_pods::{self, Difference, MIRROR, StaticPods, mirrored};
use crate::traces::Traces;
use crate::volumes::leftovers::{self, Leftover};
use crate::volumes::threads::Threads;
use crate::watched::Watched;
use crate::worker::PodWorker;
use crate::worker::mailbox::Mailbox;
use crate::worker::terminate::{terminate_leftover, terminate_orphan};

/// What the agent works with, as `skiff` wires it.
pub struct Handles {
    /// Speaks to the API server as this node.
    pub client: Client,
    /// Shared informers under the same identity.
    pub informers: Informers,
    /// Time.
    pub clock: SharedClock,
    /// Sandboxes and containers.
    pub runtime: Arc<dyn Runtime>,
    /// Images.
    pub images: Arc<dyn Images>,
    /// Interfaces and addresses of sandboxes.
    pub networks: Arc<dyn SandboxNetworks>,
    /// When the data path has let go of a pod.
    pub drain: Arc<dyn Drain>,
    /// Facts about cluster DNS.
    pub dns: Arc<dyn ClusterDns>,
}

/// The node agent.
pub struct Agent {
    deps: Arc<Deps>,
    workers: Workers,
    door: Arc<Door>,
    crew: Crew,
    server: Arc<NodeServer>,
    /// Informers end with their registry.
    _informers: Informers,
}

impl Agent {
    /// Builds the agent and takes its server's port; nothing runs yet. Called within a tokio runtime.
    ///
    /// # Errors
    /// If the server's address cannot be bound or its certificates cannot be read.
    pub async fn build(config: Config, handles: Handles) -> Result<Arc<Self>, BoxError> {
        let Handles { client, informers, clock, runtime, images, networks, drain, dns } = handles;
        let client = client.for_manager("kubelet");
        crate::root::lay_out(&config.data_dir)
            .map_err(|error| format!("node data directory {}: {error}", config.data_dir.display()))?;
        let hardware = facts::hardware(&config.data_dir);
        allocatable::check(&hardware, &config)?;
        let cpus = Cpus::open(&config.cpus, &config.reserved, &config.data_dir)?;
        let on_node = format!("spec.nodeName={}", config.node_name);
        let caches = Caches {
            pods: informers.selected(kinds::PODS, &on_node),
            nodes: informers.get(kinds::NODES),
            services: informers.get(kinds::SERVICES),
        };
        let facts = NodeFacts {
            memory_bytes: hardware.memory_bytes,
            pod_pids_limit: config.pod_pids_limit,
            seccomp_profiles: config.seccomp_dir.clone(),
            log_root: config.log_dir.clone(),
        };
        let workers = Workers::default();
        let concerned = workers.clone();
        let watched = Watched::new(informers.clone(), &config.node_name, move |kind, change| {
            let workers = concerned.lock();
            let tell = |mailbox: &Arc<Mailbox>| mailbox.reference_changed(kind, &change.key);
            if *kind == kinds::POD_CERTIFICATE_REQUESTS {
                // It is one pod's: others of its namespace have nothing to look at.
                let of = change.latest().and_then(|request| sources::certified_pod(request));
                if let Some(mailbox) = of.and_then(|uid| workers.get(&uid)) {
                    tell(mailbox);
                }
            } else {
                workers.values().for_each(tell);
            }
        });
        let recorder = EventRecorder::new(client.clone(), clock.clone(), "kubelet", &config.node_name);
        let deps = Arc::new(Deps {
            client,
            clock,
            recorder,
            caches,
            watched,
            runtime,
            images,
            puller: Puller::open(&config.images, &config.data_dir)?,
            garbage: images::gc::Garbage::default(),
            networks,
            drain,
            dns,
            state: RuntimeState::default(),
            traces: Traces::default(),
            static_pods: StaticPods::default(),
            hardware,
            facts,
            figures: Figures::new()?,
            groups: Groups::default(),
            cpus,
            shutdown: Shutdown::default(),
            notices: engine_api::logs::Notices::default(),
            pressure: WatchedPressure::default(),
            threads: Threads::default(),
            plugins: Plugins::default(),
            config,
        });
        let server = NodeServer::bind(deps.clone()).await?;
        let door = Arc::new(Door::new(deps.clone(), workers.clone()));
        let (of_files, own) = (Arc::default(), deps.clone());
        let crew = Crew { deps: own, workers: workers.clone(), door: door.clone(), of_files };
        Ok(Arc::new(Self { deps, workers, door, crew, server, _informers: informers }))
    }

    /// The node's server: the in-process way to logs, exec, attach and port-forward.
    pub fn server(&self) -> Arc<NodeServer> {
        self.server.clone()
    }

    async fn synced(&self) {
        let caches = &self.deps.caches;
        for informer in [&caches.pods, &caches.nodes, &caches.services] {
            informer.synced().await;
        }
    }

    /// Pods of the runtime that the API does not know any more.
    fn end_orphans(&self, ctx: &Context) {
        for sandbox in self.deps.state.pods() {
            let uid = &sandbox.pod_uid;
            if self.deps.caches.pods.by_uid(uid).is_none() && !self.deps.static_pods.has(uid) {
                ctx.spawn(terminate_orphan(self.deps.clone(), sandbox));
            }
        }
    }

    /// What lies in directories of pods that nobody knows: the node was killed after it had removed their sandboxes, or
    /// before it had made any. To be asked before any worker is at work.
    async fn clear_leftovers(&self, ctx: &Context) {
        let config = &self.deps.config;
        let roots = [config.data_dir.clone(), config.run_dir.clone()];
        let logs = config.log_dir.clone();
        let mut found = blocking(move || leftovers::find(&roots, &logs)).await.unwrap_or_default();
        let claiming = self.deps.plugins.claims.pods().into_iter();
        let claiming = claiming.filter(|uid| found.iter().all(|left| left.uid != *uid));
        let claiming: Vec<Leftover> = claiming.map(|uid| Leftover { uid, logs: Vec::new() }).collect();
        found.extend(claiming);
        let sandboxes = self.deps.state.pods();
        let (pods, of_files) = (&self.deps.caches.pods, &self.deps.static_pods);
        let known = |uid: &str| {
            let lives = sandboxes.iter().any(|sandbox| sandbox.pod_uid == uid);
            lives || pods.by_uid(uid).is_some() || of_files.has(uid)
        };
        for left in found.into_iter().filter(|left| !known(&left.uid)) {
            ctx.spawn(terminate_leftover(self.deps.clone(), left));
        }
    }

    /// What the files say of pods that the node runs by itself.
    fn files_changed(&self, ctx: &Context, Difference { gone, new }: Difference) {
        for uid in gone {
            if let Some(mailbox) = self.workers.lock().get(&uid) {
                mailbox.withdraw();
            }
        }
        for object in new {
            let before = self.crew.of_files.lock().get(&object.key()).cloned();
            let object = self.with_known_status(object);
            match before {
                None => self.crew.begin(ctx, &object),
                Some(before) => self.crew.begin_after(ctx, before, object),
            }
        }
    }

    /// A pod of a file with what its copy says of it: an earlier run of the agent has told that.
    fn with_known_status(&self, object: Arc<Object>) -> Arc<Object> {
        let copy = self.deps.caches.pods.get(&object.key());
        let copy = copy.filter(|copy| copy.annotation(MIRROR).as_ref() == Some(&object.meta().uid));
        let (Some(copy), Ok(mut whole)) = (copy, object.decode::<Value>()) else { return object };
        let Ok(shown) = copy.decode::<Value>() else { return object };
        whole["status"] = shown["status"].clone();
        Object::parse(whole.to_string().into()).map_or(object, Arc::new)
    }

    /// The API's copy of a pod of a file has changed; the pod itself has not. Anybody may say of a pod that it is such a copy:
    /// it counts for the pod of a file that has its name, and for no other.
    fn mirror_changed(&self, of: &str, change: Change) {
        let named = self.crew.of_files.lock().get(&change.key).cloned();
        let meant = self.workers.lock().get(of).cloned();
        if let (Some(named), Some(meant)) = (named, meant)
            && Arc::ptr_eq(&named, &meant)
        {
            meant.mirror(change.new);
        }
        self.deps.static_pods.touch();
    }

    fn pod_changed(&self, ctx: &Context, change: Change) {
        if let Some(of) = change.latest().and_then(|object| mirrored(object)) {
            return self.mirror_changed(&of, change);
        }
        let old_uid = change.old.as_ref().map(|old| old.meta().uid.clone());
        let new_uid = change.new.as_ref().map(|new| new.meta().uid.clone());
        if old_uid != new_uid
            && let Some(mailbox) = old_uid.and_then(|uid| self.workers.lock().get(&uid).cloned())
        {
            mailbox.gone();
        }
        let (Some(object), Some(uid)) = (change.new, new_uid) else { return };
        let known = self.workers.lock().get(&uid).cloned();
        if let Some(mailbox) = known {
            let generation = |object: &Object| object.meta().generation;
            if change.old.is_none_or(|old| generation(&old) != generation(&object)) {
                self.door.changed(&object);
            } else {
                // It may be over, and its place free.
                self.door.freed();
            }
            mailbox.deliver(object);
            return;
        }
        self.crew.begin(ctx, &object);
    }
}

/// Who gives pods their workers.
#[derive(Clone)]
struct Crew {
    deps: Arc<Deps>,
    workers: Workers,
    door: Arc<Door>,
    /// The pods of files that there is something of, by name.
    of_files: Arc<Mutex<HashMap<Key, Arc<Mailbox>>>>,
}

impl Crew {
    /// Gives a pod its worker.
    fn begin(&self, ctx: &Context, object: &Arc<Object>) {
        let uid = object.meta().uid.clone();
        let pod = match PodView::decode(object) {
            Ok(pod) => pod,
            Err(error) => {
                tracing::error!(pod = %object.key(), %error, "pod not readable");
                return;
            }
        };
        let mailbox = Arc::new(Mailbox::default());
        if pod.is_of_a_file() {
            let copy = self.deps.caches.pods.get(&object.key());
            mailbox.mirror(copy.filter(|copy| mirrored(copy).as_ref() == Some(&uid)));
            self.of_files.lock().insert(object.key(), mailbox.clone());
        }
        self.workers.lock().insert(uid.clone(), mailbox.clone());
        self.deps.traces.begin(&uid);
        self.deps.runtime.expect_sandbox();
        let step = self.deps.traces.step(&uid, "node: admission", "");
        let arrival = self.door.arrives(object, &pod);
        let mut worker = PodWorker::new(self.deps.clone(), mailbox.clone(), pod);
        let Self { deps, workers, door, of_files } = self.clone();
        let (key, object) = (object.key(), object.clone());
        ctx.spawn(async move {
            let refusal = match door.settle(arrival).await {
                Some(refusal) => Some(refusal),
                None => allot(&deps, worker.pod()).await.err(),
            };
            match refusal {
                Some(refusal) => worker.reject(refusal),
                None => {
                    worker.recall().await;
                    // It may have asked for something else while nobody was here.
                    door.changed(&deps.caches.pods.by_uid(&uid).unwrap_or(object));
                }
            }
            drop(step);
            worker.run().await;
            mailbox.is_over();
            door.leaves(&uid);
            deps.traces.forget(&uid);
            groups::leave(&deps, &uid).await;
            plugins::devices::release(&deps, &uid).await;
            cpus::leave(&deps, &uid).await;
            workers.lock().remove(&uid);
            {
                let mut of_files = of_files.lock();
                if of_files.get(&key).is_some_and(|known| Arc::ptr_eq(known, &mailbox)) {
                    of_files.remove(&key);
                }
            }
            mailbox.has_left();
            deps.static_pods.touch();
        });
    }

    /// Begins with a pod of a file when nothing is left of the one of its name, if it is still wanted then.
    fn begin_after(&self, ctx: &Context, before: Arc<Mailbox>, object: Arc<Object>) {
        let (crew, again) = (self.clone(), ctx.clone());
        ctx.spawn(async move {
            before.left().await;
            let uid = &object.meta().uid;
            let begun = crew.workers.lock().contains_key(uid);
            if !begun && crew.deps.static_pods.has(uid) {
                crew.begin(&again, &object);
            }
        });
    }
}

/// Gives a pod what the node has for single containers. A refusal is why the node does not take it.
async fn allot(deps: &Deps, pod: &PodView) -> Result<(), Refusal> {
    let given = plugins::devices::allocate(deps, pod).await;
    given.map_err(|why| Refusal::new("UnexpectedAdmissionError", why))?;
    let given = cpus::allocate(deps, pod).await;
    if given.is_err() {
        plugins::devices::release(deps, pod.uid()).await;
    }
    given
}

#[async_trait]
impl Component for Agent {
    fn name(&self) -> &'static str {
        "node"
    }

    fn on_failure(&self) -> OnFailure {
        OnFailure::Restart
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        self.workers.lock().clear();
        self.crew.of_files.lock().clear();
        self.deps.static_pods.replace(Vec::new());
        // Events first: what happens while we list is not lost.
        let events = self.deps.runtime.events().await;
        self.deps.state.refresh(&*self.deps.runtime).await?;
        ctx.spawn(follow_runtime(self.deps.clone(), self.workers.clone(), events));
        // Before anything is asked: an API server that has moved says here where it is.
        self.server.start(&ctx);
        ctx.waiting_for("the API server's first lists");
        self.synced().await;
        let info = facts::host_info();
        let port = self.server.port();
        ctx.waiting_for("its Node object");
        let mut evictions = Manager::default();
        evictions.look(&self.deps).await;
        let registered = registration::register(&self.deps, &info, port).await?;
        self.deps.caches.nodes.caught_up(registered).await;
        ctx.spawn(registration::keep_lease(self.deps.clone()));
        images::recover(&self.deps).await;
        ctx.spawn(eviction::keep(self.deps.clone(), self.workers.clone(), evictions));
        ctx.spawn(images::gc::keep(self.deps.clone()));
        ctx.spawn(registration::keep_status(self.deps.clone(), info, port));
        let (files, mut listed) = mpsc::channel(1);
        let mut begun = Difference::default();
        if let Some(directory) = self.deps.config.static_pods.clone() {
            let pods = static_pods::read(&self.deps, &directory).await;
            // Without them the pods of earlier runs would be nobody's.
            let pods = pods.ok_or("the manifests of static pods cannot be read")?;
            begun = self.deps.static_pods.replace(pods);
            ctx.spawn(static_pods::follow(self.deps.clone(), directory, files));
        }
        cpus::begin(&self.deps).await;
        ctx.spawn(cpus::keep(self.deps.clone()));
        ctx.spawn(shutdown::keep(self.deps.clone(), self.workers.clone()));
        ctx.spawn(static_pods::keep_mirrors(self.deps.clone(), self.workers.clone()));
        ctx.spawn(local_path::keep(self.deps.clone()));
        plugins::sweep::begin(&self.deps).await?;
        plugins::dra::begin(&self.deps).await;
        ctx.spawn(plugins::dra::wipe_at_start(self.deps.clone()));
        ctx.spawn(plugins::pod_resources::keep(self.deps.clone()));
        ctx.spawn(plugins::in_use::keep(self.deps.clone()));
        ctx.spawn(plugins::csi_node::keep(self.deps.clone()));
        let listener = plugins::devices::begin(&self.deps).await;
        ctx.spawn(plugins::devices::keep_report(self.deps.clone()));
        ctx.spawn(plugins::devices::keep_server(self.deps.clone(), listener));
        ctx.spawn(plugins::registration::keep(self.deps.clone(), self.workers.clone()));
        self.end_orphans(&ctx);
        self.clear_leftovers(&ctx).await;
        self.door.begin().await;
        let mut pods = self.deps.caches.pods.subscribe();
        self.files_changed(&ctx, begun);
        ctx.ready();
        loop {
            tokio::select! {
                mut changes = pods.changed() => {
                    // Who was there first is decided about first.
                    changes.sort_by_key(|change| change.latest().and_then(|pod| pod.meta().creation_timestamp));
                    for change in changes {
                        self.pod_changed(&ctx, change);
                    }
                }
                Some(pods) = listed.recv() => {
                    let difference = self.deps.static_pods.replace(pods);
                    self.files_changed(&ctx, difference);
                }
                () = ctx.cancelled() => return Ok(()),
            }
        }
    }
}

/// Applies the runtime's events to the cache and wakes the workers concerned.
async fn follow_runtime(
    deps: Arc<Deps>,
    workers: Workers,
    mut events: futures::stream::BoxStream<'static, Result<ContainerEvent, engine_api::EventsLost>>,
) {
    while let Some(event) = events.next().await {
        let Ok(event) = event else {
            if let Err(error) = deps.state.refresh(&*deps.runtime).await {
                tracing::error!(%error, "runtime not readable");
            }
            for mailbox in workers.lock().values() {
                mailbox.runtime_changed();
            }
            continue;
        };
        let uid = deps.state.pod_of(&event.sandbox_id);
        apply_event(&deps, &event).await;
        let mailbox = uid.and_then(|uid| workers.lock().get(&uid).cloned());
        if let Some(mailbox) = mailbox {
            mailbox.runtime_changed();
        }
    }
}

async fn apply_event(deps: &Deps, event: &ContainerEvent) {
    match &event.kind {
        ContainerEventKind::Warning(message) => warn(deps, event, message),
        ContainerEventKind::SandboxDied => {
            deps.state.sandbox_ended(&event.sandbox_id);
            for id in deps.state.containers_of(&event.sandbox_id) {
                deps.state.refresh_container(&*deps.runtime, &id).await;
            }
        }
        ContainerEventKind::Removed if event.container_id.is_empty() => {
            deps.state.forget_sandbox(&event.sandbox_id);
        }
        ContainerEventKind::Removed => deps.state.forget_container(&event.container_id),
        // Sandboxes are made by the workers, which put them into the cache themselves.
        ContainerEventKind::Created | ContainerEventKind::Started | ContainerEventKind::Exited(_) => {
            if !event.container_id.is_empty() {
                deps.state.refresh_container(&*deps.runtime, &event.container_id).await;
            }
            if event.kind == ContainerEventKind::Started {
                count_start(deps, event);
            }
        }
    }
}

fn count_start(deps: &Deps, event: &ContainerEvent) {
    if let Some((pod, container)) = whose(deps, event) {
        deps.figures.started(&pod, &container.name);
    }
}

/// The engine's warnings of a container are its pod's.
fn warn(deps: &Deps, event: &ContainerEvent, message: &str) {
    if let Some((pod, container)) = whose(deps, event) {
        deps.warning(&pod, &container.name, "ContainerWarning", message);
    }
}

/// The pod and the container of an event.
fn whose(deps: &Deps, event: &ContainerEvent) -> Option<(PodView, ContainerRecord)> {
    let uid = deps.state.pod_of(&event.sandbox_id)?;
    let object = deps.caches.pods.by_uid(&uid).or_else(|| deps.static_pods.get(&uid))?;
    PodView::decode(&object).ok().zip(deps.state.container(&event.container_id))
}
