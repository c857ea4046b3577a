//! Components of which only one process of several may run a set: they run while it holds the set's lease.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context, Supervisor};
use tokio_util::sync::CancellationToken;

use crate::leader::Election;

/// Each member has this long to drain. Together with the time in which a leader gives up, it is shorter than the lease.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// A set of components under one lease.
pub struct Elected {
    name: &'static str,
    election: Election,
    members: Vec<Arc<dyn Component>>,
}

impl Elected {
    /// Runs `members` while `election` is won. They may depend on each other only ([`Component::after`]).
    pub fn new(name: &'static str, election: Election, members: Vec<Arc<dyn Component>>) -> Self {
        Self { name, election, members }
    }

    /// Leads until the lease is lost or `ctx` drains; the members have ended when this returns.
    async fn lead(&self, ctx: &Context) -> Result<(), BoxError> {
        let mut supervisor = Supervisor::new();
        for member in &self.members {
            supervisor.add(member.clone());
        }
        let stop = CancellationToken::new();
        let lost = async {
            tokio::select! {
                () = self.election.lost() => {}
                () = ctx.cancelled() => {}
                // A member that may not fail has failed.
                () = stop.cancelled() => {}
            }
            stop.cancel();
        };
        let (ended, ()) = tokio::join!(supervisor.run(stop.clone(), DRAIN_MAX), lost);
        ended
    }
}

#[async_trait]
impl Component for Elected {
    fn name(&self) -> &'static str {
        self.name
    }

    /// Whoever stands by is ready: another process does the work.
    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        ctx.ready();
        loop {
            tokio::select! {
                () = ctx.cancelled() => return Ok(()),
                () = self.election.won() => {}
            }
            tracing::info!(lease = self.name, "leading");
            let ended = self.lead(&ctx).await;
            self.election.tell("stopped leading");
            if ended.is_err() || ctx.cancel().is_cancelled() {
                // The others need not wait for the lease to expire.
                self.election.give_back().await;
                return ended;
            }
            tracing::warn!(lease = self.name, "no longer leading");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use jiff::Timestamp;

    use super::*;
    use crate::leader::tests::{Server, candidate, pass};

    /// Counts how many of its kind run at present, and how often one began.
    #[derive(Default)]
    struct Count {
        running: AtomicU32,
        begun: AtomicU32,
    }

    struct Member(Arc<Count>);

    #[async_trait]
    impl Component for Member {
        fn name(&self) -> &'static str {
            "member"
        }

        async fn run(&self, ctx: Context) -> Result<(), BoxError> {
            assert_eq!(self.0.running.fetch_add(1, Ordering::SeqCst), 0, "two at once");
            self.0.begun.fetch_add(1, Ordering::SeqCst);
            ctx.ready();
            ctx.cancelled().await;
            self.0.running.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        }
    }

    async fn until(count: &Count, begun: u32) {
        while count.begun.load(Ordering::SeqCst) < begun {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn one_process_runs_the_set_and_another_takes_over() {
        let server = Arc::new(Server::default());
        let clock = base::clock::VirtualClock::new(Timestamp::UNIX_EPOCH);
        let count = Arc::new(Count::default());
        let process = |name: &str| {
            let (election, cut) = candidate(&server, &clock, name);
            let members: Vec<Arc<dyn Component>> = vec![Arc::new(Member(count.clone()))];
            (Arc::new(Elected::new("set", election, members)), cut)
        };
        let ((one, cut), (two, _)) = (process("one"), process("two"));
        let (first, second) = (Context::detached("one"), Context::detached("two"));
        let run = async { tokio::join!(one.run(first.clone()), two.run(second.clone())) };
        let story = async {
            until(&count, 1).await;
            let leader = server.holder();
            // Cut off or told to end: the other one begins, and never before this one has ended.
            if leader == "one" {
                cut.store(true, Ordering::SeqCst);
            } else {
                second.cancel().cancel();
            }
            until(&count, 2).await;
            assert_ne!(server.holder(), leader);
            cut.store(false, Ordering::SeqCst);
            first.cancel().cancel();
            second.cancel().cancel();
        };
        let ((one, two), ()) = pass(&clock, async { tokio::join!(run, story) }).await;
        one.unwrap();
        two.unwrap();
        assert_eq!(count.running.load(Ordering::SeqCst), 0);
        assert_eq!(server.holder(), "");
    }
}
