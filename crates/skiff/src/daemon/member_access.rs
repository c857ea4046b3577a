//! A member's way to its API server: it follows the server's address, of which the server tells, and the certificate of
//! the node. What depends on them is written anew: the membership, the kubeconfig, and what the instance says of itself.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use apiserver::pki::{Issued, KubeconfigEntry, kubeconfig};
use async_trait::async_trait;
use base::BoxError;
use cli::instance::Running;
use client::https::Https;
use node::FollowsApiServer;
use parking_lot::Mutex;

use super::address::Follower;
use super::{running, write_private};
use crate::membership::{Certificate, Membership};
use crate::settings::Settings;

/// Keeps them current.
pub(crate) struct MemberAccess {
    settings: Settings,
    https: Arc<Https>,
    state: Mutex<State>,
}

struct State {
    membership: Membership,
    address: IpAddr,
    /// Whether the instance has told the world that it is there.
    announced: bool,
}

impl MemberAccess {
    /// Begins with what the membership says, and writes the kubeconfig.
    pub(crate) fn new(
        settings: &Settings,
        membership: Membership,
        https: Arc<Https>,
        address: IpAddr,
    ) -> Result<Self> {
        let state = State { membership, address, announced: false };
        let access = Self { settings: settings.clone(), https, state: Mutex::new(state) };
        access.write(&access.state.lock())?;
        Ok(access)
    }

    /// Tells that the instance is there, and keeps that current from now on.
    pub(crate) fn announce(&self) -> Result<Running> {
        let mut state = self.state.lock();
        state.announced = true;
        self.write(&state)?;
        self.describe(&state)
    }

    /// Keeps a new certificate of the node.
    pub(crate) fn renewed(&self, which: Certificate, issued: &Issued) -> Result<()> {
        let state = self.state.lock();
        state.membership.keep(which, issued)?;
        self.write(&state)
    }

    fn describe(&self, state: &State) -> Result<Running> {
        running(&self.settings, state.address, &state.membership.facts.server)
    }

    fn write(&self, state: &State) -> Result<()> {
        let (instance, membership) = (&self.settings.instance, &state.membership);
        let issued = membership.certificate(Certificate::Client)?.context("the node has no certificate")?;
        let ca_pem = membership.ca_pem()?;
        let entry =
            KubeconfigEntry { name: &instance.name, server: &membership.facts.server, ca_pem: &ca_pem };
        let text = serde_yaml_ng::to_string(&kubeconfig(&entry, &issued))?;
        write_private(&instance.kubeconfig(), &text)?;
        if state.announced {
            let text = serde_json::to_string_pretty(&self.describe(state)?)?;
            write_private(&instance.state_file(), &text)?;
        }
        Ok(())
    }
}

#[async_trait]
impl FollowsApiServer for MemberAccess {
    async fn moved(&self, server: &str) -> Result<(), BoxError> {
        self.https.move_to(server).await?;
        let mut state = self.state.lock();
        if state.membership.facts.server == server {
            return Ok(());
        }
        tracing::info!(server, "the API server has moved");
        state.membership.set_server(server)?;
        Ok(self.write(&state)?)
    }
}

#[async_trait]
impl Follower for MemberAccess {
    async fn follow(&self, address: IpAddr) -> Result<(), BoxError> {
        let mut state = self.state.lock();
        state.address = address;
        Ok(self.write(&state)?)
    }
}

#[cfg(test)]
mod tests {
    use apiserver::pki::{LEAF_LIFE, Pki};
    use base::clock::SystemClock;
    use cli::instance::Instance;
    use client::https::Config;

    use super::*;
    use crate::membership::Facts;

    #[tokio::test]
    async fn what_is_written_follows_and_nothing_follows_a_server_that_is_not_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let settings = Settings {
            instance: Instance { name: "t".into(), data_dir: path("data"), run_dir: path("run") },
            kubeconfig: None,
            address: None,
            node_name: "n2".into(),
            api_port: 6443,
            node_port: 10250,
            scheduler_config: None,
            static_pod_path: None,
            max_container_restart_period: None,
            oci_runtimes: Default::default(),
            images: crate::image_settings::Images::default(),
            node_config: None,
            kubelet: node::KubeletConfiguration::default(),
            etcd: None,
            access: apiserver::Access::default(),
            protection: apiserver::Protection::default(),
        };
        std::fs::create_dir(path("run")).unwrap();
        let pki = Pki::open(&path("pki"), Arc::new(SystemClock), Vec::new(), []).unwrap();
        let issue = || pki.issue_client("system:node:n2", &["system:nodes"], LEAF_LIFE).unwrap();
        let facts = Facts { server: "https://127.0.0.1:1".into(), node_name: "n2".into() };
        Membership::create(&settings.instance, facts.clone(), &pki.ca_pem(), &issue()).unwrap();
        let membership = || Membership::load(&settings.instance).unwrap().unwrap();
        let https = Https::new(&Config { server: facts.server.clone(), ..Config::default() }).unwrap();
        let address = "192.0.2.2".parse().unwrap();
        let access = MemberAccess::new(&settings, membership(), Arc::new(https), address).unwrap();
        let read = |name: &str| std::fs::read_to_string(path(name)).unwrap();
        let before = read("data/kubeconfig");
        access.renewed(Certificate::Client, &issue()).unwrap();
        assert_ne!(read("data/kubeconfig"), before, "it has the new certificate");

        assert!(!path("run/instance.json").exists(), "nothing is announced before it is there");
        access.announce().unwrap();
        access.follow("192.0.2.3".parse().unwrap()).await.unwrap();
        assert!(read("run/instance.json").contains("192.0.2.3"));

        access.moved("https://127.0.0.1:2").await.unwrap_err();
        access.moved("nonsense").await.unwrap_err();
        assert_eq!(membership().facts, facts);
    }
}
