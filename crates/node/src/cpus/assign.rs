//! Which CPUs a container gets: whole sockets first, then whole cores, then threads, from where least is left. Pure.
//! Source: `takeByTopologyNUMAPacked` in `pkg/kubelet/cm/cpumanager/cpu_assignment.go`.

use super::set::CpuSet;
use super::topology::{Level, Topology};

/// A choice as far as it is made.
struct Choice<'a> {
    topology: &'a Topology,
    free: CpuSet,
    taken: CpuSet,
    count: usize,
}

/// Takes so many of those that are free.
///
/// # Errors
/// If there are not so many.
pub(super) fn take(topology: &Topology, free: &CpuSet, count: usize) -> Result<CpuSet, String> {
    if count > free.len() {
        let available = free.len();
        return Err(format!(
            "not enough cpus available to satisfy request: requested={count}, available={available}"
        ));
    }
    let mut choice = Choice { topology, free: free.clone(), taken: CpuSet::default(), count };
    // The larger parts first. Source: `newCPUAccumulator`.
    let levels = match topology.parts(Level::Socket).len() >= topology.parts(Level::Numa).len() {
        true => [Level::Numa, Level::Socket, Level::Core],
        false => [Level::Socket, Level::Numa, Level::Core],
    };
    for depth in 1..=levels.len() {
        choice.take_whole(&levels[..depth]);
    }
    for part in choice.sorted(&levels) {
        for cpu in choice.topology.within(Level::Core, part).iter() {
            if choice.missing() > 0 && choice.free.contains(cpu) {
                choice.take(&CpuSet::from_iter([cpu]));
            }
        }
    }
    Ok(choice.taken)
}

impl Choice<'_> {
    fn missing(&self) -> usize {
        self.count.saturating_sub(self.taken.len())
    }

    fn take(&mut self, cpus: &CpuSet) {
        self.taken = self.taken.with(cpus);
        self.free = self.free.without(cpus);
    }

    /// Takes parts that are wholly free, as long as more is missing than one of them has.
    fn take_whole(&mut self, levels: &[Level]) {
        let Some(level) = levels.last() else { return };
        for part in self.sorted(levels) {
            let cpus = self.topology.within(*level, part);
            if cpus.is_within(&self.free) && self.missing() >= cpus.len() {
                self.take(&cpus);
            }
        }
    }

    /// The parts of the last level that have free CPUs: by how many the larger parts have, those with few first, then by
    /// how many they have themselves.
    fn sorted(&self, levels: &[Level]) -> Vec<u32> {
        let Some((last, above)) = levels.split_last() else { return Vec::new() };
        let mut parts: Vec<u32> = Vec::new();
        let mut add = |cpus: &CpuSet| {
            let places = cpus.iter().filter_map(|cpu| self.topology.0.get(&cpu));
            let mut own: Vec<u32> = places.map(|place| place.at(*last)).collect();
            own.sort_unstable();
            own.dedup();
            own.sort_by_key(|part| (self.free_within(*last, *part).len(), *part));
            for part in own {
                if !parts.contains(&part) {
                    parts.push(part);
                }
            }
        };
        match above.last() {
            None => add(&self.free),
            Some(level) => {
                self.sorted(above).into_iter().for_each(|part| add(&self.free_within(*level, part)));
            }
        }
        parts
    }

    fn free_within(&self, level: Level, part: u32) -> CpuSet {
        let inside = self.topology.within(level, part);
        inside.iter().filter(|cpu| self.free.contains(*cpu)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::topology::Place;
    use super::super::topology::tests::round;
    use super::*;

    fn taken(topology: &Topology, free: &str, count: usize) -> Result<String, String> {
        take(topology, &free.parse().unwrap(), count).map(|cpus| cpus.to_string())
    }

    /// Upstream's cases of `TestTakeByTopologyNUMAPacked` on the same machines.
    #[test]
    fn cpus_are_taken_as_upstream_does() {
        // One socket of four cores, and two of three, with two threads in each core.
        let (single, dual) = (round(1, 4, 2), round(2, 3, 2));
        for (topology, free, count, wanted) in [
            (&single, "0-7", 0, ""),
            (&single, "0-7", 1, "0"),
            (&single, "1,3,5-7", 1, "6"),
            (&single, "0-7", 2, "0,4"),
            (&single, "0-7", 8, "0-7"),
            (&single, "0-3,6", 2, "2,6"),
            (&dual, "1-5,7-11", 1, "2"),
            (&dual, "0-11", 6, "0,2,4,6,8,10"),
            (&dual, "0-11", 8, "0-2,4,6-8,10"),
            // Rather a whole core than the rest of others.
            (&dual, "1-11", 2, "2,8"),
            // More whole cores than the smaller remainder has: it is emptied first.
            (&dual, "2-5,8-11", 6, "2-4,8-10"),
        ] {
            assert_eq!(taken(topology, free, count).as_deref(), Ok(wanted), "{count} of {free}");
        }
        let few = "not enough cpus available to satisfy request: requested=5, available=4";
        assert_eq!(taken(&single, "0,2,4,6", 5), Err(few.to_owned()));
    }

    #[test]
    fn where_a_socket_has_several_nodes_it_is_the_larger_part() {
        // Four nodes in two sockets, a node of two cores each.
        let place = |cpu: u32| Place { core: cpu, socket: cpu / 4, numa: cpu / 2 };
        let machine = Topology((0..8).map(|cpu| (cpu, place(cpu))).collect());
        assert_eq!(taken(&machine, "0-7", 4).as_deref(), Ok("0-3"));
        assert_eq!(taken(&machine, "0-7", 2).as_deref(), Ok("0-1"));
        assert_eq!(taken(&machine, "1-7", 2).as_deref(), Ok("2-3"), "a whole node of the socket with less");
        assert_eq!(taken(&machine, "1-7", 1).as_deref(), Ok("1"));
    }

    #[test]
    fn two_cores_are_one_each() {
        let machine = round(1, 2, 1);
        assert_eq!(taken(&machine, "1", 1).as_deref(), Ok("1"));
        assert_eq!(taken(&machine, "0-1", 2).as_deref(), Ok("0-1"));
    }
}
