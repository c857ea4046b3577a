//! `GET /containerLogs/{namespace}/{pod}/{container}`.

use std::sync::Arc;

use api::Status;
use api::connect::Body;
use engine_api::logs::{LogQuery, LogStream};
use futures::{FutureExt as _, StreamExt as _};
use http::{Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};

use super::query::{self, Query};
use super::response;
use super::route::Target;
use crate::deps::Deps;
use crate::logs::{LogOptions, text};
use crate::pod::ContainerRecord;

pub(super) fn serve(deps: &Arc<Deps>, target: &Target, query: &Query) -> Result<Response<Body>, Status> {
    let options = options(deps, query)?;
    let record =
        if query.flag(&["previous"]) { previous(deps, target)? } else { query::container(deps, target)? };
    let (runtime, id) = (deps.runtime.clone(), record.id.clone());
    let ended = async move {
        // Whatever the answer, nothing more will be written.
        let _ = runtime.wait_container(&id).await;
    };
    let text = text(record.log_path, options, ended.boxed()).map(|chunk| chunk.map(Frame::data));
    Ok(response(StatusCode::OK, "text/plain", StreamBody::new(text).boxed_unsync()))
}

/// The run before the newest one; with one run only, that one if it has ended.
fn previous(deps: &Deps, target: &Target) -> Result<ContainerRecord, Status> {
    let newest = query::container(deps, target)?;
    let pod = query::pod(deps, target)?;
    let runtime = deps.state.pod(pod.uid());
    let older = runtime.containers.into_iter().filter(|record| {
        record.name == newest.name
            && (record.attempt, record.created_at) < (newest.attempt, newest.created_at)
    });
    older
        .max_by_key(|record| (record.attempt, record.created_at))
        .or_else(|| Some(newest).filter(|newest| newest.exit().is_some()))
        .ok_or_else(|| {
            Status::bad_request(format!(
                "previous terminated container \"{}\" in pod \"{}\" not found",
                target.container, target.pod
            ))
        })
}

fn options(deps: &Deps, query: &Query) -> Result<LogOptions, Status> {
    let since_seconds: Option<i64> = query.number("sinceSeconds")?;
    let since = match (since_seconds, query.get("sinceTime").filter(|text| !text.is_empty())) {
        (Some(seconds), _) => deps.now().checked_sub(jiff::SignedDuration::from_secs(seconds)).ok(),
        (None, Some(text)) => Some(
            text.parse()
                .map_err(|error| Status::bad_request(format!("query parameter sinceTime: {error}")))?,
        ),
        (None, None) => None,
    };
    let entries = LogQuery {
        follow: query.flag(&["follow"]),
        tail: query.number("tailLines")?,
        since,
        until: None,
        only: match query.get("stream") {
            Some("Stdout") => Some(LogStream::Stdout),
            Some("Stderr") => Some(LogStream::Stderr),
            _ => None,
        },
    };
    Ok(LogOptions {
        entries,
        timestamps: query.flag(&["timestamps"]),
        limit_bytes: query.number("limitBytes")?,
    })
}
