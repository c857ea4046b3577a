//! Ten thousand Services: how long the kernel takes is printed, and that one more costs only itself is checked.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use api::Key;
use network::proxy::desired::{Frontend, Group, IfEmpty};
use network::proxy::plan::{Batch, State};
use sys::net::nft::{Op, Transaction};

use crate::world::in_world;

const SERVICES: u32 = 10_000;

fn group(number: u32, endpoints: u32) -> Group {
    let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 43, 1, 0)) + number);
    Group {
        name: "http/6/80".into(),
        frontends: vec![Frontend { address: Some(address), protocol: 6, port: 80, external: false }],
        leaving: std::collections::BTreeSet::new(),
        endpoints: (0..endpoints)
            .map(|index| SocketAddrV4::new(Ipv4Addr::from(0x0a2a_0100 + number * 3 + index), 8080))
            .collect(),
        affinity_s: None,
        if_empty: IfEmpty::Reject,
    }
}

fn elements(ops: &[Op]) -> usize {
    ops.iter()
        .map(|op| match op {
            Op::AddElements(_, elements) | Op::DeleteElements(_, elements) => elements.len(),
            _ => 0,
        })
        .sum()
}

#[test]
fn a_change_among_ten_thousand_services_costs_only_itself() {
    in_world(|world| async move {
        world.stop_proxy().await;
        let fixed = network::host::set_up(&world.config, &world.handles).unwrap();
        let apply = |ops: Vec<Op>| {
            let start = Instant::now();
            world.handles.nftables.apply(&Transaction { table: fixed.table.clone(), ops }).unwrap();
            start.elapsed()
        };
        let mut state = State::new(world.config.node_pods);
        let mut batch = Batch::default();
        let start = Instant::now();
        for number in 0..SERVICES {
            state.change(&Key::new("default", format!("s{number}")), &[group(number, 3)], &mut batch);
        }
        let planned = start.elapsed();
        let mut ops = network::proxy::table::fixed(&fixed);
        ops.extend(batch.into_ops());
        let count = elements(&ops);
        println!(
            "{SERVICES} Services, {count} elements: planned in {planned:?}, programmed in {:?}",
            apply(ops)
        );
        assert_eq!(world.handles.nftables.keys("skiff-test", "addresses").unwrap().len(), SERVICES as usize);

        let mut times: Vec<Duration> = Vec::new();
        for round in 0..30 {
            let number = round * 300;
            let mut batch = Batch::default();
            state.change(&Key::new("default", format!("s{number}")), &[group(number, 2)], &mut batch);
            let ops = batch.into_ops();
            // The endpoint goes, and the frontend's count changes (out and in).
            assert_eq!(elements(&ops), 3, "{ops:?}");
            times.push(apply(ops));
        }
        times.sort();
        println!("one endpoint less: {:?} at the median, {:?} at most", times[15], times[29]);
    });
}
