//! Skiff: arguments, configuration, wiring, supervision.

mod daemon;
mod down;
mod home;
mod image_settings;
mod join;
mod kubeconfig;
mod membership;
mod ports;
mod report;
mod rootless;
mod rundir;
mod settings;
mod unit;
mod up;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use cli::instance::{Instance, InstanceArgs};

use crate::rootless::Errand;

/// Objects come and go by the thousand, on all threads: glibc's allocator keeps what they leave behind in pieces. How it
/// is set up stands in `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A whole container platform in one binary: docker build to zero-downtime update on a real cluster.
#[derive(Debug, Parser)]
#[command(name = "skiff", version, disable_help_subcommand = true)]
#[command(after_help = "Example:\n  skiff up && skiff kubectl get nodes")]
struct Arguments {
    #[command(flatten)]
    instance: InstanceArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start an instance and wait until its node is Ready
    #[command(after_help = "Example:\n  skiff up --name demo")]
    Up(settings::UpArgs),
    /// Make this host a node of a cluster that runs elsewhere
    Join(join::JoinArgs),
    /// End the pods within their grace and stop the instance; data is kept
    #[command(after_help = "Example:\n  skiff down --purge")]
    Down(down::DownArgs),
    /// Print a systemd unit that runs the instance
    #[command(after_help = "Example:\n  skiff unit > /etc/systemd/system/skiff.service")]
    Unit(settings::UpArgs),
    /// Hold the namespaces of an instance without root (Skiff runs this itself)
    #[command(name = "rootless-keeper", hide = true, after_help = "Example:\n  skiff up")]
    RootlessKeeper(rootless::keeper::KeepArgs),
    /// Print the shell's completion script
    #[command(after_help = "Example:\n  skiff completion bash > /etc/bash_completion.d/skiff")]
    Completion {
        /// The shell
        shell: Shell,
    },
    #[command(flatten)]
    Client(cli::Command),
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("skiff: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<u8> {
    let instance = arguments.instance;
    if rootless::is_needed()
        && let Some(errand) = errand_of(&arguments.command)
    {
        return rootless::run(errand, &instance);
    }
    match arguments.command {
        Command::RootlessKeeper(args) => rootless::keeper::run(&args),
        Command::Up(args) => {
            let settings = args.resolve(instance.resolve()?)?;
            up::run(&args, settings)
        }
        Command::Join(args) => {
            let settings = args.settings().resolve(instance.resolve()?)?;
            join::run(&args, settings)
        }
        Command::Down(args) => down::run(&args, &instance.resolve_started()?),
        Command::Unit(args) => {
            let settings = args.resolve(instance.resolve()?)?;
            let program = std::env::current_exe().context("find this program")?;
            let home = std::env::var_os("HOME").map(std::path::PathBuf::from);
            let manager = if rootless::is_needed() { unit::Manager::User } else { unit::Manager::System };
            cli::output::write_out(&unit::text(&settings, &program, home.as_deref(), manager)?).map(|()| 0)
        }
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "skiff", &mut std::io::stdout());
            Ok(0)
        }
        Command::Client(command) => client(command, &instance.resolve_started()?),
    }
}

/// What of a command takes root.
fn errand_of(command: &Command) -> Option<Errand> {
    match command {
        Command::Up(args) => Some(Errand::Start { foreground: args.foreground }),
        Command::Down(_) => Some(Errand::Down),
        _ => None,
    }
}

/// Runs a command that speaks to a running instance.
fn client(command: cli::Command, instance: &Instance) -> Result<u8> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let result = runtime.block_on(cli::run(command, instance));
    // A thread may still wait for a line of standard input that nobody wants any more.
    runtime.shutdown_background();
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    /// One that did would get the global argument's value.
    #[test]
    fn no_commands_argument_hides_a_global_one() {
        let command = Arguments::command();
        let global: Vec<_> = command.get_arguments().map(clap::Arg::get_id).collect();
        for command in command.get_subcommands() {
            let hidden = command.get_arguments().find(|argument| global.contains(&argument.get_id()));
            assert!(hidden.is_none(), "{}: {hidden:?}", command.get_name());
        }
    }

    /// What a unit and a joined host start.
    #[test]
    fn the_arguments_of_settings_are_the_settings() {
        let line =
            ["skiff", "up", "--kubeconfig", "", "--node-name", "n", "--api-port", "7000", "--run-dir", "/r"];
        let parse = |line: &[std::ffi::OsString]| {
            let arguments = Arguments::parse_from(line);
            let Command::Up(args) = arguments.command else { panic!("it is up") };
            args.resolve(arguments.instance.resolve().unwrap()).unwrap()
        };
        let settings = parse(&line.map(Into::into));
        assert_eq!(settings.kubeconfig, None, "none, and not the default one");
        let said = [vec!["skiff".into()], up::arguments(&settings)].concat();
        assert_eq!(parse(&said).facts(), settings.facts());
    }

    #[test]
    fn every_command_shows_an_example() {
        for command in Arguments::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example"), "{} has no example", command.get_name());
        }
    }
}
