//! Authorization: an interface with upstream's full attributes, and the authorizer that every server has.

mod components;
pub(crate) mod defaults;
mod metrics;
pub(crate) mod node;
pub(crate) mod rbac;
mod standard;
mod webhook;

use api::connect::User;

use crate::admission::World;

pub use metrics::Metrics;
pub use rbac::Rule;
pub use standard::Standard;
pub(crate) use standard::{everything, joined};
pub(crate) use webhook::Webhook;

/// What is asked, as an authorizer sees it. Source: `authorizer.Attributes`.
#[derive(Debug, Clone, Default)]
pub struct Attributes {
    /// Who asks.
    pub user: User,
    /// `get`, `list`, … for resources; the lower-case HTTP method for other paths.
    pub verb: String,
    /// Namespace.
    pub namespace: String,
    /// API group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Plural resource name.
    pub resource: String,
    /// Subresource.
    pub subresource: String,
    /// The object's name.
    pub name: String,
    /// Whether a resource is asked for (and not a bare path).
    pub is_resource: bool,
    /// The path of a request for something else.
    pub path: String,
    /// The field selector of a list or watch, unparsed. KEP-4601.
    pub field_selector: String,
    /// The label selector, unparsed.
    pub label_selector: String,
}

impl Attributes {
    /// Upstream's sentence after `is forbidden: `.
    pub fn sentence(&self) -> String {
        let who = format!("User \"{}\" cannot {}", self.user.name, self.verb);
        if !self.is_resource {
            return format!("{who} path \"{}\"", self.path);
        }
        let resource = if self.subresource.is_empty() {
            self.resource.clone()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        };
        let place = if self.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace \"{}\"", self.namespace)
        };
        format!("{who} resource \"{resource}\" in API group \"{}\" {place}", self.group)
    }
}

/// An authorizer's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Yes.
    Allow {
        /// Why, for reviews.
        reason: String,
    },
    /// No, and nobody else is asked.
    Deny {
        /// Why.
        reason: String,
    },
    /// Not mine to say.
    NoOpinion {
        /// What may be wrong, if anything; it is told where nobody else allows it.
        reason: String,
    },
}

/// The rules that hold for a user, for SelfSubjectRulesReview.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// What is known.
    pub rules: Vec<Rule>,
    /// Whether there may be more.
    pub incomplete: bool,
    /// Why there may be more.
    pub error: String,
}

impl Rules {
    /// Says that there may be more, and why.
    pub fn lacks(&mut self, why: &str) {
        self.incomplete = true;
        if !self.error.is_empty() {
            self.error.push_str(", ");
        }
        self.error.push_str(why);
    }
}

/// Says what a user may do. Pure: everything it decides on is in the attributes, in its own state and in the caches.
pub trait Authorizer: Send + Sync + 'static {
    /// Decides.
    fn authorize(&self, attributes: &Attributes, world: &dyn World) -> Decision;
    /// The rules that hold for a user in a namespace (empty: everywhere).
    fn rules(&self, user: &User, namespace: &str, world: &dyn World) -> Rules;
}
