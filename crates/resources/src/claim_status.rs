//! The status of claims to devices (DRA): what was allocated, for whom, and what drivers say of it.
//! Source: `resource/validation/validation.go`, `registry/resource/resourceclaim`.

use std::collections::HashSet;

use apiserver::field::{FieldError, FieldErrors};
use apiserver::strategy::NameRule;
use apiserver::tree;
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::affinity;
use crate::at::At;
use crate::device_slices::{binding_conditions, each_once, pool_name};
use crate::devices::{
    Names, STATUS_CONDITIONS_MAX, at_most, check_config, check_references, free_object, names_of, reference,
    tolerations,
};
use crate::volume_sources::csi_driver;

const USERS_MAX: usize = 256;
const RESULTS_MAX: usize = 32;
/// Those of the class and those of the claim.
const CONFIGS_MAX: usize = 64;
const ADDRESSES_MAX: usize = 16;
const INTERFACE_BYTES_MAX: usize = 256;
const HARDWARE_BYTES_MAX: usize = 128;
const SOURCES: [&str; 2] = ["FromClaim", "FromClass"];

/// By which a device is known: driver, pool, device and the share of it.
type Id<'v> = [&'v str; 4];

/// Devices that are allocated no longer have no status.
pub(crate) fn drop_freed(new: &mut Value, old: &Value) {
    let allocated = |claim: &Value| -> HashSet<[String; 3]> {
        let results = tree::items(claim, &["status", "allocation", "devices", "results"]);
        results
            .iter()
            .map(|result| ["driver", "pool", "device"].map(|field| tree::text(result, &[field]).to_owned()))
            .collect()
    };
    let (before, after) = (allocated(old), allocated(new));
    let Some(status) = new.get_mut("status").and_then(Value::as_object_mut) else { return };
    let Some(devices) = status.get_mut("devices").and_then(Value::as_array_mut) else { return };
    devices.retain(|device| {
        let id = ["driver", "pool", "device"].map(|field| tree::text(device, &[field]).to_owned());
        !before.contains(&id) || after.contains(&id)
    });
    if devices.is_empty() {
        status.remove("devices");
    }
}

/// What is wrong with a change of a claim's status.
pub(crate) fn check(claim: &At<'_>, old: &At<'_>, errors: &mut FieldErrors) {
    let (status, before) = (claim.get("status"), old.get("status"));
    let allocation = status.get("allocation");
    let users = status.get("reservedFor");
    each_once(&users, USERS_MAX, "uid", check_user, errors);
    check_devices(&status.get("devices"), &allocation, errors);
    if !users.is_empty() && !allocation.is_set() {
        errors.push(users.forbidden("may not be specified when `allocated` is not set"));
    } else if claim.get("metadata").has("deletionTimestamp") {
        let known: Vec<&Value> = before.each("reservedFor").map(|user| user.value).collect();
        if users.items().any(|user| !known.contains(&user.value)) {
            let detail =
                "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set";
            errors.push(users.forbidden(detail));
        }
    }
    if allocation.is_set() && before.has("allocation") {
        allocation.unchanged(&before.get("allocation"), errors);
    } else if allocation.is_set() {
        let requests = claim.down(&["spec", "devices", "requests"]);
        check_allocation(&allocation, &names_of(&requests), errors);
    }
}

fn check_user(user: &At<'_>, errors: &mut FieldErrors) {
    for field in ["resource", "name", "uid"] {
        user.get(field).present("", errors);
    }
}

fn check_allocation(allocation: &At<'_>, names: &Names<'_>, errors: &mut FieldErrors) {
    let devices = allocation.get("devices");
    let (results, configs) = (devices.get("results"), devices.get("config"));
    at_most(&results, RESULTS_MAX, errors);
    if results.len() <= RESULTS_MAX {
        results.items().for_each(|result| check_result(&result, names, errors));
    }
    at_most(&configs, CONFIGS_MAX, errors);
    if configs.len() <= CONFIGS_MAX {
        for config in configs.items() {
            let source = config.get("source");
            if source.present("", errors) {
                source.one_of(&SOURCES, errors);
            }
            check_references(&config.get("requests"), names, errors);
            check_config(&config, errors);
        }
    }
    let selector = allocation.get("nodeSelector");
    if selector.is_set() {
        affinity::node_selector(&selector, errors);
    }
}

/// A device that a request got.
fn check_result(result: &At<'_>, names: &Names<'_>, errors: &mut FieldErrors) {
    reference(&result.get("request"), names, errors);
    check_id(result, errors);
    binding_conditions(result, errors);
    tolerations(&result.get("tolerations"), errors);
}

/// By which a device is known.
fn check_id(device: &At<'_>, errors: &mut FieldErrors) {
    csi_driver(&device.get("driver"), errors);
    pool_name(&device.get("pool"), errors);
    device.get("device").named(NameRule::Label, errors);
    let share = device.get("shareID");
    if share.is_set() && !is_uuid(share.text()) {
        errors.push(share.invalid("must be a lowercase UUID in 8-4-4-4-12 format"));
    }
}

fn is_uuid(text: &str) -> bool {
    let fits = |(place, byte): (usize, u8)| match place {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
    };
    text.len() == 36 && text.bytes().enumerate().all(fits)
}

fn id<'v>(device: &At<'v>) -> Id<'v> {
    ["driver", "pool", "device", "shareID"].map(|field| device.get(field).text())
}

/// As upstream's messages show it.
fn shown([driver, pool, device, share]: Id<'_>) -> String {
    let [driver, pool, device, share] = [driver, pool, device, share].map(|text| json!(text));
    format!("{{\"Driver\":{driver},\"Pool\":{pool},\"Device\":{device},\"ShareID\":{share}}}")
}

/// What drivers say of allocated devices.
fn check_devices(devices: &At<'_>, allocation: &At<'_>, errors: &mut FieldErrors) {
    let allocated: HashSet<Id<'_>> =
        allocation.get("devices").each("results").map(|result| id(&result)).collect();
    for device in devices.items() {
        check_id(&device, errors);
        if !allocated.contains(&id(&device)) {
            let detail = format!("{}: must be an allocated device in the claim", shown(id(&device)));
            errors.push(device.wrong(&detail));
        }
        let conditions = device.get("conditions");
        at_most(&conditions, STATUS_CONDITIONS_MAX, errors);
        conditions.conditions(errors);
        let data = device.get("data");
        if data.is_set() {
            free_object(&data, errors);
        }
        check_network(&device.get("networkData"), errors);
    }
    let mut seen: HashSet<Id<'_>> = HashSet::new();
    for device in devices.items() {
        let id = id(&device);
        if seen.contains(&id) {
            let message = format!("Duplicate value: {}", shown(id));
            let reason = "FieldValueDuplicate".into();
            errors.push(FieldError { reason, field: device.path, message });
        }
        seen.insert(id);
    }
}

/// How a device is reached in its pod's network.
fn check_network(network: &At<'_>, errors: &mut FieldErrors) {
    for (field, most) in [("interfaceName", INTERFACE_BYTES_MAX), ("hardwareAddress", HARDWARE_BYTES_MAX)] {
        let text = network.get(field);
        if text.text().len() > most {
            errors.push(text.too_long(most));
        }
    }
    each_once(&network.get("ips"), ADDRESSES_MAX, "", check_address, errors);
}

/// An address with the length of its network's prefix. Source: `IsValidInterfaceAddress`.
fn check_address(address: &At<'_>, errors: &mut FieldErrors) {
    let Ok(parsed) = address.text().parse::<IpNet>() else {
        let detail = "must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)";
        return errors.push(address.invalid(detail));
    };
    let canonical = parsed.to_string();
    if canonical != address.text() {
        errors.push(address.invalid(&format!("must be in canonical form ({canonical:?})")));
    }
}

#[cfg(test)]
mod tests {
    use apiserver::strategy::Strategy;

    use super::*;
    use crate::at::said;
    use crate::devices::CLAIMS;

    fn result(device: &str) -> Value {
        json!({ "request": "r", "driver": "gpu.example.com", "pool": "p", "device": device })
    }

    fn claim(status: Value) -> Value {
        json!({
            "metadata": { "name": "c" },
            "spec": { "devices": { "requests": [{ "name": "r", "firstAvailable": [{ "name": "a" }] }] } },
            "status": status,
        })
    }

    fn causes(status: Value, before: Value) -> Vec<String> {
        let mut errors = Vec::new();
        CLAIMS.validate_status(&claim(status), &claim(before), &mut errors);
        said(&errors)
    }

    fn allocated(result: Value) -> Value {
        json!({ "devices": { "results": [result] } })
    }

    #[test]
    fn an_allocation_names_requests_and_devices() {
        let at = "status.allocation.devices";
        let config = |source: &str| {
            json!({ "source": source, "requests": ["r/a"],
                "opaque": { "driver": "gpu.example.com", "parameters": { "a": 1 } } })
        };
        for (allocation, expected) in [
            (allocated(result("d")), vec![]),
            (json!({ "devices": { "config": [config("FromClass")] } }), vec![]),
            (
                json!({ "devices": { "config": [config("FromNowhere")] } }),
                vec![format!(
                    "{at}.config[0].source: Unsupported value: \"FromNowhere\": supported values: \"FromClaim\", \
                     \"FromClass\""
                )],
            ),
            (
                allocated(json!({ "request": "r/b", "driver": "gpu.example.com", "device": "d", "shareID": "A" })),
                vec![
                    format!(
                        "{at}.results[0].request: Invalid value: \"r/b\": must be the name of a request in the claim or the \
                         name of a request and a subrequest separated by '/'"
                    ),
                    format!("{at}.results[0].pool: Required value"),
                    format!(
                        "{at}.results[0].shareID: Invalid value: \"A\": must be a lowercase UUID in 8-4-4-4-12 format"
                    ),
                ],
            ),
            (
                json!({ "devices": { "results": vec![result("d"); 33] } }),
                vec![format!("{at}.results: Too many: 33: must have at most 32 items")],
            ),
            (
                json!({ "nodeSelector": {} }),
                vec![
                    "status.allocation.nodeSelector.nodeSelectorTerms: Required value: must have at least one node \
                     selector term"
                        .to_owned(),
                ],
            ),
        ] {
            assert_eq!(causes(json!({ "allocation": allocation }), json!({})), expected, "{allocation}");
        }
    }

    #[test]
    fn an_allocation_stays_until_it_goes() {
        let odd = json!({ "allocation": allocated(json!({ "request": "gone" })) });
        assert_eq!(causes(odd.clone(), odd.clone()), [""; 0]);
        assert_eq!(causes(json!({}), odd.clone()), [""; 0]);
        let changed = causes(json!({ "allocation": allocated(result("d")) }), odd);
        assert!(
            changed[0].starts_with("status.allocation: Invalid value: ") && changed.len() == 1,
            "{changed:?}"
        );
    }

    #[test]
    fn users_are_of_an_allocated_claim_and_none_comes_while_it_goes() {
        let user = |uid: &str| json!({ "resource": "pods", "name": "p", "uid": uid });
        let allocation = allocated(result("d"));
        let before = json!({ "allocation": allocation, "reservedFor": [user("1")] });
        let both = json!({ "allocation": allocation, "reservedFor": [user("1"), user("2")] });
        assert_eq!(causes(both.clone(), before.clone()), [""; 0]);
        let unallocated = "status.reservedFor: Forbidden: may not be specified when `allocated` is not set";
        assert_eq!(causes(json!({ "reservedFor": [user("1")] }), before.clone()), [unallocated]);
        let twice = json!({ "allocation": allocation, "reservedFor": [user("1"), { "uid": "1" }] });
        assert_eq!(
            causes(twice, before.clone()),
            [
                "status.reservedFor[1].resource: Required value",
                "status.reservedFor[1].name: Required value",
                "status.reservedFor[1]: Duplicate value: \"1\"",
            ]
        );
        let mut going = claim(both);
        going["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z".into();
        let mut errors = Vec::new();
        check(&At::object(&going), &At::object(&claim(before)), &mut errors);
        let late = "status.reservedFor: Forbidden: new entries may not be added while `deallocationRequested` or \
                    `deletionTimestamp` are set";
        assert_eq!(said(&errors), [late]);
    }

    #[test]
    fn drivers_speak_of_allocated_devices() {
        let device = |change: Value| {
            let mut device = json!({ "driver": "gpu.example.com", "pool": "p", "device": "d" });
            for (field, value) in change.as_object().into_iter().flatten() {
                device[field] = value.clone();
            }
            device
        };
        let allocation = allocated(result("d"));
        let before = json!({ "allocation": allocation });
        let of =
            |devices: Value| causes(json!({ "allocation": allocation, "devices": devices }), before.clone());
        let network = json!({ "interfaceName": "eth0", "ips": ["10.9.8.7/24", "2001:db8::1/64"] });
        let full = device(json!({ "data": { "a": 1 }, "networkData": network }));
        assert_eq!(of(json!([full])), [""; 0]);
        let shown = |device: &str| {
            format!(
                "{{\"Driver\":\"gpu.example.com\",\"Pool\":\"p\",\"Device\":\"{device}\",\"ShareID\":\"\"}}"
            )
        };
        assert_eq!(
            of(json!([device(json!({ "device": "e" })), full, full])),
            [
                format!(
                    "status.devices[0]: Invalid value: {}: must be an allocated device in the claim",
                    shown("e")
                ),
                format!("status.devices[2]: Duplicate value: {}", shown("d")),
            ]
        );
        let network = json!({ "hardwareAddress": "a".repeat(129), "ips": ["10.9.8.7", "2001:DB8::1/64"] });
        assert_eq!(
            of(json!([device(json!({ "data": 1, "networkData": network }))])),
            [
                "status.devices[0].data: Invalid value: \"<value omitted>\": must be a valid JSON object",
                "status.devices[0].networkData.hardwareAddress: Too long: may not be more than 128 bytes",
                "status.devices[0].networkData.ips[0]: Invalid value: \"10.9.8.7\": must be a valid address in CIDR form, \
                 (e.g. 10.9.8.7/24 or 2001:db8::1/64)",
                "status.devices[0].networkData.ips[1]: Invalid value: \"2001:DB8::1/64\": must be in canonical form \
                 (\"2001:db8::1/64\")",
            ]
        );
    }

    #[test]
    fn the_status_of_a_device_goes_with_its_allocation() {
        let device = json!({ "driver": "gpu.example.com", "pool": "p", "device": "d" });
        let old = claim(json!({ "allocation": allocated(result("d")), "devices": [device] }));
        let mut kept = old.clone();
        CLAIMS.prepare_status(&mut kept, &old);
        assert_eq!(kept, old);
        let mut freed = claim(json!({ "devices": [device] }));
        CLAIMS.prepare_status(&mut freed, &old);
        assert_eq!(freed["status"], json!({}));
    }
}
