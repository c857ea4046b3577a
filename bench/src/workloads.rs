//! Workloads: pods that are bound and pods that controllers create, on nodes that the bench registers and keeps alive, and
//! for which it writes what kubelets would. Everything is counted and checked on the way: no pod is bound twice, no node
//! has more than it takes, groups are apart or spread, and nothing is created that nobody asked for.

mod agent;
mod binding;
mod controllers;
mod field;
mod followed;
mod held;
mod nodes;
mod sizes;
mod table;
mod task;

use std::io::Write as _;

use anyhow::Result;

use binding::Groups;
use field::Field;
use sizes::Scenario;
pub(crate) use sizes::{Flags, Sizes};
use table::Targets;

use crate::progress;
use crate::skiff::Skiff;

/// Upstream's figures on such a machine.
const BOUND_UPSTREAM: &str = "262–328 /s, 6.7 ms";
const CREATED_UPSTREAM: &str = "345–406 /s, 4.6 ms";
const PACED_UPSTREAM: &str = "p99 5 s";

/// Measures all that is wanted, and prints each part as soon as it is known. Each cluster is a new one.
pub(crate) async fn measure(skiff: &Skiff, sizes: &Sizes) -> Result<()> {
    let wants = |scenarios: &[Scenario]| scenarios.iter().any(|one| sizes.wants(*one));
    if wants(&[Scenario::Bound, Scenario::Apart, Scenario::Spread, Scenario::Paced]) {
        fresh(skiff, async || binding_on_few(sizes).await).await?;
    }
    if wants(&[Scenario::Created, Scenario::Rolled]) {
        fresh(skiff, async || by_controllers(sizes).await).await?;
    }
    if wants(&[Scenario::Large, Scenario::Idle]) {
        fresh(skiff, async || on_many(sizes).await).await?;
    }
    Ok(())
}

/// With a server that nothing was done to.
async fn fresh(skiff: &Skiff, measured: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
    skiff.run(&["up"])?;
    let measured = measured().await;
    let ended = skiff.run(&["down", "--purge"]);
    measured.and(ended.map(drop))
}

fn bound(per_second: f64, part: f64) -> Targets {
    Targets { per_second: Some(per_second / part), cpu_ms: Some(0.5 * part), ..Targets::default() }
}

async fn binding_on_few(sizes: &Sizes) -> Result<()> {
    progress("nodes");
    let field = Field::new(sizes.nodes).await?;
    let on = format!("{} nodes", sizes.nodes);
    let mut lines = Vec::new();
    for (scenario, what, groups, part) in [
        (Scenario::Bound, "bound", Groups::Strangers, 1.0),
        (Scenario::Apart, "with anti-affinity", Groups::Apart, 3.0),
        (Scenario::Spread, "with topology spread", Groups::Spread, 3.0),
    ] {
        if !sizes.wants(scenario) {
            continue;
        }
        progress(what);
        let upstream = if groups == Groups::Strangers { BOUND_UPSTREAM } else { "" };
        let targets = Targets { upstream, ..bound(3000.0, part) };
        lines.push(field.bound(&format!("{what}, {on}"), groups, sizes.pods, targets).await?);
    }
    if sizes.wants(Scenario::Paced) {
        progress("500 pods a second");
        let targets = Targets { p99_ms: Some(100.0), upstream: PACED_UPSTREAM, ..Targets::default() };
        lines.push(field.paced(&format!("500 a second, {on}"), sizes.paced, targets).await?);
    }
    say(&table::lines(&lines))
}

async fn by_controllers(sizes: &Sizes) -> Result<()> {
    progress("nodes");
    let field = Field::new(sizes.nodes).await?;
    if sizes.wants(Scenario::Created) {
        let (count, replicas) = sizes.deployments;
        let targets =
            Targets { per_second: Some(4000.0), cpu_ms: None, p99_ms: None, upstream: CREATED_UPSTREAM };
        let mut lines = Vec::new();
        for (count, replicas) in [(count, replicas), (1, sizes.one_deployment)] {
            progress("pods that Deployments create");
            let what = format!("created, {count} Deployments of {replicas}");
            lines.push(field.created(&what, (count, replicas), targets).await?);
        }
        say(&table::lines(&lines))?;
    }
    if sizes.wants(Scenario::Rolled) {
        let mut lives = Vec::new();
        for replicas in &sizes.replicas {
            progress(&format!("a Deployment of {replicas}"));
            lives.push(field.rolled(*replicas).await?);
        }
        say(&table::lives(&lives))?;
    }
    Ok(())
}

async fn on_many(sizes: &Sizes) -> Result<()> {
    progress("many nodes");
    let mut field = Field::new(sizes.many_nodes).await?;
    let mut singles = Vec::new();
    if sizes.wants(Scenario::Idle) {
        progress("nothing but leases");
        singles.push(field.idle(sizes.idle).await?);
    }
    if sizes.wants(Scenario::Large) {
        progress("pods that are there already");
        let (memory, made) = field.hold(sizes.held).await?;
        singles.push(memory);
        say(&(made + "\n\n"))?;
    }
    say(&table::singles(&singles))?;
    if !sizes.wants(Scenario::Large) {
        return Ok(());
    }
    let on = format!("{} nodes, {} pods", sizes.many_nodes, sizes.held);
    let mut lines = Vec::new();
    for (what, groups, part) in [
        ("bound", Groups::Strangers, 1.0),
        ("with anti-affinity", Groups::Apart, 3.0),
        ("with topology spread", Groups::Spread, 3.0),
    ] {
        progress(what);
        lines.push(field.bound(&format!("{what}, {on}"), groups, sizes.pods, bound(2000.0, part)).await?);
    }
    progress("500 pods a second");
    let targets = Targets { p99_ms: Some(100.0), ..Targets::default() };
    lines.push(field.paced(&format!("500 a second, {on}"), sizes.paced, targets).await?);
    say(&table::lines(&lines))
}

fn say(text: &str) -> Result<()> {
    Ok(write!(std::io::stdout(), "{text}")?)
}
