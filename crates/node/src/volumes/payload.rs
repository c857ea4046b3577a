//! What the files of configMap, secret, downwardAPI and projected volumes are to hold: pure functions from API objects.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    ClusterTrustBundleProjection, DownwardAPIVolumeFile, KeyToPath, PodCertificateProjection,
    ServiceAccountTokenProjection, VolumeProjection,
};

use crate::certificates::Credential;
use crate::pod::PodView;
use crate::pod::fields::{FieldContext, field, resource_field};

/// Modes of files unless said otherwise. Source: the API's `defaultMode`.
pub(crate) const DEFAULT_MODE: i32 = 0o644;

/// One file.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) data: Vec<u8>,
    pub(crate) mode: u32,
    /// Its owner, where not root.
    pub(crate) uid: Option<u32>,
}

/// Files by their relative paths.
pub(crate) type Payload = BTreeMap<String, File>;

/// A ConfigMap or Secret as volumes read it.
pub(crate) type Data = BTreeMap<String, Vec<u8>>;

/// Where payloads get their objects from.
pub(crate) trait Objects: Send + Sync {
    /// The data of a ConfigMap of the pod's namespace; `None`: there is none of that name.
    fn config_map(&self, name: &str) -> Option<Data>;
    /// The data of a Secret.
    fn secret(&self, name: &str) -> Option<Data>;
    /// The token that was last issued for a projection.
    fn token(&self, projection: &ServiceAccountTokenProjection) -> Option<Vec<u8>>;
    /// The key and the certificates that were last issued for a projection.
    fn credential(&self, projection: &PodCertificateProjection) -> Option<Credential>;
    /// The certificates that a projection of ClusterTrustBundles means, as text.
    fn trust_anchors(&self, projection: &ClusterTrustBundleProjection) -> Result<String, String>;
}

/// Who reads the files: decides owner and mode of tokens.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Readers {
    /// The uid that every container runs as, if it is one.
    pub(crate) uid: Option<u32>,
    /// The pod's `fsGroup`.
    pub(crate) gid: Option<u32>,
}

impl Readers {
    /// A file for those who run the pod only, where it says who they are. Source: upstream's projected volume plugin.
    fn file(self, data: Vec<u8>, default_mode: Option<i32>) -> File {
        let restricted = self.uid.is_some() || self.gid.is_some();
        let mode = if restricted { 0o600 } else { mode(None, default_mode) };
        File { data, mode, uid: self.uid }
    }
}

fn mode(own: Option<i32>, default: Option<i32>) -> u32 {
    u32::try_from(own.or(default).unwrap_or(DEFAULT_MODE)).unwrap_or(0o644) & 0o777
}

/// Whose data it is, for messages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source<'a> {
    /// `configmap` or `secret`.
    pub(crate) kind: &'static str,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) optional: bool,
}

/// Adds the keys of a ConfigMap or Secret.
pub(crate) fn add_keys(
    payload: &mut Payload,
    source: Source<'_>,
    data: Option<Data>,
    items: &[KeyToPath],
    default_mode: Option<i32>,
) -> Result<(), String> {
    let Some(mut data) = data else {
        return if source.optional {
            Ok(())
        } else {
            Err(format!("{} \"{}\" not found", source.kind, source.name))
        };
    };
    if items.is_empty() {
        for (key, data) in data {
            payload.insert(key, File { data, mode: mode(None, default_mode), uid: None });
        }
        return Ok(());
    }
    for item in items {
        match data.get_mut(&item.key) {
            Some(data) => {
                let file = File { data: data.clone(), mode: mode(item.mode, default_mode), uid: None };
                payload.insert(item.path.clone(), file);
            }
            None if source.optional => {}
            None => {
                let Source { kind, namespace, name, .. } = source;
                return Err(format!("{kind} {namespace}/{name} references non-existent key: {}", item.key));
            }
        }
    }
    Ok(())
}

/// Adds fields of the pod.
pub(crate) fn add_fields(
    payload: &mut Payload,
    pod: &PodView,
    context: &FieldContext,
    files: &[DownwardAPIVolumeFile],
    default_mode: Option<i32>,
) -> Result<(), String> {
    for file in files {
        let value = match (&file.field_ref, &file.resource_field_ref) {
            (Some(selector), _) => field(pod, context, &selector.field_path)?,
            (None, Some(selector)) => resource_field(pod, context, None, selector)?,
            (None, None) => String::new(),
        };
        let entry = File { data: value.into_bytes(), mode: mode(file.mode, default_mode), uid: None };
        payload.insert(file.path.clone(), entry);
    }
    Ok(())
}

/// The files that show a key and its certificates: both in one, or each in its own.
fn certificate_files(
    projection: &PodCertificateProjection,
    Credential { key, chain }: Credential,
) -> impl Iterator<Item = (String, String)> {
    let bundle = format!("{key}{chain}");
    let files = [
        (projection.credential_bundle_path.clone(), bundle),
        (projection.key_path.clone(), key),
        (projection.certificate_chain_path.clone(), chain),
    ];
    files.into_iter().filter_map(|(path, data)| Some((path.filter(|path| !path.is_empty())?, data)))
}

/// The files of a projected volume.
pub(crate) fn projected(
    pod: &PodView,
    context: &FieldContext,
    objects: &dyn Objects,
    sources: &[VolumeProjection],
    default_mode: Option<i32>,
    readers: Readers,
) -> Result<Payload, String> {
    let namespace = pod.metadata.namespace.as_str();
    let mut payload = Payload::new();
    for source in sources {
        if let Some(secret) = &source.secret {
            let from = Source {
                kind: "secret",
                namespace,
                name: &secret.name,
                optional: secret.optional == Some(true),
            };
            let items = secret.items.as_deref().unwrap_or_default();
            add_keys(&mut payload, from, objects.secret(&secret.name), items, default_mode)?;
        } else if let Some(map) = &source.config_map {
            let from = Source {
                kind: "configmap",
                namespace,
                name: &map.name,
                optional: map.optional == Some(true),
            };
            let items = map.items.as_deref().unwrap_or_default();
            add_keys(&mut payload, from, objects.config_map(&map.name), items, default_mode)?;
        } else if let Some(downward) = &source.downward_api {
            let items = downward.items.as_deref().unwrap_or_default();
            add_fields(&mut payload, pod, context, items, default_mode)?;
        } else if let Some(token) = &source.service_account_token {
            let data = objects.token(token).ok_or("the service account token has not been issued yet")?;
            payload.insert(token.path.clone(), readers.file(data, default_mode));
        } else if let Some(bundle) = &source.cluster_trust_bundle {
            let data = objects.trust_anchors(bundle)?.into_bytes();
            payload.insert(bundle.path.clone(), readers.file(data, default_mode));
        } else if let Some(certificate) = &source.pod_certificate {
            let credential =
                objects.credential(certificate).ok_or("the pod's certificate has not been issued yet")?;
            for (path, data) in certificate_files(certificate, credential) {
                payload.insert(path, readers.file(data.into_bytes(), default_mode));
            }
        } else {
            return Err("a projected source is of a kind that this node does not know".to_owned());
        }
    }
    Ok(payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod;

    struct Known;

    impl Objects for Known {
        fn config_map(&self, name: &str) -> Option<Data> {
            (name == "cm").then(|| BTreeMap::from([("ca.crt".to_owned(), b"CA".to_vec())]))
        }
        fn secret(&self, _: &str) -> Option<Data> {
            None
        }
        fn token(&self, _: &ServiceAccountTokenProjection) -> Option<Vec<u8>> {
            Some(b"tok".to_vec())
        }
        fn credential(&self, projection: &PodCertificateProjection) -> Option<Credential> {
            let issued = projection.signer_name == "x.example/s";
            issued.then(|| Credential { key: "KEY\n".to_owned(), chain: "CHAIN\n".to_owned() })
        }
        fn trust_anchors(&self, asked: &ClusterTrustBundleProjection) -> Result<String, String> {
            Ok(format!("anchors of {}", asked.name.as_deref().unwrap_or_default()))
        }
    }

    fn service_account(readers: Readers) -> Payload {
        let pod = pod(serde_json::json!({"containers": []}));
        let sources: Vec<VolumeProjection> = serde_json::from_value(serde_json::json!([
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
            {"configMap": {"name": "cm", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
            {"clusterTrustBundle": {"name": "ctb", "path": "trust.pem"}},
        ]))
        .unwrap();
        projected(&pod, &FieldContext::default(), &Known, &sources, Some(0o644), readers).unwrap()
    }

    #[test]
    fn a_service_account_volume_has_its_files() {
        let files = service_account(Readers::default());
        assert_eq!(files.keys().collect::<Vec<_>>(), ["ca.crt", "namespace", "token", "trust.pem"]);
        assert_eq!((files["token"].data.as_slice(), files["token"].mode), (b"tok".as_slice(), 0o644));
        assert_eq!(files["namespace"].data, b"default");
        assert_eq!(files["trust.pem"].data, b"anchors of ctb");
        let own = service_account(Readers { uid: Some(1000), gid: None });
        assert_eq!((own["token"].mode, own["token"].uid), (0o600, Some(1000)));
    }

    #[test]
    fn a_certificate_is_shown_with_its_key_or_beside_it() {
        let pod = pod(serde_json::json!({"containers": []}));
        let certificate = serde_json::json!({"signerName": "x.example/s", "keyType": "ED25519",
            "credentialBundlePath": "all.pem", "keyPath": "key.pem", "certificateChainPath": "chain.pem"});
        let sources: Vec<VolumeProjection> =
            serde_json::from_value(serde_json::json!([{ "podCertificate": certificate }])).unwrap();
        let readers = Readers { uid: Some(1000), gid: None };
        let files = projected(&pod, &FieldContext::default(), &Known, &sources, None, readers).unwrap();
        let shown = files.iter().map(|(path, file)| (path.as_str(), file.data.as_slice(), file.mode));
        let wanted: [(&str, &[u8], u32); 3] = [
            ("all.pem", b"KEY\nCHAIN\n", 0o600),
            ("chain.pem", b"CHAIN\n", 0o600),
            ("key.pem", b"KEY\n", 0o600),
        ];
        assert_eq!(shown.collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn what_no_source_gives_is_named() {
        let pod = pod(serde_json::json!({"containers": []}));
        let asked = |source: serde_json::Value| {
            let sources: Vec<VolumeProjection> = serde_json::from_value(serde_json::json!([source])).unwrap();
            let none = FieldContext::default();
            projected(&pod, &none, &Known, &sources, None, Readers::default()).err().unwrap_or_default()
        };
        let certificate =
            serde_json::json!({"podCertificate": {"signerName": "x.example/slow", "keyType": "ED25519"}});
        assert_eq!(asked(certificate), "the pod's certificate has not been issued yet");
        assert!(asked(serde_json::json!({})).contains("does not know"));
    }

    #[test]
    fn items_choose_and_missing_things_are_named() {
        let from = |name, optional| Source { kind: "configmap", namespace: "ns", name, optional };
        let data =
            || Some(BTreeMap::from([("a".to_owned(), b"1".to_vec()), ("b".to_owned(), b"2".to_vec())]));
        let item = |key: &str| KeyToPath {
            key: key.to_owned(),
            path: "x/y".to_owned(),
            mode: Some(0o400),
            ..KeyToPath::default()
        };
        let mut payload = Payload::new();
        add_keys(&mut payload, from("cm", false), data(), &[item("a")], None).unwrap();
        assert_eq!(payload.keys().collect::<Vec<_>>(), ["x/y"]);
        assert_eq!(payload["x/y"].mode, 0o400);
        let missing_key = add_keys(&mut payload, from("cm", false), data(), &[item("z")], None);
        assert_eq!(missing_key.unwrap_err(), "configmap ns/cm references non-existent key: z");
        let missing = add_keys(&mut payload, from("no", false), None, &[], None);
        assert_eq!(missing.unwrap_err(), "configmap \"no\" not found");
        assert!(add_keys(&mut payload, from("no", true), None, &[], None).is_ok());
    }
}
