//! Webhooks: servers that the API server asks about objects. Here is how they are found and called; what they are asked
//! stands in `conversion` and in `crate::admission::webhook`. Source: `apiserver/pkg/util/webhook`.

mod client;
pub(crate) mod conversion;
mod failure;
mod services;
mod users;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;

pub(crate) use client::Client;
pub(crate) use services::Services;
pub use users::Users;

/// So many clients are kept, with their connections, though nothing uses them now. Source: upstream's
/// `defaultCacheSize`.
const CLIENTS_MAX: usize = 200;

/// Why a webhook did not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unanswered {
    /// The code that its answer had, or that upstream gives to the failure.
    pub code: u16,
    /// Upstream's sentence on it.
    pub why: String,
}

impl Unanswered {
    /// A failure that is counted under a code.
    pub fn new(code: u16, why: impl Into<String>) -> Self {
        Self { code, why: why.into() }
    }

    /// The same, with what failed before its sentence.
    pub(crate) fn within(self, what: &str) -> Self {
        Self { why: format!("{what}: {}", self.why), ..self }
    }
}

/// The clients of all webhooks. Equal configurations share a client and its connections.
pub(crate) struct Webhooks {
    services: Arc<Services>,
    /// By the file that names the users, and the configuration.
    clients: Mutex<HashMap<(PathBuf, String), Arc<Client>>>,
}

impl Webhooks {
    /// None yet; those that are named by Services are found by these.
    pub(crate) fn new(services: Services) -> Self {
        Self { services: Arc::new(services), clients: Mutex::default() }
    }

    /// The client of a `clientConfig`, which says that it is one of these users. The failure is what is wrong with the
    /// configuration.
    pub(crate) fn client(&self, config: &Value, users: Option<&Users>) -> Result<Arc<Client>, String> {
        let key = (users.map(|users| users.file().to_owned()).unwrap_or_default(), config.to_string());
        if let Some(client) = self.clients.lock().get(&key) {
            return Ok(client.clone());
        }
        let fresh = Arc::new(Client::new(config, &self.services, users)?);
        let mut clients = self.clients.lock();
        if clients.len() >= CLIENTS_MAX {
            // Those that only this table knows are the past's.
            clients.retain(|_, client| Arc::strong_count(client) > 1);
        }
        Ok(clients.entry(key).or_insert(fresh).clone())
    }
}
