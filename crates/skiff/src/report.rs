//! What a starting daemon tells the command that started it: JSON lines on standard output until it is ready.

use std::io::Write;

use cli::instance::Running;
use serde::{Deserialize, Serialize};

/// One line.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Report {
    /// A step that takes time has begun.
    Progress(String),
    /// The node is Ready.
    Ready(Box<Running>),
    /// It will not come up; cause and remedy in one line.
    Failed(String),
}

/// Where a daemon reports to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Reporter {
    /// The command that started it reads standard output.
    Parent,
    /// A person reads standard error.
    Terminal,
}

impl Reporter {
    /// Sends one report. The reader may be gone; that is its business.
    pub(crate) fn send(self, report: &Report) {
        match self {
            Self::Parent => {
                if let Ok(line) = serde_json::to_string(report) {
                    let mut out = std::io::stdout().lock();
                    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
                }
            }
            Self::Terminal => match report {
                Report::Progress(step) => cli::output::progress(step),
                Report::Ready(running) => cli::output::progress(&format!("node {} is Ready", running.node)),
                Report::Failed(_) => {}
            },
        }
    }
}
