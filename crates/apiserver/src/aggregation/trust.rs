//! What extension API servers have to know to believe this one: ConfigMap
//! `kube-system/extension-apiserver-authentication`, kept as upstream has it. Several servers over one store add their
//! authorities to each other's. Source: `pkg/controlplane/controller/clusterauthenticationtrust`.

use std::sync::{Arc, Weak};
use std::time::Duration;

use api::{Call, GroupVersionResource, PatchType, Request, Status};
use base::backoff::Policy;
use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};

use crate::cache::Change;
use crate::pipeline::Pipeline;
use crate::pki::{FRONT_PROXY_NAME, Pki};
use crate::started::{Started, Step};
use crate::strategy::View;
use crate::tree;

const NAMESPACE: &str = "kube-system";
const NAME: &str = "extension-apiserver-authentication";
const CLIENTS: &str = "client-ca-file";
const FRONT_PROXIES: &str = "requestheader-client-ca-file";
const RETRY: Policy = Policy { first: Duration::from_millis(100), max: Duration::from_secs(30) };

/// The data that the ConfigMap should have; `present` is what it has. Pure.
fn data(present: &Value, clients: &str, front_proxies: &str, now: Timestamp) -> Value {
    json!({
        CLIENTS: joined(tree::text(present, &[CLIENTS]), clients, now),
        FRONT_PROXIES: joined(tree::text(present, &[FRONT_PROXIES]), front_proxies, now),
        "requestheader-allowed-names": json!([FRONT_PROXY_NAME]).to_string(),
        "requestheader-extra-headers-prefix": "[\"X-Remote-Extra-\"]",
        "requestheader-group-headers": "[\"X-Remote-Group\"]",
        "requestheader-uid-headers": "[\"X-Remote-Uid\"]",
        "requestheader-username-headers": "[\"X-Remote-User\"]",
    })
}

/// The certificates of both, in the order in which they came, each once, without those that have ended: several servers
/// that add their own agree on one text.
fn joined(present: &str, own: &str, now: Timestamp) -> String {
    let lives = |der: &CertificateDer<'_>| {
        x509_parser::parse_x509_certificate(der)
            .is_ok_and(|(_, parsed)| parsed.validity().not_after.timestamp() > now.as_second())
    };
    let mut known: Vec<CertificateDer<'_>> = Vec::new();
    let mut text = String::new();
    let blocks = [present, own].into_iter().flat_map(|pem| pem.split_inclusive("-----END CERTIFICATE-----"));
    for block in blocks {
        let Ok(der) = CertificateDer::from_pem_slice(block.as_bytes()) else { continue };
        if lives(&der) && !known.contains(&der) {
            text.push_str(block.trim_start());
            text.push('\n');
            known.push(der);
        }
    }
    text
}

/// Keeps the ConfigMap for as long as there is a pipeline.
pub(crate) async fn publish(pipeline: Weak<Pipeline>, pki: Arc<Pki>, started: Arc<Started>) {
    let Some(cache) = pipeline.upgrade().and_then(|pipeline| super::cache(&pipeline, "", "configmaps"))
    else {
        return;
    };
    cache.synced().await;
    let mut renewed = pki.ca_renewals();
    let mut failures = 0;
    let ours = |change: &Change| {
        let meta = change.new.meta();
        (meta.namespace.as_str(), meta.name.as_str()) == (NAMESPACE, NAME)
    };
    loop {
        renewed.mark_unchanged();
        let seen = cache.revision();
        let Some(strong) = pipeline.upgrade() else { return };
        let done = write(&strong, &pki).await;
        drop(strong);
        failures = if done.is_ok() { 0 } else { failures + 1 };
        match done {
            Ok(()) => started.done(Step::Trust),
            Err(error) => tracing::debug!(%error, "{NAMESPACE}/{NAME} was not written; trying again"),
        }
        tokio::select! {
            () = cache.happened(seen, ours) => {}
            changed = renewed.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY.delay(failures)), if failures > 0 => {}
        }
    }
}

async fn write(pipeline: &Pipeline, pki: &Pki) -> Result<(), Status> {
    let found = pipeline.peek("", "configmaps", NAMESPACE, NAME);
    let present: Option<Value> = found.and_then(|object| object.decode().ok());
    let before = present.as_ref().map_or(&Value::Null, |object| tree::at(object, &["data"]));
    let wanted = data(before, &pki.ca_pem(), &pki.front_proxy_ca_pem(), pipeline.now());
    // What others wrote beside it is theirs.
    if wanted.as_object().into_iter().flatten().all(|(name, value)| before.get(name) == Some(value)) {
        return Ok(());
    }
    let object = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": NAME, "namespace": NAMESPACE },
        "data": wanted,
    });
    let options = super::options();
    let (name, call) = match present {
        None => ("", Call::Create { body: object.to_string().into(), options }),
        Some(_) => {
            let body = json!({ "data": wanted }).to_string();
            (NAME, Call::Patch { kind: PatchType::Merge, body: body.into(), options })
        }
    };
    let request = Request {
        resource: GroupVersionResource::new("", "v1", "configmaps"),
        namespace: NAMESPACE.into(),
        name: name.into(),
        subresource: String::new(),
        call,
    };
    pipeline.call(&super::identity(), request).await.map(drop)
}

#[cfg(test)]
mod tests {
    use base::clock::SystemClock;

    use super::*;

    #[test]
    fn several_servers_keep_each_others_authorities() {
        let authority = || {
            let dir = tempfile::tempdir().unwrap();
            Pki::open(dir.path(), Arc::new(SystemClock), vec![], []).unwrap().front_proxy_ca_pem()
        };
        let (one, other) = (authority(), authority());
        let now = Timestamp::now();
        let alone = joined("", &one, now);
        assert_eq!(joined(&alone, &one, now), alone);
        let both = joined(&alone, &other, now);
        assert!(both.contains(other.trim()) && both.contains(one.trim()));
        assert_eq!(joined(&both, &other, now), both, "nothing is written for nothing");
        let late = now.saturating_add(jiff::SignedDuration::from_hours(24 * 365 * 20)).unwrap();
        assert_eq!(joined(&both, &one, now), both, "nor by the other of the two");
        assert_eq!(joined(&both, &other, late), "");
        let data = data(&Value::Null, "a", "b", now);
        assert_eq!(data["requestheader-allowed-names"], "[\"front-proxy-client\"]");
    }
}
