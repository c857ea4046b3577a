//! Who answers: ping, version, info.

use http::{HeaderValue, Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::answer::{Answer, Body, Failure, full, ok, with_type};
use crate::server::{API_MAX, API_MIN, Call};

/// Docker's name for this machine's architecture.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Refuses what is for another kind of machine; empty asks for nothing.
pub(crate) fn check_platform(wanted: &str) -> Result<(), Failure> {
    let here = format!("linux/{}", architecture());
    // A client may send the platform as a document: {"os": "linux", "architecture": "amd64"}.
    let document = serde_json::from_str::<Value>(wanted).ok().filter(Value::is_object);
    let wanted = match &document {
        None => wanted.to_owned(),
        Some(platform) => ["os", "architecture"]
            .map(|field| platform[field].as_str().unwrap_or_default())
            .join("/")
            .trim_end_matches('/')
            .to_owned(),
    };
    match wanted.as_str() {
        "" | "linux" => Ok(()),
        wanted if wanted == here || wanted.starts_with(&format!("{here}/")) => Ok(()),
        wanted => {
            Err(Failure::bad_request(format!("--platform {wanted} is not supported: this machine is {here}")))
        }
    }
}

/// What every client asks first; the headers say which version and which builder to use.
pub(crate) fn ping(method: &Method) -> Response<Body> {
    let body = if method == Method::HEAD { Vec::new() } else { b"OK".to_vec() };
    let mut response = with_type(StatusCode::OK, "text/plain; charset=utf-8", full(body));
    let headers = [
        ("builder-version", "1"),
        ("docker-experimental", "false"),
        ("ostype", "linux"),
        ("swarm", "inactive"),
        ("cache-control", "no-cache, no-store, must-revalidate"),
    ];
    for (name, value) in headers {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    if let Ok(version) = HeaderValue::from_str(&format!("{}.{}", API_MAX.0, API_MAX.1)) {
        response.headers_mut().insert("api-version", version);
    }
    response
}

pub(crate) fn version(call: &Call) -> Answer {
    let version = &call.shared.config.version;
    let api = format!("{}.{}", API_MAX.0, API_MAX.1);
    let oldest = format!("{}.{}", API_MIN.0, API_MIN.1);
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    ok(&json!({
        "Platform": { "Name": "Skiff" },
        "Components": [{
            "Name": "Engine",
            "Version": version,
            "Details": {
                "ApiVersion": api, "MinAPIVersion": oldest, "Arch": architecture(), "Os": "linux",
                "KernelVersion": kernel,
            },
        }],
        "Version": version,
        "ApiVersion": api,
        "MinAPIVersion": oldest,
        "GitCommit": "",
        "GoVersion": "",
        "Os": "linux",
        "Arch": architecture(),
        "KernelVersion": kernel,
    }))
}

pub(crate) async fn info(call: &Call) -> Answer {
    let shared = &call.shared;
    let images = shared.images.list().await?;
    let found = shared.all().await?;
    let containers: Vec<_> = found.iter().filter(|found| found.is_ours()).collect();
    let running = containers.iter().filter(|found| found.is_running()).count();
    let uname = rustix::system::uname();
    ok(&json!({
        "ID": shared.config.node_name,
        "Name": shared.config.node_name,
        "Containers": containers.len(),
        "ContainersRunning": running,
        "ContainersPaused": 0,
        "ContainersStopped": containers.len() - running,
        "Images": images.len(),
        "Driver": "overlay2",
        "LoggingDriver": "json-file",
        "ServerVersion": shared.config.version,
        "OperatingSystem": "Linux",
        "OSType": "linux",
        "Architecture": std::env::consts::ARCH,
        "KernelVersion": uname.release().to_string_lossy(),
        "NCPU": std::thread::available_parallelism().map_or(1, usize::from),
        "MemTotal": rustix::system::sysinfo().totalram,
        "DockerRootDir": shared.config.data_dir,
        "Swarm": { "LocalNodeState": "inactive" },
        "Plugins": { "Volume": ["local"], "Network": ["bridge", "host", "none"], "Log": ["json-file"] },
        "SecurityOptions": ["name=seccomp,profile=builtin"],
        "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": { "InsecureRegistryCIDRs": ["127.0.0.0/8"], "IndexConfigs": {}, "Mirrors": [] },
        "Warnings": [],
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_s_platform_is_there() {
        let here = format!("linux/{}", architecture());
        let document = format!(r#"{{"os": "linux", "architecture": "{}"}}"#, architecture());
        for fits in ["", "linux", &here, &format!("{here}/v8"), &document] {
            assert!(check_platform(fits).is_ok(), "{fits}");
        }
        for other in ["linux/s390x", "windows", r#"{"os": "linux", "architecture": "s390x"}"#] {
            assert!(check_platform(other).is_err(), "{other}");
        }
    }
}
