//! The user's terminal: raw mode while a remote process owns it, its size, and resizes.

use std::io::IsTerminal;

use anyhow::{Context, Result};
use rustix::termios::{OptionalActions, Termios};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Standard input in raw mode until dropped.
pub struct Raw(Termios);

impl Raw {
    /// Switches to raw mode; `None` where standard input is no terminal.
    pub fn enter() -> Result<Option<Self>> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let saved = rustix::termios::tcgetattr(&stdin).context("read terminal settings")?;
        let mut raw = saved.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(&stdin, OptionalActions::Now, &raw).context("set terminal to raw mode")?;
        Ok(Some(Self(saved)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nothing can be done where the terminal is gone.
        let _ = rustix::termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// The terminal's size as (rows, columns).
pub fn size() -> Option<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    (size.ws_row > 0).then_some((size.ws_row, size.ws_col))
}

/// A signal for each resize.
pub fn resizes() -> Result<Signal> {
    signal(SignalKind::window_change()).context("listen for terminal resizes")
}
