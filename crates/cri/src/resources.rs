//! Limits, between the interface's words and the engine's.

use std::collections::BTreeMap;

use engine_api::Resources;
use tonic::Status;

use crate::proto::{HugepageLimit, LinuxContainerResources};

/// What a new container is given. Fields that are zero set nothing.
pub(crate) fn of(asked: &LinuxContainerResources) -> Result<Resources, Status> {
    let oom_score_adj = i32::try_from(asked.oom_score_adj).ok();
    Ok(Resources { oom_score_adj, ..changed(&Resources::default(), asked)? })
}

/// What a container has after a change: fields that are zero stay as they are, and so does the OOM score.
pub(crate) fn changed(now: &Resources, asked: &LinuxContainerResources) -> Result<Resources, Status> {
    let given = |value: i64| (value != 0).then_some(value);
    let positive = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
    let memory = given(asked.memory_limit_in_bytes).or(now.memory_limit_bytes);
    Ok(Resources {
        cpu_shares: positive(asked.cpu_shares).or(now.cpu_shares),
        cpu_quota_us: given(asked.cpu_quota).or(now.cpu_quota_us),
        cpu_period_us: positive(asked.cpu_period).or(now.cpu_period_us),
        memory_limit_bytes: memory,
        swap_limit_bytes: swap(asked.memory_swap_limit_in_bytes, memory).or(now.swap_limit_bytes),
        cpuset_cpus: Some(asked.cpuset_cpus.clone())
            .filter(|cpus| !cpus.is_empty())
            .or_else(|| now.cpuset_cpus.clone()),
        hugepages: match asked.hugepage_limits.as_slice() {
            [] => now.hugepages.clone(),
            limits => huge_pages(limits)?,
        },
        ..now.clone()
    })
}

/// Units of page sizes, the largest first. Source: the names of hugetlb's files in cgroups.
const UNITS: [(&str, u64); 3] = [("GB", 1 << 30), ("MB", 1 << 20), ("KB", 1 << 10)];

/// Limits by the size of a page in bytes.
fn huge_pages(limits: &[HugepageLimit]) -> Result<BTreeMap<u64, u64>, Status> {
    let size = |name: &str| {
        let (number, unit) =
            UNITS.iter().find_map(|(unit, bytes)| Some((name.strip_suffix(unit)?, bytes)))?;
        number.parse::<u64>().ok()?.checked_mul(*unit)
    };
    let read = |limit: &HugepageLimit| {
        let size = size(&limit.page_size).ok_or_else(|| {
            Status::invalid_argument(format!(
                "{:?} is no size of huge pages: use 2MB or 1GB",
                limit.page_size
            ))
        })?;
        Ok((size, limit.limit))
    };
    limits.iter().map(read).collect()
}

fn page_name(size: u64) -> String {
    let unit = UNITS.iter().find(|(_, bytes)| size >= *bytes && size.is_multiple_of(*bytes));
    unit.map_or_else(|| size.to_string(), |(unit, bytes)| format!("{}{unit}", size / bytes))
}

/// The interface counts memory and swap together, the engine swap alone.
fn swap(both: i64, memory: Option<i64>) -> Option<i64> {
    match (both, memory) {
        (0, _) => None,
        (-1, _) => Some(-1),
        (both, memory) => Some((both - memory.unwrap_or(0)).max(0)),
    }
}

/// The engine's limits as a status tells them.
pub(crate) fn shown(resources: &Resources) -> LinuxContainerResources {
    let unsigned = |value: Option<u64>| value.and_then(|value| i64::try_from(value).ok()).unwrap_or(0);
    let memory = resources.memory_limit_bytes.unwrap_or(0);
    LinuxContainerResources {
        cpu_period: unsigned(resources.cpu_period_us),
        cpu_quota: resources.cpu_quota_us.unwrap_or(0),
        cpu_shares: unsigned(resources.cpu_shares),
        memory_limit_in_bytes: memory,
        oom_score_adj: i64::from(resources.oom_score_adj.unwrap_or(0)),
        cpuset_cpus: resources.cpuset_cpus.clone().unwrap_or_default(),
        memory_swap_limit_in_bytes: match resources.swap_limit_bytes {
            None => 0,
            Some(swap) if swap < 0 => -1,
            Some(swap) => memory.saturating_add(swap),
        },
        hugepage_limits: resources
            .hugepages
            .iter()
            .map(|(size, limit)| HugepageLimit { page_size: page_name(*size), limit: *limit })
            .collect(),
        ..LinuxContainerResources::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_zero_stays_and_swap_is_counted_alone() {
        let asked = LinuxContainerResources {
            cpu_shares: 512,
            cpu_quota: 50_000,
            cpu_period: 100_000,
            memory_limit_in_bytes: 64 << 20,
            memory_swap_limit_in_bytes: 96 << 20,
            oom_score_adj: 1000,
            hugepage_limits: [("2MB", 4 << 20), ("1GB", 0)]
                .map(|(size, limit)| HugepageLimit { page_size: size.to_owned(), limit })
                .to_vec(),
            ..LinuxContainerResources::default()
        };
        let made = of(&asked).unwrap();
        assert_eq!(made.swap_limit_bytes, Some(32 << 20));
        assert_eq!(made.oom_score_adj, Some(1000));
        assert_eq!(made.hugepages, BTreeMap::from([(2 << 20, 4 << 20), (1 << 30, 0)]));
        assert_eq!(shown(&made), asked);
        let only_cpu = LinuxContainerResources { cpu_quota: -1, ..LinuxContainerResources::default() };
        let after = changed(&made, &only_cpu).unwrap();
        assert_eq!((after.cpu_quota_us, after.memory_limit_bytes), (Some(-1), Some(64 << 20)));
        assert_eq!((after.oom_score_adj, after.hugepages), (Some(1000), made.hugepages));
        assert_eq!(of(&LinuxContainerResources::default()).unwrap().memory_limit_bytes, None);
        let odd = HugepageLimit { page_size: "2Mi".to_owned(), limit: 0 };
        let odd =
            LinuxContainerResources { hugepage_limits: vec![odd], ..LinuxContainerResources::default() };
        assert_eq!(of(&odd).unwrap_err().code(), tonic::Code::InvalidArgument);
    }
}
