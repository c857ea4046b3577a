//! A controller's line to the API server, which fails as networks and crowded servers do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicUsize, Ordering};

use api::connect::User;
use api::{Call, List, Object, Reason, Request, Response, Status, Verb, WatchStream};
use apiserver::Pipeline;
use async_trait::async_trait;
use client::Transport;
use futures::{StreamExt, future, stream};
use parking_lot::Mutex;
use serde_json::json;
use tokio_util::sync::CancellationToken;

/// What happens to requests, and how many there were. Shared by all lines of a world.
pub(crate) struct Faults {
    chance: Mutex<fastrand::Rng>,
    /// Of a hundred requests so many fail.
    percent: AtomicU8,
    /// Of a hundred requests for this resource so many fail instead.
    apart: Mutex<Option<(&'static str, u8)>>,
    /// Of this resource nobody hears anything.
    unheard: Mutex<Option<&'static str>>,
    /// What a figure from outside is, which a server of metrics would tell.
    figure: AtomicI64,
    under_way: AtomicUsize,
    calls: Mutex<BTreeMap<(&'static str, String), u64>>,
    lost: AtomicUsize,
    /// Whether every request is printed: where `SKIFF_MODELS_TRACE` is set.
    traces: bool,
}

/// What becomes of one request.
#[derive(Debug)]
enum Fate {
    Answered,
    /// It never arrives.
    Refused(Status),
    /// It is carried out, and the answer does not come back.
    Lost,
}

impl Faults {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            chance: Mutex::new(fastrand::Rng::with_seed(seed)),
            percent: AtomicU8::new(0),
            apart: Mutex::default(),
            unheard: Mutex::default(),
            figure: AtomicI64::new(0),
            under_way: AtomicUsize::new(0),
            calls: Mutex::default(),
            lost: AtomicUsize::new(0),
            traces: std::env::var_os("SKIFF_MODELS_TRACE").is_some(),
        }
    }

    /// From now on so many of a hundred requests fail, and watches break.
    pub(crate) fn set(&self, percent: u8) {
        self.percent.store(percent, Ordering::Relaxed);
        *self.apart.lock() = None;
    }

    /// The same, and for one resource another number: some controllers need the answers to dozens of requests at once to
    /// come anywhere.
    pub(crate) fn set_apart(&self, percent: u8, resource: &'static str, of_resource: u8) {
        self.set(percent);
        *self.apart.lock() = Some((resource, of_resource));
    }

    /// From now on watches and lists of this resource tell nothing; of none, all do again.
    pub(crate) fn deafen(&self, resource: Option<&'static str>) {
        *self.unheard.lock() = resource;
    }

    fn is_unheard(&self, resource: &str) -> bool {
        self.unheard.lock().is_some_and(|unheard| unheard == resource)
    }

    /// From now on this is what external metrics are.
    pub(crate) fn set_figure(&self, figure: i64) {
        self.figure.store(figure, Ordering::Relaxed);
    }

    pub(crate) fn figure(&self) -> i64 {
        self.figure.load(Ordering::Relaxed)
    }

    fn figures(&self) -> Result<List, Status> {
        let figure = json!({
            "metadata": {}, "metricName": "figure", "value": self.figure().to_string(),
        });
        let unreadable = |why: String| Status::internal(why);
        let bytes = serde_json::to_vec(&figure).map_err(|error| unreadable(error.to_string()))?;
        let object = Object::parse(bytes.into()).map_err(|error| unreadable(error.to_string()))?;
        Ok(List { items: vec![Arc::new(object)], ..List::default() })
    }

    pub(crate) fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Acquire)
    }

    /// Requests so far, by verb and resource; watches and events apart, which do nothing to the objects of a story.
    pub(crate) fn calls(&self) -> BTreeMap<(&'static str, String), u64> {
        self.calls.lock().clone()
    }

    /// How many requests those are.
    pub(crate) fn requests(&self) -> u64 {
        self.calls.lock().values().sum()
    }

    /// So many objects were created without anybody hearing of it: whoever asked asks again, and has one too many until it
    /// sees both. Upstream's controllers do not know better.
    pub(crate) fn lost_creations(&self) -> usize {
        self.lost.load(Ordering::Relaxed)
    }

    fn strikes(&self, resource: &str) -> bool {
        let apart = self.apart.lock().filter(|(apart, _)| *apart == resource).map(|(_, percent)| percent);
        self.chance.lock().u8(0..100) < apart.unwrap_or_else(|| self.percent.load(Ordering::Relaxed))
    }

    fn fate(&self, resource: &str, call: &Call) -> Fate {
        if matches!(call, Call::List(_) | Call::Watch(_)) && self.is_unheard(resource) {
            return Fate::Refused(Status::internal("the line is down"));
        }
        if !self.strikes(resource) {
            return Fate::Answered;
        }
        let writes = !matches!(call, Call::Get { .. } | Call::List(_) | Call::Watch(_));
        match self.chance.lock().u8(0..4) {
            0 if writes => Fate::Lost,
            1 if matches!(call, Call::Update { .. } | Call::Patch { .. }) => Fate::Refused(Status::new(
                Reason::Conflict,
                "the object has been modified; please apply your changes to the latest version and try again",
            )),
            2 => Fate::Refused(Status::new(Reason::TooManyRequests, "too many requests")),
            _ => Fate::Refused(Status::internal("the line is down")),
        }
    }

    /// A watch that breaks after some batches: by its end, or because its revision is said to be gone.
    fn breaking(&self, resource: &str, stream: WatchStream) -> WatchStream {
        if !self.strikes(resource) {
            return stream;
        }
        let (batches, expired) = {
            let mut chance = self.chance.lock();
            (chance.usize(0..6), chance.bool())
        };
        let end = expired.then(|| Err(Status::new(Reason::Expired, "too old resource version")));
        stream.take(batches).chain(stream::iter(end)).boxed()
    }
}

/// Counts a request for as long as it is under way.
struct UnderWay<'a>(&'a AtomicUsize);

impl<'a> UnderWay<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The line of one life of the controllers. Once cut, nothing that they do arrives any more, as after a `kill -9`; of
/// what is under way just then, some does and some does not.
pub(crate) struct Line {
    pub(crate) pipeline: Arc<Pipeline>,
    pub(crate) user: User,
    pub(crate) faults: Arc<Faults>,
    pub(crate) cut: CancellationToken,
}

impl Line {
    async fn carry(&self, request: Request) -> Result<Response, Status> {
        let _under_way = UnderWay::new(&self.faults.under_way);
        // Answers come at once here: without this, who asks without end would keep the test from seeing it.
        tokio::task::coop::consume_budget().await;
        let verb = request.call.verb();
        if verb != Verb::Watch && request.resource.resource != "events" {
            let what = (verb.as_str(), request.resource.resource.to_string());
            *self.faults.calls.lock().entry(what).or_default() += 1;
        }
        let what = self.faults.traces.then(|| format!("{} {}", verb.as_str(), request.resource));
        let resource = request.resource.resource.clone();
        let fate = self.faults.fate(&resource, &request.call);
        if let Some(what) = &what {
            println!("TRACE {} {what} {fate:?}", self.user.name);
        }
        match fate {
            Fate::Answered => {}
            Fate::Refused(status) => return Err(status),
            Fate::Lost => {
                if matches!(request.call, Call::Create { .. }) {
                    self.faults.lost.fetch_add(1, Ordering::Relaxed);
                }
                let _ = self.pipeline.call(&self.user, request).await;
                return Err(Status::new(Reason::Timeout, "the answer was lost"));
            }
        }
        if request.resource.group == "external.metrics.k8s.io" {
            return self.faults.figures().map(Response::List);
        }
        match self.pipeline.call(&self.user, request).await? {
            Response::Watch(stream) => {
                let cut = self.cut.clone();
                let (faults, of) = (self.faults.clone(), resource.clone());
                let heard = move |_: &_| future::ready(!faults.is_unheard(&of));
                let stream = stream.take_while(heard).take_until(async move { cut.cancelled().await });
                Ok(Response::Watch(self.faults.breaking(&resource, stream.boxed())))
            }
            response => Ok(response),
        }
    }
}

#[async_trait]
impl Transport for Line {
    async fn send(&self, request: Request) -> Result<Response, Status> {
        tokio::select! {
            biased;
            () = self.cut.cancelled() => {}
            answer = self.carry(request) => return answer,
        }
        future::pending().await
    }
}
