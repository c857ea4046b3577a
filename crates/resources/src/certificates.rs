//! Certificate signing requests. Source: `pkg/apis/certificates/validation`.

use apiserver::field::{FieldError, FieldErrors};
use apiserver::strategy::Strategy;
use apiserver::tree;
use serde_json::Value;

/// The shortest life that can be asked for, in seconds.
const LIFE_MIN_SECONDS: i64 = 600;

/// Requests: what is asked never changes.
pub(crate) struct CertificateSigningRequests;

impl Strategy for CertificateSigningRequests {
    fn generation(&self) -> bool {
        false
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        tree::copy(old, new, "spec");
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        let spec = tree::at(object, &["spec"]);
        if tree::text(spec, &["request"]).is_empty() {
            errors.push(FieldError::required("spec.request", ""));
        }
        let signer = tree::text(spec, &["signerName"]);
        let qualified =
            signer.split_once('/').is_some_and(|(host, path)| host.contains('.') && !path.is_empty());
        if !qualified {
            let detail = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
            errors.push(FieldError::invalid("spec.signerName", &signer.into(), detail));
        }
        if tree::items(spec, &["usages"]).is_empty() {
            errors.push(FieldError::required("spec.usages", "usages must not be empty"));
        }
        let life = tree::at(spec, &["expirationSeconds"]);
        if life.as_i64().is_some_and(|seconds| seconds < LIFE_MIN_SECONDS) {
            errors.push(FieldError::invalid(
                "spec.expirationSeconds",
                life,
                "may not specify a duration less than 600 seconds (10 minutes)",
            ));
        }
    }
}
