//! The OpenAPI documents of extension API servers: read beside the look at what they serve, each only if it has changed,
//! and merged into this server's own. Source: `kube-aggregator/pkg/controllers/openapi` and `openapiv3`.

use std::sync::Arc;

use serde_json::Value;

use super::{Remote, Remotes};
use crate::proxy::Outbound;
use crate::proxy::locate::Endpoint;
use crate::tree;

/// A document is at most this long.
const BYTES_MAX: usize = 8 << 20;
const JSON: &str = "application/json";

/// What an extension API server publishes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Documents {
    /// Version 2, whole.
    v2: Option<Read>,
    /// The index of version 3.
    v3: Option<Read>,
}

impl Documents {
    /// Versions 2 and 3, where there are any.
    pub(super) fn all(&self) -> [Option<&Arc<Value>>; 2] {
        [&self.v2, &self.v3].map(|read| read.as_ref().map(|read| &read.document))
    }
}

#[derive(Debug, Clone)]
struct Read {
    document: Arc<Value>,
    tag: Option<String>,
}

/// Reads both anew where they have changed; `before` is what was read last.
pub(super) async fn read(
    remote: &Remote,
    endpoint: &Endpoint,
    outbound: &Outbound,
    before: Documents,
) -> Documents {
    Documents {
        v2: one(remote, endpoint, outbound, "/openapi/v2", before.v2).await,
        v3: one(remote, endpoint, outbound, "/openapi/v3", before.v3).await,
    }
}

async fn one(
    remote: &Remote,
    endpoint: &Endpoint,
    outbound: &Outbound,
    path: &str,
    before: Option<Read>,
) -> Option<Read> {
    let tag = before.as_ref().and_then(|read| read.tag.clone());
    let (status, body, tag) =
        remote.ask(endpoint, outbound, (path, JSON, tag.as_deref()), BYTES_MAX).await.ok()?;
    if status == http::StatusCode::NOT_MODIFIED {
        return before;
    }
    let document: Value = serde_json::from_slice(&body).ok().filter(|_| status.is_success())?;
    // A server without tags says the same again and again.
    let same = before.filter(|before| *before.document == document).map(|before| before.document);
    Some(Read { document: same.unwrap_or_else(|| Arc::new(document)), tag })
}

/// Adds what extension API servers publish to the index of version 3.
pub(crate) fn into_index(index: &mut Value, remotes: &Remotes) {
    for remote in remotes.all().filter(|remote| remote.is_available()) {
        let Some(read) = remote.openapi().v3 else { continue };
        let path = remote.path().trim_start_matches('/').to_owned();
        let entry = tree::at(&read.document, &["paths", &path]);
        if entry.is_object() {
            tree::object(index, "paths").insert(path, entry.clone());
        }
    }
}

/// Adds what extension API servers publish to the document of version 2. Of a definition that both have, this server's
/// own stays.
pub(crate) fn into_document(document: &mut Value, remotes: &Remotes) {
    for remote in remotes.all().filter(|remote| remote.is_available()) {
        let Some(read) = remote.openapi().v2 else { continue };
        let prefix = format!("{}/", remote.path());
        merge(document, &read.document, &prefix);
    }
}

fn merge(document: &mut Value, other: &Value, prefix: &str) {
    let members = |field: &str| other.get(field).and_then(Value::as_object).into_iter().flatten();
    let paths = tree::object(document, "paths");
    let under = |path: &str| {
        path.starts_with(prefix) || path.strip_suffix('/').unwrap_or(path) == prefix.trim_end_matches('/')
    };
    for (path, item) in members("paths").filter(|(path, _)| under(path)) {
        paths.insert(path.clone(), item.clone());
    }
    for kind in ["definitions", "parameters"] {
        let own = tree::object(document, kind);
        for (name, definition) in members(kind) {
            own.entry(name.clone()).or_insert_with(|| definition.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_the_paths_of_its_group_version_are_taken() {
        let mut own = json!({ "paths": { "/api/v1/pods": 1 }, "definitions": { "Meta": 1 } });
        let other = json!({
            "paths": { "/apis/a/v1/": 2, "/apis/a/v1/x": 2, "/apis/a/v1beta1/x": 2, "/healthz": 2, "/api/v1/pods": 2 },
            "definitions": { "Meta": 2, "Flunder": 2 }, "parameters": { "limit-1": 2 },
        });
        merge(&mut own, &other, "/apis/a/v1/");
        assert_eq!(own["paths"], json!({ "/api/v1/pods": 1, "/apis/a/v1/": 2, "/apis/a/v1/x": 2 }));
        assert_eq!(own["definitions"], json!({ "Meta": 1, "Flunder": 2 }));
        assert_eq!(own["parameters"], json!({ "limit-1": 2 }));
        merge(&mut own, &json!(7), "/apis/a/v1/");
    }
}
