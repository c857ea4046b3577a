//! A long life under load: update after update, pods and containers that come and go, and the daemon killed without
//! warning, with clients that keep requesting. No request may fail, and in the end nothing may be left over.
//!
//! `make soak` runs it for `SKIFF_SOAK_SECONDS` (600 where it is not set).

use std::time::{Duration, Instant};

use testbed::{Held, Host, Load, LoadConfig, LoadReport, Testbed};

use crate::web;

/// One round of a host's life. `kill` ends the daemon in the middle of an update.
fn round(host: &Host, load: &Load, number: u64, kill: bool) {
    println!("round {number} at {:.1?}", load.report().took);
    web::set_version(host, if number.is_multiple_of(2) { "v2" } else { "v1" });
    if kill {
        // Another moment of the update each time.
        load.more(number * 37 % 400);
        println!("  kill at {:.3?}", load.report().took);
        web::kill_and_restart(host);
        println!("  started again at {:.3?}", load.report().took);
    }
    web::rolled_out(host);
    let churn = ["create", "deployment", "churn", "--image=busybox", "--replicas=3", "--", "sleep", "3600"];
    host.must_kubectl(&churn);
    host.must_kubectl(&["rollout", "status", "deployment", "churn", "--timeout=300s"]);
    assert_eq!(host.must_skiff(&["run", "--rm", "-p", "80", "busybox", "echo", "hello"]), "hello\n");
    web::scaled(host, if number.is_multiple_of(3) { "2" } else { "3" });
    host.must_kubectl(&["delete", "deployment", "churn"]);
    host.must_kubectl(&["delete", "pods", "-l", "app=churn", "--now", "--wait"]);
    load.more(100);
}

fn rounds(host: &Host, load: &Load, until: Instant, kill: bool) -> u64 {
    let mut number = 0;
    while Instant::now() < until {
        round(host, load, number, kill);
        number += 1;
    }
    web::scaled(host, "3");
    web::quiet(host);
    number
}

fn nothing_failed(host: &Host, report: &LoadReport) {
    println!("{report}");
    if report.failed > 0 {
        println!("{}", host.must_sh("tail -n 400 /var/lib/$SKIFF_NAME/skiff.log"));
    }
    assert_eq!(report.failed, 0, "{report}");
}

#[test]
#[ignore = "runs for minutes: make soak"]
fn a_long_life_under_load_fails_no_request_and_leaves_nothing() {
    let seconds = std::env::var("SKIFF_SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(600);
    let half = Duration::from_secs(seconds) / 2;
    let bed = Testbed::new().unwrap();
    let host = bed.host().unwrap();
    // Clients use their ports again within the time in which the connection tracker remembers them.
    host.must_sh("sysctl -qw net.ipv4.ip_local_port_range='32768 45000'");
    host.must_skiff(&["up"]);
    let archive = testbed::base_image("busybox-bookworm.tar").unwrap();
    host.must_skiff(&["load", "-i", &archive.to_string_lossy()]);
    web::deploy(&host);
    let config = LoadConfig {
        targets: web::targets(&host),
        per_second: 200,
        kept: 50,
        pause: Duration::from_millis(100),
    };
    let load = Load::start(&host, config).unwrap();
    round(&host, &load, 1, false);
    web::scaled(&host, "3");
    web::quiet(&host);
    let first = Held::on(&host);

    let killed = rounds(&host, &load, Instant::now() + half, true);
    nothing_failed(&host, &load.report());
    let middle = Held::on(&host);
    first.assert_same(&middle);
    let calm = rounds(&host, &load, Instant::now() + half, false);
    nothing_failed(&host, &load.stop());
    let last = Held::on(&host);
    first.assert_same(&last);
    middle.assert_daemon_did_not_grow(&last);
    println!("{killed} rounds with the daemon killed in each, {calm} without\n{:?}", last.daemon);

    assert_eq!(bed.leaked_packets().unwrap(), 0);
    host.must_skiff(&["down", "--purge"]);
    assert_eq!(host.processes().unwrap(), Vec::<String>::new());
    assert_eq!(host.cgroups(), Vec::<std::path::PathBuf>::new());
}
