//! Lifecycle hooks: `postStart` and `preStop`.

use std::net::IpAddr;
use std::time::Duration;

use base::clock::Clock;
use engine_api::{ContainerState, ContainerStatus, EngineError, Exit, Runtime};
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Lifecycle, LifecycleHandler};
use serde::{Deserialize, Serialize};

use crate::pod::record::label;
use crate::pod::view::pre_stop;
use crate::probes::check;

const AGENT: &str = "kube-lifecycle/1.37";

/// Even a grace that is used up leaves a process so long to end in order. Source: upstream's
/// `minimumGracePeriodInSeconds`.
pub(crate) const LEAST_GRACE: Duration = Duration::from_secs(2);

/// The reason of the event that tells of a hook which was asked for over TLS and was run without.
pub(crate) const HTTP_FALLBACK: &str = "LifecycleHTTPFallback";

/// Runs a hook to its end; the error is what went wrong. Of a hook that has run, there may be something to tell
/// ([`HTTP_FALLBACK`]).
pub(crate) async fn run(
    runtime: &dyn Runtime,
    clock: &dyn Clock,
    container: &Container,
    container_id: &str,
    address: Option<IpAddr>,
    hook: &LifecycleHandler,
) -> Result<Option<String>, String> {
    if let Some(action) = &hook.exec {
        check::exec(runtime, container_id, action).await.map(|()| None)
    } else if let Some(action) = &hook.http_get {
        http_get(container, action, address).await
    } else if let Some(action) = &hook.tcp_socket {
        check::tcp_socket(container, action, address).await.map(|()| None)
    } else if let Some(sleep) = &hook.sleep {
        let seconds = u64::try_from(sleep.seconds).unwrap_or(0);
        let until = clock.now().saturating_add(Duration::from_secs(seconds)).unwrap_or(jiff::Timestamp::MAX);
        clock.sleep_until(until).await;
        Ok(None)
    } else {
        Err("the hook's kind is not known to this node".to_owned())
    }
}

/// A request that is answered has run the hook, whatever the answer. One over TLS that meets a server without is repeated
/// without: hooks were long sent so, whatever their scheme. Source: `runHTTPHandler` in `pkg/kubelet/lifecycle`.
async fn http_get(
    container: &Container,
    action: &HTTPGetAction,
    address: Option<IpAddr>,
) -> Result<Option<String>, String> {
    let first = match check::http_get(container, action, address, AGENT).await {
        Ok(_) => return Ok(None),
        Err(unanswered) if unanswered.plain => unanswered.message,
        Err(unanswered) => return Err(unanswered.message),
    };
    let mut plain = HTTPGetAction { scheme: Some("HTTP".to_owned()), ..action.clone() };
    // What was to be said under seal is not said in public.
    plain.http_headers.iter_mut().for_each(|headers| {
        headers.retain(|header| !header.name.eq_ignore_ascii_case("authorization"));
    });
    match check::http_get(container, &plain, address, AGENT).await {
        Ok(_) => {
            let named = action.host.clone().filter(|host| !host.is_empty());
            let host = named.or(address.map(|address| address.to_string())).unwrap_or_default();
            let port = check::port(container, &action.port)?;
            Ok(Some(format!(
                "request to HTTPS lifecycle hook {host}:{port} got HTTP response, retry with HTTP succeeded"
            )))
        }
        Err(_) => Err(first),
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_hook_over_tls_that_meets_a_server_without_is_repeated() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = async move {
            let mut asked = Vec::new();
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut bytes = vec![0; 4096];
                let length = stream.read(&mut bytes).await.unwrap();
                asked.push(String::from_utf8_lossy(&bytes[..length]).to_lowercase());
                let answer = b"HTTP/1.1 500 X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                stream.write_all(answer).await.unwrap();
            }
            asked
        };
        let action = serde_json::json!({"port": port, "scheme": "HTTPS", "path": "/bye", "httpHeaders": [
            {"name": "Authorization", "value": "Bearer x"}, {"name": "X", "value": "1"}]});
        let action = serde_json::from_value(action).unwrap();
        let (container, address) = (Container::default(), Some([127, 0, 0, 1].into()));
        let (told, asked) = tokio::join!(http_get(&container, &action, address), serving);
        let wanted = format!(
            "request to HTTPS lifecycle hook 127.0.0.1:{port} got HTTP response, retry with HTTP succeeded"
        );
        assert_eq!(told, Ok(Some(wanted)));
        assert!(asked[1].starts_with("get /bye http/1.1") && asked[1].contains("x: 1"), "{asked:?}");
        assert!(!asked[1].contains("authorization"), "{asked:?}");
    }
}
