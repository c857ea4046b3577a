//! Upstream's own groups (`k8s.io`, `kubernetes.io`) take reviewed definitions only; an annotation names the review.
//! Source: KEP-1111, `apiextensions-apiserver/pkg/apihelpers.GetAPIApprovalState`.

use serde_json::Value;

use crate::tree;

/// The annotation.
pub const ANNOTATION: &str = "api-approved.kubernetes.io";
/// The condition that tells whether it is there.
pub(super) const CONDITION: &str = "KubernetesAPIApprovalPolicyConformant";

/// What the annotation says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Approval {
    /// Nothing.
    Missing,
    /// Where the review is.
    Approved(String),
    /// That there was none, and why.
    Bypassed(String),
    /// Something else.
    Invalid,
}

impl Approval {
    /// Of a definition; `None` where none is needed.
    pub fn of(crd: &Value) -> Option<Self> {
        let group = tree::text(crd, &["spec", "group"]);
        let within = |owner: &str| group == owner || group.ends_with(&format!(".{owner}"));
        if !within("k8s.io") && !within("kubernetes.io") {
            return None;
        }
        let text = tree::text(crd, &["metadata", "annotations", ANNOTATION]);
        let has_host = |rest: &str| !rest.is_empty() && !rest.starts_with('/');
        Some(match text.split_once("://") {
            _ if text.is_empty() => Self::Missing,
            _ if text.starts_with("unapproved") => Self::Bypassed(text.to_owned()),
            Some((scheme, rest)) if !scheme.is_empty() && has_host(rest) => Self::Approved(text.to_owned()),
            _ => Self::Invalid,
        })
    }

    /// The sentence that upstream has for it.
    pub fn message(&self) -> String {
        let needs = format!("protected groups must have approval annotation {ANNOTATION:?}");
        let see = "see https://github.com/kubernetes/enhancements/pull/1111";
        match self {
            Self::Missing => format!("{needs}, {see}"),
            Self::Invalid => {
                format!("{needs} with either a URL or a reason starting with \"unapproved\", {see}")
            }
            Self::Approved(place) => format!("approved in {place}"),
            Self::Bypassed(why) => format!("not approved: {why:?}"),
        }
    }

    /// The condition's status and reason.
    pub(super) fn condition(&self) -> (bool, &'static str) {
        match self {
            Self::Missing => (false, "MissingAnnotation"),
            Self::Invalid => (false, "InvalidAnnotation"),
            Self::Approved(_) => (true, "ApprovedAnnotation"),
            Self::Bypassed(_) => (false, "UnapprovedAnnotation"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn upstreams_groups_name_their_review() {
        let of = |group: &str, text: &str| {
            Approval::of(
                &json!({ "spec": { "group": group }, "metadata": { "annotations": { ANNOTATION: text } } }),
            )
        };
        assert_eq!(of("example.com", ""), None);
        assert_eq!(of("notk8s.io", ""), None);
        assert_eq!(of("k8s.io", ""), Some(Approval::Missing));
        let bypassed = of("x.kubernetes.io", "unapproved, for tests").unwrap();
        assert_eq!(bypassed.message(), "not approved: \"unapproved, for tests\"");
        let approved = of("x.k8s.io", "https://github.com/x/1").unwrap();
        assert_eq!(
            (approved.condition(), approved.message().as_str()),
            ((true, "ApprovedAnnotation"), "approved in https://github.com/x/1")
        );
        for odd in ["yes", "https://", "https:///x", "://x"] {
            assert_eq!(of("x.k8s.io", odd), Some(Approval::Invalid), "{odd}");
        }
    }
}
