//! Amounts of CPU, memory and other resources that containers and pods ask for.
//! Source: `validateResourceRequirements`, `core/helper`, `core/v1/helper`.

use std::collections::HashSet;

use api::quantity::Quantity;
use apiserver::field::{FieldError, FieldErrors};
use apiserver::names::qualified_name_problems;
use serde_json::json;

use crate::at::{At, NOT_NEGATIVE};

const NOT_A_QUANTITY: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
const HUGE: &str = "hugepages-";
const OF_CONTAINERS: [&str; 3] = ["cpu", "ephemeral-storage", "memory"];
/// Names without a domain that mean something somewhere.
const STANDARD: [&str; 22] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "storage",
    "requests.storage",
    "services.nodeports",
    "services.loadbalancers",
    "limits.storage",
    "count/",
];

/// What a name must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Names {
    /// A container's.
    Container,
    /// A whole pod's.
    Pod,
}

/// Whether a name without a domain is known.
pub(crate) fn is_standard(name: &str) -> bool {
    STANDARD.contains(&name) || name.starts_with(HUGE) || name.starts_with("requests.hugepages-")
}

/// Whether a name is of Kubernetes itself.
fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// What is wrong with any resource's name.
pub(crate) fn validate_name(name: &str, field: &str, errors: &mut FieldErrors) -> bool {
    let problems = qualified_name_problems(name);
    for detail in &problems {
        errors.push(FieldError::invalid(field, &json!(name), detail));
    }
    if !problems.is_empty() {
        return false;
    }
    let known = name.contains('/') || is_standard(name);
    if !known {
        let detail = "must be a standard resource type or fully qualified";
        errors.push(FieldError::invalid(field, &json!(name), detail));
    }
    known
}

fn check_name(names: Names, name: &str, field: &str, errors: &mut FieldErrors) {
    let fits = validate_name(name, field, errors);
    let own = matches!(name, "cpu" | "memory") || name.starts_with(HUGE);
    match names {
        Names::Pod if fits && !own => {
            errors.push(FieldError::not_supported(field, &json!(name), &["cpu", "memory"]));
        }
        Names::Container
            if !name.contains('/') && !OF_CONTAINERS.contains(&name) && !name.starts_with(HUGE) =>
        {
            let detail = "must be a standard resource for containers";
            errors.push(FieldError::invalid(field, &json!(name), detail));
        }
        Names::Container if !is_native(name) && name.starts_with("requests.") => {
            let detail = "doesn't follow extended resource name standard";
            errors.push(FieldError::invalid(field, &json!(name), detail));
        }
        _ => {}
    }
}

/// An amount: not negative, and whole where only whole units exist.
pub(crate) fn validate_amount(name: &str, amount: &At<'_>, errors: &mut FieldErrors) {
    let Some(quantity) = amount.quantity() else {
        errors.push(amount.invalid(NOT_A_QUANTITY));
        return;
    };
    if quantity.is_negative() {
        errors.push(amount.invalid(NOT_NEGATIVE));
    }
    let counted = matches!(
        name,
        "pods"
            | "services"
            | "replicationcontrollers"
            | "secrets"
            | "configmaps"
            | "persistentvolumeclaims"
            | "resourcequotas"
            | "services.nodeports"
            | "services.loadbalancers"
    );
    if (counted || !is_native(name)) && quantity.milli_value() % 1000 != 0 {
        errors.push(amount.invalid("must be an integer"));
    }
}

/// Whether more may be used than was asked for.
pub(crate) fn overcommits(name: &str) -> bool {
    is_native(name) && !name.starts_with(HUGE)
}

/// What is wrong with `resources`; `claims` are the names of the pod's resource claims.
pub(crate) fn validate(resources: &At<'_>, names: Names, claims: &HashSet<&str>, errors: &mut FieldErrors) {
    let (limits, requests) = (resources.get("limits"), resources.get("requests"));
    let (mut huge, mut ordinary) = (false, false);
    for list in [&limits, &requests] {
        for (name, amount) in list.entries() {
            check_name(names, name, &amount.path, errors);
            validate_amount(name, &amount, errors);
            ordinary |= matches!(name, "cpu" | "memory");
            huge |= name.starts_with(HUGE);
            if let Some(size) = name.strip_prefix(HUGE) {
                whole_pages(name, size, &amount, errors);
            }
        }
    }
    for (name, amount) in requests.entries() {
        let limit = limits.get(name);
        let Some(wanted) = amount.quantity() else { continue };
        match limit.quantity() {
            Some(most) => {
                let wrong = |relation: &str| {
                    let detail = format!("must be {relation} {name} limit of {most}");
                    FieldError::invalid(requests.path.clone(), &json!(wanted.to_string()), &detail)
                };
                if wanted != most && !overcommits(name) {
                    errors.push(wrong("equal to"));
                } else if wanted > most {
                    errors.push(wrong("less than or equal to"));
                }
            }
            None if !overcommits(name) => {
                errors.push(limits.required("Limit must be set for non overcommitable resources"));
            }
            None => {}
        }
    }
    if huge && !ordinary {
        errors.push(resources.forbidden("HugePages require cpu or memory"));
    }
    let mut seen: HashSet<String> = HashSet::new();
    for claim in resources.each("claims") {
        let (name, request) = (claim.get("name").text(), claim.get("request").text());
        if name.is_empty() {
            errors.push(claim.required(""));
            continue;
        }
        let key = if request.is_empty() { name.to_owned() } else { format!("{name}/{request}") };
        if seen.contains(&key) {
            errors.push(FieldError::duplicate(claim.path.clone(), &json!(key)));
        }
        seen.insert(key);
        if !claims.contains(name) {
            errors.push(FieldError::not_found(claim.path.clone(), &json!(name)));
        }
    }
}

fn whole_pages(name: &str, size: &str, amount: &At<'_>, errors: &mut FieldErrors) {
    let (Ok(page), Some(total)) = (size.parse::<Quantity>(), amount.quantity()) else { return };
    if page.value() <= 0 || total.value() % page.value() != 0 {
        errors.push(amount.invalid(&format!("{total} is not positive integer multiple of {name}")));
    }
}
