//! The rolling update of a StatefulSet: which pods are deleted, so that others of the update revision take their place.
//! Source: `updateStatefulSetAfterInvariantEstablished`.

use jiff::Timestamp;

use super::plan::{Slot, Step, delete};
use super::types::{Member, StatefulSet};

/// How many of the wanted pods are missing or not available.
pub(super) fn unavailable(set: &StatefulSet, slots: &[Slot<'_>], now: Timestamp) -> i64 {
    let available = slots.iter().filter(|slot| !slot.is_unavailable(set, now)).count();
    set.replicas().saturating_sub(i64::try_from(available).unwrap_or(i64::MAX))
}

/// The pods to replace now, from the highest ordinal down to the partition, as many as may be missing.
///
/// With parallel pods, those that are not available anyway cost nothing: they are replaced first and all at once, so that
/// a version that never came up does not stand in the way of the one that mends it.
pub(super) fn replace(
    set: &StatefulSet,
    update: &str,
    slots: &[Slot<'_>],
    unavailable: i64,
    now: Timestamp,
) -> Vec<Step> {
    let budget = usize::try_from(set.max_unavailable().saturating_sub(unavailable)).unwrap_or(0);
    let first = set.start().saturating_add(set.partition());
    let old = slots.iter().rev().filter(|slot| slot.ordinal() >= first).filter_map(|slot| match slot {
        Slot::Held(member) => {
            Some(*member).filter(|member| member.revision() != update && !member.is_terminating())
        }
        Slot::Missing { .. } => None,
    });
    let is_well = |member: &&Member| member.is_available(set.min_ready(), now);
    let victims: Vec<&Member> = if set.is_ordered() {
        old.take(budget).collect()
    } else {
        let (well, broken): (Vec<_>, Vec<_>) = old.partition(is_well);
        broken.into_iter().chain(well.into_iter().take(budget)).collect()
    };
    victims.into_iter().map(|member| delete(member, true)).collect()
}
