//! What of the host pods may have: what is reserved for others, and what is to be left before pods have to go, is not
//! theirs. Source: `pkg/kubelet/cm/node_container_manager_linux.go`, `pkg/kubelet/nodestatus/setters.go`.

use api::quantity::Quantity;
use serde_json::Value;

use super::object::{binary, capacity};
use crate::config::{Config, Reserved};
use crate::deps::Hardware;
use crate::eviction::Signal;

/// What pods may have, in thousandths of cores and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allocatable {
    pub(crate) milli_cpu: i64,
    pub(crate) memory_bytes: i64,
    pub(crate) disk_bytes: i64,
}

/// What nobody else is to have. Memory that is to be left counts only where the scheduler looks: pods may use it for the
/// moment until they have to go.
pub(crate) fn for_pods(hardware: &Hardware, reserved: &Reserved) -> Allocatable {
    Allocatable {
        milli_cpu: (hardware.milli_cpu - reserved.milli_cpu()).max(0),
        memory_bytes: (hardware.memory_bytes - reserved.bytes("memory")).max(0),
        disk_bytes: (hardware.disk_bytes - reserved.bytes("ephemeral-storage")).max(0),
    }
}

/// What is to be left of so much before pods have to go.
fn least(config: &Config, signal: Signal, of: i64) -> i64 {
    let hard =
        config.eviction.thresholds.iter().find(|known| known.signal == signal && known.grace.is_none());
    let least = hard.map_or(0, |known| known.least.of(u64::try_from(of).unwrap_or(0)));
    i64::try_from(least).unwrap_or(i64::MAX)
}

/// Refuses to reserve what is not there. Source: `validateNodeAllocatable`.
///
/// # Errors
/// In upstream's words, with each resource of which more is reserved than there is.
pub(crate) fn check(hardware: &Hardware, config: &Config) -> Result<(), String> {
    let reserved = &config.reserved;
    let held = |name: &str, signal, capacity| -> i64 {
        reserved.bytes(name).saturating_add(least(config, signal, capacity))
    };
    let (memory, disk) = (hardware.memory_bytes, hardware.disk_bytes);
    let cpu = Quantity::from_milli;
    let too_much: Vec<String> = [
        ("cpu", reserved.milli_cpu(), hardware.milli_cpu, cpu as fn(i64) -> Quantity),
        ("memory", held("memory", Signal::Memory, memory), memory, binary),
        ("ephemeral-storage", held("ephemeral-storage", Signal::NodeDisk, disk), disk, binary),
    ]
    .into_iter()
    .filter(|(_, reserved, capacity, _)| reserved > capacity)
    .map(|(name, reserved, capacity, shown)| {
        format!(
            "Resource {name:?} has a reservation of {} but capacity of {}. Expected capacity >= reservation.",
            shown(reserved),
            shown(capacity)
        )
    })
    .collect();
    if too_much.is_empty() {
        return Ok(());
    }
    Err(format!("invalid Node Allocatable configuration. {}", too_much.join(" ")))
}

/// What pods may ask for together.
pub(crate) fn for_requests(hardware: &Hardware, config: &Config) -> Allocatable {
    let pods = for_pods(hardware, &config.reserved);
    let huge = hardware.huge_pages.values().fold(0, |sum: u64, bytes| sum.saturating_add(*bytes));
    let memory = pods.memory_bytes - least(config, Signal::Memory, hardware.memory_bytes);
    let memory = memory.saturating_sub(i64::try_from(huge).unwrap_or(i64::MAX));
    let disk = pods.disk_bytes - least(config, Signal::NodeDisk, hardware.disk_bytes);
    Allocatable { memory_bytes: memory.max(0), disk_bytes: disk.max(0), ..pods }
}

/// `status.allocatable`.
pub(crate) fn allocatable(hardware: &Hardware, config: &Config) -> Value {
    let pods = for_requests(hardware, config);
    let mut amounts = capacity(hardware, config.max_pods);
    amounts["cpu"] = Quantity::from_milli(pods.milli_cpu).to_string().into();
    amounts["memory"] = binary(pods.memory_bytes).to_string().into();
    amounts["ephemeral-storage"] = binary(pods.disk_bytes).to_string().into();
    amounts
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::config::tests::config;

    #[test]
    fn what_is_reserved_or_to_be_left_is_not_the_pods() {
        let hardware = Hardware {
            milli_cpu: 4000,
            memory_bytes: 8 << 30,
            disk_bytes: 100 << 30,
            huge_pages: BTreeMap::from([(2 << 20, 1 << 30)]),
        };
        let mut config = config();
        let shown = allocatable(&hardware, &config);
        let wanted = json!({ "cpu": "4", "memory": "7068Mi", "ephemeral-storage": "99Gi", "pods": "110", "hugepages-2Mi": "1Gi" });
        assert_eq!(shown, wanted);
        let amounts = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(name, amount)| ((*name).to_owned(), amount.parse().unwrap())).collect()
        };
        config.reserved.system = amounts(&[("cpu", "500m"), ("memory", "1Gi")]);
        config.reserved.kube = amounts(&[("cpu", "250m"), ("ephemeral-storage", "9Gi")]);
        let shown = allocatable(&hardware, &config);
        assert_eq!((&shown["cpu"], &shown["memory"]), (&json!("3250m"), &json!("6044Mi")));
        assert_eq!(shown["ephemeral-storage"], "90Gi");
        assert_eq!(check(&hardware, &config), Ok(()));
        config.reserved.system = amounts(&[("memory", "9Gi")]);
        let refused = "invalid Node Allocatable configuration. Resource \"memory\" has a reservation of 9316Mi but \
                       capacity of 8Gi. Expected capacity >= reservation.";
        assert_eq!(check(&hardware, &config), Err(refused.to_owned()));
        assert_eq!(allocatable(&hardware, &config)["memory"], "0");
    }
}
