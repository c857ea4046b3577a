//! The pods of sets and how far each has come: kept as pods change, so that a look at a set reads none of their objects.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use api::{Object, ObjectMeta};
use base::BoxError;
use jiff::Timestamp;
use parking_lot::Mutex;

use super::types::Set;
use crate::context::decode;
use crate::pods::{Candidate, Pod, Standing, deletion_order, next_moment};
use crate::selector::{LabelSelector, Select, is_subset};

/// What a set says of its pods.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Terms {
    selector: LabelSelector,
    /// The labels of its template.
    labels: BTreeMap<String, String>,
}

impl From<&Set> for Terms {
    fn from(set: &Set) -> Self {
        let labels = &set.spec.template["metadata"]["labels"];
        Self {
            selector: set.selector.clone(),
            labels: serde_json::from_value(labels.clone()).unwrap_or_default(),
        }
    }
}

/// A pod of a set.
#[derive(Debug)]
struct Member {
    pod: Arc<Object>,
    /// None of one that cannot be read.
    standing: Option<Standing>,
    /// Whether the set's selector still matches it.
    selected: bool,
    /// Whether it bears the labels of the set's template.
    labelled: bool,
}

impl Member {
    fn judge(&mut self, terms: Option<&Terms>) {
        let labels = &self.pod.meta().labels;
        self.selected = terms.is_some_and(|terms| terms.selector.matches(labels));
        self.labelled = terms.is_some_and(|terms| is_subset(&terms.labels, labels));
    }

    /// Its standing, if it counts for its set.
    fn active(&self) -> Option<&Standing> {
        self.standing.as_ref().filter(|standing| self.selected && standing.is_active())
    }
}

/// The pods that have a set as their controller, by uid.
#[derive(Debug, Default)]
struct Roster {
    /// What the members were judged by; none before the first look.
    terms: Option<Terms>,
    members: HashMap<String, Member>,
    /// Active pods by node.
    nodes: HashMap<String, usize>,
}

impl Roster {
    fn put(&mut self, pod: &Arc<Object>) {
        self.remove(&pod.meta().uid);
        let standing = decode::<Pod>(pod).ok().map(|pod| Standing::from(&pod));
        let mut member = Member { pod: pod.clone(), standing, selected: false, labelled: false };
        member.judge(self.terms.as_ref());
        if let Some(node) = node(&member) {
            *self.nodes.entry(node.to_owned()).or_default() += 1;
        }
        self.members.insert(pod.meta().uid.clone(), member);
    }

    fn remove(&mut self, uid: &str) {
        let former = self.members.remove(uid);
        let Some(node) = former.as_ref().and_then(node) else { return };
        if let Some(count) = self.nodes.get_mut(node) {
            *count -= 1;
            if *count == 0 {
                self.nodes.remove(node);
            }
        }
    }

    fn judge(&mut self, terms: Terms) {
        if self.terms.as_ref() != Some(&terms) {
            self.members.values_mut().for_each(|member| member.judge(Some(&terms)));
            self.terms = Some(terms);
        }
    }
}

/// The node that an active pod stands on.
fn node(member: &Member) -> Option<&str> {
    let active = member.standing.as_ref().is_some_and(Standing::is_active);
    member.pod.node_name().filter(|_| active)
}

/// What a set has.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count {
    /// Pods that are neither finished nor being deleted.
    pub(super) active: usize,
    /// Those whose labels are the template's.
    pub(super) labelled: usize,
    /// Those that take traffic.
    pub(super) ready: usize,
    /// Those that have been ready for long enough.
    pub(super) available: usize,
    /// Pods that are being deleted and have not ended.
    pub(super) leaving: usize,
    /// How long it is until the next pod becomes available.
    pub(super) next_available: Option<Duration>,
}

/// How many pods are to stay, and how many may go at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Aim {
    pub(super) wanted: usize,
    pub(super) most: usize,
}

/// A pod that is to be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Victim {
    pub(super) name: String,
    pub(super) uid: String,
}

/// A set as its pods name it: what lies in another namespace is none of its own, whatever it says.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct SetId {
    pub(super) namespace: String,
    pub(super) uid: String,
}

impl From<&ObjectMeta> for SetId {
    fn from(set: &ObjectMeta) -> Self {
        Self { namespace: set.namespace.clone(), uid: set.uid.clone() }
    }
}

/// The rosters of all sets of one kind.
#[derive(Debug, Default)]
pub(super) struct Rosters(Mutex<HashMap<SetId, Roster>>);

impl Rosters {
    /// A pod of this set has a new version.
    pub(super) fn put(&self, set: SetId, pod: &Arc<Object>) {
        self.0.lock().entry(set).or_default().put(pod);
    }

    /// A pod belongs to this set no more.
    pub(super) fn remove(&self, set: &SetId, pod: &str) {
        let mut rosters = self.0.lock();
        let Some(roster) = rosters.get_mut(set) else { return };
        roster.remove(pod);
        if roster.members.is_empty() {
            rosters.remove(set);
        }
    }

    /// How many pods this set has.
    pub(super) fn len(&self, set: &SetId) -> usize {
        self.0.lock().get(set).map_or(0, |roster| roster.members.len())
    }

    /// The pods that the set's selector matches no more. A pod that cannot be read is an error.
    pub(super) fn strays(&self, set: &Set) -> Result<Vec<Arc<Object>>, BoxError> {
        let mut rosters = self.0.lock();
        let Some(roster) = rosters.get_mut(&SetId::from(&set.metadata)) else { return Ok(Vec::new()) };
        roster.judge(Terms::from(set));
        let mut strays = Vec::new();
        for member in roster.members.values() {
            if member.standing.is_none() {
                decode::<Pod>(&member.pod)?;
            }
            if !member.selected {
                strays.push(member.pod.clone());
            }
        }
        Ok(strays)
    }

    /// Counts the pods of a set.
    pub(super) fn count(&self, set: &Set, now: Timestamp) -> Count {
        let min_ready = set.min_ready();
        let mut rosters = self.0.lock();
        let Some(roster) = rosters.get_mut(&SetId::from(&set.metadata)) else { return Count::default() };
        roster.judge(Terms::from(set));
        let mut count = Count::default();
        for member in roster.members.values().filter(|member| member.selected) {
            count.leaving += usize::from(member.standing.is_some_and(|standing| standing.is_leaving()));
            let Some(standing) = member.active() else { continue };
            count.active += 1;
            count.labelled += usize::from(member.labelled);
            count.ready += usize::from(standing.is_ready());
            count.available += usize::from(standing.is_available(min_ready, now));
        }
        let moments = roster.members.values().filter_map(|member| member.active()?.available_at(min_ready));
        count.next_available = next_moment(moments, min_ready, now);
        count
    }

    /// The pods of a set that are to go first: `most` at once, and only as many as there are more than `wanted` at this
    /// moment. Those go early that share their node with many pods of the set and of its siblings, which are sets of the same
    /// owner.
    pub(super) fn victims(&self, set: &SetId, siblings: &[String], aim: Aim, now: Timestamp) -> Vec<Victim> {
        let rosters = self.0.lock();
        let Some(roster) = rosters.get(set) else { return Vec::new() };
        let sibling = |uid: &String| rosters.get(&SetId { uid: uid.clone(), ..set.clone() });
        let crowds: Vec<_> = siblings.iter().filter_map(sibling).map(|roster| &roster.nodes).collect();
        let beside = |node: &str| crowds.iter().filter_map(|nodes| nodes.get(node)).sum();
        let mut candidates: Vec<(Candidate<'_>, &Object)> = roster
            .members
            .iter()
            .filter_map(|(uid, member)| {
                let siblings = member.pod.node_name().map_or(0, beside);
                Some((Candidate { standing: member.active()?, uid, siblings }, &*member.pod))
            })
            .collect();
        let count = candidates.len().saturating_sub(aim.wanted).min(aim.most);
        if (1..candidates.len()).contains(&count) {
            candidates.select_nth_unstable_by(count - 1, |(a, _), (b, _)| deletion_order(*a, *b, now));
        }
        candidates.truncate(count);
        let victim = |pod: &Object| Victim { name: pod.meta().name.clone(), uid: pod.meta().uid.clone() };
        candidates.into_iter().map(|(_, pod)| victim(pod)).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn set(min_ready_s: u32) -> Set {
        let mut set: Set = serde_json::from_value(json!({
            "metadata": { "uid": "s", "namespace": "ns" },
            "spec": { "minReadySeconds": min_ready_s, "template": { "metadata": { "labels": { "app": "web", "v": "1" } } } },
        }))
        .unwrap();
        set.selector = serde_json::from_value(json!({ "matchLabels": { "app": "web" } })).unwrap();
        set
    }

    fn pod(uid: &str, mut body: Value) -> Arc<Object> {
        let labels = body["metadata"]["labels"].take();
        let labels = if labels.is_null() { json!({ "app": "web" }) } else { labels };
        body["metadata"]["labels"] = labels;
        body["metadata"]["uid"] = uid.into();
        body["metadata"]["name"] = format!("pod-{uid}").into();
        Arc::new(Object::parse(serde_json::to_vec(&body).unwrap().into()).unwrap())
    }

    fn ready(since: &str) -> Value {
        json!({ "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": since }] })
    }

    fn on(node: &str) -> Value {
        json!({ "spec": { "nodeName": node }, "status": { "phase": "Running" } })
    }

    fn id(uid: &str) -> SetId {
        SetId { namespace: "ns".into(), uid: uid.into() }
    }

    fn going(most: usize) -> Aim {
        Aim { wanted: 0, most }
    }

    fn uids(victims: &[Victim]) -> Vec<&str> {
        victims.iter().map(|victim| victim.uid.as_str()).collect()
    }

    #[test]
    fn pods_are_counted_as_the_set_selects_them() {
        let now: Timestamp = "2024-01-01T00:00:15Z".parse().unwrap();
        let rosters = Rosters::default();
        let labels = json!({ "app": "web", "v": "1", "x": "y" });
        let status = ready("2024-01-01T00:00:00Z");
        rosters.put(id("s"), &pod("a", json!({ "metadata": { "labels": labels }, "status": status })));
        rosters.put(id("s"), &pod("b", json!({ "status": ready("2024-01-01T00:00:10Z") })));
        rosters.put(id("s"), &pod("c", json!({})));
        rosters.put(id("s"), &pod("d", json!({ "status": { "phase": "Failed" } })));
        let leaving = json!({ "metadata": { "deletionTimestamp": "2024-01-01T00:00:09Z" } });
        rosters.put(id("s"), &pod("e", leaving));
        rosters.put(id("s"), &pod("f", json!({ "metadata": { "labels": { "app": "other" } } })));
        rosters.put(id("t"), &pod("g", json!({})));
        // Whoever says in another namespace that it belongs to the set is none of its own.
        let elsewhere = SetId { namespace: "other".into(), ..id("s") };
        rosters.put(elsewhere.clone(), &pod("i", json!({})));
        let strays = rosters.strays(&set(10)).unwrap();
        assert_eq!(strays.iter().map(|pod| pod.meta().uid.as_str()).collect::<Vec<_>>(), ["f"]);
        let next_available = Some(Duration::from_secs(5));
        let count = Count { active: 3, labelled: 1, ready: 2, available: 1, leaving: 1, next_available };
        assert_eq!(rosters.count(&set(10), now), count);
        // A new version, and one that is gone; who comes after the look is judged as the others.
        rosters.put(id("s"), &pod("c", json!({ "status": ready("2024-01-01T00:00:15Z") })));
        rosters.remove(&id("s"), "a");
        rosters.put(id("s"), &pod("h", json!({ "metadata": { "labels": { "app": "other" } } })));
        let count = Count { active: 2, labelled: 0, available: 0, ..count };
        assert_eq!(rosters.count(&set(10), now), count);
        // Another selector judges all anew.
        let mut other = set(0);
        other.selector = serde_json::from_value(json!({ "matchLabels": { "app": "other" } })).unwrap();
        assert_eq!(rosters.strays(&other).unwrap().len(), 4);
        assert_eq!(rosters.count(&other, now).active, 2);
        for uid in ["b", "c", "d", "e", "f", "h"] {
            assert!(rosters.len(&id("s")) > 0);
            rosters.remove(&id("s"), uid);
        }
        rosters.remove(&id("t"), "g");
        rosters.remove(&elsewhere, "i");
        assert!(rosters.0.lock().is_empty());
    }

    #[test]
    fn a_pod_that_cannot_be_read_is_told_of() {
        let rosters = Rosters::default();
        rosters.put(id("s"), &pod("a", json!({ "status": { "phase": 7 } })));
        assert!(rosters.strays(&set(0)).unwrap_err().to_string().contains("pod-a"));
        rosters.put(id("s"), &pod("a", json!({})));
        assert!(rosters.strays(&set(0)).unwrap().is_empty());
    }

    #[test]
    fn pods_on_crowded_nodes_go_first() {
        let (now, none) = (Timestamp::UNIX_EPOCH, Rosters::default());
        assert!(none.victims(&id("s"), &["s".into()], going(3), now).is_empty());
        let rosters = Rosters::default();
        for (uid, node) in [("a", "x"), ("b", "y"), ("c", "z")] {
            rosters.put(id("s"), &pod(uid, on(node)));
        }
        // Of a sibling, and of a set that is none.
        rosters.put(id("t"), &pod("d", on("y")));
        rosters.put(id("u"), &pod("e", on("z")));
        rosters.strays(&set(0)).unwrap();
        let siblings = ["s".to_owned(), "t".to_owned()];
        assert_eq!(uids(&rosters.victims(&id("s"), &siblings, going(1), now)), ["b"]);
        assert_eq!(rosters.victims(&id("s"), &siblings, going(2), now).len(), 2);
        assert_eq!(rosters.victims(&id("s"), &siblings, going(9), now).len(), 3);
        assert_eq!(rosters.victims(&id("s"), &siblings, Aim { wanted: 2, most: 9 }, now).len(), 1);
        assert!(rosters.victims(&id("s"), &siblings, Aim { wanted: 4, most: 9 }, now).is_empty());
        // One that has left the node crowds it no more.
        rosters.remove(&id("t"), "d");
        rosters.put(id("t"), &pod("f", on("x")));
        assert_eq!(uids(&rosters.victims(&id("s"), &siblings, going(1), now)), ["a"]);
        rosters
            .put(id("t"), &pod("f", json!({ "spec": { "nodeName": "x" }, "status": { "phase": "Failed" } })));
        rosters.put(id("t"), &pod("h", on("z")));
        assert_eq!(uids(&rosters.victims(&id("s"), &siblings, going(1), now)), ["c"]);
    }
}
