//! A task that ends with its owner.

use anyhow::{Result, ensure};
use tokio::task::JoinHandle;

/// A task of the bench's; dropping this ends it.
pub(crate) struct Task(JoinHandle<Result<()>>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Task {
    /// Begins it.
    pub(crate) fn begin(work: impl Future<Output = Result<()>> + Send + 'static) -> Self {
        #[expect(clippy::disallowed_methods, reason = "the task's owner is this value, which ends it")]
        let task = tokio::spawn(work);
        Self(task)
    }

    /// How it ended; asked once.
    pub(crate) async fn ended(&mut self) -> Result<()> {
        (&mut self.0).await?
    }

    /// An error if it is not there any more.
    pub(crate) fn goes_on(&self, what: &str) -> Result<()> {
        ensure!(!self.0.is_finished(), "{what} has ended");
        Ok(())
    }
}
