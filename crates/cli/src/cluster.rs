//! `kubeconfig`, `kubectl` and `status`.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::instance::Instance;
use crate::output::{self, Format};

/// Arguments of `skiff kubectl`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  skiff kubectl get pods -A")]
pub struct Kubectl {
    /// What kubectl is to do
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<String>,
}

/// Arguments of `skiff kubeconfig`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  skiff kubeconfig > ~/.kube/skiff")]
pub struct Kubeconfig {}

/// Arguments of `skiff status`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  skiff status -o json")]
pub struct Status {
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

/// Becomes the installed kubectl with this instance's kubeconfig.
pub fn kubectl(instance: &Instance, args: &Kubectl) -> Result<()> {
    instance.expect_running()?;
    let error = Command::new("kubectl").args(&args.args).env("KUBECONFIG", instance.kubeconfig()).exec();
    Err(error).context("run kubectl; is it installed and on the PATH?")
}

/// Prints the administrator's kubeconfig.
pub fn kubeconfig(instance: &Instance) -> Result<()> {
    let path = instance.kubeconfig();
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("read {}; was the instance started? skiff up", path.display()))?;
    output::write_out(&text)
}

/// Prints what the instance says of itself.
pub fn status(instance: &Instance, args: &Status) -> Result<()> {
    let running = instance.expect_running()?;
    let row = vec![
        instance.name.clone(),
        running.node.clone(),
        running.address.clone(),
        running.api.clone(),
        running.pid.to_string(),
        running.version.clone(),
    ];
    output::print(args.output, &running, &["NAME", "NODE", "ADDRESS", "API", "PID", "VERSION"], &[row])
}
