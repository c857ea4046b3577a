//! DNS and balancers as pods and users meet them, and a host that has no way out.

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::sync::Arc;

use base::clock::SystemClock;
use client::Client;
use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use ipnet::Ipv4Net;
use network::balancer::Balancers;
use network::dns::{Dns, DnsConfig, Resolvers};
use serde_json::json;
use sys::net::{Route, Target};

use crate::namespaces::Netns;
use crate::world::in_world;

fn lookup(client: &Netns, server: &str, name: &str) -> Vec<Ipv4Addr> {
    let mut query = Message::query();
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    let socket = client.udp(server);
    socket.send(&query.to_vec().unwrap()).unwrap();
    let mut buffer = [0; 1500];
    let len = socket.recv(&mut buffer).unwrap();
    let answer = Message::from_vec(&buffer[..len]).unwrap();
    let address = |data: &RData| match data {
        RData::A(address) => Some(address.0),
        _ => None,
    };
    answer.answers.iter().filter_map(|record| address(&record.data)).collect()
}

#[test]
fn pods_ask_dns_at_its_service_and_find_nothing_else_there() {
    in_world(|world| async move {
        let client = world.pod("client");
        let ports = json!([{"name": "http", "port": 80}]);
        let spec = json!({"clusterIP": "10.43.0.7", "clusterIPs": ["10.43.0.7"], "ports": ports});
        world.service("web", spec, None).await;
        // The Service of DNS itself has no endpoints: it is this node that answers.
        let dns =
            json!({"clusterIP": "10.43.0.10", "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]});
        world.service("kube-dns", dns, None).await;
        let address = (world.config.ranges.dns(), 53).into();
        let config = DnsConfig {
            address,
            domain: "cluster.local".into(),
            resolvers: Resolvers::of("/nonexistent".into(), Vec::new()),
        };
        world.run(Dns::bind(config, world.informers.clone()).unwrap());
        for asker in [&client.ns, &*world.host] {
            let found = lookup(asker, "10.43.0.10:53", "web.default.svc.cluster.local.");
            assert_eq!(found, [Ipv4Addr::new(10, 43, 0, 7)]);
        }
        // Names of pods need their namespace and nothing in it.
        let made = world.api.put("namespaces", json!({"metadata": {"name": "empty"}}));
        world.informers.get(reconcile::kinds::NAMESPACES).caught_up(made).await;
        let found = lookup(&client.ns, "10.43.0.10:53", "10-42-0-9.empty.pod.cluster.local.");
        assert_eq!(found, [Ipv4Addr::new(10, 42, 0, 9)]);
        // A headless Service is its endpoints, those that are ready; an external name is another's.
        let headless =
            json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"name": "http", "port": 8080}]});
        world.service("db", headless, None).await;
        let (one, two) = (world.pod("one"), world.pod("two"));
        let port = json!({"name": "http", "port": 8080, "protocol": "TCP"});
        world.endpoints("db", &port, &[(&one, true), (&two, false)]).await;
        let external = json!({"type": "ExternalName", "externalName": "web.default.svc.cluster.local"});
        world.service("other", external, None).await;
        for (name, wanted) in [("db", one.address), ("other", Ipv4Addr::new(10, 43, 0, 7))] {
            let name = format!("{name}.default.svc.cluster.local.");
            assert_eq!(lookup(&client.ns, "10.43.0.10:53", &name), [wanted], "{name}");
        }
        // The host's other servers listen on every address, and are not to be had at this one.
        world.host.serve_tcp(2222, "host");
        assert_eq!(client.ns.ask("10.43.0.10:2222").unwrap_err().kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn balancers_get_addresses() {
    in_world(|world| async move {
        let client = Client::new(world.api.clone(), "test");
        let range = world.config.ranges.balancers;
        world.run(Balancers::new(&world.informers, client, range, Arc::new(SystemClock)));
        let spec = json!({"clusterIP": "10.43.0.7", "type": "LoadBalancer", "ports": [{"port": 80}]});
        world.service("web", spec, None).await;
        let ingress = async {
            loop {
                let patched = world.api.patched.notified();
                let patches = world.api.patches.lock().clone();
                let mut shown = patches.iter().map(|patch| &patch["status"]["loadBalancer"]["ingress"][0]);
                if let Some(ingress) = shown.find(|ingress| ingress.is_object()) {
                    return ingress.clone();
                }
                patched.await;
            }
        };
        let ingress = tokio::time::timeout(std::time::Duration::from_secs(60), ingress).await.unwrap();
        assert_eq!(ingress, json!({"ip": "10.44.0.1", "ipMode": "VIP"}));
    });
}

#[test]
fn services_work_on_a_host_without_a_default_route() {
    in_world(|world| async move {
        let routes = world.handles.routing.routes().unwrap();
        let default: &Route = routes.iter().find(|route| route.destination == Ipv4Net::default()).unwrap();
        assert!(matches!(default.target, Target::Gateway(..)));
        world.handles.routing.delete_route(default).unwrap();
        let (server, client) = (world.pod("server"), world.pod("client"));
        server.ns.serve_tcp(8080, "server");
        let ports = json!([{"name": "http", "port": 80}]);
        world.service("web", json!({"clusterIP": "10.43.0.7", "ports": ports}), Some("10.44.0.1")).await;
        let port = json!({"name": "http", "port": 8080, "protocol": "TCP"});
        world.endpoints("web", &port, &[(&server, true)]).await;
        for to in ["10.43.0.7:80", "10.44.0.1:80"] {
            assert_eq!(client.ns.ask(to).unwrap().server, "server");
            assert_eq!(world.host.ask(to).unwrap().server, "server");
        }
    });
}
