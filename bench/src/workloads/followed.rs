//! The pods of a namespace as a watch tells them, and whether everything is right with them at every moment: each is bound
//! once, and no node has more than it takes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::api::{GroupVersionResource, ListOptions, Object, WatchEventKind, WatchStream};
use anyhow::{Context, Result, bail, ensure};
use client::Client;
use futures::StreamExt;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::watch;

use super::agent::{Agent, Duty};
use super::task::Task;
use crate::api::failed;

/// Nothing takes longer; who waits for more waits for ever.
const PATIENCE: Duration = Duration::from_secs(900);

/// How many there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Pods.
    pub(crate) there: usize,
    /// Of them those that the scheduler found no node for.
    pub(crate) refused: usize,
    /// Of them those on a node.
    pub(crate) bound: usize,
    /// Of them those that are Ready and are not about to go.
    pub(crate) ready: usize,
    /// All that ever were.
    pub(crate) created: usize,
}

/// One pod.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub(crate) name: String,
    pub(crate) node: Option<String>,
    /// When the watch showed it on a node.
    pub(crate) bound_at: Option<Instant>,
    pub(crate) refused: bool,
    pub(crate) ready: bool,
    pub(crate) terminating: bool,
}

/// All pods, by uid, and how many each node has.
#[derive(Debug, Default)]
pub(crate) struct Pods {
    pub(crate) seen: HashMap<String, Seen>,
    pub(crate) on_node: HashMap<String, usize>,
    pub(crate) node_takes: usize,
    pub(crate) tally: Tally,
}

/// The pods, followed until this is dropped.
pub(crate) struct Followed {
    pods: Arc<Mutex<Pods>>,
    tally: watch::Receiver<Tally>,
    following: Task,
}

impl Followed {
    /// Follows the pods of a namespace that has none yet; `node_takes` of them go on a node. With an agent, they run and
    /// go as they would with a kubelet.
    pub(crate) async fn open(
        client: &Client,
        namespace: &str,
        node_takes: usize,
        agent: Option<Agent>,
    ) -> Result<Self> {
        let resource = GroupVersionResource::new("", "v1", "pods");
        let list = client.list(&resource, namespace, ListOptions::default()).await.map_err(failed)?;
        ensure!(list.items.is_empty(), "{namespace} has pods already");
        let options = ListOptions { resource_version: list.revision.to_string(), ..ListOptions::default() };
        let stream = client.watch(&resource, namespace, options).await.map_err(failed)?;
        let pods = Arc::new(Mutex::new(Pods { node_takes, ..Pods::default() }));
        let (told, tally) = watch::channel(Tally::default());
        let following = Task::begin(follow(stream, pods.clone(), told, agent));
        Ok(Self { pods, tally, following })
    }

    /// Returns as soon as there are as many as wished.
    pub(crate) async fn until(&mut self, wished: impl Fn(&Tally) -> bool) -> Result<()> {
        let waited = tokio::time::timeout(PATIENCE, self.tally.wait_for(wished)).await;
        match waited.map(|told| told.is_ok()) {
            Ok(true) => Ok(()),
            Ok(false) => self.following.ended().await,
            Err(_) => bail!("nothing more happens: {:?}", *self.tally.borrow()),
        }
    }

    /// Waits for something else, and fails at once if the pods cannot be followed any more.
    pub(crate) async fn beside(&mut self, other: impl Future<Output = Result<()>>) -> Result<()> {
        tokio::select! {
            done = other => done,
            ended = self.following.ended() => ended.and_then(|()| bail!("the pods are not followed any more")),
        }
    }

    /// What is known now.
    pub(crate) fn look<T>(&self, at: impl FnOnce(&Pods) -> T) -> T {
        at(&self.pods.lock())
    }
}

async fn follow(
    mut stream: WatchStream,
    pods: Arc<Mutex<Pods>>,
    told: watch::Sender<Tally>,
    agent: Option<Agent>,
) -> Result<()> {
    loop {
        let events = stream.next().await.context("the watch ended")?.map_err(failed)?;
        let (now, mut duties) = (Instant::now(), Vec::new());
        let tally = {
            let pods = &mut *pods.lock();
            for event in events {
                match event.kind {
                    WatchEventKind::Added | WatchEventKind::Modified => {
                        duties.extend(pods.put(&event.object, now)?);
                    }
                    WatchEventKind::Deleted => pods.remove(&event.object.meta().uid)?,
                    WatchEventKind::Bookmark => {}
                }
            }
            pods.tally
        };
        if let Some(agent) = &agent {
            for duty in duties {
                agent.does(duty)?;
            }
        }
        told.send_replace(tally);
    }
}

#[derive(Deserialize)]
struct View {
    #[serde(default)]
    status: Status,
}

#[derive(Default, Deserialize)]
struct Status {
    #[serde(default)]
    conditions: Vec<Condition>,
}

#[derive(Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

impl Pods {
    /// The pod's new version; gives what a kubelet has to do about it.
    fn put(&mut self, object: &Object, now: Instant) -> Result<Option<Duty>> {
        let meta = object.meta();
        let view: View = object.decode().context("read a pod")?;
        let is = |kind: &str, status: &str| {
            view.status.conditions.iter().any(|one| one.kind == kind && one.status == status)
        };
        let before = self.seen.get(&meta.uid).cloned();
        let known = before.is_some();
        let before = before.unwrap_or_default();
        let mut after = Seen {
            name: meta.name.clone(),
            node: object.node_name().map(str::to_owned),
            refused: is("PodScheduled", "False"),
            ready: is("Ready", "True") && !meta.is_terminating(),
            terminating: meta.is_terminating(),
            bound_at: before.bound_at,
        };
        let mut duty = None;
        if before.node != after.node {
            ensure!(before.node.is_none(), "{} went from {:?} to {:?}", meta.name, before.node, after.node);
            after.bound_at = Some(now);
            let node = after.node.clone().context("a pod without a node")?;
            let has = self.on_node.entry(node.clone()).or_default();
            *has += 1;
            ensure!(*has <= self.node_takes, "{node} has {has} pods and takes {}", self.node_takes);
            duty = Some(Duty::Run(object.key()));
        }
        if after.terminating && !before.terminating {
            duty = Some(Duty::Remove(object.key(), meta.uid.clone()));
        }
        self.tally.there += usize::from(!known);
        self.tally.created += usize::from(!known);
        self.tally.count(&after);
        self.tally.uncount(&before);
        self.seen.insert(meta.uid.clone(), after);
        Ok(duty)
    }

    fn remove(&mut self, uid: &str) -> Result<()> {
        let gone = self.seen.remove(uid).context("what was never there is gone")?;
        if let Some(has) = gone.node.as_ref().and_then(|node| self.on_node.get_mut(node)) {
            *has -= 1;
        }
        self.tally.there -= 1;
        self.tally.uncount(&gone);
        Ok(())
    }
}

impl Tally {
    fn count(&mut self, pod: &Seen) {
        self.refused += usize::from(pod.refused);
        self.bound += usize::from(pod.node.is_some());
        self.ready += usize::from(pod.ready);
    }

    fn uncount(&mut self, pod: &Seen) {
        self.refused -= usize::from(pod.refused);
        self.bound -= usize::from(pod.node.is_some());
        self.ready -= usize::from(pod.ready);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, node: Option<&str>, condition: (&str, &str)) -> Object {
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": uid, "namespace": "n", "uid": uid, "resourceVersion": "1" },
            "spec": { "nodeName": node },
            "status": { "conditions": [{ "type": condition.0, "status": condition.1 }] },
        });
        Object::parse(serde_json::to_vec(&object).unwrap().into()).unwrap()
    }

    #[test]
    fn pods_are_counted_from_refused_to_gone() {
        let (mut pods, now) = (Pods { node_takes: 1, ..Pods::default() }, Instant::now());
        assert!(pods.put(&pod("a", None, ("PodScheduled", "False")), now).unwrap().is_none());
        assert_eq!(pods.tally, Tally { there: 1, created: 1, refused: 1, ..Tally::default() });
        let duty = pods.put(&pod("a", Some("x"), ("PodScheduled", "True")), now).unwrap();
        assert!(matches!(duty, Some(Duty::Run(_))));
        assert!(pods.put(&pod("a", Some("x"), ("Ready", "True")), now).unwrap().is_none());
        assert_eq!(pods.tally, Tally { there: 1, created: 1, bound: 1, ready: 1, ..Tally::default() });
        pods.remove("a").unwrap();
        assert_eq!(pods.tally, Tally { created: 1, ..Tally::default() });
        assert!(pods.put(&pod("b", Some("x"), ("PodScheduled", "True")), now).is_ok());
    }

    #[test]
    fn a_pod_that_moves_and_a_node_with_too_many_are_told() {
        let (mut pods, now) = (Pods { node_takes: 1, ..Pods::default() }, Instant::now());
        pods.put(&pod("a", Some("x"), ("Ready", "True")), now).unwrap();
        assert!(pods.put(&pod("a", Some("y"), ("Ready", "True")), now).is_err());
        assert!(pods.put(&pod("b", Some("x"), ("Ready", "True")), now).is_err());
    }
}
