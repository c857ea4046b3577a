//! Updates, rollbacks and scaling under load: no request fails, and no manifest sleeps for it. The load comes from the
//! host itself, to the cluster address and to the balancer's, and from another machine to a node port.

use testbed::{Host, LoadReport, Testbed};

use crate::pressure::Pressure;
use crate::web;

/// Everything that happens to a Deployment of three pods in its life.
fn life(host: &Host, loads: &mut [Pressure]) {
    let mut after = |pods: u64| {
        web::rolled_out(host);
        web::quiet(host);
        loads.iter_mut().for_each(|load| load.after_the_end_of(pods));
    };
    after(0);
    web::set_version(host, "v2");
    after(3);
    host.must_kubectl(&["rollout", "undo", "deployment/web"]);
    after(3);
    web::scaled(host, "1");
    after(2);
    host.must_kubectl(&["rollout", "restart", "deployment/web"]);
    after(1);
    web::scaled(host, "4");
    after(0);
}

#[track_caller]
fn both_answered(report: &LoadReport) {
    for version in ["v1", "v2"] {
        assert!(report.answers.contains_key(version), "{version} did not answer: {report}");
    }
}

#[test]
fn no_request_fails_while_a_deployment_is_updated_rolled_back_and_scaled() {
    let bed = Testbed::new().unwrap();
    let (host, outside) = (bed.host().unwrap(), bed.host().unwrap());
    host.must_skiff(&["up"]);
    web::deploy(&host);
    let node_port = format!("{}:30080", host.address).parse().unwrap();
    let inside = Pressure::start(&host, web::targets(&host));
    let remote = Pressure::of(&outside, vec![node_port], 50, 10);
    let mut loads = [inside, remote];
    life(&host, &mut loads);
    for load in loads {
        both_answered(&load.stop());
    }

    assert_eq!(bed.leaked_packets().unwrap(), 0, "{}", bed.leaks().unwrap());
    host.must_skiff(&["down", "--purge"]);
}
