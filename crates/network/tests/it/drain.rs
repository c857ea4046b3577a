//! A terminating pod is released when its connections have ended, and no later than the bound.

use std::io::{ErrorKind, Read as _, Write as _};
use std::time::{Duration, Instant};

use network::peers::PROGRAMMED;
use network::proxy::table::PAUSED;
use reconcile::ports::{Drain as _, PodRef};
use serde_json::{Value, json};
use sys::net::nft::{Element, ElementValue, Op, Transaction};

use crate::namespaces::read_greeting;
use crate::world::{Pod, World, in_world};

/// Far longer than anything here takes, also on a machine that is busy with other things: who is released later than
/// half of it was released by the bound only.
const BOUND: Duration = Duration::from_secs(1200);

fn port() -> Value {
    json!({"name": "http", "port": 8080, "protocol": "TCP"})
}

fn spec() -> Value {
    json!({"clusterIP": "10.43.0.7", "ports": [{"name": "http", "port": 80}]})
}

fn reference(pod: &Pod) -> PodRef {
    PodRef {
        namespace: "default".into(),
        name: "pod".into(),
        uid: "1".into(),
        addresses: vec![pod.address.into()],
    }
}

/// Whether `released` waits while everything that was told so far is programmed.
async fn waits(world: &World, released: &mut (impl Future<Output = ()> + Unpin)) -> bool {
    tokio::select! { biased;
        () = released => false,
        () = world.settled() => true,
    }
}

#[test]
fn a_pod_is_released_when_its_last_connection_ends() {
    in_world(|world| async move {
        let drain = world.drain();
        let (a, b, client) = (world.pod("a"), world.pod("b"), world.pod("client"));
        a.ns.serve_tcp(8080, "a");
        b.ns.serve_tcp(8080, "b");
        let (port, pod) = (port(), reference(&a));
        assert!(!drain.serves(&pod));
        world.service("web", spec(), None).await;
        world.endpoints("web", &port, &[(&a, true)]).await;
        assert!(drain.serves(&pod));
        let mut kept = client.ns.connect("10.43.0.7:80").unwrap();
        read_greeting(&mut kept).unwrap();

        let released = drain.released(&pod, BOUND);
        tokio::pin!(released);
        assert!(waits(&world, &mut released).await, "released while it serves new connections");
        world.endpoints("web", &port, &[(&a, false), (&b, true)]).await;
        assert_eq!(client.ns.ask("10.43.0.7:80").unwrap().server, "b");
        assert!(waits(&world, &mut released).await, "released with a connection open");
        let start = Instant::now();
        drop(kept);
        released.await;
        let took = start.elapsed();
        println!("released {took:?} after the last connection ended");
        assert!(took < BOUND / 2, "{took:?}: only the bound released it");

        // Nobody is connected: at once. A connection that stays: at the bound.
        drain.released(&pod, BOUND).await;
        let pod = reference(&b);
        let _stays = client.ns.connect("10.43.0.7:80").unwrap();
        world.endpoints("web", &port, &[(&a, true), (&b, false)]).await;
        let start = Instant::now();
        drain.released(&pod, Duration::from_millis(300)).await;
        assert!(start.elapsed() >= Duration::from_millis(300));
    });
}

#[test]
fn the_last_endpoint_waits_for_its_connections_and_for_nothing_else() {
    in_world(|world| async move {
        let drain = world.drain();
        let (a, client) = (world.pod("a"), world.pod("client"));
        a.ns.serve_tcp(8080, "a");
        world.service("web", spec(), None).await;
        world.endpoints("web", &port(), &[(&a, true)]).await;
        let mut kept = client.ns.connect("10.43.0.7:80").unwrap();
        read_greeting(&mut kept).unwrap();
        let pod = reference(&a);
        let released = drain.released(&pod, BOUND);
        tokio::pin!(released);
        assert!(waits(&world, &mut released).await, "released before its endpoint is marked");
        world.endpoints("web", &port(), &[(&a, false)]).await;
        // For want of others it serves on.
        assert_eq!(client.ns.ask("10.43.0.7:80").unwrap().server, "a");
        assert!(waits(&world, &mut released).await, "released with a connection open");
        let start = Instant::now();
        drop(kept);
        released.await;
        drain.released(&pod, BOUND).await;
        assert!(start.elapsed() < BOUND / 2, "only the bound released it");
    });
}

#[test]
fn other_nodes_are_waited_for_until_they_report() {
    in_world(|world| async move {
        let drain = world.drain();
        let (a, b) = (world.pod("a"), world.pod("b"));
        world.service("web", spec(), None).await;
        let report = |revision: Option<i64>| {
            let annotations = revision.map_or_else(|| json!({}), |at| json!({PROGRAMMED: at.to_string()}));
            let renewed = reconcile::time::micros(jiff::Timestamp::now());
            world.api.put(
                "leases",
                json!({
                    "metadata": {"name": "n2", "namespace": "kube-node-lease", "annotations": annotations},
                    "spec": {"renewTime": renewed, "leaseDurationSeconds": 3600},
                }),
            )
        };
        // Of a node that nobody has heard of yet nothing is waited for.
        world.informers.get(reconcile::kinds::LEASES).caught_up(report(None)).await;
        world.endpoints("web", &port(), &[(&a, false), (&b, true)]).await;
        let slices = *world.view.revision().borrow();
        let pod = reference(&a);
        let released = drain.released(&pod, BOUND);
        tokio::pin!(released);
        assert!(waits(&world, &mut released).await, "released before the other node reported");
        report(Some(1));
        assert!(waits(&world, &mut released).await, "released on a report of an older state");
        let start = Instant::now();
        report(Some(slices));
        released.await;
        assert!(start.elapsed() < BOUND / 2, "only the bound released it");
    });
}

#[test]
fn a_client_that_uses_its_port_again_finds_another_endpoint() {
    in_world(|world| async move {
        let drain = world.drain();
        let (a, b, client) = (world.pod("a"), world.pod("b"), world.pod("client"));
        a.ns.serve_tcp(8080, "a");
        b.ns.serve_tcp(8080, "b");
        client.ns.run(|| {
            // One port, free again as soon as its connection has ended: as after a minute for any client, while the
            // tracker remembers a connection for two.
            sys::ns::set_sysctl("net/ipv4/ip_local_port_range", "40000 40000").unwrap();
            sys::ns::set_sysctl("net/ipv4/tcp_max_tw_buckets", "0").unwrap();
        });
        world.service("web", spec(), None).await;
        world.endpoints("web", &port(), &[(&a, true)]).await;
        assert_eq!(client.ns.ask("10.43.0.7:80").unwrap().server, "a");
        world.endpoints("web", &port(), &[(&a, false), (&b, true)]).await;
        drain.released(&reference(&a), BOUND).await;
        let greeting = client.ns.ask("10.43.0.7:80").unwrap();
        assert_eq!((greeting.server.as_str(), greeting.client.port()), ("b", 40_000));
    });
}

#[test]
fn what_clients_send_is_held_back_while_a_pod_is_signalled() {
    in_world(|world| async move {
        let drain = world.pausing_drain(Duration::from_secs(3600));
        let (a, b, client) = (world.pod("a"), world.pod("b"), world.pod("client"));
        a.ns.serve_tcp(8080, "a");
        world.service("web", spec(), None).await;
        world.endpoints("web", &port(), &[(&a, true)]).await;
        let mut kept = client.ns.connect("10.43.0.7:80").unwrap();
        read_greeting(&mut kept).unwrap();
        world.endpoints("web", &port(), &[(&a, false), (&b, true)]).await;
        // At the bound the connection is still open.
        drain.released(&reference(&a), Duration::from_millis(200)).await;
        // The server ends the connection as soon as it reads something: not while that is held back, and then.
        kept.write_all(b"?").unwrap();
        kept.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        assert_eq!(kept.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
        let key = Element { key: a.address.octets().to_vec(), value: ElementValue::None };
        let ops = vec![Op::DeleteElements(PAUSED.into(), vec![key])];
        world.handles.nftables.apply(&Transaction { table: "skiff-test".into(), ops }).unwrap();
        kept.set_read_timeout(Some(BOUND)).unwrap();
        assert_eq!(kept.read(&mut [0]).unwrap(), 0);
    });
}
