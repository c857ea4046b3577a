//! How many seats a priority level could have used over a while. Pure.
//! Source: `apiserver/pkg/util/flowcontrol/fairqueuing/integrator.go`, `seatDemandStats`.

use std::time::Duration;

/// How much of the past stays at each adjustment: half of it after five minutes. Source: `seatDemandSmoothingCoefficient`.
const KEPT: f64 = 0.977;

/// The demand since the last adjustment, and that of before, smoothed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Demand {
    wanted: u32,
    most: u32,
    since: Duration,
    begun: Duration,
    /// Seat-seconds, and seat-squared-seconds.
    sum: f64,
    squares: f64,
    /// What an adjustment aims for.
    pub(super) smoothed: f64,
    /// The most that was wanted before the last adjustment.
    pub(super) high: u32,
    /// Average and deviation before the last adjustment.
    pub(super) average: f64,
    pub(super) deviation: f64,
}

impl Demand {
    /// Nothing is wanted.
    pub(super) fn new(now: Duration) -> Self {
        Self {
            wanted: 0,
            most: 0,
            since: now,
            begun: now,
            sum: 0.0,
            squares: 0.0,
            smoothed: 0.0,
            high: 0,
            average: 0.0,
            deviation: 0.0,
        }
    }

    /// So many seats are wanted from now on.
    pub(super) fn observe(&mut self, now: Duration, wanted: u32) {
        self.catch_up(now);
        self.wanted = wanted;
        self.most = self.most.max(wanted);
    }

    fn catch_up(&mut self, now: Duration) {
        let (passed, wanted) = (now.saturating_sub(self.since).as_secs_f64(), f64::from(self.wanted));
        self.sum += wanted * passed;
        self.squares += wanted * wanted * passed;
        self.since = self.since.max(now);
    }

    /// Ends a period: its average and deviation become part of what is aimed for. The envelope rises at once and falls
    /// slowly.
    pub(super) fn settle(&mut self, now: Duration) {
        self.catch_up(now);
        let passed = now.saturating_sub(self.begun).as_secs_f64();
        if passed > 0.0 {
            self.average = self.sum / passed;
            self.deviation = (self.squares / passed - self.average * self.average).max(0.0).sqrt();
        } else {
            (self.average, self.deviation) = (f64::from(self.wanted), 0.0);
        }
        let envelope = self.average + self.deviation;
        self.smoothed = (self.smoothed * KEPT + envelope * (1.0 - KEPT)).max(envelope);
        self.high = self.most;
        (self.most, self.begun, self.sum, self.squares) = (self.wanted, now, 0.0, 0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demand_rises_at_once_and_falls_slowly() {
        let at = Duration::from_secs;
        let mut demand = Demand::new(at(0));
        demand.observe(at(0), 10);
        demand.observe(at(5), 0);
        demand.settle(at(10));
        assert!((demand.average - 5.0).abs() < 1e-9 && (demand.deviation - 5.0).abs() < 1e-9);
        assert!((demand.smoothed - 10.0).abs() < 1e-9);
        assert_eq!(demand.high, 10);
        demand.settle(at(20));
        assert!((demand.smoothed - 9.77).abs() < 1e-9);
        assert_eq!(demand.high, 0);
    }
}
