//! Which taints devices have, whoever set them, and when the pods that use them have to leave. Pure.
//! Source: `devicetainteviction/device_taint_eviction.go`.

use std::collections::{BTreeMap, BTreeSet};

use api::{Object, ObjectMeta};
use jiff::{SignedDuration, Timestamp};
use reconcile::taints::{Taint, Toleration};
use serde::Deserialize;

use super::{Allocated, Device};

/// The effect that makes pods leave.
pub(super) const NO_EXECUTE: &str = "NoExecute";

/// The part of `resource/v1.ResourceSlice` that is about taints.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Slice {
    metadata: ObjectMeta,
    spec: SliceSpec,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct SliceSpec {
    driver: String,
    pool: Pool,
    devices: Vec<SliceDevice>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Pool {
    name: String,
    generation: i64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct SliceDevice {
    name: String,
    taints: Vec<Taint>,
}

impl Slice {
    fn pool(&self) -> PoolId {
        (self.spec.driver.clone(), self.spec.pool.name.clone())
    }

    /// The names of its devices, with driver and pool.
    pub(super) fn devices(&self) -> impl Iterator<Item = Device> {
        let of = |device: &SliceDevice| Device {
            driver: self.spec.driver.clone(),
            pool: self.spec.pool.name.clone(),
            device: device.name.clone(),
        };
        self.spec.devices.iter().map(of)
    }

    /// Of its devices those whose users have to leave. Taints without a moment came when they were seen first: `before`
    /// says what was known.
    fn tainted(&self, before: &Tainted, now: Timestamp) -> Tainted {
        let executing = |device: &SliceDevice| {
            let known = before.get(&device.name).map(Vec::as_slice).unwrap_or_default();
            let taints = device.taints.iter().filter(|taint| taint.effect == NO_EXECUTE);
            let since = |taint: &Taint| {
                let same = known.iter().find(|held| held.key == taint.key && held.value == taint.value);
                taint.time_added.or_else(|| same?.time_added).unwrap_or(now)
            };
            let dated = |taint: &Taint| Taint { time_added: Some(since(taint)), ..taint.clone() };
            let taints: Vec<Taint> = taints.map(dated).collect();
            (!taints.is_empty()).then(|| (device.name.clone(), taints))
        };
        self.spec.devices.iter().filter_map(executing).collect()
    }
}

/// Devices and their NoExecute taints.
type Tainted = BTreeMap<String, Vec<Taint>>;

/// `resource/v1.DeviceTaintRule`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Rule {
    pub(super) metadata: ObjectMeta,
    pub(super) spec: RuleSpec,
    pub(super) status: RuleStatus,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct RuleSpec {
    device_selector: Option<DeviceSelector>,
    pub(super) taint: Taint,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct DeviceSelector {
    driver: Option<String>,
    pool: Option<String>,
    device: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct RuleStatus {
    pub(super) conditions: Vec<RuleCondition>,
}

/// `meta/v1.Condition`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct RuleCondition {
    pub(super) r#type: String,
    pub(super) status: String,
    pub(super) reason: String,
    pub(super) message: String,
    pub(super) observed_generation: i64,
    pub(super) last_transition_time: Option<Timestamp>,
}

impl Rule {
    /// Whether it is about a device: one without a selector is about none. Source: `ruleMatchesDevice`.
    pub(super) fn covers(&self, device: &Device) -> bool {
        let fits =
            |wanted: &Option<String>, held: &str| wanted.as_deref().is_none_or(|wanted| wanted == held);
        self.spec.device_selector.as_ref().is_some_and(|selector| {
            fits(&selector.driver, &device.driver)
                && fits(&selector.pool, &device.pool)
                && fits(&selector.device, &device.device)
        })
    }

    /// Whether the users of its devices have to leave.
    pub(super) fn is_evicting(&self) -> bool {
        self.spec.taint.effect == NO_EXECUTE
    }

    /// The same rule as if the users of its devices had to leave.
    pub(super) fn imagined(&self) -> Self {
        let mut rule = self.clone();
        rule.spec.taint.effect = NO_EXECUTE.to_owned();
        rule
    }
}

type PoolId = (String, String);

/// What is kept of a slice: no more than its taints.
#[derive(Debug, Clone)]
struct Published {
    generation: i64,
    tainted: Tainted,
}

/// The taints of all devices for which somebody has to leave.
#[derive(Debug, Default)]
pub(super) struct Taints {
    pools: BTreeMap<PoolId, BTreeMap<String, Published>>,
    /// How many of the slices have taints.
    tainted_slices: usize,
    /// Evicting rules by name.
    rules: BTreeMap<String, Rule>,
}

/// When the users of a device or pod have to leave, and by which rules (their uids).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Eviction {
    pub(super) at: Timestamp,
    pub(super) rules: BTreeSet<String>,
}

impl Eviction {
    /// The earlier of two, for the reasons of both.
    pub(super) fn earlier(mut self, other: Self) -> Self {
        self.at = self.at.min(other.at);
        self.rules.extend(other.rules);
        self
    }
}

impl Taints {
    /// Whether nobody has to leave.
    pub(super) fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.tainted_slices == 0
    }

    /// A slice changed, came or went. Gives the devices whose taints are others now.
    pub(super) fn publish(
        &mut self,
        name: &str,
        old: Option<&Slice>,
        new: Option<&Slice>,
        now: Timestamp,
    ) -> BTreeSet<Device> {
        let pools: BTreeSet<PoolId> = old.into_iter().chain(new).map(Slice::pool).collect();
        let before: Vec<Tainted> = pools.iter().map(|pool| self.tainted(pool)).collect();
        let mut known = Tainted::new();
        for pool in &pools {
            let Some(held) = self.pools.get_mut(pool) else { continue };
            let tainted = held.remove(name).map(|held| held.tainted).unwrap_or_default();
            self.tainted_slices -= usize::from(!tainted.is_empty());
            known.extend(tainted);
            if held.is_empty() {
                self.pools.remove(pool);
            }
        }
        if let Some(slice) = new {
            let tainted = slice.tainted(&known, now);
            self.tainted_slices += usize::from(!tainted.is_empty());
            let published = Published { generation: slice.spec.pool.generation, tainted };
            self.pools.entry(slice.pool()).or_default().insert(name.to_owned(), published);
        }
        pools
            .iter()
            .zip(before)
            .flat_map(|(pool, before)| changed(pool, &before, &self.tainted(pool)))
            .collect()
    }

    /// The tainted devices of a pool: only the slices of its newest generation count.
    fn tainted(&self, pool: &PoolId) -> Tainted {
        let Some(slices) = self.pools.get(pool) else { return Tainted::new() };
        let newest = slices.values().map(|held| held.generation).max();
        let mut all = Tainted::new();
        for held in slices.values().filter(|held| Some(held.generation) == newest) {
            for (device, taints) in &held.tainted {
                all.entry(device.clone()).or_default().extend(taints.iter().cloned());
            }
        }
        all
    }

    /// A rule changed, came or went. Whether that makes a difference to anybody. A taint without a moment came with its
    /// rule, or when a changed rule was seen first.
    pub(super) fn rule(&mut self, name: &str, new: Option<&Rule>, now: Timestamp) -> bool {
        let before = self.rules.remove(name);
        if let Some(rule) = new.filter(|rule| rule.is_evicting()) {
            let mut rule = rule.clone();
            let known = before.as_ref().and_then(|before| before.spec.taint.time_added);
            let first = rule.metadata.creation_timestamp.filter(|_| rule.metadata.generation <= 1);
            let since = rule.spec.taint.time_added.or(known).or(first).unwrap_or(now);
            rule.spec.taint.time_added = Some(since);
            self.rules.insert(name.to_owned(), rule);
        }
        before.as_ref().map(|rule| &rule.spec) != self.rules.get(name).map(|rule| &rule.spec)
    }

    /// When the users of a claim with these devices have to leave. Source: `claimEvictionTime`.
    pub(super) fn eviction<'d>(
        &self,
        devices: impl Iterator<Item = &'d Allocated>,
        now: Timestamp,
    ) -> Option<Eviction> {
        let rules: Vec<&Rule> = self.rules.values().collect();
        self.eviction_by(devices, &rules, now)
    }

    /// The same by slices and by these rules alone.
    pub(super) fn eviction_by<'d>(
        &self,
        devices: impl Iterator<Item = &'d Allocated>,
        rules: &[&Rule],
        now: Timestamp,
    ) -> Option<Eviction> {
        let mut earliest: Option<Eviction> = None;
        for allocated in devices {
            let device = &allocated.device;
            let published = self.published(device).map(|taint| (taint, None));
            let ruled = rules.iter().filter(|rule| rule.covers(device));
            let ruled = ruled.map(|rule| (&rule.spec.taint, Some(&rule.metadata.uid)));
            for (taint, rule) in published.chain(ruled) {
                let Some(at) = leaves_at(taint, &allocated.tolerations, now) else { continue };
                let this = Eviction { at, rules: rule.cloned().into_iter().collect() };
                earliest = Some(match earliest {
                    Some(known) => known.earlier(this),
                    None => this,
                });
            }
        }
        earliest
    }

    /// The taints of a device that its driver published.
    fn published<'t>(&'t self, device: &'t Device) -> impl Iterator<Item = &'t Taint> {
        let slices = self.pools.get(&(device.driver.clone(), device.pool.clone()));
        let newest = slices.and_then(|slices| slices.values().map(|held| held.generation).max());
        let slices = slices.into_iter().flat_map(BTreeMap::values);
        let current = slices.filter(move |held| Some(held.generation) == newest);
        current.flat_map(|held| held.tainted.get(&device.device).into_iter().flatten())
    }
}

/// The devices of a pool whose taints are others than before.
fn changed(pool: &PoolId, before: &Tainted, after: &Tainted) -> Vec<Device> {
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let differs = |name: &&String| before.get(*name) != after.get(*name);
    let device =
        |name: &String| Device { driver: pool.0.clone(), pool: pool.1.clone(), device: name.clone() };
    names.into_iter().filter(differs).map(device).collect()
}

/// When whoever bears this has to leave because of a taint; `None`: never. Without a toleration that is when the taint
/// came. Only tolerations that name the effect count here.
fn leaves_at(taint: &Taint, tolerations: &[Toleration], now: Timestamp) -> Option<Timestamp> {
    let since = taint.time_added.unwrap_or(now);
    let borne: Vec<Option<i64>> = tolerations
        .iter()
        .filter(|toleration| toleration.effect == NO_EXECUTE && bears(toleration, taint))
        .map(|toleration| toleration.toleration_seconds)
        .collect();
    if borne.iter().any(Option::is_none) {
        return None;
    }
    let seconds = borne.into_iter().flatten().min().unwrap_or(0).max(0);
    Some(since.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX))
}

/// Whether a toleration covers a taint of a device; other than for nodes, one for equal values needs no key.
/// Source: `resourceclaim.ToleratesTaint`.
fn bears(toleration: &Toleration, taint: &Taint) -> bool {
    (toleration.effect.is_empty() || toleration.effect == taint.effect)
        && (toleration.key.is_empty() || toleration.key == taint.key)
        && match toleration.operator.as_str() {
            "" | "Equal" => toleration.value == taint.value,
            "Exists" => true,
            _ => false,
        }
}

/// Reads a projection of an object that may be there.
pub(super) fn read<T: serde::de::DeserializeOwned>(object: Option<&std::sync::Arc<Object>>) -> Option<T> {
    object.and_then(|object| object.decode().ok())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn slice(generation: i64, taints: Value) -> Slice {
        serde_json::from_value(
            json!({ "spec": { "driver": "d", "pool": { "name": "p", "generation": generation },
            "devices": [{ "name": "one", "taints": taints }, { "name": "two" }] } }),
        )
        .unwrap()
    }

    fn taint(key: &str, effect: &str) -> Value {
        json!({ "key": key, "effect": effect, "timeAdded": "2024-01-01T00:00:00Z" })
    }

    fn rule(selector: Value, effect: &str) -> Rule {
        serde_json::from_value(json!({ "metadata": { "uid": "r", "name": "r" },
            "spec": { "deviceSelector": selector, "taint": taint("rule", effect) } }))
        .unwrap()
    }

    fn allocated(device: &str, tolerations: Value) -> Allocated {
        serde_json::from_value(json!({ "driver": "d", "pool": "p", "device": device, "request": "r",
            "tolerations": tolerations }))
        .unwrap()
    }

    fn at(seconds: i64) -> Timestamp {
        let start: Timestamp = "2024-01-01T00:00:00Z".parse().unwrap();
        start + SignedDuration::from_secs(seconds)
    }

    #[test]
    fn the_newest_generation_of_a_pool_says_which_devices_are_tainted() {
        let mut taints = Taints::default();
        let (old, new) = (slice(1, json!([taint("k", "NoExecute")])), slice(2, json!([])));
        assert!(
            taints.publish("s1", None, Some(&slice(1, json!([taint("k", "NoSchedule")]))), at(50)).is_empty()
        );
        assert!(taints.is_empty());
        let changed = taints.publish("s1", None, Some(&old), at(50));
        assert_eq!(changed.iter().map(|held| held.device.as_str()).collect::<Vec<_>>(), ["one"]);
        let use_of = |device: &str| [allocated(device, json!([]))];
        let leaves = |taints: &Taints, device: &str| taints.eviction(use_of(device).iter(), at(50));
        assert_eq!(leaves(&taints, "one").unwrap().at, at(0));
        assert_eq!(leaves(&taints, "two"), None);
        assert_eq!(taints.publish("s2", None, Some(&new), at(50)).len(), 1);
        assert_eq!(leaves(&taints, "one"), None);
        assert_eq!(taints.publish("s2", Some(&new), None, at(50)).len(), 1);
        assert_eq!(taints.publish("s1", Some(&old), None, at(50)).len(), 1);
        assert!(taints.is_empty() && taints.pools.is_empty());
    }

    #[test]
    fn a_taint_without_a_moment_came_when_it_was_seen_first() {
        let mut taints = Taints::default();
        let timeless = slice(1, json!([{ "key": "k", "effect": "NoExecute" }]));
        let bears = json!([{ "effect": "NoExecute", "operator": "Exists", "tolerationSeconds": 10 }]);
        let leaves = |taints: &Taints| taints.eviction([allocated("one", bears.clone())].iter(), at(90));
        taints.publish("s", None, Some(&timeless), at(50));
        assert!(taints.publish("s", Some(&timeless), Some(&timeless), at(70)).is_empty());
        assert_eq!(leaves(&taints).unwrap().at, at(60));
        let mut young = rule(json!({}), "NoExecute");
        young.spec.taint.time_added = None;
        young.metadata.creation_timestamp = Some(at(5));
        taints.rule("r", Some(&young), at(20));
        assert_eq!(leaves(&taints).unwrap().at, at(15));
        assert!(!taints.rule("r", Some(&young), at(30)));
    }

    #[test]
    fn the_shortest_toleration_that_names_the_effect_counts() {
        let taint: Taint = serde_json::from_value(taint("k", "NoExecute")).unwrap();
        let bearable = |tolerations: Value| {
            let tolerations: Vec<Toleration> = serde_json::from_value(tolerations).unwrap();
            leaves_at(&taint, &tolerations, at(50))
        };
        let exists = |seconds: Value| {
            json!({ "key": "k", "operator": "Exists", "effect": "NoExecute",
            "tolerationSeconds": seconds })
        };
        assert_eq!(bearable(json!([])), Some(at(0)));
        assert_eq!(bearable(json!([exists(Value::Null)])), None);
        assert_eq!(bearable(json!([exists(json!(60)), exists(json!(30))])), Some(at(30)));
        assert_eq!(bearable(json!([exists(json!(-5))])), Some(at(0)));
        assert_eq!(bearable(json!([{ "operator": "Exists" }])), Some(at(0)));
        assert_eq!(bearable(json!([{ "effect": "NoExecute", "value": "v" }])), Some(at(0)));
        assert_eq!(bearable(json!([{ "effect": "NoExecute" }])), None, "an empty value, and any key");
    }

    #[test]
    fn rules_taint_what_they_select() {
        let mut taints = Taints::default();
        assert!(!taints.rule("r", Some(&rule(json!({ "driver": "d" }), "NoSchedule")), at(50)));
        assert!(taints.rule(
            "r",
            Some(&rule(json!({ "driver": "d", "device": "one" }), "NoExecute")),
            at(50)
        ));
        assert!(!taints.rule(
            "r",
            Some(&rule(json!({ "driver": "d", "device": "one" }), "NoExecute")),
            at(50)
        ));
        let leaves = |taints: &Taints, device: &str| {
            let devices = [allocated(device, json!([]))];
            taints.eviction(devices.iter(), at(50)).map(|held| held.rules.into_iter().collect::<Vec<_>>())
        };
        assert_eq!((leaves(&taints, "one"), leaves(&taints, "two")), (Some(vec!["r".into()]), None));
        assert!(taints.rule("r", None, at(50)) && taints.is_empty());
        let nothing: Rule = rule(Value::Null, "NoExecute");
        let everything = rule(json!({}), "None");
        let device = allocated("one", json!([])).device;
        assert!(
            !nothing.covers(&device) && everything.covers(&device) && everything.imagined().is_evicting()
        );
    }
}
