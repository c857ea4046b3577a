//! Measures every figure that Skiff promises, on a testbed host of its own, and prints them as a table.
//!
//! `make bench` builds the release and runs this. Nothing here asserts a time: figures depend on the machine, so a
//! missed one is printed, not failed. The program runs twice: outside it makes the host, inside (argument `inside`) it
//! measures there, so that neither namespaces nor `nsenter` stand in the figures.

mod api;
mod cluster;
mod engine;
mod etcd;
mod figures;
mod large;
mod lists;
mod peer;
mod processes;
mod rows;
mod skiff;
mod watched;
mod workloads;

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Parser as _;
use testbed::Testbed;

use crate::cluster::Cluster;
use crate::figures::{Figure, Samples, Unit};
use crate::processes::Usage;
use crate::skiff::Skiff;
use crate::workloads::{Flags, Sizes};

/// Pods that are created one after another, and replicas of the Deployment that is scaled.
const PODS: usize = 50;
/// Repetitions of what takes milliseconds.
const RUNS: usize = 30;
/// Starts of an instance that is there already.
const STARTS: usize = 7;
/// Writes of many clients at once are answered in so many milliseconds, 99 of 100, or in so many times what a bare sync
/// takes.
const WRITE_AT_MOST: f64 = 10.0;
const SYNCS: f64 = 3.0;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => outside("all", &[]),
        [what @ ("api" | "engine" | "large")] => outside(what, &[]),
        ["workloads", ref flags @ ..] => {
            // Told here, where nothing has been made yet.
            sizes(flags)?;
            outside("workloads", flags)
        }
        ["inside", what, program, archive, ref flags @ ..] => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start the runtime")?
            .block_on(inside(what, Path::new(program), Path::new(archive), flags)),
        _ => bail!(
            "bench takes no arguments, `api` for the API server alone, `engine` for the engine and the node, `large` for a \
             list of 1 GB, or `workloads` for scheduler and controllers"
        ),
    }
}

fn sizes(flags: &[&str]) -> Result<Sizes> {
    let named = std::iter::once(&"bench workloads").chain(flags);
    let flags = Flags::try_parse_from(named).unwrap_or_else(|said| said.exit());
    Sizes::new(flags)
}

/// Makes a host and measures on it.
fn outside(what: &str, flags: &[&str]) -> Result<()> {
    let own = std::env::current_exe().context("find this program")?;
    let beside = || own.with_file_name("skiff");
    let program = std::env::var_os("SKIFF_BINARY").map_or_else(beside, PathBuf::from);
    let archive = testbed::base_image("busybox-bookworm.tar")?;
    let bed = Testbed::new()?;
    let host = bed.host()?;
    let measured = host
        .command(&own.to_string_lossy())
        .args(["inside", what])
        .args([&program, &archive])
        .args(flags)
        .status()
        .context("measure on the host")?;
    if !measured.success() {
        let log = host.sh("cat /var/lib/*/skiff.log /run/*/skiff.log 2>/dev/null | tail -50")?;
        bail!("the measurement failed; the daemon's log ends:\n{}", log.out);
    }
    Ok(())
}

async fn inside(what: &str, program: &Path, archive: &Path, flags: &[&str]) -> Result<()> {
    let skiff = Skiff::new(program)?;
    if what == "workloads" {
        return workloads::measure(&skiff, &sizes(flags)?).await;
    }
    if what == "api" {
        skiff.run(&["up"])?;
        let measured = api_server().await;
        return measured.and(skiff.run(&["down", "--purge"]).map(drop));
    }
    if what == "engine" {
        return engine(&skiff, archive).await;
    }
    if what == "large" {
        skiff.run(&["up"])?;
        let measured = large::measure(large::PODS).await;
        skiff.run(&["down", "--purge"])?;
        measured?.iter().try_for_each(|line| writeln!(std::io::stdout(), "{line}"))?;
        return Ok(());
    }
    let mut figures = vec![Figure::new("release binary", Unit::Megabytes, skiff.size()?, Some(60.0))];
    let measured = measure(&skiff, archive, &mut figures).await;
    let ended = skiff.run(&["down", "--purge"]);
    write!(std::io::stdout(), "{}", figures::table(&figures))?;
    measured.and(ended.map(drop))?;
    engine(&skiff, archive).await
}

/// The engine and the node; a table of its own.
async fn engine(skiff: &Skiff, archive: &Path) -> Result<()> {
    let mut figures = Vec::new();
    skiff.run(&["up"])?;
    skiff.run(&["load", "-i", &archive.to_string_lossy()])?;
    let measured = engine::measure(skiff, archive, &mut figures).await;
    let ended = skiff.run(&["down", "--purge"]);
    write!(std::io::stdout(), "\n{}", figures::table(&figures))?;
    measured.and(ended.map(drop))?;
    many(skiff, archive).await
}

/// What a node with many pods needs.
async fn many(skiff: &Skiff, archive: &Path) -> Result<()> {
    let mut figures = Vec::new();
    let file = tempfile::NamedTempFile::new().context("make the node's configuration")?;
    std::fs::write(file.path(), engine::NODE_CONFIG)?;
    skiff.run(&["up", "--node-config", &file.path().to_string_lossy()])?;
    skiff.run(&["load", "-i", &archive.to_string_lossy()])?;
    let measured = engine::measure_many(skiff, &mut figures).await;
    let ended = skiff.run(&["down", "--purge"]);
    write!(std::io::stdout(), "\n{}", figures::table(&figures))?;
    measured.and(ended.map(drop))
}

/// Adds each figure as it is known, so that a failure shows what came before it.
async fn measure(skiff: &Skiff, archive: &Path, figures: &mut Vec<Figure>) -> Result<()> {
    progress("first start");
    let first = skiff.time(&["up"])?;
    let cluster = Cluster::connect().await?;
    cluster.node_is_ready().await?;
    figures.push(Figure::new("`skiff up`, first start, to node Ready", Unit::Seconds, first, Some(1.0)));
    idle(figures, "idle", Some(60.0)).await?;

    progress("containers of `skiff run`");
    skiff.run(&["load", "-i", &archive.to_string_lossy()])?;
    let runs = Samples::collect(RUNS, || skiff.time(&["run", "busybox", "true"]))?;
    let name = "`skiff run busybox true`, median";
    figures.push(Figure::new(name, Unit::Milliseconds, runs.median(), Some(60.0)));
    figures.push(Figure::new("the same, 99th percentile", Unit::Milliseconds, runs.percentile(99), None));
    skiff.remove_containers()?;
    let runs = Samples::collect(RUNS, || skiff.time(&["run", "--rm", "busybox", "true"]))?;
    let name = "the same with `--rm`, until it is removed, median";
    figures.push(Figure::new(name, Unit::Milliseconds, runs.median(), None));
    if let Some(runc) = peer::runc(archive, RUNS)? {
        figures.push(Figure::new(
            "peer: `runc run` of `true`, no image, no network",
            Unit::Milliseconds,
            runc.median(),
            None,
        ));
    }

    pods(&cluster, figures).await?;
    scale(&cluster, figures).await?;
    throughput(&cluster, figures).await?;
    api_server().await?;

    progress("starts of an instance that is there");
    let starts = Samples::collect(STARTS, || {
        skiff.run(&["down"])?;
        skiff.time(&["up"])
    })?;
    figures.push(Figure::new("`skiff up`, later start, median", Unit::Seconds, starts.median(), Some(1.0)));
    Ok(())
}

/// What Skiff uses while nothing happens.
async fn idle(figures: &mut Vec<Figure>, when: &str, memory_at_most: Option<f64>) -> Result<()> {
    progress("a minute of doing nothing");
    let usage = Usage::measure().await?;
    let name = |what: &str| format!("{when}: {what}");
    figures.push(Figure::new(&name("memory, PSS"), Unit::Megabytes, usage.memory.total(), memory_at_most));
    figures.push(Figure::new(&name("share of a core"), Unit::Percent, usage.core_percent, Some(1.0)));
    figures.push(Figure::new(&name("wake-ups"), Unit::PerSecond, usage.wakeups_per_second, Some(10.0)));
    Ok(())
}

/// Pods one after another; what each adds to the memory.
async fn pods(cluster: &Cluster, figures: &mut Vec<Figure>) -> Result<()> {
    progress("pods one after another");
    let before = processes::Memory::now()?;
    let times = cluster.pods_one_by_one(PODS).await?;
    let running = |what: &str| format!("pod creation to Running, {what} of {PODS}");
    figures.push(Figure::new(&running("median"), Unit::Milliseconds, times.median(), Some(100.0)));
    figures.push(Figure::new(
        &running("99th percentile"),
        Unit::Milliseconds,
        times.percentile(99),
        Some(250.0),
    ));
    idle(figures, &format!("idle with {PODS} pods"), None).await?;
    let after = processes::Memory::now()?;
    let more = |now: f64, then: f64| (now - then) / PODS as f64;
    let (total, shim) = (more(after.total(), before.total()), more(after.shims, before.shims));
    figures.push(Figure::new("more memory per running container", Unit::Megabytes, total, Some(2.0)));
    figures.push(Figure::new("of it the shim", Unit::Megabytes, shim, Some(1.0)));
    cluster.remove_pods().await
}

async fn scale(cluster: &Cluster, figures: &mut Vec<Figure>) -> Result<()> {
    progress("a Deployment scaled");
    let seconds = cluster.scale(PODS).await?;
    let name = format!("{PODS} replicas Ready after the scale");
    figures.push(Figure::new(&name, Unit::Seconds, seconds, Some(4.0)));
    cluster.remove_deployment().await
}

/// The API server's operations, and etcd's beside them; a table of its own.
async fn api_server() -> Result<()> {
    progress("the API server under load");
    let syncs = api::bare_syncs(Path::new("/var/lib"), 500)?;
    let (median, slowest) = (syncs.median() * 1000.0, syncs.percentile(99) * 1000.0);
    let (mut rows, memory) = api::measure((slowest * SYNCS).max(WRITE_AT_MOST)).await?;
    progress("etcd under load");
    rows.extend(etcd::measure().await?);
    writeln!(
        std::io::stdout(),
        "{}\nA bare sync of 1 kB: {median:.2} ms at the median, {slowest:.2} ms at the 99th percentile.\n\
         Memory: {:.1} MB at first, {:.1} MB with all objects, {:.1} MB with the watchers too, {:.1} MB \
         after their writes.\n",
        rows::table(&rows),
        memory.before,
        memory.with_objects,
        memory.with_watchers,
        memory.with_writes,
    )?;
    Ok(())
}

async fn throughput(cluster: &Cluster, figures: &mut Vec<Figure>) -> Result<()> {
    progress("writes and lists");
    let (writes, list) = cluster.writes_and_list().await?;
    let name = format!("writes, {} at a time, each synced", cluster::WRITERS);
    figures.push(Figure::new(&name, Unit::PerSecond, writes, None));
    let name = format!("list of {} ConfigMaps of 1 KB", cluster::CONFIG_MAPS);
    figures.push(Figure::new(&name, Unit::Milliseconds, list, None));
    Ok(())
}

fn progress(what: &str) {
    // Nobody needs it.
    let _ = writeln!(std::io::stderr(), "bench: {what}");
}
