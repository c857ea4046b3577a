//! Ports of the host that lead to sandboxes.

use std::io::ErrorKind;

use base::published::PublishedPort;
use reconcile::ports::SandboxNetworks as _;

use crate::world::{HOST, OUTSIDE, World, in_world};

fn port(text: &str) -> PublishedPort {
    text.parse().unwrap()
}

async fn refused(world: &World, sandbox: &str, ports: &[PublishedPort]) -> String {
    world.sandboxes.publish(sandbox, ports).await.unwrap_err().to_string()
}

#[test]
fn published_ports_are_reached_from_everywhere_and_belong_to_one() {
    in_world(|world| async move {
        let (a, b) = (world.pod("a"), world.pod("b"));
        a.ns.serve_tcp(8080, "a");
        let asked = [port("0.0.0.0:0 8080/tcp"), port("127.0.0.1:0 8080/tcp")];
        let published = world.sandboxes.publish("a", &asked).await.unwrap();
        let [everywhere, here] = [published[0].host_port, published[1].host_port];
        assert_eq!(world.sandboxes.publish("a", &asked).await.unwrap(), published, "again: the same");

        for to in
            [format!("127.0.0.1:{everywhere}"), format!("{HOST}:{everywhere}"), format!("127.0.0.1:{here}")]
        {
            assert_eq!(world.host.ask(&to).unwrap().server, "a", "the host to {to}");
        }
        let to = format!("{HOST}:{everywhere}");
        assert_eq!(b.ns.ask(&to).unwrap().server, "a", "another pod");
        assert_eq!(a.ns.ask(&to).unwrap().server, "a", "the pod itself");
        let greeting = world.outside.ask(&to).unwrap();
        assert_eq!((greeting.server.as_str(), greeting.client.ip().to_string().as_str()), ("a", OUTSIDE));
        // What is published at one address is not to be had at the others.
        let elsewhere = world.outside.ask(&format!("{HOST}:{here}")).unwrap_err();
        assert_eq!(elsewhere.kind(), ErrorKind::ConnectionRefused);

        // Taken by another sandbox, by a program of the host, or no address of this host: one error that says so, and
        // nothing of the request is kept.
        let taken = format!("0.0.0.0:{everywhere} 80/tcp");
        let error = refused(&world, "b", &[port("127.0.0.1:0 81/tcp"), port(&taken)]).await;
        assert!(error.contains(&format!("port {everywhere}/tcp of this host is in use")), "{error}");
        assert!(world.sandboxes.published().of("b").is_empty());
        world.host.serve_tcp(8088, "host");
        let error = refused(&world, "b", &[port("0.0.0.0:8088 80/tcp")]).await;
        assert!(error.contains("port 8088/tcp of this host is in use"), "{error}");
        let error = refused(&world, "b", &[port("192.0.2.7:80 80/tcp")]).await;
        assert!(error.contains("no such address"), "{error}");

        // They end with their sandbox, and are free.
        world.sandboxes.detach("a").await.unwrap();
        for client in [&world.host, &world.outside] {
            assert_eq!(client.ask(&to).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        }
        world.sandboxes.publish("b", &[port(&taken)]).await.unwrap();
    });
}

#[test]
fn udp_ports_are_published_too() {
    in_world(|world| async move {
        let a = world.pod("a");
        a.ns.serve_udp(5353, "a");
        let published = world.sandboxes.publish("a", &[port("0.0.0.0:0 5353/udp")]).await.unwrap();
        let to = format!("{HOST}:{}", published[0].host_port);
        for client in [&world.outside, &world.host] {
            assert_eq!(crate::namespaces::udp_ask(&client.udp(&to)).unwrap(), "a");
        }
    });
}
