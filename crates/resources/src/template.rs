//! Pod templates, wherever a workload has one. Source: `ValidatePodTemplateSpec`, `pkg/api/pod/warnings.go`.

use apiserver::field::FieldErrors;

use crate::at::At;
use crate::{pod_spec, pod_warnings};

/// What is wrong with a template.
pub(crate) fn validate(template: &At<'_>, errors: &mut FieldErrors) {
    let metadata = template.get("metadata");
    apiserver::names::check_labels(metadata.get("labels").value, &template.child("labels"), errors);
    let annotations = At::new(metadata.get("annotations").value, template.child("annotations"));
    for (key, _) in annotations.entries() {
        for detail in apiserver::names::qualified_name_problems(&key.to_lowercase()) {
            errors.push(apiserver::field::FieldError::invalid(
                annotations.path.clone(),
                &key.into(),
                &detail,
            ));
        }
    }
    let spec = template.get("spec");
    pod_spec::validate(&spec, errors);
    if !spec.get("ephemeralContainers").is_empty() {
        let detail = "ephemeral containers not allowed in pod template";
        errors.push(spec.get("ephemeralContainers").forbidden(detail));
    }
}

/// Pods that run on and on: they are restarted always and have no deadline. `kind` is the workload's.
pub(crate) fn always(template: &At<'_>, kind: &str, errors: &mut FieldErrors) {
    let spec = template.get("spec");
    spec.get("restartPolicy").one_of(&["Always"], errors);
    let deadline = spec.get("activeDeadlineSeconds");
    if deadline.is_set() {
        errors.push(deadline.forbidden(&format!("activeDeadlineSeconds in {kind} is not Supported")));
    }
}

/// What the writer of a template should know.
pub(crate) fn warnings(template: &At<'_>) -> Vec<String> {
    pod_warnings::warnings(&template.get("spec"), &template.get("metadata"))
}
