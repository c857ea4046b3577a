//! A terminating pod is released when its connections have ended, and no later than the bound.

use std::time::{Duration, Instant};

use network::drain::DataPath;
use reconcile::ports::{Drain as _, PodRef};
use serde_json::json;

use crate::namespaces::read_greeting;
use crate::world::in_world;

const BOUND: Duration = Duration::from_secs(10);

#[test]
fn a_pod_is_released_when_its_last_connection_ends() {
    in_world(|world| async move {
        let drain = DataPath::new(world.view.clone(), world.handles.clone()).unwrap();
        let (a, b, client) = (world.pod("a"), world.pod("b"), world.pod("client"));
        a.ns.serve_tcp(8080, "a");
        b.ns.serve_tcp(8080, "b");
        let port = json!({"name": "http", "port": 8080, "protocol": "TCP"});
        let spec = json!({"clusterIP": "10.43.0.7", "ports": [{"name": "http", "port": 80}]});
        let pod = PodRef {
            namespace: "default".into(),
            name: "a".into(),
            uid: "1".into(),
            addresses: vec![a.address.into()],
        };
        assert!(!drain.serves(&pod));
        world.service("web", spec, None).await;
        world.endpoints("web", &port, &[(&a, true)]).await;
        assert!(drain.serves(&pod));
        let mut kept = client.ns.connect("10.43.0.7:80").unwrap();
        read_greeting(&mut kept).unwrap();

        let released = drain.released(&pod, BOUND);
        tokio::pin!(released);
        let pending = |_| "still serving";
        // It serves new connections: nothing is released.
        let outcome = tokio::select! { biased;
        () = &mut released => "released",
        held = async { world.settled().await; pending(()) } => held };
        assert_eq!(outcome, "still serving");
        world.endpoints("web", &port, &[(&a, false), (&b, true)]).await;
        assert_eq!(client.ns.ask("10.43.0.7:80").unwrap().server, "b");
        // The kept connection holds it.
        let outcome = tokio::select! { biased;
        () = &mut released => "released",
        held = async { world.settled().await; pending(()) } => held };
        assert_eq!(outcome, "still serving");
        let start = Instant::now();
        drop(kept);
        released.await;
        let took = start.elapsed();
        println!("released {took:?} after the last connection ended");
        assert!(took < BOUND / 2, "{took:?}: only the bound released it");

        // Nobody is connected: at once. A connection that stays: at the bound.
        drain.released(&pod, BOUND).await;
        let pod = PodRef { addresses: vec![b.address.into()], ..pod.clone() };
        let _stays = client.ns.connect("10.43.0.7:80").unwrap();
        world.endpoints("web", &port, &[(&a, true), (&b, false)]).await;
        let start = Instant::now();
        drain.released(&pod, Duration::from_millis(300)).await;
        assert!(start.elapsed() >= Duration::from_millis(300));
    });
}
