//! The authorizer of every server: administrators everything, Skiff's components what they need, nodes what concerns
//! them, everybody what roles say. Source: upstream's union of privileged group, Node and RBAC.

use api::connect::User;

use super::rbac::{Rbac, Rule};
use super::{Attributes, Authorizer, Decision, Rules, components, defaults, node};
use crate::admission::World;
use crate::authn::{in_group, names, node_of};

/// The authorizer.
#[derive(Debug)]
pub struct Standard {
    /// What a node may do where it concerns the node.
    node: Vec<Rule>,
    rbac: Rbac,
}

impl Default for Standard {
    fn default() -> Self {
        Self { node: node::rules(&defaults::parsed().node), rbac: Rbac::default() }
    }
}

impl Authorizer for Standard {
    fn authorize(&self, asked: &Attributes, world: &dyn World) -> Decision {
        if in_group(&asked.user, names::MASTERS) || components::allow(asked) {
            return Decision::Allow { reason: String::new() };
        }
        let Some(node) = node_of(&asked.user) else { return self.rbac.authorize(asked, world) };
        let why = match node::check(asked, node, world) {
            Ok(()) if self.node.iter().any(|rule| rule.allows(asked)) => {
                return Decision::Allow { reason: String::new() };
            }
            Ok(()) => String::new(),
            Err(why) => why,
        };
        match self.rbac.authorize(asked, world) {
            Decision::NoOpinion { reason } => Decision::NoOpinion { reason: joined(why, &reason) },
            decision => decision,
        }
    }

    fn rules(&self, user: &User, namespace: &str, world: &dyn World) -> Rules {
        let mut found = self.rbac.rules(user, namespace, world);
        if in_group(user, names::MASTERS) {
            found.rules.extend(everything());
        }
        found.rules.extend(components::rules(user));
        if node_of(user).is_some() {
            found.lacks("node authorizer does not support user rule resolution");
        }
        found
    }
}

/// All verbs on all resources and paths.
pub(crate) fn everything() -> [Rule; 2] {
    let all = || vec!["*".to_owned()];
    [
        Rule { verbs: all(), api_groups: all(), resources: all(), ..Rule::default() },
        Rule { verbs: all(), non_resource_urls: all(), ..Rule::default() },
    ]
}

/// Two reasons, each on a line of its own.
pub(crate) fn joined(mut first: String, second: &str) -> String {
    if !first.is_empty() && !second.is_empty() {
        first.push('\n');
    }
    first.push_str(second);
    first
}

#[cfg(test)]
mod tests;
