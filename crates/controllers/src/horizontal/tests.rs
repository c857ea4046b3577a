//! The arithmetic over tables, and a model of a load that pods share: the number of pods stays within its bounds and its
//! rates, and comes to rest where the load wants it.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::apply::{First, awake, first, reason_of};
use super::behavior::{Bounds, History, Normalized};
use super::measure::{Failure, Proposal, combine};
use super::replicas::{Asked, Counted, Figure, Figures, Goal, Tolerances};
use super::types::{Behavior, Pod, Status};

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().unwrap()
}

fn ago(seconds: i64) -> Timestamp {
    now() - SignedDuration::from_secs(seconds)
}

/// A pod that requests a whole CPU; it started, and became what it is, so many seconds ago.
fn pod(name: &str, phase: &str, ready: &str, started: i64, since: i64) -> Pod {
    serde_json::from_value(json!({
        "metadata": { "name": name },
        "spec": { "containers": [{ "name": "c", "resources": { "requests": { "cpu": "1" } } }] },
        "status": { "phase": phase, "startTime": ago(started).to_string(), "conditions": [
            { "type": "Ready", "status": ready, "lastTransitionTime": ago(since).to_string() }] },
    }))
    .unwrap()
}

fn old(name: &str) -> Pod {
    pod(name, "Running", "True", 3000, 2900)
}

fn figures(values: &[(&str, i64)]) -> Figures {
    let figure = |value| Figure { timestamp: ago(10), window: Duration::from_secs(60), value };
    values.iter().map(|(pod, value)| ((*pod).to_owned(), figure(*value))).collect()
}

fn counted(pods: &[Pod], current: i32) -> Counted<'_> {
    Counted { pods, current, tolerances: Tolerances::of(None), now: now() }
}

fn replicas(pods: &[Pod], current: i32, values: &[(&str, i64)], percent: i32) -> Result<i32, String> {
    let asked = counted(pods, current).by_pods(figures(values), Goal::Utilization(percent), "cpu", "");
    asked.map(|asked| asked.replicas)
}

#[test]
fn figures_of_pods_ask_for_pods() {
    let three = [old("a"), old("b"), old("c")];
    let all = |value| [("a", value), ("b", value), ("c", value)];
    assert_eq!(replicas(&three, 3, &all(600), 30), Ok(6));
    assert_eq!(replicas(&three, 3, &all(100), 50), Ok(1));
    // A tenth more or less does not matter.
    assert_eq!(replicas(&three, 3, &all(330), 30), Ok(3));
    assert_eq!(replicas(&three, 3, &all(270), 30), Ok(3));
    assert_eq!(replicas(&three, 3, &all(340), 30), Ok(4));
    // A missing figure counts as nothing on the way up, and as all that is requested on the way down.
    assert_eq!(replicas(&three, 3, &[("a", 1000), ("b", 1000)], 50), Ok(4));
    assert_eq!(replicas(&three, 3, &[("a", 100), ("b", 100)], 50), Ok(3));
    assert_eq!(replicas(&three, 3, &[("a", 1), ("b", 1)], 100), Ok(1));
    assert_eq!(replicas(&three, 3, &[], 50).unwrap_err(), NO_FIGURES);
    assert_eq!(replicas(&[], 3, &all(1), 50).unwrap_err(), NO_PODS);
    let strangers = [("x", 5)];
    assert_eq!(replicas(&three, 3, &strangers, 50).unwrap_err(), "no metrics returned matched known pods");
}

const NO_FIGURES: &str = "did not receive metrics for targeted pods (pods might be unready)";
const NO_PODS: &str = "no pods returned by selector while calculating replica count";

#[test]
fn pods_that_start_do_not_count_on_the_way_up() {
    let rows = [
        // Whatever starts uses much: two of the three pods would be 6 with it.
        (pod("c", "Pending", "False", 10, 10), 4),
        (pod("c", "Running", "False", 100, 90), 4),
        // Its window began before it was ready.
        (pod("c", "Running", "True", 100, 20), 4),
        (pod("c", "Running", "True", 200, 150), 6),
        // It has never been ready, or it was and is not any more.
        (pod("c", "Running", "False", 3000, 2990), 4),
        (pod("c", "Running", "False", 3000, 1000), 6),
    ];
    for (starting, wanted) in rows {
        let pods = [old("a"), old("b"), starting];
        let values = [("a", 1000), ("b", 1000), ("c", 1000)];
        let status = &pods[2].status;
        assert_eq!(replicas(&pods, 3, &values, 50), Ok(wanted), "{status:?}");
    }
    // Failed pods and those that go count for nothing.
    let mut gone = old("c");
    gone.metadata.deletion_timestamp = Some(now());
    for gone in [gone, pod("c", "Failed", "False", 1, 1)] {
        let pods = [old("a"), old("b"), gone];
        assert_eq!(replicas(&pods, 2, &[("a", 1000), ("b", 1000), ("c", 0)], 50), Ok(4));
    }
}

#[test]
fn requests_are_those_of_the_pod_or_its_containers() {
    let pod = |spec: Value| -> Pod {
        let status = pod("a", "Running", "True", 3000, 2900).status;
        let mut pod: Pod =
            serde_json::from_value(json!({ "metadata": { "name": "a" }, "spec": spec })).unwrap();
        pod.status = status;
        pod
    };
    let container =
        |name: &str, cpu: &str| json!({ "name": name, "resources": { "requests": { "cpu": cpu } } });
    let mut sidecar = container("s", "100m");
    sidecar["restartPolicy"] = "Always".into();
    let init = container("i", "8");
    let both = json!({ "containers": [container("c", "300m")], "initContainers": [sidecar, init] });
    let whole = json!({ "containers": [{ "name": "c" }], "resources": { "requests": { "cpu": "800m" } } });
    let none = json!({ "containers": [{ "name": "c" }] });
    let asked = |spec: &Value, container: &str| {
        let pods = [pod(spec.clone())];
        let asked =
            counted(&pods, 1).by_pods(figures(&[("a", 200)]), Goal::Utilization(50), "cpu", container);
        asked.map(|asked| asked.utilization.unwrap())
    };
    assert_eq!(asked(&both, ""), Ok(50));
    assert_eq!(asked(&both, "c"), Ok(66));
    assert_eq!(asked(&whole, ""), Ok(25));
    assert_eq!(asked(&none, "").unwrap_err(), "missing request for cpu in container c of Pod a");
}

#[test]
fn averages_wholes_and_shares() {
    let three = [old("a"), old("b"), old("c")];
    let average = |values: &[(&str, i64)], target| {
        counted(&three, 3).by_pods(figures(values), Goal::Average(target), "", "").map(|asked| asked.replicas)
    };
    assert_eq!(average(&[("a", 20_000), ("b", 10_000), ("c", 30_000)], 15_000), Ok(4));
    assert_eq!(average(&[("a", 20_000), ("b", 20_000)], 10_000), Ok(4));
    // Missing ones have what is wanted on the way down.
    assert_eq!(average(&[("a", 1000), ("b", 1000)], 10_000), Ok(2));
    let whole =
        |value, target, current| counted(&three, current).by_whole(value, target).map(|asked| asked.replicas);
    assert_eq!(whole(20_000, 10_000, 3), Ok(6));
    assert_eq!(whole(10_500, 10_000, 3), Ok(3));
    // From nothing: one pod for each target.
    assert_eq!(whole(25_000, 10_000, 0), Ok(3));
    assert_eq!(whole(0, 10_000, 0), Ok(0));
    let share = |value, target, there| counted(&three, there).by_share(value, target, there);
    assert_eq!(share(8600, 2150, 3), Asked { replicas: 4, value: 2867, utilization: None });
    assert_eq!(share(8600, 2867, 3).replicas, 3);
    assert_eq!(share(0, 2867, 0), Asked { replicas: 0, value: 0, utilization: None });
}

#[test]
fn memory_is_told_in_units_of_1024() {
    let told = |resource: &str, value| {
        super::measure::resource_value(resource, Asked { replicas: 1, value, utilization: Some(50) })
    };
    let mebibytes = 50 * 1024 * 1024 * 1000;
    assert_eq!(told("memory", mebibytes), json!({ "averageUtilization": 50, "averageValue": "50Mi" }));
    // What is no whole number of bytes loses nothing.
    assert_eq!(told("memory", mebibytes + 1)["averageValue"], "52428800001m");
    assert_eq!(told("cpu", 250)["averageValue"], "250m");
    assert_eq!(told("hugepages-2Mi", mebibytes)["averageValue"], "52428800");
}

#[test]
fn tolerances_go_by_direction() {
    let behavior: Behavior = serde_json::from_value(
        json!({ "scaleUp": { "tolerance": "0" }, "scaleDown": { "tolerance": "500m" } }),
    )
    .unwrap();
    let three = [old("a"), old("b"), old("c")];
    let asked = |value| {
        let counted = Counted { tolerances: Tolerances::of(Some(&behavior)), ..counted(&three, 3) };
        let values = figures(&[("a", value), ("b", value), ("c", value)]);
        counted.by_pods(values, Goal::Utilization(50), "cpu", "").unwrap().replicas
    };
    assert_eq!((asked(510), asked(250), asked(240)), (4, 3, 2));
}

fn proposal(replicas: i32) -> Result<Proposal, Failure> {
    Ok(Proposal { replicas, name: format!("m{replicas}"), figure: json!({ "type": "Pods" }) })
}

fn failure() -> Result<Proposal, Failure> {
    Err(Failure { reason: "FailedGetPodsMetric", said: "no".into(), told: "told no".into() })
}

#[test]
fn the_greatest_number_counts_and_nothing_shrinks_in_doubt() {
    let (measured, active) = combine(vec![proposal(3), proposal(5), proposal(4)], 4);
    assert_eq!(measured.asked, Ok((5, "m5".into())));
    assert!(active.0 && active.2.ends_with("a replica count from m5"), "{active:?}");
    let why = "invalid metrics (1 invalid out of 2), first error is: told no";
    let (measured, active) = combine(vec![failure(), proposal(5)], 4);
    assert_eq!((measured.asked, measured.partly), (Ok((5, "m5".into())), Err(why.to_owned())));
    assert_eq!(measured.figures[0], json!({ "type": "" }));
    assert!(active.0);
    let (measured, active) = combine(vec![proposal(3), failure()], 4);
    assert_eq!(measured.asked, Err(why.to_owned()));
    let said = "the HPA was unable to compute the replica count: no".to_owned();
    assert_eq!(active, (false, "FailedGetPodsMetric", said));
}

#[test]
fn bounds_go_before_figures() {
    let look = |current, least, most| first(Bounds { current, least, most }, false, true);
    assert_eq!(look(0, 1, 5), First::Disabled);
    assert_eq!(look(0, 0, 5), First::Disabled);
    assert_eq!(look(6, 1, 5), First::Bound(5, "Current number of replicas above Spec.MaxReplicas"));
    assert_eq!(look(1, 2, 5), First::Bound(2, "Current number of replicas below Spec.MinReplicas"));
    assert_eq!(reason_of(3, 2, "cpu resource"), "cpu resource above target");
    assert_eq!(reason_of(1, 2, "cpu resource"), "All metrics below target");
}

#[test]
fn only_who_took_the_last_pod_makes_another() {
    let asleep = |least, measures| first(Bounds { current: 0, least, most: 5 }, true, measures);
    assert_eq!((asleep(0, true), asleep(0, false)), (First::Measure, First::Disabled));
    // Nothing is not enough any more: it comes back whatever its figures are, and with as many as there have to be.
    assert_eq!((asleep(2, true), asleep(2, false)), (First::Measure, First::Measure));
    assert_eq!(awake(Bounds { current: 0, least: 2, most: 5 }, 1), 2);
    assert_eq!(awake(Bounds { current: 4, least: 2, most: 5 }, 3), 3);
}

#[test]
fn conditions_keep_the_moment_of_their_status() {
    let mut status = Status::default();
    status.set("AbleToScale", ("True", "A", "a".into()), 1, now());
    status.set("AbleToScale", ("True", "B", "b".into()), 2, now() + Duration::from_secs(5));
    assert_eq!(status.conditions[0].observed_generation, 2);
    assert_eq!((status.conditions.len(), status.conditions[0].reason.as_str()), (1, "B"));
    assert_eq!(status.conditions[0].last_transition_time, Some(now()));
    status.set("AbleToScale", ("False", "C", "c".into()), 2, now() + Duration::from_secs(9));
    assert_eq!(status.conditions[0].last_transition_time, Some(now() + Duration::from_secs(9)));
}

const WIDE: Bounds = Bounds { current: 10, least: 1, most: 100 };

fn normalized(
    history: &mut History,
    behavior: Option<&Behavior>,
    bounds: Bounds,
    asked: i32,
    at: i64,
) -> Normalized {
    history.normalize(behavior, bounds, asked, now() + SignedDuration::from_secs(at))
}

#[test]
fn without_a_behavior_the_number_doubles_at_most_and_falls_late() {
    let mut history = History::default();
    history.begin(10, now());
    let up = normalized(&mut history, None, WIDE, 50, 0);
    assert_eq!((up.desired, up.limited.0, up.limited.1), (20, true, "ScaleUpLimit"));
    let small = Bounds { current: 1, ..WIDE };
    assert_eq!(normalized(&mut History::default(), None, small, 9, 0).desired, 4);
    let top = normalized(&mut History::default(), None, Bounds { most: 15, ..WIDE }, 50, 0);
    assert_eq!((top.desired, top.limited.1), (15, "TooManyReplicas"));
    let mut history = History::default();
    history.begin(10, now());
    let down = normalized(&mut history, None, WIDE, 2, 10);
    assert_eq!(
        (down.desired, down.able.0, down.limited.1),
        (10, "ScaleDownStabilized", "DesiredWithinRange")
    );
    assert_eq!(normalized(&mut history, None, WIDE, 3, 299).desired, 10);
    let late = normalized(&mut history, None, WIDE, 1, 301);
    assert_eq!((late.desired, late.able.0), (3, "ScaleDownStabilized"));
    let last = normalized(&mut history, None, Bounds { current: 3, least: 2, most: 100 }, 1, 700);
    assert_eq!((last.desired, last.limited), (2, (true, "TooFewReplicas", last.limited.2)));
}

#[test]
fn a_clock_that_goes_back_holds_nothing_for_longer() {
    let mut history = History::default();
    history.begin(50, now());
    let many = Bounds { current: 50, ..WIDE };
    let wanted = [(-7200, 50), (-7200 + 299, 50), (-7200 + 301, 2)];
    for (at, desired) in wanted {
        assert_eq!(normalized(&mut history, None, many, 2, at).desired, desired, "{at}");
    }
}

#[test]
fn policies_bound_the_rate_in_both_directions() {
    let behavior: Behavior = serde_json::from_value(json!({
        "scaleUp": { "stabilizationWindowSeconds": 0, "selectPolicy": "Min", "policies": [
            { "type": "Pods", "value": 4, "periodSeconds": 60 },
            { "type": "Percent", "value": 50, "periodSeconds": 60 }] },
        "scaleDown": { "stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [
            { "type": "Pods", "value": 1, "periodSeconds": 60 },
            { "type": "Percent", "value": 10, "periodSeconds": 60 }] },
    }))
    .unwrap();
    let mut history = History::default();
    let up = normalized(&mut history, Some(&behavior), WIDE, 50, 0);
    assert_eq!((up.desired, up.limited.1), (14, "ScaleUpLimit"));
    history.scaled(Some(&behavior), 10, 14, now());
    let grown = Bounds { current: 14, ..WIDE };
    // The period is used up; when it is over, half of 14 would be 7 more, and 4 are fewer.
    assert_eq!(normalized(&mut history, Some(&behavior), grown, 50, 30).desired, 14);
    assert_eq!(normalized(&mut history, Some(&behavior), grown, 50, 61).desired, 18);
    let many = Bounds { current: 50, ..WIDE };
    let down = normalized(&mut History::default(), Some(&behavior), many, 1, 0);
    assert_eq!((down.desired, down.limited.1), (45, "ScaleDownLimit"));
    let off: Behavior =
        serde_json::from_value(json!({ "scaleDown": { "selectPolicy": "Disabled" } })).unwrap();
    assert_eq!(normalized(&mut History::default(), Some(&off), many, 1, 0).desired, 50);
}

#[test]
fn windows_hold_the_number_between_the_recommendations() {
    let behavior: Behavior = serde_json::from_value(json!({
        "scaleUp": { "stabilizationWindowSeconds": 60, "policies": [
            { "type": "Percent", "value": 900, "periodSeconds": 15 }] },
        "scaleDown": { "stabilizationWindowSeconds": 120, "policies": [
            { "type": "Percent", "value": 100, "periodSeconds": 15 }] },
    }))
    .unwrap();
    let mut history = History::default();
    history.begin(10, now());
    let held = normalized(&mut history, Some(&behavior), WIDE, 30, 15);
    assert_eq!((held.desired, held.able.0), (10, "ScaleUpStabilized"));
    assert_eq!(normalized(&mut history, Some(&behavior), WIDE, 40, 61).desired, 30);
    let grown = Bounds { current: 30, ..WIDE };
    let held = normalized(&mut history, Some(&behavior), grown, 5, 76);
    assert_eq!((held.desired, held.able.0), (30, "ScaleDownStabilized"));
    assert_eq!(normalized(&mut history, Some(&behavior), grown, 5, 182).desired, 5);
}

/// A small deterministic source of chance (xorshift64*), so that a failure names its seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: i32) -> i32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        i32::try_from((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % u64::try_from(bound).unwrap())
            .unwrap()
    }
}

#[test]
fn the_number_follows_the_load_within_its_rates_whatever_happens() {
    let behavior: Behavior = serde_json::from_value(json!({
        "scaleUp": { "stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [
            { "type": "Pods", "value": 3, "periodSeconds": 60 }] },
        "scaleDown": { "stabilizationWindowSeconds": 120, "selectPolicy": "Max", "policies": [
            { "type": "Pods", "value": 2, "periodSeconds": 60 }] },
    }))
    .unwrap();
    let names: Vec<String> = (0..20).map(|number| format!("p{number}")).collect();
    let all: Vec<Pod> = names.iter().map(|name| old(name)).collect();
    for seed in 1..=100 {
        let (mut chance, mut history) = (Chance(seed), History::default());
        let (mut current, mut load, mut at) = (4, 2000, now());
        let mut sizes = vec![(at, current)];
        // At first the load changes and the process restarts, then it is left alone.
        for pass in 0..400 {
            if pass < 200 && chance.below(6) == 0 {
                load = i64::from(chance.below(12_000));
            }
            let restarted = pass < 200 && chance.below(40) == 0;
            if restarted {
                // What it did is forgotten, as upstream forgets it: the rates begin anew.
                history = History::default();
                sizes.clear();
            }
            history.begin(current, at);
            let there = usize::try_from(current).unwrap();
            let each = load / i64::from(current);
            let values: Vec<(&str, i64)> = names[..there].iter().map(|name| (name.as_str(), each)).collect();
            let asked = replicas(&all[..there], current, &values, 50).unwrap();
            let bounds = Bounds { current, least: 2, most: 20 };
            let next = history.normalize(Some(&behavior), bounds, asked, at).desired;
            assert!((2..=20).contains(&next), "seed {seed}, pass {pass}: {next}");
            if next != current {
                history.scaled(Some(&behavior), current, next, at);
            }
            current = next;
            sizes.push((at, current));
            let minute = |moment: &Timestamp| at.duration_since(*moment).as_secs() < 60;
            let recent: Vec<i32> =
                sizes.iter().filter(|(moment, _)| minute(moment)).map(|(_, size)| *size).collect();
            let (low, high) = (recent.iter().min().unwrap(), recent.iter().max().unwrap());
            // Two down and then five up again: the rates count from where the minute began.
            assert!(high - low <= 5, "seed {seed}, pass {pass}: {recent:?}");
            at += SignedDuration::from_secs(15);
        }
        let wanted = i32::try_from((load + 499) / 500).unwrap().clamp(2, 20);
        let off = f64::from(current) / f64::from(wanted);
        assert!(
            (0.88..=1.13).contains(&off) || (current - wanted).abs() <= 1,
            "seed {seed}: {current} for {load}"
        );
    }
}
