//! What Skiff's processes use, as the kernel counts it (proc(5)).

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// What just happened has settled after so long.
const SETTLE: Duration = Duration::from_secs(20);
/// `sysconf(_SC_CLK_TCK)`, which is the same on every Linux of today.
const TICKS_PER_SECOND: f64 = 100.0;
/// Three heartbeats of the node.
const WATCH: Duration = Duration::from_secs(40);

/// Proportional set size in megabytes: private pages, and of shared ones each process's share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// The daemon.
    pub(crate) daemon: f64,
    /// All shims.
    pub(crate) shims: f64,
}

impl Memory {
    /// As it is now.
    pub(crate) fn now() -> Result<Self> {
        let mut memory = Self { daemon: 0.0, shims: 0.0 };
        for process in skiffs()? {
            let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", process.pid))?;
            let line =
                rollup.lines().find_map(|line| line.strip_prefix("Pss:")).context("a process has no PSS")?;
            let kilobytes: f64 = line.trim_end_matches("kB").trim().parse().context("PSS is not a number")?;
            let part = if process.shim { &mut memory.shims } else { &mut memory.daemon };
            *part += kilobytes / 1024.0;
        }
        ensure!(memory.daemon > 0.0, "no Skiff process is there to be measured");
        Ok(memory)
    }

    /// All of Skiff.
    pub(crate) fn total(self) -> f64 {
        self.daemon + self.shims
    }
}

/// The processor time of one process.
pub(crate) struct Cpu(u32);

impl Cpu {
    /// Of the daemon.
    pub(crate) fn of_daemon() -> Result<Self> {
        let daemon = skiffs()?.into_iter().find(|process| !process.shim);
        daemon.map(|process| Self(process.pid)).context("no daemon is there to be measured")
    }

    /// Of another process.
    pub(crate) fn of(pid: u32) -> Self {
        Self(pid)
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.0
    }

    /// Seconds that its threads ran, those that ended too.
    pub(crate) fn seconds(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0))?;
        // What follows the name, which may hold anything: utime and stime are fields 14 and 15.
        let (_, fields) = stat.rsplit_once(')').context("stat has no name")?;
        let ticks = fields.split_ascii_whitespace().skip(11).take(2).map(str::parse::<f64>);
        Ok(ticks.sum::<Result<f64, _>>()? / TICKS_PER_SECOND)
    }
}

/// Returns when what just happened has settled.
pub(crate) async fn settle() {
    tokio::time::sleep(SETTLE).await;
}

/// Kills the daemon, and returns when it has ended.
pub(crate) fn kill_daemon() -> Result<()> {
    let pid = Cpu::of_daemon()?.pid();
    let killed = std::process::Command::new("kill").args(["-KILL", &pid.to_string()]).status()?;
    ensure!(killed.success(), "the daemon cannot be killed: {killed}");
    while fs::read_link(format!("/proc/{pid}/exe")).is_ok() {
        std::thread::yield_now();
    }
    Ok(())
}

/// What Skiff uses while nothing happens.
pub(crate) struct Usage {
    pub(crate) memory: Memory,
    /// Hundredths of one core.
    pub(crate) core_percent: f64,
    /// How often a thread of Skiff's went on after it had waited: voluntary context switches.
    pub(crate) wakeups_per_second: f64,
}

impl Usage {
    /// Waits until all is quiet, then looks on.
    pub(crate) async fn measure() -> Result<Self> {
        settle().await;
        let (begun, before) = (Instant::now(), Counters::now()?);
        tokio::time::sleep(WATCH).await;
        let (seconds, after) = (begun.elapsed().as_secs_f64(), Counters::now()?);
        Ok(Self {
            memory: Memory::now()?,
            core_percent: (after.run_seconds - before.run_seconds) / seconds * 100.0,
            wakeups_per_second: (after.switches - before.switches) / seconds,
        })
    }
}

/// Sums over every thread. A thread that ends takes its counts along; at rest none does.
#[derive(Default)]
struct Counters {
    run_seconds: f64,
    switches: f64,
}

impl Counters {
    fn now() -> Result<Self> {
        let mut counters = Self::default();
        for process in skiffs()? {
            for task in fs::read_dir(format!("/proc/{}/task", process.pid))? {
                let task = task?.path();
                let (Ok(schedule), Ok(status)) =
                    (fs::read_to_string(task.join("schedstat")), fs::read_to_string(task.join("status")))
                else {
                    continue;
                };
                let nanoseconds =
                    schedule.split_ascii_whitespace().next().and_then(|text| text.parse::<f64>().ok());
                counters.run_seconds += nanoseconds.context("schedstat has no run time")? / 1e9;
                let switches = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
                counters.switches += switches.context("status has no switches")?.trim().parse::<f64>()?;
            }
        }
        Ok(counters)
    }
}

struct Process {
    pid: u32,
    shim: bool,
}

/// Every process of Skiff's on this host.
fn skiffs() -> Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // Gone meanwhile, or the kernel's.
        let Ok(program) = fs::read_link(format!("/proc/{pid}/exe")) else { continue };
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("skiff") {
            found.push(Process { pid, shim: name.contains("shim") });
        }
    }
    Ok(found)
}
