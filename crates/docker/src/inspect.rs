//! Containers as Docker shows them.

use engine_api::{ContainerState, MountSource};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::answer::{Answer, Failure, ok};
use crate::containers::Found;
use crate::query::labels_match;
use crate::server::Call;

const NEVER: &str = "0001-01-01T00:00:00Z";

pub(crate) async fn list(call: &Call) -> Answer {
    let filters = call.query.filters()?;
    let wanted = |name: &str| filters.get(name).cloned().unwrap_or_default();
    let (labels, names, ids, states) = (wanted("label"), wanted("name"), wanted("id"), wanted("status"));
    let asks_for_pods = labels.iter().any(|label| label.starts_with("io.kubernetes."));
    let everything = call.query.flag("all") || !states.is_empty();
    let mut found = call.shared.all().await?;
    found.retain(|found| {
        let spec = &found.container.spec;
        (found.is_ours() || asks_for_pods)
            && (everything || found.is_running())
            && labels_match(&spec.labels, &labels)
            && (names.is_empty()
                || names.iter().any(|name| spec.name.contains(name.trim_matches(['^', '$', '/']))))
            && (ids.is_empty() || ids.iter().any(|id| spec.id.starts_with(id)))
            && (states.is_empty() || states.iter().any(|state| state == state_name(&found.container.state)))
    });
    found.sort_by_key(|found| std::cmp::Reverse(found.container.created_at));
    if let Ok(limit) = call.query.text("limit").parse::<usize>() {
        found.truncate(if limit == 0 { found.len() } else { limit });
    }
    let mut answer = Vec::with_capacity(found.len());
    for found in &found {
        answer.push(summary(call, found).await);
    }
    ok(&answer)
}

fn state_name(state: &ContainerState) -> &'static str {
    match state {
        ContainerState::Created => "created",
        ContainerState::Running { .. } => "running",
        ContainerState::Exited { .. } => "exited",
    }
}

async fn summary(call: &Call, found: &Found) -> Value {
    let spec = &found.container.spec;
    let words: Vec<&str> = spec.entrypoint.iter().chain(&spec.args).map(String::as_str).collect();
    let command = match (words.is_empty(), call.shared.images.resolve(&spec.image_id).await) {
        (true, Ok(found)) => [found.image.config.entrypoint, found.image.config.cmd].concat().join(" "),
        _ => words.join(" "),
    };
    json!({
        "Id": spec.id,
        "Names": [format!("/{}", spec.name)],
        "Image": spec.image,
        "ImageID": spec.image_id,
        "Command": command,
        "Created": found.container.created_at.as_second(),
        "Ports": crate::ports::summary(&call.shared.networks.published(&spec.sandbox_id)),
        "Labels": spec.labels,
        "State": state_name(&found.container.state),
        "Status": status_text(&found.container.state, Timestamp::now()),
        "HostConfig": { "NetworkMode": network_mode(found) },
        "NetworkSettings": networks(call, found).await,
        "Mounts": mounts(found),
    })
}

/// `Up 5 minutes`, `Exited (0) 2 hours ago`.
fn status_text(state: &ContainerState, now: Timestamp) -> String {
    match state {
        ContainerState::Created => "Created".to_owned(),
        ContainerState::Running { started_at, .. } => format!("Up {}", human(*started_at, now)),
        ContainerState::Exited { exit, .. } => {
            format!("Exited ({}) {} ago", exit.code, human(exit.finished_at, now))
        }
    }
}

/// Docker's rounding of durations.
fn human(since: Timestamp, now: Timestamp) -> String {
    let seconds = (now.as_second() - since.as_second()).max(0);
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match seconds {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".to_owned(),
        _ if minutes < 60 => format!("{minutes} minutes"),
        _ if hours < 2 => "About an hour".to_owned(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        _ if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

fn network_mode(found: &Found) -> &str {
    match found.raw["HostConfig"]["NetworkMode"].as_str() {
        Some(mode) if !mode.is_empty() => mode,
        _ => "default",
    }
}

async fn networks(call: &Call, found: &Found) -> Value {
    let address = call.shared.address(found).await;
    let name = match network_mode(found) {
        "default" => "bridge",
        other => other,
    };
    json!({ "Networks": { name: { "IPAddress": address, "NetworkID": "", "EndpointID": "", "Gateway": "" } } })
}

fn mounts(found: &Found) -> Vec<Value> {
    let own = ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];
    let shown = found
        .container
        .spec
        .mounts
        .iter()
        .filter(|mount| !own.iter().any(|path| mount.target.ends_with(&path[1..])));
    let entry = |mount: &engine_api::Mount| {
        let (kind, source) = match &mount.source {
            MountSource::Bind(path) => ("bind", path.display().to_string()),
            MountSource::Tmpfs { .. } => ("tmpfs", String::new()),
        };
        json!({
            "Type": kind,
            "Source": source,
            "Destination": mount.target,
            "Mode": if mount.read_only { "ro" } else { "" },
            "RW": !mount.read_only,
            "Propagation": "rprivate",
        })
    };
    shown.map(entry).collect()
}

pub(crate) async fn inspect(call: &Call, name: &str) -> Answer {
    let found = call.shared.find(name).await?;
    let spec = &found.container.spec;
    let image = call.shared.images.resolve(&spec.image_id).await.ok().map(|found| found.image);
    let words = effective_command(&found, image.as_ref().map(|image| &image.config));
    let (program, arguments) =
        words.split_first().map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
    let mut host_config = found.raw["HostConfig"].clone();
    if host_config.is_null() {
        host_config = json!({ "NetworkMode": network_mode(&found), "LogConfig": {} });
    }
    host_config["LogConfig"] = json!({ "Type": "json-file", "Config": {} });
    let mut settings = networks(call, &found).await;
    settings["IPAddress"] = json!(call.shared.address(&found).await);
    settings["Ports"] = crate::ports::map(&call.shared.networks.published(&spec.sandbox_id));
    ok(&json!({
        "Id": spec.id,
        "Created": found.container.created_at.to_string(),
        "Path": program,
        "Args": arguments,
        "State": state(&found.container.state),
        "Image": spec.image_id,
        "ResolvConfPath": "",
        "HostnamePath": "",
        "HostsPath": "",
        "LogPath": found.container.log_path,
        "Name": format!("/{}", spec.name),
        "RestartCount": 0,
        "Driver": "overlay2",
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": null,
        "HostConfig": host_config,
        "GraphDriver": { "Name": "overlay2", "Data": {} },
        "Mounts": mounts(&found),
        "Config": config(&found, image.as_ref()),
        "NetworkSettings": settings,
    }))
}

/// What really runs: the container's words over the image's.
fn effective_command(found: &Found, image: Option<&engine_api::ImageConfig>) -> Vec<String> {
    let spec = &found.container.spec;
    let empty = engine_api::ImageConfig::default();
    let image = image.unwrap_or(&empty);
    let (entrypoint, command) = if spec.entrypoint.is_empty() {
        (&image.entrypoint, if spec.args.is_empty() { &image.cmd } else { &spec.args })
    } else {
        (&spec.entrypoint, &spec.args)
    };
    [entrypoint.as_slice(), command.as_slice()].concat()
}

fn config(found: &Found, image: Option<&engine_api::Image>) -> Value {
    let spec = &found.container.spec;
    let image = image.map(|image| &image.config);
    let mut env = image.map(|image| image.env.clone()).unwrap_or_default();
    env.retain(|line| {
        let name = line.split('=').next();
        !spec.env.iter().any(|other| other.split('=').next() == name)
    });
    env.extend(spec.env.iter().cloned());
    let list = |own: &[String], image: Option<&Vec<String>>| match (own.is_empty(), image) {
        (true, Some(image)) if image.is_empty() => Value::Null,
        (true, image) => json!(image),
        (false, _) => json!(own),
    };
    let raw_or = |name: &str, default: Value| match &found.raw[name] {
        Value::Null => default,
        value => value.clone(),
    };
    json!({
        "Hostname": found.sandbox.as_ref().map(|sandbox| sandbox.spec.hostname.as_str()).unwrap_or_default(),
        "Domainname": "",
        "User": if spec.user.spec.is_empty() { image.map(|image| image.user.clone()).unwrap_or_default() } else { spec.user.spec.clone() },
        "AttachStdin": raw_or("AttachStdin", json!(false)),
        "AttachStdout": raw_or("AttachStdout", json!(false)),
        "AttachStderr": raw_or("AttachStderr", json!(false)),
        "Tty": spec.terminal,
        "OpenStdin": spec.stdin,
        "StdinOnce": spec.stdin_once,
        "Env": env,
        "Cmd": list(&spec.args, image.map(|image| &image.cmd)),
        "Entrypoint": list(&spec.entrypoint, image.map(|image| &image.entrypoint)),
        "Image": spec.image,
        "Volumes": raw_or("Volumes", Value::Null),
        "WorkingDir": if spec.working_dir.is_empty() { image.map(|image| image.working_dir.clone()).unwrap_or_default() } else { spec.working_dir.clone() },
        "OnBuild": null,
        "Labels": spec.labels,
    })
}

fn state(state: &ContainerState) -> Value {
    let mut answer = json!({
        "Status": state_name(state),
        "Running": false,
        "Paused": false,
        "Restarting": false,
        "OOMKilled": false,
        "Dead": false,
        "Pid": 0,
        "ExitCode": 0,
        "Error": "",
        "StartedAt": NEVER,
        "FinishedAt": NEVER,
    });
    match state {
        ContainerState::Created => {}
        ContainerState::Running { pid, started_at } => {
            answer["Running"] = json!(true);
            answer["Pid"] = json!(pid);
            answer["StartedAt"] = json!(started_at.to_string());
        }
        ContainerState::Exited { started_at, exit } => {
            answer["OOMKilled"] = json!(exit.oom_killed);
            answer["ExitCode"] = json!(exit.code);
            answer["Error"] = json!(exit.message);
            answer["StartedAt"] = json!(started_at.map_or_else(|| NEVER.to_owned(), |time| time.to_string()));
            answer["FinishedAt"] = json!(exit.finished_at.to_string());
        }
    }
    answer
}

/// The number of a line count: `all`, or digits.
pub(crate) fn tail(text: &str) -> Result<Option<u64>, Failure> {
    match text {
        "" | "all" => Ok(None),
        text => text
            .parse()
            .map(Some)
            .map_err(|_| Failure::bad_request(format!("tail is not a number: {text:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_rounded_as_docker_does() {
        let text = |seconds: i64| {
            human(
                Timestamp::from_second(1_000_000).unwrap(),
                Timestamp::from_second(1_000_000 + seconds).unwrap(),
            )
        };
        assert_eq!(text(0), "Less than a second");
        assert_eq!(text(1), "1 second");
        assert_eq!(text(59), "59 seconds");
        assert_eq!(text(61), "About a minute");
        assert_eq!(text(3599), "59 minutes");
        assert_eq!(text(3600), "About an hour");
        assert_eq!(text(86_400), "24 hours");
        assert_eq!(text(86_400 * 3), "3 days");
        assert_eq!(text(86_400 * 800), "2 years");
        assert_eq!(text(-5), "Less than a second");
    }
}
