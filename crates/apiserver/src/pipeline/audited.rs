//! Requests of components in this process, audited as those over the network are.

use std::sync::Arc;

use api::connect::User;
use api::{Call, Request, Response, Status};
use futures::StreamExt;

use super::{Pipeline, attributes};
use crate::admission::Notes;
use crate::audit::{Auditor, Begin, Record, Subject, Target};

/// What components call themselves.
const AGENT: &str = concat!("skiff/", env!("CARGO_PKG_VERSION"));

impl Pipeline {
    pub(super) async fn call_audited(
        &self,
        auditor: &Arc<Auditor>,
        user: &User,
        request: Request,
    ) -> Result<Response, Status> {
        let Some(record) = begin(auditor, user, &request) else {
            self.authorize(&attributes(user, &request)).await?;
            return self.call_authorized(user, request, &Arc::default()).await;
        };
        record.received();
        if let Some(body) = body(&request.call) {
            record.request(body);
        }
        let notes = Arc::<Notes>::default();
        let answer = self.call_noted(user, request, &notes).await;
        record.annotate_all(notes.annotations());
        match answer {
            Ok(Response::Watch(stream)) => {
                record.answered(200, None);
                record.started();
                // The last event is made when the stream goes.
                Ok(Response::Watch(Box::pin(stream.inspect(move |_| {
                    let _ = &record;
                }))))
            }
            Ok(response) => {
                let created = matches!(response, Response::Object { created: true, .. });
                record.answered(if created { 201 } else { 200 }, None);
                record.responded(&response);
                record.complete();
                Ok(response)
            }
            Err(status) => {
                record.answered(status.code, Some(&status));
                record.complete();
                Err(status)
            }
        }
    }

    async fn call_noted(
        &self,
        user: &User,
        request: Request,
        notes: &Arc<Notes>,
    ) -> Result<Response, Status> {
        self.authorize_noted(&attributes(user, &request), notes).await?;
        self.call_authorized(user, request, notes).await
    }
}

fn begin(auditor: &Arc<Auditor>, user: &User, request: &Request) -> Option<Record> {
    let resource = &request.resource;
    let target = Target {
        group: &resource.group,
        version: &resource.version,
        resource: &resource.resource,
        subresource: &request.subresource,
        namespace: super::concerned([&resource.group, &resource.resource], &request.namespace, &request.name),
        name: &request.name,
    };
    let uri = uri(&target, &request.namespace, matches!(request.call, Call::Watch(_)));
    auditor.begin(Begin {
        subject: Subject {
            user: Some(user),
            verb: request.call.verb().as_str(),
            resource: Some(target),
            path: &uri,
        },
        audit_id: &base::id::uuid(),
        uri: &uri,
        user_agent: AGENT,
        source_ips: Vec::new(),
    })
}

/// The path by which clients over the network would ask.
fn uri(target: &Target<'_>, within: &str, watch: bool) -> String {
    let mut uri = if target.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", target.group) };
    let namespaces = if within.is_empty() { "" } else { "namespaces" };
    let rest = [target.version, namespaces, within, target.resource, target.name, target.subresource];
    for part in rest.into_iter().filter(|part| !part.is_empty()) {
        uri.push('/');
        uri.push_str(part);
    }
    if watch {
        uri.push_str("?watch=true");
    }
    uri
}

fn body(call: &Call) -> Option<&[u8]> {
    match call {
        Call::Create { body, .. } | Call::Update { body, .. } | Call::Patch { body, .. } => Some(body),
        _ => None,
    }
}
