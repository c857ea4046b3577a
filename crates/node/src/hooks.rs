//! Lifecycle hooks: `postStart` and `preStop`.

use std::net::IpAddr;
use std::time::Duration;

use base::clock::Clock;
use engine_api::{ContainerState, ContainerStatus, EngineError, Exit, Runtime};
use k8s_openapi::api::core::v1::{Container, Lifecycle, LifecycleHandler};
use serde::{Deserialize, Serialize};

use crate::pod::record::label;
use crate::pod::view::pre_stop;
use crate::probes::check;

/// Even a grace that is used up leaves a process so long to end in order. Source: upstream's
/// `minimumGracePeriodInSeconds`.
pub(crate) const LEAST_GRACE: Duration = Duration::from_secs(2);

/// Runs a hook to its end; the error is what went wrong.
pub(crate) async fn run(
    runtime: &dyn Runtime,
    clock: &dyn Clock,
    container: &Container,
    container_id: &str,
    address: Option<IpAddr>,
    hook: &LifecycleHandler,
) -> Result<(), String> {
    if let Some(action) = &hook.exec {
        check::exec(runtime, container_id, action).await
    } else if let Some(action) = &hook.http_get {
        check::http_get(container, action, address, "kube-lifecycle/1.37").await
    } else if let Some(action) = &hook.tcp_socket {
        check::tcp_socket(container, action, address).await
    } else if let Some(sleep) = &hook.sleep {
        let seconds = u64::try_from(sleep.seconds).unwrap_or(0);
        let until = clock.now().saturating_add(Duration::from_secs(seconds)).unwrap_or(jiff::Timestamp::MAX);
        clock.sleep_until(until).await;
        Ok(())
    } else {
        Err("the hook's kind is not known to this node".to_owned())
    }
}

/// What a `preStop` hook needs, kept in the container's labels for those who end it without its pod.
#[derive(Serialize, Deserialize)]
struct Kept {
    /// Name, ports and the hook.
    container: Container,
    address: Option<IpAddr>,
}

/// The label's value for a container; `None` for one without a `preStop` hook.
pub(crate) fn kept(container: &Container, address: Option<IpAddr>) -> Option<String> {
    let hook = pre_stop(container)?.clone();
    let container = Container {
        name: container.name.clone(),
        ports: container.ports.clone(),
        lifecycle: Some(Lifecycle { pre_stop: Some(hook), ..Lifecycle::default() }),
        ..Container::default()
    };
    serde_json::to_string(&Kept { container, address }).ok()
}

/// Ends a container whose pod nobody has at hand: its `preStop` hook, which its labels tell, then its stop signal, both
/// within `grace`. A hook that fails or takes too long keeps nothing from its end.
///
/// # Errors
/// As [`Runtime::stop_container`].
pub async fn end_container(
    runtime: &dyn Runtime,
    clock: &dyn Clock,
    status: &ContainerStatus,
    grace: Duration,
) -> Result<Exit, EngineError> {
    let id = &status.spec.id;
    let until = clock.now().saturating_add(grace).unwrap_or(jiff::Timestamp::MAX);
    let kept = status.spec.labels.get(label::PRE_STOP);
    let kept = kept.and_then(|text| serde_json::from_str::<Kept>(text).ok());
    let running = matches!(status.state, ContainerState::Running { .. });
    let Some(Kept { container, address }) = kept.filter(|_| running && !grace.is_zero()) else {
        return runtime.stop_container(id, grace).await;
    };
    if let Some(hook) = pre_stop(&container) {
        tokio::select! {
            done = run(runtime, clock, &container, id, address, hook) => {
                if let Err(error) = done {
                    tracing::warn!(container = container.name, error, "preStop hook failed");
                }
            }
            () = clock.sleep_until(until) => {}
        }
    }
    let left = Duration::try_from(until.duration_since(clock.now())).unwrap_or_default();
    runtime.stop_container(id, left.max(LEAST_GRACE)).await
}
