//! Endpoints and EndpointSlices.

use apiserver::field::{FieldError, FieldErrors};
use apiserver::strategy::Strategy;
use apiserver::tree;
use serde_json::Value;

/// The old form.
pub(crate) struct Endpoints;

impl Strategy for Endpoints {
    fn generation(&self) -> bool {
        false
    }
    fn create_on_update(&self) -> bool {
        true
    }
    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        for (index, subset) in tree::items(object, &["subsets"]).iter().enumerate() {
            for list in ["addresses", "notReadyAddresses"] {
                for (at, address) in tree::items(subset, &[list]).iter().enumerate() {
                    let field = format!("subsets[{index}].{list}[{at}].ip");
                    check_address(&field, tree::at(address, &["ip"]), errors);
                }
            }
        }
    }
}

/// The form that everyone reads.
pub(crate) struct EndpointSlices;

/// Source: `discovery/validation.go`.
const ENDPOINTS_MAX: usize = 1000;

impl Strategy for EndpointSlices {
    fn validate(&self, object: &Value, errors: &mut FieldErrors) {
        let family = tree::at(object, &["addressType"]);
        if family.is_null() {
            errors.push(FieldError::required("addressType", ""));
        }
        let endpoints = tree::items(object, &["endpoints"]);
        if endpoints.len() > ENDPOINTS_MAX {
            let detail = format!("must have at most {ENDPOINTS_MAX} items");
            errors.push(FieldError::invalid("endpoints", &endpoints.len().into(), &detail));
        }
        for (index, endpoint) in endpoints.iter().enumerate() {
            let addresses = tree::items(endpoint, &["addresses"]);
            if addresses.is_empty() {
                let field = format!("endpoints[{index}].addresses");
                errors.push(FieldError::required(field, "must contain at least 1 address"));
            }
            for (at, address) in addresses.iter().enumerate() {
                if family != "FQDN" {
                    check_address(&format!("endpoints[{index}].addresses[{at}]"), address, errors);
                }
            }
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut FieldErrors) {
        let (after, before) = (tree::at(new, &["addressType"]), tree::at(old, &["addressType"]));
        if after != before {
            errors.push(FieldError::invalid("addressType", after, "field is immutable"));
        }
    }
}

fn check_address(field: &str, address: &Value, errors: &mut FieldErrors) {
    if address.as_str().and_then(|text| text.parse::<std::net::IpAddr>().ok()).is_none() {
        errors.push(FieldError::invalid(field, address, "must be a valid IP address"));
    }
}
