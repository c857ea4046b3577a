//! A pod's phase from its containers' statuses. The rules are upstream's `getPhase`.

use k8s_openapi::api::core::v1::{Container, ContainerState, ContainerStateTerminated, ContainerStatus};

use super::restart::restarts;
use super::status::ENDED_FOR_ANEW;
use super::view::init_kind;
use super::{ContainerKind, PodView};

#[derive(Default)]
struct Counts {
    unknown: usize,
    running: usize,
    waiting: usize,
    stopped: usize,
    /// Of those that have stopped, who does not run again.
    for_good: usize,
    succeeded: usize,
}

/// `Pending`, `Running`, `Succeeded` or `Failed`. `ended`: every container has ended for good. `due`: those that the pod,
/// which begins anew, has not begun anew yet.
pub(crate) fn phase(
    pod: &PodView,
    init: &[ContainerStatus],
    apps: &[ContainerStatus],
    ended: bool,
    due: &dyn Fn(&str) -> bool,
) -> &'static str {
    let counts = count(pod, apps, due);
    let progress = init_progress(pod, init, due);
    if progress.failed_for_good || (progress.failed && ended) {
        return "Failed";
    }
    if ended {
        let all_done = counts.stopped > 0 && counts.stopped == counts.succeeded;
        return if all_done && counts.waiting + counts.unknown == 0 { "Succeeded" } else { "Failed" };
    }
    if progress.pending && counts.running + counts.stopped == 0 || counts.waiting > 0 {
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
    if counts.for_good < counts.stopped {
        return "Running";
    }
    if counts.stopped == counts.succeeded { "Succeeded" } else { "Failed" }
}

fn count(pod: &PodView, statuses: &[ContainerStatus], due: &dyn Fn(&str) -> bool) -> Counts {
    let wanted = pod.spec.containers.len();
    let mut counts = Counts { unknown: wanted.saturating_sub(statuses.len()), ..Counts::default() };
    let again = |name: &str, end: &ContainerStateTerminated| {
        due(name) || pod.container(name).is_some_and(|(_, container)| runs_again(pod, container, end))
    };
    for status in statuses {
        match &status.state {
            Some(ContainerState { running: Some(_), .. }) => counts.running += 1,
            Some(ContainerState { terminated: Some(terminated), .. }) => {
                counts.stopped += 1;
                counts.for_good += usize::from(!again(&status.name, terminated));
                counts.succeeded += usize::from(terminated.exit_code == 0);
            }
            Some(ContainerState { waiting: Some(_), .. }) => {
                // Between two runs: it counts as stopped, so that a crash loop does not look like a slow start.
                match status.last_state.as_ref().and_then(|last| last.terminated.as_ref()) {
                    Some(last) => {
                        counts.stopped += 1;
                        counts.for_good += usize::from(!again(&status.name, last));
                    }
                    None => counts.waiting += 1,
                }
            }
            _ => counts.unknown += 1,
        }
    }
    counts
}

fn runs_again(pod: &PodView, container: &Container, end: &ContainerStateTerminated) -> bool {
    end.reason.as_deref() == Some(ENDED_FOR_ANEW) || restarts(pod, container, end.exit_code)
}

/// How far the init containers are.
#[derive(Default)]
struct InitProgress {
    /// One is still to be waited for.
    pending: bool,
    /// One has failed, …
    failed: bool,
    /// … and does not run again.
    failed_for_good: bool,
}

fn init_progress(pod: &PodView, statuses: &[ContainerStatus], due: &dyn Fn(&str) -> bool) -> InitProgress {
    let mut progress = InitProgress::default();
    for container in pod.init_containers() {
        let Some(status) = statuses.iter().find(|status| status.name == container.name) else {
            progress.pending = true;
            continue;
        };
        let terminated = status.state.as_ref().and_then(|state| state.terminated.as_ref());
        let last = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
        if init_kind(container) == ContainerKind::Sidecar {
            progress.pending |= status.started != Some(true) && terminated.is_none();
            continue;
        }
        progress.pending |= terminated.is_none();
        if let Some(end) = terminated.or(last).filter(|end| end.exit_code != 0) {
            progress.failed = true;
            progress.failed_for_good |= !due(&container.name) && !runs_again(pod, container, end);
        }
    }
    progress
}
