//! Volumes as claims look for them, and the claims that look: each is read once, when it changes, and a pass over a claim
//! meets the volumes that could be its own and no others.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use api::Key;
use api::quantity::Quantity;

use super::types::{Claim, Volume};

/// What a claim that is not bound waits for.
struct Seeker {
    class: String,
    /// The volume that it asks for, if it names one.
    volume: String,
}

/// The volumes, and the claims that are not bound.
#[derive(Default)]
pub(super) struct Index {
    volumes: HashMap<String, Arc<Volume>>,
    /// Those that name no claim, by class and then by size.
    free: HashMap<String, BTreeMap<(Quantity, String), Arc<Volume>>>,
    /// Those that name a claim, by that.
    kept: HashMap<Key, BTreeMap<String, Arc<Volume>>>,
    seekers: BTreeMap<Key, Seeker>,
}

/// The claim that a volume names.
pub(super) fn claim_of(volume: &Volume) -> Option<Key> {
    let held = volume.spec.claim_ref.as_ref()?;
    Some(Key::new(held.namespace.as_str(), held.name.as_str()))
}

impl Index {
    /// Takes over what became of a volume.
    pub(super) fn put_volume(&mut self, name: &str, volume: Option<Volume>) {
        if let Some(old) = self.volumes.remove(name) {
            self.drop_volume(name, &old);
        }
        let Some(volume) = volume.map(Arc::new) else { return };
        self.volumes.insert(name.to_owned(), volume.clone());
        match claim_of(&volume) {
            Some(claim) => drop(self.kept.entry(claim).or_default().insert(name.to_owned(), volume)),
            None => {
                let class = self.free.entry(volume.class().to_owned()).or_default();
                class.insert((volume.size(), name.to_owned()), volume);
            }
        }
    }

    fn drop_volume(&mut self, name: &str, old: &Volume) {
        if let Some(claim) = claim_of(old) {
            let Some(held) = self.kept.get_mut(&claim) else { return };
            held.remove(name);
            if held.is_empty() {
                self.kept.remove(&claim);
            }
        } else if let Some(held) = self.free.get_mut(old.class()) {
            held.remove(&(old.size(), name.to_owned()));
            if held.is_empty() {
                self.free.remove(old.class());
            }
        }
    }

    /// Takes over what became of a claim.
    pub(super) fn put_claim(&mut self, key: &Key, claim: Option<&Claim>) {
        match claim.filter(|claim| claim.status.phase != "Bound") {
            Some(claim) => {
                let (class, volume) = (claim.class().to_owned(), claim.spec.volume_name.clone());
                self.seekers.insert(key.clone(), Seeker { class, volume });
            }
            None => drop(self.seekers.remove(key)),
        }
    }

    /// A volume by its name.
    pub(super) fn volume(&self, name: &str) -> Option<Arc<Volume>> {
        self.volumes.get(name).cloned()
    }

    /// The volumes that could be a claim's: those that name it, and those of its class and at least its size that name
    /// nobody.
    pub(super) fn candidates(&self, claim: &Claim) -> Vec<Arc<Volume>> {
        let meta = &claim.metadata;
        let kept = self.kept.get(&Key::new(meta.namespace.as_str(), meta.name.as_str()));
        let free = self.free.get(claim.class()).map(|held| held.range((claim.size(), String::new())..));
        let free = free.into_iter().flatten().map(|(_, volume)| volume);
        kept.into_iter().flat_map(BTreeMap::values).chain(free).cloned().collect()
    }

    /// The volumes that name a claim.
    pub(super) fn kept_for(&self, claim: &Key) -> Vec<Key> {
        let kept = self.kept.get(claim);
        kept.into_iter().flat_map(BTreeMap::keys).map(|volume| Key::new("", volume.as_str())).collect()
    }

    /// The claims for which a change of a volume may be what they wait for: those that name it, and those of these classes.
    pub(super) fn seekers_of(&self, name: &str, classes: &[&str]) -> Vec<Key> {
        let seeks = |seeker: &Seeker| seeker.volume == name || classes.contains(&seeker.class.as_str());
        self.seekers.iter().filter(|(_, seeker)| seeks(seeker)).map(|(key, _)| key.clone()).collect()
    }

    /// All claims that are not bound.
    pub(super) fn seekers(&self) -> impl Iterator<Item = &Key> {
        self.seekers.keys()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn volume(name: &str, class: &str, size: &str, claim: Value) -> Volume {
        serde_json::from_value(json!({ "metadata": { "name": name }, "spec": {
            "storageClassName": class, "capacity": { "storage": size }, "claimRef": claim } }))
        .unwrap()
    }

    fn claim(name: &str, class: &str, size: &str, phase: &str) -> Claim {
        serde_json::from_value(json!({ "metadata": { "name": name, "namespace": "ns" },
            "spec": { "storageClassName": class, "resources": { "requests": { "storage": size } } },
            "status": { "phase": phase } }))
        .unwrap()
    }

    fn names(index: &Index, claim: &Claim) -> Vec<String> {
        index.candidates(claim).iter().map(|volume| volume.metadata.name.clone()).collect()
    }

    #[test]
    fn a_claim_meets_what_could_be_its_own_and_nothing_else() {
        let mut index = Index::default();
        let own = json!({ "namespace": "ns", "name": "c" });
        for (name, class, size, claim) in [
            ("big", "fast", "5Gi", Value::Null),
            ("fits", "fast", "1Gi", Value::Null),
            ("small", "fast", "1Mi", Value::Null),
            ("slow", "slow", "5Gi", Value::Null),
            ("kept", "slow", "1Ki", own),
            ("taken", "fast", "5Gi", json!({ "namespace": "ns", "name": "d" })),
        ] {
            index.put_volume(name, Some(volume(name, class, size, claim)));
        }
        let wanted = claim("c", "fast", "1Gi", "Pending");
        assert_eq!(names(&index, &wanted), ["kept", "fits", "big"]);
        index
            .put_volume("big", Some(volume("big", "fast", "5Gi", json!({ "namespace": "ns", "name": "e" }))));
        index.put_volume("fits", Some(volume("fits", "fast", "2Gi", Value::Null)));
        assert_eq!(index.kept_for(&Key::new("ns", "c")), [Key::new("", "kept")]);
        index.put_volume("kept", None);
        assert!(index.kept_for(&Key::new("ns", "c")).is_empty());
        assert_eq!(names(&index, &wanted), ["fits"]);
        assert!(index.volume("kept").is_none() && index.volume("big").is_some());
        index.put_volume("fits", None);
        index.put_volume("small", None);
        assert!(index.free.len() == 1 && names(&index, &wanted).is_empty());
    }

    #[test]
    fn a_volume_wakes_those_of_its_class_that_are_not_bound() {
        let mut index = Index::default();
        for (name, class, phase) in
            [("a", "fast", "Pending"), ("b", "slow", ""), ("c", "fast", "Bound"), ("d", "fast", "Lost")]
        {
            index.put_claim(&Key::new("ns", name), Some(&claim(name, class, "1", phase)));
        }
        let named = Claim {
            spec: super::super::types::ClaimSpec {
                volume_name: "v".into(),
                ..claim("e", "none", "1", "").spec
            },
            ..Claim::default()
        };
        index.put_claim(&Key::new("ns", "e"), Some(&named));
        let woken = |index: &Index| {
            let names = index.seekers_of("v", &["fast"]).into_iter().map(|key| key.name);
            names.collect::<Vec<_>>()
        };
        assert_eq!(woken(&index), ["a", "d", "e"]);
        index.put_claim(&Key::new("ns", "a"), None);
        assert_eq!(woken(&index), ["d", "e"]);
        assert_eq!(index.seekers().count(), 3);
    }
}
