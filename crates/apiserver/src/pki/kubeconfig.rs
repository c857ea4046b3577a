//! The content of a kubeconfig: one cluster, one user, one context of the same name.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::Issued;

/// What a kubeconfig says.
#[derive(Debug, Clone)]
pub struct KubeconfigEntry<'a> {
    /// The name of cluster, user and context.
    pub name: &'a str,
    /// `https://address:port`.
    pub server: &'a str,
    /// The CA's certificate, PEM.
    pub ca_pem: &'a str,
}

/// A kubeconfig (as a JSON tree; YAML is a matter of writing) that authenticates with a client certificate.
pub fn kubeconfig(entry: &KubeconfigEntry<'_>, client: &Issued) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": entry.name,
            "cluster": {
                "server": entry.server,
                "certificate-authority-data": STANDARD.encode(entry.ca_pem),
            },
        }],
        "users": [{
            "name": entry.name,
            "user": {
                "client-certificate-data": STANDARD.encode(&client.cert_pem),
                "client-key-data": STANDARD.encode(&client.key_pem),
            },
        }],
        "contexts": [{ "name": entry.name, "context": { "cluster": entry.name, "user": entry.name } }],
        "current-context": entry.name,
    })
}
