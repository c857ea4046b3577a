//! What reaches a pod worker from outside: only the newest of each, so that a busy worker costs no memory.

use std::sync::Arc;

use api::{Key, Object};
use parking_lot::Mutex;
use reconcile::Kind;
use tokio::sync::{Notify, watch};

use crate::eviction::Verdict;
use crate::resize::{Answer, Resized};
use crate::sources::References;
use crate::watched::Held;

/// The inbox of one worker.
#[derive(Default)]
pub(crate) struct Mailbox {
    letters: Mutex<Letters>,
    /// What the pod refers to, kept by the worker for those who deliver.
    interests: Mutex<Interests>,
    wake: Notify,
    /// Whether nothing of the pod runs any more, nor will.
    over: watch::Sender<bool>,
    /// Whether nothing of the pod is left.
    left: watch::Sender<bool>,
}

#[derive(Default)]
struct Interests {
    namespace: String,
    references: References,
    _held: Held,
}

/// What has arrived since the last look.
#[derive(Default)]
pub(crate) struct Letters {
    /// The pod's newest revision.
    pub(crate) pod: Option<Arc<Object>>,
    /// The pod is gone from the API.
    pub(crate) gone: bool,
    /// The pod's file is gone.
    pub(crate) withdrawn: bool,
    /// The API's copy of a pod of a file has come or changed, or has gone.
    pub(crate) mirror: Option<Option<Arc<Object>>>,
    /// Something that the pod refers to has changed.
    pub(crate) references: bool,
    /// The pod has to go for the sake of a critical one.
    pub(crate) preempted: bool,
    /// The pod has to go, for what it holds, for what the node is short of, or since the machine goes down.
    pub(crate) evicted: Option<Verdict>,
    /// What the door says to what the pod asks for now; of one that was granted, and one that was not, the newest.
    pub(crate) resized: Vec<Resized>,
}

impl Mailbox {
    pub(crate) fn deliver(&self, pod: Arc<Object>) {
        self.letters.lock().pod = Some(pod);
        self.wake.notify_one();
    }

    pub(crate) fn gone(&self) {
        self.letters.lock().gone = true;
        self.wake.notify_one();
    }

    /// The file of the pod is gone: it ends as one that was deleted.
    pub(crate) fn withdraw(&self) {
        self.letters.lock().withdrawn = true;
        self.wake.notify_one();
    }

    /// The API's copy of the pod of a file.
    pub(crate) fn mirror(&self, copy: Option<Arc<Object>>) {
        self.letters.lock().mirror = Some(copy);
        self.wake.notify_one();
    }

    /// The pod has to go for the sake of a critical one.
    pub(crate) fn preempt(&self) {
        self.letters.lock().preempted = true;
        self.wake.notify_one();
    }

    /// The pod has to go; told more than once, the least time counts.
    pub(crate) fn evict(&self, verdict: Verdict) {
        {
            let evicted = &mut self.letters.lock().evicted;
            if evicted.as_ref().is_none_or(|known| verdict.grace_seconds < known.grace_seconds) {
                *evicted = Some(verdict);
            }
        }
        self.wake.notify_one();
    }

    /// The door says something to what the pod asks for now.
    pub(crate) fn resized(&self, answer: Resized) {
        let is_granted = |known: &Resized| matches!(known.answer, Answer::Granted(_));
        {
            let resized = &mut self.letters.lock().resized;
            resized.retain(|known| is_granted(known) != is_granted(&answer));
            resized.push(answer);
        }
        self.wake.notify_one();
    }

    /// Nothing of the pod runs any more, nor will.
    pub(crate) fn is_over(&self) {
        self.over.send_replace(true);
    }

    /// Returns when nothing of the pod runs any more.
    pub(crate) async fn over(&self) {
        // The sender is this mailbox's own.
        let _ = self.over.subscribe().wait_for(|over| *over).await;
    }

    /// Nothing of the pod is left.
    pub(crate) fn has_left(&self) {
        self.left.send_replace(true);
    }

    /// Returns when nothing of the pod is left.
    pub(crate) async fn left(&self) {
        // The sender is this mailbox's own.
        let _ = self.left.subscribe().wait_for(|left| *left).await;
    }

    /// The runtime reported something about the pod.
    pub(crate) fn runtime_changed(&self) {
        self.wake.notify_one();
    }

    /// Says what the pod refers to, and keeps it watched.
    pub(crate) fn interested_in(&self, namespace: &str, references: References, held: Held) {
        *self.interests.lock() = Interests { namespace: namespace.to_owned(), references, _held: held };
    }

    /// An object that pods refer to has changed: of concern if the pod refers to it.
    pub(crate) fn reference_changed(&self, kind: &Kind, key: &Key) {
        let concerned = {
            let interests = self.interests.lock();
            let near = !kind.namespaced || interests.namespace == key.namespace;
            near && interests.references.contain(kind, &key.name)
        };
        if concerned {
            self.letters.lock().references = true;
            self.wake.notify_one();
        }
    }

    /// Somebody who serves volumes is there now.
    pub(crate) fn volumes_may_be_had(&self) {
        self.letters.lock().references = true;
        self.wake.notify_one();
    }

    /// Everything that has arrived.
    pub(crate) fn take(&self) -> Letters {
        std::mem::take(&mut *self.letters.lock())
    }

    /// Returns when something has arrived since the last wait. Cancel safe.
    pub(crate) async fn wait(&self) {
        self.wake.notified().await;
    }
}
