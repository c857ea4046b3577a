//! The API server under load: what an operation costs it, and how long its clients wait. Each scenario also checks what it
//! did: no increment is lost, no event is missing or out of order.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ::api::{
    DeleteOptions, GroupVersionResource, Key, ListOptions, Object, PatchType, Reason, Status, WatchEventKind,
};
use anyhow::{Context, Result, anyhow, ensure};
use client::Client;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde_json::{Value, json};

use crate::cluster;
use crate::figures::Samples;
use crate::processes::{Cpu, Memory};
use crate::rows::Row;

/// Clients, each with a connection of its own.
const CLIENTS: usize = 32;
const WATCHERS: usize = 100;
/// Objects, of about 1 kB each.
const OBJECTS: usize = 5000;
const NAMESPACE: &str = "bench-api";
/// Each client's increments of one object.
const INCREMENTS: usize = 20;
/// Writes that every watcher sees.
const SEEN_WRITES: usize = 1000;
/// Writes a second while delivery is timed, and for how long.
const STEADY: (u32, Duration) = (300, Duration::from_secs(10));

/// Connections and what they speak about.
pub(crate) struct Load {
    clients: Vec<Client>,
    maps: GroupVersionResource,
    daemon: Cpu,
}

/// What a scenario took.
pub(crate) struct Taken {
    operations: usize,
    seconds: f64,
    cpu: f64,
    latencies: Samples,
}

impl Taken {
    fn row(&self, name: &str, cpu_at_most_ms: Option<f64>) -> Row {
        Row {
            name: name.to_owned(),
            per_second: self.operations as f64 / self.seconds,
            cpu_ms: self.cpu * 1000.0 / self.operations as f64,
            median_ms: self.latencies.median() * 1000.0,
            p99_ms: self.latencies.percentile(99) * 1000.0,
            cpu_at_most_ms,
        }
    }
}

/// All scenarios, as rows; then the memory with everything there, in megabytes.
pub(crate) async fn measure() -> Result<(Vec<Row>, f64)> {
    let load = Load::new().await?;
    let mut rows = vec![
        load.each(OBJECTS, |client, n| load.create(client, n)).await?.row("create", Some(0.11)),
        load.each(2 * OBJECTS, |client, n| load.get(client, n)).await?.row("get", Some(0.047)),
        load.each(OBJECTS, |client, n| load.update(client, n)).await?.row("update", Some(0.12)),
        load.contended().await?.row("contended update", None),
    ];
    for (name, kind, target) in [
        ("JSON patch", PatchType::Json, None),
        ("merge patch", PatchType::Merge, None),
        ("strategic merge patch", PatchType::StrategicMerge, None),
        ("server-side apply", PatchType::Apply, Some(0.15)),
    ] {
        let taken = load.each(OBJECTS / 2, |client, n| load.patch(client, n, kind)).await?;
        rows.push(taken.row(name, target));
    }
    rows.extend(load.lists()?);
    let (watched, memory) = load.watched().await?;
    rows.extend(watched);
    rows.push(load.each(OBJECTS, |client, n| load.delete(client, n)).await?.row("delete", Some(0.1)));
    Ok((rows, memory))
}

impl Load {
    async fn new() -> Result<Self> {
        let clients = (0..CLIENTS).map(|_| cluster::client()).collect::<Result<Vec<_>>>()?;
        let namespaces = GroupVersionResource::new("", "v1", "namespaces");
        let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } });
        clients[0].create(&namespaces, "", &namespace).await.map_err(failed)?;
        let maps = GroupVersionResource::new("", "v1", "configmaps");
        Ok(Self { clients, maps, daemon: Cpu::of_daemon()? })
    }

    /// Operations `0..count`, by all clients at once, each going on with the next that nobody has begun.
    async fn each<F, R>(&self, count: usize, operation: F) -> Result<Taken>
    where
        F: Fn(usize, usize) -> R,
        R: Future<Output = Result<()>>,
    {
        let (next, begun, before) = (AtomicUsize::new(0), Instant::now(), self.daemon.seconds()?);
        let work = (0..CLIENTS).map(|client| {
            let (next, operation) = (&next, &operation);
            async move {
                let mut times = Vec::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return Ok::<_, anyhow::Error>(times);
                    }
                    let since = Instant::now();
                    operation(client, number).await?;
                    times.push(since.elapsed().as_secs_f64());
                }
            }
        });
        let mut times = Vec::new();
        let mut work: FuturesUnordered<_> = work.collect();
        while let Some(done) = work.next().await {
            times.extend(done?);
        }
        let (seconds, cpu) = (begun.elapsed().as_secs_f64(), self.daemon.seconds()? - before);
        Ok(Taken { operations: count, seconds, cpu, latencies: Samples::new(times) })
    }

    fn key(number: usize) -> Key {
        Key::new(NAMESPACE, format!("map-{}", number % OBJECTS))
    }

    async fn create(&self, client: usize, number: usize) -> Result<()> {
        let object = map(&Self::key(number).name, "created");
        self.clients[client].create(&self.maps, NAMESPACE, &object).await.map_err(failed).map(drop)
    }

    async fn get(&self, client: usize, number: usize) -> Result<()> {
        self.clients[client].get(&self.maps, &Self::key(number)).await.map_err(failed).map(drop)
    }

    async fn update(&self, client: usize, number: usize) -> Result<()> {
        let key = Self::key(number);
        let object = map(&key.name, &format!("updated by {client}"));
        self.clients[client].update(&self.maps, &key, "", &object).await.map_err(failed).map(drop)
    }

    async fn patch(&self, client: usize, number: usize, kind: PatchType) -> Result<()> {
        let (key, text) = (Self::key(number), format!("{kind:?} by {client}"));
        let body = match kind {
            PatchType::Json => json!([{ "op": "replace", "path": "/data/mark", "value": text }]),
            PatchType::Apply => map(&key.name, &text),
            _ => json!({ "data": { "mark": text } }),
        };
        let patched = self.clients[client].patch(&self.maps, &key, "", kind, &body).await;
        patched.map_err(failed).map(drop)
    }

    async fn delete(&self, client: usize, number: usize) -> Result<()> {
        let options = DeleteOptions::default();
        self.clients[client].delete(&self.maps, &Self::key(number), options).await.map_err(failed)
    }

    /// All clients count one object up; conflicts are tried again with what is there then.
    async fn contended(&self) -> Result<Taken> {
        let key = Key::new(NAMESPACE, "counter");
        let counter = |n: usize| {
            json!({ "apiVersion": "v1", "kind": "ConfigMap",
                                         "metadata": { "name": key.name }, "data": { "n": n.to_string() } })
        };
        self.clients[0].create(&self.maps, NAMESPACE, &counter(0)).await.map_err(failed)?;
        let total = CLIENTS * INCREMENTS;
        let taken = self
            .each(total, |client, _| {
                let (client, key, counter) = (&self.clients[client], &key, &counter);
                async move {
                    loop {
                        let found = client.get(&self.maps, key).await.map_err(failed)?;
                        let mut new = counter(count(&found)? + 1);
                        new["metadata"]["resourceVersion"] = found.meta().resource_version.clone().into();
                        match client.update(&self.maps, key, "", &new).await {
                            Err(status) if status.reason == Reason::Conflict => {}
                            other => return other.map_err(failed).map(drop),
                        }
                    }
                }
            })
            .await?;
        let found = self.clients[0].get(&self.maps, &key).await.map_err(failed)?;
        ensure!(count(&found)? == total, "increments are lost: {} of {total}", count(&found)?);
        self.clients[0].delete(&self.maps, &key, DeleteOptions::default()).await.map_err(failed)?;
        Ok(taken)
    }

    /// Lists of all objects, as other clients ask for them.
    fn lists(&self) -> Result<Vec<Row>> {
        let protobuf = "Accept: application/vnd.kubernetes.protobuf";
        let wanted: [(&str, &str, &[&str], Option<f64>); 5] = [
            ("list of 5,000", "", &[], Some(5.0)),
            ("the same, resourceVersion=0", "resourceVersion=0", &[], Some(5.0)),
            ("the same, gzip", "", &["Accept-Encoding: gzip"], Some(60.0)),
            ("the same, protobuf", "", &[protobuf], None),
            ("a page of 500 of it", "limit=500", &[], None),
        ];
        let curl = Curl::new()?;
        wanted
            .iter()
            .map(|(name, query, headers, target)| {
                let before = self.daemon.seconds()?;
                let (begun, times) = (Instant::now(), curl.list(query, headers, LISTS)?);
                let (seconds, cpu) = (begun.elapsed().as_secs_f64(), self.daemon.seconds()? - before);
                let taken = Taken { operations: LISTS, seconds, cpu, latencies: Samples::new(times) };
                Ok(taken.row(name, *target))
            })
            .collect()
    }

    /// Watchers of all objects while they are written: at full speed for the cost of an event, then steadily for the time
    /// until it is delivered.
    async fn watched(&self) -> Result<(Vec<Row>, f64)> {
        let watchers = (0..WATCHERS).map(|_| cluster::client()).collect::<Result<Vec<_>>>()?;
        let list =
            self.clients[0].list(&self.maps, NAMESPACE, ListOptions::default()).await.map_err(failed)?;
        let mut streams = Vec::new();
        for watcher in &watchers {
            let options =
                ListOptions { resource_version: list.revision.to_string(), ..ListOptions::default() };
            streams.push(watcher.watch(&self.maps, NAMESPACE, options).await.map_err(failed)?);
        }
        let begun = Instant::now();
        let before = self.daemon.seconds()?;
        let watching = async {
            let reads = streams.iter_mut().map(|stream| follow(stream, SEEN_WRITES, begun));
            futures::future::try_join_all(reads).await
        };
        let writing = self.each(SEEN_WRITES, |client, n| self.mark(client, n, begun));
        let (seen, written) = futures::future::try_join(watching, writing).await?;
        let (seconds, cpu) = (begun.elapsed().as_secs_f64(), self.daemon.seconds()? - before);
        let delays: Vec<f64> = seen.into_iter().flatten().collect();
        let events = Taken {
            operations: delays.len(),
            seconds,
            // What the writes themselves cost was measured without watchers; here all counts as the events'.
            cpu,
            latencies: Samples::new(delays),
        };
        let memory = Memory::now()?.total();
        let mut rows = vec![
            events.row("watch event, 100 watchers, writes at full speed", Some(0.004)),
            written.row("the writes beside it", None),
        ];
        rows.extend(self.steady(&mut streams).await?);
        Ok((rows, memory))
    }

    /// Mixed writes at an even pace, and when each watcher saw them.
    async fn steady(&self, streams: &mut [::api::WatchStream]) -> Result<Vec<Row>> {
        let (rate, duration) = STEADY;
        let total = rate as usize * duration.as_secs() as usize;
        let begun = Instant::now();
        let before = self.daemon.seconds()?;
        let watching = async {
            let reads = streams.iter_mut().map(|stream| follow(stream, total, begun));
            futures::future::try_join_all(reads).await
        };
        let writing = async {
            let mut tick = tokio::time::interval(Duration::from_secs(1) / rate);
            let mut running = FuturesUnordered::new();
            let mut times = Vec::new();
            for number in 0..total {
                tick.tick().await;
                running.push(async move {
                    let since = Instant::now();
                    self.mark(number % CLIENTS, number, begun).await.map(|()| since.elapsed().as_secs_f64())
                });
                while let Some(Some(done)) = futures::FutureExt::now_or_never(running.next()) {
                    times.push(done?);
                }
            }
            while let Some(done) = running.next().await {
                times.push(done?);
            }
            Ok(times)
        };
        let (seen, times) = futures::future::try_join(watching, writing).await?;
        let (seconds, cpu) = (begun.elapsed().as_secs_f64(), self.daemon.seconds()? - before);
        let delays: Vec<f64> = seen.into_iter().flatten().collect();
        let taken =
            |times: Vec<f64>| Taken { operations: times.len(), seconds, cpu, latencies: Samples::new(times) };
        Ok(vec![
            taken(times).row("300 writes a second", None),
            taken(delays).row("their delivery to 100 watchers", None),
        ])
    }

    /// Writes the moment into an object.
    async fn mark(&self, client: usize, number: usize, begun: Instant) -> Result<()> {
        let patch = json!({ "data": { "moment": begun.elapsed().as_micros().to_string() } });
        let key = Self::key(number);
        let patched = self.clients[client].patch(&self.maps, &key, "", PatchType::Merge, &patch).await;
        patched.map_err(failed).map(drop)
    }
}

/// How often each list is asked for.
const LISTS: usize = 20;

/// Reads so many events; gives for each the seconds from the moment that is written in it. None comes twice, out of order,
/// or for an object that is not there.
async fn follow(stream: &mut ::api::WatchStream, count: usize, begun: Instant) -> Result<Vec<f64>> {
    let (mut delays, mut last) = (Vec::with_capacity(count), 0);
    while delays.len() < count {
        let events = stream.next().await.context("the watch ended")?.map_err(failed)?;
        let now = begun.elapsed().as_secs_f64();
        for event in events {
            if event.kind == WatchEventKind::Bookmark {
                continue;
            }
            let revision = event.object.revision();
            ensure!(event.kind == WatchEventKind::Modified && revision > last, "an event out of order");
            last = revision;
            let object: Value = event.object.decode()?;
            let moment = object["data"]["moment"].as_str().and_then(|text| text.parse::<f64>().ok());
            delays.push(now - moment.context("an event of no write")? / 1e6);
        }
    }
    Ok(delays)
}

fn count(object: &Object) -> Result<usize> {
    let data: BTreeMap<String, Value> = object.decode()?;
    data["data"]["n"].as_str().and_then(|text| text.parse().ok()).context("the counter has no number")
}

/// A ConfigMap of about 1 kB.
fn map(name: &str, mark: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": name, "labels": { "app": "bench" } },
        "data": { "mark": mark, "moment": "0", "text": "x".repeat(800) },
    })
}

fn failed(status: Status) -> anyhow::Error {
    anyhow!("the API server says: {}", status.message)
}

/// curl with the administrator's keys: it asks for encodings as other clients do, and decodes nothing.
struct Curl {
    directory: tempfile::TempDir,
    server: String,
}

impl Curl {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let config = cluster::connection()?;
        let (cert, key) = config.client_pem.context("the kubeconfig names no certificate")?;
        for (name, text) in [("ca", &config.ca_pem), ("cert", &cert), ("key", &key)] {
            std::fs::write(directory.path().join(name), text)?;
        }
        Ok(Self { directory, server: config.server })
    }

    /// Seconds of each of `count` lists over one connection.
    fn list(&self, query: &str, headers: &[&str], count: usize) -> Result<Vec<f64>> {
        let at = |name: &str| self.directory.path().join(name).display().to_string();
        let url = format!("{}/api/v1/namespaces/{NAMESPACE}/configmaps?{query}", self.server);
        let mut command = Command::new("curl");
        command.args(["-sf", "-w", "%{time_starttransfer} %{time_total} %{size_download}\n"]);
        command.args(["--cacert", &at("ca"), "--cert", &at("cert"), "--key", &at("key")]);
        for header in headers {
            command.args(["-H", header]);
        }
        for _ in 0..count {
            command.args(["-o", "/dev/null", &url]);
        }
        let output = command.stdin(Stdio::null()).output().context("start curl")?;
        ensure!(output.status.success(), "curl: {}", output.status);
        let said = String::from_utf8_lossy(&output.stdout);
        let times =
            said.lines().filter_map(|line| line.split(' ').nth(1)?.parse().ok()).collect::<Vec<f64>>();
        ensure!(times.len() == count, "curl told {} times of {count}: {said}", times.len());
        Ok(times)
    }
}

/// Seconds that a record of 1 kB takes to be appended and synced, with nobody else writing.
pub(crate) fn bare_syncs(directory: &Path, count: usize) -> Result<Samples> {
    use std::io::Write as _;
    let path = directory.join("bench-sync");
    let mut file = std::fs::File::create(&path)?;
    let samples = Samples::collect(count, || {
        let since = Instant::now();
        file.write_all(&[7; 1024])?;
        file.sync_data()?;
        Ok(since.elapsed().as_secs_f64())
    });
    std::fs::remove_file(&path)?;
    samples
}
