//! `GET /events`: what happens to containers, as it happens.

use engine_api::{ContainerEvent, ContainerEventKind};
use futures::StreamExt;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::answer::{Answer, documents};
use crate::server::Call;

pub(crate) async fn stream(call: &Call) -> Answer {
    let filters = call.query.filters()?;
    let wanted = filters.get("type").cloned().unwrap_or_default();
    let containers = wanted.is_empty() || wanted.iter().any(|kind| kind == "container");
    // Nothing of the past is kept, so a time that has passed ends the stream at once.
    let until = call.query.text("until").split('.').next().and_then(|text| text.parse::<i64>().ok());
    if until.is_some_and(|until| until <= Timestamp::now().as_second()) {
        return Ok(documents(futures::stream::empty()));
    }
    let events = call.shared.runtime.events().await;
    let shown = events.filter_map(move |event| {
        // What was lost cannot be told; the stream goes on with what comes.
        std::future::ready(event.ok().filter(|_| containers).and_then(|event| document(&event)))
    });
    Ok(documents(shown))
}

fn document(event: &ContainerEvent) -> Option<Value> {
    let (action, mut attributes) = match &event.kind {
        ContainerEventKind::Created => ("create", json!({})),
        ContainerEventKind::Started => ("start", json!({})),
        ContainerEventKind::Exited(exit) => ("die", json!({ "exitCode": exit.code.to_string() })),
        ContainerEventKind::Removed => ("destroy", json!({})),
        ContainerEventKind::SandboxDied | ContainerEventKind::Warning(_) => return None,
    };
    if event.container_id.is_empty() {
        return None;
    }
    attributes["name"] = json!(event.container_id);
    let now = Timestamp::now();
    Some(json!({
        "status": action,
        "id": event.container_id,
        "Type": "container",
        "Action": action,
        "Actor": { "ID": event.container_id, "Attributes": attributes },
        "scope": "local",
        "time": now.as_second(),
        "timeNano": i64::try_from(now.as_nanosecond()).unwrap_or(i64::MAX),
    }))
}
