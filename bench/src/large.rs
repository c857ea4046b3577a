//! A list that is larger than anything else: what it costs in memory, to one client and to ten slow ones.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use ::api::GroupVersionResource;
use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::process::Child;

use crate::api::{CLIENTS, failed};
use crate::cluster;
use crate::lists::Curl;
use crate::processes::Cpu;

const NAMESPACE: &str = "bench-large";
/// Pods, of about 6.7 kB each.
pub(crate) const PODS: usize = 150_000;
/// Clients that take the list slowly, each so many bytes a second, for so long.
const SLOW: (usize, &str, Duration) = (10, "2M", Duration::from_secs(20));
/// How often the memory is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Makes the pods, lists them, and says what that took, in one line each.
pub(crate) async fn measure(pods: usize) -> Result<Vec<String>> {
    let daemon = Cpu::of_daemon()?;
    let (begun, before) = (Instant::now(), daemon.seconds()?);
    create(pods).await?;
    let (seconds, used) = (begun.elapsed().as_secs_f64(), daemon.seconds()? - before);
    let mut said = vec![format!(
        "{pods} pods created, {:.0} a second, {:.3} ms of the server's CPU each",
        pods as f64 / seconds,
        used * 1000.0 / pods as f64
    )];
    // What creating them left behind settles.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let curl = Curl::new()?;
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods");
    for (what, headers) in [
        ("as JSON", None),
        ("with gzip", Some("Accept-Encoding: gzip")),
        ("in protobuf", Some("Accept: application/vnd.kubernetes.protobuf")),
    ] {
        let mut command = curl.command(&path, headers.as_slice());
        command.args(["-w", "%{size_download}"]).stdout(Stdio::piped());
        let (before, cpu, begun) = (rss(daemon.pid())?, daemon.seconds()?, Instant::now());
        let client = command.spawn().context("start curl")?;
        let (most, client) = watch_memory(daemon.pid(), vec![client], None).await?;
        let size: f64 = output(client).await?.trim().parse().context("curl tells no size")?;
        said.push(format!(
            "listed {what}: {:.0} MB in {:.1} s, {:.0} ms of CPU, {:.1} MB more memory",
            size / f64::from(1 << 20),
            begun.elapsed().as_secs_f64(),
            (daemon.seconds()? - cpu) * 1000.0,
            most - before,
        ));
    }
    let (clients, rate, duration) = SLOW;
    let before = rss(daemon.pid())?;
    let mut slow = Vec::new();
    for _ in 0..clients {
        let mut command = curl.command(&path, &[]);
        slow.push(command.args(["--limit-rate", rate]).spawn().context("start curl")?);
    }
    let (most, _) = watch_memory(daemon.pid(), slow, Some(duration)).await?;
    said.push(format!("{clients} clients that take {rate}B/s each: {:.1} MB more memory", most - before));
    Ok(said)
}

async fn output(clients: Vec<Child>) -> Result<String> {
    let mut text = String::new();
    for mut client in clients {
        ensure!(client.wait().await?.success(), "curl failed");
        if let Some(out) = &mut client.stdout {
            out.read_to_string(&mut text).await?;
        }
    }
    Ok(text)
}

/// The most memory that the daemon has while clients run, all of them or for so long.
async fn watch_memory(
    daemon: u32,
    mut clients: Vec<Child>,
    at_most: Option<Duration>,
) -> Result<(f64, Vec<Child>)> {
    let (begun, mut most) = (Instant::now(), 0f64);
    loop {
        most = most.max(rss(daemon)?);
        let mut running = 0;
        for client in &mut clients {
            running += usize::from(client.try_wait()?.is_none());
        }
        if at_most.is_some_and(|most| begun.elapsed() >= most) {
            ensure!(running == clients.len(), "clients ended early");
            return Ok((most, clients));
        }
        if running == 0 {
            return Ok((most, clients));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Resident memory in megabytes.
pub(crate) fn rss(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a process has no RSS")?;
    Ok(line.trim_end_matches("kB").trim().parse::<f64>()? / 1024.0)
}

async fn create(pods: usize) -> Result<()> {
    let clients = (0..CLIENTS).map(|_| cluster::client()).collect::<Result<Vec<_>>>()?;
    let namespaces = GroupVersionResource::new("", "v1", "namespaces");
    let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } });
    clients[0].create(&namespaces, "", &namespace).await.map_err(failed)?;
    // Pods need it.
    let accounts = GroupVersionResource::new("", "v1", "serviceaccounts");
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "bench" } });
    clients[0].create(&accounts, NAMESPACE, &account).await.map_err(failed)?;
    let resource = GroupVersionResource::new("", "v1", "pods");
    let made = (0..pods).map(|number| {
        let (client, resource) = (&clients[number % CLIENTS], &resource);
        async move { client.create(resource, NAMESPACE, &pod(number)).await.map(drop) }
    });
    let made = futures::stream::iter(made).buffer_unordered(CLIENTS);
    made.try_collect::<()>().await.map_err(failed)
}

/// A pod that nobody schedules.
fn pod(number: usize) -> Value {
    let text = "x".repeat(70);
    let env: Vec<Value> = (0..50)
        .map(|n| json!({ "name": format!("VARIABLE_{n}"), "value": format!("{text}-{number}") }))
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": format!("pod-{number}"), "labels": { "app": "bench" } },
        "spec": {
            "schedulerName": "nobody", "serviceAccountName": "bench", "automountServiceAccountToken": false,
            "containers": [{ "name": "one", "image": "busybox", "env": env }],
        },
    })
}
