//! The arithmetic of rolling updates and of scaling several sets at once.

use super::plan::Planner;
use super::types::{DESIRED_REPLICAS, MAX_REPLICAS};
use crate::replicaset::Set;

/// How many pods a set has or may still make. Those of one that is being deleted are the garbage collector's, and may wait for
/// the set to go: who waits for them waits for ever.
fn size(set: &Set) -> i64 {
    if set.metadata.is_terminating() { set.replicas() } else { set.replicas().max(set.status.replicas) }
}

impl Planner {
    /// One pass of a rolling update: first up, within the surge; else down, as far as enough pods are available.
    pub(super) fn roll(&mut self) {
        self.sync_revision(true);
        if self.grow_new() || self.shrink_old() {
            return;
        }
        self.clean_up_if_complete();
    }

    fn grow_new(&mut self) -> bool {
        let Some(current) = self.new.as_ref().map(Set::replicas) else { return false };
        let desired = self.deployment.replicas();
        if current == desired {
            return false;
        }
        let to = if current > desired { desired } else { self.size_of_new(current) };
        to != current && self.scale(None, to)
    }

    /// The size of the new set, which has `current`: all that is wanted, within the surge. Source: `NewRSNewReplicas`;
    /// stricter in that pods of the others count until they are known to go, since a request to delete one may fail.
    pub(super) fn size_of_new(&self, current: i64) -> i64 {
        let desired = self.deployment.replicas();
        if self.deployment.recreates() {
            return desired;
        }
        let others: i64 = self.old.iter().map(size).sum();
        let room = desired.saturating_add(self.deployment.max_surge()) - others.saturating_add(current);
        if room <= 0 { current } else { current + room.min(desired - current) }
    }

    /// Source: `reconcileOldReplicaSets`.
    fn shrink_old(&mut self) -> bool {
        let total: i64 = self.all().map(Set::replicas).sum();
        let (new_size, new_available) =
            self.new.as_ref().map_or((0, 0), |new| (new.replicas(), new.status.available_replicas));
        if total == new_size {
            return false;
        }
        let min_available = self.deployment.replicas() - self.deployment.max_unavailable();
        // Pods of the new set that are not available yet cannot stand in for old ones.
        let spare = total - min_available - (new_size - new_available);
        if spare <= 0 {
            return false;
        }
        // Both always run: pods that do nothing go first, then as many of the others as are not needed.
        let unhealthy = self.drop_unhealthy(spare);
        let healthy = self.drop_available(min_available, spare);
        unhealthy || healthy
    }

    /// Takes away old pods that are not available anyway. Source: `cleanupUnhealthyReplicas`.
    fn drop_unhealthy(&mut self, spare: i64) -> bool {
        let mut dropped = 0;
        for index in 0..self.old.len() {
            let set = &self.old[index];
            let unhealthy = set.replicas() - set.status.available_replicas;
            let count = unhealthy.min(spare - dropped);
            if set.replicas() > 0 && count > 0 {
                let to = set.replicas() - count;
                self.scale(Some(index), to);
                dropped += count;
            }
        }
        dropped > 0
    }

    /// Takes away old pods as long as enough pods are available. Source: `scaleDownOldReplicaSetsForRollingUpdate`;
    /// stricter in that a set's pods count as available only up to its size, since a status lags behind a scale-down.
    fn drop_available(&mut self, min_available: i64, spare: i64) -> bool {
        let lasting = |set: &Set| set.status.available_replicas.min(set.replicas());
        let available: i64 = self.all().map(lasting).sum();
        let spare = spare.min(available - min_available);
        let mut dropped = 0;
        for index in 0..self.old.len() {
            let size = self.old[index].replicas();
            let count = size.min(spare - dropped);
            if count > 0 {
                self.scale(Some(index), size - count);
                dropped += count;
            }
        }
        dropped > 0
    }

    /// Whether the wanted number changed since the sets were sized. Source: `isScalingEvent`.
    pub(super) fn is_scaling(&self) -> bool {
        self.all().filter(|set| set.replicas() > 0).any(|set| {
            annotation(set, DESIRED_REPLICAS).is_some_and(|desired| desired != self.deployment.replicas())
        })
    }

    /// Brings the sets to a changed number of pods, each in proportion to its size. Source: `scale`.
    pub(super) fn scale_proportionally(&mut self) {
        let desired = self.deployment.replicas();
        if let Some(only) = self.only_active_or_latest() {
            let size = only.map_or_else(
                || self.new.as_ref().map_or(0, Set::replicas),
                |index| self.old[index].replicas(),
            );
            if size != desired {
                self.scale(only, desired);
            }
            return;
        }
        if self.new.as_ref().is_some_and(|new| is_saturated(new, desired)) {
            for index in 0..self.old.len() {
                if self.old[index].replicas() > 0 {
                    self.scale(Some(index), 0);
                }
            }
            return;
        }
        if !self.deployment.recreates() {
            self.spread(desired);
        }
    }

    /// The one set that takes every change: the only active one, or if none is active the newest. `Some(None)` is the
    /// new set; `None` says that several are active (or there is none at all). Source: `FindActiveOrLatest`.
    fn only_active_or_latest(&self) -> Option<Option<usize>> {
        let mut active: Vec<Option<usize>> =
            (0..self.old.len()).filter(|index| self.old[*index].replicas() > 0).map(Some).collect();
        if self.new.as_ref().is_some_and(|new| new.replicas() > 0) {
            active.push(None);
        }
        match active.len() {
            0 if self.new.is_some() => Some(None),
            0 => self.old.len().checked_sub(1).map(Some),
            1 => active.pop(),
            _ => None,
        }
    }

    /// Several active sets share the difference by size, the largest takes what rounding leaves.
    fn spread(&mut self, desired: i64) {
        let mut active: Vec<(Option<usize>, i64)> = (0..self.old.len())
            .map(|index| (Some(index), self.old[index].replicas()))
            .chain(self.new.as_ref().map(|new| (None, new.replicas())))
            .filter(|(_, size)| *size > 0)
            .collect();
        let total: i64 = active.iter().map(|(_, size)| size).sum();
        let allowed = if desired > 0 { desired.saturating_add(self.deployment.max_surge()) } else { 0 };
        let to_add = allowed - total;
        // Largest first; of equals, the newer grows first and the older shrinks first.
        let age = |index: Option<usize>| index.unwrap_or(usize::MAX);
        active.sort_by(|a, b| {
            let by_age = if to_add > 0 { age(b.0).cmp(&age(a.0)) } else { age(a.0).cmp(&age(b.0)) };
            b.1.cmp(&a.1).then(by_age)
        });
        let mut added = 0;
        let mut sizes = Vec::with_capacity(active.len());
        for (index, size) in active {
            let share = self.share(index, size, allowed, to_add, added);
            added += share;
            sizes.push((index, size + share));
        }
        if let Some((_, size)) = sizes.first_mut() {
            *size = (*size + to_add - added).max(0);
        }
        for (index, size) in sizes {
            self.scale(index, size);
        }
    }

    /// What one set gets of `to_add`, of which `added` are given away. Source: `GetReplicaSetProportion`.
    fn share(&self, index: Option<usize>, size: i64, allowed: i64, to_add: i64, added: i64) -> i64 {
        if to_add == 0 || to_add == added {
            return 0;
        }
        let set = match index {
            Some(index) => self.old.get(index),
            None => self.new.as_ref(),
        };
        let before = set.and_then(|set| annotation(set, MAX_REPLICAS)).filter(|max| *max > 0);
        let before = before.unwrap_or(self.deployment.status.replicas);
        let fraction = if self.deployment.replicas() == 0 || before <= 0 {
            -size
        } else {
            rounded(size.saturating_mul(allowed), before) - size
        };
        let left = to_add - added;
        if to_add > 0 { fraction.min(left).max(0) } else { fraction.max(left).min(0) }
    }
}

/// Whether the new set has all pods that are wanted, available, and was sized for them.
fn is_saturated(new: &Set, desired: i64) -> bool {
    annotation(new, DESIRED_REPLICAS) == Some(desired)
        && new.replicas() == desired
        && new.status.available_replicas == desired
}

fn annotation(set: &Set, name: &str) -> Option<i64> {
    set.metadata.annotations.get(name)?.parse().ok()
}

/// `a / b` to the nearest whole number, halves up; both positive.
fn rounded(a: i64, b: i64) -> i64 {
    a.saturating_add(b / 2) / b
}
