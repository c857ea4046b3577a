//! What volumes hold that others keep (drivers, servers, disks), for the summary and for figures. What was told counts for
//! a minute, as upstream's period has it; who asks waits a moment for what is due and takes what is known then. A volume is
//! asked about once at a time: one whose driver or server hangs holds up nobody, and is left out.
//! Source: `volume_stat_calculator.go`, `collectors/volume_stats.go` of `pkg/kubelet`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::Key;
use base::lifecycle::Tasks;
use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use reconcile::EventType;
use serde_json::{Value, json};

use super::text::{family, sample};
use crate::deps::{Deps, blocking};
use crate::pod::PodView;
use crate::volumes::stats::{Amounts, Question, ask, questions};
use crate::volumes::threads::Threads;

/// Source: upstream's `volumeStatsAggPeriod`.
const FRESH: SignedDuration = SignedDuration::from_secs(60);
/// What nobody asks for any more is forgotten after so long.
const KEPT: SignedDuration = SignedDuration::from_mins(5);
/// How long somebody waits for what is due.
const PATIENCE: Duration = Duration::from_secs(1);
/// Threads that look at file systems: those of servers that are away take none from the mounting of volumes.
const THREADS_MAX: usize = 16;
const THREAD_PATIENCE: Duration = Duration::from_secs(20);

/// A pod's uid, and its name of a volume.
type Name = (String, String);

/// What was told.
pub(super) struct VolumeUse {
    known: Mutex<HashMap<Name, Known>>,
    threads: Threads,
}

#[derive(Debug, Default)]
struct Known {
    /// When somebody was last asked, if ever.
    asked: Option<Timestamp>,
    /// When it was last of interest.
    wanted: Timestamp,
    /// The answer is awaited.
    busy: bool,
    told: Option<(Timestamp, Amounts)>,
}

/// What is known of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) uid: String,
    namespace: String,
    volume: String,
    claim: Option<String>,
    at: Timestamp,
    amounts: Amounts,
}

/// A question and whose it is.
#[derive(Clone)]
struct Asked {
    uid: String,
    pod: Key,
    question: Question,
}

impl Asked {
    fn name(&self) -> Name {
        (self.uid.clone(), self.question.volume.clone())
    }
}

impl Default for VolumeUse {
    fn default() -> Self {
        Self { known: Mutex::default(), threads: Threads::new(THREADS_MAX, THREAD_PATIENCE) }
    }
}

impl VolumeUse {
    /// What is known of the volumes of pods, after those that are due had a moment to tell.
    pub(super) async fn of<'p>(
        self: &Arc<Self>,
        deps: &Arc<Deps>,
        tasks: &Tasks,
        pods: impl Iterator<Item = &'p PodView>,
    ) -> Vec<Told> {
        let with_any = pods.filter(|pod| pod.spec.volumes.iter().flatten().any(may_be_asked));
        let pods: Vec<PodView> = with_any.cloned().collect();
        if pods.is_empty() {
            return Vec::new();
        }
        let of = deps.clone();
        let asked = blocking(move || all_questions(&of, &pods)).await.unwrap_or_default();
        let due = self.due(&asked, deps.now());
        let answers = due.into_iter().map(|asked| {
            let (own, deps) = (self.clone(), deps.clone());
            tasks.spawn(async move { own.answer(&deps, &asked).await })
        });
        // They go on without whoever has no more patience.
        let _ = tokio::time::timeout(PATIENCE, join_all(answers)).await;
        self.told(&asked)
    }

    /// Those that nothing is known of, or nothing new, and nobody waits for; from now on somebody does.
    fn due(&self, asked: &[Asked], now: Timestamp) -> Vec<Asked> {
        let mut all = self.known.lock();
        let is_due = |asked: &&Asked| {
            let known = all.entry(asked.name()).or_default();
            known.wanted = now;
            let due = known.asked.is_none_or(|before| now.duration_since(before).abs() >= FRESH);
            if !due || known.busy {
                return false;
            }
            (known.busy, known.asked) = (true, Some(now));
            true
        };
        let due = asked.iter().filter(is_due).cloned().collect();
        all.retain(|_, known| known.busy || now.duration_since(known.wanted).abs() < KEPT);
        due
    }

    async fn answer(&self, deps: &Deps, asked: &Asked) {
        let told = ask(deps, &self.threads, asked.name(), &asked.question.teller).await;
        let unwell = self.keep(&asked.name(), told, deps.now());
        if let Some(message) = unwell
            && let Some(pod) = deps.caches.pods.get(&asked.pod).and_then(|pod| PodView::decode(&pod).ok())
        {
            let message = format!("Volume {}: {message}", asked.question.volume);
            deps.event(&pod, None, EventType::Warning, "VolumeConditionAbnormal", message);
        }
    }

    /// Keeps an answer; what was told before counts no more where nothing was told now. Returns what is wrong with the
    /// volume, if that is news.
    fn keep(&self, name: &Name, told: Option<Amounts>, now: Timestamp) -> Option<String> {
        let mut all = self.known.lock();
        let known = all.get_mut(name)?;
        known.busy = false;
        let unwell = |amounts: &Amounts| {
            amounts.condition.as_ref().filter(|one| one.abnormal).map(|one| one.message.clone())
        };
        let before = known.told.as_ref().and_then(|(_, amounts)| unwell(amounts));
        let news = told.as_ref().and_then(unwell).filter(|message| Some(message) != before.as_ref());
        known.told = told.map(|amounts| (now, amounts));
        news
    }

    fn told(&self, asked: &[Asked]) -> Vec<Told> {
        let all = self.known.lock();
        let told = asked.iter().filter_map(|asked| {
            let (at, amounts) = all.get(&asked.name())?.told.clone()?;
            Some(Told {
                uid: asked.uid.clone(),
                namespace: asked.pod.namespace.clone(),
                volume: asked.question.volume.clone(),
                claim: asked.question.claim.clone(),
                at,
                amounts,
            })
        });
        told.collect()
    }
}

/// Whether a volume may be one that others keep; the ledger of the pod tells.
fn may_be_asked(volume: &k8s_openapi::api::core::v1::Volume) -> bool {
    volume.csi.is_some()
        || volume.nfs.is_some()
        || volume.persistent_volume_claim.is_some()
        || volume.ephemeral.is_some()
}

/// Blocks.
fn all_questions(deps: &Deps, pods: &[PodView]) -> Vec<Asked> {
    let of_pod = |pod: &PodView| {
        let (uid, key) = (deps.runs_as(pod), pod.key());
        let directories = deps.directories(&uid);
        let asked = questions(pod, &directories).into_iter();
        asked.map(move |question| Asked { uid: uid.clone(), pod: key.clone(), question }).collect::<Vec<_>>()
    };
    pods.iter().flat_map(of_pod).collect()
}

impl Told {
    /// As the summary has it. Shape: upstream's `stats/v1alpha1.VolumeStats`.
    pub(super) fn shown(&self) -> Value {
        let Amounts { bytes, inodes, condition } = &self.amounts;
        let claim = self.claim.as_ref().map(|name| json!({ "name": name, "namespace": self.namespace }));
        let health = condition.as_ref().map(|condition| json!({ "abnormal": condition.abnormal }));
        let mut shown = json!({
            "time": reconcile::time::seconds(self.at), "availableBytes": bytes.left,
            "capacityBytes": bytes.all, "usedBytes": bytes.used, "inodesFree": inodes.left,
            "inodes": inodes.all, "inodesUsed": inodes.used, "name": self.volume, "pvcRef": claim,
            "volumeHealthStats": health,
        });
        super::summary::without_null(&mut shown);
        shown
    }
}

/// A metric of claims: name, what it says, and its value.
type ClaimMetric = (&'static str, &'static str, fn(&Amounts) -> Option<u64>);

const METRICS: [ClaimMetric; 7] = [
    ("kubelet_volume_stats_capacity_bytes", "Capacity in bytes of the volume", |told| told.bytes.all),
    ("kubelet_volume_stats_available_bytes", "Number of available bytes in the volume", |told| {
        told.bytes.left
    }),
    ("kubelet_volume_stats_used_bytes", "Number of used bytes in the volume", |told| told.bytes.used),
    ("kubelet_volume_stats_inodes", "Maximum number of inodes in the volume", |told| told.inodes.all),
    ("kubelet_volume_stats_inodes_free", "Number of free inodes in the volume", |told| told.inodes.left),
    ("kubelet_volume_stats_inodes_used", "Number of used inodes in the volume", |told| told.inodes.used),
    (
        "kubelet_volume_stats_health_status_abnormal",
        "Abnormal volume health status. The count is either 1 or 0. 1 indicates the volume is unhealthy, 0 indicates volume is healthy",
        |told| told.condition.as_ref().map(|condition| u64::from(condition.abnormal)),
    ),
];

/// The figures of claims, each claim once however many pods have it.
pub(super) fn metrics(text: &mut String, told: &[Told]) {
    let mut of_claims: Vec<(&str, &str, &Amounts)> = told
        .iter()
        .filter_map(|told| Some((&*told.namespace, told.claim.as_deref()?, &told.amounts)))
        .collect();
    of_claims.sort_by_key(|(namespace, claim, _)| (*namespace, *claim));
    of_claims.dedup_by_key(|(namespace, claim, _)| (*namespace, *claim));
    for (name, help, value) in METRICS {
        let values = of_claims.iter().filter_map(|(namespace, claim, told)| {
            value(told).map(|value| ([("namespace", *namespace), ("persistentvolumeclaim", *claim)], value))
        });
        let mut values = values.peekable();
        if values.peek().is_some() {
            family(text, name, "gauge", help);
        }
        for (labels, value) in values {
            sample(text, name, &labels, value, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::stats::{Condition, Share, Teller};

    fn asked(uid: &str, claim: Option<&str>) -> Asked {
        let teller = Teller::FileSystem(Vec::new());
        let question = Question { volume: "data".to_owned(), claim: claim.map(str::to_owned), teller };
        Asked { uid: uid.to_owned(), pod: Key::new("ns", "p"), question }
    }

    fn amounts(abnormal: bool) -> Amounts {
        Amounts {
            bytes: Share { all: Some(10), used: Some(4), left: None },
            inodes: Share::default(),
            condition: Some(Condition { abnormal, message: "the disk is gone".to_owned() }),
        }
    }

    #[test]
    fn an_answer_counts_for_a_minute_and_a_hanging_one_is_waited_for_once() {
        let known = VolumeUse::default();
        let at = |second| Timestamp::from_second(second).unwrap();
        let one = [asked("u1", Some("c"))];
        let due = |second| known.due(&one, at(second)).len();
        assert_eq!((due(0), due(1), due(100)), (1, 0, 0), "it is under way");
        assert!(known.told(&one).is_empty());
        assert_eq!(known.keep(&one[0].name(), Some(amounts(false)), at(101)), None);
        assert_eq!(known.told(&one)[0].at, at(101));
        assert_eq!(due(102), 1, "the answer was asked for long ago");
        let unwell = known.keep(&one[0].name(), Some(amounts(true)), at(103));
        assert_eq!(unwell.as_deref(), Some("the disk is gone"));
        assert_eq!((due(104), due(162)), (0, 1));
        assert_eq!(known.keep(&one[0].name(), Some(amounts(true)), at(163)), None, "that is no news");
        // Who tells nothing any more has told nothing.
        assert_eq!(due(300), 1);
        known.keep(&one[0].name(), None, at(301));
        assert!(known.told(&one).is_empty());
        // What nobody wants is forgotten, but for what is under way.
        assert_eq!(due(400), 1);
        assert!(known.due(&[], at(4000)).is_empty());
        assert_eq!(known.known.lock().len(), 1);
        known.keep(&one[0].name(), None, at(4001));
        known.due(&[], at(4002));
        assert!(known.known.lock().is_empty());
    }

    #[test]
    fn a_claim_is_shown_once_with_what_is_told_of_it() {
        let told = |uid: &str, claim: Option<&str>| Told {
            uid: uid.to_owned(),
            namespace: "ns".to_owned(),
            volume: "data".to_owned(),
            claim: claim.map(str::to_owned),
            at: Timestamp::UNIX_EPOCH,
            amounts: amounts(true),
        };
        let shown = told("u1", Some("c")).shown();
        let wanted = json!({ "time": "1970-01-01T00:00:00Z", "capacityBytes": 10, "usedBytes": 4, "name": "data",
            "pvcRef": { "name": "c", "namespace": "ns" }, "volumeHealthStats": { "abnormal": true } });
        assert_eq!(shown, wanted);
        let mut text = String::new();
        metrics(&mut text, &[told("u1", Some("c")), told("u2", Some("c")), told("u3", None)]);
        let line = "kubelet_volume_stats_capacity_bytes{namespace=\"ns\",persistentvolumeclaim=\"c\"} 10\n";
        assert_eq!(text.matches(line).count(), 1, "{text}");
        assert!(text.contains("kubelet_volume_stats_health_status_abnormal{"), "{text}");
        assert!(!text.contains("kubelet_volume_stats_inodes"), "{text}");
    }
}
