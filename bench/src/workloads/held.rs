//! Pods that are on nodes from the start, the memory that they take, and what a cluster costs that does nothing.

use std::time::Duration;

use anyhow::Result;

use super::field::{Field, pod_spec};
use super::nodes;
use super::table::Single;
use crate::large::rss;

/// What creating left behind has settled, and memory that is free has gone back to the system.
const SETTLED: Duration = Duration::from_secs(10);

impl Field {
    /// Puts as many pods on each node, so many in all, without the scheduler. Gives the memory of each.
    pub(crate) async fn hold(&mut self, count: usize) -> Result<(Single, String)> {
        let namespace = "bench-held";
        self.namespace(namespace).await?;
        tokio::time::sleep(SETTLED).await;
        let before = rss(self.daemon.pid())?;
        let (since, nodes) = (self.since()?, self.nodes.count);
        self.create_pods(namespace, count, |number| {
            let mut spec = pod_spec();
            spec["nodeName"] = nodes::name(number % nodes).into();
            serde_json::json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": { "name": format!("held-{number}"), "labels": { "app": "held" } },
                "spec": spec,
            })
        })
        .await?;
        let spent = self.spent(since).await?;
        self.held_by_node = count.div_ceil(nodes);
        tokio::time::sleep(SETTLED).await;
        let each = (rss(self.daemon.pid())? - before) * 1024.0 / count as f64;
        let made = format!(
            "{count} pods created on {nodes} nodes, {:.0} a second, {:.3} ms of the server's CPU each",
            count as f64 / spent.seconds,
            spent.daemon * 1000.0 / count as f64
        );
        Ok((Single::at_most(&format!("memory of each of {count} pods"), "KB", each, 12.0), made))
    }

    /// Share of a core while nothing happens but leases being renewed.
    pub(crate) async fn idle(&self, duration: Duration) -> Result<Single> {
        tokio::time::sleep(SETTLED).await;
        let since = self.since()?;
        tokio::time::sleep(duration).await;
        let spent = self.spent(since).await?;
        // What settles afterwards is renewals too.
        let seconds = spent.seconds + super::field::SETTLE.as_secs_f64();
        let name =
            format!("{} nodes, leases renewed every 10 s, over {} s", self.nodes.count, duration.as_secs());
        Ok(Single::at_most(&name, "% of a core", spent.daemon / seconds * 100.0, 20.0))
    }
}
