//! The plan over tables, and against a model of evictions: whatever happens in whatever order, no more pods are evicted
//! than the budget allows, and what was allowed is counted until it happened or expired.

use std::collections::BTreeMap;
use std::time::Duration;

use api::Object;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::plan::{Outcome, failed, plan, stale_in};
use super::types::Budget;
use super::{contradicts, template_labels};
use crate::pods::Pod;
use crate::selector::LabelSelector;

fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn budget(spec: Value, status: Value) -> Budget {
    serde_json::from_value(json!({ "metadata": { "generation": 3 }, "spec": spec, "status": status }))
        .unwrap()
}

fn pod(name: &str, ready: bool, terminating: bool) -> Pod {
    let ends = terminating.then_some("2026-01-01T00:00:00Z");
    let ready = if ready { "True" } else { "False" };
    serde_json::from_value(json!({
        "metadata": { "name": name, "deletionTimestamp": ends },
        "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": ready }] },
    }))
    .unwrap()
}

#[test]
fn numbers_and_percentages() {
    let pods: Vec<Pod> = (0..5).map(|at| pod(&at.to_string(), at != 0, false)).collect();
    // Budget, scale of the controllers; expected, desired, allowed. Four of five pods are healthy.
    let rows = [
        (json!({ "minAvailable": 3 }), 0, (5, 3, 1)),
        (json!({ "minAvailable": 9 }), 0, (5, 9, 0)),
        (json!({ "minAvailable": "50%" }), 5, (5, 3, 1)),
        (json!({ "minAvailable": "30%" }), 10, (10, 3, 1)),
        (json!({ "minAvailable": "0%" }), 10, (10, 0, 4)),
        (json!({ "maxUnavailable": 1 }), 5, (5, 4, 0)),
        (json!({ "maxUnavailable": 2 }), 5, (5, 3, 1)),
        // A part of a pod is rounded up: a third of five is two.
        (json!({ "maxUnavailable": "33%" }), 5, (5, 3, 1)),
        (json!({ "maxUnavailable": 9 }), 5, (5, 0, 4)),
        // Nothing is expected: nothing may go.
        (json!({ "maxUnavailable": "100%" }), 0, (0, 0, 0)),
        (json!({}), 5, (0, 0, 0)),
    ];
    for (spec, scale, (expected, desired, allowed)) in rows {
        let Outcome { status, .. } = plan(&budget(spec.clone(), json!({})), &pods, scale, now());
        assert_eq!(status.current_healthy, 4);
        let counted = (status.expected_pods, status.desired_healthy, status.disruptions_allowed);
        assert_eq!(counted, (expected, desired, allowed), "{spec}");
        let condition = &status.conditions[0];
        let (verdict, reason) =
            if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
        assert_eq!((condition.status.as_str(), condition.reason.as_str()), (verdict, reason), "{spec}");
        assert_eq!((status.observed_generation, condition.observed_generation), (3, 3));
    }
}

#[test]
fn budgets_hear_of_controllers_whose_pods_they_may_select() {
    let set = json!({ "metadata": { "name": "db" }, "spec": { "replicas": 3, "template": {
        "metadata": { "creationTimestamp": null, "labels": { "app": "db" } }, "spec": {} } } });
    let labels = template_labels(&Object::parse(set.to_string().into()).unwrap());
    let may = |selector: Value| {
        let selector: LabelSelector = serde_json::from_value(selector).unwrap();
        !contradicts(&selector, &labels)
    };
    assert!(may(json!({ "matchLabels": { "app": "db" } })) && may(json!({})));
    assert!(!may(json!({ "matchLabels": { "app": "web" } })));
    // Its pods have more labels than its template.
    assert!(may(json!({ "matchLabels": { "app": "db", "apps.kubernetes.io/pod-index": "0" } })));
    assert!(may(json!({ "matchExpressions": [{ "key": "app", "operator": "Exists" }] })));
}

#[test]
fn allowed_evictions_count_until_they_expire() {
    let since = |seconds: i64| (now() - jiff::SignedDuration::from_secs(seconds)).to_string();
    let noted = json!({ "a": since(30), "b": since(121), "c": since(10), "gone": since(5) });
    let held = budget(json!({ "minAvailable": 1 }), json!({ "disruptedPods": noted }));
    let pods = [pod("a", true, false), pod("b", true, false), pod("c", true, true), pod("d", true, false)];
    let outcome = plan(&held, &pods, 0, now());
    let kept: Vec<_> = outcome.status.disrupted_pods.keys().map(String::as_str).collect();
    assert_eq!(kept, ["a"]);
    assert_eq!(outcome.not_deleted, ["b"]);
    assert_eq!(outcome.recheck, Some(Duration::from_secs(90)));
    // `b` counts again, `c` is on its way out.
    assert_eq!((outcome.status.current_healthy, outcome.status.disruptions_allowed), (2, 1));
}

#[test]
fn what_cannot_be_counted_may_not_be_evicted() {
    let held = budget(json!({}), json!({ "disruptionsAllowed": 2, "observedGeneration": 2 }));
    let status = failed(&held, "no".into(), now());
    let condition = &status.conditions[0];
    assert_eq!((status.disruptions_allowed, status.observed_generation), (0, 2));
    assert_eq!((condition.reason.as_str(), condition.message.as_str()), ("SyncFailed", "no"));
    // And it is said once: the second time changes nothing, whenever that is.
    let again = Budget { status: status.clone(), ..held };
    assert_eq!(failed(&again, "no".into(), now() + Duration::from_secs(9)), status);
    let text = serde_json::to_value(&status).unwrap();
    assert!(text.get("disruptedPods").is_none());
}

#[test]
fn pods_take_back_that_they_are_disrupted() {
    let pod = |phase: &str, status: &str, reason: &str, age: i64| -> Pod {
        let since = (now() - jiff::SignedDuration::from_secs(age)).to_string();
        let condition = json!({ "type": "DisruptionTarget", "status": status, "reason": reason, "lastTransitionTime": since });
        serde_json::from_value(json!({ "status": { "phase": phase, "conditions": [condition] } })).unwrap()
    };
    let seconds = |left: u64| Some(Duration::from_secs(left));
    assert_eq!(stale_in(&pod("Running", "True", "EvictionByEvictionAPI", 20), now()), seconds(100));
    assert_eq!(stale_in(&pod("Running", "True", "PreemptionByScheduler", 500), now()), seconds(0));
    assert_eq!(stale_in(&pod("Running", "False", "", 500), now()), None);
    assert_eq!(stale_in(&pod("Running", "True", "TerminationByKubelet", 500), now()), None);
    assert_eq!(stale_in(&pod("Failed", "True", "EvictionByEvictionAPI", 500), now()), None);
}

/// A small deterministic source of chance (xorshift64*), so that a failure names its seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound as u64).unwrap()
    }
}

/// A set's pods (ready or not, being deleted or not), its budget, and evictions that are carried out late.
struct Model {
    budget: Budget,
    pods: BTreeMap<String, (bool, bool)>,
    /// Evictions that were allowed, of pods that are not marked yet.
    granted: Vec<String>,
    made: usize,
    now: Timestamp,
    /// What the controller's cache shows of the pods: it lags.
    seen: BTreeMap<String, (bool, bool)>,
    evicted: usize,
}

const REPLICAS: usize = 6;
const LEAST: usize = 4;

impl Model {
    fn new() -> Self {
        Self {
            budget: budget(json!({ "minAvailable": LEAST }), json!({})),
            pods: BTreeMap::new(),
            granted: Vec::new(),
            made: 0,
            now: now(),
            seen: BTreeMap::new(),
            evicted: 0,
        }
    }

    fn some_pod(&self, chance: &mut Chance, holds: impl Fn(&(bool, bool)) -> bool) -> Option<String> {
        let names: Vec<&String> =
            self.pods.iter().filter(|(_, pod)| holds(pod)).map(|(name, _)| name).collect();
        (!names.is_empty()).then(|| names[chance.below(names.len())].clone())
    }

    /// The eviction API is asked about a ready pod.
    fn evict(&mut self, chance: &mut Chance) {
        let Some(name) = self.some_pod(chance, |(ready, ends)| *ready && !ends) else { return };
        let status = &mut self.budget.status;
        if status.disruptions_allowed > 0 && !self.granted.contains(&name) {
            status.disruptions_allowed -= 1;
            status.disrupted_pods.insert(name.clone(), self.now);
            self.granted.push(name);
            self.evicted += 1;
        }
    }

    /// The controller looks at what its cache shows. It keeps nothing, so that every look is also one after a restart.
    fn count(&mut self) {
        let pods: Vec<Pod> = self.seen.iter().map(|(name, (ready, ends))| pod(name, *ready, *ends)).collect();
        self.budget.status = plan(&self.budget, &pods, 0, self.now).status;
    }

    fn step(&mut self, chance: &mut Chance) {
        match chance.below(8) {
            0 if self.pods.values().filter(|(_, ends)| !ends).count() < REPLICAS => {
                self.made += 1;
                self.pods.insert(format!("p{}", self.made), (false, false));
            }
            1 => {
                // A pod takes longer to become ready than the cache takes to show it: an entry of one that the cache
                // does not show is dropped as that of one that is gone.
                let name = self.some_pod(chance, |(ready, ends)| !ready && !ends);
                if let Some(name) = name.filter(|name| self.seen.contains_key(name)) {
                    self.pods.insert(name, (true, false));
                }
            }
            2 | 3 => self.evict(chance),
            4 if !self.granted.is_empty() => {
                let name = self.granted.swap_remove(chance.below(self.granted.len()));
                self.pods.insert(name, (true, true));
            }
            5 => {
                if let Some(name) = self.some_pod(chance, |(_, ends)| *ends) {
                    self.pods.remove(&name);
                }
            }
            6 => self.seen = self.pods.clone(),
            _ => {
                self.now += Duration::from_millis(500);
                self.count();
            }
        }
    }

    /// Pods that serve, and will as long as nobody else is evicted.
    fn left(&self) -> usize {
        let serves =
            |(name, pod): &(&String, &(bool, bool))| **pod == (true, false) && !self.granted.contains(name);
        self.pods.iter().filter(serves).count()
    }
}

#[test]
fn evictions_stay_within_the_budget_whatever_happens() {
    let mut evicted = 0;
    for seed in 1..=200 {
        let (mut model, mut chance) = (Model::new(), Chance(seed));
        for step in 0..400 {
            let before = model.evicted;
            model.step(&mut chance);
            let granted = model.evicted > before;
            assert!(!granted || model.left() >= LEAST, "seed {seed}, step {step}: {} left", model.left());
        }
        evicted += model.evicted;
    }
    assert!(evicted > 1000, "only {evicted} evictions were allowed at all");
}
