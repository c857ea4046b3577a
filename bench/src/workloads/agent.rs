//! What kubelets would write, without containers: bound pods are Running and Ready, terminating ones are gone.

use ::api::{DeleteOptions, GroupVersionResource, Key, PatchType, Reason};
use anyhow::Result;
use client::Client;
use futures::channel::mpsc;
use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};

use super::task::Task;
use crate::api::failed;

/// Writes at once.
const WRITES: usize = 32;

/// What a pod needs.
#[derive(Debug, Clone)]
pub(crate) enum Duty {
    /// It was bound.
    Run(Key),
    /// It was told to go.
    Remove(Key, String),
}

/// Acts for all nodes, until it is dropped.
pub(crate) struct Agent {
    /// Unbounded, but for the number of pods: who reads their watch must not wait for writes, or the server ends it.
    duties: mpsc::UnboundedSender<Duty>,
    /// Owned: it ends with this.
    _working: Task,
}

impl Agent {
    /// Writes over these connections.
    pub(crate) fn start(clients: &[Client]) -> Self {
        let (duties, waiting) = mpsc::unbounded();
        Self { duties, _working: Task::begin(work(clients.to_vec(), waiting)) }
    }

    /// Does it soon. An error if an earlier one failed.
    pub(crate) fn does(&self, duty: Duty) -> Result<()> {
        Ok(self.duties.unbounded_send(duty)?)
    }
}

async fn work(clients: Vec<Client>, waiting: mpsc::UnboundedReceiver<Duty>) -> Result<()> {
    let pods = GroupVersionResource::new("", "v1", "pods");
    let running = running();
    let done = waiting.enumerate().map(Ok).try_for_each_concurrent(WRITES, |(number, duty)| {
        let (client, pods, running) = (&clients[number % clients.len()], &pods, &running);
        async move {
            match duty {
                Duty::Run(key) => {
                    let written =
                        client.patch(pods, &key, "status", PatchType::StrategicMerge, running).await;
                    match written {
                        Err(status) if status.reason != Reason::NotFound => Err(failed(status)),
                        _ => Ok(()),
                    }
                }
                Duty::Remove(key, uid) => {
                    let options = DeleteOptions {
                        grace_period_seconds: Some(0),
                        precondition_uid: Some(uid),
                        ..DeleteOptions::default()
                    };
                    client.delete(pods, &key, options).await.map_err(failed)
                }
            }
        }
    });
    done.await.inspect_err(|error: &anyhow::Error| crate::progress(&format!("the agent failed: {error}")))
}

fn running() -> Value {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let conditions = ["PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready"];
    let conditions =
        conditions.map(|kind| json!({ "type": kind, "status": "True", "lastTransitionTime": now }));
    json!({ "status": {
        "phase": "Running", "startTime": now, "conditions": conditions,
        "containerStatuses": [{
            "name": "one", "image": "busybox", "imageID": "bench", "containerID": "bench://one",
            "ready": true, "started": true, "restartCount": 0, "state": { "running": { "startedAt": now } },
        }],
    } })
}
