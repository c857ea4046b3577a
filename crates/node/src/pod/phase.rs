//! A pod's phase from its containers' statuses. The rules are upstream's `getPhase`.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus};

use super::view::init_kind;
use super::{ContainerKind, PodView, RestartPolicy};

#[derive(Default)]
struct Counts {
    unknown: usize,
    running: usize,
    waiting: usize,
    stopped: usize,
    succeeded: usize,
}

/// `Pending`, `Running`, `Succeeded` or `Failed`. `ended`: every container has ended for good.
pub(crate) fn phase(
    pod: &PodView,
    init: &[ContainerStatus],
    apps: &[ContainerStatus],
    ended: bool,
) -> &'static str {
    let counts = count(apps, pod.spec.containers.len());
    let (pending_init, failed_init) = init_progress(pod, init);
    if failed_init && (pod.restart_policy() == RestartPolicy::Never || ended) {
        return "Failed";
    }
    if ended {
        let all_done = counts.stopped > 0 && counts.stopped == counts.succeeded;
        return if all_done && counts.waiting + counts.unknown == 0 { "Succeeded" } else { "Failed" };
    }
    if pending_init && counts.running + counts.stopped == 0 || counts.waiting > 0 {
        return "Pending";
    }
    if counts.unknown > 0 {
        return "Pending";
    }
    if counts.running > 0 {
        return "Running";
    }
    if counts.stopped == 0 {
        return "Pending";
    }
    match pod.restart_policy() {
        RestartPolicy::Always => "Running",
        _ if counts.stopped == counts.succeeded => "Succeeded",
        RestartPolicy::Never => "Failed",
        RestartPolicy::OnFailure => "Running",
    }
}

fn count(statuses: &[ContainerStatus], wanted: usize) -> Counts {
    let mut counts = Counts { unknown: wanted.saturating_sub(statuses.len()), ..Counts::default() };
    for status in statuses {
        match &status.state {
            Some(ContainerState { running: Some(_), .. }) => counts.running += 1,
            Some(ContainerState { terminated: Some(terminated), .. }) => {
                counts.stopped += 1;
                counts.succeeded += usize::from(terminated.exit_code == 0);
            }
            Some(ContainerState { waiting: Some(_), .. }) => {
                // Between two runs: it counts as stopped, so that a crash loop does not look like a slow start.
                let ran = status.last_state.as_ref().is_some_and(|last| last.terminated.is_some());
                if ran {
                    counts.stopped += 1;
                } else {
                    counts.waiting += 1;
                }
            }
            _ => counts.unknown += 1,
        }
    }
    counts
}

/// Whether init containers are still to be waited for, and whether one has failed.
fn init_progress(pod: &PodView, statuses: &[ContainerStatus]) -> (bool, bool) {
    let mut pending = false;
    let mut failed = false;
    for container in pod.init_containers() {
        let Some(status) = statuses.iter().find(|status| status.name == container.name) else {
            pending = true;
            continue;
        };
        let terminated = status.state.as_ref().and_then(|state| state.terminated.as_ref());
        let last = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
        if init_kind(container) == ContainerKind::Sidecar {
            pending |= status.started != Some(true) && terminated.is_none();
            continue;
        }
        match (terminated, last) {
            (Some(end), _) => failed |= end.exit_code != 0,
            (None, Some(end)) if end.exit_code != 0 => {
                failed = true;
                pending = true;
            }
            (None, _) => pending = true,
        }
    }
    (pending, failed)
}
