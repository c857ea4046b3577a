//! Pods that are bound: as fast as it goes, and at an even pace.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use ::api::{DeleteOptions, GroupVersionResource, Key};
use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use serde_json::{Value, json};

use super::field::{Field, pod_spec};
use super::followed::Pods;
use super::nodes::{self, ZONES, zone};
use super::sizes::{GROUP, PACE};
use super::table::{Line, Targets};
use crate::api::failed;
use crate::figures::Samples;

/// What pods of a group are to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Groups {
    /// Nothing.
    Strangers,
    /// No two on one node.
    Apart,
    /// As many in each zone.
    Spread,
}

/// The pod that holds all others back: none of them may be where it is, and it is everywhere.
const PLUG: &str = "plug";

impl Field {
    /// Pods that wait are let go at once, with one request.
    pub(crate) async fn bound(
        &self,
        what: &str,
        groups: Groups,
        count: usize,
        targets: Targets,
    ) -> Result<Line> {
        let namespace = format!("bench-bound-{}", what.replace([' ', ','], "-").to_lowercase());
        self.namespace(&namespace).await?;
        let plugs = format!("{namespace}-plug");
        self.namespace(&plugs).await?;
        let pods = GroupVersionResource::new("", "v1", "pods");
        self.client().create(&pods, &plugs, &plug(&namespace)).await.map_err(failed)?;
        let mut followed = self.follow(&namespace, None).await?;
        self.create_pods(&namespace, count, |number| waiting(number, groups)).await?;
        followed.until(|tally| tally.refused == count).await?;
        // What refusing them left to be written is written.
        self.spent(self.since()?).await?;
        let since = self.since()?;
        let options = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
        self.client().delete(&pods, &Key::new(&*plugs, PLUG), options).await.map_err(failed)?;
        followed.until(|tally| tally.bound == count).await?;
        let spent = self.spent(since).await?;
        followed.look(|pods| right(pods, groups))?;
        self.remove_pods(&namespace, &mut followed).await?;
        Ok(Line::new(what, count, spent, targets))
    }

    /// Pods are created at an even pace; the times go from when each was due to when the watch showed it on a node.
    pub(crate) async fn paced(&self, what: &str, duration: Duration, targets: Targets) -> Result<Line> {
        let count = PACE as usize * usize::try_from(duration.as_secs())?;
        let namespace = format!("bench-paced-{}", self.nodes.count);
        self.namespace(&namespace).await?;
        let mut followed = self.follow(&namespace, None).await?;
        let pods = GroupVersionResource::new("", "v1", "pods");
        let since = self.since()?;
        let begun = Instant::now();
        let due = |number: usize| begun + Duration::from_secs_f64(number as f64 / f64::from(PACE));
        // As many at once as there are in a second: a slow answer does not hold back the next.
        let mut creations = futures::stream::iter(0..count)
            .map(|number| {
                let (client, pods, namespace) =
                    (&self.clients[number % self.clients.len()], &pods, &namespace);
                async move {
                    tokio::time::sleep_until(due(number).into()).await;
                    let pod = waiting(number, Groups::Strangers);
                    client.create(pods, namespace, &pod).await.map(drop).map_err(failed)
                }
            })
            .buffer_unordered(PACE as usize);
        while let Some(created) = creations.next().await {
            created?;
        }
        followed.until(|tally| tally.bound == count).await?;
        let spent = self.spent(since).await?;
        let times = followed.look(|pods| {
            let times = pods.seen.values().map(|pod| {
                let (number, _) = place(&pod.name)?;
                let bound = pod.bound_at.context("a pod that is not bound")?;
                Ok(bound.saturating_duration_since(due(number)).as_secs_f64())
            });
            times.collect::<Result<Vec<_>>>()
        })?;
        self.remove_pods(&namespace, &mut followed).await?;
        Ok(Line::new(what, count, spent, targets).waiting(&Samples::new(times)))
    }
}

/// The plug, on one node; its rule concerns all.
fn plug(namespace: &str) -> Value {
    let mut spec = pod_spec();
    spec["nodeName"] = nodes::name(0).into();
    spec["containers"][0]["resources"] = json!({});
    spec["affinity"] = json!({ "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [{
        "labelSelector": { "matchLabels": { "app": "bench" } },
        "namespaces": [namespace], "topologyKey": nodes::EVERYWHERE,
    }] } });
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": PLUG }, "spec": spec })
}

fn waiting(number: usize, groups: Groups) -> Value {
    let group = format!("group-{}", number / GROUP);
    let selector = json!({ "matchLabels": { "group": group } });
    let mut spec = pod_spec();
    match groups {
        Groups::Strangers => {}
        Groups::Apart => {
            spec["affinity"] = json!({ "podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution":
                    [{ "labelSelector": selector, "topologyKey": "kubernetes.io/hostname" }],
            } });
        }
        Groups::Spread => {
            spec["topologySpreadConstraints"] = json!([{
                "maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone",
                "whenUnsatisfiable": "DoNotSchedule", "labelSelector": selector,
            }]);
        }
    }
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": format!("pod-{number}"), "labels": { "app": "bench", "group": group } },
        "spec": spec,
    })
}

/// The number of a pod and its group, by its name.
fn place(name: &str) -> Result<(usize, usize)> {
    let number: usize = name.strip_prefix("pod-").context("a pod of somebody else")?.parse()?;
    Ok((number, number / GROUP))
}

/// Where the pods are is where they may be.
fn right(pods: &Pods, groups: Groups) -> Result<()> {
    let mut apart = HashSet::new();
    let mut zones: HashMap<usize, [usize; ZONES]> = HashMap::new();
    let mut sizes: BTreeMap<usize, usize> = BTreeMap::new();
    for pod in pods.seen.values() {
        let (_, group) = place(&pod.name)?;
        let node = pod.node.as_deref().context("a pod that is not bound")?;
        let zone = zone(node).with_context(|| format!("{} is on {node}", pod.name))?;
        let first = apart.insert((group, node));
        ensure!(first || groups != Groups::Apart, "two pods of group {group} are on {node}");
        zones.entry(group).or_default()[zone] += 1;
        *sizes.entry(group).or_default() += 1;
    }
    for (group, zones) in zones {
        let (most, least) = (zones.iter().max(), zones.iter().min());
        let even = most.zip(least).is_some_and(|(most, least)| most - least <= 1);
        ensure!(even || groups != Groups::Spread, "group {group} is not spread: {zones:?}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::followed::Seen;
    use super::*;

    fn on(nodes: &[usize]) -> Pods {
        let seen = nodes.iter().enumerate().map(|(number, node)| {
            let seen =
                Seen { name: format!("pod-{number}"), node: Some(nodes::name(*node)), ..Seen::default() };
            (number.to_string(), seen)
        });
        Pods { seen: seen.collect(), ..Pods::default() }
    }

    #[test]
    fn pods_of_a_group_on_one_node_or_in_one_zone_are_told() {
        assert!(right(&on(&[0, 0]), Groups::Strangers).is_ok());
        assert!(right(&on(&[0, 0]), Groups::Apart).is_err());
        assert!(right(&on(&[0, ZONES]), Groups::Apart).is_ok());
        assert!(right(&on(&[0, ZONES]), Groups::Spread).is_err());
        assert!(right(&on(&[0, 1, 2]), Groups::Spread).is_ok());
    }
}
