//! The ways in that depend on the host's address and on the lives of certificates: the administrator's kubeconfig (the
//! instance's file and the context merged into the user's), the certificate of the node's server, and what the instance
//! says of itself.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use apiserver::pki::{HotResolver, KubeconfigEntry, LEAF_LIFE, Pki, kubeconfig};
use async_trait::async_trait;
use base::BoxError;
use base::clock::SharedClock;
use base::lifecycle::{Component, Context as Running, OnFailure};
use cli::instance;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::address::Follower;
use super::connect::LOOPBACK;
use crate::settings::Settings;

/// Keeps them current.
pub(crate) struct Access {
    settings: Settings,
    pki: Arc<Pki>,
    clock: SharedClock,
    api_port: u16,
    /// What the node's server shows.
    serving: Arc<HotResolver>,
    state: Mutex<State>,
    /// The next renewal has another time.
    rescheduled: Notify,
}

/// What was written last.
struct State {
    address: IpAddr,
    kubeconfig: String,
    /// When the client certificate in it should be replaced.
    renew_at: Timestamp,
    /// Whether the instance has told the world that it is there.
    announced: bool,
}

impl Access {
    /// Issues everything for `address` and writes the instance's kubeconfig.
    pub(crate) fn new(
        settings: &Settings,
        pki: Arc<Pki>,
        clock: SharedClock,
        api_port: u16,
        address: IpAddr,
    ) -> Result<Self> {
        let serving = issue_serving(&pki, &settings.node_name, address)?;
        let (kubeconfig, renew_at) = issue_kubeconfig(settings, &pki, api_port, address)?;
        super::write_private(&settings.instance.kubeconfig(), &kubeconfig)?;
        Ok(Self {
            settings: settings.clone(),
            pki,
            clock,
            api_port,
            serving: Arc::new(HotResolver::new(&serving).context("use the node's certificate")?),
            state: Mutex::new(State { address, kubeconfig, renew_at, announced: false }),
            rescheduled: Notify::new(),
        })
    }

    /// The certificate of the node's server, swapped when it is renewed.
    pub(crate) fn serving(&self) -> Arc<HotResolver> {
        self.serving.clone()
    }

    /// Tells that the instance is there, and keeps that current from now on: merges the context and describes the
    /// instance in its state file.
    pub(crate) fn announce(&self) -> Result<instance::Running> {
        let mut state = self.state.lock();
        if let Some(path) = &self.settings.kubeconfig {
            crate::kubeconfig::merge(path, &self.settings.instance.name, &state.kubeconfig)?;
        }
        state.announced = true;
        self.describe(state.address)
    }

    /// Issues and writes everything anew, for `address`.
    pub(crate) fn renew(&self, address: IpAddr) -> Result<()> {
        let mut state = self.state.lock();
        let serving = issue_serving(&self.pki, &self.settings.node_name, address)?;
        self.serving.swap(&serving).context("use the node's certificate")?;
        let (kubeconfig, renew_at) = issue_kubeconfig(&self.settings, &self.pki, self.api_port, address)?;
        super::write_private(&self.settings.instance.kubeconfig(), &kubeconfig)?;
        *state = State { address, kubeconfig, renew_at, announced: state.announced };
        self.rescheduled.notify_one();
        if !state.announced {
            return Ok(());
        }
        self.describe(address)?;
        if let Some(path) = &self.settings.kubeconfig
            && let Err(error) =
                crate::kubeconfig::merge(path, &self.settings.instance.name, &state.kubeconfig)
        {
            // The user's file is the user's: what became of it there does not keep the rest from following.
            let error = format!("{error:#}");
            tracing::warn!(%error, "the context in the user's kubeconfig is out of date; see: skiff kubeconfig");
        }
        Ok(())
    }

    /// Writes the state file.
    fn describe(&self, address: IpAddr) -> Result<instance::Running> {
        let running = super::running(&self.settings, address, &url(reached(address), self.api_port))?;
        let text = serde_json::to_string_pretty(&running)?;
        super::write_private(&self.settings.instance.state_file(), &text)?;
        Ok(running)
    }

    /// When the first of the certificates should be replaced.
    fn due(&self) -> Timestamp {
        self.state.lock().renew_at.min(self.serving.renew_at())
    }
}

/// Where the administrator reaches the API server: from outside of a user's own network namespace on the loopback.
fn reached(address: IpAddr) -> IpAddr {
    if crate::rootless::inside().is_some() { LOOPBACK } else { address }
}

/// `https://address:port`
fn url(address: IpAddr, port: u16) -> String {
    format!("https://{}", SocketAddr::new(address, port))
}

fn issue_serving(pki: &Pki, node: &str, address: IpAddr) -> Result<apiserver::pki::Issued> {
    Ok(pki.issue_node(node, &[node, "localhost"], &[address, LOOPBACK])?)
}

/// A kubeconfig of the administrator, as YAML, and when its certificate should be replaced.
fn issue_kubeconfig(
    settings: &Settings,
    pki: &Pki,
    api_port: u16,
    address: IpAddr,
) -> Result<(String, Timestamp)> {
    let admin = pki.issue_client("kubernetes-admin", &["system:masters"], LEAF_LIFE)?;
    let (ca_pem, server) = (pki.ca_pem(), url(reached(address), api_port));
    let entry = KubeconfigEntry { name: &settings.instance.name, server: &server, ca_pem: &ca_pem };
    let text = serde_yaml_ng::to_string(&kubeconfig(&entry, &admin))
        .map_err(|error| anyhow!("write kubeconfig: {error}"))?;
    Ok((text, admin.renew_at))
}

#[async_trait]
impl Follower for Access {
    async fn follow(&self, address: IpAddr) -> Result<(), BoxError> {
        self.renew(address).map_err(Into::into)
    }
}

#[async_trait]
impl Component for Access {
    fn name(&self) -> &'static str {
        "access"
    }

    fn on_failure(&self) -> OnFailure {
        OnFailure::Restart
    }

    async fn run(&self, ctx: Running) -> Result<(), BoxError> {
        let mut ca = self.pki.ca_renewals();
        ctx.ready();
        loop {
            tokio::select! {
                () = ctx.cancelled() => return Ok(()),
                () = self.rescheduled.notified() => continue,
                () = self.clock.sleep_until(self.due()) => {}
                // The authority lives as long as this component.
                _ = ca.changed() => {}
            }
            let address = self.state.lock().address;
            self.renew(address)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use base::clock::VirtualClock;
    use cli::instance::Instance;

    use super::*;

    struct World {
        directory: tempfile::TempDir,
        clock: VirtualClock,
        pki: Arc<Pki>,
        access: Access,
    }

    fn world() -> World {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in ["data", "run"] {
            std::fs::create_dir(path(name)).unwrap();
        }
        let settings = Settings {
            etcd: None,
            access: apiserver::Access::default(),
            protection: apiserver::Protection::default(),
            instance: Instance { name: "t".into(), data_dir: path("data"), run_dir: path("run") },
            kubeconfig: Some(path("config")),
            address: None,
            node_name: "n1".into(),
            api_port: 6443,
            node_port: 10250,
            scheduler_config: None,
            static_pod_path: None,
            max_container_restart_period: None,
            oci_runtimes: Default::default(),
            images: crate::image_settings::Images::default(),
            node_config: None,
            kubelet: node::KubeletConfiguration::default(),
        };
        let clock = VirtualClock::new("2026-01-01T00:00:00Z".parse().unwrap());
        let shared = Arc::new(clock.clone());
        let pki = Pki::open(&path("pki"), shared.clone(), Vec::new(), []).unwrap();
        let access = Access::new(&settings, pki.clone(), shared, 6443, "192.0.2.1".parse().unwrap()).unwrap();
        World { directory, clock, pki, access }
    }

    impl World {
        fn read(&self, name: &str) -> String {
            std::fs::read_to_string(self.directory.path().join(name)).unwrap()
        }
    }

    #[test]
    fn a_new_address_reaches_every_file() {
        let world = world();
        assert!(!world.directory.path().join("config").exists(), "nothing is announced before it is there");
        world.access.announce().unwrap();
        world.access.renew("192.0.2.2".parse().unwrap()).unwrap();
        for name in ["data/kubeconfig", "config", "run/instance.json"] {
            let text = world.read(name);
            assert!(text.contains("https://192.0.2.2:6443") && !text.contains("192.0.2.1"), "{name}: {text}");
        }
    }

    #[tokio::test]
    async fn kubeconfigs_follow_their_certificates_and_the_authority() {
        let world = world();
        world.access.announce().unwrap();
        let ctx = Running::detached("access");
        let authority = Running::detached("authority");
        let story = async {
            let mut before = (world.read("config"), world.read("data/kubeconfig"));
            // Two thirds into the life of a leaf, and then of the authority.
            for years in [1, 7] {
                let mut ca = world.pki.ca_renewals();
                world.clock.advance(Duration::from_secs(years * 365 * 86_400));
                if years == 7 {
                    ca.changed().await.unwrap();
                }
                while world.read("config") == before.0 {
                    tokio::task::yield_now().await;
                }
                let after = (world.read("config"), world.read("data/kubeconfig"));
                assert_ne!(after.1, before.1);
                before = after;
            }
            ctx.cancel().cancel();
            authority.cancel().cancel();
        };
        let (kept, renewed, ()) =
            tokio::join!(world.access.run(ctx.clone()), world.pki.keep_renewed(&authority), story);
        kept.unwrap();
        renewed.unwrap();
    }
}
