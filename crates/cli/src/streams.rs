//! `logs` and `exec`, for the engine's containers and for pods.

use anyhow::{Context, Result, bail};
use clap::Args;
use jiff::{SignedDuration, Timestamp};

use crate::containers::{self, ExecCommand, LogOptions};
use crate::engine::Engine;
use crate::instance::Instance;
use crate::remote;
use crate::target::{self, Target};

/// Arguments of `skiff logs`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  skiff logs web\n  skiff logs -f --tail 20 web-5d4f8/app -n shop")]
pub struct Logs {
    /// Go on with what is written from now on
    #[arg(short, long)]
    pub follow: bool,
    /// So many of the last lines
    #[arg(long, value_name = "LINES")]
    pub tail: Option<u64>,
    /// Not older than this
    #[arg(long, value_name = "10s|5m|2h", value_parser = duration)]
    pub since: Option<SignedDuration>,
    /// The container before its last restart (pods)
    #[arg(short, long)]
    pub previous: bool,
    /// With the time of each line
    #[arg(short, long)]
    pub timestamps: bool,
    /// Namespace of the pod
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// A container, or a pod
    #[arg(value_name = "CONTAINER|POD[/CONTAINER]")]
    pub target: String,
}

/// Arguments of `skiff exec`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  skiff exec web cat /etc/hostname\n  skiff exec -it web-5d4f8/app -n shop -- sh"
)]
pub struct Exec {
    /// Pass standard input on
    #[arg(short, long)]
    pub interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Namespace of the pod
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// A container, or a pod
    #[arg(value_name = "CONTAINER|POD[/CONTAINER]")]
    pub target: String,
    /// Program and arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

fn duration(text: &str) -> Result<SignedDuration, String> {
    match text.parse::<SignedDuration>() {
        Ok(duration) if duration.is_positive() => Ok(duration),
        _ => Err("a duration such as 10s, 5m or 2h is wanted".into()),
    }
}

/// Prints a log.
pub async fn logs(instance: &Instance, engine: &Engine, args: &Logs) -> Result<()> {
    match target::find(instance, engine, &args.target, args.namespace.as_deref()).await? {
        Target::Engine(_) if args.previous => {
            bail!(
                "{} is no pod's container: only those are started again with a log of their own",
                args.target
            )
        }
        Target::Engine(name) => {
            let since = match args.since {
                Some(since) => {
                    Some(Timestamp::now().checked_sub(since).context("--since is too far back")?.as_second())
                }
                None => None,
            };
            let options =
                LogOptions { follow: args.follow, tail: args.tail, since, timestamps: args.timestamps };
            containers::logs(engine, &name, &options).await
        }
        Target::Pod(pod) => remote::log(&pod, &log_query(args)).await,
    }
}

/// The log's parameters. Source: `core/v1.PodLogOptions`.
fn log_query(args: &Logs) -> String {
    let mut query =
        format!("follow={}&previous={}&timestamps={}", args.follow, args.previous, args.timestamps);
    if let Some(lines) = args.tail {
        query += &format!("&tailLines={lines}");
    }
    if let Some(since) = args.since {
        query += &format!("&sinceSeconds={}", since.as_secs().max(1));
    }
    query
}

/// Runs a command in a container; answers with its exit code.
pub async fn exec(instance: &Instance, engine: &Engine, args: Exec) -> Result<u8> {
    let target = target::find(instance, engine, &args.target, args.namespace.as_deref()).await?;
    let command = ExecCommand { command: args.command, stdin: args.interactive, tty: args.tty };
    match target {
        Target::Engine(name) => containers::exec(engine, &name, &command).await,
        Target::Pod(pod) => remote::exec(&pod, &command).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_kubectls() {
        assert_eq!(duration("90s").unwrap().as_secs(), 90);
        assert_eq!(duration("1h30m").unwrap().as_secs(), 5400);
        assert!(duration("-5m").is_err());
        assert!(duration("soon").is_err());
    }

    #[test]
    fn the_query_says_what_was_asked() {
        let args = Logs {
            follow: true,
            tail: Some(3),
            since: Some(SignedDuration::from_mins(2)),
            previous: false,
            timestamps: true,
            namespace: None,
            target: "web".into(),
        };
        assert_eq!(
            log_query(&args),
            "follow=true&previous=false&timestamps=true&tailLines=3&sinceSeconds=120"
        );
    }
}
