//! HorizontalPodAutoscalers: as many pods as their figures ask for. Each is looked at every 15 seconds, by a deadline of its
//! own. Source: `k8s.io/kubernetes/pkg/controller/podautoscaler`.

mod apply;
mod behavior;
mod measure;
mod metrics;
mod replicas;
mod types;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use api::selectors::LabelSelector;
use api::{Key, Object};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use parking_lot::Mutex;
use reconcile::{Action, Change, EventRecorder, Informer, Queue, Reconcile, kinds};

use crate::context::{Ctx, work};
use crate::figures::autoscalers::AutoscalerFigures;
use behavior::History;
use metrics::Metrics;

pub use types::{Autoscaler, Behavior, Condition, MetricSpec, Policy, Rules, Spec, Status};

const NAME: &str = "horizontal-pod-autoscaler";
/// How many are worked on at once. Source: `--concurrent-horizontal-pod-autoscaler-syncs`.
const WORKERS: usize = 5;
/// How often each is looked at: a figure does not say when it changes.
/// Source: `--horizontal-pod-autoscaler-sync-period`.
const PERIOD: Duration = Duration::from_secs(15);

/// The controller.
pub struct Autoscalers {
    ctx: Ctx,
}

impl Autoscalers {
    /// A controller over these handles.
    pub fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.named(NAME) }
    }
}

#[async_trait]
impl Component for Autoscalers {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let worker = Arc::new(Worker::new(&self.ctx));
        let queue = worker.queue.clone();
        let figures = self.ctx.figures.clone();
        // They are told anew.
        figures.iter().for_each(|figures| figures.autoscalers.all.set(0));
        let _registration = worker.autoscalers.on_change(move |change| {
            if let Some(figures) = &figures {
                count(&figures.autoscalers, change);
            }
            let generation =
                |held: &Option<Arc<api::Object>>| held.as_ref().map(|held| held.meta().generation);
            // What only its status tells is this controller's own doing.
            if generation(&change.old) != generation(&change.new) {
                queue.add(change.key.clone());
            }
        });
        work(
            &ctx,
            NAME,
            &[&worker.autoscalers, &worker.pods, worker.metrics.services()],
            &worker.queue,
            WORKERS,
            &worker,
        )
        .await
    }
}

/// Counts the autoscalers that there are.
fn count(figures: &AutoscalerFigures, change: &Change) {
    match (&change.old, &change.new) {
        (None, Some(_)) => figures.all.inc(),
        (Some(_), None) => {
            figures.all.dec();
            figures.wants(&change.key, None);
        }
        _ => {}
    }
}

/// The state of a running controller.
struct Worker {
    ctx: Ctx,
    autoscalers: Informer,
    pods: Informer,
    metrics: Metrics,
    /// Each as this process wrote it last: the cache may be behind.
    written: Mutex<HashMap<Key, Arc<Object>>>,
    /// What was recommended and done before.
    histories: Mutex<HashMap<Key, History>>,
    /// What each scales, as far as it is known.
    selectors: Mutex<HashMap<Key, LabelSelector>>,
    queue: Queue<Key>,
    events: EventRecorder,
}

impl Worker {
    fn new(ctx: &Ctx) -> Self {
        Self {
            ctx: ctx.clone(),
            autoscalers: ctx.informers.get(kinds::HORIZONTAL_POD_AUTOSCALERS),
            pods: ctx.informers.get(kinds::PODS),
            metrics: Metrics::new(ctx),
            written: Mutex::default(),
            histories: Mutex::default(),
            selectors: Mutex::default(),
            queue: ctx.queue("horizontalpodautoscaler"),
            events: EventRecorder::new(ctx.client.clone(), ctx.clock.clone(), NAME, ""),
        }
    }

    /// Every autoscaler, this one included, that has pods of this selector.
    fn rivals(&self, key: &Key, selector: &LabelSelector) -> BTreeSet<Key> {
        let mut selectors = self.selectors.lock();
        selectors.insert(key.clone(), selector.clone());
        let others: Vec<(Key, LabelSelector)> = selectors
            .iter()
            .filter(|(other, _)| other.namespace == key.namespace)
            .map(|(other, selector)| (other.clone(), selector.clone()))
            .collect();
        drop(selectors);
        let mut rivals = BTreeSet::new();
        if others.len() > 1 {
            for pod in self.pods.labelled(&key.namespace, |labels| selector.matches(labels)) {
                let has = |other: &&(Key, LabelSelector)| other.1.matches(&pod.meta().labels);
                rivals.extend(others.iter().filter(has).map(|(other, _)| other.clone()));
            }
        }
        rivals
    }
}

#[async_trait]
impl Reconcile<Key> for Worker {
    async fn reconcile(&self, key: &Key) -> Result<Action, BoxError> {
        match self.sync(key).await {
            Ok(false) => Ok(Action::Done),
            Ok(true) => Ok(Action::After(PERIOD)),
            Err(error) => {
                // The figures are asked again in their time, not sooner: whoever serves them may be overloaded.
                tracing::debug!(%key, error = %base::error::chain(&*error), "an autoscaler's status was not written");
                Ok(Action::After(PERIOD))
            }
        }
    }
}
