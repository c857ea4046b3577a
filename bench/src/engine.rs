//! The engine and the node: what starts, commands, logs and restarts cost, beside the runtimes that are installed.
//!
//! Peers run in turn with Skiff (one of each, and again), so that a machine that is slow for a while is slow for all. Their
//! containers have the same limits and system call filter as Skiff's, and a network namespace that is there before.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use client::https::Https;
use futures::StreamExt as _;
use http::{HeaderValue, Request, header};
use http_body_util::{BodyExt as _, Full};
use serde_json::Value;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::api::failed;
use crate::cluster::{self, Cluster, NAMESPACE};
use crate::figures::{Figure, Samples, Unit};
use crate::peer::Peers;
use crate::processes::Memory;
use crate::skiff::Skiff;

/// Starts and commands of each kind.
const RUNS: usize = 30;
/// Pods that are created at an even pace, and how many a second.
const PACED: (usize, u32) = (100, 10);
/// As many pods as upstream's kubelet takes by default.
const FULL: usize = 110;
/// Running pods when the daemon is restarted.
const RESTARTED: usize = 200;
/// Pods that do nothing while their memory is counted.
const IDLE: usize = 500;
/// The configuration of a node that takes so many.
pub(crate) const NODE_CONFIG: &str =
    "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nmaxPods: 600\n";
/// The log that is read, which is less than what a container's log files hold, and how often it is.
const LOG_LINES: usize = 300_000;
const LOG_READS: usize = 8;

/// All rows but those of many pods.
pub(crate) async fn measure(skiff: &Skiff, archive: &Path, figures: &mut Vec<Figure>) -> Result<()> {
    let cluster = Cluster::connect().await?;
    let peers = Peers::new(archive)?;
    crate::progress("containers in a sandbox that is there, beside the peers");
    starts(&cluster, &peers, figures).await?;
    crate::progress("commands in a container, beside the peers");
    commands(skiff, &cluster, &peers, figures).await?;
    drop(peers);
    crate::progress("a log");
    figures.push(Figure::at_least(
        "log of one container, to a client that discards it",
        Unit::MegabytesPerSecond,
        log(&cluster).await?,
        500.0,
    ));
    crate::progress("pods at an even pace");
    let (count, rate) = PACED;
    let times = cluster.pods_at_a_pace(count, rate).await?;
    let name = |what: &str| format!("pod creation to Running at {rate} a second, {what} of {count}");
    figures.push(Figure::new(&name("median"), Unit::Milliseconds, times.median(), Some(50.0)));
    figures.push(Figure::new(
        &name("99th percentile"),
        Unit::Milliseconds,
        times.percentile(99),
        Some(150.0),
    ));
    cluster.remove_pods().await
}

/// Rows of many pods, on an instance whose node takes so many.
pub(crate) async fn measure_many(skiff: &Skiff, figures: &mut Vec<Figure>) -> Result<()> {
    let pods = IDLE;
    let cluster = Cluster::connect().await?;
    crate::progress("a node full of pods");
    let seconds = cluster.scale(FULL).await?;
    figures.push(Figure::new(
        &format!("{FULL} replicas Ready after the scale"),
        Unit::Seconds,
        seconds,
        Some(6.0),
    ));
    crate::progress("the daemon's restart");
    cluster.scale_to(RESTARTED).await?;
    let seconds = restart(skiff, &cluster, RESTARTED).await?;
    let name = format!("the daemon killed and started, {RESTARTED} running pods taken back");
    figures.push(Figure::new(&name, Unit::Seconds, seconds, Some(1.0)));
    let cluster = Cluster::connect().await?;
    crate::progress("many idle pods");
    cluster.scale_to(pods).await?;
    crate::processes::settle().await;
    let memory = Memory::now()?;
    let name = |what: &str| format!("{pods} idle pods: memory, PSS, of {what}");
    figures.push(Figure::new(&name("daemon and shims"), Unit::Megabytes, memory.total(), Some(1024.0)));
    figures.push(Figure::new(&name("the shims alone"), Unit::Megabytes, memory.shims, None));
    cluster.remove_deployment().await
}

/// From the request to make a container, in a sandbox with its network, until its program has been executed: the node's own
/// steps ([`skiff debug start-trace`]). The peers': from the command to its end, after which the program runs.
async fn starts(cluster: &Cluster, peers: &Peers, figures: &mut Vec<Figure>) -> Result<()> {
    let node = cluster.node().await?;
    let mut ours = Vec::new();
    let mut theirs: Vec<(String, Vec<f64>)> = peers.names().map(|name| (name, Vec::new())).collect();
    for number in 0..=RUNS {
        let pod = format!("start-{number}");
        cluster.run_limited(&pod).await?;
        ours.push(started(&node, &pod).await?);
        for (peer, (_, times)) in theirs.iter_mut().enumerate() {
            times.push(peers.start(peer)?);
        }
    }
    cluster.remove_pods().await?;
    // The first of each warms up.
    let ours = Samples::new(ours.split_off(1));
    let name = "container started in a sandbox that is there (limits, filter)";
    figures.push(Figure::new(&format!("{name}, median"), Unit::Milliseconds, ours.median(), Some(15.0)));
    figures.push(Figure::new("the same, 99th percentile", Unit::Milliseconds, ours.percentile(99), None));
    for (peer, mut times) in theirs {
        let times = Samples::new(times.split_off(1));
        figures.push(Figure::new(&format!("peer: {peer}, median"), Unit::Milliseconds, times.median(), None));
    }
    Ok(())
}

/// Seconds from the first step for the pod's container that makes it to the last one's end.
async fn started(node: &str, pod: &str) -> Result<f64> {
    let path = format!("/api/v1/nodes/{node}/proxy/debug/startTrace/default/{pod}");
    let trace: Value = serde_json::from_slice(&get(&path).await?).context("a start trace")?;
    let steps: Vec<&Value> = trace["steps"].as_array().into_iter().flatten().collect();
    let found = |name: &str| steps.iter().find(|step| step["step"] == name).copied();
    let made = found("node: make the container").context("no container was made")?;
    let begun = found("node: start the container").context("no container was started")?;
    let number = |step: &Value, field: &str| step[field].as_u64().unwrap_or_default();
    let from = number(made, "fromMicroseconds");
    let until = number(begun, "fromMicroseconds") + number(begun, "tookMicroseconds");
    ensure!(until > from, "a start trace without times: {trace}");
    Ok((until - from) as f64 / 1e6)
}

/// `true` in a running container: from the command's start to its end with the program's exit status.
async fn commands(skiff: &Skiff, cluster: &Cluster, peers: &Peers, figures: &mut Vec<Figure>) -> Result<()> {
    cluster.run_limited("commands").await?;
    peers.run_all()?;
    let mut ours = Vec::new();
    let mut asked = Vec::new();
    let mut theirs: Vec<(String, Vec<f64>)> = peers.names().map(|name| (name, Vec::new())).collect();
    for _ in 0..=RUNS {
        ours.push(skiff.time(&["exec", "commands", "true"])?);
        asked.push(asked_for().await?);
        for (peer, (_, times)) in theirs.iter_mut().enumerate() {
            times.push(peers.execute(peer)?);
        }
    }
    peers.end_all()?;
    cluster.remove_pods().await?;
    let (ours, asked) = (Samples::new(ours.split_off(1)), Samples::new(asked.split_off(1)));
    let name = "`true` in a container, from the request to its exit status";
    figures.push(Figure::new(&format!("{name}, median"), Unit::Milliseconds, asked.median(), Some(15.0)));
    figures.push(Figure::new("the same, 99th percentile", Unit::Milliseconds, asked.percentile(99), None));
    figures.push(Figure::new("the same by `skiff exec`, median", Unit::Milliseconds, ours.median(), None));
    for (peer, mut times) in theirs {
        let times = Samples::new(times.split_off(1));
        figures.push(Figure::new(
            &format!("peer: {peer} exec, median"),
            Unit::Milliseconds,
            times.median(),
            None,
        ));
    }
    Ok(())
}

/// `true` over a WebSocket to the API server: seconds from the request, on a connection that is there, to the exit status.
async fn asked_for() -> Result<f64> {
    let https = Https::new(&cluster::connection()?)?;
    let stream = https.connect().await.map_err(failed)?;
    let address = https.authority();
    let uri =
        format!("wss://{address}/api/v1/namespaces/{NAMESPACE}/pods/commands/exec?command=true&stdout=true");
    let mut request = uri.into_client_request()?;
    let protocol = HeaderValue::from_static("v5.channel.k8s.io");
    request.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    if let Some(value) = https.authorization().await.map_err(failed)? {
        request.headers_mut().insert(header::AUTHORIZATION, value);
    }
    let begun = Instant::now();
    let (mut socket, _) =
        tokio_tungstenite::client_async(request, stream).await.context("ask for a command")?;
    while let Some(message) = socket.next().await {
        // Channel 3 tells how it ended.
        if let Message::Binary(bytes) = message?
            && let Some((3, status)) = bytes.split_first()
        {
            let seconds = begun.elapsed().as_secs_f64();
            let status: Value = serde_json::from_slice(status)?;
            ensure!(status["status"] == "Success", "a command failed: {status}");
            return Ok(seconds);
        }
    }
    bail!("a command's connection ended without its status")
}

/// Megabytes a second of a log that is read whole: the best of some times, since the first ones bring it into the page cache.
async fn log(cluster: &Cluster) -> Result<f64> {
    let line =
        "a line of a log as long as lines often are: a time, a level, a place, and a sentence of some words";
    let script = format!("yes '{line}' | head -n {LOG_LINES}; touch /tmp/written; sleep 100000");
    cluster.run_until_ready("log", &script, "/tmp/written").await?;
    let bytes = (line.len() + 1) * LOG_LINES;
    let mut best: f64 = 0.0;
    for _ in 0..LOG_READS {
        let begun = Instant::now();
        let read = discarded(&format!("/api/v1/namespaces/{NAMESPACE}/pods/log/log")).await?;
        ensure!(read == bytes, "a log of {bytes} bytes was told in {read}");
        best = best.max(read as f64 / f64::from(1 << 20) / begun.elapsed().as_secs_f64());
    }
    cluster.remove_pods().await?;
    Ok(best)
}

/// How many bytes an answer has.
async fn discarded(path: &str) -> Result<usize> {
    let https = Https::new(&cluster::connection()?)?;
    let answer = https.send_http(Request::get(path).body(Full::default())?).await.map_err(failed)?;
    ensure!(answer.status().is_success(), "{path} is answered with {}", answer.status());
    let (mut body, mut read) = (answer.into_body(), 0);
    while let Some(frame) = body.frame().await {
        read += frame?.data_ref().map_or(0, bytes::Bytes::len);
    }
    Ok(read)
}

async fn get(path: &str) -> Result<Vec<u8>> {
    let https = Https::new(&cluster::connection()?)?;
    let answer = https.send_http(Request::get(path).body(Full::default())?).await.map_err(failed)?;
    ensure!(answer.status().is_success(), "{path} is answered with {}", answer.status());
    Ok(answer.into_body().collect().await?.to_bytes().to_vec())
}

/// Kills the daemon and starts it again: seconds from the start until the node is Ready and a command has run in a container
/// that was there before. None of the containers has been started anew.
async fn restart(skiff: &Skiff, cluster: &Cluster, pods: usize) -> Result<f64> {
    let one = cluster.pod_names().await?.pop().context("there are no pods")?;
    crate::processes::kill_daemon()?;
    let begun = Instant::now();
    skiff.run(&["up"])?;
    skiff.run(&["exec", &one, "true"])?;
    let seconds = begun.elapsed().as_secs_f64();
    let kept = Cluster::connect().await?.kept().await?;
    ensure!(kept >= pods, "{kept} of {pods} containers were taken back");
    Ok(seconds)
}
