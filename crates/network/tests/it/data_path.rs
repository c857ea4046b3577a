//! Connections through Services, from pods, from the host and from outside.

use std::collections::BTreeSet;
use std::io::ErrorKind;

use serde_json::{Value, json};

use crate::namespaces::{Netns, udp_ask};
use crate::world::{HOST, OUTSIDE, Pod, World, in_world};

const CLUSTER_IP: &str = "10.43.0.7";
const BALANCER: &str = "10.44.0.1";

fn web() -> Value {
    json!({"name": "http", "port": 8080, "protocol": "TCP"})
}

fn spec(extra: Value) -> Value {
    let mut spec = json!({
        "clusterIP": CLUSTER_IP, "type": "LoadBalancer",
        "ports": [{"name": "http", "port": 80, "nodePort": 30080, "protocol": "TCP"}],
    });
    spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    spec
}

/// Everybody who answers in 40 connections.
fn servers(client: &Netns, to: &str) -> BTreeSet<String> {
    (0..40).map(|_| client.ask(to).unwrap_or_else(|error| panic!("{to}: {error}")).server).collect()
}

fn refused(client: &Netns, to: &str) {
    let error = client.ask(to).unwrap_err();
    assert!(
        matches!(
            error.kind(),
            ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable
        ),
        "{to}: {error}"
    );
}

#[test]
fn services_are_reached_from_everywhere_and_nothing_leaks() {
    in_world(|world| async move {
        let (a, b, client) = (world.pod("a"), world.pod("b"), world.pod("client"));
        a.ns.serve_tcp(8080, "a");
        b.ns.serve_tcp(8080, "b");
        world.service("web", spec(json!({})), Some(BALANCER)).await;
        refused(&client.ns, "10.43.0.7:80");
        world.endpoints("web", &web(), &[(&a, true), (&b, true)]).await;
        let both = BTreeSet::from(["a".to_owned(), "b".to_owned()]);
        let before = world.left();

        for to in ["10.43.0.7:80", "10.44.0.1:80", "192.168.77.2:30080"] {
            assert_eq!(servers(&client.ns, to), both, "a pod to {to}");
            assert_eq!(servers(&world.host, to), both, "the host to {to}");
        }
        assert_eq!(servers(&world.host, "127.0.0.1:30080"), both, "a node port on localhost");
        // A pod reaches itself: the answer comes from the other side of the bridge, so it appears as the gateway.
        assert_eq!(servers(&a.ns, "10.43.0.7:80"), both);
        let itself =
            (0..40).map(|_| a.ns.ask("10.43.0.7:80").unwrap()).find(|greeting| greeting.server == "a");
        assert_eq!(itself.unwrap().client.ip(), world.config.gateway());
        // Between pods, addresses stay as they are.
        assert_eq!(client.ns.ask("10.43.0.7:80").unwrap().client.ip(), client.address);
        assert_eq!(client.ns.ask(&format!("{}:8080", a.address)).unwrap().client.ip(), client.address);

        // What nobody serves is refused here, also where the default route would take it.
        for to in ["10.43.0.99:80", "10.43.0.7:81", "10.44.0.9:80", "10.42.0.200:80", "10.42.9.9:80"] {
            refused(&client.ns, to);
            refused(&world.host, to);
        }
        assert_eq!(world.left(), before, "packets left the machine");

        // From outside: node ports, with the client's address kept. To the outside: as the host.
        let greeting = world.outside.ask(&format!("{HOST}:30080")).unwrap();
        assert_eq!(greeting.client.ip().to_string(), OUTSIDE);
        world.outside.serve_tcp(9000, "outside");
        let greeting = client.ns.ask(&format!("{OUTSIDE}:9000")).unwrap();
        assert_eq!(greeting.client.ip().to_string(), HOST);

        world.endpoints("web", &web(), &[(&b, true), (&a, false)]).await;
        assert_eq!(servers(&client.ns, "10.43.0.7:80"), BTreeSet::from(["b".to_owned()]));
        world.api.delete("services", json!({"metadata": {"name": "web", "namespace": "default"}}));
        world.settled().await;
        refused(&client.ns, "10.43.0.7:80");
        cleaned_up(world).await;
    });
}

async fn cleaned_up(world: World) {
    world.stop_proxy().await;
    world.sandboxes.detach_blocking("a").unwrap();
    assert_eq!(world.sandboxes.address("a"), None);
    network::host::purge(&world.config, &world.handles).unwrap();
    let links: Vec<_> = world.handles.routing.links().unwrap().into_iter().map(|link| link.name).collect();
    assert!(links.iter().all(|name| !name.starts_with("skf")), "{links:?}");
    assert!(!links.contains(&world.config.bridge()), "{links:?}");
    let routes = world.handles.routing.routes().unwrap();
    let ours = |route: &sys::net::Route| world.config.ranges.pods.contains(&route.destination);
    assert!(!routes.iter().any(ours), "{routes:?}");
    assert!(world.handles.nftables.keys("skiff-test", "addresses").is_err(), "the table is still there");
    assert!(!world.config.dir.exists());
}

#[test]
fn clients_keep_their_endpoint_while_it_serves() {
    in_world(|world| async move {
        let (a, b, client) = (world.pod("a"), world.pod("b"), world.pod("client"));
        a.ns.serve_tcp(8080, "a");
        b.ns.serve_tcp(8080, "b");
        world.service("web", spec(json!({"sessionAffinity": "ClientIP"})), None).await;
        world.endpoints("web", &web(), &[(&a, true), (&b, true)]).await;
        let first = servers(&client.ns, "10.43.0.7:80");
        assert_eq!(first.len(), 1);
        assert_eq!(servers(&client.ns, "192.168.77.2:30080"), first, "the node port has the same memory");
        let (stays, name) = if first.contains("a") { (&b, "b") } else { (&a, "a") };
        world.endpoints("web", &web(), &[(stays, true)]).await;
        assert_eq!(servers(&client.ns, "10.43.0.7:80"), BTreeSet::from([name.to_owned()]));
        world.endpoints("web", &web(), &[(&a, true), (&b, true)]).await;
        assert_eq!(servers(&client.ns, "10.43.0.7:80"), BTreeSet::from([name.to_owned()]));
    });
}

#[test]
fn a_link_of_the_bridge_s_name_is_left_alone() {
    in_world(|world| async move {
        let mut config = world.config.clone();
        config.instance = "uplin".into();
        config.dir = world.config.dir.join("other");
        let mac = sys::net::Mac([2, 0, 0, 0, 0, 9]);
        world.handles.routing.add_bridge("uplin0", mac, 1500).unwrap();
        let refused = network::host::set_up(&config, &world.handles).unwrap_err().to_string();
        assert!(refused.contains("interface uplin0 is there and not Skiff's"), "{refused}");
        network::host::take_down(&config, &world.handles).unwrap();
        let links = world.handles.routing.links().unwrap();
        assert!(links.iter().any(|link| link.name == "uplin0" && link.mac == mac), "{links:?}");
    });
}

#[test]
fn administrators_can_list_the_table() {
    in_world(|world| async move {
        let (a, b) = (world.pod("a"), world.pod("b"));
        let affine = json!({
            "clusterIP": "10.43.0.8", "sessionAffinity": "ClientIP",
            "ports": [{"name": "http", "port": 80, "nodePort": 30081, "protocol": "TCP"}],
        });
        world.service("web", spec(json!({"externalTrafficPolicy": "Local"})), Some(BALANCER)).await;
        world.service("affine", affine, None).await;
        for service in ["web", "affine"] {
            world.endpoints(service, &web(), &[(&a, true), (&b, true)]).await;
        }
        let list = std::process::Command::new("nft").args(["list", "ruleset"]).output().unwrap();
        let (said, text) = (String::from_utf8(list.stderr).unwrap(), String::from_utf8(list.stdout).unwrap());
        assert!(list.status.success() && said.is_empty(), "{:?}: {said}", list.status);
        for part in [
            format!("10.43.0.7 . tcp . 80 . 0x00000000 : {} . 8080", a.address),
            format!("10.43.0.7 . tcp . 80 . 0x00000001 : {} . 8080", b.address),
            "10.43.0.7 . tcp . 80 : goto addresses-2".to_owned(),
            format!("dnat to {}:8080", a.address),
        ] {
            assert!(text.contains(&part), "{part:?} is not in:\n{text}");
        }
    });
}

#[test]
fn udp_clients_move_on_when_their_endpoint_goes() {
    in_world(|world| async move {
        let (a, b, client) = (world.pod("a"), world.pod("b"), world.pod("client"));
        a.ns.serve_udp(5353, "a");
        b.ns.serve_udp(5353, "b");
        let port = json!({"name": "dns", "port": 5353, "protocol": "UDP"});
        let ports = json!([{"name": "dns", "port": 53, "protocol": "UDP"}]);
        world.service("dns", json!({"clusterIP": "10.43.0.53", "ports": ports}), None).await;
        world.endpoints("dns", &port, &[(&a, true)]).await;
        let socket = client.ns.udp("10.43.0.53:53");
        assert_eq!(udp_ask(&socket).unwrap(), "a");
        world.endpoints("dns", &port, &[(&b, true)]).await;
        assert_eq!(udp_ask(&socket).unwrap(), "b");
        world.endpoints("dns", &port, &[]).await;
        assert_eq!(udp_ask(&socket).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn what_is_programmed_is_said_up_to_the_newest_revision() {
    in_world(|world| async move {
        // Whoever waits for a revision waits for no further change.
        let newest = world.api.bookmark("endpointslices");
        world.programmed(newest).await;
    });
}

#[test]
fn local_policy_keeps_external_clients_on_this_node() {
    in_world(|world| async move {
        let (a, client) = (world.pod("a"), world.pod("client"));
        a.ns.serve_tcp(8080, "a");
        let local = spec(json!({"externalTrafficPolicy": "Local"}));
        world.service("web", local, Some(BALANCER)).await;
        let elsewhere = json!({"addresses": ["10.42.7.7"], "nodeName": "n2", "conditions": {"ready": true}});
        let here = json!({"addresses": [a.address], "nodeName": "n1", "conditions": {"ready": true}});
        world.raw_endpoints("web", &web(), json!([elsewhere, here])).await;
        for _ in 0..20 {
            assert_eq!(world.outside.ask(&format!("{HOST}:30080")).unwrap().server, "a");
        }
        // From inside the cluster every endpoint counts, and the one of the other node has no route yet.
        let answers = (0..40).filter(|_| client.ns.ask("10.44.0.1:80").is_ok()).count();
        assert!((1..40).contains(&answers), "{answers} of 40");
    });
}

#[test]
fn pods_reach_the_api_server_by_its_service() {
    in_world(|world| async move {
        let client = world.pod("client");
        world.host.serve_tcp(6443, "api");
        let ports = json!([{"name": "https", "port": 443, "protocol": "TCP"}]);
        world.service("kubernetes", json!({"clusterIP": "10.43.0.1", "ports": ports}), None).await;
        let endpoint = json!([{"addresses": [HOST]}]);
        let port = json!({"name": "https", "port": 6443, "protocol": "TCP"});
        world.raw_endpoints("kubernetes", &port, endpoint).await;
        assert_eq!(client.ns.ask("10.43.0.1:443").unwrap().server, "api");
        assert_eq!(world.host.ask("10.43.0.1:443").unwrap().server, "api");
    });
}

#[test]
fn a_restart_keeps_addresses_and_frees_those_of_ended_sandboxes() {
    in_world(|world| async move {
        let (a, b) = (world.pod("a"), world.pod("b"));
        a.ns.serve_tcp(8080, "a");
        let again = network::sandbox::Sandboxes::open(&world.config, &world.handles).unwrap();
        assert_eq!(again.attach_blocking("a", a.ns.path()).unwrap(), a.address);
        again.retain_blocking(&["a".to_owned()].into()).unwrap();
        assert_eq!(again.address("b"), None);
        assert_eq!(
            b.ns.ask(&format!("{}:8080", a.address)).unwrap_err().kind(),
            ErrorKind::NetworkUnreachable
        );
        assert_eq!(world.host.ask(&format!("{}:8080", a.address)).unwrap().server, "a");
    });
}

#[test]
fn those_who_are_meant_for_the_nodes_zone_serve_it() {
    in_world(|world| async move {
        let (a, b, client) = (world.pod("a"), world.pod("b"), world.pod("client"));
        a.ns.serve_tcp(8080, "a");
        b.ns.serve_tcp(8080, "b");
        world.service("web", spec(json!({})), None).await;
        let meant = |pod: &Pod, zone: &str| json!({"addresses": [pod.address], "nodeName": "n1", "hints": {"forZones": [{"name": zone}]}});
        world.raw_endpoints("web", &web(), json!([meant(&a, "east"), meant(&b, "west")])).await;
        let both = BTreeSet::from(["a".to_owned(), "b".to_owned()]);
        assert_eq!(servers(&client.ns, "10.43.0.7:80"), both, "the node is in no zone");
        for (zone, server) in [("east", "a"), ("west", "b")] {
            let labels = json!({"topology.kubernetes.io/zone": zone});
            let told = world.api.put("nodes", json!({"metadata": {"name": "n1", "labels": labels}}));
            world.informers.get(reconcile::kinds::NODES).caught_up(told).await;
            world.settled().await;
            assert_eq!(servers(&client.ns, "10.43.0.7:80"), BTreeSet::from([server.to_owned()]), "{zone}");
        }
        world.api.delete("nodes", json!({"metadata": {"name": "n1"}}));
        let elsewhere = json!({"topology.kubernetes.io/zone": "east"});
        let told = world.api.put("nodes", json!({"metadata": {"name": "n2", "labels": elsewhere}}));
        world.informers.get(reconcile::kinds::NODES).caught_up(told).await;
        world.settled().await;
        assert_eq!(
            servers(&client.ns, "10.43.0.7:80"),
            both,
            "the node is gone, and another one's zone is not its"
        );
    });
}
