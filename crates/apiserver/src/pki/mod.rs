//! The cluster's own certificate authority: made on first start, kept on disk with mode 0600, renewed in the running
//! process. Renewal of the CA keeps its key and name, so that certificates from before and after trust each other.

mod files;
mod issue;
mod kubeconfig;
mod pod;
mod request;
mod tls;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base::clock::SharedClock;
use base::lifecycle::Context;
use jiff::Timestamp;
use parking_lot::RwLock;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

pub use issue::{GROUPS_MAX, Identity, Issued};
pub use kubeconfig::{KubeconfigEntry, kubeconfig};
pub use pod::{Leaf, leaf, requested_key};
pub(crate) use request::der as request_der;
pub use request::{Requested, SigningRequest, check as check_request, read as read_request, signing_request};
pub(crate) use tls::roots;
pub use tls::{HotResolver, client_config};

/// How long the CA's certificate is valid.
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);
/// How long a leaf certificate is valid unless its owner asks for less.
pub const LEAF_LIFE: Duration = Duration::from_secs(365 * 86_400);

/// The common name of a front proxy. Source: kubeadm's `--requestheader-allowed-names`.
pub const FRONT_PROXY_NAME: &str = "front-proxy-client";

/// Why the authority could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read or written.
    #[error("{action} {}: {source}; check the owner and mode of the directory", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// Key or certificate material is not usable.
    #[error("{what}: {cause}")]
    Material {
        /// What was done with it.
        what: String,
        /// Why it failed.
        cause: String,
    },
}

impl PkiError {
    fn material(what: impl Into<String>, cause: impl std::fmt::Display) -> Self {
        Self::Material { what: what.into(), cause: cause.to_string() }
    }
}

/// The authority, the API server's certificate, and the key that signs service account tokens.
pub struct Pki {
    dir: PathBuf,
    clock: SharedClock,
    ca: RwLock<issue::Ca>,
    /// Who may say on whose behalf they ask: extension API servers believe it, and this server too.
    front_proxy: RwLock<issue::Ca>,
    front_proxies: tls::ClientCheck,
    addresses: watch::Sender<BTreeSet<IpAddr>>,
    names: Vec<String>,
    resolver: Arc<HotResolver>,
    sa_key_pem: String,
    /// The CA's certificate in PEM, for those who carry a copy of it.
    published: watch::Sender<Arc<str>>,
}

impl Pki {
    /// Opens the authority in `dir`, making what is missing. `names` and `addresses` are what the API server answers to
    /// (subject alternative names of its certificate).
    pub fn open(
        dir: &Path,
        clock: SharedClock,
        names: Vec<String>,
        addresses: impl IntoIterator<Item = IpAddr>,
    ) -> Result<Arc<Self>, PkiError> {
        files::private_dir(dir)?;
        let ca = issue::Ca::open(dir, issue::CLUSTER, clock.now())?;
        let front_proxy = issue::Ca::open(dir, issue::FRONT_PROXY, clock.now())?;
        let front_proxies = tls::ClientCheck::new(&front_proxy.cert_pem)?;
        let sa_key_pem = files::read_or_make(&dir.join("sa.key"), issue::new_key_pem)?;
        let addresses: BTreeSet<IpAddr> = addresses.into_iter().collect();
        let published = watch::Sender::new(ca.cert_pem.as_str().into());
        let first = issue_server(&ca, &names, &addresses, clock.now())?;
        let resolver = Arc::new(HotResolver::new(&first)?);
        let pki = Arc::new(Self {
            dir: dir.to_owned(),
            clock,
            ca: RwLock::new(ca),
            front_proxy: RwLock::new(front_proxy),
            front_proxies,
            addresses: watch::Sender::new(addresses),
            names,
            resolver,
            sa_key_pem,
            published,
        });
        Ok(pki)
    }

    /// The CA's certificate as PEM: what `kube-root-ca.crt` and kubeconfigs carry.
    pub fn ca_pem(&self) -> String {
        self.ca.read().cert_pem.clone()
    }

    /// The certificate of the authority of front proxies, as PEM.
    pub fn front_proxy_ca_pem(&self) -> String {
        self.front_proxy.read().cert_pem.clone()
    }

    /// Issues a client certificate of a front proxy, by which extension API servers know this one.
    pub fn issue_front_proxy(&self) -> Result<Issued, PkiError> {
        let identity = Identity { user: FRONT_PROXY_NAME.into(), client: true, ..Identity::default() };
        self.front_proxy.read().issue(&identity, self.clock.now(), LEAF_LIFE)
    }

    /// What a client's certificates, which the handshake has checked, say of it: `None` if they are not from the authority
    /// of front proxies, else whether it is one.
    pub(crate) fn front_proxy(&self, chain: &[CertificateDer<'_>]) -> Option<bool> {
        self.front_proxies.check(chain, FRONT_PROXY_NAME)
    }

    /// The CA's certificate as PEM, told anew whenever it has been renewed: what carries a copy of it is to be written
    /// anew.
    pub fn ca_renewals(&self) -> watch::Receiver<Arc<str>> {
        self.published.subscribe()
    }

    /// The private key (PKCS#8 PEM, P-256) that signs service account tokens.
    pub fn service_account_key_pem(&self) -> &str {
        &self.sa_key_pem
    }

    /// Issues a client certificate: `CN` is the user, each `O` a group (at most [`GROUPS_MAX`]).
    pub fn issue_client(&self, user: &str, groups: &[&str], life: Duration) -> Result<Issued, PkiError> {
        let identity =
            Identity { user: user.into(), groups: strings(groups), client: true, ..Identity::default() };
        self.ca.read().issue(&identity, self.clock.now(), life)
    }

    /// Issues a serving certificate that also works as a client certificate: what a node's server needs.
    pub fn issue_node(&self, node: &str, names: &[&str], addresses: &[IpAddr]) -> Result<Issued, PkiError> {
        let identity = Identity {
            user: format!("system:node:{node}"),
            groups: strings(&["system:nodes"]),
            names: strings(names),
            addresses: addresses.to_vec(),
            client: true,
            server: true,
        };
        self.ca.read().issue(&identity, self.clock.now(), LEAF_LIFE)
    }

    /// Signs a request: a certificate for its key, of `identity`, which the caller has found to be what was asked and
    /// may be given. PEM.
    pub fn sign(&self, request_pem: &str, identity: &Identity, life: Duration) -> Result<String, PkiError> {
        let request = request::parse(request_pem)?;
        self.ca.read().sign(request, identity, self.clock.now(), life)
    }

    /// Adopts a changed set of host addresses: the server's certificate is issued anew and swapped at once.
    pub fn set_addresses(&self, addresses: impl IntoIterator<Item = IpAddr>) -> Result<(), PkiError> {
        let addresses: BTreeSet<IpAddr> = addresses.into_iter().collect();
        if *self.addresses.borrow() == addresses {
            return Ok(());
        }
        self.addresses.send_replace(addresses);
        self.renew_server()
    }

    /// The TLS side of a server: this authority's certificate, swapped when renewed; client certificates of this
    /// authority are checked when offered.
    pub fn server_config(&self, alpn: &[&[u8]]) -> Result<Arc<rustls::ServerConfig>, PkiError> {
        tls::server_config(&(self.ca_pem() + &self.front_proxy_ca_pem()), self.resolver.clone(), alpn)
    }

    /// Renews what is past two thirds of its life, sleeping until the next moment between, until `ctx` drains.
    pub async fn keep_renewed(&self, ctx: &Context) -> Result<(), PkiError> {
        loop {
            let now = self.clock.now();
            if self.ca.read().renew_at() <= now {
                let renewed = self.ca.read().renewed(&self.dir, now)?;
                *self.ca.write() = renewed;
                self.renew_server()?;
                self.published.send_replace(self.ca_pem().into());
            }
            if self.front_proxy.read().renew_at() <= now {
                let renewed = self.front_proxy.read().renewed(&self.dir, now)?;
                *self.front_proxy.write() = renewed;
                self.published.send_replace(self.ca_pem().into());
            }
            if self.resolver.renew_at() <= now {
                self.renew_server()?;
            }
            let next = self.ca.read().renew_at().min(self.resolver.renew_at());
            let next = next.min(self.front_proxy.read().renew_at());
            tokio::select! {
                () = self.clock.sleep_until(next) => {}
                () = ctx.cancelled() => return Ok(()),
            }
        }
    }

    fn renew_server(&self) -> Result<(), PkiError> {
        let addresses = self.addresses.borrow().clone();
        let issued = issue_server(&self.ca.read(), &self.names, &addresses, self.clock.now())?;
        self.resolver.swap(&issued)
    }
}

fn issue_server(
    ca: &issue::Ca,
    names: &[String],
    addresses: &BTreeSet<IpAddr>,
    now: Timestamp,
) -> Result<Issued, PkiError> {
    let identity = Identity {
        user: "kube-apiserver".into(),
        names: names.to_vec(),
        addresses: addresses.iter().copied().collect(),
        server: true,
        ..Identity::default()
    };
    let mut issued = ca.issue(&identity, now, LEAF_LIFE)?;
    // The authority is shown with it: a machine that joins knows it by its hash only.
    issued.cert_pem.push_str(&ca.cert_pem);
    Ok(issued)
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use base::clock::{Clock, VirtualClock};

    use super::*;

    fn open(dir: &Path, clock: &VirtualClock) -> Arc<Pki> {
        let names = vec!["kubernetes".to_owned()];
        Pki::open(dir, Arc::new(clock.clone()), names, ["127.0.0.1".parse().unwrap()]).unwrap()
    }

    #[test]
    fn the_authority_survives_a_restart_and_its_keys_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let clock = VirtualClock::new("2026-01-01T00:00:00Z".parse().unwrap());
        let first = open(dir.path(), &clock);
        let second = open(dir.path(), &clock);
        assert_eq!(first.ca_pem(), second.ca_pem());
        assert_eq!(first.service_account_key_pem(), second.service_account_key_pem());
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let mode = entry.unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0);
        }
    }

    #[tokio::test]
    async fn certificates_renew_in_the_running_process() {
        let dir = tempfile::tempdir().unwrap();
        let clock = VirtualClock::new("2026-01-01T00:00:00Z".parse().unwrap());
        let pki = open(dir.path(), &clock);
        let mut told = pki.ca_renewals();
        let (old_ca, old_leaf) = (pki.ca_pem(), pki.resolver.renew_at());
        assert_eq!(**told.borrow_and_update(), old_ca);
        clock.advance(Duration::from_secs(9 * 365 * 86_400));
        let ctx = Context::detached("pki");
        let cancel = ctx.cancel().clone();
        let (result, ()) = tokio::join!(pki.keep_renewed(&ctx), async { cancel.cancel() });
        result.unwrap();
        assert_ne!(pki.ca_pem(), old_ca);
        assert!(told.has_changed().unwrap());
        assert_eq!(**told.borrow(), pki.ca_pem());
        assert!(pki.resolver.renew_at() > clock.now());
        assert!(pki.resolver.renew_at() > old_leaf);
    }
    /// A client whose own order begins with the long key, as OpenSSL's and rustls's do.
    #[tokio::test]
    async fn the_server_chooses_the_shortest_sufficient_key() {
        let dir = tempfile::tempdir().unwrap();
        let clock = VirtualClock::new(Timestamp::now());
        let pki = open(dir.path(), &clock);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(tls::roots(&pki.ca_pem()).unwrap())
            .with_no_client_auth();
        let mut client =
            rustls::ClientConnection::new(Arc::new(config), "kubernetes".try_into().unwrap()).unwrap();
        let mut server = rustls::ServerConnection::new(pki.server_config(&[]).unwrap()).unwrap();
        let mut wire = Vec::new();
        while server.is_handshaking() {
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets().unwrap();
            wire.clear();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets().unwrap();
            wire.clear();
        }
        let chosen = server.negotiated_cipher_suite().unwrap().suite();
        assert_eq!(chosen, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    }
}
