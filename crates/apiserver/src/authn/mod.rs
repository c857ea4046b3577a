//! Authentication: who asks. Client certificates, service account tokens, bootstrap tokens, tokens that others vouch for
//! (OpenID Connect, a webhook), anonymous.

pub mod cert;
mod claims;
pub(crate) mod config;
pub(crate) mod front_proxy;
mod oidc;
pub mod token;
mod webhook;

use std::path::PathBuf;
use std::sync::Arc;

use api::connect::User;
use async_trait::async_trait;
use base::clock::SharedClock;
use serde_json::Value;

use crate::remote::FileError;
use crate::tree;
use config::{Anonymous, AuthenticationConfiguration};

pub use cert::user_of_certificate;

/// Upstream's names of users and groups that mean something to the server itself.
pub mod names {
    /// The user of requests without credentials.
    pub const ANONYMOUS: &str = "system:anonymous";
    /// Everyone without credentials.
    pub const UNAUTHENTICATED: &str = "system:unauthenticated";
    /// Key of the extra that says by which credential a user came.
    pub const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";
    /// Everyone with credentials.
    pub const AUTHENTICATED: &str = "system:authenticated";
    /// May do everything.
    pub const MASTERS: &str = "system:masters";
    /// Nodes' agents.
    pub const NODES: &str = "system:nodes";
    /// Prefix of a node's user.
    pub const NODE_PREFIX: &str = "system:node:";
    /// The namespace of nodes' leases.
    pub const NODE_LEASES: &str = "kube-node-lease";
    /// The ConfigMap (namespace, name) with what every node has to know of the cluster.
    pub const CLUSTER_CONFIG: (&str, &str) = ("kube-system", "skiff-cluster");
    /// Machines that are about to become nodes.
    pub const BOOTSTRAPPERS: &str = "system:bootstrappers";
    /// Prefix of the user of a bootstrap token.
    pub const BOOTSTRAP_PREFIX: &str = "system:bootstrap:";
    /// Every service account.
    pub const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";
    /// Prefix of a service account's user.
    pub const SERVICE_ACCOUNT_PREFIX: &str = "system:serviceaccount:";
    /// Skiff's own components in this process: `skiff:<component>`, in this group.
    pub const COMPONENTS: &str = "skiff:components";
}

/// The files that say whom the server believes besides its own authority; names are upstream's flags.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// `--authentication-config`: an `AuthenticationConfiguration`.
    pub authentication_config: Option<PathBuf>,
    /// `--authentication-token-webhook-config-file`, in kubeconfig format.
    pub token_webhook: Option<PathBuf>,
    /// `--authorization-webhook-config-file`, in kubeconfig format.
    pub authorization_webhook: Option<PathBuf>,
}

/// Who somebody else says that a token's bearer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The user.
    pub user: User,
    /// Those of the audiences asked for that the token holds for.
    pub audiences: Vec<String>,
}

/// Judges tokens that are not the server's own.
#[async_trait]
pub trait TokenAuthenticator: Send + Sync + 'static {
    /// The bearer of a token that holds for one of `audiences` (never none); `Ok(None)`: not known here. `Err` says why
    /// nothing can be said, without the token.
    async fn authenticate(&self, token: &str, audiences: &[String]) -> Result<Option<Identity>, String>;
}

/// Who is believed, made from the files.
pub(crate) struct Believed {
    pub(crate) authenticators: Vec<Arc<dyn TokenAuthenticator>>,
    pub(crate) anonymous: Option<Anonymous>,
}

impl Access {
    /// Reads the files; `own` is the API server's own audience.
    pub(crate) fn believed(&self, own: &str, clock: &SharedClock) -> Result<Believed, FileError> {
        let mut believed = Believed { authenticators: Vec::new(), anonymous: None };
        if let Some(path) = &self.authentication_config {
            let config = AuthenticationConfiguration::read(path)?;
            for jwt in config.jwt {
                let provider = oidc::Provider::new(jwt, own, clock.clone());
                let provider = provider.map_err(|cause| FileError::new(path, cause))?;
                believed.authenticators.push(Arc::new(provider));
            }
            believed.anonymous = config.anonymous;
        }
        if let Some(path) = &self.token_webhook {
            believed.authenticators.push(Arc::new(webhook::TokenWebhook::new(path, own, clock.clone())?));
        }
        Ok(believed)
    }
}

/// A user whom somebody outside vouches for: nobody outside makes a component of this process.
pub(crate) fn foreign(mut user: User) -> User {
    user.groups.retain(|group| group != names::COMPONENTS);
    authenticated(user)
}

/// The user that authentication/v1 `UserInfo` says.
fn user_from_json(info: &Value) -> User {
    let extra = tree::at(info, &["extra"]).as_object().into_iter().flatten();
    User {
        name: tree::text(info, &["username"]).into(),
        uid: tree::text(info, &["uid"]).into(),
        groups: texts(tree::at(info, &["groups"])),
        extra: extra.map(|(name, values)| (name.clone(), texts(values))).collect(),
    }
}

/// The texts of a list.
fn texts(values: &Value) -> Vec<String> {
    tree::items(values, &[]).iter().filter_map(|value| value.as_str().map(str::to_owned)).collect()
}

/// The user of a request without credentials.
pub fn anonymous() -> User {
    User { name: names::ANONYMOUS.into(), groups: vec![names::UNAUTHENTICATED.into()], ..User::default() }
}

/// An authenticated user: the group of all of them is added.
pub fn authenticated(mut user: User) -> User {
    if !user.groups.iter().any(|group| group == names::AUTHENTICATED) {
        user.groups.push(names::AUTHENTICATED.into());
    }
    user
}

/// Prefix of the users of components in this process.
const COMPONENT_PREFIX: &str = "skiff:";

/// A user that a caller in this process names. Nobody outside can call in this way, so that the name is believed: a
/// component, and the node that runs beside the API server, get the components' group. The authority signs nobody a
/// certificate with it, so that users that come over the network never have it.
pub fn in_process(user: &User) -> User {
    let mut user = authenticated(user.clone());
    let is_ours = user.name.starts_with(COMPONENT_PREFIX) || node_of(&user).is_some();
    if is_ours && !in_group(&user, names::COMPONENTS) {
        user.groups.push(names::COMPONENTS.into());
    }
    user
}

/// Whether a user is in a group.
pub fn in_group(user: &User, group: &str) -> bool {
    user.groups.iter().any(|known| known == group)
}

/// The node that a user is, if it is one: name and group together say so.
/// Source: `k8s.io/kubernetes/pkg/auth/nodeidentifier`.
pub fn node_of(user: &User) -> Option<&str> {
    let node = user.name.strip_prefix(names::NODE_PREFIX).filter(|node| !node.is_empty())?;
    in_group(user, names::NODES).then_some(node)
}

/// The identity of one of Skiff's components in this process.
pub fn component(name: &str) -> User {
    authenticated(User {
        name: format!("{COMPONENT_PREFIX}{name}"),
        groups: vec![names::COMPONENTS.into()],
        ..User::default()
    })
}

/// The user and groups of a service account. Source: `serviceaccount.UserInfo`.
pub fn service_account(namespace: &str, name: &str, uid: &str) -> User {
    authenticated(User {
        name: format!("{}{namespace}:{name}", names::SERVICE_ACCOUNT_PREFIX),
        uid: uid.into(),
        groups: vec![names::SERVICE_ACCOUNTS.into(), format!("{}:{namespace}", names::SERVICE_ACCOUNTS)],
        extra: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_and_group_make_a_node_and_calling_in_process_a_component() {
        let user = |name: &str, groups: &[&str]| User {
            name: name.into(),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            ..User::default()
        };
        assert_eq!(node_of(&user("system:node:a", &[names::NODES])), Some("a"));
        assert_eq!(node_of(&user("system:node:", &[names::NODES])), None);
        assert_eq!(node_of(&user("system:node:a", &[names::AUTHENTICATED])), None);
        assert_eq!(node_of(&user("jane", &[names::NODES])), None);
        let is_component = |user: &User| in_group(&in_process(user), names::COMPONENTS);
        assert!(is_component(&user("skiff:scheduler", &[])));
        assert!(is_component(&user("system:node:a", &[names::NODES])));
        assert!(!is_component(&user("system:node:a", &[])) && !is_component(&user("jane", &[])));
    }
}
