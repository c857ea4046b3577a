//! What the server does once when it starts, and whether it has been done: health checks tell it by the names that
//! upstream's start hooks have. Source: the `poststarthook/…` checks of `kubernetes/cmd/kube-apiserver`.

use std::sync::Arc;

use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use tokio::sync::watch;

/// A step of the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Step {
    /// CustomResourceDefinitions have been read, and what they define is served.
    Definitions = 1,
    /// The system's namespaces, priority classes and Services are there.
    Bootstrap = 1 << 1,
    /// The default roles are there.
    Roles = 1 << 2,
    /// The default FlowSchemas and levels are there.
    Flow = 1 << 3,
    /// Extension API servers can read whom to believe.
    Trust = 1 << 4,
    /// It is known which APIServices others serve.
    Services = 1 << 5,
    /// Everything that is served here has its APIService.
    Registration = 1 << 6,
}

/// Checks, and the step after which each passes.
pub(crate) const CHECKS: [(&str, Step); 11] = [
    ("poststarthook/start-apiextensions-controllers", Step::Definitions),
    ("poststarthook/crd-informer-synced", Step::Definitions),
    ("poststarthook/start-system-namespaces-controller", Step::Bootstrap),
    ("poststarthook/start-cluster-authentication-info-controller", Step::Trust),
    ("poststarthook/rbac/bootstrap-roles", Step::Roles),
    ("poststarthook/scheduling/bootstrap-system-priority-classes", Step::Bootstrap),
    ("poststarthook/priority-and-fairness-config-producer", Step::Flow),
    ("poststarthook/bootstrap-controller", Step::Bootstrap),
    ("poststarthook/apiservice-registration-controller", Step::Services),
    ("poststarthook/kube-apiserver-autoregistration", Step::Registration),
    ("autoregister-completion", Step::Registration),
];

/// The steps that have been done.
#[derive(Debug, Default)]
pub(crate) struct Started(watch::Sender<u8>);

impl Started {
    pub(crate) fn done(&self, step: Step) {
        self.0.send_if_modified(|done| {
            let before = *done;
            *done |= step as u8;
            *done != before
        });
    }

    pub(crate) fn has(&self, step: Step) -> bool {
        has(*self.0.borrow(), step)
    }

    /// Returns when a step has been done.
    async fn after(&self, step: Step) {
        let _ = self.0.subscribe().wait_for(|done| has(*done, step)).await;
    }

    /// Returns when all steps have been done.
    pub(crate) async fn all(&self) {
        let mut steps = self.0.subscribe();
        // The sender is held by `self`, so waiting cannot fail.
        let _ = steps.wait_for(|done| CHECKS.iter().all(|(_, step)| has(*done, *step))).await;
    }
}

fn has(done: u8, step: Step) -> bool {
    done & step as u8 != 0
}

/// A component that is ready once the API server has done everything that it does when it starts. It is one of its own,
/// since others come after the API server, and what is left to do may need them: a webhook in a pod is asked about
/// what the server writes.
pub struct Start(pub(crate) Arc<Started>);

impl Start {
    /// Returns when it is known which APIServices others serve.
    pub async fn others_known(&self) {
        self.0.after(Step::Services).await;
    }
}

#[async_trait]
impl Component for Start {
    fn name(&self) -> &'static str {
        "apiserver-start"
    }

    fn after(&self) -> &'static [&'static str] {
        &["apiserver"]
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        ctx.waiting_for("the API server's first writes");
        tokio::select! {
            () = self.0.all() => ctx.ready(),
            () = ctx.cancelled() => {}
        }
        ctx.cancelled().await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_passes_after_its_own_step() {
        let started = Started::default();
        let passing = || CHECKS.iter().filter(|(_, step)| started.has(*step)).count();
        assert_eq!(passing(), 0);
        started.done(Step::Roles);
        assert_eq!(passing(), 1);
        started.done(Step::Bootstrap);
        assert_eq!(passing(), 4);
        assert!(started.has(Step::Roles) && !started.has(Step::Registration));
    }

    #[tokio::test]
    async fn the_start_is_over_with_its_last_step() {
        let started = Arc::new(Started::default());
        let mut all = std::pin::pin!(started.all());
        let first =
            [Step::Definitions, Step::Bootstrap, Step::Roles, Step::Flow, Step::Trust, Step::Services];
        for step in first.into_iter().chain([Step::Registration]) {
            assert!(futures::poll!(all.as_mut()).is_pending());
            started.done(step);
        }
        all.await;
    }
}
