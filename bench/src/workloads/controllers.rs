//! Pods that controllers create, replace and delete.

use std::collections::BTreeMap;

use ::api::{DeleteOptions, GroupVersionResource, Key, Object, PatchType, Propagation};
use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};

use super::agent::Agent;
use super::field::{Field, Spent, pod_spec};
use super::table::{Line, Targets};
use crate::api::failed;
use crate::cluster::Watch;

/// The Deployment that is rolled.
const ROLLED: &str = "rolled";

/// What each step of a Deployment's life took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Life {
    pub(crate) replicas: usize,
    pub(crate) created: Spent,
    pub(crate) rolled: Spent,
    pub(crate) deleted: Spent,
}

impl Field {
    /// So many Deployments, each of so many replicas that nobody schedules: until the last pod is there.
    pub(crate) async fn created(
        &self,
        what: &str,
        (count, replicas): (usize, usize),
        targets: Targets,
    ) -> Result<Line> {
        let namespace = format!("bench-created-{count}");
        self.namespace(&namespace).await?;
        let mut followed = self.follow(&namespace, None).await?;
        let deployments = deployments();
        let total = count * replicas;
        let since = self.since()?;
        let made = (0..count).map(|number| {
            let mut spec = pod_spec();
            spec["schedulerName"] = "nobody".into();
            let deployment = deployment(&format!("many-{number}"), replicas, &spec);
            let (client, deployments, namespace) =
                (&self.clients[number % self.clients.len()], &deployments, &namespace);
            async move { client.create(deployments, namespace, &deployment).await.map(drop) }
        });
        let made = futures::stream::iter(made).buffer_unordered(self.clients.len());
        made.try_collect::<()>().await.map_err(failed)?;
        followed.until(|tally| tally.there == total).await?;
        let spent = self.spent(since).await?;
        // None too many has come meanwhile.
        followed.until(|tally| tally.there == total && tally.created == total).await?;
        for number in 0..count {
            let key = Key::new(&*namespace, format!("many-{number}"));
            self.client().delete(&deployments, &key, background()).await.map_err(failed)?;
        }
        followed.until(|tally| tally.there == 0).await?;
        Ok(Line::new(what, total, spent, targets))
    }

    /// A Deployment is created, rolled and deleted, its pods scheduled, run and removed as with kubelets.
    pub(crate) async fn rolled(&self, replicas: usize) -> Result<Life> {
        let namespace = format!("bench-rolled-{replicas}");
        self.namespace(&namespace).await?;
        let agent = Agent::start(&self.clients);
        let mut followed = self.follow(&namespace, Some(agent)).await?;
        let (deployments, key) = (deployments(), Key::new(&*namespace, ROLLED));
        let mut watch = Watch::open(self.client(), &deployments, &namespace).await?;
        let since = self.since()?;
        let made = deployment(ROLLED, replicas, &pod_spec());
        let made = self.client().create(&deployments, &namespace, &made).await.map_err(failed)?;
        let generation = generation_of(&made)?;
        followed.beside(watch.until(|all| complete(all, generation, replicas))).await?;
        let created = self.spent(since).await?;

        let since = self.since()?;
        let roll =
            json!({ "spec": { "template": { "metadata": { "annotations": { "bench/round": "2" } } } } });
        let patched = self.client().patch(&deployments, &key, "", PatchType::Merge, &roll).await;
        let generation = generation_of(&*patched.map_err(failed)?)?;
        followed.beside(watch.until(|all| complete(all, generation, replicas))).await?;
        followed.until(|tally| tally.there == replicas && tally.ready == replicas).await?;
        let rolled = self.spent(since).await?;

        let since = self.since()?;
        self.client().delete(&deployments, &key, background()).await.map_err(failed)?;
        followed.until(|tally| tally.there == 0).await?;
        let deleted = self.spent(since).await?;
        Ok(Life { replicas, created, rolled, deleted })
    }
}

fn generation_of(deployment: &Object) -> Result<i64> {
    let deployment: Value = deployment.decode()?;
    deployment["metadata"]["generation"].as_i64().context("a Deployment without a generation")
}

/// The controller has seen this generation or a later one, and all pods are of it and available.
fn complete(all: &BTreeMap<String, Value>, generation: i64, replicas: usize) -> bool {
    all.get(ROLLED).is_some_and(|deployment| {
        let status = &deployment["status"];
        let counts = ["replicas", "updatedReplicas", "availableReplicas"];
        status["observedGeneration"].as_i64() >= Some(generation)
            && counts.iter().all(|count| status[count] == replicas)
    })
}

fn deployments() -> GroupVersionResource {
    GroupVersionResource::new("apps", "v1", "deployments")
}

fn background() -> DeleteOptions {
    DeleteOptions { propagation: Some(Propagation::Background), ..DeleteOptions::default() }
}

fn deployment(name: &str, replicas: usize, spec: &Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": name },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "deployment": name } },
            "template": { "metadata": { "labels": { "app": "bench", "deployment": name } }, "spec": spec },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_complete_before_a_roll_is_not_complete_after_it() {
        let deployment = |generation: i64, updated: usize| {
            let status = json!({
                "observedGeneration": generation, "replicas": 3, "updatedReplicas": updated,
                "availableReplicas": 3,
            });
            BTreeMap::from([(ROLLED.to_owned(), json!({ "status": status }))])
        };
        assert!(complete(&deployment(1, 3), 1, 3));
        assert!(!complete(&deployment(1, 3), 2, 3) && !complete(&deployment(2, 2), 2, 3));
        assert!(complete(&deployment(2, 3), 2, 3) && !complete(&BTreeMap::new(), 1, 3));
    }
}
