//! What the host is short of, as conditions of the Node tell it and the door goes by it.

use tokio::sync::watch;

use crate::admission::Refusal;
use crate::eviction::EVICTED;

/// What the host is short of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Pressure {
    pub(crate) memory: bool,
    pub(crate) disk: bool,
    pub(crate) pids: bool,
}

impl Pressure {
    /// The conditions that hold.
    fn conditions(self) -> Vec<&'static str> {
        let all = [("MemoryPressure", self.memory), ("DiskPressure", self.disk), ("PIDPressure", self.pids)];
        all.into_iter().filter(|(_, holds)| *holds).map(|(name, _)| name).collect()
    }
}

/// Whether a pod may not come now. Where memory alone is short, those may that have asked for some, or say that they bear
/// it. Source: `managerImpl.Admit`.
pub(crate) fn refusal(pressure: Pressure, critical: bool, qos: &str, bears_it: bool) -> Option<Refusal> {
    if pressure == Pressure::default() || critical {
        return None;
    }
    let only_memory = pressure == Pressure { memory: true, ..Pressure::default() };
    if only_memory && (qos != "BestEffort" || bears_it) {
        return None;
    }
    let message = format!("The node had condition: [{}]. ", pressure.conditions().join(" "));
    Some(Refusal { reason: EVICTED.to_owned(), message })
}

/// The pressure as it was last seen, for those who tell of it.
#[derive(Default)]
pub(crate) struct WatchedPressure {
    current: watch::Sender<Pressure>,
}

impl WatchedPressure {
    /// It was looked at.
    pub(super) fn set(&self, pressure: Pressure) {
        let changed = self.current.send_if_modified(|known| std::mem::replace(known, pressure) != pressure);
        if changed {
            tracing::warn!(?pressure, "what the host is short of has changed");
        }
    }

    pub(crate) fn current(&self) -> Pressure {
        *self.current.borrow()
    }

    /// Tells of changes from now on.
    pub(crate) fn subscribe(&self) -> Changes {
        Changes(self.current.subscribe())
    }
}

/// Changes of the pressure.
pub(crate) struct Changes(watch::Receiver<Pressure>);

impl Changes {
    /// Returns when it has changed. Cancel safe.
    pub(crate) async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_would_add_to_a_shortage_may_not_come() {
        let none = Pressure::default();
        let (memory, disk) = (Pressure { memory: true, ..none }, Pressure { disk: true, ..none });
        let may_come = |pressure, critical, qos, bears| refusal(pressure, critical, qos, bears).is_none();
        assert!(may_come(none, false, "BestEffort", false));
        assert!(!may_come(memory, false, "BestEffort", false) && may_come(memory, false, "BestEffort", true));
        assert!(may_come(memory, false, "Burstable", false));
        assert!(!may_come(disk, false, "Guaranteed", true) && may_come(disk, true, "BestEffort", false));
        let both = Pressure { disk: true, ..memory };
        let told = refusal(both, false, "Guaranteed", false).unwrap();
        assert_eq!(told.message, "The node had condition: [MemoryPressure DiskPressure]. ");
        assert_eq!(told.reason, "Evicted");
    }
}
