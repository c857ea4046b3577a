//! `skiff down`: ends pods within their grace, stops the daemon, and on request removes everything.
use anyhow::Result;
use clap::Args;
use cli::instance::Instance;
/// Arguments of `skiff down`.
#[derive(Debug, Args)]
pub(crate) struct DownArgs {
    /// Remove all data as well
    #[arg(long)]
    pub(crate) purge: bool,
}
/// Runs `down`.
pub(crate) fn run(_args: &DownArgs, _instance: &Instance) -> Result<u8> {
    anyhow::bail!("wip")
}
