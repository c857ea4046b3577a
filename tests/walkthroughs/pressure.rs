//! A load while pods come and go, and what it has to show: no request fails, at least 200 are sent a second, and a
//! connection that is kept ends unanswered only where the pod ends that it leads to.

use std::net::SocketAddr;
use std::time::Duration;

use testbed::{Host, Load, LoadConfig, LoadReport};

/// What is asked for: a quarter more than has to be reached, so that who fell behind catches up.
const PER_SECOND: u32 = 250;
/// What has to be reached, of what is asked for.
const SHARE: f64 = 0.8;
/// How long a slow machine may take to catch up.
const PATIENCE: Duration = Duration::from_secs(600);

/// Requests on new connections, and clients that keep theirs.
pub(crate) struct Pressure {
    load: Load,
    per_second: f64,
    kept: u64,
    /// Pods that have ended, each with at most all kept connections.
    ended: u64,
}

impl Pressure {
    /// 250 requests a second on new connections, and 50 clients that keep theirs.
    pub(crate) fn start(host: &Host, targets: Vec<SocketAddr>) -> Self {
        Self::of(host, targets, PER_SECOND, 50)
    }

    /// As many requests a second, and clients, as are said.
    pub(crate) fn of(host: &Host, targets: Vec<SocketAddr>, per_second: u32, kept: u32) -> Self {
        let pause = Duration::from_millis(100);
        let load = Load::start(host, LoadConfig { targets, per_second, kept, pause }).unwrap();
        let pressure = Self { load, per_second: per_second.into(), kept: kept.into(), ended: 0 };
        pressure.load.every_client_asked();
        pressure
    }

    /// That many pods have ended since the last time, and none ends now: their connections are the only ones that may
    /// have ended without an answer. Goes on for some time in which none does.
    #[track_caller]
    pub(crate) fn after_the_end_of(&mut self, pods: u64) {
        self.ended += pods;
        self.load.every_client_asked();
        let before = self.load.report();
        let most = self.ended * self.kept;
        assert!(before.crossed <= most, "more than {most} requests crossed an end: {before}");
        self.load.more(300);
        self.load.every_client_asked();
        let after = self.load.report();
        assert_eq!(after.crossed, before.crossed, "an end was crossed where no pod ended: {after}");
    }

    /// Ends it, not before the rate was reached over the whole time.
    #[track_caller]
    pub(crate) fn stop(self) -> LoadReport {
        let wanted = self.per_second * SHARE;
        // A little more: time passes until it is stopped.
        self.load.until_rate(wanted * 1.02, PATIENCE);
        let report = self.load.stop();
        println!("{report}");
        assert_eq!(report.failed, 0, "{report}");
        assert!(report.kept > 0, "{report}");
        assert!(report.rate() >= wanted, "this machine does not send {wanted} requests a second: {report}");
        report
    }
}
