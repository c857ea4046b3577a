//! What ClusterTrustBundles become in a file: the certificates of all that are meant, each once, and nothing else.
//! Source: `pkg/kubelet/clustertrustbundle`, KEP-3257.

use std::collections::{BTreeMap, BTreeSet};

use api::ObjectMeta;
use api::selectors::{LabelSelector, LabelSelectorSpec};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::ClusterTrustBundleProjection;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Deserialize;

/// Letters in a line of PEM. Source: RFC 7468.
const LINE: usize = 64;

/// A projection of `certificates.k8s.io/v1.ClusterTrustBundle`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Bundle {
    metadata: ObjectMeta,
    spec: BundleSpec,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct BundleSpec {
    signer_name: String,
    trust_bundle: String,
}

/// The text of the file that a projection asks for. Pure.
pub(crate) fn anchors(bundles: &[Bundle], asked: &ClusterTrustBundleProjection) -> Result<String, String> {
    let optional = asked.optional == Some(true);
    let meant: Vec<&Bundle> = match (&asked.name, &asked.signer_name) {
        (Some(name), _) => {
            let found: Vec<_> = bundles.iter().filter(|bundle| bundle.metadata.name == *name).collect();
            if found.is_empty() && !optional {
                return Err(format!(
                    "while getting ClusterTrustBundle: clustertrustbundle.certificates.k8s.io \"{name}\" not found"
                ));
            }
            found
        }
        (None, Some(signer)) => {
            let selects = selector(asked)?;
            let of_signer = bundles.iter().filter(|bundle| bundle.spec.signer_name == *signer);
            let found: Vec<_> = of_signer.filter(|bundle| selects(&bundle.metadata.labels)).collect();
            if found.is_empty() && !optional {
                return Err(
                    "combination of signerName and labelSelector matched zero ClusterTrustBundles".to_owned()
                );
            }
            found
        }
        (None, None) => return Err("a clusterTrustBundle source needs a name or a signerName".to_owned()),
    };
    Ok(unified(&meant))
}

/// Without a selector nothing is selected, with an empty one everything.
fn selector(
    asked: &ClusterTrustBundleProjection,
) -> Result<impl Fn(&BTreeMap<String, String>) -> bool, String> {
    let selector = match &asked.label_selector {
        None => None,
        Some(spec) => {
            let unusable = |error: serde_json::Error| format!("labelSelector: {error}");
            let spec = serde_json::to_value(spec).and_then(serde_json::from_value::<LabelSelectorSpec>);
            Some(LabelSelector::from_spec(&spec.map_err(unusable)?)?)
        }
    };
    Ok(move |labels: &BTreeMap<String, String>| selector.as_ref().is_some_and(|own| own.matches(labels)))
}

/// Every certificate once, in an order that does not change with that of the bundles. What stands between certificates is
/// left out.
fn unified(bundles: &[&Bundle]) -> String {
    let texts = bundles.iter().map(|bundle| bundle.spec.trust_bundle.as_bytes());
    // The API server has refused what cannot be read.
    let certificates: BTreeSet<Vec<u8>> =
        texts.flat_map(CertificateDer::pem_slice_iter).flatten().map(|found| found.to_vec()).collect();
    certificates.iter().map(|certificate| pem(certificate)).collect()
}

fn pem(certificate: &[u8]) -> String {
    let mut text = "-----BEGIN CERTIFICATE-----\n".to_owned();
    let letters = STANDARD.encode(certificate);
    let mut rest = letters.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(LINE));
        text.push_str(line);
        text.push('\n');
        rest = more;
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn bundle(name: &str, signer: &str, label: &str, certificates: &[&[u8]]) -> Bundle {
        let text: String = certificates.iter().map(|one| format!("a comment\n{}", pem(one))).collect();
        serde_json::from_value(json!({ "metadata": { "name": name, "labels": { "env": label } },
            "spec": { "signerName": signer, "trustBundle": text } }))
        .unwrap()
    }

    fn ask(asked: serde_json::Value) -> Result<String, String> {
        let bundles = [
            bundle("plain", "", "", &[b"b", b"a"]),
            bundle("live", "x.example/s", "live", &[b"c", b"d"]),
            bundle("test", "x.example/s", "test", &[b"d", &[7; 100]]),
        ];
        let mut asked = asked;
        asked["path"] = "ca.pem".into();
        anchors(&bundles, &serde_json::from_value(asked).unwrap())
    }

    fn of(certificates: &[&[u8]]) -> Result<String, String> {
        Ok(certificates.iter().map(|one| pem(one)).collect())
    }

    #[test]
    fn bundles_are_found_by_name_or_by_signer_and_unified() {
        assert_eq!(ask(json!({ "name": "plain" })), of(&[b"a", b"b"]));
        let signer = "x.example/s";
        let all = of(&[&[7; 100], b"c", b"d"]);
        assert_eq!(ask(json!({ "signerName": signer, "labelSelector": {} })), all);
        let live = json!({ "matchExpressions": [{ "key": "env", "operator": "NotIn", "values": ["test"] }] });
        assert_eq!(ask(json!({ "signerName": signer, "labelSelector": live })), of(&[b"c", b"d"]));
        let lines = ask(json!({ "signerName": signer, "labelSelector": {} })).unwrap();
        assert!(lines.lines().all(|line| line.len() <= LINE) && !lines.contains("comment"), "{lines}");
    }

    #[test]
    fn what_is_missing_is_waited_for_unless_it_is_optional() {
        let missing = "clustertrustbundle.certificates.k8s.io \"none\" not found";
        assert!(ask(json!({ "name": "none" })).unwrap_err().ends_with(missing));
        assert_eq!(ask(json!({ "name": "none", "optional": true })), of(&[]));
        let nothing = json!({ "signerName": "x.example/s" });
        assert!(ask(nothing.clone()).unwrap_err().contains("matched zero"), "no selector selects nothing");
        let mut optional = nothing;
        optional["optional"] = true.into();
        assert_eq!(ask(optional), of(&[]));
        assert!(ask(json!({})).is_err());
    }
}
