//! The API server under load: what an operation costs it, and how long its clients wait. Each scenario also checks what it
//! did: no increment is lost, no event is missing or out of order.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use ::api::{DeleteOptions, GroupVersionResource, Key, Object, PatchType, Reason, Status};
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
pub(crate) const CLIENTS: usize = 32;
/// Objects, of about 1 kB each.
pub(crate) const OBJECTS: usize = 5000;
pub(crate) const NAMESPACE: &str = "bench-api";
/// Each client's increments of one object.
const INCREMENTS: usize = 20;

/// Connections and what they speak about.
pub(crate) struct Load {
    pub(crate) clients: Vec<Client>,
    pub(crate) maps: GroupVersionResource,
    pub(crate) daemon: Cpu,
    /// What moments in objects count from.
    pub(crate) epoch: Instant,
}

/// What a scenario took.
pub(crate) struct Taken {
    pub(crate) operations: usize,
    pub(crate) seconds: f64,
    pub(crate) cpu: f64,
    pub(crate) latencies: Samples,
}

impl Taken {
    pub(crate) fn row(&self, name: &str, cpu_at_most_ms: Option<f64>) -> Row {
        Row {
            name: name.to_owned(),
            per_second: self.operations as f64 / self.seconds,
            cpu_ms: self.cpu * 1000.0 / self.operations as f64,
            median_ms: self.latencies.median() * 1000.0,
            p99_ms: self.latencies.percentile(99) * 1000.0,
            cpu_at_most_ms,
            p99_at_most_ms: None,
        }
    }
}

/// Memory in megabytes, as the load grows.
pub(crate) struct Grown {
    pub(crate) before: f64,
    pub(crate) with_objects: f64,
    pub(crate) with_watchers: f64,
    pub(crate) with_writes: f64,
}

/// All scenarios, as rows. A write should be answered within `write_at_most_ms`, 99 times of 100.
pub(crate) async fn measure(write_at_most_ms: f64) -> Result<(Vec<Row>, Grown)> {
    let before = Memory::now()?.total();
    let load = Load::new().await?;
    let write = |taken: Taken, name, cpu| taken.row(name, cpu).waiting(write_at_most_ms);
    let created = load.each(OBJECTS, |client, n| load.create(client, n)).await?;
    let mut rows = vec![write(created, "create", Some(0.11)).told()];
    let with_objects = Memory::now()?.total();
    rows.extend(load.lists().await?);
    let (watched, [with_watchers, with_writes]) = load.watched(write_at_most_ms).await?;
    rows.extend(watched);
    rows.push(load.watched_in_protobuf().await?.told());
    rows.push(load.each(2 * OBJECTS, |client, n| load.get(client, n)).await?.row("get", Some(0.047)).told());
    let updated = load.each(OBJECTS, |client, n| load.update(client, n)).await?;
    rows.push(write(updated, "update", Some(0.12)).told());
    rows.push(load.contended().await?.row("contended update", None).told());
    for (name, kind, target) in [
        ("JSON patch", PatchType::Json, None),
        ("merge patch", PatchType::Merge, None),
        ("strategic merge patch", PatchType::StrategicMerge, None),
        ("server-side apply", PatchType::Apply, Some(0.15)),
    ] {
        let taken = load.each(OBJECTS / 2, |client, n| load.patch(client, n, kind)).await?;
        rows.push(write(taken, name, target).told());
    }
    let deleted = load.each(OBJECTS, |client, n| load.delete(client, n)).await?;
    rows.push(write(deleted, "delete", Some(0.1)).told());
    Ok((rows, Grown { before, with_objects, with_watchers, with_writes }))
}

impl Load {
    async fn new() -> Result<Self> {
        let clients = (0..CLIENTS).map(|_| cluster::client()).collect::<Result<Vec<_>>>()?;
        let namespaces = GroupVersionResource::new("", "v1", "namespaces");
        let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } });
        clients[0].create(&namespaces, "", &namespace).await.map_err(failed)?;
        let maps = GroupVersionResource::new("", "v1", "configmaps");
        Ok(Self { clients, maps, daemon: Cpu::of_daemon()?, epoch: Instant::now() })
    }

    /// Operations `0..count`, by all clients at once, each going on with the next that nobody has begun.
    pub(crate) async fn each<F, R>(&self, count: usize, operation: F) -> Result<Taken>
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

    pub(crate) fn key(number: usize) -> Key {
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
}

fn count(object: &Object) -> Result<usize> {
    let data: Value = object.decode()?;
    data["data"]["n"].as_str().and_then(|text| text.parse().ok()).context("the counter has no number")
}

/// A ConfigMap of about 1 kB.
pub(crate) fn map(name: &str, mark: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": name, "labels": { "app": "bench" } },
        "data": { "mark": mark, "moment": "0", "text": "x".repeat(800) },
    })
}

pub(crate) fn failed(status: Status) -> anyhow::Error {
    anyhow!("the API server says: {}", status.message)
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
