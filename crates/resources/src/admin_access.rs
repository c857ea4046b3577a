//! Admin access to devices (DRA): beside whoever has them, and without counting as a user of them. Only claims of namespaces
//! whose label says so get it. Source: `pkg/registry/resource/utils.go`.

use apiserver::strategy::LabelNeeded;

use crate::at::At;

const LABEL: (&str, &str) = ("resource.kubernetes.io/admin-access", "true");
const FIELD: &str = "adminAccess";

/// For a claim that is new, and for an allocation. An update of a claim needs nothing, as its spec does not change, nor does
/// a status that was granted it before: an allocation does not change either.
pub(crate) fn of_claim(subresource: &str, claim: &At<'_>, old: Option<&At<'_>>) -> Option<LabelNeeded> {
    match (subresource, old) {
        ("", None) => requested(&claim.get("spec")),
        ("status", Some(old)) if granted(old).is_none() => granted(claim),
        _ => None,
    }
}

/// For a template that is new; its spec does not change.
pub(crate) fn of_template(subresource: &str, template: &At<'_>, old: Option<&At<'_>>) -> Option<LabelNeeded> {
    let is_new = subresource.is_empty() && old.is_none();
    is_new.then(|| requested(&template.down(&["spec", "spec"]))).flatten()
}

/// The first request for it, if any. Upstream names the field so in templates, too, and without `exactly`.
fn requested(spec: &At<'_>) -> Option<LabelNeeded> {
    let mut requests = spec.down(&["devices", "requests"]).items();
    let place = requests.position(|request| request.down(&["exactly", FIELD]).truth())?;
    Some(needed(format!("spec.devices.requests[{place}].{FIELD}")))
}

/// The first device that was allocated with it, if any.
fn granted(claim: &At<'_>) -> Option<LabelNeeded> {
    let mut results = claim.down(&["status", "allocation", "devices", "results"]).items();
    results.find(|result| result.get(FIELD).truth()).map(|result| needed(result.child(FIELD)))
}

fn needed(field: String) -> LabelNeeded {
    LabelNeeded { field, label: LABEL, what: "admin access", on: "devices" }
}

#[cfg(test)]
mod tests {
    use apiserver::strategy::Strategy;
    use serde_json::{Value, json};

    use crate::devices::{CLAIM_TEMPLATES, CLAIMS};

    fn field(strategy: &impl Strategy, part: &str, new: &Value, old: Option<&Value>) -> Option<String> {
        strategy.label_needed(part, new, old).map(|needed| needed.field)
    }

    #[test]
    fn what_is_new_and_asks_for_it_needs_the_label() {
        let wants = |admin: Value| json!({ "name": "a", "exactly": { "adminAccess": admin } });
        let at = Some("spec.devices.requests[1].adminAccess".to_owned());
        for (requests, expected) in [
            (json!([]), None),
            (json!([wants(json!(null)), wants(json!(false)), { "name": "b", "firstAvailable": [] }]), None),
            (json!([wants(json!(false)), wants(json!(true)), wants(json!(true))]), at),
        ] {
            let spec = json!({ "devices": { "requests": requests } });
            let (claim, template) = (json!({ "spec": spec }), json!({ "spec": { "spec": spec } }));
            assert_eq!(field(&CLAIMS, "", &claim, None), expected, "{claim}");
            assert_eq!(field(&CLAIM_TEMPLATES, "", &template, None), expected, "{template}");
            // What was asked for stays, in whatever namespace.
            assert_eq!(field(&CLAIMS, "", &claim, Some(&claim)), None);
            assert_eq!(field(&CLAIMS, "status", &claim, Some(&claim)), None);
            assert_eq!(field(&CLAIM_TEMPLATES, "", &template, Some(&template)), None);
        }
    }

    #[test]
    fn an_allocation_needs_it_until_it_is_granted() {
        let of = |results: &[Option<bool>]| {
            let results: Vec<Value> = results.iter().map(|admin| json!({ "adminAccess": admin })).collect();
            json!({ "status": { "allocation": { "devices": { "results": results } } } })
        };
        let at = |place: usize| Some(format!("status.allocation.devices.results[{place}].adminAccess"));
        let (none, some) = (of(&[None, Some(false)]), of(&[Some(false), Some(true), Some(true)]));
        for (new, old, expected) in [
            (&none, &json!({}), None),
            (&some, &json!({}), at(1)),
            (&some, &none, at(1)),
            (&some, &some, None),
            (&of(&[Some(true)]), &some, None),
            (&none, &some, None),
        ] {
            assert_eq!(field(&CLAIMS, "status", new, Some(old)), expected, "{new} {old}");
        }
    }
}
