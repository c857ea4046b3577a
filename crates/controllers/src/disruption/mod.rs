//! PodDisruptionBudgets: how many of a budget's pods may be evicted now. The eviction API takes from that number and notes
//! the pods; this controller counts anew whenever pods change. Source: `k8s.io/kubernetes/pkg/controller/disruption`.

mod apply;
mod plan;
mod types;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{Key, Object, ObjectMeta};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context};
use reconcile::{
    Action, Change, EventRecorder, EventType, Informer, Involved, Queue, Reconcile, Registration, kinds,
    run_workers,
};
use serde::Deserialize;

use crate::context::{self, Ctx, ready};
use crate::selecting::{Selecting, Selectors};
use crate::selector::{LabelSelector, Select};

pub use types::{Budget, BudgetSpec, BudgetStatus, Condition};

const NAME: &str = "disruption-controller";
/// The source of its events. Source: `NewDisruptionControllerInternal`.
const EVENTS: &str = "controllermanager";
const WORKERS: usize = 2;

/// The controller.
pub struct Disruptions {
    ctx: Ctx,
}

impl Disruptions {
    /// A controller over these handles.
    pub fn new(ctx: &Ctx) -> Self {
        Self { ctx: ctx.named(NAME) }
    }
}

/// What is worked on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Item {
    /// A budget, whose pods are to be counted.
    Budget(Key),
    /// A pod that says that it is disrupted.
    Pod(Key),
}

#[async_trait]
impl Component for Disruptions {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn run(&self, ctx: Context) -> Result<(), BoxError> {
        let worker = Arc::new(Worker::new(&self.ctx));
        let _registrations = worker.listen();
        if !ready(&ctx, &worker.caches()).await {
            return Ok(());
        }
        tokio::join!(
            run_workers(&ctx, NAME, &worker.queue, WORKERS, worker.clone()),
            run_workers(&ctx, NAME, &worker.stale, 1, worker.clone()),
        );
        Ok(())
    }
}

/// The state of a running controller.
struct Worker {
    ctx: Ctx,
    budgets: Informer,
    pods: Informer,
    /// Replication controllers, replica sets, Deployments, stateful sets.
    controllers: [Informer; 4],
    /// What the budgets select.
    selectors: Selectors<LabelSelector>,
    queue: Queue<Item>,
    /// Pods that say that they are disrupted.
    stale: Queue<Item>,
    events: EventRecorder,
}

impl Worker {
    fn new(ctx: &Ctx) -> Self {
        let controllers =
            [kinds::REPLICATION_CONTROLLERS, kinds::REPLICA_SETS, kinds::DEPLOYMENTS, kinds::STATEFUL_SETS];
        Self {
            ctx: ctx.clone(),
            budgets: ctx.informers.get(kinds::POD_DISRUPTION_BUDGETS),
            pods: ctx.informers.get(kinds::PODS),
            controllers: controllers.map(|kind| ctx.informers.get(kind)),
            selectors: Selectors::default(),
            queue: ctx.queue("disruption"),
            stale: ctx.queue("stale_pod_disruption"),
            events: EventRecorder::new(ctx.client.clone(), ctx.clock.clone(), EVENTS, ""),
        }
    }

    fn caches(&self) -> Vec<&Informer> {
        self.controllers.iter().chain([&self.budgets, &self.pods]).collect()
    }

    fn listen(self: &Arc<Self>) -> Vec<Registration> {
        let handler = |handle: fn(&Self, &Change)| {
            let worker = Arc::downgrade(self);
            move |change: &Change| {
                if let Some(worker) = worker.upgrade() {
                    handle(&worker, change);
                }
            }
        };
        let mut registrations = vec![
            self.budgets.on_change(handler(Self::budget_changed)),
            self.pods.on_change(handler(Self::pod_changed)),
        ];
        for informer in &self.controllers {
            registrations.push(informer.on_change(handler(Self::controller_changed)));
        }
        registrations
    }

    fn budget_changed(&self, change: &Change) {
        let selector =
            change.new.as_ref().and_then(|held| context::decode::<Budget>(held).ok()?.spec.selector);
        self.selectors.set(&change.key, selector);
        self.queue.add(Item::Budget(change.key.clone()));
    }

    fn pod_changed(&self, change: &Change) {
        for pod in [&change.old, &change.new].into_iter().flatten() {
            self.budgets_of(pod).into_iter().for_each(|budget| budget.add_to(&self.queue, Item::Budget));
        }
        let Some(pod) = &change.new else { return };
        if change.old.as_ref().is_none_or(|old| old.meta().labels != pod.meta().labels) {
            self.complain_of_several(pod);
        }
        if says_disrupted(pod) {
            self.stale.add(Item::Pod(change.key.clone()));
        }
    }

    /// The budgets that select a pod.
    fn budgets_of(&self, pod: &Object) -> Vec<Selecting> {
        let meta = pod.meta();
        self.selectors.of(&meta.namespace, |selector| selector.matches(&meta.labels))
    }

    fn complain_of_several(&self, pod: &Object) {
        let budgets = self.budgets_of(pod);
        let [first, _, ..] = budgets.as_slice() else { return };
        let meta = pod.meta();
        let message = format!(
            "Pod {:?}/{:?} matches multiple PodDisruptionBudgets.  Chose {:?} arbitrarily.",
            meta.namespace, meta.name, first.key.name
        );
        let involved = Involved::object(&kinds::PODS, pod);
        self.events.event(involved, EventType::Warning, "MultiplePodDisruptionBudgets", message);
    }

    /// Another size of a controller is another number of expected pods, before its pods change. A namespace may hold many
    /// budgets: those that select no pod of its template are left alone.
    fn controller_changed(&self, change: &Change) {
        let generation = |object: &Option<Arc<Object>>| object.as_ref().map(|held| held.meta().generation);
        if generation(&change.old) == generation(&change.new) {
            return;
        }
        let versions = [&change.old, &change.new].into_iter().flatten();
        let templates: Vec<_> = versions.map(|controller| template_labels(controller)).collect();
        let may_select =
            |selector: &LabelSelector| templates.iter().any(|labels| !contradicts(selector, labels));
        for budget in self.selectors.of(&change.key.namespace, may_select) {
            self.queue.add(Item::Budget(budget.key));
        }
    }
}

/// The labels that a controller's pods begin with; none if nobody knows.
fn template_labels(controller: &Object) -> BTreeMap<String, String> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Controller {
        spec: Spec,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Spec {
        template: Template,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Template {
        metadata: ObjectMeta,
    }
    context::decode::<Controller>(controller).unwrap_or_default().spec.template.metadata.labels
}

/// Whether a selector asks for another value of a label that a template has. What a template does not have its pods may have
/// all the same: controllers and users give more.
fn contradicts(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    selector.match_labels.iter().any(|(key, value)| labels.get(key).is_some_and(|held| held != value))
}

/// Whether a pod has the condition at all; a glance at the bytes, since pods change often and few have it.
fn says_disrupted(pod: &Object) -> bool {
    std::str::from_utf8(pod.bytes()).is_ok_and(|text| text.contains("DisruptionTarget"))
}

#[async_trait]
impl Reconcile<Item> for Worker {
    async fn reconcile(&self, item: &Item) -> Result<Action, BoxError> {
        match item {
            Item::Budget(key) => self.sync(key).await,
            Item::Pod(key) => self.sync_stale(key).await,
        }
    }
}
