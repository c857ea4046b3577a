//! Sees every change of some resources, in the order in which the store made them.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{Key, ListOptions, Object, WatchEvent, WatchEventKind, WatchStream};
use futures::{FutureExt, StreamExt};
use reconcile::kinds::Kind;
use serde_json::Value;

use crate::world::{NAMESPACE, World};

/// One change.
pub(crate) struct Seen {
    pub(crate) kind: &'static str,
    pub(crate) before: Option<Arc<Object>>,
    pub(crate) after: Option<Arc<Object>>,
}

pub(crate) struct Witness {
    streams: Vec<(&'static str, WatchStream)>,
    objects: BTreeMap<(&'static str, Key), Arc<Object>>,
}

impl Witness {
    /// Sees all of these kinds from now on.
    pub(crate) async fn of(world: &World, kinds: &[Kind]) -> Self {
        let mut streams = Vec::new();
        for kind in kinds {
            let stream = world.user.watch(&kind.gvr(), NAMESPACE, ListOptions::default()).await.unwrap();
            streams.push((kind.kind, stream));
        }
        Self { streams, objects: BTreeMap::new() }
    }

    /// What changed since the last look; `look` is called after each change, when the state is as it was then.
    pub(crate) fn catch_up(&mut self, mut look: impl FnMut(&Self, &Seen)) {
        let mut news: Vec<(&'static str, WatchEvent)> = Vec::new();
        for (kind, stream) in &mut self.streams {
            while let Some(Some(batch)) = stream.next().now_or_never() {
                news.extend(batch.unwrap().into_iter().map(|event| (*kind, event)));
            }
        }
        news.sort_by_key(|(_, event)| event.object.revision());
        for (kind, event) in news {
            let place = (kind, event.object.key());
            let seen = match event.kind {
                WatchEventKind::Bookmark => continue,
                WatchEventKind::Deleted => Seen { kind, before: self.objects.remove(&place), after: None },
                _ => {
                    let before = self.objects.insert(place, event.object.clone());
                    Seen { kind, before, after: Some(event.object) }
                }
            };
            look(self, &seen);
        }
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
