//! One pass over one autoscaler: reads the scale, asks for the figures, decides, sets the scale, says so in the status.
//! Source: `podautoscaler/horizontal.go`, `reconcileAutoscaler`.

use std::sync::Arc;
use std::time::Instant;

use api::selectors::LabelSelector;
use api::{Key, Object, PatchType, Status as Refused};
use base::BoxError;
use jiff::Timestamp;
use reconcile::{EventType, Involved, kinds};
use serde_json::{Value, json};

use super::Worker;
use super::behavior::{Bounds, History};
use super::measure::{Measured, UNKNOWN_TYPE, combine};
use super::replicas::{Counted, Tolerances};
use super::types::{Autoscaler, Pod, Reference, Status};
use crate::claim::ignore_missing;
use crate::context::decode;
use crate::figures::autoscalers::Outcome;
use crate::scale::{self, Scale};

/// The condition that tells a target which this controller put to sleep from one that somebody switched off.
const SCALED_TO_ZERO: &str = "ScaledToZero";

/// An autoscaler that is worked on, and the status that it comes to have.
pub(super) struct Pass<'a> {
    pub(super) worker: &'a Worker,
    pub(super) autoscaler: &'a Autoscaler,
    object: &'a Object,
    pub(super) involved: Involved,
    pub(super) status: Status,
    pub(super) now: Timestamp,
    /// What came of it, as it is counted.
    outcome: Outcome,
}

/// What is to be done about the number of pods before any figure is looked at.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum First {
    /// Nothing: it is switched off.
    Disabled,
    /// It is outside of its bounds.
    Bound(i32, &'static str),
    /// The figures decide.
    Measure,
}

/// Who finds no pods looks at the figures only if it took the last one itself (`asleep`): else somebody switched the target
/// off. Source: `reconcileAutoscaler`, `shouldComputeMetricsForZeroReplicas`.
pub(super) fn first(bounds: Bounds, asleep: bool, measures_without_pods: bool) -> First {
    let Bounds { current, least, most } = bounds;
    if current == 0 {
        let wakes = asleep && (least != 0 || measures_without_pods);
        if wakes { First::Measure } else { First::Disabled }
    } else if current > most {
        First::Bound(most, "Current number of replicas above Spec.MaxReplicas")
    } else if current < least {
        First::Bound(least, "Current number of replicas below Spec.MinReplicas")
    } else {
        First::Measure
    }
}

/// Who was at nothing, and may not be any more, comes back with as many pods as there have to be.
pub(super) fn awake(bounds: Bounds, desired: i32) -> i32 {
    if bounds.current == 0 { desired.max(bounds.least) } else { desired }
}

impl Worker {
    /// An autoscaler as it was written last. A pass on what was true before would take back what its status says of the
    /// last one. Source: KEP-5647.
    fn newest(&self, key: &Key) -> Option<Arc<Object>> {
        let shown = self.autoscalers.get(key)?;
        let mut written = self.written.lock();
        let is_newer =
            |held: &Arc<Object>| held.meta().uid == shown.meta().uid && held.revision() > shown.revision();
        if written.get(key).is_some_and(|held| !is_newer(held)) {
            written.remove(key);
        }
        Some(written.get(key).cloned().unwrap_or(shown))
    }

    /// One pass. What goes wrong is told in events and conditions; the next pass comes in any case.
    pub(super) async fn sync(&self, key: &Key) -> Result<bool, BoxError> {
        let Some(object) = self.newest(key) else {
            self.histories.lock().remove(key);
            self.selectors.lock().remove(key);
            self.written.lock().remove(key);
            return Ok(false);
        };
        let autoscaler: Autoscaler = decode(&object)?;
        let mut pass = Pass {
            worker: self,
            autoscaler: &autoscaler,
            object: &object,
            involved: Involved::object(&kinds::HORIZONTAL_POD_AUTOSCALERS, &object),
            status: autoscaler.status.clone(),
            now: self.ctx.clock.now(),
            outcome: Outcome::of(0, 0),
        };
        let begun = Instant::now();
        let mut history = self.histories.lock().get(key).cloned().unwrap_or_default();
        let scaled = pass.scale(key, &mut history).await;
        self.histories.lock().insert(key.clone(), history);
        if let Err(error) = &scaled {
            tracing::debug!(%key, error, "an autoscaler could not do all of its work");
        }
        let desired = pass.status.desired_replicas;
        let written = pass.write().await;
        if let Some(figures) = &self.ctx.figures {
            if scaled.is_ok() {
                figures.autoscalers.wants(key, Some(desired));
            }
            let failed = scaled.is_err() || written.is_err();
            let outcome =
                if failed { pass.outcome.failed(!autoscaler.names_a_version()) } else { pass.outcome };
            figures.autoscalers.looked(outcome, begun.elapsed());
        }
        written.map(|()| true)
    }
}

impl Pass<'_> {
    pub(super) fn warn(&self, reason: &str, message: impl Into<String>) {
        self.worker.events.event(self.involved.clone(), EventType::Warning, reason, message);
    }

    pub(super) fn set(&mut self, kind: &str, holds: bool, reason: &str, message: impl Into<String>) {
        let status = if holds { "True" } else { "False" };
        let generation = self.autoscaler.metadata.generation;
        self.status.set(kind, (status, reason, message.into()), generation, self.now);
    }

    async fn scale(&mut self, key: &Key, history: &mut History) -> Result<(), String> {
        let target = &self.autoscaler.spec.scale_target_ref;
        let (resource, object, scale) = match self.target(key).await {
            Ok(found) => found,
            Err(why) => {
                self.warn("FailedGetScale", why.clone());
                let message =
                    format!("the HPA controller was unable to get the target's current scale: {why}");
                self.set("AbleToScale", false, "FailedGetScale", message);
                return Err(why);
            }
        };
        let words = "the HPA controller was able to get the target's current scale";
        self.set("AbleToScale", true, "SucceededGetScale", words);
        let spec = &self.autoscaler.spec;
        let current = scale.spec.replicas;
        let bounds = Bounds { current, least: spec.least(), most: spec.max_replicas };
        history.begin(current, self.now);
        if current > 0 && self.status.holds(SCALED_TO_ZERO) {
            // Somebody else woke it: when that one takes the last pod again, it is switched off.
            self.note_sleep(false);
        }
        let asleep = self.status.holds(SCALED_TO_ZERO);
        let mut figures = Vec::new();
        let mut failed = Ok(());
        let (desired, reason) = match first(bounds, asleep, spec.measures_without_pods()) {
            First::Disabled => {
                let message = "scaling is disabled since the replica count of the target is zero";
                self.set("ScalingActive", false, "ScalingDisabled", message);
                (current, String::new())
            }
            First::Bound(desired, reason) => (desired, reason.to_owned()),
            First::Measure => {
                let measured = self.measure(key, &scale).await;
                let (asked, metric) = match measured.asked {
                    Ok(asked) => asked,
                    Err(why) => {
                        self.report(current, self.status.desired_replicas, measured.figures);
                        self.warn("FailedComputeMetricsReplicas", why.clone());
                        return Err(why);
                    }
                };
                failed = measured.partly;
                figures = measured.figures;
                let normalized = history.normalize(spec.behavior.as_ref(), bounds, asked, self.now);
                let (able, why) = normalized.able;
                self.set("AbleToScale", true, able, why);
                let (limited, limit, why) = normalized.limited;
                self.set("ScalingLimited", limited, limit, why);
                (awake(bounds, normalized.desired), reason_of(asked, current, &metric))
            }
        };
        let rescale = desired != current;
        if rescale {
            let sleeps = desired == 0 && bounds.least == 0 && spec.measures_without_pods();
            if sleeps {
                // It stands written before the last pod goes: if it were lost, nobody would ever make a pod again.
                self.note_sleep(true);
                self.write().await.map_err(|error| error.to_string())?;
            }
            if let Err(status) = scale::set(&self.worker.ctx, &resource, &object, desired).await {
                let message = format!("New size: {desired}; reason: {reason}; error: {status}");
                self.warn("FailedRescale", message);
                let message = format!("the HPA controller was unable to update the target scale: {status}");
                self.set("AbleToScale", false, "FailedUpdateScale", message);
                self.report(current, self.status.desired_replicas, figures);
                return Err(format!("failed to rescale {}/{}: {status}", target.kind, target.name));
            }
            let message = format!("the HPA controller was able to update the target scale to {desired}");
            self.set("AbleToScale", true, "SucceededRescale", message);
            let message = format!("New size: {desired}; reason: {reason}");
            self.worker.events.event(self.involved.clone(), EventType::Normal, "SuccessfulRescale", message);
            self.note_sleep(sleeps);
            self.outcome = Outcome::of(current, desired);
            history.scaled(spec.behavior.as_ref(), current, desired, self.now);
            self.status.last_scale_time = Some(self.now);
        }
        self.report(current, desired, figures);
        failed
    }

    /// Says whether the last pod was taken by this controller, which then makes the next one too. Source: KEP-2021.
    fn note_sleep(&mut self, asleep: bool) {
        if asleep {
            let message = "the HPA controller scaled the workload to zero";
            self.set(SCALED_TO_ZERO, true, "ScaledToZero", message);
        } else {
            let message = "the HPA controller did not scale the workload to zero";
            self.set(SCALED_TO_ZERO, false, "NotScaledToZero", message);
        }
    }

    fn report(&mut self, current: i32, desired: i32, figures: Vec<Value>) {
        self.status.observed_generation = self.autoscaler.metadata.generation;
        self.status.current_replicas = current;
        self.status.desired_replicas = desired;
        self.status.current_metrics = figures;
    }

    async fn target(&self, key: &Key) -> Result<(api::GroupVersionResource, Arc<Object>, Scale), String> {
        let Reference { kind, name, api_version } = &self.autoscaler.spec.scale_target_ref;
        if !self.autoscaler.names_a_version() {
            return Err(format!("unexpected GroupVersion string: {api_version}"));
        }
        let (ctx, group) = (&self.worker.ctx, scale::group_of(api_version));
        let resource = scale::resource_of(ctx, group, kind)
            .ok_or_else(|| format!("no matches for kind {kind:?} in group {group:?}"))?;
        let target = Key::new(key.namespace.as_str(), name.as_str());
        let (object, scale) =
            scale::get(ctx, &resource, &target).await.map_err(|status: Refused| status.to_string())?;
        Ok((resource, object, scale))
    }

    /// Asks every metric of the spec. Source: `computeReplicasForMetrics`.
    async fn measure(&mut self, key: &Key, scale: &Scale) -> Measured {
        let failed = |why: String| Measured { asked: Err(why), partly: Ok(()), figures: Vec::new() };
        let selector = match self.selector(key, &scale.status.selector) {
            Ok(selector) => selector,
            Err(why) => return failed(why),
        };
        let pods = self.worker.pods.labelled(&key.namespace, |labels| selector.matches(labels));
        let pods: Result<Vec<Pod>, _> = pods.iter().map(|pod| decode(pod)).collect();
        let pods = match pods {
            Ok(pods) => pods,
            Err(error) => return failed(error.to_string()),
        };
        let spec = &self.autoscaler.spec;
        let counted = Counted {
            pods: &pods,
            current: scale.spec.replicas,
            tolerances: Tolerances::of(spec.behavior.as_ref()),
            now: self.now,
        };
        let mut answers = Vec::with_capacity(spec.metrics.len());
        for metric in &spec.metrics {
            let begun = Instant::now();
            let answer = self.ask(key, metric, &counted, scale).await;
            let current = self.status.current_replicas;
            let outcome = match &answer {
                Ok(proposal) => Outcome::of(current, proposal.replicas),
                Err(failure) => {
                    self.warn(failure.reason, failure.said.clone());
                    Outcome::of(0, 0).failed(failure.reason == UNKNOWN_TYPE)
                }
            };
            if let Some(figures) = &self.worker.ctx.figures {
                figures.autoscalers.computed(&metric.r#type, outcome, begun.elapsed());
            }
            answers.push(answer);
        }
        let (measured, (holds, reason, message)) = combine(answers, scale.spec.replicas);
        self.set("ScalingActive", holds, reason, message);
        measured
    }

    /// The pods of the target, which must not be those of another autoscaler. Source: `validateAndParseSelector`.
    fn selector(&mut self, key: &Key, text: &str) -> Result<LabelSelector, String> {
        if text.is_empty() {
            self.warn("SelectorRequired", "selector is required");
            let message = "the HPA target's scale is missing a selector";
            self.set("ScalingActive", false, "InvalidSelector", message);
            return Err("selector is required".into());
        }
        let selector = match LabelSelector::parse(text) {
            Ok(selector) => selector,
            Err(error) => {
                let why = format!(
                    "couldn't convert selector into a corresponding internal selector object: {error}"
                );
                return self.invalid("InvalidSelector", why);
            }
        };
        let rivals = self.worker.rivals(key, &selector);
        if rivals.len() > 1 {
            let names: Vec<String> = rivals.iter().map(Key::to_string).collect();
            let names = names.join(" ");
            let why = format!("pods by selector {text} are controlled by multiple HPAs: [{names}]");
            return self.invalid("AmbiguousSelector", why);
        }
        Ok(selector)
    }

    fn invalid<T>(&mut self, reason: &str, why: String) -> Result<T, String> {
        self.warn(reason, why.clone());
        self.set("ScalingActive", false, reason, why.clone());
        Err(why)
    }

    /// Writes the status if it became another one. The next pass begins with it, also if the cache does not show it by then.
    async fn write(&self) -> Result<(), BoxError> {
        if self.status == self.autoscaler.status {
            return Ok(());
        }
        let status = &self.status;
        let mut patch = json!({
            "metadata": { "uid": self.object.meta().uid },
            "status": {
                "observedGeneration": Some(status.observed_generation).filter(|generation| *generation > 0),
                "currentReplicas": status.current_replicas,
                "desiredReplicas": status.desired_replicas,
                "currentMetrics": status.current_metrics,
                "conditions": status.conditions,
            },
        });
        // What it was once never becomes nothing: who does not know of it looks at an older version.
        if let Some(scaled) = status.last_scale_time {
            patch["status"]["lastScaleTime"] = reconcile::time::seconds(scaled).into();
        }
        let resource = self.worker.autoscalers.resource();
        let client = &self.worker.ctx.client;
        let written = client.patch(resource, &self.object.key(), "status", PatchType::Merge, &patch).await;
        match ignore_missing(written) {
            Err(status) => {
                self.warn("FailedUpdateStatus", status.to_string());
                Err(status.into())
            }
            Ok(None) => Ok(()),
            Ok(Some(object)) => {
                self.worker.written.lock().insert(object.key(), object);
                Ok(())
            }
        }
    }
}

/// Why the number changes, for people.
pub(super) fn reason_of(asked: i32, current: i32, metric: &str) -> String {
    match asked.cmp(&current) {
        std::cmp::Ordering::Greater => format!("{metric} above target"),
        std::cmp::Ordering::Less => "All metrics below target".into(),
        std::cmp::Ordering::Equal => String::new(),
    }
}
