//! Paths of the node's server, as the kubelet has them.

use http::Method;
use percent_encoding::percent_decode_str;

/// A pod, or a container of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) namespace: String,
    pub(crate) pod: String,
    /// Where the path names it: it must be this very pod.
    pub(crate) uid: Option<String>,
    /// Empty for port-forward.
    pub(crate) container: String,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    Logs(Target),
    Exec(Target),
    Attach(Target),
    PortForward(Target),
    Pods,
    Stats,
    Metrics,
    /// Use of resources.
    ResourceMetrics,
    /// What containers use, under cAdvisor's names.
    CadvisorMetrics,
    /// What the probes have answered.
    ProbeMetrics,
    /// The node's configuration.
    Configz,
    /// What starting a pod took, step by step. Skiff's own.
    StartTrace(Target),
    /// The host's logs; what follows `/logs`.
    HostLogs(String),
    Healthz,
    /// The API server says where it is. Skiff's own: the kubelet has no such path.
    ApiServer,
    NotFound,
}

/// Reads method and path.
pub(crate) fn parse(method: &Method, path: &str) -> Route {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let target = |parts: &[&str]| -> Option<Target> {
        let (namespace, pod, uid, container) = match parts {
            [namespace, pod, container] => (namespace, pod, None, container),
            [namespace, pod, uid, container] => (namespace, pod, Some((*uid).to_owned()), container),
            _ => return None,
        };
        Some(Target {
            namespace: (*namespace).to_owned(),
            pod: (*pod).to_owned(),
            uid,
            container: (*container).to_owned(),
        })
    };
    let streams = method == Method::GET || method == Method::POST;
    let found = match parts.as_slice() {
        ["containerLogs", rest @ ..] if method == Method::GET => target(rest).map(Route::Logs),
        ["exec", rest @ ..] if streams => target(rest).map(Route::Exec),
        ["attach", rest @ ..] if streams => target(rest).map(Route::Attach),
        ["portForward", namespace, pod] if streams => target(&[namespace, pod, ""]).map(Route::PortForward),
        ["portForward", namespace, pod, uid] if streams => {
            target(&[namespace, pod, uid, ""]).map(Route::PortForward)
        }
        ["pods" | "runningpods"] => Some(Route::Pods),
        ["stats", "summary"] => Some(Route::Stats),
        ["metrics"] => Some(Route::Metrics),
        ["metrics", "resource"] => Some(Route::ResourceMetrics),
        ["metrics", "cadvisor"] => Some(Route::CadvisorMetrics),
        ["metrics", "probes"] => Some(Route::ProbeMetrics),
        ["configz"] => Some(Route::Configz),
        ["debug", "startTrace", namespace, pod] if method == Method::GET => {
            target(&[namespace, pod, ""]).map(Route::StartTrace)
        }
        ["logs", ..] if method == Method::GET || method == Method::HEAD => decoded(path).map(Route::HostLogs),
        ["healthz"] | ["healthz", "ping" | "log" | "syncloop"] => Some(Route::Healthz),
        ["apiServer"] if method == Method::PUT => Some(Route::ApiServer),
        _ => None,
    };
    found.unwrap_or(Route::NotFound)
}

/// What follows `/logs`, decoded.
fn decoded(path: &str) -> Option<String> {
    let rest = path.trim_start_matches('/').strip_prefix("logs")?;
    Some(percent_decode_str(rest).decode_utf8().ok()?.into_owned())
}

impl Route {
    /// The subresources of the node of whose rights one is needed, in the order in which they are asked for.
    /// Source: upstream's `GetRequestAttributes`.
    pub(crate) fn subresources(&self) -> &'static [&'static str] {
        match self {
            Self::Pods => &["pods", "proxy"],
            Self::Healthz => &["healthz", "proxy"],
            Self::Configz => &["configz", "proxy"],
            Self::Stats => &["stats"],
            Self::Metrics | Self::ResourceMetrics | Self::CadvisorMetrics | Self::ProbeMetrics => {
                &["metrics"]
            }
            Self::HostLogs(_) => &["log"],
            Self::Logs(_)
            | Self::Exec(_)
            | Self::Attach(_)
            | Self::PortForward(_)
            | Self::StartTrace(_)
            | Self::ApiServer
            | Self::NotFound => &["proxy"],
        }
    }

    /// The route as the server's own figures name it. Source: `getMetricBucket` of `pkg/kubelet/server`.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Logs(_) => "containerLogs",
            Self::Exec(_) => "exec",
            Self::Attach(_) => "attach",
            Self::PortForward(_) => "portForward",
            Self::Pods => "pods",
            Self::Stats => "stats",
            Self::Metrics => "metrics",
            Self::ResourceMetrics => "metrics/resource",
            Self::CadvisorMetrics => "metrics/cadvisor",
            Self::ProbeMetrics => "metrics/probes",
            Self::HostLogs(_) => "logs",
            Self::Healthz => "healthz",
            Self::Configz => "configz",
            Self::StartTrace(_) => "debug",
            Self::ApiServer => "apiServer",
            Self::NotFound => "other",
        }
    }

    /// Whether requests last as long as their clients want.
    pub(crate) fn is_long_running(&self) -> bool {
        matches!(self, Self::Logs(_) | Self::Exec(_) | Self::Attach(_) | Self::PortForward(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_the_kubelets() {
        let with_uid = parse(&Method::POST, "/exec/default/web/u1/main");
        assert_eq!(
            with_uid,
            Route::Exec(Target {
                namespace: "default".into(),
                pod: "web".into(),
                uid: Some("u1".into()),
                container: "main".into()
            })
        );
        assert!(matches!(parse(&Method::GET, "/containerLogs/a/b/c"), Route::Logs(_)));
        assert_eq!(parse(&Method::POST, "/containerLogs/a/b/c"), Route::NotFound);
        assert!(matches!(parse(&Method::POST, "/portForward/a/b"), Route::PortForward(_)));
        assert_eq!(parse(&Method::GET, "/exec/a"), Route::NotFound);
        assert!(matches!(parse(&Method::GET, "/debug/startTrace/a/b"), Route::StartTrace(_)));
        assert_eq!(parse(&Method::PUT, "/apiServer"), Route::ApiServer);
        assert_eq!(parse(&Method::GET, "/apiServer"), Route::NotFound);
        assert_eq!(parse(&Method::GET, "/stats/summary").subresources(), ["stats"]);
        assert_eq!(parse(&Method::GET, "/configz").subresources(), ["configz", "proxy"]);
        assert_eq!(parse(&Method::GET, "/metrics/cadvisor").subresources(), ["metrics"]);
        assert_eq!(parse(&Method::GET, "/metrics/cadvisor").name(), "metrics/cadvisor");
        assert_eq!(with_uid.subresources(), ["proxy"]);
        assert_eq!(parse(&Method::GET, "/metrics/resource").subresources(), ["metrics"]);
        assert_eq!(parse(&Method::GET, "/logs/a%20b/"), Route::HostLogs("/a b/".into()));
        assert_eq!(parse(&Method::GET, "/logs"), Route::HostLogs(String::new()));
        assert_eq!(parse(&Method::DELETE, "/logs/a"), Route::NotFound);
    }
}
