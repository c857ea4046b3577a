//! The families of addresses that a Service has: what it asks for, what the cluster can give, what is inferred. Pure.
//! Source: `initIPFamilyFields` in `registry/core/service/storage/alloc.go`, `ValidateServiceClusterIPsRelatedFields`.

use std::collections::HashSet;
use std::net::IpAddr;

use apiserver::field::{FieldError, FieldErrors};
use apiserver::tree;
use serde_json::{Value, json};

use crate::at::At;
use crate::pod_spec::address;

pub(crate) const IPV4: &str = "IPv4";
pub(crate) const IPV6: &str = "IPv6";
const SINGLE: &str = "SingleStack";
const PREFER: &str = "PreferDualStack";
const REQUIRE: &str = "RequireDualStack";
/// What decides about the families.
const DECISIVE: [&str; 6] = ["type", "clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "selector"];

/// The family of an address.
pub(crate) fn family(address: &IpAddr) -> &'static str {
    if address.is_ipv4() { IPV4 } else { IPV6 }
}

/// Fills `ipFamilies` and `ipFamilyPolicy` of a Service that has addresses (not ExternalName), where `own` are the
/// cluster's families, the default first. What is wrong is only asked where something changed that decides about it: what
/// was stored under other rules may still be written.
pub(crate) fn settle(service: &mut Value, old: Option<&Value>, own: &[&str], errors: &mut FieldErrors) {
    let same = |old: &Value| {
        let part = |object: &Value, field: &str| tree::at(object, &["spec", field]).clone();
        DECISIVE.iter().all(|field| part(old, field) == part(service, field))
    };
    if old.is_some_and(same) {
        return;
    }
    let spec = tree::member(service, "spec");
    let free = tree::text(spec, &["clusterIP"]) == "None" && At::new(spec, "spec").get("selector").is_empty();
    if tree::text(spec, &["ipFamilyPolicy"]).is_empty() {
        let policy = if free { REQUIRE } else { SINGLE };
        tree::members(spec).insert("ipFamilyPolicy".into(), policy.into());
    }
    if let Some(old) = old
        && tree::text(spec, &["ipFamilyPolicy"]) == SINGLE
    {
        release(spec, tree::at(old, &["spec"]));
    }
    let at = At::new(spec, "spec");
    check_fields(&at, errors);
    if !errors.is_empty() {
        return;
    }
    let families = inferred(&at, own, errors);
    check_policy(&at, &families, errors);
    if !errors.is_empty() {
        return;
    }
    // Whoever has neither a selector nor an address says himself where his endpoints are: any family will do.
    if !free {
        check_cluster(&at, &families, own, errors);
    }
    let policy = at.get("ipFamilyPolicy").text();
    let families = completed(families, policy != SINGLE && (free || own.len() > 1), own);
    tree::members(spec).insert("ipFamilies".into(), json!(families));
}

/// Whoever asks for one family and leaves both as they were gives the second back.
fn release(spec: &mut Value, before: &Value) {
    for field in ["clusterIPs", "ipFamilies"] {
        let kept = spec.get(field) == before.get(field);
        if let Some(list) = spec.get_mut(field).and_then(Value::as_array_mut).filter(|_| kept) {
            list.truncate(1);
        }
    }
}

/// What is wrong with the fields for themselves.
fn check_fields(spec: &At<'_>, errors: &mut FieldErrors) {
    let (addresses, families) = (spec.get("clusterIPs"), spec.get("ipFamilies"));
    let mut seen: HashSet<&str> = HashSet::new();
    for family in families.items() {
        family.one_of(&[IPV4, IPV6], errors);
        if seen.contains(&family.text()) {
            errors.push(family.duplicate());
        }
        seen.insert(family.text());
    }
    spec.get("ipFamilyPolicy").one_of(&[PREFER, REQUIRE, SINGLE], errors);
    let before = errors.len();
    let none = addresses.items().next().is_some_and(|first| first.text() == "None");
    if none && addresses.len() > 1 {
        errors.push(addresses.invalid("'None' must be the first and only value"));
    }
    addresses.items().skip(usize::from(none)).for_each(|one| address(&one, errors));
    if addresses.len() > 2 {
        errors.push(addresses.invalid("may only hold up to 2 values"));
    }
    if none || errors.len() > before {
        return;
    }
    let of: Vec<&str> = addresses.items().filter_map(|one| Some(family(&one.text().parse().ok()?))).collect();
    if let [first, second] = of.as_slice()
        && first == second
    {
        errors.push(addresses.invalid("may specify no more than one IP for each IP family"));
    }
    for (index, (address, is)) in addresses.items().zip(&of).enumerate() {
        let asked = families.items().nth(index).map_or(*is, |family| family.text());
        if errors.len() == before && asked != *is {
            errors.push(
                address.invalid(&format!("expected an {asked} value as indicated by `ipFamilies[{index}]`")),
            );
        }
    }
}

/// The families that are asked for, by name or by an address.
fn inferred(spec: &At<'_>, own: &[&str], errors: &mut FieldErrors) -> Vec<String> {
    let mut families: Vec<String> = spec.get("ipFamilies").texts().into_iter().map(str::to_owned).collect();
    let addresses = spec.get("clusterIPs");
    for (index, text) in addresses.texts().into_iter().enumerate().skip(families.len()) {
        let Ok(parsed) = text.parse::<IpAddr>() else { break };
        let name = family(&parsed);
        if own.contains(&name) {
            families.push(name.to_owned());
        } else {
            let field = format!("{}[{index}]", addresses.path);
            let detail = format!("{name} is not configured on this cluster");
            errors.push(FieldError::invalid(field, addresses.value, &detail));
        }
    }
    families
}

/// One family is not two.
fn check_policy(spec: &At<'_>, families: &[String], errors: &mut FieldErrors) {
    let policy = spec.get("ipFamilyPolicy");
    if policy.text() != SINGLE {
        return;
    }
    for (count, what) in [(spec.get("clusterIPs").len(), "cluster IPs"), (families.len(), "IP families")] {
        if count == 2 {
            let detail =
                format!("must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified");
            errors.push(policy.invalid(&detail));
        }
    }
}

/// What the cluster cannot give.
fn check_cluster(spec: &At<'_>, families: &[String], own: &[&str], errors: &mut FieldErrors) {
    let policy = spec.get("ipFamilyPolicy");
    if policy.text() == REQUIRE && own.len() < 2 {
        errors.push(policy.invalid("this cluster is not configured for dual-stack services"));
    }
    for (index, name) in families.iter().enumerate() {
        if !own.contains(&name.as_str()) {
            let field = format!("{}[{index}]", spec.child("ipFamilies"));
            errors.push(FieldError::invalid(field, &json!(name), "not configured on this cluster"));
        }
    }
}

/// With the cluster's default where nothing is asked for, and the other family where both are wanted.
fn completed(mut families: Vec<String>, both: bool, own: &[&str]) -> Vec<String> {
    if families.is_empty() {
        families.extend(own.first().map(|name| (*name).to_owned()));
    }
    if let [only] = families.as_slice()
        && both
    {
        let other = if only == IPV4 { IPV6 } else { IPV4 };
        families.push(other.to_owned());
    }
    families
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::at::said;

    fn settled(spec: Value, own: &[&str]) -> Result<Value, Vec<String>> {
        let mut service = json!({ "spec": spec });
        let mut errors = Vec::new();
        settle(&mut service, None, own, &mut errors);
        let spec = &service["spec"];
        let settled = json!([spec["ipFamilyPolicy"], spec["ipFamilies"]]);
        if errors.is_empty() { Ok(settled) } else { Err(said(&errors)) }
    }

    fn with_selector(mut spec: Value) -> Value {
        spec["selector"] = json!({ "app": "a" });
        spec
    }

    #[test]
    fn a_cluster_gives_the_families_that_it_has() {
        let (one, both) = (&[IPV4][..], &[IPV4, IPV6][..]);
        for (spec, own, wanted) in [
            (json!({}), one, json!([SINGLE, [IPV4]])),
            (json!({}), both, json!([SINGLE, [IPV4]])),
            (json!({ "ipFamilyPolicy": PREFER }), one, json!([PREFER, [IPV4]])),
            (json!({ "ipFamilyPolicy": PREFER }), both, json!([PREFER, [IPV4, IPV6]])),
            (
                json!({ "ipFamilyPolicy": REQUIRE, "ipFamilies": [IPV6] }),
                both,
                json!([REQUIRE, [IPV6, IPV4]]),
            ),
            (json!({ "clusterIP": "fd00::1", "clusterIPs": ["fd00::1"] }), both, json!([SINGLE, [IPV6]])),
            (json!({ "clusterIP": "None", "clusterIPs": ["None"] }), one, json!([SINGLE, [IPV4]])),
        ] {
            assert_eq!(settled(with_selector(spec.clone()), own), Ok(wanted), "{spec}");
        }
        // Without a selector nobody but its maker knows what a headless Service leads to.
        let free = json!({ "clusterIP": "None", "clusterIPs": ["None"] });
        assert_eq!(settled(free, one), Ok(json!([REQUIRE, [IPV4, IPV6]])));
    }

    #[test]
    fn a_cluster_refuses_the_families_that_it_lacks() {
        let one = &[IPV4][..];
        for (spec, wanted) in [
            (
                json!({ "ipFamilies": [IPV6] }),
                vec!["spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster"],
            ),
            (
                json!({ "ipFamilyPolicy": REQUIRE }),
                vec![
                    "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for \
                     dual-stack services",
                ],
            ),
            (
                json!({ "ipFamilies": [IPV4, IPV6] }),
                vec![
                    "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or \
                     'PreferDualStack' when multiple IP families are specified",
                ],
            ),
            (
                json!({ "ipFamilies": [IPV4, IPV6], "ipFamilyPolicy": PREFER }),
                vec!["spec.ipFamilies[1]: Invalid value: \"IPv6\": not configured on this cluster"],
            ),
            (
                json!({ "ipFamilies": ["IPv5", IPV4, IPV4], "ipFamilyPolicy": "Both" }),
                vec![
                    "spec.ipFamilies[0]: Unsupported value: \"IPv5\": supported values: \"IPv4\", \"IPv6\"",
                    "spec.ipFamilies[2]: Duplicate value: \"IPv4\"",
                    "spec.ipFamilyPolicy: Unsupported value: \"Both\": supported values: \"PreferDualStack\", \
                     \"RequireDualStack\", \"SingleStack\"",
                ],
            ),
            (
                json!({ "clusterIP": "fd00::1", "clusterIPs": ["fd00::1"] }),
                vec![
                    "spec.clusterIPs[0]: Invalid value: [\"fd00::1\"]: IPv6 is not configured on this cluster",
                ],
            ),
            (
                json!({ "clusterIP": "fd00::1", "clusterIPs": ["fd00::1"], "ipFamilies": [IPV4] }),
                vec![
                    "spec.clusterIPs[0]: Invalid value: \"fd00::1\": expected an IPv4 value as indicated by \
                     `ipFamilies[0]`",
                ],
            ),
            (
                json!({ "clusterIPs": ["10.0.0.1", "10.0.0.2"] }),
                vec![
                    "spec.clusterIPs: Invalid value: [\"10.0.0.1\",\"10.0.0.2\"]: may specify no more than one IP for \
                     each IP family",
                ],
            ),
            (
                json!({ "clusterIPs": ["None", "10.0.0.2"] }),
                vec![
                    "spec.clusterIPs: Invalid value: [\"None\",\"10.0.0.2\"]: 'None' must be the first and only value",
                ],
            ),
            (
                json!({ "clusterIPs": ["x"] }),
                vec![
                    "spec.clusterIPs[0]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or \
                     2001:db8::ffff)",
                ],
            ),
        ] {
            let wanted = wanted.into_iter().map(str::to_owned).collect();
            assert_eq!(settled(with_selector(spec.clone()), one), Err(wanted), "{spec}");
        }
    }

    #[test]
    fn what_was_stored_under_other_rules_may_still_be_written() {
        let old =
            json!({ "spec": { "clusterIP": "10.0.0.1", "ipFamilies": [IPV6], "ipFamilyPolicy": SINGLE } });
        let mut new = old.clone();
        new["metadata"] = json!({ "labels": { "a": "b" } });
        let mut errors = Vec::new();
        settle(&mut new, Some(&old), &[IPV4], &mut errors);
        assert_eq!((said(&errors), &new["spec"]), (vec![], &old["spec"]));
        new["spec"]["ipFamilyPolicy"] = json!(REQUIRE);
        settle(&mut new, Some(&old), &[IPV4], &mut errors);
        assert!(!errors.is_empty());
    }

    #[test]
    fn who_asks_for_one_family_gives_the_second_back() {
        let addresses = json!(["10.0.0.1", "fd00::1"]);
        let old = json!({ "spec": { "selector": { "a": "b" }, "clusterIP": "10.0.0.1", "clusterIPs": addresses,
            "ipFamilies": [IPV4, IPV6], "ipFamilyPolicy": REQUIRE } });
        let mut new = old.clone();
        new["spec"]["ipFamilyPolicy"] = json!(SINGLE);
        let mut errors = Vec::new();
        settle(&mut new, Some(&old), &[IPV4, IPV6], &mut errors);
        assert_eq!(said(&errors), [""; 0]);
        assert_eq!(
            (&new["spec"]["clusterIPs"], &new["spec"]["ipFamilies"]),
            (&json!(["10.0.0.1"]), &json!([IPV4]))
        );
    }
}
