//! Where events go: each sink has a bounded queue and a task of its own, so that no request waits for a disk or a network.
//! What does not fit is dropped and counted. Source: `apiserver/plugin/pkg/audit/{buffered,log,webhook}`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base::lifecycle::Context;
use prometheus::IntCounterVec;
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use super::event::Event;
use super::file::Log;
use crate::remote::Service;

/// Events that wait for a sink at most. Source: `defaultBatchBufferSize`.
const EVENTS_MAX: usize = 10_000;
/// Bytes of events that wait for all sinks at most.
const BYTES_MAX: usize = 64 * 1024 * 1024;
/// Events in one batch at most. Source: `defaultBatchMaxSize`.
const BATCH_MAX: usize = 400;
/// How long a batch for the webhook is waited for. Source: `defaultBatchMaxWait`.
const BATCH_WAIT: Duration = Duration::from_secs(30);
/// The log is written as soon as there is something; what comes meanwhile is the next batch.
const LOG_BATCH: usize = 1024;
/// Delays between attempts to reach the webhook. Source: `DefaultInitialBackoffDelay`, `webhook.DefaultRetryBackoff`.
const ATTEMPTS: [Duration; 4] =
    [Duration::from_secs(10), Duration::from_secs(15), Duration::from_secs(22), Duration::from_secs(34)];

/// An event in a queue; its bytes are counted for as long as it is held.
pub(super) struct Queued {
    event: Event,
    bytes: usize,
    all: Arc<AtomicUsize>,
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Where the queue of a sink ends.
pub(super) enum Sink {
    Log(Log),
    Webhook(Service),
}

impl Sink {
    fn name(&self) -> &'static str {
        match self {
            Self::Log(_) => "log",
            Self::Webhook(_) => "webhook",
        }
    }
}

/// The sinks' queues.
pub(super) struct Queues {
    senders: Vec<(&'static str, mpsc::Sender<Arc<Queued>>)>,
    bytes: Arc<AtomicUsize>,
    failed: IntCounterVec,
}

/// A sink and the end of its queue, before its task runs.
pub(super) struct Idle {
    sink: Sink,
    queue: mpsc::Receiver<Arc<Queued>>,
    failed: IntCounterVec,
}

impl Queues {
    /// Queues for sinks; `failed` counts the events that are lost, by sink.
    pub(super) fn new(sinks: Vec<Sink>, failed: &IntCounterVec) -> (Self, Vec<Idle>) {
        let (mut senders, mut idle) = (Vec::new(), Vec::new());
        for sink in sinks {
            let (sender, queue) = mpsc::channel(EVENTS_MAX);
            senders.push((sink.name(), sender));
            idle.push(Idle { sink, queue, failed: failed.clone() });
        }
        (Self { senders, bytes: Arc::default(), failed: failed.clone() }, idle)
    }

    /// Hands an event to every sink. Never waits.
    pub(super) fn put(&self, event: Event) {
        let bytes = event.size();
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let queued = Arc::new(Queued { event, bytes, all: self.bytes.clone() });
        let fits = before.saturating_add(bytes) <= BYTES_MAX;
        for (name, sender) in &self.senders {
            if !fits || sender.try_send(queued.clone()).is_err() {
                self.failed.with_label_values(&[*name]).inc();
            }
        }
    }
}

impl Idle {
    /// Writes events until the component ends and its queue is empty.
    pub(super) async fn run(self, ctx: Context) {
        let Self { sink, mut queue, failed } = self;
        let name = sink.name();
        match sink {
            Sink::Log(mut log) => {
                while let Some(batch) = next(&mut queue, LOG_BATCH, Duration::ZERO, &ctx).await {
                    let count = batch.len();
                    let write = move || {
                        let lines = lines(&batch);
                        let written = log.append(&lines);
                        (log, written)
                    };
                    // The task's own thread may block; a panic within has been told already.
                    let Ok((same, written)) = tokio::task::spawn_blocking(write).await else { return };
                    log = same;
                    if let Err(error) = written {
                        lost(&failed, name, count, &error.to_string());
                    }
                }
            }
            Sink::Webhook(service) => {
                while let Some(batch) = next(&mut queue, BATCH_MAX, BATCH_WAIT, &ctx).await {
                    if let Err(error) = deliver(&service, &batch, &ctx).await {
                        lost(&failed, name, batch.len(), &error);
                    }
                }
            }
        }
    }
}

fn lost(failed: &IntCounterVec, sink: &str, events: usize, error: &str) {
    failed.with_label_values(&[sink]).inc_by(events as u64);
    tracing::error!(sink, events, error, "audit events are lost");
}

/// The next batch: what is there, or comes within `wait`. `None`: the component ends and all is written.
async fn next(
    queue: &mut mpsc::Receiver<Arc<Queued>>,
    most: usize,
    wait: Duration,
    ctx: &Context,
) -> Option<Vec<Arc<Queued>>> {
    let mut batch = Vec::new();
    tokio::select! {
        biased;
        count = queue.recv_many(&mut batch, most) => if count == 0 { return None },
        () = ctx.cancelled() => {
            queue.close();
            return if queue.recv_many(&mut batch, most).await == 0 { None } else { Some(batch) };
        }
    }
    let until = tokio::time::Instant::now() + wait;
    while !wait.is_zero() && batch.len() < most {
        let room = most - batch.len();
        let more = tokio::time::timeout_at(until, queue.recv_many(&mut batch, room));
        tokio::select! {
            count = more => if count.unwrap_or(0) == 0 { break },
            () = ctx.cancelled() => break,
        }
    }
    Some(batch)
}

fn lines(batch: &[Arc<Queued>]) -> Vec<u8> {
    let mut lines = Vec::new();
    for queued in batch {
        lines.extend_from_slice(&queued.event.line());
        lines.push(b'\n');
    }
    lines
}

/// Sends a batch, again and again for a while. When the component ends there is one attempt.
async fn deliver(service: &Service, batch: &[Arc<Queued>], ctx: &Context) -> Result<(), String> {
    #[derive(serde::Serialize)]
    #[serde(rename_all = "camelCase")]
    struct List<'a> {
        kind: &'static str,
        api_version: &'static str,
        metadata: serde_json::Map<String, serde_json::Value>,
        items: Vec<&'a Event>,
    }
    let items = batch.iter().map(|queued| &queued.event).collect();
    let metadata = serde_json::Map::new();
    let list = List { kind: "EventList", api_version: "audit.k8s.io/v1", metadata, items };
    let body: Box<RawValue> = serde_json::value::to_raw_value(&list).map_err(|error| error.to_string())?;
    let mut delays = ATTEMPTS.into_iter();
    loop {
        let error = match service.tell(body.get().as_bytes().to_vec()).await {
            Ok(()) => return Ok(()),
            Err(error) => error.to_string(),
        };
        let Some(delay) = delays.next() else { return Err(error) };
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = ctx.cancelled() => return Err(error),
        }
    }
}
