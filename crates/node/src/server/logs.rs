//! `GET /containerLogs/{namespace}/{pod}/{container}`.

use std::sync::Arc;

use api::Status;
use api::connect::Body;
use engine_api::logs::{LogQuery, LogStream};
use futures::{FutureExt as _, StreamExt as _};
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};

use super::NodeServer;
use super::query::{self, Query};
use super::response;
use super::route::Target;
use crate::deps::Deps;
use crate::logs::{LogOptions, text};
use crate::pod::ContainerRecord;
use crate::pod::status::container_id;

/// Over a WebSocket where one is asked for.
pub(super) fn answer(
    server: &Arc<NodeServer>,
    target: &Target,
    mut request: Request<Body>,
) -> Result<Response<Body>, Status> {
    let response = serve(&server.deps, target, &Query::of(&request))?;
    if !streams::is_websocket(request.headers()) {
        return Ok(response);
    }
    let (response, session) = streams::read(&mut request, response.into_body())?;
    server.sessions.spawn(session);
    Ok(response)
}

fn serve(deps: &Arc<Deps>, target: &Target, query: &Query) -> Result<Response<Body>, Status> {
    let options = options(deps, query)?;
    let record =
        if query.flag(&["previous"]) { previous(deps, target)? } else { query::container(deps, target)? };
    let (runtime, id) = (deps.runtime.clone(), record.id.clone());
    let ended = async move {
        // Whatever the answer, nothing more will be written.
        let _ = runtime.wait_container(&id).await;
    };
    let text = text(record.log_path, options, deps.notices.clone(), ended.boxed())
        .map(|chunk| chunk.map(Frame::data));
    Ok(response(StatusCode::OK, "text/plain", StreamBody::new(text).boxed_unsync()))
}

/// The run that ended last before the present one.
fn previous(deps: &Deps, target: &Target) -> Result<ContainerRecord, Status> {
    let newest = query::container(deps, target)?;
    let pod = query::pod(deps, target)?;
    let reported = query::reported(&pod.status, &target.container)
        .and_then(|status| status.last_state.as_ref()?.terminated.as_ref()?.container_id.as_deref());
    let runtime = deps.state.pod(pod.uid());
    previous_of(&newest, &runtime.containers, reported).cloned().ok_or_else(|| {
        Status::bad_request(format!(
            "previous terminated container \"{}\" in pod \"{}\" not found",
            target.container, target.pod
        ))
    })
}

/// The newest run counts as the one before where its end is reported as such: another one is waited for. What ended and
/// is not followed by another has none before it but older ones. Source: `validateContainerLogStatus` in
/// `pkg/kubelet/kubelet_pods.go`.
fn previous_of<'r>(
    newest: &'r ContainerRecord,
    records: &'r [ContainerRecord],
    reported: Option<&str>,
) -> Option<&'r ContainerRecord> {
    if newest.exit().is_some() && reported == Some(container_id(&newest.id).as_str()) {
        return Some(newest);
    }
    let older = records.iter().filter(|record| {
        record.name == newest.name
            && (record.attempt, record.created_at) < (newest.attempt, newest.created_at)
    });
    older.max_by_key(|record| (record.attempt, record.created_at))
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::tests::{exited, pod, record, running};

    #[test]
    fn only_what_has_a_successor_is_a_previous_run() {
        let pod = pod(json!({ "containers": [{ "name": "main" }] }));
        let found = |runs: &[ContainerRecord], reported: Option<&str>| {
            runs.last().and_then(|newest| previous_of(newest, runs, reported)).map(|run| run.id.clone())
        };
        // It has ended for good, or its restart is not put off yet; then it is.
        let mut runs = vec![record(&pod, "main", 0, exited(1, 0, 1))];
        assert_eq!(found(&runs, None), None);
        assert_eq!(found(&runs, Some("skiff://main-0")).as_deref(), Some("main-0"));
        runs.push(record(&pod, "main", 1, exited(1, 2, 3)));
        assert_eq!(found(&runs, Some("skiff://main-0")).as_deref(), Some("main-0"));
        assert_eq!(found(&runs, Some("skiff://main-1")).as_deref(), Some("main-1"));
        runs.push(record(&pod, "main", 2, running(4)));
        assert_eq!(found(&runs, Some("skiff://main-1")).as_deref(), Some("main-1"));
    }
}
