//! What differs between a served version and the stored one. Sources: `pkg/apis/*/v*/conversion.go` and `defaults.go` of
//! the releases that had the versions.

use serde_json::{Value, json};

use super::{autoscaling, definitions, special};

/// What differs in one version of a kind, or in several that differ alike.
pub(super) struct Rule {
    pub(super) api_versions: &'static [&'static str],
    pub(super) kind: &'static str,
    /// Defaults that depend on other fields.
    pub(super) defaults: &'static [fn(&mut Value)],
    /// In the order of the way in; the way out takes them backwards.
    pub(super) steps: &'static [Step],
}

/// One difference. `at` is the path of the object that has it, as `each` reads it.
pub(super) enum Step {
    /// A field has two names.
    Rename { at: &'static str, old: &'static str, stored: &'static str },
    /// Fields of the old version stand in an object of their own in the stored one.
    Gather { at: &'static str, into: &'static str, fields: &'static [&'static str] },
    /// All fields but some stand in an object of their own in the old version.
    Scatter { at: &'static str, from: &'static str, stays: &'static [&'static str] },
    /// Only one version has a field; the other keeps it in an annotation.
    Keep(Kept),
    /// Anything else.
    Own { at: &'static str, to_stored: fn(&mut Value), from_stored: fn(&mut Value) },
}

/// A field that an annotation stands for.
pub(super) struct Kept {
    /// The version that has the field.
    pub(super) side: Side,
    pub(super) path: &'static str,
    pub(super) annotation: &'static str,
    pub(super) write: fn(&Value) -> Option<String>,
    pub(super) read: fn(&str) -> Option<Value>,
}

/// One of the two versions.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Old,
    Stored,
}

/// The rule of a version of a kind, given as `group/version`.
pub(super) fn of(api_version: &str, kind: &str) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.kind == kind && rule.api_versions.contains(&api_version))
}

const ROLLBACK: Step = Step::Keep(Kept {
    side: Side::Old,
    path: "spec.rollbackTo",
    annotation: "deprecated.deployment.rollback.to",
    write: |rollback| Some(rollback.get("revision").and_then(Value::as_i64).unwrap_or(0).to_string()),
    read: |text| Some(json!({ "revision": text.parse::<i64>().ok()? })),
});

const TEMPLATE_GENERATION: Step = Step::Keep(Kept {
    side: Side::Old,
    path: "spec.templateGeneration",
    annotation: "deprecated.daemonset.template.generation",
    write: |generation| Some(generation.as_i64()?.to_string()),
    read: |text| Some(json!(text.parse::<i64>().ok()?)),
});

/// How far a metric may be off, in an annotation of versions that do not know the field.
const fn tolerance(path: &'static str, annotation: &'static str) -> Step {
    Step::Keep(Kept {
        side: Side::Stored,
        path,
        annotation,
        write: |tolerance| tolerance.as_str().map(str::to_owned),
        read: |text| Some(json!(text)),
    })
}

/// The difference of an Ingress's backend.
const fn backend(at: &'static str) -> Step {
    Step::Own { at, to_stored: special::backend_to_stored, from_stored: special::backend_from_stored }
}

/// The fields that `v1beta1` has beside a request's alternatives.
const REQUEST: &[&str] = &[
    "adminAccess",
    "allocationMode",
    "capacity",
    "count",
    "derivedAttributes",
    "deviceClassName",
    "selectors",
    "tolerations",
];

const RULES: &[Rule] = &[
    Rule {
        api_versions: &["events.k8s.io/v1"],
        kind: "Event",
        defaults: &[],
        steps: &[
            Step::Rename { at: "", old: "regarding", stored: "involvedObject" },
            Step::Rename { at: "", old: "note", stored: "message" },
            Step::Rename { at: "", old: "reportingController", stored: "reportingComponent" },
            Step::Rename { at: "", old: "deprecatedSource", stored: "source" },
            Step::Rename { at: "", old: "deprecatedFirstTimestamp", stored: "firstTimestamp" },
            Step::Rename { at: "", old: "deprecatedLastTimestamp", stored: "lastTimestamp" },
            Step::Rename { at: "", old: "deprecatedCount", stored: "count" },
            Step::Own { at: "", to_stored: |_| {}, from_stored: special::unsigned },
        ],
    },
    Rule {
        api_versions: &["extensions/v1beta1", "apps/v1beta1"],
        kind: "Deployment",
        defaults: &[special::labels_and_selector, |object| special::rolling_update(object, "strategy", true)],
        steps: &[ROLLBACK],
    },
    Rule {
        api_versions: &["extensions/v1beta1"],
        kind: "DaemonSet",
        defaults: &[special::labels_and_selector, |object| {
            special::rolling_update(object, "updateStrategy", false)
        }],
        steps: &[TEMPLATE_GENERATION],
    },
    Rule {
        api_versions: &["extensions/v1beta1"],
        kind: "ReplicaSet",
        defaults: &[special::labels_and_selector],
        steps: &[],
    },
    Rule {
        api_versions: &["apps/v1beta1"],
        kind: "StatefulSet",
        defaults: &[special::labels_and_selector],
        steps: &[],
    },
    Rule {
        api_versions: &["extensions/v1beta1", "networking.k8s.io/v1beta1"],
        kind: "Ingress",
        defaults: &[],
        steps: &[
            Step::Rename { at: "spec", old: "backend", stored: "defaultBackend" },
            backend("spec.defaultBackend"),
            backend("spec.rules[].http.paths[].backend"),
        ],
    },
    Rule {
        api_versions: &["policy/v1beta1"],
        kind: "PodDisruptionBudget",
        defaults: &[],
        steps: &[Step::Own {
            at: "spec.selector",
            to_stored: special::budget_selector_to_stored,
            from_stored: special::budget_selector_from_stored,
        }],
    },
    Rule {
        api_versions: &["discovery.k8s.io/v1beta1"],
        kind: "EndpointSlice",
        defaults: &[],
        steps: &[Step::Own {
            at: "endpoints[]",
            to_stored: special::topology_to_stored,
            from_stored: special::topology_from_stored,
        }],
    },
    Rule {
        api_versions: &["autoscaling/v1"],
        kind: "HorizontalPodAutoscaler",
        defaults: &[],
        steps: &[Step::Own {
            at: "",
            to_stored: autoscaling::v1_to_stored,
            from_stored: autoscaling::v1_from_stored,
        }],
    },
    Rule {
        api_versions: &["autoscaling/v2beta1"],
        kind: "HorizontalPodAutoscaler",
        defaults: &[],
        steps: &[
            Step::Keep(Kept {
                side: Side::Stored,
                path: "spec.behavior",
                annotation: autoscaling::BEHAVIOR,
                write: |behavior| Some(behavior.to_string()),
                read: |text| serde_json::from_str(text).ok().filter(Value::is_object),
            }),
            Step::Own {
                at: "spec.metrics[]",
                to_stored: autoscaling::spec_to_stored,
                from_stored: autoscaling::spec_from_stored,
            },
            Step::Own {
                at: "status.currentMetrics[]",
                to_stored: autoscaling::status_to_stored,
                from_stored: autoscaling::status_from_stored,
            },
        ],
    },
    Rule {
        api_versions: &["autoscaling/v2beta2"],
        kind: "HorizontalPodAutoscaler",
        defaults: &[],
        steps: &[
            tolerance(
                "spec.behavior.scaleDown.tolerance",
                "autoscaling.alpha.kubernetes.io/scale-down-tolerance",
            ),
            tolerance(
                "spec.behavior.scaleUp.tolerance",
                "autoscaling.alpha.kubernetes.io/scale-up-tolerance",
            ),
        ],
    },
    Rule {
        api_versions: &["apiextensions.k8s.io/v1beta1"],
        kind: "CustomResourceDefinition",
        defaults: &[definitions::versions],
        steps: &[
            Step::Gather {
                at: "spec.conversion",
                into: "webhook",
                fields: &["clientConfig", "conversionReviewVersions", "webhookClientConfig"],
            },
            Step::Rename {
                at: "spec.conversion.webhook",
                old: "webhookClientConfig",
                stored: "clientConfig",
            },
            Step::Own {
                at: "spec",
                to_stored: definitions::to_stored,
                from_stored: definitions::from_stored,
            },
            Step::Rename {
                at: "spec.versions[].additionalPrinterColumns[]",
                old: "JSONPath",
                stored: "jsonPath",
            },
        ],
    },
    Rule {
        api_versions: &["resource.k8s.io/v1beta1"],
        kind: "ResourceClaim",
        defaults: &[],
        steps: &[Step::Gather { at: "spec.devices.requests[]", into: "exactly", fields: REQUEST }],
    },
    Rule {
        api_versions: &["resource.k8s.io/v1beta1"],
        kind: "ResourceClaimTemplate",
        defaults: &[],
        steps: &[Step::Gather { at: "spec.spec.devices.requests[]", into: "exactly", fields: REQUEST }],
    },
    Rule {
        api_versions: &["resource.k8s.io/v1beta1"],
        kind: "ResourceSlice",
        defaults: &[],
        steps: &[Step::Scatter { at: "spec.devices[]", from: "basic", stays: &["name"] }],
    },
];
