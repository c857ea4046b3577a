//! The server, connections to it, its nodes, and what both sides use.

use std::time::{Duration, Instant};

use ::api::{Call, DeleteOptions, GroupVersionResource, ListOptions, Request};
use anyhow::Result;
use client::Client;
use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};

use super::agent::Agent;
use super::followed::Followed;
use super::nodes::Nodes;
use super::sizes::PODS_PER_NODE;
use crate::api::failed;
use crate::cluster;
use crate::processes::Cpu;

/// Connections.
const CLIENTS: usize = 16;
/// What is written after the last thing that counts, events for example, is written after so long.
pub(crate) const SETTLE: Duration = Duration::from_secs(2);

/// A server with nodes.
pub(crate) struct Field {
    pub(crate) clients: Vec<Client>,
    pub(crate) daemon: Cpu,
    pub(crate) nodes: Nodes,
    /// Pods that are on each node from the start.
    pub(crate) held_by_node: usize,
    own: Cpu,
}

/// A beginning.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Since {
    at: Instant,
    daemon: f64,
    own: f64,
}

/// What something took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spent {
    /// Until it was done.
    pub(crate) seconds: f64,
    /// Of the server's processor time, until it had settled.
    pub(crate) daemon: f64,
    /// Of the bench's own.
    pub(crate) own: f64,
}

impl Field {
    /// A server that is up gets so many nodes.
    pub(crate) async fn new(nodes: usize) -> Result<Self> {
        let clients = (0..CLIENTS).map(|_| cluster::client()).collect::<Result<Vec<_>>>()?;
        let nodes = Nodes::register(&clients, nodes).await?;
        let (daemon, own) = (Cpu::of_daemon()?, Cpu::of(std::process::id()));
        Ok(Self { clients, daemon, nodes, held_by_node: 0, own })
    }

    /// One connection.
    pub(crate) fn client(&self) -> &Client {
        &self.clients[0]
    }

    /// From now on.
    pub(crate) fn since(&self) -> Result<Since> {
        Ok(Since { at: Instant::now(), daemon: self.daemon.seconds()?, own: self.own.seconds()? })
    }

    /// It is done: what it took, with the processor time of what follows from it.
    pub(crate) async fn spent(&self, since: Since) -> Result<Spent> {
        let seconds = since.at.elapsed().as_secs_f64();
        tokio::time::sleep(SETTLE).await;
        self.nodes.renewed()?;
        Ok(Spent {
            seconds,
            daemon: self.daemon.seconds()? - since.daemon,
            own: self.own.seconds()? - since.own,
        })
    }

    /// A namespace with what pods need.
    pub(crate) async fn namespace(&self, name: &str) -> Result<()> {
        let namespaces = GroupVersionResource::new("", "v1", "namespaces");
        let accounts = GroupVersionResource::new("", "v1", "serviceaccounts");
        let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
        let account =
            json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "bench" } });
        self.client().create(&namespaces, "", &namespace).await.map_err(failed)?;
        self.client().create(&accounts, name, &account).await.map_err(failed)?;
        Ok(())
    }

    /// The pods of a namespace.
    pub(crate) async fn follow(&self, namespace: &str, agent: Option<Agent>) -> Result<Followed> {
        let room = PODS_PER_NODE - self.held_by_node;
        Followed::open(self.client(), namespace, room, agent).await
    }

    /// Creates pods `0..count`, over all connections.
    pub(crate) async fn create_pods(
        &self,
        namespace: &str,
        count: usize,
        pod: impl Fn(usize) -> Value,
    ) -> Result<()> {
        let pods = GroupVersionResource::new("", "v1", "pods");
        let made = (0..count).map(|number| {
            let (client, pods, pod) = (&self.clients[number % CLIENTS], &pods, pod(number));
            async move { client.create(pods, namespace, &pod).await.map(drop) }
        });
        let made = futures::stream::iter(made).buffer_unordered(2 * CLIENTS);
        made.try_collect::<()>().await.map_err(failed)
    }

    /// Deletes all pods of a namespace, and returns when none is left.
    pub(crate) async fn remove_pods(&self, namespace: &str, followed: &mut Followed) -> Result<()> {
        let options = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
        let request = Request {
            resource: GroupVersionResource::new("", "v1", "pods"),
            namespace: namespace.to_owned(),
            name: String::new(),
            subresource: String::new(),
            call: Call::DeleteCollection(options, ListOptions::default()),
        };
        self.client().send(request).await.map_err(failed)?;
        followed.until(|tally| tally.there == 0).await
    }
}

/// What every pod here asks for.
pub(crate) fn pod_spec() -> Value {
    json!({
        "serviceAccountName": "bench", "automountServiceAccountToken": false,
        "containers": [{
            "name": "one", "image": "busybox", "command": ["sleep", "100000"],
            "resources": { "requests": { "cpu": "100m", "memory": "64Mi" } },
        }],
    })
}
