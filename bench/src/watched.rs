//! A hundred watchers of all objects while these are written. Each watcher sees every write once and in order.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use ::api::{DeleteOptions, Key, ListOptions, PatchType, WatchEventKind, WatchStream};
use anyhow::{Context, Result, ensure};
use bytes::{Buf, Bytes, BytesMut};
use client::https::Https;
use futures::StreamExt;
use futures::future::{try_join, try_join_all};
use http_body_util::Full;
use serde::Deserialize;
use serde_json::json;

use crate::api::{CLIENTS, Load, NAMESPACE, Taken, failed, map};
use crate::cluster;
use crate::figures::Samples;
use crate::processes::Memory;
use crate::rows::Row;

const WATCHERS: usize = 100;
/// Writes at full speed that every watcher sees.
const SEEN_WRITES: usize = 2000;
/// Mixed writes a second while delivery is timed, and for how long.
const CHURN: (u32, Duration) = (300, Duration::from_secs(30));
/// Delivery to all watchers takes less, in milliseconds.
const DELIVERY_AT_MOST: f64 = 10.0;
/// After so long, memory that is free has gone back to the system.
const SETTLED: Duration = Duration::from_secs(2);

impl Load {
    /// Writes at full speed for the cost of an event, then churn at an even pace for the time until one is delivered. With
    /// the memory of all that is there, with the watchers and after the writes, whose older versions are kept for minutes.
    pub(crate) async fn watched(&self, write_at_most_ms: f64) -> Result<(Vec<Row>, [f64; 2])> {
        let watchers = (0..WATCHERS).map(|_| cluster::client()).collect::<Result<Vec<_>>>()?;
        let list =
            self.clients[0].list(&self.maps, NAMESPACE, ListOptions::default()).await.map_err(failed)?;
        let mut streams = Vec::new();
        for watcher in &watchers {
            let options =
                ListOptions { resource_version: list.revision.to_string(), ..ListOptions::default() };
            streams.push(watcher.watch(&self.maps, NAMESPACE, options).await.map_err(failed)?);
        }
        drop(list);
        tokio::time::sleep(SETTLED).await;
        let with_watchers = Memory::now()?.total();
        let (begun, before) = (Instant::now(), self.daemon.seconds()?);
        let watching = follow_all(&mut streams, SEEN_WRITES, self.epoch);
        let writing = self.each(SEEN_WRITES, |client, n| self.mark(client, n));
        let (delays, written) = try_join(watching, writing).await?;
        let (seconds, cpu) = (begun.elapsed().as_secs_f64(), self.daemon.seconds()? - before);
        // What the writes themselves cost counts as the events' too.
        let operations = SEEN_WRITES * WATCHERS;
        let events = Taken { operations, seconds, cpu, latencies: Samples::new(delays) };
        let mut rows = vec![
            events.row("watch event, 100 watchers, writes at full speed", Some(0.004)),
            written.row("the writes beside it", None),
        ];
        rows.extend(self.churn(&mut streams, write_at_most_ms).await?);
        tokio::time::sleep(SETTLED).await;
        Ok((rows, [with_watchers, Memory::now()?.total()]))
    }

    /// The same number of watchers as clients in Go are: protobuf, whose frames are counted and not decoded.
    pub(crate) async fn watched_in_protobuf(&self) -> Result<Row> {
        let list =
            self.clients[0].list(&self.maps, NAMESPACE, ListOptions::default()).await.map_err(failed)?;
        let path =
            format!("/api/v1/namespaces/{NAMESPACE}/configmaps?watch=1&resourceVersion={}", list.revision);
        drop(list);
        let accept = "application/vnd.kubernetes.protobuf;stream=watch";
        let (mut connections, mut bodies) = (Vec::new(), Vec::new());
        for _ in 0..WATCHERS {
            let connection = Https::new(&cluster::connection()?)?;
            let request = http::Request::get(&path).header(http::header::ACCEPT, accept);
            let answer = connection.send_http(request.body(Full::default())?).await.map_err(failed)?;
            ensure!(answer.status().is_success(), "a watch in protobuf is answered with {}", answer.status());
            bodies.push(answer.into_body());
            connections.push(connection);
        }
        let (begun, before) = (Instant::now(), self.daemon.seconds()?);
        let watching = try_join_all(bodies.iter_mut().map(|body| count_frames(body, SEEN_WRITES)));
        let writing = self.each(SEEN_WRITES, |client, n| self.mark(client, n));
        let (_, written) = try_join(watching, writing).await?;
        let (seconds, cpu) = (begun.elapsed().as_secs_f64(), self.daemon.seconds()? - before);
        let operations = SEEN_WRITES * WATCHERS;
        let taken = Taken { operations, seconds, cpu, latencies: written.latencies };
        Ok(Row { median_ms: f64::NAN, p99_ms: f64::NAN, ..taken.row("the same in protobuf", Some(0.004)) })
    }

    /// Mixed writes at an even pace, and when each watcher saw them.
    async fn churn(&self, streams: &mut [WatchStream], write_at_most_ms: f64) -> Result<Vec<Row>> {
        let (rate, duration) = CHURN;
        let total = rate as usize * duration.as_secs() as usize;
        let (begun, before) = (Instant::now(), self.daemon.seconds()?);
        let start = tokio::time::Instant::now();
        let each = Duration::from_secs(1) / rate;
        let writers = (0..CLIENTS).map(|client| async move {
            let mut times = Vec::new();
            for (step, number) in (client..total).step_by(CLIENTS).enumerate() {
                // From the moment when it is due, also where the one before took too long.
                let due = start + each * u32::try_from(number)?;
                tokio::time::sleep_until(due).await;
                self.step(client, step).await?;
                times.push(due.elapsed().as_secs_f64());
            }
            Ok::<_, anyhow::Error>(times)
        });
        let (delays, times) = try_join(follow_all(streams, total, self.epoch), try_join_all(writers)).await?;
        let (seconds, cpu) = (begun.elapsed().as_secs_f64(), self.daemon.seconds()? - before);
        let taken = |operations, times| Taken { operations, seconds, cpu, latencies: Samples::new(times) };
        let writes = taken(total, times.concat()).row("300 mixed writes a second", None);
        let delivery = taken(total * WATCHERS, delays).row("their delivery to 100 watchers", Some(0.004));
        Ok(vec![writes.waiting(write_at_most_ms), delivery.waiting(DELIVERY_AT_MOST)])
    }

    /// The next thing in the life of a client's own object.
    async fn step(&self, client: usize, step: usize) -> Result<()> {
        let key = Key::new(NAMESPACE, format!("churn-{client}"));
        let moment = self.epoch.elapsed().as_micros().to_string();
        let mut object = map(&key.name, "churn");
        object["data"]["moment"] = moment.as_str().into();
        let (client, maps) = (&self.clients[client], &self.maps);
        let patch = |kind, body| {
            let key = &key;
            async move { client.patch(maps, key, "", kind, &body).await.map(drop) }
        };
        let merge = json!({ "data": { "moment": moment } });
        let done = match step % 6 {
            0 => client.create(maps, NAMESPACE, &object).await.map(drop),
            1 => client.update(maps, &key, "", &object).await.map(drop),
            2 => patch(PatchType::Merge, merge).await,
            3 => patch(PatchType::StrategicMerge, merge).await,
            4 => {
                let json = json!([{ "op": "replace", "path": "/data/moment", "value": moment }]);
                patch(PatchType::Json, json).await
            }
            _ => client.delete(maps, &key, DeleteOptions::default()).await,
        };
        done.map_err(failed)
    }

    /// Writes the moment into an object.
    /// Writes the moment into an object. No two moments are the same, or it would be no change and no event.
    async fn mark(&self, client: usize, number: usize) -> Result<()> {
        let patch = json!({ "data": { "moment": self.epoch.elapsed().as_micros().to_string() } });
        let key = Self::key(number);
        let patched = self.clients[client].patch(&self.maps, &key, "", PatchType::Merge, &patch).await;
        patched.map_err(failed).map(drop)
    }
}

/// Reads so many events from each stream; gives the seconds from the moments that are written in them. All streams show
/// the same.
async fn follow_all(streams: &mut [WatchStream], count: usize, begun: Instant) -> Result<Vec<f64>> {
    let seen = try_join_all(streams.iter_mut().map(|stream| follow(stream, count, begun))).await?;
    ensure!(seen.windows(2).all(|two| two[0].revisions == two[1].revisions), "watchers saw different events");
    Ok(seen.into_iter().flat_map(|seen| seen.delays).collect())
}

/// What one watcher saw.
struct Seen {
    revisions: Vec<i64>,
    delays: Vec<f64>,
}

#[derive(Deserialize)]
struct Moment {
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    moment: String,
}

/// Reads so many events of a watch in protobuf, each after its length in four bytes.
async fn count_frames<B>(body: &mut B, count: usize) -> Result<()>
where
    B: http_body_util::BodyExt<Data = Bytes> + Unpin,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    let (mut held, mut seen) = (BytesMut::new(), 0);
    while seen < count {
        let frame = body.frame().await.context("the watch ended")??;
        held.extend_from_slice(frame.data_ref().context("a watch has no trailers")?);
        while let Some((head, rest)) = held.split_first_chunk::<4>()
            && let length = u32::from_be_bytes(*head) as usize
            && rest.len() >= length
        {
            held.advance(4 + length);
            seen += 1;
        }
    }
    ensure!(seen == count && held.is_empty(), "more events than writes");
    Ok(())
}

/// No event comes twice or out of order, and none changes or ends what is not there.
async fn follow(stream: &mut WatchStream, count: usize, begun: Instant) -> Result<Seen> {
    let mut seen = Seen { revisions: Vec::with_capacity(count), delays: Vec::with_capacity(count) };
    let mut made = BTreeSet::new();
    while seen.revisions.len() < count {
        let events = stream.next().await.context("the watch ended")?.map_err(failed)?;
        let now = begun.elapsed().as_secs_f64();
        for event in events {
            if event.kind == WatchEventKind::Bookmark {
                continue;
            }
            let (revision, name) = (event.object.revision(), event.object.meta().name.clone());
            ensure!(seen.revisions.last().is_none_or(|last| revision > *last), "an event out of order");
            seen.revisions.push(revision);
            let fits = match event.kind {
                WatchEventKind::Added => made.insert(name),
                WatchEventKind::Deleted => made.remove(&name),
                _ => made.contains(&name) || name.starts_with("map-"),
            };
            ensure!(fits, "{:?} of {} is missing something before it", event.kind, event.object.key());
            // What a deletion shows was written before.
            if event.kind != WatchEventKind::Deleted {
                let object: Moment = event.object.decode()?;
                seen.delays.push(now - object.data.moment.parse::<f64>()? / 1e6);
            }
        }
    }
    Ok(seen)
}
