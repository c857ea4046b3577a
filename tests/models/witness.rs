//! Sees every change of some resources, in the order in which the store made them.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{Key, ListOptions, Object, WatchEvent, WatchEventKind, WatchStream};
use client::Client;
use futures::{FutureExt, StreamExt};
use reconcile::kinds::Kind;
use serde_json::Value;

use crate::world::{World, home};

/// One change.
pub(crate) struct Seen {
    pub(crate) kind: &'static str,
    pub(crate) before: Option<Arc<Object>>,
    pub(crate) after: Option<Arc<Object>>,
}

impl Seen {
    fn print(&self) {
        let Some(object) = self.after.as_deref().or(self.before.as_deref()) else { return };
        let (what, mut held) = (if self.after.is_some() { "is" } else { "gone" }, value(object));
        held["metadata"]["managedFields"] = Value::Null;
        println!("TRACE {} {} {} {what} {held}", object.revision(), self.kind, object.key());
    }
}

/// What always has to hold, looked at after each change.
pub(crate) trait Rules {
    fn look(&mut self, witness: &Witness, seen: &Seen);
}

/// So many random steps while requests fail, each with its number.
pub(crate) async fn tell<R: Rules>(
    (world, witness, rules): (&mut World, &mut Witness, &mut R),
    steps: u32,
    mut step: impl AsyncFnMut(&mut World, &mut Witness, &mut R, u32),
) {
    world.faults.set(20);
    for number in 0..steps {
        step(world, witness, rules, number).await;
        witness.hold(rules).await;
    }
}

pub(crate) struct Witness {
    user: Client,
    everywhere: bool,
    streams: Vec<(Kind, WatchStream)>,
    objects: BTreeMap<(&'static str, Key), Arc<Object>>,
    /// Whether every change is printed: where `SKIFF_MODELS_TRACE` is set.
    traces: bool,
    /// Seen, but another stream may be behind.
    held: Vec<(&'static str, WatchEvent)>,
}

impl Witness {
    /// Sees all of these kinds from now on, in the namespace of the stories.
    pub(crate) async fn of(world: &World, kinds: &[Kind]) -> Self {
        Self::begin(world, kinds, false).await
    }

    /// The same in all namespaces.
    pub(crate) async fn everywhere(world: &World, kinds: &[Kind]) -> Self {
        Self::begin(world, kinds, true).await
    }

    async fn begin(world: &World, kinds: &[Kind], everywhere: bool) -> Self {
        let mut streams = Vec::new();
        for kind in kinds {
            let namespace = if everywhere { "" } else { home(kind) };
            let stream = world.user.watch(&kind.gvr(), namespace, ListOptions::default()).await.unwrap();
            streams.push((*kind, stream));
        }
        Self {
            user: world.user.clone(),
            everywhere,
            streams,
            objects: BTreeMap::new(),
            traces: std::env::var_os("SKIFF_MODELS_TRACE").is_some(),
            held: Vec::new(),
        }
    }

    /// Looks at what changed since the last look.
    pub(crate) async fn hold(&mut self, rules: &mut impl Rules) {
        self.catch_up(|witness, seen| rules.look(witness, seen)).await;
    }

    /// What changed since the last look; `look` is called after each change, when the state is as it was then.
    pub(crate) async fn catch_up(&mut self, mut look: impl FnMut(&Self, &Seen)) {
        let shown = self.shown().await;
        for (kind, stream) in &mut self.streams {
            while let Some(Some(batch)) = stream.next().now_or_never() {
                self.held.extend(batch.unwrap().into_iter().map(|event| (kind.kind, event)));
            }
        }
        self.held.sort_by_key(|(_, event)| event.object.revision());
        let known = self.held.partition_point(|(_, event)| event.object.revision() <= shown);
        let later = self.held.split_off(known);
        for (kind, event) in std::mem::replace(&mut self.held, later) {
            let place = (kind, event.object.key());
            let seen = match event.kind {
                WatchEventKind::Bookmark => continue,
                WatchEventKind::Deleted => Seen { kind, before: self.objects.remove(&place), after: None },
                _ => {
                    let before = self.objects.insert(place, event.object.clone());
                    Seen { kind, before, after: Some(event.object) }
                }
            };
            if self.traces {
                seen.print();
            }
            look(self, &seen);
        }
    }

    /// The revision that all streams have shown: whoever lists waits until what was written before is in the watch cache,
    /// and so with its watchers.
    async fn shown(&self) -> i64 {
        let nobody = ListOptions { field_selector: "metadata.name=nobody".into(), ..ListOptions::default() };
        let mut shown = i64::MAX;
        for (kind, _) in &self.streams {
            let namespace = if self.everywhere { "" } else { home(kind) };
            let list = self.user.list(&kind.gvr(), namespace, nobody.clone()).await.unwrap();
            shown = shown.min(list.revision);
        }
        tokio::task::yield_now().await;
        shown
    }

    /// All objects of a kind.
    pub(crate) fn all(&self, kind: &'static str) -> impl Iterator<Item = &Arc<Object>> {
        self.objects.iter().filter(move |((held, _), _)| *held == kind).map(|(_, object)| object)
    }

    /// All objects of a kind that this object controls.
    pub(crate) fn owned(&self, kind: &'static str, uid: &str) -> impl Iterator<Item = &Arc<Object>> {
        self.all(kind).filter(move |object| object.meta().controller().is_some_and(|owner| owner.uid == uid))
    }
}

/// An object's content.
pub(crate) fn value(object: &Object) -> Value {
    object.decode().unwrap()
}

/// Neither finished nor being deleted.
pub(crate) fn is_active(pod: &Object) -> bool {
    let phase = &value(pod)["status"]["phase"];
    !pod.meta().is_terminating() && phase != "Succeeded" && phase != "Failed"
}

/// Whether a condition of an object is true.
pub(crate) fn condition(object: &Object, name: &str) -> bool {
    let value = value(object);
    let conditions = value["status"]["conditions"].as_array();
    conditions.is_some_and(|held| held.iter().any(|one| one["type"] == name && one["status"] == "True"))
}
