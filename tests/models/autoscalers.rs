//! Horizontal autoscalers: a figure goes up and down, and the number of pods follows it within its bounds, no faster than
//! its rules allow, and not down while the figure was high a moment ago. Who came to nothing wakes when the figure does.

use std::sync::Arc;
use std::time::Duration;

use api::{Key, Object};
use base::clock::Clock;
use controllers::horizontal::Autoscalers;
use jiff::{SignedDuration, Timestamp};
use reconcile::kinds::{HORIZONTAL_POD_AUTOSCALERS, REPLICA_SETS};
use serde_json::{Value, json};

use crate::witness::{Seen, Witness, condition, value};
use crate::world::{NAMESPACE, World, seeds};

const STEPS: usize = 60;
const NAME: &str = "web";
/// What one pod is there for.
const EACH: i64 = 10;
/// How exactly the story knows when something happened.
const TICK: SignedDuration = SignedDuration::from_secs(5);
/// After so long every cache shows what is.
const LONG_S: u64 = 240;
/// An autoscaler looks at its figures so often.
const PERIOD: SignedDuration = SignedDuration::from_secs(15);

async fn world(seed: u64) -> (World, Witness) {
    let world = World::new(seed, |ctx| vec![Arc::new(Autoscalers::new(ctx))]).await;
    let witness = Witness::of(&world, &[HORIZONTAL_POD_AUTOSCALERS, REPLICA_SETS]).await;
    (world, witness)
}

/// A set that nobody works on: the story says what its status is.
fn set() -> Value {
    json!({
        "metadata": { "name": NAME },
        "spec": {
            "replicas": 3,
            "selector": { "matchLabels": { "app": "web" } },
            "template": {
                "metadata": { "labels": { "app": "web" } },
                "spec": { "containers": [{ "name": "web", "image": "web:1" }] },
            },
        },
    })
}

fn rules(chance: &mut fastrand::Rng, window: u32) -> Value {
    let mut policy = |kind: &str| {
        let value = if kind == "Pods" { chance.u32(1..5) } else { chance.u32(2..11) * 10 };
        json!({ "type": kind, "value": value, "periodSeconds": chance.u32(1..13) * 15 })
    };
    let policies = [policy("Pods"), policy("Percent")];
    let count = chance.usize(1..3);
    let select = if chance.bool() { "Max" } else { "Min" };
    let window = chance.u32(0..3) * window;
    json!({ "policies": policies[..count], "selectPolicy": select, "stabilizationWindowSeconds": window })
}

fn behavior(chance: &mut fastrand::Rng) -> Value {
    if chance.u8(0..3) == 0 {
        return Value::Null;
    }
    json!({ "scaleUp": rules(chance, 30), "scaleDown": rules(chance, 120) })
}

fn autoscaler(chance: &mut fastrand::Rng) -> Value {
    let mut behavior = behavior(chance);
    let metric = json!({
        "type": "External",
        "external": { "metric": { "name": "figure" }, "target": { "type": "AverageValue", "averageValue": EACH.to_string() } },
    });
    // Nothing at all may be enough: a figure from outside is there also without pods.
    let least = chance.u8(0..4);
    if least == 0 && !behavior.is_null() {
        // The least of two rules would be a part of nothing, which never grows.
        behavior["scaleUp"]["selectPolicy"] = "Max".into();
    }
    json!({
        "metadata": { "name": NAME },
        "spec": {
            "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": NAME },
            "minReplicas": least, "maxReplicas": least.max(1) + chance.u8(0..20), "metrics": [metric],
            "behavior": behavior,
        },
    })
}

fn replicas(set: &Object) -> i64 {
    value(set)["spec"]["replicas"].as_i64().unwrap()
}

/// What always holds.
#[derive(Default)]
struct Always {
    now: Timestamp,
    /// The autoscaler as it is, or may be held to be.
    told: Vec<Value>,
    /// Whether it says that it took the last pod.
    asleep: bool,
    /// The change of the set that was a user's, by generation.
    users: Vec<i64>,
    /// When the figure became what, newest last.
    figures: Vec<(Timestamp, i64)>,
    /// Since when the controller remembers.
    since: Timestamp,
    /// When the number grew by how much, or shrank.
    changes: Vec<(Timestamp, i64)>,
    /// In every other story nothing that concerns the set fails, and the rules do not change: the controller then
    /// remembers all that it did.
    strict: bool,
}

impl Always {
    fn look(&mut self, seen: &Seen) {
        match (seen.kind, &seen.before, &seen.after) {
            ("HorizontalPodAutoscaler", _, Some(autoscaler)) => {
                self.asleep = condition(autoscaler, "ScaledToZero");
                let spec = value(autoscaler)["spec"].clone();
                if self.told.last() != Some(&spec) {
                    self.told.push(spec);
                }
            }
            ("ReplicaSet", Some(before), Some(after))
                if before.meta().generation != after.meta().generation =>
            {
                let (from, to) = (replicas(before), replicas(after));
                if !self.users.contains(&after.meta().generation) {
                    self.see_scaling(from, to);
                }
            }
            _ => {}
        }
    }

    fn see_scaling(&mut self, from: i64, to: i64) {
        let within = |told: &&Value| {
            let bound = |name: &str| told[name].as_i64().unwrap();
            (bound("minReplicas")..=bound("maxReplicas")).contains(&to)
        };
        let told: Vec<&Value> = self.told.iter().filter(within).collect();
        assert!(!told.is_empty(), "{to} pods are outside of the bounds: {:?}", self.told);
        assert_ne!(from, to, "a change that is none");
        // Else nobody would know after a restart that it is to be woken.
        assert!(to > 0 || self.asleep, "the last pod goes, and nobody says so");
        if self.strict {
            // From outside of the bounds it goes there at once.
            let bounds = |told: &&&Value| {
                let bound = |name: &str| told[name].as_i64().unwrap();
                !(bound("minReplicas")..=bound("maxReplicas")).contains(&from)
            };
            let may = told.iter().any(|told| {
                bounds(&told) || (self.in_rate(told, from, to) && self.is_stable(told, from, to))
            });
            assert!(
                may,
                "from {from} to {to} at {}: {:?} {:?} {told:#?}",
                self.now, self.changes, self.figures
            );
        }
        self.changes.push((self.now, to - from));
    }

    /// By how much the number grew in a period at least, or at most: a change at the edge counts or does not.
    fn grown(&self, seconds: i64, least: bool) -> i64 {
        let begin = self.now - SignedDuration::from_secs(seconds);
        let (inner, outer) = (begin + TICK, begin - TICK);
        let of = |by: i64| if (by > 0) == least { inner } else { outer };
        let changes = self.changes.iter().filter(|(at, by)| *at > self.since && *at > of(*by));
        changes.map(|(_, by)| by).sum()
    }

    fn in_rate(&self, told: &Value, from: i64, to: i64) -> bool {
        let behavior = &told["behavior"];
        if behavior.is_null() {
            return to < from || to <= (from * 2).max(4);
        }
        let up = to > from;
        let rules = &behavior[if up { "scaleUp" } else { "scaleDown" }];
        let proposals = rules["policies"].as_array().unwrap().iter().map(|policy| {
            let began = from - self.grown(policy["periodSeconds"].as_i64().unwrap(), up);
            let by = policy["value"].as_i64().unwrap();
            match (policy["type"] == "Pods", up) {
                (true, true) => began + by,
                (true, false) => began - by,
                (false, true) => (began * (100 + by) + 99) / 100,
                (false, false) => began * (100 - by) / 100,
            }
        });
        let widest = (rules["selectPolicy"] == "Max") == up;
        let limit = if widest { proposals.max() } else { proposals.min() }.unwrap();
        if up { to <= limit.max(from) } else { to >= limit.min(from) }
    }

    /// What the figure asked for at all looks in a window, lowest and highest of the least and most that it may have asked
    /// for: within a tenth it asks for nothing else than there is.
    fn is_stable(&self, told: &Value, from: i64, to: i64) -> bool {
        let up = to > from;
        let behavior = &told["behavior"];
        let window = match (behavior.is_null(), up) {
            (true, true) => 0,
            (true, false) => 300,
            (false, true) => behavior["scaleUp"]["stabilizationWindowSeconds"].as_i64().unwrap(),
            (false, false) => behavior["scaleDown"]["stabilizationWindowSeconds"].as_i64().unwrap(),
        };
        let begin = (self.now - SignedDuration::from_secs(window) + TICK).max(self.since);
        let (least, most) = (told["minReplicas"].as_i64().unwrap(), told["maxReplicas"].as_i64().unwrap());
        for (at, (since, figure)) in self.figures.iter().enumerate() {
            let until = self.figures.get(at + 1).map_or(self.now, |(until, _)| *until);
            let lasted = until.duration_since((*since).max(begin));
            // It was looked at for certain.
            if lasted < PERIOD + TICK + TICK {
                continue;
            }
            let lowest = (figure * 10 / (EACH * 11)).clamp(least, most);
            let highest = ((figure * 10 + EACH * 9 - 1) / (EACH * 9)).clamp(least, most);
            if (up && to > highest) || (!up && to < lowest) {
                return false;
            }
        }
        true
    }
}

/// Time passes in steps that are short enough to know when something happened.
async fn pass(world: &World, witness: &mut Witness, always: &mut Always, seconds: u64) {
    for _ in 0..seconds.div_ceil(5) {
        world.pass(Duration::from_secs(5)).await;
        always.now = world.clock.now();
        witness.catch_up(|_, seen| always.look(seen)).await;
        follow(world, witness).await;
    }
}

/// The set has as many pods as it wants.
async fn follow(world: &World, witness: &mut Witness) {
    let Some(set) = witness.all("ReplicaSet").next() else { return };
    let wanted = replicas(set);
    if value(set)["status"]["replicas"].as_i64() != Some(wanted) {
        let status = json!({ "status": { "replicas": wanted } });
        let (key, kind) = (Key::new(NAMESPACE, NAME), api::PatchType::Merge);
        world.user.patch(&REPLICA_SETS.gvr(), &key, "status", kind, &status).await.unwrap();
    }
}

async fn step(world: &mut World, witness: &mut Witness, always: &mut Always) {
    match world.chance.u8(0..20) {
        0..=4 => {
            let figure = world.chance.i64(0..250);
            world.faults.set_figure(figure);
            always.figures.push((world.clock.now(), figure));
        }
        5 if !always.strict => {
            let replicas = world.chance.u8(0..25);
            let patch = json!({ "spec": { "replicas": replicas } });
            let (key, kind) = (Key::new(NAMESPACE, NAME), api::PatchType::Merge);
            let set = world.user.patch(&REPLICA_SETS.gvr(), &key, "", kind, &patch).await.unwrap();
            always.users.push(set.meta().generation);
        }
        6 if !always.strict => {
            let mut spec = autoscaler(&mut world.chance)["spec"].clone();
            spec["behavior"] = Value::Null;
            world.merge(&HORIZONTAL_POD_AUTOSCALERS, NAME, &json!({ "spec": spec })).await;
        }
        7 if world.chance.u8(0..4) == 0 => {
            world.restart();
            always.since = world.clock.now();
        }
        8 if world.chance.u8(0..4) == 0 => {
            // The clock is set to another time. What was known when is as old as nobody knows.
            let by = SignedDuration::from_secs(world.chance.i64(60..10_000));
            let now = world.clock.now();
            world.clock.set(if world.chance.bool() { now + by } else { now - by });
            always.now = world.clock.now();
            always.since = always.now;
            always.figures = vec![(always.now, world.faults.figure())];
            always.changes.clear();
        }
        8..=13 => {
            let seconds = world.chance.u64(1..40);
            pass(world, witness, always, seconds).await;
        }
        14 => {
            let seconds = world.chance.u64(60..400);
            pass(world, witness, always, seconds).await;
            if seconds > LONG_S {
                // By now nobody goes by what was told before.
                always.told.drain(..always.told.len().saturating_sub(1));
            }
        }
        _ => world.settle().await,
    }
}

async fn story(seed: u64) {
    let (mut world, mut witness) = world(seed).await;
    let now = world.clock.now();
    let mut always = Always { strict: !seed.is_multiple_of(2), now, since: now, ..Always::default() };
    if always.strict {
        world.faults.set_apart(0, "horizontalpodautoscalers", 20);
    } else {
        world.faults.set(20);
    }
    world.faults.set_figure(30);
    always.figures.push((now, 30));
    let autoscaler = autoscaler(&mut world.chance);
    world.create(&REPLICA_SETS, &set()).await;
    world.create(&HORIZONTAL_POD_AUTOSCALERS, &autoscaler).await;
    for _ in 0..STEPS {
        step(&mut world, &mut witness, &mut always).await;
        witness.catch_up(|_, seen| always.look(seen)).await;
        follow(&world, &mut witness).await;
    }
    world.faults.set(0);
    pass(&world, &mut witness, &mut always, 3600).await;
    let generation = witness.all("ReplicaSet").next().unwrap().meta().generation;
    check_end(&witness, world.faults.figure(), always.users.contains(&generation));
}

/// Within a tenth of what the figure asks for, or at a bound. Nobody is left at nothing but whom a user put there.
fn check_end(witness: &Witness, figure: i64, switched_off: bool) {
    let autoscaler = value(witness.all("HorizontalPodAutoscaler").next().unwrap());
    let held = replicas(witness.all("ReplicaSet").next().unwrap());
    let bound = |name: &str| autoscaler["spec"][name].as_i64().unwrap();
    let asked = ((figure + EACH - 1) / EACH).clamp(bound("minReplicas"), bound("maxReplicas"));
    let near = held > 0 && (held * EACH * 9..=held * EACH * 11).contains(&(figure * 10));
    let right = held == asked || near || (held == 0 && switched_off);
    assert!(right, "{held} pods for {figure}: {:#}", autoscaler["status"]);
    assert_eq!(
        autoscaler["status"]["desiredReplicas"].as_i64().unwrap_or(0),
        held,
        "{:#}",
        autoscaler["status"]
    );
    assert_eq!(
        autoscaler["status"]["currentReplicas"].as_i64().unwrap_or(0),
        held,
        "{:#}",
        autoscaler["status"]
    );
}

#[tokio::test]
async fn whatever_happens_the_number_follows_within_bounds() {
    for seed in seeds(6) {
        println!("seed {seed}");
        story(seed).await;
    }
}
