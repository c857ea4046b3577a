//! The policies and bindings that there are, compiled. Built anew from the watch caches when these have changed.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;

use super::super::World;
use super::super::rules::GROUP;
use super::{Binding, Policy};
use crate::cache::Changes;

/// A policy with the bindings that name it.
#[derive(Debug)]
pub(super) struct Active<B> {
    pub(super) policy: Arc<Policy<B>>,
    pub(super) bindings: Vec<Arc<Binding>>,
}

/// What one sort of policies is at the moment.
#[derive(Debug)]
pub(super) struct Registry<B> {
    /// The plurals of policies and bindings.
    resources: [&'static str; 2],
    body: fn(&Value, &[&str]) -> B,
    state: Mutex<State<B>>,
}

#[derive(Debug)]
struct State<B> {
    seen: [i64; 2],
    /// By name, with the version that was compiled.
    policies: BTreeMap<String, (String, Arc<Policy<B>>)>,
    bindings: BTreeMap<String, (String, Arc<Binding>)>,
    active: Arc<Vec<Active<B>>>,
}

impl<B> Registry<B> {
    pub(super) fn new(resources: [&'static str; 2], body: fn(&Value, &[&str]) -> B) -> Self {
        let state = State {
            seen: [0; 2],
            policies: BTreeMap::new(),
            bindings: BTreeMap::new(),
            active: Arc::default(),
        };
        Self { resources, body, state: Mutex::new(state) }
    }

    /// Policies that are bound, by name, each with its bindings by name.
    pub(super) fn active(&self, world: &dyn World) -> Arc<Vec<Active<B>>> {
        let mut state = self.state.lock();
        let [policies, bindings] = self.resources;
        let seen = state.seen;
        let changed = [revision_of(world, policies, seen[0]), revision_of(world, bindings, seen[1])];
        if changed == [None, None] {
            return state.active.clone();
        }
        if let Some(revision) = changed[0] {
            state.seen[0] = revision;
            let compile = |object: &Value| Arc::new(Policy::compile(object, self.body));
            state.policies = read(world, policies, std::mem::take(&mut state.policies), compile);
        }
        if let Some(revision) = changed[1] {
            state.seen[1] = revision;
            let compile = |object: &Value| Arc::new(Binding::read(object));
            state.bindings = read(world, bindings, std::mem::take(&mut state.bindings), compile);
        }
        let bound = |(name, (_, policy)): (&String, &(String, Arc<Policy<B>>))| {
            let of_it = state.bindings.values().filter(|(_, binding)| binding.policy == *name);
            let bindings: Vec<Arc<Binding>> = of_it.map(|(_, binding)| binding.clone()).collect();
            (!bindings.is_empty()).then(|| Active { policy: policy.clone(), bindings })
        };
        state.active = Arc::new(state.policies.iter().filter_map(bound).collect());
        state.active.clone()
    }
}

/// The revision of what has changed since another.
fn revision_of(world: &dyn World, resource: &str, seen: i64) -> Option<i64> {
    match world.changes(GROUP, resource, seen) {
        Changes::None => None,
        Changes::Some(changes) => changes.last().map(|change| change.revision),
        Changes::All(_, revision) => Some(revision),
    }
}

/// All objects of a resource as they are now; those that are the same stay compiled.
fn read<T>(
    world: &dyn World,
    resource: &str,
    mut before: BTreeMap<String, (String, Arc<T>)>,
    compile: impl Fn(&Value) -> Arc<T>,
) -> BTreeMap<String, (String, Arc<T>)> {
    let mut now = BTreeMap::new();
    for object in world.all(GROUP, resource, "") {
        let (name, version) = (object.meta().name.clone(), object.meta().resource_version.clone());
        let known = before.remove(&name).filter(|(known, _)| *known == version);
        let compiled = match known {
            Some((_, compiled)) => compiled,
            None => match object.decode::<Value>() {
                Ok(tree) => compile(&tree),
                Err(error) => {
                    tracing::error!(%error, resource, name, "a stored policy or binding is not readable and does not hold");
                    continue;
                }
            },
        };
        now.insert(name, (version, compiled));
    }
    now
}
