//! `kubeconfig`, `kubectl` and `status`.

use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::access;
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
    let path = access::kubeconfig(instance)?;
    let mut command = Command::new("kubectl");
    command.env("KUBECONFIG", &path);
    if path == instance.kubeconfig() {
        instance.expect_running()?;
    } else {
        // A user's own file may have another context as its current one.
        command.args(["--context", &instance.name]);
    }
    let error = command.args(&args.args).exec();
    if error.kind() == ErrorKind::NotFound {
        bail!(
            "kubectl is not installed, or not on the PATH; install it, or use any other with: skiff kubeconfig"
        );
    }
    Err(error).context("run kubectl")
}

/// Prints the administrator's kubeconfig.
pub fn kubeconfig(instance: &Instance) -> Result<()> {
    let path = instance.kubeconfig();
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) => match error.kind() {
            ErrorKind::NotFound => {
                bail!(
                    "no instance {:?} was ever started here; start it with: {}",
                    instance.name,
                    instance.command("up")
                )
            }
            ErrorKind::PermissionDenied => bail!("{} may be read by root only; use sudo", path.display()),
            _ => return Err(error).with_context(|| format!("read {}", path.display())),
        },
    };
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
