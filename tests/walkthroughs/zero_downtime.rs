//! Updates, rollbacks and scaling under load: no request fails, and no manifest sleeps for it. The load comes from the
//! host itself, to the cluster address and to the balancer's, and from another machine to a node port.

use std::time::Duration;

use testbed::{Host, Load, LoadConfig, LoadReport, Testbed};

use crate::web;

/// Everything that happens to a Deployment in its life.
fn life(host: &Host, load: &Load) {
    load.more(300);
    web::set_version(host, "v2");
    web::rolled_out(host);
    load.more(300);
    host.must_kubectl(&["rollout", "undo", "deployment/web"]);
    web::rolled_out(host);
    load.more(300);
    web::scaled(host, "1");
    load.more(300);
    host.must_kubectl(&["rollout", "restart", "deployment/web"]);
    web::rolled_out(host);
    web::scaled(host, "4");
    load.more(300);
}

fn nothing_failed(report: &LoadReport, wanted_rate: f64) {
    println!("{report}");
    assert_eq!(report.failed, 0, "{report}");
    assert!(report.kept > 0, "{report}");
    for version in ["v1", "v2"] {
        assert!(report.answers.contains_key(version), "{version} did not answer: {report}");
    }
    // It is no measurement: a machine that is busy with other things may fall behind.
    assert!(report.rate() > wanted_rate / 2.0, "too few requests: {report}");
}

#[test]
fn no_request_fails_while_a_deployment_is_updated_rolled_back_and_scaled() {
    let bed = Testbed::new().unwrap();
    let (host, outside) = (bed.host().unwrap(), bed.host().unwrap());
    host.must_skiff(&["up"]);
    web::deploy(&host);
    let pause = Duration::from_millis(50);
    let inside = LoadConfig { targets: web::targets(&host), per_second: 250, kept: 50, pause };
    let node_port = format!("{}:30080", host.address).parse().unwrap();
    let remote = LoadConfig { targets: vec![node_port], per_second: 50, kept: 10, pause };
    let (inside, remote) = (Load::start(&host, inside).unwrap(), Load::start(&outside, remote).unwrap());
    life(&host, &inside);
    let (inside, remote) = (inside.stop(), remote.stop());
    nothing_failed(&inside, 250.0);
    nothing_failed(&remote, 50.0);

    assert_eq!(bed.leaked_packets().unwrap(), 0);
    host.must_skiff(&["down", "--purge"]);
}
