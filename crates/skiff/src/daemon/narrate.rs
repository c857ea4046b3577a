//! What a starting daemon says while somebody waits: nothing for a second, then what it is at and what is not ready.

use std::time::Duration;

use base::lifecycle::{Readiness, Tasks};
use tokio::sync::watch;

use crate::report::{Report, Reporter};

/// A start that takes no longer needs no words.
const PATIENCE: Duration = Duration::from_secs(1);

/// Speaks until it is dropped.
pub(super) struct Narrator {
    step: watch::Sender<&'static str>,
    _tasks: Tasks,
}

impl Narrator {
    /// Begins to listen; `readiness` is told of once the step is empty.
    pub(super) fn start(reporter: Reporter, readiness: Readiness) -> Self {
        let (step, steps) = watch::channel("");
        let tasks = Tasks::default();
        tasks.spawn(narrate(reporter, readiness, steps));
        Self { step, _tasks: tasks }
    }

    /// A step of the set-up begins; empty: the components have been started.
    pub(super) fn step(&self, step: &'static str) {
        self.step.send_replace(step);
    }
}

async fn narrate(reporter: Reporter, readiness: Readiness, mut steps: watch::Receiver<&'static str>) {
    tokio::time::sleep(PATIENCE).await;
    let mut said = String::new();
    let mut waiting = readiness.waiting();
    loop {
        let step = *steps.borrow_and_update();
        let line = if step.is_empty() { sentence(&waiting) } else { step.to_owned() };
        if line != said && !line.is_empty() {
            reporter.send(&Report::Progress(line.clone()));
            said = line;
        }
        tokio::select! {
            changed = steps.changed() => if changed.is_err() { return },
            now = readiness.changed(&waiting) => waiting = now,
        }
    }
}

/// `waiting for node (waits for its Node object), dns`; empty where all are ready.
fn sentence(waiting: &[(&'static str, String)]) -> String {
    let part = |(name, why): &(&'static str, String)| match why.as_str() {
        "" => (*name).to_owned(),
        why => format!("{name} ({why})"),
    };
    match waiting {
        [] => String::new(),
        waiting => format!("waiting for {}", waiting.iter().map(part).collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_ready_is_named_with_its_reason() {
        assert_eq!(sentence(&[]), "");
        let waiting = [("dns", String::new()), ("node", "failed: no room".to_owned())];
        assert_eq!(sentence(&waiting), "waiting for dns, node (failed: no room)");
    }
}
