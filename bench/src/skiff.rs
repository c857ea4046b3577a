//! The `skiff` command on the host.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The program that is measured.
pub(crate) struct Skiff {
    program: PathBuf,
}

impl Skiff {
    /// The release build at `program`.
    pub(crate) fn new(program: &Path) -> Result<Self> {
        if !program.exists() {
            bail!("no {}: run `make bench`, or `cargo build --release -p skiff` first", program.display());
        }
        Ok(Self { program: program.to_owned() })
    }

    /// Its size in megabytes.
    pub(crate) fn size(&self) -> Result<f64> {
        let bytes = std::fs::metadata(&self.program).context("look at the program")?.len();
        Ok(bytes as f64 / f64::from(1 << 20))
    }

    /// Runs a command that has to succeed.
    pub(crate) fn run(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.program);
        let output = command.args(args).stdin(Stdio::null()).output().context("start skiff")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("skiff {}: {}: {}", args.join(" "), output.status, said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Removes every container that has ended.
    pub(crate) fn remove_containers(&self) -> Result<()> {
        let listed: Value = serde_json::from_str(&self.run(&["ps", "-a", "-o", "json"])?)?;
        let ids = listed.as_array().into_iter().flatten().filter_map(|container| container["Id"].as_str());
        for id in ids {
            self.run(&["rm", id])?;
        }
        Ok(())
    }

    /// How long a command takes from before its start to after its end, in seconds.
    pub(crate) fn time(&self, args: &[&str]) -> Result<f64> {
        let begun = Instant::now();
        self.run(args)?;
        Ok(begun.elapsed().as_secs_f64())
    }
}
