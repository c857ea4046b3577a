//! What a node is to have left, and how long it may have less. Source: `pkg/kubelet/eviction/api`, `helpers.go`.

use std::collections::BTreeMap;
use std::time::Duration;

use api::quantity::{Format, Quantity};

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signal {
    /// Memory less the working set of everything on the host.
    Memory,
    /// Bytes of the file system where pods write.
    NodeDisk,
    /// Its inodes.
    NodeInodes,
    /// Bytes of the file system where images lie.
    ImageDisk,
    /// Its inodes.
    ImageInodes,
    /// Process ids.
    Pids,
}

impl Signal {
    pub(crate) const ALL: [Self; 6] =
        [Self::Memory, Self::NodeDisk, Self::NodeInodes, Self::ImageDisk, Self::ImageInodes, Self::Pids];

    /// As configurations name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory.available",
            Self::NodeDisk => "nodefs.available",
            Self::NodeInodes => "nodefs.inodesFree",
            Self::ImageDisk => "imagefs.available",
            Self::ImageInodes => "imagefs.inodesFree",
            Self::Pids => "pid.available",
        }
    }

    /// Whether it is of a disk: only then it matters what pods have on theirs.
    pub(crate) fn is_of_disk(self) -> bool {
        !matches!(self, Self::Memory | Self::Pids)
    }

    fn named(name: &str) -> Result<Self, String> {
        if matches!(name, "containerfs.available" | "containerfs.inodesFree") {
            return Err(format!(
                "{name} has no effect on this node, whose containers write where nodefs is; leave it out"
            ));
        }
        let found = Self::ALL.into_iter().find(|signal| signal.name() == name);
        found.ok_or_else(|| format!("unsupported eviction signal {name}"))
    }
}

/// So much of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// Bytes, or a number.
    Absolute(u64),
    /// Hundredths of a percent of all that there is.
    Share(u32),
    /// Such a share, but no more than so much.
    ShareUpTo(u32, u64),
}

impl Amount {
    /// A quantity or a percentage; `None` for those with which upstream turns a threshold off.
    /// Source: `parseThresholdStatement`.
    fn parse(text: &str) -> Result<Option<Self>, String> {
        let Some(percent) = text.strip_suffix('%') else {
            let quantity: Quantity = text.parse().map_err(|error| format!("{text:?}: {error}"))?;
            let bytes = u64::try_from(quantity.value()).ok().filter(|bytes| *bytes > 0);
            return bytes
                .map(|bytes| Some(Self::Absolute(bytes)))
                .ok_or_else(|| format!("{text:?} must be positive"));
        };
        let wrong = || format!("{text:?} is no percentage from 0% to 100%");
        let percent: f64 = percent.parse().map_err(|_| wrong())?;
        if !(0.0..=100.0).contains(&percent) {
            return Err(wrong());
        }
        let share = (percent * 100.0).round() as u32;
        Ok((share > 0 && share < 10_000).then_some(Self::Share(share)))
    }

    /// How much that is of `capacity`.
    pub(crate) fn of(self, capacity: u64) -> u64 {
        let part =
            |share: u32| u64::try_from(u128::from(capacity) * u128::from(share) / 10_000).unwrap_or(u64::MAX);
        match self {
            Self::Absolute(bytes) => bytes,
            Self::Share(share) => part(share),
            Self::ShareUpTo(share, most) => part(share).min(most),
        }
    }

    /// In the words of configurations, where there is `capacity` of it.
    pub(crate) fn shown(self, capacity: u64) -> String {
        let percent = |share: u32| format!("{}%", f64::from(share) / 100.0);
        match self {
            Self::Absolute(bytes) => binary(bytes).to_string(),
            Self::Share(share) => percent(share),
            Self::ShareUpTo(share, most) if self.of(capacity) < most => percent(share),
            Self::ShareUpTo(_, most) => binary(most).to_string(),
        }
    }
}

/// Bytes as upstream writes them.
pub(crate) fn binary(bytes: u64) -> Quantity {
    Quantity::from_units(i64::try_from(bytes).unwrap_or(i64::MAX), Format::BinarySi)
}

/// What a node is to have left of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threshold {
    /// Of what.
    pub signal: Signal,
    /// How much.
    pub least: Amount,
    /// How long it may have less; none at all for hard thresholds.
    pub grace: Option<Duration>,
    /// How much more is to be made free once there is less.
    pub reclaim: Option<Amount>,
}

/// When pods have to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eviction {
    /// The thresholds.
    pub thresholds: Vec<Threshold>,
    /// How long a condition of the node stays after it was last seen. Source: `evictionPressureTransitionPeriod`.
    pub transition: Duration,
    /// The longest that pods which go for a soft threshold have to end, in seconds.
    pub grace_seconds_max: i64,
}

/// A disk that has so much left is not full, however large it is: Skiff runs on disks that people fill with other things,
/// where a tenth may be more than all pods will ever write.
const DISK_ENOUGH: u64 = 1 << 30;

/// Upstream's thresholds (`DefaultEvictionHard` in `pkg/kubelet/apis/config/v1beta1`), but for that bound of the disk's.
fn defaults() -> Vec<Threshold> {
    let least = [
        (Signal::Memory, Amount::Absolute(100 << 20)),
        (Signal::NodeDisk, Amount::ShareUpTo(1000, DISK_ENOUGH)),
        (Signal::NodeInodes, Amount::Share(500)),
        (Signal::ImageDisk, Amount::ShareUpTo(1500, DISK_ENOUGH)),
        (Signal::ImageInodes, Amount::Share(500)),
    ];
    least.map(|(signal, least)| Threshold { signal, least, grace: None, reclaim: None }).to_vec()
}

impl Default for Eviction {
    fn default() -> Self {
        Self { thresholds: defaults(), transition: Duration::from_secs(300), grace_seconds_max: 0 }
    }
}

/// Texts of a configuration, by the name of the signal.
pub(crate) type Texts = BTreeMap<String, String>;

/// What a configuration says of evictions.
#[derive(Debug, Clone, Default)]
pub(crate) struct Words {
    pub(crate) hard: Option<Texts>,
    /// What is not named in `hard` is as without it.
    pub(crate) merge_defaults: bool,
    pub(crate) soft: Texts,
    pub(crate) soft_grace: BTreeMap<String, Duration>,
    pub(crate) reclaim: Texts,
}

impl Words {
    /// Reads them. Source: `ParseThresholdConfig`.
    pub(crate) fn thresholds(&self) -> Result<Vec<Threshold>, String> {
        let mut thresholds = match &self.hard {
            Some(hard) => {
                let named = |signal: Signal| hard.contains_key(signal.name());
                let mut kept = if self.merge_defaults { defaults() } else { Vec::new() };
                kept.retain(|known| !named(known.signal));
                kept.extend(read("evictionHard", hard)?);
                kept
            }
            None => defaults(),
        };
        for soft in read("evictionSoft", &self.soft)? {
            let grace = self.soft_grace.get(soft.signal.name()).copied();
            let missing = || {
                format!(
                    "grace period must be specified for the soft eviction threshold {}",
                    soft.signal.name()
                )
            };
            thresholds.push(Threshold { grace: Some(grace.ok_or_else(missing)?), ..soft });
        }
        for name in self.soft_grace.keys() {
            Signal::named(name).map_err(|error| format!("evictionSoftGracePeriod: {error}"))?;
        }
        for reclaim in read("evictionMinimumReclaim", &self.reclaim)? {
            let of_signal = thresholds.iter_mut().filter(|known| known.signal == reclaim.signal);
            of_signal.for_each(|known| known.reclaim = Some(reclaim.least));
        }
        thresholds.sort_by_key(|threshold| (threshold.signal, threshold.grace.is_some()));
        Ok(thresholds)
    }
}

/// Amounts of a field; those that turn a threshold off are left out.
fn read(field: &str, texts: &Texts) -> Result<Vec<Threshold>, String> {
    let mut read = Vec::new();
    for (name, text) in texts {
        let told = |error: String| format!("{field}: {error}");
        let signal = Signal::named(name).map_err(told)?;
        if let Some(least) = Amount::parse(text).map_err(told)? {
            read.push(Threshold { signal, least, grace: None, reclaim: None });
        }
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(pairs: &[(&str, &str)]) -> Texts {
        pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn the_defaults_are_upstreams_but_for_large_disks() {
        let shown = |capacity: u64| -> Vec<_> {
            let thresholds = Eviction::default().thresholds;
            thresholds.iter().map(|known| (known.signal.name(), known.least.shown(capacity))).collect()
        };
        let wanted = |node: &str, image: &str| {
            [
                ("memory.available", "100Mi"),
                ("nodefs.available", node),
                ("nodefs.inodesFree", "5%"),
                ("imagefs.available", image),
                ("imagefs.inodesFree", "5%"),
            ]
            .map(|(name, text)| (name, text.to_owned()))
        };
        assert_eq!(shown(5 << 30), wanted("10%", "15%"));
        assert_eq!(shown(1 << 40), wanted("1Gi", "1Gi"));
    }

    #[test]
    fn amounts_are_quantities_and_percentages() {
        assert_eq!(Amount::parse("1Gi"), Ok(Some(Amount::Absolute(1 << 30))));
        assert_eq!(Amount::parse("7.5%"), Ok(Some(Amount::Share(750))));
        assert_eq!([Amount::parse("0%"), Amount::parse("100%")], [Ok(None), Ok(None)]);
        assert_eq!((Amount::Share(750).of(1000), Amount::Share(750).shown(0).as_str()), (75, "7.5%"));
        for wrong in ["-1Mi", "0", "101%", "many", "x%"] {
            assert!(Amount::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn configurations_replace_the_defaults_or_go_over_them() {
        let hard = Some(texts(&[("memory.available", "1Gi"), ("nodefs.inodesFree", "0%")]));
        let mut words = Words { hard, ..Words::default() };
        let signals = |words: &Words| -> Vec<_> {
            words.thresholds().unwrap().iter().map(|known| (known.signal, known.least)).collect()
        };
        assert_eq!(signals(&words), [(Signal::Memory, Amount::Absolute(1 << 30))]);
        words.merge_defaults = true;
        assert_eq!(signals(&words).len(), 4);
        words.soft = texts(&[("memory.available", "2Gi")]);
        let missing = "grace period must be specified for the soft eviction threshold memory.available";
        assert_eq!(words.thresholds().unwrap_err(), missing);
        words.soft_grace = BTreeMap::from([("memory.available".to_owned(), Duration::from_secs(90))]);
        words.reclaim = texts(&[("memory.available", "500Mi")]);
        let thresholds = words.thresholds().unwrap();
        let memory: Vec<_> = thresholds.iter().filter(|known| known.signal == Signal::Memory).collect();
        assert_eq!([memory[0].grace, memory[1].grace], [None, Some(Duration::from_secs(90))]);
        assert!(memory.iter().all(|known| known.reclaim == Some(Amount::Absolute(500 << 20))));
        words.reclaim = texts(&[("memory.free", "500Mi")]);
        let unknown = "evictionMinimumReclaim: unsupported eviction signal memory.free";
        assert_eq!(words.thresholds().unwrap_err(), unknown);
    }
}
