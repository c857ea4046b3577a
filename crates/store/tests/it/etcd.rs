//! The contract on a real etcd, which proves the contract before it judges the embedded store.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use store::{Etcd, EtcdConfig, ProgressTrust, RangeRequest, Store as _, StoreError};

/// An etcd of its own, with its data in a directory that goes with it; killed when dropped, also by a panic.
struct Server {
    process: Child,
    url: String,
    _data: tempfile::TempDir,
}

impl Server {
    /// Starts etcd on free loopback ports and returns when it serves.
    fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let (client, peer) = (free_url(), free_url());
        // A test program that is killed runs no destructor: the kernel then kills etcd.
        let mut process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "etcd", "--data-dir"])
            .arg(data.path())
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .args(["--logger", "zap", "--log-outputs", "stderr"])
            // A private data directory is wiped afterwards: nothing is gained by waiting for its disk.
            .arg("--unsafe-no-fsync")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("etcd runs (Debian package etcd-server)");
        let log = BufReader::new(process.stderr.take().unwrap());
        let server = Self { process, url: client, _data: data };
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

fn free_url() -> String {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    format!("http://{address}")
}

#[tokio::test]
async fn etcd_fulfils_the_contract() {
    let server = Server::start();
    crate::contract::run(Etcd::connect(server.config()).await.unwrap()).await;
}

#[tokio::test]
async fn a_lost_server_ends_watches_and_fails_requests() {
    use futures::StreamExt as _;
    let server = Server::start();
    let config = EtcdConfig { timeout: Duration::from_secs(2), ..server.config() };
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
        endpoints: vec![free_url()],
        tls: None,
        user: None,
        timeout: Duration::from_secs(2),
        progress: ProgressTrust::ByVersion,
    };
    let url = config.endpoints[0].clone();
    let Err(error) = Etcd::connect(config).await else { panic!("it connects to nothing") };
    assert!(error.to_string().contains(&url), "{error}");
}
