//! Ends containers: hook, stop signal, the rest of the grace, kill. Application containers end together, sidecars after
//! them in reverse order.

use std::net::IpAddr;
use std::time::Duration;

use engine_api::ErrorKind;
use futures::future::join_all;
use jiff::Timestamp;
use reconcile::EventType;
use tokio::sync::watch;

use crate::deps::Deps;
use crate::hooks::{self, LEAST_GRACE};
use crate::pod::view::pre_stop;
use crate::pod::{ContainerKind, ContainerRecord, PodView};

/// When the grace ends; may come nearer while containers are being stopped.
pub(crate) type Deadline = watch::Receiver<Timestamp>;

/// Ends every running container of the pod.
pub(crate) async fn stop_all(
    deps: &Deps,
    pod: &PodView,
    containers: &[ContainerRecord],
    address: Option<IpAddr>,
    deadline: &Deadline,
) {
    let running = || containers.iter().filter(|record| record.exit().is_none());
    let kind = |record: &ContainerRecord| pod.container(&record.name).map(|(kind, _)| kind);
    let first = running().filter(|record| kind(record) != Some(ContainerKind::Sidecar));
    join_all(first.map(|record| {
        let message = format!("Stopping container {}", record.name);
        stop_one(deps, pod, record, address, deadline.clone(), message)
    }))
    .await;
    for container in pod.init_containers().iter().rev() {
        let sidecar = running()
            .find(|record| record.name == container.name && kind(record) == Some(ContainerKind::Sidecar));
        if let Some(record) = sidecar {
            let message = format!("Stopping container {}", record.name);
            stop_one(deps, pod, record, address, deadline.clone(), message).await;
        }
    }
}

pub(super) fn left(deps: &Deps, deadline: Timestamp) -> Duration {
    Duration::try_from(deadline.duration_since(deps.now())).unwrap_or_default()
}

/// Ends one container.
pub(crate) async fn stop_one(
    deps: &Deps,
    pod: &PodView,
    record: &ContainerRecord,
    address: Option<IpAddr>,
    mut deadline: Deadline,
    message: String,
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
