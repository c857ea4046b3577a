//! How the server's seats are shared among priority levels: nominal limits by shares, lending and borrowing by demand.
//! Pure. Source: KEP-1040, `apiserver/pkg/util/flowcontrol/{conc_alloc,apf_controller}.go`.

/// A level's limits in seats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Limits {
    /// Its part of all seats by its shares.
    pub(super) nominal: u32,
    /// What it never lends.
    pub(super) lower: u32,
    /// What it never borrows beyond.
    pub(super) upper: u32,
}

/// What a level's configuration says about its part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    /// Shares of the server.
    pub(super) shares: u32,
    /// How much of its part others may use, in percent.
    pub(super) lendable: u32,
    /// How much more than its part it may use, in percent; absent: all there is.
    pub(super) borrowing: Option<u32>,
}

/// The limits of levels that share `total` seats. Source: `finishQueueSetReconfigsLocked`.
pub(super) fn limits(total: u32, levels: &[Share]) -> Vec<Limits> {
    let all: u64 = levels.iter().map(|level| u64::from(level.shares)).sum();
    let nominals: Vec<u32> = levels
        .iter()
        .map(|level| {
            let part = (u64::from(total) * u64::from(level.shares)).div_ceil(all.max(1));
            u32::try_from(part).unwrap_or(u32::MAX)
        })
        .collect();
    let sum = nominals.iter().fold(0_u32, |sum, nominal| sum.saturating_add(*nominal));
    levels
        .iter()
        .zip(&nominals)
        .map(|(level, nominal)| {
            let percent = |percent: u32| {
                let part = f64::from(*nominal) * f64::from(percent) / 100.0;
                whole(part.round())
            };
            let upper = level.borrowing.map_or(sum, |limit| nominal.saturating_add(percent(limit)).min(sum));
            Limits { nominal: *nominal, lower: nominal.saturating_sub(percent(level.lendable)), upper }
        })
        .collect()
}

/// What a level asks of an adjustment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish {
    pub(super) limits: Limits,
    /// The most that it wanted at once since the last adjustment.
    pub(super) high: u32,
    /// What it aims for.
    pub(super) smoothed: f64,
    /// The exempt level takes what it wants; others share what is left.
    pub(super) exempt: bool,
}

impl Wish {
    /// What it keeps in any case: what it used of its own.
    fn least(&self) -> u32 {
        let used = if self.exempt { self.high } else { self.limits.nominal.min(self.high) };
        self.limits.lower.max(used)
    }
}

/// The seats of each level from now on.
pub(super) fn adjust(wishes: &[Wish]) -> Vec<u32> {
    let sum = |part: &dyn Fn(&Wish) -> u32, exempt: bool| -> f64 {
        wishes.iter().filter(|wish| wish.exempt == exempt).map(|wish| f64::from(part(wish))).sum()
    };
    let total: f64 = wishes.iter().map(|wish| f64::from(wish.limits.nominal)).sum();
    let left = total - sum(&Wish::least, true);
    let (lowest, least) = (sum(&|wish| wish.limits.lower, false), sum(&Wish::least, false));
    let fair = if left > least { fair_part(total, wishes) } else { 0.0 };
    let seats = |wish: &Wish| {
        if wish.exempt {
            return wish.least();
        }
        if left <= lowest {
            return wish.limits.lower;
        }
        if left <= least {
            let part = (left - lowest) / (least - lowest);
            let more = f64::from(wish.least().saturating_sub(wish.limits.lower)) * part;
            return wish.limits.lower + whole(more.round());
        }
        whole(given(wish, fair).round())
    };
    wishes.iter().map(seats).collect()
}

/// What a level gets where everybody gets this part of what it aims for, within its bounds.
fn given(wish: &Wish, fair: f64) -> f64 {
    let least = f64::from(wish.least());
    let aim = wish.smoothed.max(least).max(0.001);
    (aim * fair).clamp(least, f64::from(wish.limits.upper).max(least))
}

/// The part of what they aim for that makes all levels together have `total`, found by halving: what they get grows with
/// it. Where their bounds do not allow that, the nearest.
fn fair_part(total: f64, wishes: &[Wish]) -> f64 {
    let all =
        |fair: f64| -> f64 { wishes.iter().filter(|wish| !wish.exempt).map(|wish| given(wish, fair)).sum() };
    // Nobody aims for less than a thousandth of a seat.
    let (mut low, mut high) = (0.0, total * 1000.0 + 1.0);
    for _ in 0..100 {
        let middle = (low + high) / 2.0;
        if all(middle) < total { low = middle } else { high = middle }
    }
    high
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to what fits")]
fn whole(number: f64) -> u32 {
    number.clamp(0.0, f64::from(u32::MAX)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Upstream's own levels, by name: shares and lendable percent.
    const LEVELS: [(&str, u32, u32); 8] = [
        ("exempt", 0, 0),
        ("catch-all", 5, 0),
        ("system", 30, 33),
        ("node-high", 40, 25),
        ("leader-election", 10, 0),
        ("workload-high", 40, 50),
        ("workload-low", 100, 90),
        ("global-default", 20, 50),
    ];

    fn upstream() -> Vec<Limits> {
        let shares: Vec<Share> = LEVELS
            .iter()
            .map(|(_, shares, lendable)| Share { shares: *shares, lendable: *lendable, borrowing: None })
            .collect();
        limits(600, &shares)
    }

    #[test]
    fn limits_are_upstreams() {
        // As `apiserver_flowcontrol_{nominal,lower}_limit_seats` of a kube-apiserver with its default 600 seats.
        let got: Vec<(u32, u32)> = upstream().iter().map(|one| (one.nominal, one.lower)).collect();
        assert_eq!(got, [(0, 0), (13, 13), (74, 50), (98, 73), (25, 25), (98, 49), (245, 24), (49, 24)]);
        let bounded = limits(
            100,
            &[
                Share { shares: 1, lendable: 0, borrowing: Some(50) },
                Share { shares: 1, lendable: 0, borrowing: Some(0) },
            ],
        );
        assert_eq!(bounded[0], Limits { nominal: 50, lower: 50, upper: 75 });
        assert_eq!(bounded[1].upper, 50);
    }

    fn wishes(highs: &[u32]) -> Vec<Wish> {
        let levels = upstream().into_iter().enumerate().zip(highs);
        levels
            .map(|((at, limits), high)| Wish {
                limits,
                high: *high,
                smoothed: f64::from(*high),
                exempt: at == 0,
            })
            .collect()
    }

    #[test]
    fn who_wants_nothing_lends_and_who_wants_much_borrows() {
        let total: u32 = upstream().iter().map(|one| one.nominal).sum();
        for highs in [
            [0; 8],
            [0, 0, 0, 0, 0, 0, 0, 500],
            [0, 500, 500, 500, 500, 500, 500, 500],
            [10, 1, 2, 3, 4, 5, 600, 7],
            [400, 0, 0, 0, 0, 0, 600, 600],
            [5000, 9, 9, 9, 9, 9, 9, 9],
        ] {
            let wishes = wishes(&highs);
            let seats = adjust(&wishes);
            for (wish, seats) in wishes.iter().zip(&seats).filter(|(wish, _)| !wish.exempt) {
                assert!((wish.limits.lower..=wish.limits.upper).contains(seats), "{highs:?}: {seats:?}");
            }
            if highs[0] == 0 {
                let given: u32 = seats.iter().sum();
                assert!(given.abs_diff(total) <= 4, "{highs:?}: {seats:?} of {total}");
            }
        }
        let alone = adjust(&wishes(&[0, 0, 0, 0, 0, 0, 0, 500]));
        assert!(alone[7] > 200, "it borrows what others lend: {alone:?}");
        let all = adjust(&wishes(&[0, 500, 500, 500, 500, 500, 500, 500]));
        let nominal: Vec<u32> = upstream().iter().map(|one| one.nominal).collect();
        assert_eq!(all, nominal, "where all want all, all have their own");
    }
}
