//! Logs, exec and port-forward through the node's handler, as the API server's clients speak to it.

use std::sync::Arc;

use api::connect::Body;
use bytes::Bytes;
use futures::{FutureExt as _, SinkExt as _, StreamExt as _};
use http_body_util::{BodyExt as _, Empty};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use node::NodeServer;
use serde_json::Value;
use tokio::io::DuplexStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::world::{World, holds, one};

async fn with_pod() -> World {
    let world = World::new().await;
    world.create("web", one());
    world.pod_until("web", "Ready", |pod| holds(pod, "Ready")).await;
    world
}

pub(crate) async fn get(server: &Arc<NodeServer>, path: &str) -> (u16, String) {
    let body: Body = Empty::<Bytes>::new().map_err(|never| match never {}).boxed_unsync();
    let answer = server.handle(http::Request::get(path).body(body).unwrap()).await;
    let status = answer.status().as_u16();
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}

/// Opens a WebSocket to the handler over a pipe.
async fn websocket(server: Arc<NodeServer>, path: &str, protocol: &str) -> WebSocketStream<DuplexStream> {
    let (near, far) = tokio::io::duplex(1 << 16);
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let server = server.clone();
        async move {
            let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
            Ok::<_, std::convert::Infallible>(server.handle(request).await)
        }
    });
    base::lifecycle::Context::detached("server").spawn(async move {
        let connection =
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(far), service);
        let _ = connection.with_upgrades().await;
    });
    let mut request = format!("ws://node{path}").into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
    let (socket, answer) = tokio_tungstenite::client_async(request, near).await.unwrap();
    assert_eq!(answer.headers()["sec-websocket-protocol"], protocol.split(',').next().unwrap());
    socket
}

/// Everything that comes until the server closes: the bytes of each channel.
async fn channels(mut socket: WebSocketStream<DuplexStream>) -> [Vec<u8>; 4] {
    let mut channels: [Vec<u8>; 4] = Default::default();
    loop {
        match socket.next().await {
            Some(Ok(Message::Binary(bytes))) => {
                channels[usize::from(bytes[0])].extend_from_slice(&bytes[1..])
            }
            // kubectl takes every other end for a failure.
            Some(Ok(Message::Close(Some(frame)))) if u16::from(frame.code) == 1000 => return channels,
            other => panic!("ended with {other:?}"),
        }
    }
}

#[tokio::test]
async fn logs_are_read() {
    let world = with_pod().await;
    let path = world.runtime.newest("main").unwrap().log_path;
    std::fs::write(path, "2024-01-01T00:00:00Z stdout F one\n2024-01-01T00:00:01Z stderr F two\n").unwrap();
    let server = world.agent().server();
    assert_eq!(get(&server, "/containerLogs/default/web/main").await, (200, "one\ntwo\n".to_owned()));
    let tail = get(&server, "/containerLogs/default/web/main?tailLines=1&timestamps=true").await;
    assert_eq!(tail.1, "2024-01-01T00:00:01Z two\n");
    let (status, text) = get(&server, "/containerLogs/default/web/other").await;
    assert_eq!(status, 400);
    assert!(text.contains("container other is not valid for pod web"), "{text}");
    assert_eq!(get(&server, "/containerLogs/default/none/main").await.0, 404);
    let (status, text) = get(&server, "/containerLogs/default/web/main?previous=true").await;
    assert_eq!(status, 400);
    assert!(text.contains("previous terminated container"), "{text}");
}

#[tokio::test]
async fn exec_closes_its_input_and_tells_its_exit_code() {
    let world = with_pod().await;
    let server = world.agent().server();
    let path = "/exec/default/web/main?command=cat&stdin=true&stdout=true";
    let mut socket = websocket(server.clone(), path, "v5.channel.k8s.io").await;
    socket.send(Message::binary(b"\x00hello ".to_vec())).await.unwrap();
    socket.send(Message::binary(b"\x00world".to_vec())).await.unwrap();
    socket.send(Message::binary(vec![255, 0])).await.unwrap();
    let [_, stdout, _, error] = channels(socket).await;
    assert_eq!(stdout, b"hello world");
    assert_eq!(serde_json::from_slice::<Value>(&error).unwrap()["status"], "Success");

    let path = "/exec/default/web/main?command=exit&command=3&output=1";
    let [_, _, _, error] = channels(websocket(server.clone(), path, "v4.channel.k8s.io").await).await;
    let status: Value = serde_json::from_slice(&error).unwrap();
    assert_eq!(status["details"]["causes"][0]["message"], "3");

    let path = "/exec/default/web/main?command=size&stdout=true&tty=true&stdin=true";
    let mut socket = websocket(server, path, "v5.channel.k8s.io").await;
    socket.send(Message::binary(b"\x04{\"Width\":80,\"Height\":24}".to_vec())).await.unwrap();
    assert_eq!(channels(socket).await[1], b"80x24");
}

#[tokio::test]
async fn hundreds_of_streams_are_open_at_once() {
    const STREAMS: usize = 300;
    let world = with_pod().await;
    let server = world.agent().server();
    let path = world.runtime.newest("main").unwrap().log_path;
    let mut logs = Vec::new();
    let mut execs = Vec::new();
    for _ in 0..STREAMS {
        let body: Body = Empty::<Bytes>::new().map_err(|never| match never {}).boxed_unsync();
        let request = http::Request::get("/containerLogs/default/web/main?follow=true").body(body).unwrap();
        let answer = server.handle(request).await;
        assert_eq!(answer.status(), 200);
        let mut body = answer.into_body();
        assert!(body.frame().now_or_never().is_none(), "nothing is written yet");
        logs.push(body);
        let exec = "/exec/default/web/main?command=cat&stdin=true&stdout=true";
        execs.push(websocket(server.clone(), exec, "v5.channel.k8s.io").await);
    }
    std::fs::write(&path, "2024-01-01T00:00:00Z stdout F all\n").unwrap();
    for body in &mut logs {
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "all\n");
    }
    for socket in &mut execs {
        socket.send(Message::binary(b"\x00mine".to_vec())).await.unwrap();
        socket.send(Message::binary(vec![255, 0])).await.unwrap();
    }
    for socket in execs {
        assert_eq!(channels(socket).await[1], b"mine");
    }
    // The end of the container is the end of its logs.
    let id = world.runtime.newest("main").unwrap().spec.id;
    world.runtime.end(&id, 0);
    for mut body in logs {
        assert!(body.frame().await.is_none());
    }
}

#[tokio::test]
async fn requests_that_cannot_be_met_are_refused_before_the_upgrade() {
    let world = with_pod().await;
    let server = world.agent().server();
    let (status, text) = get(&server, "/exec/default/web/main?stdout=true").await;
    assert_eq!(status, 400);
    assert!(text.contains("at least 1 command"), "{text}");
    let (status, text) = get(&server, "/exec/default/web/main?stdout=true&command=x").await;
    assert_eq!(status, 400);
    assert!(text.contains("needs an upgrade"), "{text}");
    assert_eq!(get(&server, "/exec/default/none/main?command=x&stdout=true").await.0, 404);
    assert_eq!(get(&server, "/nowhere").await.0, 404);
}

#[tokio::test]
async fn ports_are_forwarded_over_plain_channels() {
    let world = with_pod().await;
    let server = world.agent().server();
    let mut socket = websocket(server, "/portForward/default/web?ports=7&ports=9", "v4.channel.k8s.io").await;
    for channel in 0..4_u8 {
        let opened = socket.next().await.unwrap().unwrap().into_data();
        let port = if channel < 2 { 7 } else { 9 };
        assert_eq!(opened.as_ref(), [channel, port, 0]);
    }
    socket.send(Message::binary(b"\x00ping".to_vec())).await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..2 {
        seen.push(socket.next().await.unwrap().unwrap().into_data().to_vec());
    }
    assert!(seen.contains(&b"\x00ping".to_vec()), "{seen:?}");
    let refused = seen.iter().find(|message| message[0] == 3).expect("port 9 is refused");
    assert!(String::from_utf8_lossy(refused).contains("connection refused"));
}

#[tokio::test]
async fn the_node_tells_its_pods_and_their_use() {
    let world = with_pod().await;
    let server = world.agent().server();
    let pods: Value = serde_json::from_str(&get(&server, "/pods").await.1).unwrap();
    assert_eq!(pods["items"][0]["metadata"]["name"], "web");
    let stats: Value = serde_json::from_str(&get(&server, "/stats/summary").await.1).unwrap();
    assert_eq!(stats["pods"][0]["containers"][0]["cpu"]["usageCoreNanoSeconds"], 5);
    assert_eq!(stats["pods"][0]["cpu"]["usageCoreNanoSeconds"], 5);
    assert!(stats["node"]["cpu"]["usageCoreNanoSeconds"].as_u64() > Some(0));
    assert!(stats["node"]["memory"]["workingSetBytes"].as_u64() > Some(0));
    assert!(stats["node"]["fs"]["capacityBytes"].as_u64() > Some(0));
    assert_eq!(stats["node"]["runtime"]["imageFs"]["capacityBytes"], stats["node"]["fs"]["capacityBytes"]);
    assert!(stats["pods"][0]["containers"][0]["rootfs"]["availableBytes"].is_u64());
    let resources = get(&server, "/metrics/resource").await.1;
    let labels = "{container=\"main\",namespace=\"default\",pod=\"web\"}";
    assert!(
        resources.contains(&format!("container_cpu_usage_seconds_total{labels} 0.000000005 ")),
        "{resources}"
    );
    assert!(resources.contains("node_cpu_usage_seconds_total "));
    assert!(get(&server, "/logs/").await.1.contains("<pre>"));
    let metrics = get(&server, "/metrics").await.1;
    for line in [
        "kubelet_running_containers{container_state=\"running\"} 1\n",
        "kubelet_running_pods 1\n",
        "kubelet_desired_pods{static=\"\"} 1\n",
        "kubelet_desired_pods{static=\"true\"} 0\n",
        "kubelet_node_name{node=\"n1\"} 1\n",
        "kubelet_started_containers_total{container_type=\"container\"} 1\n",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    let cadvisor = get(&server, "/metrics/cadvisor").await.1;
    let main = "container_cpu_usage_seconds_total{container=\"main\",id=\"/";
    assert!(cadvisor.contains(main), "{cadvisor}");
    assert_eq!(get(&server, "/metrics/probes").await, (200, String::new()));
    let config: Value = serde_json::from_str(&get(&server, "/configz").await.1).unwrap();
    assert_eq!(config["kubeletconfig"]["maxPods"], 110);
    assert_eq!(config["kubeletconfig"]["clusterDNS"][0], "10.96.0.10");
    assert_eq!(config["kubeletconfig"]["crashLoopBackOff"]["maxContainerRestartPeriod"], "5m0s");
    assert_eq!(config["kubeletconfig"]["evictionHard"]["memory.available"], "100Mi");
    assert!(config["kubeletconfig"]["staticPodPath"].as_str().unwrap().ends_with("/manifests"));
    assert_eq!(get(&server, "/healthz").await, (200, "ok".to_owned()));
}

#[tokio::test]
async fn probes_are_counted_as_long_as_their_pod_is_there() {
    let world = World::new().await;
    let mut spec = one();
    spec["containers"][0]["readinessProbe"] = serde_json::json!({ "exec": { "command": ["exit", "0"] } });
    world.create("web", spec);
    world.pod_until("web", "Ready", |pod| holds(pod, "Ready")).await;
    let server = world.agent().server();
    let told = get(&server, "/metrics/probes").await.1;
    let of_pod = "prober_probe_total{container=\"main\",namespace=\"default\",pod=\"web\",pod_uid=\"";
    assert!(told.contains(of_pod) && told.contains("result=\"successful\"} 1\n"), "{told}");
    world.api.delete_pod("web", 0);
    world.until("gone", || world.pod("web").is_null().then_some(())).await;
    // What is left of the pod was removed by another thread meanwhile: the probe's task, which was called off before,
    // has ended.
    assert_eq!(get(&server, "/metrics/probes").await, (200, String::new()));
}
