//! The end of a pod: let the data path let go, stop the containers within the grace, report, take everything away, and
//! tell the API server that nothing is left.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use api::{DeleteOptions, Reason, Status};
use futures::StreamExt as _;
use jiff::Timestamp;
use reconcile::kinds;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::state::PodWorker;
use super::{grace_end, ops, stop};
use crate::cpus;
use crate::deps::{Deps, blocking};
use crate::groups;
use crate::hooks::end_container;
use crate::plugins::{devices, dra};
use crate::pod::spec::log_directory;
use crate::pod::{PodView, SandboxRecord};
use crate::runtime_state::PodRuntime;
use crate::volumes::csi;
use crate::volumes::leftovers::Leftover;
use crate::volumes::tear_down::tear_down;

/// Longer than this no pod waits for its connections to end. Source: the drain rule of Skiff's data path.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// How long a terminating pod may wait for the data path: at most half of its grace, and of what is left of it.
pub(crate) fn drain_limit(grace: Duration, left: Duration) -> Duration {
    DRAIN_MAX.min(grace.min(left) / 2)
}

impl PodWorker {
    /// Ends the pod; returns when nothing of it is left.
    pub(super) async fn terminate(mut self) {
        // Verdicts of probes mean nothing any more, pulls and hooks have no purpose.
        self.probers.clear();
        self.cancel.cancel();
        let deadline = watch::Sender::new(self.deadline());
        {
            // What has begun with containers comes to its end, so that nothing is made behind our back.
            while let Some(outcome) = self.ops.next().await {
                self.absorb(outcome);
            }
        }
        let runtime = self.deps.state.pod(self.pod.uid());
        self.stop(&runtime, &deadline).await;
        // Nobody hears that the pod has ended before it has.
        for sandbox in &runtime.sandboxes {
            let failed = |error: &str| ops::failed_kill(&self.deps, &self.pod, error);
            ops::insist(&self.deps, &never(), || ops::release(&self.deps, &sandbox.id), failed).await;
        }
        if self.deps.plugins.claims.holds(self.pod.uid()) {
            // Before anybody hears that the pod has ended: its devices would be another's.
            self.mailbox.is_over();
            self.unprepare().await;
        }
        let runtime = self.deps.state.pod(self.pod.uid());
        self.read_messages(&runtime).await;
        // The copy of a pod of a file goes with it: the node need not wait for the API.
        let of_a_file = self.pod.is_of_a_file();
        if !self.gone && !of_a_file {
            self.publish_end(&runtime).await;
        }
        // Who waits for the pod's place does not wait for drivers, nor for what else was its alone.
        self.mailbox.is_over();
        groups::leave(&self.deps, self.pod.uid()).await;
        devices::release(&self.deps, self.pod.uid()).await;
        cpus::leave(&self.deps, self.pod.uid()).await;
        let remains = Remains::of(&self.deps, &self.pod, &runtime);
        let failed = |error: &str| ops::failed_kill(&self.deps, &self.pod, error);
        ops::insist(&self.deps, &never(), || remains.remove(&self.deps), failed).await;
        self.take_letters();
        if !self.gone && !of_a_file {
            delete_object(&self.deps, &self.pod).await;
        }
    }

    /// The end of the grace: as the API says, else the pod's own grace from now; an eviction's where that comes first.
    fn deadline(&self) -> Timestamp {
        let meta = &self.pod.metadata;
        let seconds = meta.deletion_grace_period_seconds.unwrap_or(self.pod.spec_grace_seconds());
        let whole = grace_end(&self.deps, seconds);
        self.at_most(by_both_clocks(meta.deletion_timestamp, whole))
    }

    /// Drains and stops; a second deletion with a shorter grace counts at once, and so does an eviction.
    async fn stop(&mut self, runtime: &PodRuntime, deadline: &watch::Sender<Timestamp>) {
        let (deps, pod) = (self.deps.clone(), self.pod.clone());
        let addresses = self.addresses.clone();
        let seconds = pod.metadata.deletion_grace_period_seconds.unwrap_or(pod.spec_grace_seconds());
        let grace = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        let containers = runtime.containers.clone();
        let receiver = deadline.subscribe();
        let stopping = async move {
            let running = containers.iter().any(|record| record.exit().is_none());
            let reference = pod.pod_ref(&addresses);
            if running && deps.drain.serves(&reference) {
                let left = stop::left(&deps, *receiver.borrow());
                deps.drain.released(&reference, drain_limit(grace, left)).await;
            }
            stop::stop_all(&deps, &pod, &containers, addresses.first().copied(), &receiver).await;
        };
        tokio::pin!(stopping);
        let mailbox = self.mailbox.clone();
        loop {
            tokio::select! {
                () = &mut stopping => return,
                () = mailbox.wait() => {
                    self.take_letters();
                    let now = if self.gone { self.deps.now() } else { self.deadline() };
                    stop::bring_nearer(deadline, now);
                }
            }
        }
    }

    /// Has drivers take back what they prepared for the pod. Nobody hears any more that a pod has ended that is gone from the
    /// API: its drivers come last then, so that one that does not come back keeps nothing else.
    async fn unprepare(&mut self) {
        let (deps, pod, mailbox) = (self.deps.clone(), self.pod.clone(), self.mailbox.clone());
        let gone = CancellationToken::new();
        let failed = |error: &str| ops::failed_kill(&deps, &pod, error);
        let mut unpreparing = pin!(ops::insist(&deps, &gone, || dra::unprepare(&deps, pod.uid()), failed));
        loop {
            if self.gone {
                gone.cancel();
            }
            tokio::select! {
                _ = &mut unpreparing => return,
                () = mailbox.wait() => self.take_letters(),
            }
        }
    }

    /// Writes the final status; a failing API server is asked again until it answers.
    async fn publish_end(&mut self, runtime: &PodRuntime) {
        loop {
            self.publish(&BTreeMap::new(), runtime, true);
            while let Some(outcome) = self.ops.next().await {
                self.absorb(outcome);
            }
            let Some(at) = self.write_retry_at else { return };
            self.deps.clock.sleep_until(at).await;
            self.take_letters();
            if self.gone {
                return;
            }
        }
    }
}

/// When a deleted pod's grace is over: at the API server's word, but not after the whole grace by this node's clock, which
/// may be behind the server's, or have been put back since.
fn by_both_clocks(deleted_at: Option<Timestamp>, whole_grace: Timestamp) -> Timestamp {
    deleted_at.map_or(whole_grace, |at| at.min(whole_grace))
}

/// A removal that nothing calls off: what is left of a pod stays the node's until it is gone.
fn never() -> CancellationToken {
    CancellationToken::new()
}

/// What a pod that has ended leaves behind: sandboxes with their containers, logs, volumes.
struct Remains {
    uid: String,
    sandboxes: Vec<String>,
    /// Directories.
    logs: Vec<PathBuf>,
}

impl Remains {
    fn of(deps: &Deps, pod: &PodView, runtime: &PodRuntime) -> Self {
        let meta = &pod.metadata;
        let logs = log_directory(&deps.facts.log_root, &meta.namespace, &meta.name, &meta.uid);
        Self { uid: meta.uid.clone(), sandboxes: ids(&runtime.sandboxes), logs: vec![logs] }
    }

    /// Takes everything away; repeated, it goes on where it failed.
    async fn remove(&self, deps: &Deps) -> Result<(), String> {
        for sandbox in &self.sandboxes {
            ops::delete_sandbox(deps, sandbox).await?;
        }
        let directories = deps.directories(&self.uid);
        let logs = self.logs.clone();
        csi::tear_down(deps, &deps.threads, &directories, &self.uid).await?;
        // What was given up may still be at the pod's directories.
        deps.threads.settled(&self.uid).await;
        let removed = blocking(move || {
            for logs in &logs {
                match std::fs::remove_dir_all(logs) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(format!("failed to remove the logs in {}: {error}", logs.display()));
                    }
                    _ => {}
                }
            }
            tear_down(&directories).map_err(|error| format!("failed to remove the volumes: {error}"))
        });
        removed.await.map_err(|error| format!("failed to remove the volumes: {error}"))??;
        let released = deps.images.release(&self.uid).await;
        released.map_err(|error| format!("failed to release the images of volumes: {error}"))?;
        // Last: a driver that does not come back keeps nothing else.
        dra::unprepare(deps, &self.uid).await
    }
}

fn ids(sandboxes: &[SandboxRecord]) -> Vec<String> {
    sandboxes.iter().map(|sandbox| sandbox.id.clone()).collect()
}

/// Tells the API server that the pod has ended here.
async fn delete_object(deps: &Deps, pod: &PodView) {
    let mut failures = 0;
    loop {
        let options = DeleteOptions {
            grace_period_seconds: Some(0),
            precondition_uid: Some(pod.uid().to_owned()),
            ..DeleteOptions::default()
        };
        match deps.client.delete(&kinds::PODS.gvr(), &pod.key(), options).await {
            Ok(()) | Err(Status { reason: Reason::Conflict, .. }) => return,
            Err(status) => {
                tracing::warn!(pod = %pod.key(), error = %status, "pod not deleted from the API, trying again");
                failures += 1;
                let at = deps.now().saturating_add(ops::REMOVE_BACKOFF.delay(failures));
                deps.clock.sleep_until(at.unwrap_or(Timestamp::MAX)).await;
            }
        }
    }
}

/// Ends what is left of a pod that vanished from the API while the node was away.
pub(crate) async fn terminate_orphan(deps: Arc<Deps>, orphan: SandboxRecord) {
    tracing::info!(
        pod = format!("{}/{}", orphan.pod_namespace, orphan.pod_name),
        "pod is gone from the API: ending it"
    );
    let runtime = deps.state.pod(&orphan.pod_uid);
    let grace = Duration::from_secs(u64::try_from(orphan.grace_seconds).unwrap_or(0));
    let running = runtime.containers.iter().filter(|record| record.exit().is_none());
    futures::future::join_all(running.map(|record| async {
        if let Ok(status) = deps.runtime.container(&record.id).await
            && let Err(error) = end_container(&*deps.runtime, &*deps.clock, &status, grace).await
        {
            tracing::warn!(container = record.name, %error, "container not stopped");
        }
    }))
    .await;
    let failed = |error: &str| {
        tracing::warn!(pod = orphan.pod_uid, error, "the rest of a pod is not removed, trying again");
    };
    for sandbox in &runtime.sandboxes {
        ops::insist(&deps, &never(), || ops::release(&deps, &sandbox.id), failed).await;
    }
    let sandboxes = ids(&runtime.sandboxes);
    let SandboxRecord { pod_namespace: namespace, pod_name: name, pod_uid: uid, .. } = orphan.clone();
    let logs = vec![log_directory(&deps.facts.log_root, &namespace, &name, &uid)];
    let remains = Remains { uid, sandboxes, logs };
    ops::insist(&deps, &never(), || remains.remove(&deps), failed).await;
}

/// Removes the directories of a pod that nobody knows any more.
pub(crate) async fn terminate_leftover(deps: Arc<Deps>, left: Leftover) {
    tracing::info!(pod = left.uid, "directories of a pod that nobody knows: removing them");
    let Leftover { uid, logs } = left;
    let failed = |error: &str| {
        tracing::warn!(pod = uid, error, "directories of a pod are not removed, trying again");
    };
    let remains = Remains { uid: uid.clone(), sandboxes: Vec::new(), logs };
    ops::insist(&deps, &never(), || remains.remove(&deps), failed).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_behind_makes_no_grace_longer() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        // Deleted at 100 by the server's clock, with a grace of 30; what the node's shows when it hears of it.
        for (now, end) in [(100, 130), (110, 130), (140, 130), (90, 120), (-3500, -3470)] {
            assert_eq!(by_both_clocks(Some(at(130)), at(now + 30)), at(end));
        }
        assert_eq!(by_both_clocks(None, at(42)), at(42));
    }

    #[test]
    fn draining_takes_at_most_half_of_the_grace() {
        let limit = |grace, left| drain_limit(Duration::from_millis(grace), Duration::from_millis(left));
        for (grace, expected) in [(0, 0), (1000, 500), (3000, 1500), (4000, 2000), (30_000, 2000)] {
            assert_eq!(limit(grace, grace), Duration::from_millis(expected));
        }
        assert_eq!(limit(30_000, 1000), Duration::from_millis(500), "late in the grace, half of the rest");
    }
}
