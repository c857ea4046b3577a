//! References to fields of the pod and to resources of its containers: the downward API.
//! Source: `validateObjectFieldSelector`, `validateContainerResourceFieldSelector`.

use apiserver::field::FieldErrors;
use apiserver::names::qualified_name_problems;
use serde_json::json;

use crate::at::At;

/// What environment variables may refer to.
pub(crate) const OF_ENVIRONMENT: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// What files may refer to.
pub(crate) const OF_VOLUMES: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
/// Labels that a pod's fields have beyond those that may be referred to here.
const CONVERTIBLE: [&str; 16] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.serviceAccountName",
    "spec.schedulerName",
    "spec.hostNetwork",
    "spec.host",
    "status.phase",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const RESOURCES: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
const DIVISORS: [&str; 13] =
    ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

/// A field of the pod: one of `known`, or an annotation or a label by its key.
pub(crate) fn validate(reference: &At<'_>, known: &[&str], errors: &mut FieldErrors) {
    let path = reference.get("fieldPath");
    if !path.present("", errors) {
        return;
    }
    let text = path.text();
    let subscripted = text.strip_suffix("']").and_then(|text| text.split_once("['"));
    let (base, subscript) = subscripted.map_or((text, None), |(base, key)| (base, Some(key)));
    if !CONVERTIBLE.contains(&base) {
        let detail = format!("error converting fieldPath: field label not supported: {text}");
        errors.push(path.invalid(&detail));
        return;
    }
    let whole =
        |value: &str| At::new(&json!(value), reference.path.clone()).invalid("does not support subscript");
    match (base, subscript) {
        ("metadata.annotations", Some(key)) => qualified(&key.to_lowercase(), reference, errors),
        ("metadata.labels", Some(key)) => qualified(key, reference, errors),
        (base, Some(_)) => errors.push(whole(base)),
        (base, None) if !known.contains(&base) => errors.push(path.not_supported(known)),
        _ => {}
    }
}

fn qualified(key: &str, reference: &At<'_>, errors: &mut FieldErrors) {
    for detail in qualified_name_problems(key) {
        errors.push(At::new(&json!(key), reference.path.clone()).invalid(&detail));
    }
}

/// A resource of a container; one of a `volume` says which container.
pub(crate) fn validate_resource(reference: &At<'_>, volume: bool, errors: &mut FieldErrors) {
    let (container, resource) = (reference.get("containerName"), reference.get("resource"));
    let name = resource.text();
    let huge = name.starts_with("requests.hugepages-") || name.starts_with("limits.hugepages-");
    if volume && container.text().is_empty() {
        errors.push(container.required(""));
    } else if resource.present("", errors) && !RESOURCES.contains(&name) && !huge {
        errors.push(resource.not_supported(&RESOURCES));
    }
    let divisor = reference.get("divisor");
    let Some(amount) = divisor.quantity().filter(|amount| amount.milli_value() != 0) else { return };
    let shown = amount.to_string();
    let what = match name.split_once('.') {
        Some((_, "cpu")) => {
            if !matches!(shown.as_str(), "1m" | "1") {
                let detail = "only divisor's values 1m and 1 are supported with the cpu resource";
                errors.push(At::new(&json!(name), divisor.path).invalid(detail));
            }
            return;
        }
        Some((_, "memory")) => "memory",
        Some((_, "ephemeral-storage")) => "local ephemeral storage",
        Some((_, part)) if part.starts_with("hugepages-") => "hugepages",
        _ => return,
    };
    if !DIVISORS.contains(&shown.as_str()) {
        let detail =
            format!("only divisor's values {} are supported with the {what} resource", DIVISORS.join(", "));
        errors.push(At::new(&json!(name), divisor.path).invalid(&detail));
    }
}
