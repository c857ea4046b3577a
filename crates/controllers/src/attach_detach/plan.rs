//! Where a volume is to be attached, and what is to be detached from a node. Pure.
//! Source: `attachdetach/reconciler/reconciler.go`.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use api::Key;
use jiff::Timestamp;

use super::source::Handle;
use super::types::{AttachedVolume, Node};
use super::world::{Held, Told, Want};

/// How long somebody outside may take to attach a volume until users are told. Source: `csiTimeout`.
pub(super) const ATTACH_TIMEOUT: Duration = Duration::from_secs(2 * 60);
/// How long a volume that nobody needs is left to a node that is not healthy and may use it.
/// Source: `ReconcilerMaxWaitForUnmountDuration`.
pub(super) const UNMOUNT_TIMEOUT: Duration = Duration::from_secs(6 * 60);

/// A volume and one node.
pub(super) struct Side<'a> {
    pub(super) node: &'a str,
    pub(super) want: Option<&'a Want>,
    pub(super) held: Option<&'a Held>,
    /// Whether the node is there and leaves attaching to this controller.
    pub(super) managed: bool,
    /// Whether the node keeps the volume although nobody needs it there: it says that it uses it, or detaches for itself.
    pub(super) kept: bool,
}

/// What is to be done for a volume on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Somebody outside is to be asked.
    Create,
    /// Somebody is asked already, which this controller did not know.
    Pending,
    /// It has come to its end.
    Attached,
    /// Other nodes have it, and it may be on one only: the pods that need it there.
    Elsewhere(Vec<Key>),
    /// It failed: what users are told, and how that is remembered.
    Failed(Told, String),
    /// Nobody has answered for too long.
    TimedOut,
}

/// What a pass over a volume is to do, by node.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct VolumePlan {
    pub(super) steps: Vec<(String, Step)>,
    /// How long it is until somebody has taken too long.
    pub(super) wait: Option<Duration>,
}

/// What keeps a volume from one more node.
enum Obstacle {
    None,
    /// Something is under way: its end brings the next look.
    Pending,
    /// It is attached elsewhere.
    Elsewhere(Vec<Key>),
}

/// Source: `attachDesiredVolumes`, `verifyAttachmentStatus`.
pub(super) fn plan_volume(sides: &[Side<'_>], now: Timestamp) -> VolumePlan {
    let mut plan = VolumePlan::default();
    for side in sides {
        let Some(want) = side.want else { continue };
        let step = match side.held {
            None if !side.managed => None,
            None if want.need.shared => Some(Step::Create),
            None => {
                let creating = plan.steps.iter().any(|(_, step)| *step == Step::Create);
                plan_exclusive(want, if creating { Obstacle::Pending } else { obstacle(side, sides) })
            }
            Some(held) if held.released => None,
            Some(held) if held.terminating => {
                let told = Told::Ending(held.uid.clone());
                (want.told.as_ref() != Some(&told))
                    .then(|| Step::Failed(told, "volume attachment is being deleted".into()))
            }
            Some(held) if held.attached => want.asked.is_some().then_some(Step::Attached),
            Some(held) => plan_pending(want, held, now, &mut plan.wait),
        };
        plan.steps.extend(step.map(|step| (side.node.to_owned(), step)));
    }
    plan
}

fn plan_exclusive(want: &Want, obstacle: Obstacle) -> Option<Step> {
    match obstacle {
        Obstacle::None => Some(Step::Create),
        Obstacle::Elsewhere(pods) => (want.told != Some(Told::Elsewhere)).then_some(Step::Elsewhere(pods)),
        Obstacle::Pending => None,
    }
}

fn plan_pending(want: &Want, held: &Held, now: Timestamp, wait: &mut Option<Duration>) -> Option<Step> {
    if let Some(failure) = &held.failure {
        let told = Told::Failed(failure.clone());
        return (want.told.as_ref() != Some(&told)).then(|| Step::Failed(told, failure.message.clone()));
    }
    let left = left(want.asked.unwrap_or(now), ATTACH_TIMEOUT, now);
    // Who is told once waits as long again.
    let next = if left.is_zero() { ATTACH_TIMEOUT } else { left };
    *wait = Some(wait.map_or(next, |held| held.min(next)));
    match want.asked {
        None => Some(Step::Pending),
        Some(_) => left.is_zero().then_some(Step::TimedOut),
    }
}

/// What keeps a volume that may be on one node only from this one. One that failed elsewhere is tried here: its driver
/// knows.
fn obstacle(one: &Side<'_>, sides: &[Side<'_>]) -> Obstacle {
    let mut pods = Vec::new();
    let mut is_elsewhere = false;
    for other in sides.iter().filter(|other| other.node != one.node) {
        match (other.held, other.want) {
            (None, None) => {}
            // Asked for, and not seen yet.
            (None, Some(want)) if want.asked.is_some() => return Obstacle::Pending,
            (None, Some(_)) => {}
            (Some(held), _) if held.terminating || held.released => return Obstacle::Pending,
            (Some(held), None) if !held.attached || !other.kept => return Obstacle::Pending,
            (Some(held), Some(_)) if !held.attached && held.failure.is_none() => return Obstacle::Pending,
            (Some(held), Some(_)) if !held.attached => {}
            (Some(_), want) => {
                is_elsewhere = true;
                pods.extend(want.iter().flat_map(|want| want.pods.keys().cloned()));
            }
        }
    }
    if is_elsewhere { Obstacle::Elsewhere(pods) } else { Obstacle::None }
}

/// What the users of a pod are told of a volume that others have. Names of pods stay in their namespace.
/// Source: `reportMultiAttachError`.
pub(super) fn elsewhere(volume: &str, pod: &Key, others: &[Key]) -> String {
    let mut names: Vec<&str> = others
        .iter()
        .filter(|other| other.namespace == pod.namespace)
        .map(|other| other.name.as_str())
        .collect();
    names.sort_unstable();
    let strangers = others.len() - names.len();
    let why = match (names.as_slice(), strangers) {
        ([], 0) => {
            "Volume is already exclusively attached to one node and can't be attached to another".into()
        }
        ([], _) => format!("Volume is already used by {strangers} pod(s) in different namespaces"),
        (_, 0) => format!("Volume is already used by pod(s) {}", names.join(", ")),
        _ => format!(
            "Volume is already used by pod(s) {} and {strangers} pod(s) in different namespaces",
            names.join(", ")
        ),
    };
    format!("Multi-Attach error for volume {volume:?} {why}")
}

/// An attachment of a node.
pub(super) struct Part<'a> {
    pub(super) id: &'a str,
    pub(super) held: &'a Held,
    pub(super) wanted: bool,
}

/// An attachment that is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Detach {
    pub(super) id: String,
    pub(super) uid: String,
    /// Whatever the node says.
    pub(super) forced: bool,
    /// Because it is out of service, and not because it has not answered for too long.
    pub(super) off: bool,
}

/// What a pass over a node is to do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct NodePlan {
    /// What the node's status is to say, if it says something else.
    pub(super) attached: Option<Vec<AttachedVolume>>,
    pub(super) detach: Vec<Detach>,
    /// What nobody needs, and still has to stay.
    pub(super) idle: BTreeSet<String>,
    /// How long it is until the node is not waited for any more.
    pub(super) wait: Option<Duration>,
}

/// Source: `reconcile`, `nodestatusupdater`. A node that attaches for itself is left alone. What one uses whose object is
/// gone nobody knows: its machine may still write, and it is waited for like one that is lost.
pub(super) fn plan_node(name: &str, node: Option<&Node>, parts: &[Part<'_>], now: Timestamp) -> NodePlan {
    let mut plan = NodePlan::default();
    if node.is_some_and(|node| !node.is_managed()) {
        return plan;
    }
    let in_use = node.map(|node| used_on(name, node));
    let uses = |id: &str| in_use.as_ref().is_none_or(|used| used.contains(id));
    let off = node.is_some_and(Node::is_out_of_service);
    let ill = node.is_none_or(|node| !node.is_healthy());
    for Part { id, held, .. } in parts.iter().filter(|part| !part.wanted && !is_ending(part.held)) {
        let left = left(held.idle_since.unwrap_or(now), UNMOUNT_TIMEOUT, now);
        let forced = off || ill && left.is_zero();
        if !uses(id) || forced {
            plan.detach.push(Detach { id: (*id).to_owned(), uid: held.uid.clone(), forced, off });
            continue;
        }
        plan.idle.insert((*id).to_owned());
        if ill {
            plan.wait = Some(plan.wait.map_or(left, |held| held.min(left)));
        }
    }
    plan.attached = node.and_then(|node| shown(name, node, parts, &plan.detach));
    plan
}

fn is_ending(held: &Held) -> bool {
    held.terminating || held.released
}

/// The attachments of the volumes that a node says it uses, by name.
pub(super) fn used_on(name: &str, node: &Node) -> HashSet<String> {
    let handles = node.status.volumes_in_use.iter().filter_map(|held| Handle::of_unique_name(held));
    handles.map(|held| held.attachment_on(name)).collect()
}

/// The volume whose attachment to a node has this name, where the node's status says that it is attached or used.
pub(super) fn said_by(node: &Node, name: &str, id: &str) -> Option<Handle> {
    let status = &node.status;
    let said = status.volumes_attached.iter().map(|held| &held.name).chain(&status.volumes_in_use);
    said.filter_map(|unique| Handle::of_unique_name(unique)).find(|handle| handle.attachment_on(name) == id)
}

/// What a node's status is to say, if it says something else: everything that is attached and stays. What is there keeps
/// its place.
fn shown(name: &str, node: &Node, parts: &[Part<'_>], detach: &[Detach]) -> Option<Vec<AttachedVolume>> {
    let status = &node.status;
    // A volume whose object is gone is still called so by its node.
    let said = status.volumes_attached.iter().map(|held| &held.name).chain(&status.volumes_in_use);
    let said: BTreeMap<String, &String> = said
        .filter_map(|unique| Some((Handle::of_unique_name(unique)?.attachment_on(name), unique)))
        .collect();
    let stays = |part: &&Part<'_>| {
        part.held.attached && !is_ending(part.held) && !detach.iter().any(|gone| gone.id == part.id)
    };
    let mut wanted: BTreeSet<String> = parts
        .iter()
        .filter(stays)
        .filter_map(|part| {
            let known = part.held.volume.as_ref().map(Handle::unique_name);
            known.or_else(|| said.get(part.id).map(|unique| (*unique).clone()))
        })
        .collect();
    let is_driven = |held: &AttachedVolume| Handle::of_unique_name(&held.name).is_some();
    let mut shown: Vec<AttachedVolume> = status
        .volumes_attached
        .iter()
        .filter(|held| wanted.remove(&held.name) || !is_driven(held))
        .cloned()
        .collect();
    shown.extend(wanted.into_iter().map(|name| AttachedVolume { name, device_path: String::new() }));
    (shown != status.volumes_attached).then_some(shown)
}

/// How much of a time that began then is left.
fn left(since: Timestamp, whole: Duration, now: Timestamp) -> Duration {
    let passed = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    whole.saturating_sub(passed)
}
