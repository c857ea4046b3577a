//! Services and their endpoint slices as the API server has them, joined: what proxy and drain read.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use api::{Key, Object};
use reconcile::Change;
use serde::de::DeserializeOwned;

use crate::objects::{EndpointSlice, SERVICE_NAME_LABEL, Service};

/// A Service with its slices, either of which may be absent.
#[derive(Debug, Clone, Default)]
pub struct Entry {
    /// The Service.
    pub service: Option<Arc<Service>>,
    /// Its slices by name.
    pub slices: BTreeMap<String, Arc<EndpointSlice>>,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Catalog {
    entries: HashMap<Key, Entry>,
    /// Slices that name an address: whether a pod is behind a Service.
    by_endpoint: HashMap<Ipv4Addr, BTreeSet<(Key, String)>>,
}

impl Catalog {
    /// Takes changes of Services in; gives the keys whose entry changed.
    pub fn services_changed(&mut self, changes: &[Change]) -> BTreeSet<Key> {
        changes
            .iter()
            .map(|change| {
                self.set_service(&change.key, change.new.as_ref().and_then(decode).map(Arc::new));
                change.key.clone()
            })
            .collect()
    }

    /// Takes changes of endpoint slices in; gives the keys of the Services whose entry changed.
    pub fn slices_changed(&mut self, changes: &[Change]) -> BTreeSet<Key> {
        let mut touched = BTreeSet::new();
        for change in changes {
            let (old, new) = (change.old.as_ref().and_then(owner), change.new.as_ref().and_then(owner));
            if let Some(old) = old.filter(|old| Some(old) != new.as_ref()) {
                self.set_slice(&old, &change.key.name, None);
                touched.insert(old);
            }
            if let Some(new) = new {
                let slice = change.new.as_ref().and_then(|object| {
                    let slice: EndpointSlice = decode(object)?;
                    Some(Arc::new(EndpointSlice { revision: object.revision(), ..slice }))
                });
                self.set_slice(&new, &change.key.name, slice);
                touched.insert(new);
            }
        }
        touched
    }

    /// A Service with its slices.
    pub fn get(&self, key: &Key) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// The Services whose slices say for which zones an endpoint is.
    pub fn hinted(&self) -> BTreeSet<Key> {
        let is_hinted = |slice: &EndpointSlice| {
            slice.endpoints.iter().any(|endpoint| !endpoint.hints.for_zones.is_empty())
        };
        let hinted =
            self.entries.iter().filter(|(_, entry)| entry.slices.values().any(|slice| is_hinted(slice)));
        hinted.map(|(key, _)| key.clone()).collect()
    }

    /// Whether a Service has this address among its endpoints, ready or not.
    pub fn is_endpoint(&self, address: Ipv4Addr) -> bool {
        self.by_endpoint.contains_key(&address)
    }

    /// The newest revision of a slice that names this address.
    pub fn named_at(&self, address: Ipv4Addr) -> Option<i64> {
        self.slices_naming(address).map(|(_, slice)| slice.revision).max()
    }

    /// Where an endpoint is reached by Services that have an address of their own.
    pub fn served_at(&self, address: Ipv4Addr) -> BTreeSet<SocketAddrV4> {
        let balanced = |entry: &Entry| {
            let service = entry.service.as_ref();
            let ip = service.and_then(|service| service.spec.cluster_ip.as_deref());
            ip.is_some_and(|ip| ip.parse::<Ipv4Addr>().is_ok())
        };
        self.slices_naming(address)
            .filter(|(entry, _)| balanced(entry))
            .flat_map(|(_, slice)| slice.ports.iter().filter_map(|port| port.port))
            .map(|port| SocketAddrV4::new(address, port))
            .collect()
    }

    fn slices_naming(&self, address: Ipv4Addr) -> impl Iterator<Item = (&Entry, &Arc<EndpointSlice>)> {
        self.by_endpoint.get(&address).into_iter().flatten().filter_map(|(service, name)| {
            let entry = self.entries.get(service)?;
            Some((entry, entry.slices.get(name)?))
        })
    }

    fn set_service(&mut self, key: &Key, service: Option<Arc<Service>>) {
        self.entries.entry(key.clone()).or_default().service = service;
        self.tidy(key);
    }

    fn set_slice(&mut self, service: &Key, name: &str, slice: Option<Arc<EndpointSlice>>) {
        let entry = self.entries.entry(service.clone()).or_default();
        let old = match slice.clone() {
            Some(slice) => entry.slices.insert(name.to_owned(), slice),
            None => entry.slices.remove(name),
        };
        let place = (service.clone(), name.to_owned());
        for address in old.iter().flat_map(|slice| addresses(slice)) {
            if let Some(places) = self.by_endpoint.get_mut(&address) {
                places.remove(&place);
                if places.is_empty() {
                    self.by_endpoint.remove(&address);
                }
            }
        }
        for address in slice.iter().flat_map(|slice| addresses(slice)) {
            self.by_endpoint.entry(address).or_default().insert(place.clone());
        }
        self.tidy(service);
    }

    fn tidy(&mut self, key: &Key) {
        if self.entries.get(key).is_some_and(|entry| entry.service.is_none() && entry.slices.is_empty()) {
            self.entries.remove(key);
        }
    }
}

fn owner(slice: &Arc<Object>) -> Option<Key> {
    let name = slice.meta().labels.get(SERVICE_NAME_LABEL)?;
    Some(Key::new(slice.meta().namespace.clone(), name.clone()))
}

fn decode<T: DeserializeOwned>(object: &Arc<Object>) -> Option<T> {
    match object.decode() {
        Ok(decoded) => Some(decoded),
        Err(error) => {
            tracing::warn!(object = %object.key(), %error, "not understood, so treated as absent");
            None
        }
    }
}

fn addresses(slice: &EndpointSlice) -> impl Iterator<Item = Ipv4Addr> {
    slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses).filter_map(|address| address.parse().ok())
}
