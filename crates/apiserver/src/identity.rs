//! The Lease in `kube-system` by which clients see that this server is there, and the end of those of servers that are
//! gone. It is written every ten seconds, as a node's is. Source: KEP-1965, `controlplane/apiserver/server.go`,
//! `pkg/controlplane/controller/apiserverleasegc`, `apiserver/pkg/server/config.go`.

use std::sync::Arc;
use std::time::Duration;

use api::{
    Call, DeleteOptions, GroupVersionResource, ListOptions, Object, PatchType, Reason, Request, Response,
    Status, WriteOptions,
};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::time::MissedTickBehavior;

use crate::bootstrap::administrator;
use crate::names::label_value_problems;
use crate::pipeline::Pipeline;

const NAMESPACE: &str = "kube-system";
/// By which the leases of servers are told from others. Source: `IdentityLeaseComponentLabelKey`.
const LABEL: &str = "apiserver.kubernetes.io/identity";
const COMPONENT: &str = "kube-apiserver";
const HOST_LABEL: &str = "kubernetes.io/hostname";
/// How long a server that says nothing counts as one that is there. Source: `IdentityLeaseDurationSeconds`.
const LIFE_SECONDS: i64 = 3600;
/// How often a server says that it is there. Source: `IdentityLeaseRenewIntervalPeriod`.
const RENEWAL: Duration = Duration::from_secs(10);
/// How often it is looked for servers that are gone. Source: `IdentityLeaseGCPeriod`.
const COLLECTION: Duration = Duration::from_secs(3600);
const MANAGER: &str = "apiserver";

/// Keeps this server's lease, and deletes those that nobody keeps.
pub(crate) async fn keep(pipeline: Arc<Pipeline>) {
    let own = Own::new(&hostname().await);
    let mut renewals = tokio::time::interval(RENEWAL);
    let mut collections = tokio::time::interval(COLLECTION);
    for timer in [&mut renewals, &mut collections] {
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    loop {
        let (what, done) = tokio::select! {
            _ = renewals.tick() => ("say that it is there", own.renew(&pipeline, Timestamp::now()).await),
            _ = collections.tick() => ("delete leases of others", collect(&pipeline, Timestamp::now()).await),
        };
        if let Err(error) = done {
            tracing::warn!(lease = own.name, %error, "the server cannot {what}; tried again when it is time");
        }
    }
}

async fn hostname() -> String {
    // A host without a name is one as well.
    tokio::fs::read_to_string("/proc/sys/kernel/hostname").await.unwrap_or_default().trim().to_owned()
}

/// This server's lease.
struct Own {
    name: String,
    host: String,
    /// Another one for each start.
    holder: String,
}

impl Own {
    fn new(host: &str) -> Self {
        let name = name_of(host);
        Self { holder: format!("{name}_{}", base::id::uuid()), host: host.to_owned(), name }
    }

    /// A host may have a name that no label has.
    fn labels(&self) -> Value {
        let mut labels = json!({ LABEL: COMPONENT });
        if label_value_problems(&self.host).is_empty() {
            labels[HOST_LABEL] = self.host.as_str().into();
        }
        labels
    }

    /// The lease as it is made. One that is there keeps its holder: upstream's does.
    fn lease(&self, now: &str) -> Value {
        json!({
            "metadata": { "name": self.name, "labels": self.labels() },
            "spec": { "holderIdentity": self.holder, "leaseDurationSeconds": LIFE_SECONDS, "renewTime": now },
        })
    }

    async fn renew(&self, pipeline: &Pipeline, now: Timestamp) -> Result<(), Status> {
        let now = micro_time(now);
        let renewed = json!({ "metadata": { "labels": self.labels() }, "spec": { "renewTime": now } });
        let patch = Call::Patch { kind: PatchType::Merge, body: bytes(&renewed)?, options: options() };
        match call(pipeline, &self.name, patch).await {
            Err(status) if status.reason == Reason::NotFound => {
                let create = Call::Create { body: bytes(&self.lease(&now))?, options: options() };
                call(pipeline, "", create).await.map(drop)
            }
            renewed => renewed.map(drop),
        }
    }
}

/// The name under which upstream's server on this host is known.
fn name_of(host: &str) -> String {
    let mut hash = Sha256::new();
    for part in [host, COMPONENT] {
        // A host's name is at most 64 bytes long.
        hash.update(u16::try_from(part.len()).unwrap_or(u16::MAX).to_be_bytes());
        hash.update(part);
    }
    let digest = hash.finalize();
    format!("apiserver-{}", base32(digest.get(..16).unwrap_or_default()))
}

/// RFC 4648 in small letters, without padding.
fn base32(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let bit = |at: usize| bytes.get(at / 8).map_or(0, |byte| usize::from(byte >> (7 - at % 8) & 1));
    let letter = |from: usize| (from..from + 5).fold(0, |held, at| held << 1 | bit(at));
    (0..bytes.len() * 8).step_by(5).map(|from| char::from(LETTERS[letter(from)])).collect()
}

/// `MicroTime`.
fn micro_time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// Deletes the leases of servers that have said nothing for too long.
async fn collect(pipeline: &Pipeline, now: Timestamp) -> Result<(), Status> {
    let ours = ListOptions { label_selector: format!("{LABEL}={COMPONENT}"), ..ListOptions::default() };
    let Response::List(list) = call(pipeline, "", Call::List(ours)).await? else {
        return Err(Status::internal("a list was answered with something else"));
    };
    for lease in list.items.iter().filter(|lease| has_ended(lease, now)) {
        let meta = lease.meta();
        // One that was renewed meanwhile is left alone.
        let options = DeleteOptions {
            precondition_uid: Some(meta.uid.clone()),
            precondition_resource_version: Some(meta.resource_version.clone()),
            ..DeleteOptions::default()
        };
        match call(pipeline, &meta.name, Call::Delete(options)).await {
            Err(status) if !matches!(status.reason, Reason::NotFound | Reason::Conflict) => {
                return Err(status);
            }
            _ => tracing::debug!(lease = meta.name, "the lease of a server that is gone"),
        }
    }
    Ok(())
}

/// Whether the server of a lease has said nothing for too long; one that never said when counts so. Pure.
/// Source: `isLeaseExpired`.
fn has_ended(lease: &Object, now: Timestamp) -> bool {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Lease {
        spec: Spec,
    }
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Spec {
        lease_duration_seconds: Option<i32>,
        renew_time: Option<Timestamp>,
    }
    let spec = lease.decode::<Lease>().unwrap_or_default().spec;
    let (Some(life), Some(renewed)) = (spec.lease_duration_seconds, spec.renew_time) else { return true };
    now.duration_since(renewed).as_secs() > i64::from(life)
}

fn bytes(object: &Value) -> Result<bytes::Bytes, Status> {
    let written = serde_json::to_vec(object).map_err(|error| Status::internal(error.to_string()))?;
    Ok(written.into())
}

fn options() -> WriteOptions {
    WriteOptions { field_manager: MANAGER.into(), ..WriteOptions::default() }
}

async fn call(pipeline: &Pipeline, name: &str, call: Call) -> Result<Response, Status> {
    let request = Request {
        resource: GroupVersionResource::new("coordination.k8s.io", "v1", "leases"),
        namespace: NAMESPACE.to_owned(),
        name: name.to_owned(),
        subresource: String::new(),
        call,
    };
    pipeline.call(&administrator(), request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_have_the_names_that_upstreams_have() {
        assert_eq!(name_of("host"), "apiserver-dd6egxogzxmivwqge6rcnj6rwi");
        assert_eq!(name_of("node-1"), "apiserver-lgabes5ywnaqeagh5dny4zlzs4");
        assert_eq!(
            (base32(b""), base32(b"f"), base32(b"foobar")),
            (String::new(), "my".into(), "mzxw6ytboi".into())
        );
    }

    #[test]
    fn a_host_whose_name_no_label_has_is_not_named_by_one() {
        assert_eq!(Own::new("node-1").labels()[HOST_LABEL], "node-1");
        assert_eq!(Own::new(&"a".repeat(64)).labels(), json!({ LABEL: COMPONENT }));
    }

    #[test]
    fn who_has_said_nothing_for_too_long_is_gone() {
        let ended = |spec: Value, after: i64| {
            let lease = json!({ "metadata": { "name": "l" }, "spec": spec });
            let lease = Object::parse(lease.to_string().into()).unwrap();
            has_ended(&lease, Timestamp::from_second(after).unwrap())
        };
        let spec = json!({ "leaseDurationSeconds": 60, "renewTime": "1970-01-01T00:00:10.000000Z" });
        assert_eq!((ended(spec.clone(), 70), ended(spec, 71)), (false, true));
        assert!(ended(json!({ "leaseDurationSeconds": 60 }), 0));
        assert!(ended(json!({ "renewTime": "1970-01-01T00:00:10.000000Z" }), 0));
    }
}
