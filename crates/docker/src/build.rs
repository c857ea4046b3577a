//! `POST /build`: the context arrives as an archive, the output leaves as documents.

use std::io::{self, Read};
use std::path::Path;

use engine_api::{BuildEvent, BuildRequest};
use futures::{StreamExt, TryStreamExt};
use serde_json::json;
use tokio_util::io::{StreamReader, SyncIoBridge};

use crate::answer::{Answer, Failure, documents, error_document};
use crate::server::Call;

pub(crate) async fn build(call: Call) -> Answer {
    let query = &call.query;
    if query.text("version") == "2" {
        return Err(Failure::bad_request("BuildKit is not supported: set DOCKER_BUILDKIT=0"));
    }
    if !query.text("remote").is_empty() {
        return Err(Failure::bad_request("remote build contexts are not supported: send the context itself"));
    }
    let context =
        tempfile::tempdir().map_err(|error| Failure::internal("make a directory for the context", &error))?;
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
    };
    let builds = call.shared.builds.clone();
    let body = crate::images::body(call).map_err(io::Error::other);
    let archive = SyncIoBridge::new(StreamReader::new(body));
    let directory = context.path().to_owned();
    let unpacked = tokio::task::spawn_blocking(move || unpack(archive, &directory)).await;
    unpacked
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
    Ok(documents(output))
}

/// Unpacks a context, maybe compressed with gzip; the library keeps every entry inside the directory.
fn unpack(mut archive: impl Read, directory: &Path) -> io::Result<()> {
    let mut start = [0; 2];
    let mut have = 0;
    while have < start.len() {
        match archive.read(&mut start[have..])? {
            0 => break,
            read => have += read,
        }
    }
    let whole = io::Cursor::new(start[..have].to_vec()).chain(archive);
    let mut archive: tar::Archive<Box<dyn Read>> = tar::Archive::new(match start {
        [0x1f, 0x8b] => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        _ => Box::new(whole),
    });
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(false);
    archive.set_overwrite(true);
    archive.unpack(directory)
}
