//! Ends containers: hook, stop signal, the rest of the grace, kill. Application containers end together, sidecars after
//! them in reverse order; the hooks of all of them run from the beginning.

use std::net::IpAddr;
use std::time::Duration;

use engine_api::ErrorKind;
use futures::future::join_all;
use jiff::Timestamp;
use reconcile::EventType;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::deps::Deps;
use crate::hooks::{self, LEAST_GRACE};
use crate::pod::view::{init_kind, pre_stop};
use crate::pod::{ContainerKind, ContainerRecord, PodView};

/// When the grace ends; may come nearer while containers are being stopped.
pub(crate) type Deadline = watch::Receiver<Timestamp>;

/// Moves the end of a grace nearer, never further away.
pub(super) fn bring_nearer(deadline: &watch::Sender<Timestamp>, until: Timestamp) {
    deadline.send_if_modified(|known| {
        let sooner = until < *known;
        if sooner {
            *known = until;
        }
        sooner
    });
}

/// Ends every running container of the pod: the hooks of all begin at once, and each container is signalled when its hook
/// is done and its turn has come. Source: `newTerminationOrdering` in `pkg/kubelet/kuberuntime`.
pub(crate) async fn stop_all(
    deps: &Deps,
    pod: &PodView,
    containers: &[ContainerRecord],
    address: Option<IpAddr>,
    deadline: &Deadline,
) {
    let running: Vec<&ContainerRecord> = containers.iter().filter(|record| record.exit().is_none()).collect();
    let ended: Vec<CancellationToken> = running.iter().map(|_| CancellationToken::new()).collect();
    join_all(running.iter().enumerate().map(|(index, record)| {
        let before: Vec<CancellationToken> =
            predecessors(pod, &running, index).into_iter().map(|other| ended[other].clone()).collect();
        let turn = async move {
            for other in &before {
                other.cancelled().await;
            }
        };
        let own = ended[index].clone();
        let message = format!("Stopping container {}", record.name);
        async move {
            stop_one(deps, pod, record, address, deadline.clone(), message, turn).await;
            own.cancel();
        }
    }))
    .await;
}

/// Which of the containers that run end before the one at `index`: for a sidecar those of the application and the
/// sidecars that started after it, for others none.
fn predecessors(pod: &PodView, running: &[&ContainerRecord], index: usize) -> Vec<usize> {
    let place = |record: &ContainerRecord| {
        let mut init = pod.init_containers().iter();
        init.position(|container| {
            container.name == record.name && init_kind(container) == ContainerKind::Sidecar
        })
    };
    let is_app = |record: &ContainerRecord| {
        pod.container(&record.name).is_some_and(|(kind, _)| kind == ContainerKind::App)
    };
    let Some(own) = running.get(index).and_then(|record| place(record)) else { return Vec::new() };
    let earlier = |record: &ContainerRecord| is_app(record) || place(record).is_some_and(|other| other > own);
    running.iter().enumerate().filter(|(_, record)| earlier(record)).map(|(other, _)| other).collect()
}

pub(super) fn left(deps: &Deps, deadline: Timestamp) -> Duration {
    Duration::try_from(deadline.duration_since(deps.now())).unwrap_or_default()
}

/// Ends one container: its hook, its turn, then its stop signal.
pub(crate) async fn stop_one(
    deps: &Deps,
    pod: &PodView,
    record: &ContainerRecord,
    address: Option<IpAddr>,
    mut deadline: Deadline,
    message: String,
    turn: impl Future<Output = ()>,
) {
    deps.event(pod, Some(&record.name), EventType::Normal, "Killing", message);
    let until = *deadline.borrow_and_update();
    let hook = pod
        .container(&record.name)
        .and_then(|(_, container)| pre_stop(container).map(|hook| (container, hook)));
    if let Some((container, hook)) = hook.filter(|_| record.is_running() && until > deps.now()) {
        tokio::select! {
            done = hooks::run(&*deps.runtime, &*deps.clock, container, &record.id, address, hook) => match done {
                Ok(None) => {}
                Ok(Some(told)) => deps.warning(pod, &record.name, hooks::HTTP_FALLBACK, told),
                Err(error) => {
                    deps.warning(pod, &record.name, "FailedPreStopHook", format!("PreStopHook failed: {error}"));
                }
            },
            () = passed(deps, &mut deadline) => {}
        }
    }
    tokio::select! {
        () = turn => {}
        () = passed(deps, &mut deadline) => {}
    }
    let grace = left(deps, *deadline.borrow_and_update()).max(LEAST_GRACE);
    let sooner = async {
        // Only a deadline that comes nearer matters; the grace itself is kept by the engine.
        let began = *deadline.borrow();
        let _ = deadline.wait_for(|now| *now < began).await;
        passed(deps, &mut deadline).await;
        deps.runtime.stop_container(&record.id, Duration::ZERO).await
    };
    let ended = tokio::select! {
        ended = deps.runtime.stop_container(&record.id, grace) => ended,
        ended = sooner => ended,
    };
    match ended {
        Err(error) if error.kind != ErrorKind::NotFound => {
            tracing::warn!(pod = %pod.key(), container = record.name, %error, "container not stopped");
        }
        _ => {}
    }
    deps.state.refresh_container(&*deps.runtime, &record.id).await;
}

/// Returns when the deadline, wherever it has moved to, has passed.
async fn passed(deps: &Deps, deadline: &mut Deadline) {
    loop {
        let until = *deadline.borrow_and_update();
        tokio::select! {
            () = deps.clock.sleep_until(until) => return,
            changed = deadline.changed() => {
                if changed.is_err() {
                    // Nobody moves it any more.
                    deps.clock.sleep_until(until).await;
                    return;
                }
            }
        }
    }
}
