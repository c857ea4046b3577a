//! Webhook configurations, compiled: once when one changes, however many requests there are.

use std::sync::Arc;
use std::time::Duration;

use api::Object;
use parking_lot::RwLock;
use serde_json::Value;
use store::Revision;

use super::review;
use crate::admission::conditions::{Conditions, WEBHOOK_VARIABLES};
use crate::admission::rules::{GROUP, Selection};
use crate::admission::{Users, World};
use crate::cache::Changes;
use crate::tree;

/// How long a webhook has that does not say. Source: admissionregistration/v1 `timeoutSeconds`.
const WITHIN: Duration = Duration::from_secs(10);

/// One webhook of a configuration.
#[derive(Debug)]
pub(super) struct Hook {
    /// Its configuration's name.
    pub(super) configuration: String,
    /// Its own.
    pub(super) name: String,
    /// What it is known by within a request: names and place.
    pub(super) id: String,
    /// Where it is.
    pub(super) client: Value,
    /// As whom it is asked.
    pub(super) users: Option<Arc<Users>>,
    /// Which requests it is for; or what about that cannot be understood.
    pub(super) selection: Result<Selection, String>,
    /// What else has to hold.
    pub(super) conditions: Conditions,
    /// Whether requests go on where it cannot be asked.
    pub(super) ignores_failure: bool,
    /// Whether it says what it does besides; if so, whether it may be asked about dry runs.
    pub(super) dry_run: Option<bool>,
    /// How long it has.
    pub(super) within: Duration,
    /// The version of AdmissionReview that it is asked in: the first of its own that is spoken here.
    pub(super) version: Option<&'static str>,
    /// Whether it is asked again where others changed the object after it.
    pub(super) again: bool,
}

/// The webhooks of all configurations of a kind, by the names of their configurations.
pub(super) struct Hooks {
    resource: &'static str,
    users: Option<Arc<Users>>,
    known: RwLock<(Revision, Arc<Vec<Hook>>)>,
}

impl Hooks {
    /// Of a resource of admissionregistration.k8s.io.
    pub(super) fn of(resource: &'static str, users: Option<Arc<Users>>) -> Self {
        Self { resource, users, known: RwLock::default() }
    }

    /// The webhooks as the cache knows them now.
    pub(super) fn now(&self, world: &dyn World) -> Arc<Vec<Hook>> {
        let (seen, hooks) = self.known.read().clone();
        let (objects, seen) = match world.changes(GROUP, self.resource, seen) {
            Changes::None => return hooks,
            Changes::Some(changes) => {
                let last = changes.last().map_or(seen, |change| change.revision);
                (world.all(GROUP, self.resource, ""), last)
            }
            Changes::All(objects, revision) => (objects, revision),
        };
        let hooks =
            Arc::new(objects.iter().flat_map(|object| compile(object, self.users.as_ref())).collect());
        *self.known.write() = (seen, Arc::clone(&hooks));
        hooks
    }
}

fn compile(configuration: &Object, users: Option<&Arc<Users>>) -> Vec<Hook> {
    let name = &configuration.meta().name;
    match configuration.decode::<Value>() {
        Ok(tree) => {
            let hooks = tree::items(&tree, &["webhooks"]).iter().enumerate();
            hooks.map(|(index, hook)| Hook::read(name, index, hook, users)).collect()
        }
        Err(error) => {
            tracing::error!(configuration = name, %error, "a webhook configuration cannot be read");
            Vec::new()
        }
    }
}

impl Hook {
    fn read(configuration: &str, index: usize, hook: &Value, users: Option<&Arc<Users>>) -> Self {
        let name = tree::text(hook, &["name"]).to_owned();
        let known =
            |version: &Value| review::VERSIONS.into_iter().find(|known| version.as_str() == Some(known));
        let seconds = tree::at(hook, &["timeoutSeconds"]).as_u64();
        Self {
            configuration: configuration.to_owned(),
            id: format!("{configuration}/{name}/{index}"),
            client: tree::at(hook, &["clientConfig"]).clone(),
            users: users.cloned(),
            selection: Selection::of_webhook(hook),
            conditions: Conditions::compile(hook, &WEBHOOK_VARIABLES),
            ignores_failure: tree::text(hook, &["failurePolicy"]) == "Ignore",
            dry_run: match tree::text(hook, &["sideEffects"]) {
                "" => None,
                effects => Some(matches!(effects, "None" | "NoneOnDryRun")),
            },
            within: seconds.map_or(WITHIN, Duration::from_secs),
            version: tree::items(hook, &["admissionReviewVersions"]).iter().find_map(known),
            again: tree::text(hook, &["reinvocationPolicy"]) == "IfNeeded",
            name,
        }
    }
}
