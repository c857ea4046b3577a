//! The contract on a real etcd, which proves the contract before it judges the embedded store.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use store::{Etcd, EtcdConfig, EtcdTls, ProgressTrust, RangeRequest, Store as _, StoreError};

/// An etcd of its own, with its data in a directory that goes with it; killed when dropped, also by a panic.
struct Server {
    process: Child,
    url: String,
    _data: tempfile::TempDir,
}

impl Server {
    /// Starts etcd on free loopback ports and returns when it serves.
    fn start() -> Self {
        Self::start_with(&free_url("http"), &[])
    }

    /// The same at a URL for clients, with further arguments.
    fn start_with(client: &str, arguments: &[&str]) -> Self {
        let data = tempfile::tempdir().unwrap();
        let peer = free_url("http");
        // A test program that is killed runs no destructor: the kernel then kills etcd.
        let mut process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "etcd", "--data-dir"])
            .arg(data.path())
            .args(["--listen-client-urls", client, "--advertise-client-urls", client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .args(["--logger", "zap", "--log-outputs", "stderr"])
            // A private data directory is wiped afterwards: nothing is gained by waiting for its disk.
            .arg("--unsafe-no-fsync")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("etcd runs (Debian package etcd-server)");
        let log = BufReader::new(process.stderr.take().unwrap());
        let server = Self { process, url: client.to_owned(), _data: data };
        wait_until_serving(log);
        server
    }

    fn config(&self) -> EtcdConfig {
        EtcdConfig {
            endpoints: vec![self.url.clone()],
            tls: None,
            user: None,
            timeout: Duration::from_secs(20),
            progress: ProgressTrust::ByVersion,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Reads etcd's log until it says that it serves, and drains the rest so that etcd never blocks on it.
fn wait_until_serving(log: BufReader<std::process::ChildStderr>) {
    let (serving, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in log.lines().map_while(Result::ok) {
            if line.contains("serving") && line.contains("client") {
                let _ = serving.send(());
            }
        }
    });
    wait.recv_timeout(Duration::from_secs(60)).expect("etcd serves");
}

fn free_url(scheme: &str) -> String {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    format!("{scheme}://{address}")
}

#[tokio::test]
async fn etcd_fulfils_the_contract() {
    let server = Server::start();
    crate::contract::run(Etcd::connect(server.config()).await.unwrap()).await;
}

#[tokio::test]
async fn progress_requests_are_understood() {
    // This server may answer before the events (3.4.23), so only what does not race is tried.
    let server = Server::start();
    let config = EtcdConfig { progress: ProgressTrust::Always, ..server.config() };
    let store = Etcd::connect(config).await.unwrap();
    crate::contract::run_some(store, |name| name == "progress_is_reported_when_asked").await;
}

/// A certificate for this machine and its key, signed by the issuer or by itself as an authority; PEM.
fn certificate(issuer: Option<&Issuer<'_, KeyPair>>) -> (String, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = match issuer {
        Some(issuer) => {
            params.extended_key_usages =
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            params.signed_by(&key, issuer).unwrap()
        }
        None => {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.self_signed(&key).unwrap()
        }
    };
    (certificate.pem(), key)
}

#[tokio::test]
async fn tls_with_client_certificates() {
    let (ca, key) = certificate(None);
    let issuer = Issuer::from_ca_cert_pem(&ca, key).unwrap();
    let (server_certificate, server_key) = certificate(Some(&issuer));
    let (client_certificate, client_key) = certificate(Some(&issuer));
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.into_os_string().into_string().unwrap()
    };
    let server = Server::start_with(
        &free_url("https"),
        &[
            "--client-cert-auth",
            "--trusted-ca-file",
            &file("ca.pem", &ca),
            "--cert-file",
            &file("server.pem", &server_certificate),
            "--key-file",
            &file("server.key", &server_key.serialize_pem()),
        ],
    );
    let identity = Some((client_certificate.into_bytes(), client_key.serialize_pem().into_bytes()));
    let tls = EtcdTls { ca: ca.into_bytes(), identity, server_name: None };
    let store = Etcd::connect(EtcdConfig { tls: Some(tls.clone()), ..server.config() }).await.unwrap();
    crate::contract::run_some(store, |name| name == "all_writes_share_a_revision").await;
    // Without a certificate of one's own, or with another authority's, there is no way in.
    let nobody = EtcdTls { identity: None, ..tls.clone() };
    let stranger = EtcdTls { ca: certificate(None).0.into_bytes(), ..tls };
    for tls in [nobody, stranger] {
        let config = EtcdConfig { tls: Some(tls), timeout: Duration::from_secs(3), ..server.config() };
        let Err(error) = Etcd::connect(config).await else { panic!("anybody is let in") };
        assert!(matches!(&error, StoreError::Unavailable(_)), "{error}");
    }
}

#[tokio::test]
async fn a_lost_server_ends_watches_and_fails_requests() {
    use futures::StreamExt as _;
    let server = Server::start();
    let config = EtcdConfig { timeout: Duration::from_secs(20), ..server.config() };
    let store = Etcd::connect(config).await.unwrap();
    let request = store::WatchRequest {
        key: "k".into(),
        end: store::RangeEnd::Prefix,
        start_revision: 0,
        prev_kv: false,
        progress: false,
    };
    let mut watch = store.watch(request).await.unwrap();
    drop(server);
    assert!(matches!(watch.next().await, Some(Err(StoreError::Unavailable(_)))));
    assert!(watch.next().await.is_none());
    let error = store.range(RangeRequest::key("k")).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
}

#[tokio::test]
async fn an_address_without_etcd_is_named() {
    let config = EtcdConfig {
        endpoints: vec![free_url("http")],
        tls: None,
        user: None,
        timeout: Duration::from_secs(2),
        progress: ProgressTrust::ByVersion,
    };
    let url = config.endpoints[0].clone();
    let Err(error) = Etcd::connect(config).await else { panic!("it connects to nothing") };
    assert!(error.to_string().contains(&url), "{error}");
}
