//! Clients that take their time, over real sockets: one that sends its body a byte at a time, and many that never read what
//! they asked for. Both end or wait within bounds, and others are served meanwhile.

use std::sync::Arc;
use std::time::Duration;

use apiserver::pki::{HotResolver, client_config};
use base::lifecycle::Tasks;
use http::Method;
use rustls_pki_types::ServerName;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::cluster::Cluster;
use crate::http_front::{JSON, MAPS, write};

/// Of a list that all of them ask for, this is one object.
const OBJECT_BYTES: usize = 100 * 1024;
const OBJECTS: usize = 150;
const CLIENTS: usize = 80;

/// A connection of an administrator.
async fn connect(cluster: &Cluster) -> TlsStream<TcpStream> {
    let admin = cluster.pki.issue_client("admin", &["system:masters"], Duration::from_secs(3600)).unwrap();
    let config = client_config(&cluster.pki.ca_pem(), Arc::new(HotResolver::new(&admin).unwrap())).unwrap();
    let stream = TcpStream::connect(cluster.address).await.unwrap();
    let name = ServerName::try_from("kubernetes").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

fn head(method: &str, path: &str, more: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nhost: kubernetes\r\n{more}\r\n")
}

/// The code of the answer that begins here.
async fn code(stream: &mut (impl AsyncReadExt + Unpin)) -> u16 {
    let mut begun = [0; 12];
    stream.read_exact(&mut begun).await.unwrap();
    let text = std::str::from_utf8(&begun).unwrap();
    text.strip_prefix("HTTP/1.1 ").unwrap_or_else(|| panic!("{text}")).parse().unwrap()
}

/// Memory of this process, in bytes.
fn memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<usize>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_comes_byte_by_byte_ends_with_the_requests_time() {
    let cluster = Cluster::start().await;
    let tasks = Tasks::default();
    let mut slow = Vec::new();
    for _ in 0..10 {
        let stream = connect(&cluster).await;
        let (mut reading, mut writing) = tokio::io::split(stream);
        let more = format!("content-type: {JSON}\r\ncontent-length: 1000000\r\n");
        writing.write_all(head("POST", &format!("{MAPS}?timeout=2s"), &more).as_bytes()).await.unwrap();
        tasks.spawn(async move {
            // Until the server has had enough.
            while writing.write_all(b" ").await.is_ok() && writing.flush().await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        slow.push(async move { code(&mut reading).await });
    }
    let mut other = connect(&cluster).await;
    other.write_all(head("GET", MAPS, "").as_bytes()).await.unwrap();
    assert_eq!(code(&mut other).await, 200, "others are served");
    assert_eq!(futures::future::join_all(slow).await, [504; 10]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_never_reads_its_list_costs_little() {
    let cluster = Cluster::start().await;
    let data = "x".repeat(OBJECT_BYTES);
    for number in 0..OBJECTS {
        let map = json!({ "metadata": { "name": format!("m{number}") }, "data": { "k": data } });
        assert_eq!(write(&cluster, Method::POST, MAPS, JSON, map.to_string()).await.code, 201);
    }
    let before = memory();
    let mut stuck = Vec::new();
    for _ in 0..CLIENTS {
        let mut stream = connect(&cluster).await;
        stream.write_all(head("GET", MAPS, "").as_bytes()).await.unwrap();
        assert_eq!(code(&mut stream).await, 200);
        stuck.push(stream);
    }
    // Another one reads it to its end, and so as much as any of them could.
    let mut other = connect(&cluster).await;
    other.write_all(head("GET", MAPS, "connection: close\r\n").as_bytes()).await.unwrap();
    let mut whole = Vec::new();
    // The end of the connection is the end of the answer, however it is said.
    let _ = other.read_to_end(&mut whole).await;
    assert!(whole.len() > OBJECT_BYTES * OBJECTS, "others are served: {} bytes", whole.len());
    let grown = memory().saturating_sub(before);
    let all = OBJECT_BYTES * OBJECTS * CLIENTS;
    assert!(grown < all / 3, "{grown} bytes for {CLIENTS} clients that read nothing of {all}");
}
