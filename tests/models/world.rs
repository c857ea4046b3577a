//! An API server over a store in memory, controllers at the end of a line that fails, and the clock of both.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use api::connect::{Body, NodeAddress, NodeConnector, User};
use api::{DeleteOptions, Propagation, Status};
use apiserver::{Config, Pipeline, Server};
use async_trait::async_trait;
use base::clock::{Clock, VirtualClock};
use base::lifecycle::{Component, Supervisor, Tasks};
use base::queues::Queues;
use client::Client;
use controllers::Ctx;
use reconcile::Informers;
use reconcile::kinds::{self, Catalog, Kind};
use serde_json::{Value, json};
use store::memory::Memory;
use store::{Embedded, EmbeddedConfig, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::faults::{Faults, Line};

/// Where stories take place.
pub(crate) const NAMESPACE: &str = "default";
/// Everything is at rest when for so many turns of the runtime no request was under way and nothing was written: an event
/// reaches the request that follows from it within a few.
const CALM_TURNS: u32 = 100;
/// More deadlines than this in one stretch of time are a loop that never rests.
const DEADLINES_MAX: u32 = 20_000;
/// More requests than this while no time passes are one too.
const REQUESTS_MAX: u64 = 20_000;
/// Nothing here takes that long, whatever else the machine does.
const PATIENCE: Duration = Duration::from_secs(120);

/// What runs at the end of the line.
pub(crate) type Controllers = fn(&Ctx) -> Vec<Arc<dyn Component>>;

struct NoNodes;

#[async_trait]
impl NodeConnector for NoNodes {
    async fn request(&self, _: &NodeAddress, _: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        Err(Status::internal("no nodes"))
    }
}

/// One life of the controllers.
struct Life {
    cut: CancellationToken,
    stop: CancellationToken,
}

impl Drop for Life {
    fn drop(&mut self) {
        self.cut.cancel();
        self.stop.cancel();
    }
}

pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) clock: VirtualClock,
    pub(crate) chance: fastrand::Rng,
    pub(crate) faults: Arc<Faults>,
    /// Users and kubelets: nothing fails for them.
    pub(crate) user: Client,
    pipeline: Arc<Pipeline>,
    store: Arc<dyn Store>,
    controllers: Controllers,
    life: Option<Life>,
    /// What the work queues of this life tell.
    queues: Queues,
    /// How many keys were worked on in the lives before.
    worked: u64,
    ca: watch::Receiver<Arc<str>>,
    traces: bool,
    stop: CancellationToken,
    tasks: Tasks,
    _dir: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl World {
    /// A cluster in which these controllers run.
    pub(crate) async fn new(seed: u64, controllers: Controllers) -> Self {
        let store = Embedded::open(Arc::new(Memory::new()), EmbeddedConfig::STANDARD).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let clock = VirtualClock::new("2026-01-01T00:00:00Z".parse().unwrap());
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let config = Config {
            listen: SocketAddr::new(loopback, 0),
            addresses: vec![loopback],
            pki_dir: dir.path().join("pki"),
            service_ranges: vec![("10.96.0.0".parse().unwrap(), 24)],
            node_ports: (30_000, 30_010),
            dns_address: None,
            git_version: "v1.37.0+skiff.1".into(),
            clock: Arc::new(clock.clone()),
            shared: false,
            readiness: None,
            access: apiserver::Access::default(),
            protection: apiserver::Protection::default(),
            authorizer: None,
            egress: None,
            admission: apiserver::admission::standard(),
        };
        let built = Server::build(config, store.clone(), resources::strategies(), Arc::new(NoNodes));
        let (pipeline, server) = built.await.unwrap();
        let ca = server.pki().ca_renewals();
        let mut supervisor = Supervisor::new();
        let (readiness, stop, tasks) = (supervisor.readiness(), CancellationToken::new(), Tasks::default());
        supervisor.add(Arc::new(server));
        let running = stop.clone();
        tasks.spawn(async move {
            supervisor.run(running, PATIENCE).await.unwrap();
        });
        let ready = tokio::time::timeout(PATIENCE, readiness.wait_all()).await;
        assert!(ready.is_ok(), "not ready: {:?}", readiness.missing());
        let faults = Arc::new(Faults::new(seed));
        let user = Line {
            pipeline: pipeline.clone(),
            user: User { name: "admin".into(), groups: vec!["system:masters".into()], ..User::default() },
            faults: Arc::new(Faults::new(0)),
            cut: CancellationToken::new(),
        };
        let mut world = Self {
            seed,
            clock,
            chance: fastrand::Rng::with_seed(seed),
            faults,
            user: Client::new(Arc::new(user), "model"),
            pipeline,
            store,
            controllers,
            life: None,
            queues: Queues::default(),
            worked: 0,
            ca,
            traces: std::env::var_os("SKIFF_MODELS_TRACE").is_some(),
            stop,
            tasks,
            _dir: dir,
        };
        let account = json!({ "metadata": { "name": "default" } });
        world.create(&kinds::SERVICE_ACCOUNTS, &account).await;
        world.restart();
        world.settle().await;
        world
    }

    /// Kills the controllers, if they run, and starts them anew with empty caches.
    pub(crate) fn restart(&mut self) {
        self.life = None;
        self.worked = self.worked();
        self.queues = Queues::default();
        let (cut, stop) = (CancellationToken::new(), CancellationToken::new());
        let line = Line {
            pipeline: self.pipeline.clone(),
            user: User {
                name: "skiff:controllers".into(),
                groups: vec![apiserver::authn::names::COMPONENTS.into()],
                ..User::default()
            },
            faults: self.faults.clone(),
            cut: cut.clone(),
        };
        let client = Client::new(Arc::new(line), "controllers");
        let ctx = Ctx {
            client: client.clone(),
            informers: Informers::new(client, Arc::new(self.clock.clone())),
            clock: Arc::new(self.clock.clone()),
            catalog: Catalog::new(self.pipeline.catalog().rows()),
            queues: self.queues.clone(),
            figures: None,
            root_ca_pem: self.ca.clone(),
        };
        let mut supervisor = Supervisor::new();
        (self.controllers)(&ctx).into_iter().for_each(|component| supervisor.add(component));
        let stopped = stop.clone();
        // What a cut line holds never ends by itself: nobody waits for it.
        self.tasks.spawn(async move {
            supervisor.run(stopped, Duration::ZERO).await.unwrap();
        });
        self.life = Some(Life { cut, stop });
    }

    /// How many keys of work queues were worked on so far.
    pub(crate) fn worked(&self) -> u64 {
        self.worked + self.queues.figures().values().map(|queue| queue.worked.count).sum::<u64>()
    }

    /// Lets everything happen that happens by itself now.
    pub(crate) async fn settle(&self) {
        let mut calm = 0;
        let mut seen = 0;
        let before = self.faults.requests();
        while calm < CALM_TURNS {
            tokio::task::yield_now().await;
            let now = self.store.current_revision().await.unwrap();
            calm = if now == seen && self.faults.under_way() == 0 { calm + 1 } else { 0 };
            seen = now;
            let requests = self.faults.requests() - before;
            assert!(
                requests < REQUESTS_MAX,
                "a loop that never rests: {requests} requests while no time passes"
            );
        }
    }

    /// Time passes, from one deadline to the next, and at each everything happens that then does.
    pub(crate) async fn pass(&self, time: Duration) {
        let end = self.clock.now() + time;
        for _ in 0..DEADLINES_MAX {
            self.settle().await;
            let next = self.clock.next_deadline().filter(|next| *next < end).unwrap_or(end);
            let wait = next.duration_since(self.clock.now());
            if self.traces {
                println!("TRACE {} passes to {next}", self.clock.now());
            }
            self.clock.advance(Duration::try_from(wait).unwrap_or_default());
            if next == end {
                self.settle().await;
                return;
            }
        }
        panic!("a loop that never rests: {DEADLINES_MAX} deadlines within {time:?}");
    }

    /// Creates an object as a user.
    pub(crate) async fn create(&self, kind: &Kind, object: &Value) {
        self.user.create(&kind.gvr(), home(kind), object).await.unwrap();
    }

    /// Merges a patch into an object as a user.
    pub(crate) async fn merge(&self, kind: &Kind, name: &str, patch: &Value) {
        self.try_merge(kind, name, patch).await.unwrap();
    }

    /// Merges a patch into an object as a user, who may ask for what is not allowed, or too late.
    pub(crate) async fn try_merge(&self, kind: &Kind, name: &str, patch: &Value) -> Result<(), Status> {
        let key = api::Key::new(home(kind), name);
        self.user.patch(&kind.gvr(), &key, "", api::PatchType::Merge, patch).await.map(|_| ())
    }

    /// Deletes an object as a user; it may be gone already.
    pub(crate) async fn delete(&self, kind: &Kind, name: &str, propagation: Option<Propagation>) {
        let options = DeleteOptions { propagation, ..DeleteOptions::default() };
        let gone = self.user.delete(&kind.gvr(), &api::Key::new(home(kind), name), options).await;
        assert!(gone.as_ref().map_or_else(|status| status.code == 404, |()| true), "{gone:?}");
    }

    /// What is done stays done: an hour later nobody has asked or written anything.
    pub(crate) async fn rest(&self) {
        let before = self.faults.calls();
        self.pass(Duration::from_secs(3600)).await;
        assert_eq!(self.faults.calls(), before, "somebody works on what is done");
    }
}

/// The namespace of the objects of a kind here.
pub(crate) fn home(kind: &Kind) -> &'static str {
    if kind.namespaced { NAMESPACE } else { "" }
}

/// The seeds of a suite: a few, or as many as `SKIFF_MODELS_SEEDS` says, from `SKIFF_MODELS_FIRST` on.
pub(crate) fn seeds(few: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("SKIFF_MODELS_FIRST").unwrap_or(1);
    first..first + number("SKIFF_MODELS_SEEDS").unwrap_or(few)
}
