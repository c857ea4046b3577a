//! The machine goes down: the node says so, takes no more pods, and ends those that it has in the order of their priority,
//! each group within its time, while systemd's logind waits. A machine without logind tells nobody: pods end as its
//! services are stopped. Source: `pkg/kubelet/nodeshutdown`, KEP-2000, KEP-2712.

mod bus;
mod logind;
mod periods;
mod wire;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use base::backoff::Policy;
use futures::future::join_all;
use jiff::Timestamp;
use reconcile::{EventType, Involved, kinds};
use tokio::sync::watch;

use logind::{Logind, SYSTEM_BUS};
pub use periods::{ShutdownPeriod, ShutdownSettings};
pub(crate) use periods::{from_fields, shown};
use periods::{group_of, total};

use crate::admission::{Refusal, Workers};
use crate::deps::Deps;
use crate::eviction::Verdict;
use crate::pod::PodView;
use crate::worker::mailbox::Mailbox;

/// A bus that is not there, or goes away, is looked for again.
const RETRY: Policy = Policy { first: Duration::from_secs(1), max: Duration::from_secs(300) };
/// `status.reason` and `status.message` of pods that end so. Source: `nodeShutdownReason`, `nodeShutdownMessage`.
const REASON: &str = "Terminated";
const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";
/// What the Node says. Source: `errors.New` in `shutdownStatus`.
pub(crate) const GOING_DOWN: &str = "node is shutting down";

/// Whether the machine goes down.
#[derive(Default)]
pub(crate) struct Shutdown(watch::Sender<bool>);

impl Shutdown {
    pub(crate) fn is_under_way(&self) -> bool {
        *self.0.borrow()
    }

    fn set(&self, down: bool) {
        self.0.send_if_modified(|known| std::mem::replace(known, down) != down);
    }

    /// Tells of changes from now on.
    pub(crate) fn subscribe(&self) -> watch::Receiver<bool> {
        self.0.subscribe()
    }

    /// Why no pod may come now.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        let words = "Pod was rejected as the node is shutting down.";
        self.is_under_way().then(|| Refusal::new("NodeShutdown", words))
    }
}

/// Waits for the machine to go down, and ends pods then, until it is dropped. Returns at once where nobody wants that.
pub(crate) async fn keep(deps: Arc<Deps>, workers: Workers) {
    let settings = &deps.config.shutdown;
    let periods = settings.periods();
    if periods.is_empty() {
        return;
    }
    let bus = settings.bus.clone().unwrap_or_else(|| SYSTEM_BUS.into());
    let mut failures = 0;
    loop {
        let mut connected = false;
        let Err(error) = follow(&deps, &workers, &bus, &periods, &mut connected).await;
        failures = if connected { 1 } else { failures + 1 };
        if failures == 1 {
            let remedy = "pods are not ended before the machine goes down: run systemd-logind and dbus, or leave \
                          shutdownGracePeriod out";
            tracing::warn!(bus = %bus.display(), %error, "logind is not reached, trying again; {remedy}");
        }
        let again = deps.now().saturating_add(RETRY.delay(failures)).unwrap_or(Timestamp::MAX);
        deps.clock.sleep_until(again).await;
    }
}

/// Follows logind as long as it can be reached.
async fn follow(
    deps: &Arc<Deps>,
    workers: &Workers,
    bus: &Path,
    periods: &[ShutdownPeriod],
    connected: &mut bool,
) -> Result<std::convert::Infallible, io::Error> {
    let mut logind = Logind::connect(bus).await?;
    *connected = true;
    // A lock can be had only while the machine does not go down.
    deps.shutdown.set(false);
    let (waits, wanted) = (logind.waits().await?, total(periods));
    if waits < wanted {
        let told = format!(
            "logind waits {} s for the node when the machine goes down, less than the {} s of shutdownGracePeriod: set \
             InhibitDelayMaxSec={} in /etc/systemd/logind.conf.d",
            waits.as_secs(),
            wanted.as_secs(),
            wanted.as_secs()
        );
        tracing::warn!("{told}");
        event(deps, EventType::Warning, "NodeShutdownTooShort", told);
    }
    tracing::info!("the node is told before the machine goes down");
    loop {
        let mut down = logind.told().await?;
        while down {
            deps.shutdown.set(true);
            event(deps, EventType::Normal, "NodeShutdown", "Shutdown manager detected shutdown event");
            tracing::warn!("the machine goes down");
            let mut ending = pin!(end_all(deps, workers, periods));
            let told = tokio::select! {
                () = &mut ending => None,
                told = logind.told() => Some(told),
            };
            down = match told {
                None => {
                    logind.release();
                    logind.told().await?
                }
                Some(Ok(told)) => told,
                Some(Err(error)) => {
                    // The machine goes down all the same, and waits while the lock is held.
                    ending.await;
                    return Err(error);
                }
            };
        }
        if deps.shutdown.is_under_way() {
            deps.shutdown.set(false);
            event(deps, EventType::Normal, "NodeShutdown", "Shutdown manager detected shutdown cancellation");
            logind.hold().await?;
        }
    }
}

fn event(deps: &Deps, kind: EventType, reason: &str, message: impl Into<String>) {
    let key = api::Key::new("", deps.config.node_name.clone());
    let uid = deps.caches.nodes.get(&key).map(|node| node.meta().uid.clone()).unwrap_or_default();
    deps.recorder.event(Involved::named(&kinds::NODES, &key, &uid), kind, reason, message);
}

/// Ends all pods, one group after the other, the least important one first.
async fn end_all(deps: &Arc<Deps>, workers: &Workers, periods: &[ShutdownPeriod]) {
    let mut groups: BTreeMap<usize, Vec<(PodView, Arc<Mailbox>)>> = BTreeMap::new();
    for (pod, mailbox) in active(deps, workers) {
        let group = group_of(periods, pod.spec.priority.unwrap_or(0));
        groups.entry(group).or_default().push((pod, mailbox));
    }
    for (group, pods) in groups {
        let Some(period) = periods.get(group) else { continue };
        let until = Duration::from_secs(u64::try_from(period.seconds).unwrap_or(0));
        let until = deps.now().saturating_add(until).unwrap_or(Timestamp::MAX);
        for (pod, mailbox) in &pods {
            tracing::info!(pod = %pod.key(), priority = period.priority, "a pod is ended since the machine goes down");
            mailbox.evict(Verdict {
                reason: REASON,
                message: MESSAGE.to_owned(),
                grace_seconds: pod.spec_grace_seconds().min(period.seconds),
                disrupts: true,
            });
        }
        tokio::select! {
            _ = join_all(pods.iter().map(|(_, mailbox)| mailbox.over())) => {}
            () = deps.clock.sleep_until(until) => {
                tracing::warn!(priority = period.priority, "pods have not ended in their time");
            }
        }
    }
}

/// The pods that are not over, with their workers.
fn active(deps: &Deps, workers: &Workers) -> Vec<(PodView, Arc<Mailbox>)> {
    let mut found: BTreeMap<String, PodView> = BTreeMap::new();
    for object in deps.static_pods.list().into_iter().chain(deps.caches.pods.list()) {
        let Ok(pod) = PodView::decode(&object) else { continue };
        // Of a pod of a file its copy tells the status.
        let uid = deps.runs_as(&pod);
        if pod.is_terminal() {
            found.remove(&uid);
        } else {
            found.entry(uid).or_insert(pod);
        }
    }
    let workers = workers.lock();
    found.into_iter().filter_map(|(uid, pod)| Some((pod, workers.get(&uid)?.clone()))).collect()
}
