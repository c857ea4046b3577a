//! What has to be written so that the slices of a Service say who serves: a hundred endpoints each, changed as little as
//! possible, since every node reads every change. Pure. Source: `k8s.io/endpointslice`, `Reconciler`.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use jiff::Timestamp;
use reconcile::kinds;
use serde_json::{Value, json};

use super::hints;
use super::topology::{self, Counts, Note, Ratios};
use super::trigger;
use super::types::{
    Conditions, Endpoint, HEADLESS, Identity, MANAGED_BY, Port, SERVICE_NAME, Service, Slice, address,
    sorted, target_ref,
};
use crate::context::controller_ref;
use crate::pods::Pod;

/// The value of [`MANAGED_BY`] on slices that this controller keeps; others are left alone.
pub(super) const MANAGER: &str = "endpointslice-controller.k8s.io";
/// Source: `--max-endpoints-per-slice`.
const PER_SLICE: usize = 100;
/// Labels that are this controller's own: a Service's are not copied, and nothing is written for their sake.
const RESERVED: [&str; 3] = [SERVICE_NAME, MANAGED_BY, HEADLESS];

/// One write.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    Create(Value),
    Patch { name: String, patch: Value },
    Delete { name: String },
}

impl Step {
    /// What it is to those who count.
    pub(super) fn operation(&self) -> &'static str {
        match self {
            Self::Create(_) => "create",
            Self::Patch { .. } => "update",
            Self::Delete { .. } => "delete",
        }
    }
}

/// A node of a pod.
#[derive(Debug, Clone, Default)]
pub(super) struct Place {
    /// Its zone, if it says one.
    pub(super) zone: Option<String>,
}

/// What is known of a Service when it is looked at.
pub(super) struct Known<'a> {
    pub(super) service: &'a Service,
    /// Those that it selects.
    pub(super) pods: &'a [Pod],
    /// Those that this controller keeps for it.
    pub(super) slices: Vec<Slice>,
    /// The oldest change that they do not tell of yet.
    pub(super) trigger: Option<Timestamp>,
    /// The zones' shares of the cluster's processors, where every node tells.
    pub(super) ratios: Option<&'a Ratios>,
    /// Whether its endpoints have been shared out among zones.
    pub(super) hinted: bool,
}

/// What is to be done, and what there is to tell of it.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) steps: Vec<Step>,
    /// Why pods were left out that are to be looked at once more.
    pub(super) stray: Vec<String>,
    /// Endpoints that came and went.
    pub(super) added: usize,
    pub(super) removed: usize,
    /// Endpoints, slices, and how few slices would do.
    pub(super) endpoints: usize,
    pub(super) slices: usize,
    pub(super) ideal: usize,
    /// How many endpoints each zone is to use, by family, where endpoints are shared out among zones.
    pub(super) zones: BTreeMap<&'static str, Counts>,
    /// Whether they are.
    pub(super) hinted: bool,
    /// Events of the Service.
    pub(super) notes: Vec<Note>,
}

/// A slice as it is to be.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    /// The one that it is written over; none: it is new.
    held: Option<Slice>,
    ports: Vec<Port>,
    pub(super) endpoints: Vec<Endpoint>,
}

impl Draft {
    /// A slice that is held, to be changed.
    pub(super) fn of(slice: Slice) -> Self {
        Self { ports: slice.ports.clone(), endpoints: slice.endpoints.clone(), held: Some(slice) }
    }

    fn fill(&mut self, rest: &mut Vec<Endpoint>) {
        let room = PER_SLICE.saturating_sub(self.endpoints.len()).min(rest.len());
        self.endpoints.extend(rest.drain(..room));
    }
}

/// The slices of a family on their way.
#[derive(Debug, Default)]
pub(super) struct Drafts {
    pub(super) create: Vec<Draft>,
    pub(super) update: Vec<Draft>,
    pub(super) same: Vec<Slice>,
    delete: Vec<Slice>,
    added: usize,
    removed: usize,
}

impl Drafts {
    fn join(&mut self, other: Self) {
        self.create.extend(other.create);
        self.update.extend(other.update);
        self.same.extend(other.same);
        self.delete.extend(other.delete);
        self.added += other.added;
        self.removed += other.removed;
    }

    /// What is written in any case.
    pub(super) fn written(&mut self) -> impl Iterator<Item = &mut Draft> {
        self.create.iter_mut().chain(&mut self.update)
    }

    /// Has those of the unchanged ones written too that are `wrong`.
    pub(super) fn rewrite(&mut self, wrong: impl FnMut(&Slice) -> bool) {
        let mut wrong = wrong;
        let (wrong, same): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.same).into_iter().partition(|slice| wrong(slice));
        self.same = same;
        self.update.extend(wrong.into_iter().map(Draft::of));
    }

    /// How many slices there will be.
    fn len(&self) -> usize {
        self.create.len() + self.update.len() + self.same.len()
    }

    /// Writes new slices over those that would go: fewer changes for those who watch. Slices of an older Service of the
    /// same name are not touched, somebody else deletes them too.
    fn recycle(&mut self, service: &Service) {
        let (ours, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.delete).into_iter().partition(|slice| is_owned(slice, service));
        self.delete = others;
        for slice in ours {
            match self.create.pop() {
                Some(draft) => self.update.push(Draft { held: Some(slice), ..draft }),
                None => self.delete.push(slice),
            }
        }
    }
}

/// Endpoints with equal ports: the ports in the Service's order, and who has them.
type Groups = BTreeMap<Vec<Port>, (Vec<Port>, BTreeMap<Identity, Endpoint>)>;

/// What has to be written. `place` finds a node by its name.
pub(super) fn plan(known: Known<'_>, place: impl Fn(&str) -> Option<Place>) -> Outcome {
    let Known { service, pods, slices, trigger, ratios, hinted } = known;
    let mut held: BTreeMap<&'static str, Vec<Slice>> =
        service.families().into_iter().map(|family| (family, Vec::new())).collect();
    let mut out = Outcome { hinted, ..Outcome::default() };
    let mut gone: Vec<Slice> = Vec::new();
    for slice in slices {
        match held.get_mut(slice.address_type.as_str()) {
            Some(slices) => slices.push(slice),
            None => gone.push(slice),
        }
    }
    let writer = Writer { service, labels: labels(service), trigger };
    for (family, slices) in held {
        let groups = desired(service, pods, family, &place, &mut out.stray);
        out.endpoints += groups.values().map(|(_, endpoints)| endpoints.len()).sum::<usize>();
        out.ideal += groups.values().map(|(_, endpoints)| endpoints.len().div_ceil(PER_SLICE)).sum::<usize>();
        let mut drafts = writer.drafts(groups, slices);
        hint(service, family, ratios, &mut drafts, &mut out);
        out.slices += drafts.len();
        out.added += drafts.added;
        out.removed += drafts.removed;
        drafts.recycle(service);
        out.steps.extend(writer.steps(family, drafts, &mut gone));
    }
    // There is always one.
    out.ideal = out.ideal.max(1);
    out.stray.sort();
    out.stray.dedup();
    out.steps.extend(gone.into_iter().map(|slice| Step::Delete { name: slice.metadata.name }));
    out
}

/// Says in the slices of a family who should use which endpoint. What the annotation says comes before the field.
fn hint(
    service: &Service,
    family: &'static str,
    ratios: Option<&Ratios>,
    drafts: &mut Drafts,
    out: &mut Outcome,
) {
    if topology::is_wanted(service) {
        match topology::share(drafts, ratios) {
            Ok(counts) => {
                out.zones.insert(family, counts);
                if !std::mem::replace(&mut out.hinted, true) {
                    out.notes.push(topology::enabled(family));
                }
            }
            Err(why) => {
                out.notes.push(topology::disabled(&why, family));
                out.hinted = false;
                hints::remove(drafts);
            }
        }
        return;
    }
    if std::mem::take(&mut out.hinted) {
        out.notes.push(topology::disabled("Topology Aware Hints has been disabled", family));
    }
    match hints::Distribution::of(service) {
        Some(distribution) => hints::give(drafts, distribution),
        None => hints::remove(drafts),
    }
}

/// The labels of slices: the Service's, and those that are the controller's.
fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = without_reserved(&service.metadata.labels);
    labels.insert(SERVICE_NAME.into(), service.metadata.name.clone());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if !service.has_address() {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels
}

fn without_reserved(labels: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let free = labels.iter().filter(|(name, _)| !RESERVED.contains(&name.as_str()));
    free.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Whether a slice is of this Service and not of an older one of its name.
fn is_owned(slice: &Slice, service: &Service) -> bool {
    slice.metadata.owner_references.iter().any(|owner| {
        owner.uid == service.metadata.uid && owner.kind == "Service" && owner.api_version == "v1"
    })
}

fn desired(
    service: &Service,
    pods: &[Pod],
    family: &str,
    place: &impl Fn(&str) -> Option<Place>,
    stray: &mut Vec<String>,
) -> Groups {
    let mut groups = Groups::new();
    let addressed = |pod: &&Pod| !pod.status.pod_ip.is_empty() || !pod.status.pod_ips.is_empty();
    for pod in pods.iter().filter(|pod| !pod.is_finished()).filter(addressed) {
        let ports = service.ports_of(pod);
        let (_, group) = groups.entry(sorted(&ports)).or_insert_with(|| (ports, BTreeMap::new()));
        let found = place(&pod.spec.node_name);
        if found.is_none() && !service.spec.publish_not_ready_addresses {
            let (own, of) = (&pod.metadata, &service.metadata);
            stray.push(format!(
                "skipping Pod {} for Service {}/{}: Node {} Not Found",
                own.name, of.namespace, of.name, pod.spec.node_name
            ));
            continue;
        }
        if let Some(address) = address(pod, family) {
            let endpoint = endpoint(service, pod, address, found.unwrap_or_default());
            group.insert(endpoint.identity(), endpoint);
        }
    }
    groups
}

fn endpoint(service: &Service, pod: &Pod, address: String, place: Place) -> Endpoint {
    let (serving, terminating) = (pod.is_ready(), pod.metadata.is_terminating());
    let ready = service.spec.publish_not_ready_addresses || (serving && !terminating);
    Endpoint {
        addresses: vec![address],
        conditions: Conditions { ready: Some(ready), serving: Some(serving), terminating: Some(terminating) },
        hostname: service.hostname_of(pod),
        node_name: Some(pod.spec.node_name.clone()).filter(|node| !node.is_empty()),
        target_ref: Some(target_ref(pod)),
        zone: place.zone,
        hints: None,
    }
}

/// How the slices of one Service are written.
struct Writer<'a> {
    service: &'a Service,
    labels: BTreeMap<String, String>,
    trigger: Option<Timestamp>,
}

impl Writer<'_> {
    /// The slices of a family, without hints.
    fn drafts(&self, groups: Groups, slices: Vec<Slice>) -> Drafts {
        let before = slices.len();
        let mut drafts = Drafts::default();
        let mut held: BTreeMap<Vec<Port>, Vec<Slice>> = BTreeMap::new();
        for slice in slices {
            if is_owned(&slice, self.service) {
                held.entry(sorted(&slice.ports)).or_default().push(slice);
            } else {
                drafts.delete.push(slice);
            }
        }
        for (key, (ports, wanted)) in groups {
            drafts.join(self.pack(&ports, wanted, held.remove(&key).unwrap_or_default()));
        }
        drafts.delete.extend(held.into_values().flatten());
        // A Service that nobody serves has an empty slice, which says so.
        if before == drafts.delete.len() && drafts.create.is_empty() {
            match &drafts.delete[..] {
                [only] if self.is_placeholder(only) => drafts.same.append(&mut drafts.delete),
                _ => drafts.create.push(Draft { held: None, ports: Vec::new(), endpoints: Vec::new() }),
            }
        }
        drafts
    }

    fn is_placeholder(&self, slice: &Slice) -> bool {
        slice.ports.is_empty() && slice.endpoints.is_empty() && slice.metadata.labels == self.labels
    }

    /// Endpoints with equal ports over the slices that hold such. Source: `reconcileByPortMapping`.
    fn pack(&self, ports: &[Port], wanted: BTreeMap<Identity, Endpoint>, held: Vec<Slice>) -> Drafts {
        let mut drafts = Drafts::default();
        let mut wanted = wanted;
        let own = without_reserved(&self.labels);
        for slice in held {
            // What is held stays where it is, in its newest form.
            let pairs: Vec<_> = slice
                .endpoints
                .iter()
                .filter_map(|old| wanted.remove(&old.identity()).map(|new| (old, new)))
                .collect();
            let removed = slice.endpoints.len() - pairs.len();
            let differs = removed > 0 || pairs.iter().any(|(old, new)| !new.says_as(old));
            let kept: Vec<Endpoint> = pairs.into_iter().map(|(_, new)| new).collect();
            drafts.removed += removed;
            if differs && kept.is_empty() {
                drafts.delete.push(slice);
            } else if differs {
                drafts.update.push(Draft { endpoints: kept, ..Draft::of(slice) });
            } else if without_reserved(&slice.metadata.labels) != own {
                drafts.update.push(Draft::of(slice));
            } else {
                drafts.same.push(slice);
            }
        }
        drafts.added = wanted.len();
        let mut rest: Vec<Endpoint> = wanted.into_values().collect();
        rest.sort_by(|a, b| a.target_ref.cmp(&b.target_ref));
        // Slices that are written anyway take new endpoints first, the fullest before the others.
        drafts.update.sort_by_key(|draft| Reverse(draft.endpoints.len()));
        drafts.update.iter_mut().for_each(|draft| draft.fill(&mut rest));
        while !rest.is_empty() {
            if let Some(fits) = tightest(&drafts.same, rest.len()) {
                let mut draft = Draft::of(drafts.same.remove(fits));
                draft.fill(&mut rest);
                drafts.update.push(draft);
            } else {
                let mut draft = Draft { held: None, ports: ports.to_vec(), endpoints: Vec::new() };
                draft.fill(&mut rest);
                drafts.create.push(draft);
            }
        }
        drafts
    }

    /// What is written, but for the deletions, which come last: nothing vanishes before what replaces it is there.
    fn steps(&self, family: &str, drafts: Drafts, gone: &mut Vec<Slice>) -> Vec<Step> {
        gone.extend(drafts.delete);
        // The garbage collector removes what is there; it must not meet more.
        let made = drafts.create.iter().filter(|_| !self.service.metadata.is_terminating());
        let mut steps: Vec<Step> = made.map(|draft| Step::Create(self.body(family, draft))).collect();
        steps.extend(drafts.update.into_iter().filter_map(|draft| self.patch(draft)));
        steps
    }

    fn patch(&self, draft: Draft) -> Option<Step> {
        let slice = draft.held?;
        let mut meta = json!({
            "labels": trigger::changes(&slice.metadata.labels, &self.labels),
            "resourceVersion": slice.metadata.resource_version,
        });
        if let Some(annotations) = trigger::annotations(self.trigger, &slice.metadata.annotations) {
            meta["annotations"] = annotations;
        }
        let mut patch = json!({ "metadata": meta, "endpoints": draft.endpoints });
        if draft.ports != slice.ports {
            patch["ports"] = json!(draft.ports);
        }
        Some(Step::Patch { name: slice.metadata.name, patch })
    }

    fn body(&self, family: &str, draft: &Draft) -> Value {
        let meta = &self.service.metadata;
        let mut body = json!({
            "apiVersion": kinds::ENDPOINT_SLICES.api_version(), "kind": kinds::ENDPOINT_SLICES.kind,
            "metadata": {
                "generateName": format!("{}-", meta.name), "namespace": meta.namespace, "labels": self.labels,
                "ownerReferences": [controller_ref(&kinds::SERVICES, meta)],
            },
            "addressType": family, "ports": draft.ports, "endpoints": draft.endpoints,
        });
        if let Some(annotations) = trigger::annotations(self.trigger, &BTreeMap::new()) {
            body["metadata"]["annotations"] = annotations;
        }
        body
    }
}

/// The unchanged slice that is fullest once it has taken `count` endpoints, if all fit. Source: `getSliceToFill`.
fn tightest(slices: &[Slice], count: usize) -> Option<usize> {
    let room = |slice: &Slice| PER_SLICE.checked_sub(count + slice.endpoints.len());
    let fits = |(at, slice): (usize, &Slice)| room(slice).map(|left| (left, at));
    slices.iter().enumerate().filter_map(fits).min().filter(|_| count < PER_SLICE).map(|(_, at)| at)
}
