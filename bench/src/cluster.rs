//! The cluster, through its HTTPS API and watches: what a client sees, when it sees it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use api::{
    DeleteOptions, GroupVersionResource, Key, ListOptions, PatchType, Propagation, Status, WatchEventKind,
    WatchStream,
};
use client::Client;
use client::https::{Config, Https};
use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};

use crate::figures::Samples;

/// Clients that write at once.
pub(crate) const WRITERS: usize = 16;
/// Objects that are written and listed.
pub(crate) const CONFIG_MAPS: usize = 2000;

/// What does not come in this time will not.
const PATIENCE: Duration = Duration::from_secs(300);
/// Where everything is made.
pub(crate) const NAMESPACE: &str = "default";
const DEPLOYMENT: &str = "bench";

/// How the kubeconfig in the home directory says to connect.
pub(crate) fn connection() -> Result<Config> {
    let home = std::env::var_os("HOME").map(PathBuf::from).context("HOME is not set")?;
    Ok(client::kubeconfig::load(&home.join(".kube/config"), None)?.config)
}

/// A client with a connection of its own.
pub(crate) fn client() -> Result<Client> {
    Ok(Client::new(Arc::new(Https::new(&connection()?)?), "bench"))
}

/// The administrator's connection.
pub(crate) struct Cluster {
    client: Client,
    pods: GroupVersionResource,
    deployments: GroupVersionResource,
}

impl Cluster {
    /// Connects as the kubeconfig in the home directory says.
    pub(crate) async fn connect() -> Result<Self> {
        Ok(Self {
            client: client()?,
            pods: GroupVersionResource::new("", "v1", "pods"),
            deployments: GroupVersionResource::new("apps", "v1", "deployments"),
        })
    }

    /// `skiff up` has returned: the one node says that it is Ready.
    pub(crate) async fn node_is_ready(&self) -> Result<()> {
        let nodes = GroupVersionResource::new("", "v1", "nodes");
        let list = self.client.list(&nodes, "", ListOptions::default()).await.map_err(failed)?;
        let [node] = &list.items[..] else { bail!("there are {} nodes", list.items.len()) };
        let node: Value = node.decode()?;
        let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
        if conditions.into_iter().any(|one| one["type"] == "Ready" && one["status"] == "True") {
            return Ok(());
        }
        bail!("`skiff up` returned before the node was Ready: {}", node["status"]["conditions"])
    }

    /// Creates pods, each when the one before runs. A sample lasts from before the request to create a pod until the
    /// watch, open since before, shows it Running.
    pub(crate) async fn pods_one_by_one(&self, count: usize) -> Result<Samples> {
        let mut watch = Watch::open(&self.client, &self.pods, NAMESPACE).await?;
        let mut times = Vec::new();
        // One more, not counted: what is done once per image is done then.
        for number in 0..=count {
            let name = format!("one-{number}");
            let begun = Instant::now();
            self.client.create(&self.pods, NAMESPACE, &pod(&name)).await.map_err(failed)?;
            watch
                .until(|pods| pods.get(&name).is_some_and(|pod| pod["status"]["phase"] == "Running"))
                .await?;
            times.push(begun.elapsed().as_secs_f64());
        }
        Ok(Samples::new(times.split_off(1)))
    }

    /// The one node's name.
    pub(crate) async fn node(&self) -> Result<String> {
        let nodes = GroupVersionResource::new("", "v1", "nodes");
        let list = self.client.list(&nodes, "", ListOptions::default()).await.map_err(failed)?;
        list.items.first().map(|node| node.meta().name.clone()).context("there is no node")
    }

    /// The names of all pods.
    pub(crate) async fn pod_names(&self) -> Result<Vec<String>> {
        let list = self.client.list(&self.pods, NAMESPACE, ListOptions::default()).await.map_err(failed)?;
        Ok(list.items.iter().map(|pod| pod.meta().name.clone()).collect())
    }

    /// How many pods are ready whose containers have never been started anew.
    pub(crate) async fn kept(&self) -> Result<usize> {
        let list = self.client.list(&self.pods, NAMESPACE, ListOptions::default()).await.map_err(failed)?;
        let pods = list.items.iter().map(|pod| Ok(pod.decode()?)).collect::<Result<Vec<Value>>>()?;
        let kept = |pod: &&Value| {
            let status = &pod["status"]["containerStatuses"][0];
            status["ready"] == true && status["restartCount"] == 0
        };
        Ok(pods.iter().filter(kept).count())
    }

    /// Runs a pod with limits and a filter, and returns when the watch shows it Running.
    pub(crate) async fn run_limited(&self, name: &str) -> Result<()> {
        let mut pod = pod(name);
        let amounts = json!({"cpu": "1", "memory": "128Mi"});
        pod["spec"]["containers"][0]["resources"] =
            json!({"limits": amounts, "requests": {"cpu": "10m", "memory": "16Mi"}});
        pod["spec"]["securityContext"] = json!({"seccompProfile": {"type": "RuntimeDefault"}});
        self.create_and_wait(&pod, |pod| pod["status"]["phase"] == "Running").await
    }

    /// Runs a script in a pod, and returns when the file is there that it makes.
    pub(crate) async fn run_until_ready(&self, name: &str, script: &str, file: &str) -> Result<()> {
        let mut pod = pod(name);
        let container = &mut pod["spec"]["containers"][0];
        container["command"] = json!(["sh", "-c", script]);
        container["readinessProbe"] = json!({"exec": {"command": ["test", "-e", file]}, "periodSeconds": 1});
        let ready = |pod: &Value| pod["status"]["containerStatuses"][0]["ready"] == true;
        self.create_and_wait(&pod, ready).await
    }

    async fn create_and_wait(&self, pod: &Value, wished: impl Fn(&Value) -> bool) -> Result<()> {
        let mut watch = Watch::open(&self.client, &self.pods, NAMESPACE).await?;
        self.client.create(&self.pods, NAMESPACE, pod).await.map_err(failed)?;
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        watch.until(|pods| pods.get(name).is_some_and(&wished)).await
    }

    /// Creates pods, so many a second, whether those before run or not. A sample lasts from when a pod's creation is due
    /// until the watch shows it Running.
    pub(crate) async fn pods_at_a_pace(&self, count: usize, per_second: u32) -> Result<Samples> {
        // On a connection of its own, as a client has it that only looks on.
        let looking_on = client()?;
        let mut watch = Watch::open(&looking_on, &self.pods, NAMESPACE).await?;
        let start = tokio::time::Instant::now() + Duration::from_millis(100);
        let due = |number: usize| {
            Ok::<_, anyhow::Error>(start + Duration::from_secs(1) / per_second * u32::try_from(number)?)
        };
        let name = |number: usize| format!("paced-{number}");
        let creating = async {
            for number in 0..count {
                tokio::time::sleep_until(due(number)?).await;
                self.client.create(&self.pods, NAMESPACE, &pod(&name(number))).await.map_err(failed)?;
            }
            Ok::<_, anyhow::Error>(())
        };
        let seen = async {
            let mut times = vec![None; count];
            while times.iter().any(Option::is_none) {
                watch.next().await?;
                for (number, time) in times.iter_mut().enumerate().filter(|(_, time)| time.is_none()) {
                    let runs = |pod: &Value| pod["status"]["phase"] == "Running";
                    if watch.objects.get(&name(number)).is_some_and(runs) {
                        *time = Some(due(number)?.elapsed().as_secs_f64());
                    }
                }
            }
            Ok(times.into_iter().flatten().collect())
        };
        let ((), times) = futures::future::try_join(creating, seen).await?;
        Ok(Samples::new(times))
    }

    /// Deletes every pod and returns when none is left.
    pub(crate) async fn remove_pods(&self) -> Result<()> {
        let mut watch = Watch::open(&self.client, &self.pods, NAMESPACE).await?;
        let names: Vec<String> = watch.objects.keys().cloned().collect();
        for name in names {
            self.client
                .delete(&self.pods, &Key::new(NAMESPACE, name), DeleteOptions::default())
                .await
                .map_err(failed)?;
        }
        watch.until(BTreeMap::is_empty).await
    }

    /// Scales a Deployment from nothing: seconds from before the request to change its scale until the watch shows that
    /// all replicas are ready.
    pub(crate) async fn scale(&self, replicas: usize) -> Result<f64> {
        let template = pod("template");
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": DEPLOYMENT},
            "spec": {
                "replicas": 0,
                "selector": {"matchLabels": {"app": "bench"}},
                "template": {"metadata": {"labels": {"app": "bench"}}, "spec": template["spec"]},
            },
        });
        let mut watch = Watch::open(&self.client, &self.deployments, NAMESPACE).await?;
        self.client.create(&self.deployments, NAMESPACE, &deployment).await.map_err(failed)?;
        let seen = |deployment: &Value| {
            let generation = &deployment["metadata"]["generation"];
            generation.is_number() && deployment["status"]["observedGeneration"] == *generation
        };
        watch.until(|all| all.get(DEPLOYMENT).is_some_and(seen)).await?;
        self.scale_to(replicas).await
    }

    /// Scales the Deployment that is there, as [`Cluster::scale`] does.
    pub(crate) async fn scale_to(&self, replicas: usize) -> Result<f64> {
        let mut watch = Watch::open(&self.client, &self.deployments, NAMESPACE).await?;
        let begun = Instant::now();
        let key = Key::new(NAMESPACE, DEPLOYMENT);
        let patch = json!({"spec": {"replicas": replicas}});
        self.client
            .patch(&self.deployments, &key, "scale", PatchType::Merge, &patch)
            .await
            .map_err(failed)?;
        watch
            .until(|all| all.get(DEPLOYMENT).is_some_and(|one| one["status"]["readyReplicas"] == replicas))
            .await?;
        Ok(begun.elapsed().as_secs_f64())
    }

    /// Deletes the Deployment and returns when its pods are gone.
    pub(crate) async fn remove_deployment(&self) -> Result<()> {
        let mut watch = Watch::open(&self.client, &self.pods, NAMESPACE).await?;
        let options =
            DeleteOptions { propagation: Some(Propagation::Background), ..DeleteOptions::default() };
        self.client
            .delete(&self.deployments, &Key::new(NAMESPACE, DEPLOYMENT), options)
            .await
            .map_err(failed)?;
        watch.until(BTreeMap::is_empty).await
    }

    /// Objects created per second by several clients at once, and seconds for one list of all of them.
    pub(crate) async fn writes_and_list(&self) -> Result<(f64, f64)> {
        let config_maps = GroupVersionResource::new("", "v1", "configmaps");
        let begun = Instant::now();
        let writes = (0..CONFIG_MAPS).map(|number| {
            let object = json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": format!("bench-{number}")},
                "data": {"text": "x".repeat(1000)},
            });
            let (client, resource) = (&self.client, &config_maps);
            async move { client.create(resource, NAMESPACE, &object).await.map(drop) }
        });
        let writes = futures::stream::iter(writes).buffer_unordered(WRITERS);
        writes.try_collect::<()>().await.map_err(failed)?;
        let per_second = CONFIG_MAPS as f64 / begun.elapsed().as_secs_f64();
        let mut lists = Vec::new();
        for _ in 0..5 {
            let begun = Instant::now();
            let list =
                self.client.list(&config_maps, NAMESPACE, ListOptions::default()).await.map_err(failed)?;
            lists.push(begun.elapsed().as_secs_f64());
            if list.items.len() < CONFIG_MAPS {
                bail!("the list holds {} of {CONFIG_MAPS} ConfigMaps", list.items.len());
            }
        }
        Ok((per_second, Samples::new(lists).median()))
    }
}

/// One idle container that ends when it is told to.
fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "idle", "image": "busybox", "imagePullPolicy": "IfNotPresent", "command": ["sleep", "100000"]}],
        },
    })
}

/// The objects of one resource in one namespace, as a watch tells them.
pub(crate) struct Watch {
    stream: WatchStream,
    objects: BTreeMap<String, Value>,
}

impl Watch {
    /// Lists, and watches from there.
    pub(crate) async fn open(
        client: &Client,
        resource: &GroupVersionResource,
        namespace: &str,
    ) -> Result<Self> {
        let list = client.list(resource, namespace, ListOptions::default()).await.map_err(failed)?;
        let options = ListOptions { resource_version: list.revision.to_string(), ..ListOptions::default() };
        let stream = client.watch(resource, namespace, options).await.map_err(failed)?;
        let objects = list.items.iter().map(|object| Ok((object.meta().name.clone(), object.decode()?)));
        Ok(Self { stream, objects: objects.collect::<Result<_>>()? })
    }

    /// Returns as soon as the objects are as wished.
    pub(crate) async fn until(&mut self, wished: impl Fn(&BTreeMap<String, Value>) -> bool) -> Result<()> {
        let waited = async {
            while !wished(&self.objects) {
                self.next().await?;
            }
            Ok(())
        };
        tokio::time::timeout(PATIENCE, waited).await.context("what was waited for did not come")?
    }

    /// What the watch tells next.
    async fn next(&mut self) -> Result<()> {
        let events = self.stream.next().await.context("the watch ended")?.map_err(failed)?;
        for event in events {
            let name = event.object.meta().name.clone();
            match event.kind {
                WatchEventKind::Added | WatchEventKind::Modified => {
                    self.objects.insert(name, event.object.decode()?);
                }
                WatchEventKind::Deleted => {
                    self.objects.remove(&name);
                }
                WatchEventKind::Bookmark => {}
            }
        }
        Ok(())
    }
}

fn failed(status: Status) -> anyhow::Error {
    anyhow!("the API server says: {}", status.message)
}
