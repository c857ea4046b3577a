//! What nodes and pods use (metrics.k8s.io): measured when somebody asks. A rate needs two samples: whoever asks often
//! gets the rate since it was asked before; after a pause two samples are taken one [`FIRST_WINDOW`] apart. Nothing is
//! measured while nobody asks. Source: `kubernetes-sigs/metrics-server`, which polls.

mod parse;
mod rate;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use api::Status;
use api::connect::{NodeAddress, NodeConnector};
use base::backoff::Policy;
use base::clock::SharedClock;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

use crate::proxy::collected;
use parse::Sample;
pub(crate) use rate::{Used, Window};

/// An answer is good for so long.
const FRESH: SignedDuration = SignedDuration::from_secs(10);
/// Between the two samples of a first answer.
const FIRST_WINDOW: Duration = Duration::from_secs(1);
/// A rate over more than this says little of the present.
const WINDOW_MAX: SignedDuration = SignedDuration::from_secs(60);
/// A node has this long to tell its figures. Source: metrics-server's `--kubelet-request-timeout`.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Who asks for several nodes waits for one that says nothing no longer than this: a first answer takes a second.
const NODE_MAX: Duration = Duration::from_secs(5);
/// A node that told nothing is left alone for this time, and longer as it goes on telling nothing.
const SILENCE: Policy = Policy { first: Duration::from_secs(10), max: Duration::from_secs(60) };
/// A node's figures are at most this long: a few hundred bytes a container.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// What nodes have told.
pub(crate) struct Usage {
    connector: Arc<dyn NodeConnector>,
    clock: SharedClock,
    /// By node. Who asks for a node that is being measured waits for that.
    nodes: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Known>>>>,
    /// Nodes that told nothing when they were last asked.
    silent: Mutex<HashMap<String, Silent>>,
}

/// A node that told nothing.
struct Silent {
    why: Status,
    times: u32,
    /// When it is asked again.
    until: Timestamp,
}

/// What is known of a node.
#[derive(Default)]
struct Known {
    latest: Option<Arc<Sample>>,
    window: Option<Arc<Window>>,
    /// When the window was measured, by this server's clock.
    at: Option<Timestamp>,
}

impl Usage {
    /// Asks nodes by way of `connector`.
    pub(crate) fn new(connector: Arc<dyn NodeConnector>, clock: SharedClock) -> Self {
        Self { connector, clock, nodes: Mutex::default(), silent: Mutex::default() }
    }

    /// What a node and its pods used in the last seconds. One that told nothing a moment ago is not asked: nobody waits
    /// for it who asks for others too.
    pub(crate) async fn of(&self, node: &NodeAddress) -> Result<Arc<Window>, Status> {
        if let Some(silent) = self.silent.lock().get(&node.name)
            && self.clock.now() < silent.until
        {
            return Err(silent.why.clone());
        }
        let answer = tokio::time::timeout(NODE_MAX, self.measured(node)).await;
        let answer = answer.unwrap_or_else(|_| Err(untold(node, "no answer in time")));
        let mut all = self.silent.lock();
        match &answer {
            Ok(_) => drop(all.remove(&node.name)),
            Err(why) => {
                let times = all.get(&node.name).map_or(1, |silent| silent.times.saturating_add(1));
                let until = self.clock.now().saturating_add(SILENCE.delay(times)).unwrap_or(Timestamp::MAX);
                all.insert(node.name.clone(), Silent { why: why.clone(), times, until });
            }
        }
        answer
    }

    async fn measured(&self, node: &NodeAddress) -> Result<Arc<Window>, Status> {
        let known = self.nodes.lock().entry(node.name.clone()).or_default().clone();
        let mut known = known.lock().await;
        let now = self.clock.now();
        if let (Some(window), Some(at)) = (&known.window, known.at)
            && now.duration_since(at) < FRESH
        {
            return Ok(window.clone());
        }
        let mut latest = Arc::new(self.sample(node).await?);
        let before = known.latest.take().filter(|before| {
            let apart = latest.at.duration_since(before.at);
            apart >= SignedDuration::from_secs(1) && apart <= WINDOW_MAX
        });
        let before = match before {
            Some(before) => before,
            None => {
                let first = latest;
                let next = self.clock.now().saturating_add(FIRST_WINDOW).unwrap_or(Timestamp::MAX);
                self.clock.sleep_until(next).await;
                latest = Arc::new(self.sample(node).await?);
                first
            }
        };
        let window = Arc::new(rate::between(&before, &latest));
        *known = Known { latest: Some(latest), window: Some(window.clone()), at: Some(self.clock.now()) };
        Ok(window)
    }

    /// Forgets nodes that are no more.
    pub(crate) fn retain(&self, nodes: &HashSet<&str>) {
        self.nodes.lock().retain(|name, _| nodes.contains(name.as_str()));
        self.silent.lock().retain(|name, _| nodes.contains(name.as_str()));
    }

    async fn sample(&self, node: &NodeAddress) -> Result<Sample, Status> {
        let body = Empty::<Bytes>::new().map_err(|never| match never {}).boxed_unsync();
        let request = http::Request::get("/metrics/resource").body(body);
        let request = request.map_err(|error| Status::internal(error.to_string()))?;
        let failed = |cause: String| untold(node, &cause);
        let ask = async {
            let answer = self.connector.request(node, request).await?;
            if !answer.status().is_success() {
                return Err(failed(format!("it answered {}", answer.status())));
            }
            let bytes = collected(answer.into_body(), ANSWER_BYTES_MAX).await.map_err(failed)?;
            parse::sample(&String::from_utf8_lossy(&bytes))
                .ok_or_else(|| failed("they lack those of the node itself".into()))
        };
        tokio::time::timeout(ANSWER_MAX, ask).await.map_err(|_| failed("no answer in time".into()))?
    }
}

fn untold(node: &NodeAddress, cause: &str) -> Status {
    let message = format!("node {} told no figures: {cause}", node.name);
    Status::new(api::Reason::ServiceUnavailable, message)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use api::connect::Body;
    use async_trait::async_trait;
    use base::clock::VirtualClock;
    use http_body_util::Full;

    use super::*;

    /// A node that has used half a core since 1970, by a clock that every question moves on by two seconds.
    struct Node {
        clock: VirtualClock,
        asked: AtomicU32,
    }

    #[async_trait]
    impl NodeConnector for Node {
        async fn request(
            &self,
            _: &NodeAddress,
            _: http::Request<Body>,
        ) -> Result<http::Response<Body>, Status> {
            use base::clock::Clock as _;
            self.asked.fetch_add(1, Ordering::Relaxed);
            self.clock.advance(Duration::from_secs(2));
            let at = self.clock.now().as_millisecond();
            let text = format!(
                "node_cpu_usage_seconds_total {} {at}\nnode_memory_working_set_bytes 7 {at}\n",
                at as f64 / 2000.0
            );
            let body = Full::from(text).map_err(|never| match never {}).boxed_unsync();
            Ok(http::Response::new(body))
        }
    }

    /// A node that refuses.
    struct Mute(AtomicU32);

    #[async_trait]
    impl NodeConnector for Mute {
        async fn request(
            &self,
            node: &NodeAddress,
            _: http::Request<Body>,
        ) -> Result<http::Response<Body>, Status> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Err(untold(node, "it is away"))
        }
    }

    #[tokio::test]
    async fn nobody_waits_again_for_a_node_that_says_nothing() {
        let clock = VirtualClock::new("2026-01-01T00:00:00Z".parse().unwrap());
        let node = Arc::new(Mute(AtomicU32::new(0)));
        let usage = Usage::new(node.clone(), Arc::new(clock.clone()));
        let address = NodeAddress { name: "n".into(), address: "10.0.0.1".parse().unwrap(), port: 1 };
        let mut asked = Vec::new();
        for seconds in [0, 9, 2, 12, 10] {
            clock.advance(Duration::from_secs(seconds));
            assert!(usage.of(&address).await.is_err());
            asked.push(node.0.load(Ordering::Relaxed));
        }
        assert_eq!(asked, [1, 1, 2, 2, 3], "after ten seconds, and then after twenty");
        usage.retain(&HashSet::new());
        assert!(usage.silent.lock().is_empty());
    }

    #[tokio::test]
    async fn a_node_is_asked_when_somebody_asks() {
        let clock = VirtualClock::new("2026-01-01T00:00:00Z".parse().unwrap());
        let node = Arc::new(Node { clock: clock.clone(), asked: AtomicU32::new(0) });
        let usage = Usage::new(node.clone(), Arc::new(clock.clone()));
        let address = NodeAddress { name: "n".into(), address: "10.0.0.1".parse().unwrap(), port: 1 };
        let asked = || node.asked.load(Ordering::Relaxed);
        // A clock that stands still lets nobody sleep: somebody has to move it.
        let tick = async {
            loop {
                clock.advance(Duration::from_millis(500));
                tokio::task::yield_now().await;
            }
        };
        let first =
            tokio::select! { window = usage.of(&address) => window.unwrap(), () = tick => unreachable!() };
        assert_eq!((asked(), first.node.cpu_nanocores, first.node.memory_bytes), (2, 500_000_000, 7));
        usage.of(&address).await.unwrap();
        assert_eq!(asked(), 2, "what was just measured is told again");
        clock.advance(Duration::from_secs(15));
        let next = usage.of(&address).await.unwrap();
        assert_eq!((asked(), next.node.cpu_nanocores), (3, 500_000_000));
        assert!(next.length >= SignedDuration::from_secs(15));
        usage.retain(&HashSet::new());
        assert!(usage.nodes.lock().is_empty());
    }
}
