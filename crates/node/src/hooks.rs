//! Lifecycle hooks: `postStart` and `preStop`.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};

use crate::deps::Deps;
use crate::probes::check;

/// Runs a hook to its end; the error is what went wrong.
pub(crate) async fn run(
    deps: &Deps,
    container: &Container,
    container_id: &str,
    address: Option<IpAddr>,
    hook: &LifecycleHandler,
) -> Result<(), String> {
    if let Some(action) = &hook.exec {
        check::exec(&*deps.runtime, container_id, action).await
    } else if let Some(action) = &hook.http_get {
        check::http_get(container, action, address, "kube-lifecycle/1.37").await
    } else if let Some(action) = &hook.tcp_socket {
        check::tcp_socket(container, action, address).await
    } else if let Some(sleep) = &hook.sleep {
        let seconds = u64::try_from(sleep.seconds).unwrap_or(0);
        let until = deps.now().saturating_add(Duration::from_secs(seconds)).unwrap_or(jiff::Timestamp::MAX);
        deps.clock.sleep_until(until).await;
        Ok(())
    } else {
        Err("the hook's kind is not known to this node".to_owned())
    }
}
