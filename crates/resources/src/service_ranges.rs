//! ServiceCIDR and IPAddress: the ranges that Services take addresses from, and the addresses taken.
//! Source: KEP-1880, `networking/validation/validation.go`, `ipallocator`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use api::Status;
use apiserver::field::{self, FieldError, FieldErrors};
use apiserver::strategy::{Companions, NameRule, Strategy, View};
use apiserver::{net, tree};
use ipnet::IpNet;
use serde_json::Value;

use crate::allocate::GROUP;
use crate::service_families::family;

const CIDRS: &str = "servicecidrs";
const IMMUTABLE: &str = "field is immutable";

/// A range: address and prefix length.
pub(crate) type Range = (IpAddr, u8);

/// ServiceCIDR.
pub(crate) struct ServiceCidrs;

impl Strategy for ServiceCidrs {
    fn generation(&self) -> bool {
        false
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        let list = tree::at(object, &["spec", "cidrs"]);
        let cidrs = tree::items(object, &["spec", "cidrs"]);
        if cidrs.is_empty() {
            errors.push(FieldError::required("spec.cidrs", "at least one CIDR required"));
        } else if cidrs.len() > 2 {
            errors.push(FieldError::invalid("spec.cidrs", list, "may only hold up to 2 values"));
        }
        let mut families = BTreeSet::new();
        for (index, cidr) in cidrs.iter().enumerate() {
            let field = format!("spec.cidrs[{index}]");
            let text = cidr.as_str().unwrap_or_default();
            let Some(range) = parse(text) else {
                let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
                errors.push(FieldError::invalid(field, cidr, detail));
                continue;
            };
            let canonical = format!("{}/{}", range.0, range.1);
            if canonical != text {
                let detail = format!("must be in canonical form (\"{canonical}\")");
                errors.push(FieldError::invalid(field, cidr, &detail));
            }
            if !families.insert(family(&range.0)) {
                let detail = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
                errors.push(FieldError::invalid("spec.cidrs", list, detail));
            }
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        let list = tree::at(new, &["spec", "cidrs"]);
        let (after, before) = (tree::items(new, &["spec", "cidrs"]), tree::items(old, &["spec", "cidrs"]));
        // A second family may be added; nothing else changes.
        if after.len() < before.len() {
            errors.push(FieldError::invalid("spec.cidrs", list, IMMUTABLE));
        }
        for (index, (new, old)) in after.iter().zip(before).enumerate() {
            if new != old {
                errors.push(FieldError::invalid(format!("spec.cidrs[{index}]"), new, IMMUTABLE));
            }
        }
    }

    /// Nothing is allocated with a range; this is where the instance's own ranges are known. What lies outside them is
    /// neither routed here nor refused when nobody serves it, so that a Service there would not work.
    fn companions(
        &self,
        view: &dyn View,
        _old: Option<&Value>,
        new: Option<&mut Value>,
        _attempt: u32,
    ) -> Result<Companions, Status> {
        if let Some(object) = new {
            let mut errors = Vec::new();
            within(&view.settings().service_ranges, object, &mut errors);
            let name = tree::text(object, &["metadata", "name"]);
            field::check(GROUP, "ServiceCIDR", name, &errors)?;
        }
        Ok(Companions::default())
    }
}

fn within(own: &[Range], object: &Value, errors: &mut FieldErrors) {
    for (index, cidr) in tree::items(object, &["spec", "cidrs"]).iter().enumerate() {
        let Some((base, length)) = cidr.as_str().and_then(parse) else { continue };
        if !own.iter().any(|range| range.1 <= length && net::holds(*range, base)) {
            let detail = format!(
                "must lie within the service range that this cluster was started with ({}): addresses elsewhere are \
                 not routed",
                shown(own)
            );
            errors.push(FieldError::invalid(format!("spec.cidrs[{index}]"), cidr, &detail));
        }
    }
}

/// Ranges as messages show them.
pub(crate) fn shown(ranges: &[Range]) -> String {
    ranges.iter().map(|(base, length)| format!("{base}/{length}")).collect::<Vec<_>>().join(", ")
}

/// A range whose host bits are dropped.
fn parse(text: &str) -> Option<Range> {
    let range: IpNet = text.parse().ok()?;
    Some((range.network(), range.prefix_len()))
}

/// The ranges that addresses may be taken from at present, oldest ServiceCIDR first. While there is no ServiceCIDR at
/// all (the first moment of a cluster), they are those that the server was started with.
pub(crate) fn open(view: &dyn View) -> Vec<Range> {
    let own = &view.settings().service_ranges;
    let mut known: Vec<_> = view.objects(GROUP, CIDRS);
    if known.is_empty() {
        return own.clone();
    }
    known.sort_by(|a, b| {
        let age = |object: &api::Object| (object.meta().creation_timestamp, object.meta().name.clone());
        age(a).cmp(&age(b))
    });
    let mut ranges = Vec::new();
    for object in known.iter().filter_map(|object| object.decode::<Value>().ok()).filter(is_ready) {
        let cidrs = tree::items(&object, &["spec", "cidrs"]).iter();
        for range in cidrs.filter_map(|cidr| cidr.as_str().and_then(parse)) {
            // An object from a time with other ranges gives nothing that is not routed.
            let routed = own.iter().any(|own| own.1 <= range.1 && net::holds(*own, range.0));
            if routed && !ranges.contains(&range) {
                ranges.push(range);
            }
        }
    }
    ranges
}

/// Ready, also while nobody has said so yet. Source: `isReady` of the allocator.
fn is_ready(object: &Value) -> bool {
    let refused = |held: &Value| held["type"] == "Ready" && held["status"] != "True";
    tree::at(object, &["metadata", "deletionTimestamp"]).is_null()
        && !tree::items(object, &["status", "conditions"]).iter().any(refused)
}

/// IPAddress.
pub(crate) struct IpAddresses;

impl Strategy for IpAddresses {
    fn name_rule(&self) -> NameRule {
        // Colons of IPv6; what a name must be is checked below.
        NameRule::PathSegment
    }

    fn generation(&self) -> bool {
        false
    }

    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        let name = tree::at(object, &["metadata", "name"]);
        let text = name.as_str().unwrap_or_default();
        if !text.parse::<IpAddr>().is_ok_and(|address| address.to_string() == text) {
            errors.push(FieldError::invalid(
                "metadata.name",
                name,
                "must be a valid IP address in canonical form",
            ));
        }
        let parent = tree::at(object, &["spec", "parentRef"]);
        if parent.is_null() {
            errors.push(FieldError::required("spec.parentRef", ""));
            return;
        }
        for part in ["resource", "name"] {
            if tree::text(parent, &[part]).is_empty() {
                errors.push(FieldError::required(format!("spec.parentRef.{part}"), ""));
            }
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        let path = ["spec", "parentRef"];
        if tree::at(new, &path) != tree::at(old, &path) {
            errors.push(FieldError::invalid("spec.parentRef", tree::at(new, &path), IMMUTABLE));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(errors: FieldErrors) -> Vec<String> {
        errors.into_iter().map(|error| error.field).collect()
    }

    fn cidrs(list: &[&str]) -> Value {
        json!({ "metadata": { "name": "x" }, "spec": { "cidrs": list } })
    }

    #[test]
    fn ranges_are_canonical_one_per_family_and_stay() {
        for (list, wrong) in [
            (&["10.96.0.0/24"][..], &[][..]),
            (&["10.96.0.0/24", "fd00::/112"], &[]),
            (&[], &["spec.cidrs"]),
            (&["10.96.0.0/24", "10.97.0.0/24"], &["spec.cidrs"]),
            (&["10.96.0.1/24"], &["spec.cidrs[0]"]),
            (&["10.96.0.0/33"], &["spec.cidrs[0]"]),
            (&["here"], &["spec.cidrs[0]"]),
        ] {
            let mut errors = Vec::new();
            ServiceCidrs.validate(&cidrs(list), &mut errors);
            assert_eq!(fields(errors), wrong, "{list:?}");
        }
        let change = |new: &[&str], old: &[&str]| {
            let mut errors = Vec::new();
            ServiceCidrs.validate_update(&cidrs(new), &cidrs(old), &mut errors);
            fields(errors)
        };
        assert!(change(&["10.96.0.0/24", "fd00::/112"], &["10.96.0.0/24"]).is_empty());
        assert_eq!(change(&["10.96.1.0/24"], &["10.96.0.0/24"]), ["spec.cidrs[0]"]);
        assert_eq!(change(&["10.96.0.0/24"], &["10.96.0.0/24", "fd00::/112"]), ["spec.cidrs"]);
    }

    #[test]
    fn ranges_lie_within_the_clusters_own() {
        let own = [("10.96.0.0".parse().unwrap(), 16)];
        let refused = |list: &[&str]| {
            let mut errors = Vec::new();
            within(&own, &cidrs(list), &mut errors);
            fields(errors)
        };
        assert!(refused(&["10.96.0.0/16"]).is_empty() && refused(&["10.96.7.0/24"]).is_empty());
        assert_eq!(refused(&["10.96.0.0/15"]), ["spec.cidrs[0]"]);
        assert_eq!(refused(&["10.96.7.0/24", "fd00::/112"]), ["spec.cidrs[1]"]);
    }

    #[test]
    fn addresses_are_named_by_themselves_and_keep_their_parent() {
        let address = |name: &str, parent: Value| json!({ "metadata": { "name": name }, "spec": { "parentRef": parent } });
        let parent = json!({ "resource": "services", "namespace": "a", "name": "b" });
        for (name, wrong) in [("10.96.0.1", 0), ("10.96.0.01", 1), ("fd00::1", 0), ("FD00::1", 1), ("web", 1)]
        {
            let mut errors = Vec::new();
            IpAddresses.validate(&address(name, parent.clone()), &mut errors);
            assert_eq!(errors.len(), wrong, "{name}");
        }
        let mut errors = Vec::new();
        let other = json!({ "resource": "services", "namespace": "a", "name": "c" });
        IpAddresses.validate_update(&address("10.96.0.1", other), &address("10.96.0.1", parent), &mut errors);
        assert_eq!(fields(errors), ["spec.parentRef"]);
    }
}
