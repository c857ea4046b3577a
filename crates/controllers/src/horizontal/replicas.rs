//! How many pods a figure asks for. Pure. Source: `podautoscaler/replica_calculator.go`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;

use super::types::{Behavior, Pod, Rules, milli};

/// For so long after its start a pod's CPU may be that of its start.
/// Source: `--horizontal-pod-autoscaler-cpu-initialization-period`.
const CPU_INITIALIZATION: Duration = Duration::from_secs(300);
/// What a pod says of its readiness in this time after its start is its first word.
/// Source: `--horizontal-pod-autoscaler-initial-readiness-delay`.
const INITIAL_READINESS: Duration = Duration::from_secs(30);
/// Which part of the target does not matter. Source: `--horizontal-pod-autoscaler-tolerance`.
const TOLERANCE: f64 = 0.1;

/// A figure of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Figure {
    /// When it was taken.
    pub(super) timestamp: Timestamp,
    /// Over which time.
    pub(super) window: Duration,
    /// In thousandths.
    pub(super) value: i64,
}

/// Figures by pod.
pub(super) type Figures = BTreeMap<String, Figure>;

/// How far figures may be off, by direction. Source: KEP-4951.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tolerances {
    up: f64,
    down: f64,
}

impl Tolerances {
    pub(super) fn of(behavior: Option<&Behavior>) -> Self {
        let own = |rules: Option<&Rules>| {
            let text = rules?.tolerance.as_deref()?;
            Some(text.parse::<api::quantity::Quantity>().ok()?.ratio(ONE))
        };
        let own = |pick: fn(&Behavior) -> Option<&Rules>| own(behavior.and_then(pick)).unwrap_or(TOLERANCE);
        Self { up: own(|held| held.scale_up.as_ref()), down: own(|held| held.scale_down.as_ref()) }
    }

    fn hold(self, ratio: f64) -> bool {
        1.0 - self.down <= ratio && ratio <= 1.0 + self.up
    }
}

const ONE: api::quantity::Quantity = api::quantity::Quantity::ONE;

/// What a figure asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asked {
    /// So many pods.
    pub(super) replicas: i32,
    /// The figure itself, in thousandths; per pod where it is an average.
    pub(super) value: i64,
    /// The figure in percent of what is requested, for resources.
    pub(super) utilization: Option<i32>,
}

/// What the figures are compared with.
#[derive(Debug, Clone, Copy)]
pub(super) enum Goal {
    /// Percent of what is requested.
    Utilization(i32),
    /// Thousandths for each pod.
    Average(i64),
}

/// The pods that an autoscaler counts.
pub(super) struct Counted<'a> {
    pub(super) pods: &'a [Pod],
    pub(super) current: i32,
    pub(super) tolerances: Tolerances,
    pub(super) now: Timestamp,
}

/// The pods by what their figures are worth.
#[derive(Debug, Default)]
struct Groups {
    ready: usize,
    unready: BTreeSet<String>,
    missing: BTreeSet<String>,
    ignored: BTreeSet<String>,
}

fn rounded_up(number: f64) -> i32 {
    number.ceil() as i32
}

impl Counted<'_> {
    /// How many pods the figures of the pods ask for. `resource` is empty for figures that are none of a resource.
    pub(super) fn by_pods(
        &self,
        mut figures: Figures,
        goal: Goal,
        resource: &str,
        container: &str,
    ) -> Result<Asked, String> {
        if self.pods.is_empty() {
            return Err("no pods returned by selector while calculating replica count".into());
        }
        let groups = self.group(&figures, resource);
        figures.retain(|pod, _| !groups.ignored.contains(pod) && !groups.unready.contains(pod));
        if figures.is_empty() {
            return Err("did not receive metrics for targeted pods (pods might be unready)".into());
        }
        let requests = match goal {
            Goal::Utilization(_) => requests(self.pods, resource, container)?,
            Goal::Average(_) => BTreeMap::new(),
        };
        let (ratio, asked) = compare(&figures, goal, &requests)?;
        let kept = |replicas| Ok(Asked { replicas, ..asked });
        let up_with_unready = !groups.unready.is_empty() && ratio > 1.0;
        if !up_with_unready && groups.missing.is_empty() {
            let wanted = rounded_up(ratio * groups.ready as f64);
            return kept(if self.tolerances.hold(ratio) { self.current } else { wanted });
        }
        // Whatever is not known is assumed to be so that the number changes less.
        for pod in &groups.missing {
            let value = match goal {
                Goal::Utilization(target) if ratio < 1.0 => {
                    let request = i128::from(requests.get(pod).copied().unwrap_or(0));
                    i64::try_from(request * i128::from(target.max(100)) / 100).unwrap_or(i64::MAX)
                }
                Goal::Average(target) if ratio < 1.0 => target,
                Goal::Utilization(_) if ratio == 1.0 => continue,
                _ => 0,
            };
            figures.insert(pod.clone(), Figure { value, ..Figure::default() });
        }
        if up_with_unready {
            figures.extend(groups.unready.iter().map(|pod| (pod.clone(), Figure::default())));
        }
        let (again, _) = compare(&figures, goal, &requests)?;
        let turns = (ratio < 1.0 && again > 1.0) || (ratio > 1.0 && again < 1.0);
        let wanted = rounded_up(again * figures.len() as f64);
        let wrong_way = (again < 1.0 && wanted > self.current) || (again > 1.0 && wanted < self.current);
        kept(if self.tolerances.hold(again) || turns || wrong_way { self.current } else { wanted })
    }

    /// How many pods one figure of the whole asks for, where each pod has its part of it.
    pub(super) fn by_whole(&self, value: i64, target: i64) -> Result<Asked, String> {
        let ratio = value as f64 / target as f64;
        let replicas = if self.current == 0 {
            // Nobody is there to be counted: one pod for each target.
            rounded_up(ratio)
        } else if self.tolerances.hold(ratio) {
            self.current
        } else {
            rounded_up(ratio * self.ready()? as f64)
        };
        Ok(Asked { replicas, value, utilization: None })
    }

    /// How many pods one figure of the whole asks for, of which each pod is to have so much.
    pub(super) fn by_share(&self, value: i64, target: i64, there: i32) -> Asked {
        let ratio = value as f64 / (target as f64 * f64::from(there));
        let replicas =
            if self.tolerances.hold(ratio) { there } else { rounded_up(value as f64 / target as f64) };
        let share = if there == 0 { 0 } else { (value as f64 / f64::from(there)).ceil() as i64 };
        Asked { replicas, value: share, utilization: None }
    }

    fn ready(&self) -> Result<usize, String> {
        if self.pods.is_empty() {
            let why = "no pods returned by selector while calculating replica count";
            return Err(format!("unable to calculate ready pods: {why}"));
        }
        let ready = |pod: &&Pod| {
            pod.status.phase == "Running" && pod.readiness().is_some_and(|held| held.status == "True")
        };
        Ok(self.pods.iter().filter(ready).count())
    }

    /// Source: `groupPods`.
    fn group(&self, figures: &Figures, resource: &str) -> Groups {
        let mut groups = Groups::default();
        for pod in self.pods {
            let name = || pod.metadata.name.clone();
            if pod.metadata.is_terminating() || pod.status.phase == "Failed" {
                groups.ignored.insert(name());
            } else if pod.status.phase == "Pending" {
                groups.unready.insert(name());
            } else if let Some(figure) = figures.get(&pod.metadata.name) {
                if resource == "cpu" && self.is_starting(pod, figure) {
                    groups.unready.insert(name());
                } else {
                    groups.ready += 1;
                }
            } else {
                groups.missing.insert(name());
            }
        }
        groups
    }

    /// Whether the CPU that a pod used is not what it uses in its work.
    fn is_starting(&self, pod: &Pod, figure: &Figure) -> bool {
        let (Some(ready), Some(start)) = (pod.readiness(), pod.status.start_time) else { return true };
        let since = ready.last_transition_time.unwrap_or(Timestamp::UNIX_EPOCH);
        let after =
            |moment: Timestamp, period: Duration| moment.saturating_add(period).unwrap_or(Timestamp::MAX);
        let unready = ready.status == "False";
        if after(start, CPU_INITIALIZATION) > self.now {
            unready || figure.timestamp < after(since, figure.window)
        } else {
            // It has been not ready from the first: it never worked.
            unready && after(start, INITIAL_READINESS) > since
        }
    }
}

/// The figures as a part of the goal. Source: `podautoscaler/metrics/utilization.go`.
fn compare(figures: &Figures, goal: Goal, requests: &BTreeMap<String, i64>) -> Result<(f64, Asked), String> {
    match goal {
        Goal::Average(target) => {
            let sum: i64 = figures.values().fold(0, |sum: i64, figure| sum.saturating_add(figure.value));
            let value = sum / i64::try_from(figures.len()).unwrap_or(i64::MAX).max(1);
            Ok((value as f64 / target as f64, Asked { replicas: 0, value, utilization: None }))
        }
        Goal::Utilization(target) => {
            let known = figures.iter().filter_map(|(pod, figure)| Some((figure.value, *requests.get(pod)?)));
            let (used, requested, count) =
                known.fold((0_i64, 0_i64, 0_i64), |(used, requested, count), one| {
                    (used.saturating_add(one.0), requested.saturating_add(one.1), count + 1)
                });
            if requested == 0 {
                return Err("no metrics returned matched known pods".into());
            }
            let percent = i128::from(used) * 100 / i128::from(requested);
            let percent = i32::try_from(percent).unwrap_or(i32::MAX);
            let asked = Asked { replicas: 0, value: used / count, utilization: Some(percent) };
            Ok((f64::from(percent) / f64::from(target), asked))
        }
    }
}

/// What the pods request, in thousandths. Source: `calculatePodRequests`.
fn requests(pods: &[Pod], resource: &str, container: &str) -> Result<BTreeMap<String, i64>, String> {
    let mut requests = BTreeMap::new();
    for pod in pods {
        let name = &pod.metadata.name;
        let whole = &pod.spec.resources.requests;
        let sum = if container.is_empty() && (whole.contains_key("cpu") || whole.contains_key("memory")) {
            let text = whole.get(resource);
            milli(text.ok_or_else(|| format!("missing pod-level request for {resource} in Pod {name}"))?)
        } else {
            let sidecars = pod.spec.init_containers.iter().filter(|held| held.restart_policy == "Always");
            let mut sum: i64 = 0;
            for held in pod.spec.containers.iter().chain(sidecars) {
                if !container.is_empty() && container != held.name {
                    continue;
                }
                let missing =
                    || format!("missing request for {resource} in container {} of Pod {name}", held.name);
                sum = sum.saturating_add(milli(held.resources.requests.get(resource).ok_or_else(missing)?));
            }
            sum
        };
        requests.insert(name.clone(), sum);
    }
    Ok(requests)
}
