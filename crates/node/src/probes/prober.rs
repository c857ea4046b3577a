//! The probes of one running container: a timer each. Liveness and readiness begin when the startup probe has succeeded.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base::lifecycle::Tasks;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Probe};
use tokio::sync::{mpsc, watch};

use super::{ProbeType, check, grpc, listening};
use crate::deps::Deps;
use crate::pod::PodView;
use crate::pod::view::probe_of;

/// A verdict that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProbeReport {
    pub(crate) container_id: String,
    pub(crate) which: ProbeType,
    pub(crate) healthy: bool,
}

/// Which container is asked.
#[derive(Clone)]
pub(crate) struct ProbeTarget {
    pub(crate) pod: Arc<PodView>,
    pub(crate) container: Container,
    pub(crate) container_id: String,
    pub(crate) address: Option<IpAddr>,
    /// Its first process, as the host sees it.
    pub(crate) pid: u32,
    pub(crate) started_at: Timestamp,
    /// Verdicts that are known from before a restart of the node.
    pub(crate) started: bool,
    pub(crate) ready: bool,
}

/// The probes of one container; they end when it is dropped.
pub(crate) struct Prober {
    _tasks: Tasks,
}

impl Prober {
    /// Starts the container's probes. Reports go to `reports`.
    pub(crate) fn start(
        deps: &Arc<Deps>,
        target: ProbeTarget,
        reports: &mpsc::UnboundedSender<ProbeReport>,
    ) -> Self {
        let tasks = Tasks::default();
        let has_startup = target.container.startup_probe.is_some();
        let started = watch::Sender::new(target.started || !has_startup);
        for which in [ProbeType::Startup, ProbeType::Liveness, ProbeType::Readiness] {
            let Some(probe) = probe_of(&target.container, which).cloned() else { continue };
            if which == ProbeType::Startup && target.started {
                continue;
            }
            let asking = Asking {
                deps: deps.clone(),
                target: target.clone(),
                which,
                probe,
                reports: reports.clone(),
                started: started.clone(),
            };
            tasks.spawn(asking.run());
        }
        if !target.ready && target.container.readiness_probe.is_none() {
            tasks.spawn(ready_when_listening(deps.clone(), target, reports.clone()));
        }
        Self { _tasks: tasks }
    }
}

/// Successes and failures in a row, and the verdict that they add up to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Thresholds {
    success: u32,
    failure: u32,
    verdict: Option<bool>,
    last: bool,
    in_row: u32,
}

impl Thresholds {
    /// `verdict`: what is known to begin with.
    pub(crate) fn new(probe: &Probe, verdict: Option<bool>) -> Self {
        let at_least_one =
            |value: Option<i32>, default| u32::try_from(value.unwrap_or(default)).unwrap_or(1).max(1);
        Self {
            success: at_least_one(probe.success_threshold, 1),
            failure: at_least_one(probe.failure_threshold, 3),
            verdict,
            last: false,
            in_row: 0,
        }
    }

    /// Counts an answer; gives the verdict if it changed.
    pub(crate) fn answer(&mut self, healthy: bool) -> Option<bool> {
        if self.last != healthy {
            self.in_row = 0;
        }
        self.last = healthy;
        self.in_row = self.in_row.saturating_add(1);
        let needed = if healthy { self.success } else { self.failure };
        if self.in_row < needed || self.verdict == Some(healthy) {
            return None;
        }
        self.verdict = Some(healthy);
        Some(healthy)
    }
}

/// Reports a container without a readiness probe as ready once it listens.
async fn ready_when_listening(
    deps: Arc<Deps>,
    target: ProbeTarget,
    reports: mpsc::UnboundedSender<ProbeReport>,
) {
    let ports = listening::expected(&target.container);
    listening::until(&*deps.clock, target.pid, &ports, target.started_at).await;
    let container_id = target.container_id;
    let _ = reports.send(ProbeReport { container_id, which: ProbeType::Readiness, healthy: true });
}

struct Asking {
    deps: Arc<Deps>,
    target: ProbeTarget,
    which: ProbeType,
    probe: Probe,
    reports: mpsc::UnboundedSender<ProbeReport>,
    started: watch::Sender<bool>,
}

impl Drop for Asking {
    fn drop(&mut self) {
        let container = &self.target.container.name;
        self.deps.figures.probes.forget(&self.target.pod, container, self.which);
    }
}

fn seconds(value: Option<i32>, default: i32, least: i32) -> Duration {
    Duration::from_secs(u64::try_from(value.unwrap_or(default).max(least)).unwrap_or(1))
}

impl Asking {
    async fn run(self) {
        if self.which != ProbeType::Startup {
            let mut started = self.started.subscribe();
            // The sender lives in `self`.
            let _ = started.wait_for(|started| *started).await;
        }
        let initial = match self.which {
            ProbeType::Liveness => Some(true),
            ProbeType::Readiness => Some(self.target.ready),
            ProbeType::Startup => None,
        };
        let mut thresholds = Thresholds::new(&self.probe, initial);
        let period = seconds(self.probe.period_seconds, 10, 1);
        let delay = seconds(self.probe.initial_delay_seconds, 0, 0);
        let mut next =
            self.target.started_at.saturating_add(delay).unwrap_or(Timestamp::MAX).max(self.deps.now());
        loop {
            self.deps.clock.sleep_until(next).await;
            let asked = Instant::now();
            let answer = self.ask().await;
            let (pod, name, title) = (&self.target.pod, &self.target.container.name, self.which.title());
            self.deps.figures.probes.answered(pod, name, self.which, answer.is_ok(), asked.elapsed());
            match &answer {
                Ok(None) => {}
                Ok(Some(text)) => {
                    self.deps.warning(pod, name, "ProbeWarning", format!("{title} probe warning: {text}"));
                }
                Err(text) => {
                    self.deps.warning(pod, name, "Unhealthy", format!("{title} probe failed: {text}"));
                }
            }
            if let Some(healthy) = thresholds.answer(answer.is_ok()) {
                let container_id = self.target.container_id.clone();
                let _ = self.reports.send(ProbeReport { container_id, which: self.which, healthy });
                if self.which == ProbeType::Startup {
                    // Either way this question is answered for this run of the container.
                    self.started.send_replace(healthy);
                    return;
                }
            }
            next = next.saturating_add(period).unwrap_or(Timestamp::MAX).max(self.deps.now());
        }
    }

    /// Asks once. Also an answer that is fine may be worth a warning.
    async fn ask(&self) -> Result<Option<String>, String> {
        let limit = seconds(self.probe.timeout_seconds, 1, 1);
        let container = &self.target.container;
        let address = self.target.address;
        check::within(limit, async {
            if let Some(action) = &self.probe.http_get {
                let answer = check::http_get(container, action, address, "kube-probe/1.37").await;
                answer.map_err(|unanswered| unanswered.message)?.verdict()
            } else if let Some(action) = &self.probe.tcp_socket {
                check::tcp_socket(container, action, address).await.map(|()| None)
            } else if let Some(action) = &self.probe.exec {
                check::exec(&*self.deps.runtime, &self.target.container_id, action).await.map(|()| None)
            } else if let Some(action) = &self.probe.grpc {
                grpc::check(action, address).await.map(|()| None)
            } else {
                Err("the probe's kind is not known to this node".to_owned())
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_need_their_thresholds() {
        let probe = Probe { success_threshold: Some(2), failure_threshold: Some(3), ..Probe::default() };
        let mut readiness = Thresholds::new(&probe, Some(false));
        let answers = [true, false, true, true, true, false, false, true, false, false, false, false];
        let verdicts: Vec<_> = answers.into_iter().map(|healthy| readiness.answer(healthy)).collect();
        let mut wanted = vec![None; 12];
        (wanted[3], wanted[10]) = (Some(true), Some(false));
        assert_eq!(verdicts, wanted);
    }

    #[test]
    fn a_first_failure_is_a_verdict_too() {
        let probe = Probe { failure_threshold: Some(1), ..Probe::default() };
        assert_eq!(Thresholds::new(&probe, Some(true)).answer(false), Some(false));
        assert_eq!(Thresholds::new(&probe, None).answer(true), Some(true));
    }
}
