//! The daemon: builds every component, wires them, and supervises.
use crate::report::Reporter;
use crate::settings::Settings;
use anyhow::Result;
pub(crate) fn run(_settings: Settings, _reporter: Reporter) -> Result<()> {
    anyhow::bail!("wip")
}
