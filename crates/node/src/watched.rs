//! ConfigMaps, Secrets and claims that pods of this node refer to: one watch for each, as long as a pod refers to it. A node may
//! not see any others. ClusterTrustBundles everybody may see: one watch for all of them. So it is with the requests
//! for certificates that this node has made.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use api::{Key, Object};
use parking_lot::Mutex;
use reconcile::{Change, Informer, Informers, Kind, ObjectInformer, Registration, kinds};

use crate::sources::References;

/// Called with every change of a watched object.
type Listener = dyn Fn(&Kind, &Change) + Send + Sync;

/// The objects that are watched at present. They end with the last [`Held`] of each.
pub(crate) struct Watched {
    informers: Informers,
    /// Which of the requests for certificates of pods this node may see: its own.
    own: String,
    objects: Mutex<HashMap<(&'static str, Key), Weak<WatchedObject>>>,
    listener: Arc<Listener>,
}

/// One object that is watched, or all of a kind.
pub(crate) struct WatchedObject {
    informer: Informer,
    /// Ends the watch of one object.
    _one: Option<ObjectInformer>,
    _registration: Registration,
}

/// What one pod keeps watched.
pub(crate) type Held = Vec<Arc<WatchedObject>>;

impl Watched {
    /// Watches nothing yet. `listener` is called from the tasks that keep the caches: it must not block.
    pub(crate) fn new(
        informers: Informers,
        node_name: &str,
        listener: impl Fn(&Kind, &Change) + Send + Sync + 'static,
    ) -> Self {
        let own = format!("spec.nodeName={node_name}");
        Self { informers, own, objects: Mutex::default(), listener: Arc::new(listener) }
    }

    /// Watches what a pod of a namespace refers to.
    pub(crate) fn hold(&self, namespace: &str, references: &References) -> Held {
        let mut objects = self.objects.lock();
        objects.retain(|_, object| object.strong_count() > 0);
        let named = references.each().map(|(kind, name)| (kind, Key::new(namespace, name)));
        let bundles = references.trust_bundles.then(|| (kinds::CLUSTER_TRUST_BUNDLES, Key::default()));
        let requests = references.pod_certificates.then(|| (kinds::POD_CERTIFICATE_REQUESTS, Key::default()));
        let all = named.chain(bundles).chain(requests).map(|(kind, key)| {
            let slot = objects.entry((kind.resource, key.clone())).or_default();
            slot.upgrade().unwrap_or_else(|| {
                let object = Arc::new(self.watch(kind, &key));
                *slot = Arc::downgrade(&object);
                object
            })
        });
        all.collect()
    }

    /// Without a name all objects of the kind, as far as they are the node's to see.
    fn watch(&self, kind: Kind, key: &Key) -> WatchedObject {
        let one = (!key.name.is_empty()).then(|| self.informers.object(kind, key));
        let informer = match &one {
            Some(one) => Informer::clone(one),
            None if kind == kinds::POD_CERTIFICATE_REQUESTS => self.informers.selected(kind, &self.own),
            None => self.informers.get(kind),
        };
        let listener = self.listener.clone();
        let registration = informer.on_change(move |change| listener(&kind, change));
        WatchedObject { informer, _one: one, _registration: registration }
    }

    /// The object, where it is watched and there.
    pub(crate) fn get(&self, kind: &Kind, key: &Key) -> Option<Arc<Object>> {
        let watched = self.objects.lock().get(&(kind.resource, key.clone()))?.upgrade()?;
        watched.informer.get(key)
    }

    /// A request for a certificate of a pod of this node, where they are watched and it is there.
    pub(crate) fn pod_certificate_request(&self, key: &Key) -> Option<Arc<Object>> {
        let all = (kinds::POD_CERTIFICATE_REQUESTS.resource, Key::default());
        let watched = self.objects.lock().get(&all)?.upgrade()?;
        watched.informer.get(key)
    }

    /// Every ClusterTrustBundle, where they are watched and have been listed.
    pub(crate) fn trust_bundles(&self) -> Option<Vec<Arc<Object>>> {
        let key = (kinds::CLUSTER_TRUST_BUNDLES.resource, Key::default());
        let watched = self.objects.lock().get(&key)?.upgrade()?;
        watched.informer.is_synced().then(|| watched.informer.list())
    }
}
