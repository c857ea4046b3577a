//! `POST /build`: the context arrives as an archive, the output leaves as documents.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use engine_api::{BuildEvent, BuildRequest, CommitRequest};
use futures::{StreamExt, TryStreamExt};
use http::StatusCode;
use serde_json::{Value, json};
use tokio_util::io::{StreamReader, SyncIoBridge};

use crate::answer::{Answer, Failure, documents, error_document, json as json_answer};
use crate::container_spec::Owner;
use crate::query::Query;
use crate::server::{Call, Config};
use crate::system::check_platform;
use crate::upload::upload;

/// Options that are not carried out, by their parameter. Each is refused unless it is at its default.
const UNSUPPORTED: [(&str, &str); 11] = [
    ("cgroupparent", "--cgroup-parent"),
    ("cpuperiod", "--cpu-period"),
    ("cpuquota", "--cpu-quota"),
    ("cpusetcpus", "--cpuset-cpus"),
    ("cpusetmems", "--cpuset-mems"),
    ("cpushares", "--cpu-shares"),
    ("memory", "--memory"),
    ("memswap", "--memory-swap"),
    ("shmsize", "--shm-size"),
    ("squash", "--squash"),
    ("ulimits", "--ulimit"),
];

pub(crate) async fn build(call: Call) -> Answer {
    let (request, context) = match prepare(&call) {
        Ok(prepared) => prepared,
        Err(failure) => return upload(call, |_| std::future::ready(Err(failure))).await,
    };
    let warning = warning(&call.query);
    let builds = call.shared.builds.clone();
    let directory = context.path().to_owned();
    let unpacked = upload(call, |body| {
        let archive = SyncIoBridge::new(StreamReader::new(body.map_err(io::Error::other)));
        tokio::task::spawn_blocking(move || unpack(archive, &directory))
    });
    unpacked
        .await
        .map_err(|error| Failure::internal("unpack the build context", &error))?
        .map_err(|error| Failure::bad_request(format!("the build context cannot be unpacked: {error}")))?;
    let events = builds.build(request).await?;
    let output = events.map(move |event| {
        // The context lives as long as the stream does.
        let _ = &context;
        match event {
            Ok(BuildEvent::Output(text)) => json!({ "stream": text }),
            Ok(BuildEvent::Built(id)) => json!({ "aux": { "ID": id } }),
            Err(error) => error_document(&error),
        }
    });
    Ok(documents(futures::stream::iter(warning).chain(output)))
}

/// What is to be built, and the directory for its context, without looking at the body.
fn prepare(call: &Call) -> Result<(BuildRequest, tempfile::TempDir), Failure> {
    let query = &call.query;
    if query.text("version") == "2" {
        return Err(Failure::bad_request("BuildKit is not supported: set DOCKER_BUILDKIT=0"));
    }
    if !query.text("remote").is_empty() {
        return Err(Failure::bad_request("remote build contexts are not supported: send the context itself"));
    }
    refuse_unsupported(query)?;
    let context = new_context(&call.shared.config)
        .map_err(|error| Failure::internal("make a directory for the context", &error))?;
    let request = BuildRequest {
        context: context.path().to_owned(),
        dockerfile: query.text("dockerfile").to_owned(),
        tags: query.all("t").into_iter().filter(|tag| !tag.is_empty()).collect(),
        build_args: query.map("buildargs")?,
        target: query.text("target").to_owned(),
        labels: query.map("labels")?,
        no_cache: query.flag("nocache"),
        pull: query.flag("pull"),
        no_host_certs: query.flag("nohostcerts"),
        no_network: query.text("networkmode") == "none",
        extra_hosts: query
            .text("extrahosts")
            .split(',')
            .filter(|entry| !entry.is_empty())
            .map(str::to_owned)
            .collect(),
        registry_auth: crate::images::registry_config(call),
    };
    Ok((request, context))
}

/// `POST /commit`: an image of a container.
pub(crate) async fn commit(mut call: Call) -> Answer {
    let config: Value = call.json().await?;
    if !crate::unsupported::is_default(&config) {
        let message = "a configuration in the body of a commit is not supported: use changes";
        return Err(Failure::bad_request(message));
    }
    let query = &call.query;
    let found = call.shared.find(query.text("container")).await?;
    let reference = match (query.text("repo"), query.text("tag")) {
        ("", "") => String::new(),
        ("", _) => return Err(Failure::bad_request("a tag needs a repository")),
        (repo, "") => repo.to_owned(),
        (repo, tag) => format!("{repo}:{tag}"),
    };
    // What the container was made with beside what the engine knows.
    let mut changes = Vec::new();
    if let Owner::Docker(request) = &found.owner {
        changes.extend(request.exposed_ports.keys().map(|port| format!("EXPOSE {port}")));
        changes.extend(request.volumes.keys().map(|path| format!("VOLUME {}", json!([path]))));
    }
    changes.extend(query.all("changes").iter().flat_map(|text| text.lines()).map(str::to_owned));
    let request = CommitRequest {
        container: found.id().to_owned(),
        reference,
        changes,
        author: query.text("author").to_owned(),
        comment: query.text("comment").to_owned(),
    };
    let id = call.shared.builds.commit(request).await?;
    Ok(json_answer(StatusCode::CREATED, &json!({ "Id": id })))
}

/// What would silently be less than was asked for is refused.
fn refuse_unsupported(query: &Query) -> Result<(), Failure> {
    check_platform(query.text("platform"))?;
    let refused =
        |what: &str| Failure::bad_request(format!("{what} is not supported yet by skiff's builder"));
    match query.text("networkmode") {
        "" | "default" | "bridge" | "host" | "none" => {}
        other => return Err(refused(&format!("--network {other}"))),
    }
    if query.text("extrahosts").split(',').any(|entry| entry.ends_with("host-gateway")) {
        return Err(refused("--add-host with host-gateway"));
    }
    match UNSUPPORTED.iter().find(|(name, _)| !is_default(query.text(name))) {
        Some((_, option)) => Err(refused(option)),
        None => Ok(()),
    }
}

fn is_default(text: &str) -> bool {
    matches!(text, "" | "0" | "[]" | "null" | "false" | "{}")
}

/// What is not used, but changes no image.
fn warning(query: &Query) -> Option<Value> {
    let text = "[Warning] --cache-from is not used: the cache is that of this machine\n";
    (!is_default(query.text("cachefrom"))).then(|| json!({ "stream": text }))
}

fn contexts(config: &Config) -> PathBuf {
    config.data_dir.join("contexts")
}

/// A directory for one context; it goes with the returned value.
fn new_context(config: &Config) -> io::Result<tempfile::TempDir> {
    let all = contexts(config);
    std::fs::create_dir_all(&all)?;
    tempfile::tempdir_in(all)
}

/// Removes contexts that no build has any more. Call it before the first build.
pub(crate) async fn clear_contexts(config: &Config) -> io::Result<()> {
    match tokio::fs::remove_dir_all(contexts(config)).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Unpacks a context, maybe compressed with gzip; the library keeps every entry inside the directory.
fn unpack(mut archive: impl Read, directory: &Path) -> io::Result<()> {
    const START: usize = 6;
    let mut start = Vec::new();
    archive.by_ref().take(START as u64).read_to_end(&mut start)?;
    let other = match start.as_slice() {
        [0xfd, b'7', b'z', b'X', b'Z', ..] => Some("xz"),
        [b'B', b'Z', b'h', ..] => Some("bzip2"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some("zstd"),
        _ => None,
    };
    if let Some(other) = other {
        let message = format!("it is compressed with {other}: send it plain or with gzip");
        return Err(io::Error::new(io::ErrorKind::Unsupported, message));
    }
    let compressed = start.starts_with(&[0x1f, 0x8b]);
    let whole = io::Cursor::new(start).chain(archive);
    let mut archive: tar::Archive<Box<dyn Read>> = tar::Archive::new(match compressed {
        true => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        false => Box::new(whole),
    });
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(false);
    archive.set_overwrite(true);
    archive.unpack(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_build_passes_and_what_is_not_done_is_refused_by_name() {
        // As the classic client sends it.
        let plain = "buildargs=%7B%7D&cachefrom=%5B%5D&cgroupparent=&cpuperiod=0&cpuquota=0&cpusetcpus=&cpusetmems=&\
                     cpushares=0&dockerfile=Dockerfile&labels=%7B%7D&memory=0&memswap=0&networkmode=default&rm=1&\
                     shmsize=0&t=a&target=&ulimits=%5B%5D&version=1";
        refuse_unsupported(&Query::parse(plain)).unwrap();
        assert!(warning(&Query::parse(plain)).is_none());
        assert!(warning(&Query::parse("cachefrom=%5B%22a%22%5D")).is_some());
        for (query, option) in [
            ("memory=5", "--memory is"),
            ("memswap=-1", "--memory-swap"),
            ("squash=1", "--squash"),
            ("ulimits=%5B%7B%7D%5D", "--ulimit"),
            ("networkmode=container:x", "--network container:x"),
            ("platform=linux/s390x", "--platform linux/s390x"),
            ("extrahosts=a:host-gateway", "host-gateway"),
        ] {
            let said = format!("{:?}", refuse_unsupported(&Query::parse(query)).unwrap_err());
            assert!(said.contains(option), "{query}: {said}");
        }
    }

    #[test]
    fn a_context_of_another_compression_says_so() {
        let directory = tempfile::tempdir().unwrap();
        for (start, name) in [(&b"BZh91AY"[..], "bzip2"), (&b"\xfd7zXZ\0"[..], "xz")] {
            let error = unpack(start, directory.path()).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}
