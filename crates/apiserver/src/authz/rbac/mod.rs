//! Authorization by roles and bindings. Source: `plugin/pkg/auth/authorizer/rbac`.
//!
//! The index is brought up to date with the watch caches by whoever asks: a binding that a client was told of holds for
//! the next request, and no task runs for it.

mod covers;
mod index;
mod rule;

use api::connect::User;
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

pub(crate) use covers::{Missing, missing, missing_rules};
pub use rule::Rule;

use super::{Attributes, Decision, Rules};
use crate::admission::World;
use crate::cache::Changes;
use index::{Index, SOURCES};

/// The group of roles and bindings.
pub(crate) const GROUP: &str = "rbac.authorization.k8s.io";

/// The authorizer.
#[derive(Debug, Default)]
pub(crate) struct Rbac {
    index: RwLock<Index>,
}

impl Rbac {
    /// Decides: the first rule that allows it does; where none does, others may.
    pub(crate) fn authorize(&self, asked: &Attributes, world: &dyn World) -> Decision {
        let index = self.current(world);
        let mut errors = Vec::new();
        let namespace = if asked.is_resource { asked.namespace.as_str() } else { "" };
        for (held, rules) in index.held(&asked.user, namespace) {
            match rules {
                Ok(rules) if rules.iter().any(|rule| rule.allows(asked)) => {
                    let reason = format!("RBAC: allowed by {}", held.describe(&asked.user));
                    return Decision::Allow { reason };
                }
                Ok(_) => {}
                Err(error) => errors.push(error),
            }
        }
        let reason = if errors.is_empty() { String::new() } else { format!("RBAC: {}", together(errors)) };
        Decision::NoOpinion { reason }
    }

    /// The rules that hold for a user in a namespace (empty: everywhere).
    pub(crate) fn rules(&self, user: &User, namespace: &str, world: &dyn World) -> Rules {
        let index = self.current(world);
        let mut found = Rules::default();
        let mut errors = Vec::new();
        for (_, rules) in index.held(user, namespace) {
            match rules {
                Ok(rules) => found.rules.extend_from_slice(rules),
                Err(error) => errors.push(error),
            }
        }
        if !errors.is_empty() {
            found.lacks(&together(errors));
        }
        found
    }

    /// The index, as of everything that the caches know.
    fn current(&self, world: &dyn World) -> RwLockReadGuard<'_, Index> {
        let changes = |resource, seen| world.changes(GROUP, resource, seen);
        {
            let index = self.index.read();
            let same = |(source, seen): (&index::Source, &i64)| {
                matches!(changes(source.resource(), *seen), Changes::None)
            };
            if SOURCES.iter().zip(&index.seen).all(same) {
                return index;
            }
        }
        let mut index = self.index.write();
        for (slot, source) in SOURCES.iter().enumerate() {
            // Another request may have brought it up to date in between.
            let news = changes(source.resource(), index.seen[slot]);
            index.take(slot, news);
        }
        RwLockWriteGuard::downgrade(index)
    }
}

/// Several errors as upstream's aggregate says them.
fn together(mut errors: Vec<String>) -> String {
    let mut seen = std::collections::HashSet::new();
    errors.retain(|error| seen.insert(error.clone()));
    match errors.as_slice() {
        [one] => one.clone(),
        all => format!("[{}]", all.join(", ")),
    }
}

#[cfg(test)]
mod tests;
