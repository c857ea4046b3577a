//! Registries that do what a test says: break off, stall, lie, ask for passwords, speak TLS.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{listener, pull, rootfs, store};
use crate::Error;
use crate::digest::Digest;
use crate::document::{self, Descriptor, ImageDocument, Manifest};
use crate::download::Pace;
use crate::hosts::RegistryConfig;
use crate::registry::{Credentials, Registries};
use crate::store::Store;

/// What came with a request.
pub(super) struct Asked {
    /// With the query.
    path: String,
    headers: BTreeMap<String, String>,
    body: String,
}

impl Asked {
    fn from(&self) -> usize {
        let range = self.headers.get("range").and_then(|range| range.strip_prefix("bytes="));
        range.and_then(|range| range.strip_suffix('-')).map_or(0, |from| from.parse().unwrap())
    }
}

type Script = dyn Fn(&Asked, &mut dyn Write) + Send + Sync;

/// A server with one thread per connection, each of which carries one request.
pub(super) struct Scripted {
    pub(super) address: SocketAddr,
    ends: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<JoinHandle<()>>>>,
    accepting: Option<JoinHandle<()>>,
}

impl Scripted {
    pub(super) fn new(script: impl Fn(&Asked, &mut dyn Write) + Send + Sync + 'static) -> Self {
        Self::with(None, script)
    }

    fn with(
        tls: Option<Arc<rustls::ServerConfig>>,
        script: impl Fn(&Asked, &mut dyn Write) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (ends, open) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (script, end, threads) = (Arc::new(script), ends.clone(), open.clone());
        let accepting = std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if end.load(Ordering::Acquire) {
                    return;
                }
                let (script, tls) = (script.clone(), tls.clone());
                threads.lock().push(std::thread::spawn(move || serve(stream, tls, &*script)));
            }
        });
        Self { address, ends, open, accepting: Some(accepting) }
    }

    /// Returns when no connection is open any more.
    pub(super) fn quiet(&self) {
        for thread in std::mem::take(&mut *self.open.lock()) {
            thread.join().unwrap();
        }
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Release);
        let _ = TcpStream::connect(self.address);
        let _ = self.accepting.take().map(JoinHandle::join);
    }
}

fn serve(stream: TcpStream, tls: Option<Arc<rustls::ServerConfig>>, script: &Script) {
    match tls {
        None => answer(stream, script),
        Some(tls) => {
            let session = rustls::ServerConnection::new(tls).unwrap();
            answer(rustls::StreamOwned::new(session, stream), script);
        }
    }
}

fn answer(mut stream: impl Read + Write, script: &Script) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        // Who looks and goes away asks for nothing.
        if stream.read_exact(&mut byte).is_err() {
            return;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap().to_owned();
    let fields = head.lines().filter_map(|line| line.split_once(": "));
    let headers: BTreeMap<String, String> =
        fields.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
    let mut body = vec![0; headers.get("content-length").map_or(0, |length| length.parse().unwrap())];
    if stream.read_exact(&mut body).is_err() {
        return;
    }
    let body = String::from_utf8(body).unwrap();
    script(&Asked { path, headers, body }, &mut stream);
    let _ = stream.flush();
}

/// A whole answer.
pub(super) fn reply(out: &mut dyn Write, status: &str, more: &str, body: &[u8]) {
    let head =
        format!("HTTP/1.1 {status}\r\n{more}content-length: {}\r\nconnection: close\r\n\r\n", body.len());
    let _ = out.write_all(head.as_bytes()).and_then(|()| out.write_all(body));
}

/// An image of one layer, in a registry's words.
#[derive(Clone)]
struct Content {
    manifest: Vec<u8>,
    blobs: BTreeMap<String, Vec<u8>>,
    layer: Digest,
}

impl Content {
    fn new(bytes: usize) -> Self {
        // What no filter calls equal: each part of it is another.
        let content: Vec<u8> = (0..bytes).map(|at| (at / 7 % 251) as u8).collect();
        Self::of(&rootfs(&content), |_| {})
    }

    /// `change` says something else of it than what is so.
    fn of(archive: &[u8], change: impl FnOnce(&mut Manifest)) -> Self {
        let layer = Digest::of(archive);
        let mut document =
            ImageDocument { architecture: "amd64".into(), os: "linux".into(), ..ImageDocument::default() };
        document.rootfs.diff_ids = vec![layer.clone()];
        let config = serde_json::to_vec(&document).unwrap();
        let descriptor = |media_type: &str, bytes: &[u8]| Descriptor {
            media_type: media_type.to_owned(),
            digest: Digest::of(bytes),
            size: bytes.len() as u64,
            annotations: BTreeMap::new(),
            platform: None,
        };
        let mut manifest =
            Manifest::new(descriptor(document::CONFIG, &config), vec![descriptor(document::LAYER, archive)]);
        change(&mut manifest);
        let blobs = [config, archive.to_vec()].map(|bytes| (Digest::of(&bytes).to_string(), bytes)).into();
        Self { manifest: serde_json::to_vec(&manifest).unwrap(), blobs, layer }
    }

    fn archive(&self) -> &[u8] {
        &self.blobs[self.layer.as_str()]
    }

    /// As an honest registry does.
    fn serve(&self, asked: &Asked, out: &mut dyn Write) {
        let path = asked.path.split('?').next().unwrap();
        if path.contains("/manifests/") {
            let kind = format!("content-type: {}\r\n", document::MANIFEST);
            return reply(out, "200 OK", &kind, &self.manifest);
        }
        match self.blobs.get(path.rsplit('/').next().unwrap()) {
            None => reply(out, "404 Not Found", "", b""),
            Some(blob) => match asked.from() {
                0 => reply(out, "200 OK", "", blob),
                from => {
                    let range = format!("content-range: bytes {from}-{}/{}\r\n", blob.len() - 1, blob.len());
                    reply(out, "206 Partial Content", &range, &blob[from..]);
                }
            },
        }
    }

    fn is_layer(&self, asked: &Asked) -> bool {
        asked.path.contains(self.layer.as_str())
    }
}

fn partials(directory: &tempfile::TempDir) -> Vec<u64> {
    let all = std::fs::read_dir(directory.path().join("partial")).unwrap();
    all.map(|entry| entry.unwrap().metadata().unwrap().len()).filter(|bytes| *bytes > 0).collect()
}

fn hurried(store: Store, pace: Pace) -> Store {
    Store { registries: Arc::new(Registries { pace, ..Registries::default() }), ..store }
}

/// Sends so much of a body, and then no more.
fn cut(out: &mut dyn Write, body: &[u8], sent: usize) {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
    let _ = out.write_all(head.as_bytes()).and_then(|()| out.write_all(&body[..sent]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_broke_off_goes_on_where_it_ended() {
    let (content, asked_from) = (Content::new(3 << 20), Arc::new(Mutex::new(Vec::new())));
    let (served, noted) = (content.clone(), asked_from.clone());
    let registry = Scripted::new(move |asked, out| {
        if served.is_layer(asked) {
            noted.lock().push(asked.from());
            if noted.lock().len() == 1 {
                return cut(out, served.archive(), 1 << 20);
            }
        }
        served.serve(asked, out);
    });
    let (dir, store) = store();
    pull(&store, &format!("{}/a:1", registry.address)).await.unwrap();
    let asked_from = asked_from.lock().clone();
    assert!(matches!(asked_from[..], [0, from] if from > 0 && from <= 1 << 20), "{asked_from:?}");
    assert!(partials(&dir).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_process_goes_on_with_what_has_come() {
    let content = Content::new(3 << 20);
    let (is_broken, least) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(usize::MAX)));
    let (breaks, noted) = (is_broken.clone(), least.clone());
    let registry = Scripted::new(move |asked, out| match content.is_layer(asked) {
        true if !breaks.load(Ordering::Acquire) => {
            noted.fetch_min(asked.from(), Ordering::AcqRel);
            content.serve(asked, out);
        }
        true if asked.from() > 0 => reply(out, "503 Service Unavailable", "", b""),
        true => cut(out, content.archive(), 2 << 20),
        false => content.serve(asked, out),
    });
    let (dir, store) = store();
    let error = pull(&store, &format!("{}/a:1", registry.address)).await.unwrap_err();
    assert!(matches!(&error, Error::Unavailable(message) if message.contains("503")), "{error:?}");
    assert!(matches!(partials(&dir)[..], [bytes] if bytes > 0 && bytes <= 2 << 20), "{:?}", partials(&dir));
    drop(store);
    // Whatever was in memory is gone.
    let store = Store::open(dir.path()).unwrap();
    is_broken.store(false, Ordering::Release);
    pull(&store, &format!("{}/a:1", registry.address)).await.unwrap();
    assert!(least.load(Ordering::Acquire) > 0);
    assert!(partials(&dir).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_knows_no_ranges_sends_all_of_it_again() {
    let (content, tries) = (Content::new(1 << 20), AtomicU32::new(0));
    let registry = Scripted::new(move |asked, out| match content.is_layer(asked) {
        true if tries.fetch_add(1, Ordering::AcqRel) == 0 => cut(out, content.archive(), 1 << 19),
        true => reply(out, "200 OK", "", content.archive()),
        false => content.serve(asked, out),
    });
    let (_dir, store) = store();
    pull(&store, &format!("{}/a:1", registry.address)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_another_digest_is_dropped_and_what_is_spoilt_here_is_brought_again() {
    let content = Content::new(1 << 20);
    let served = content.clone();
    let liar = Scripted::new(move |asked, out| match served.is_layer(asked) {
        true => reply(out, "200 OK", "", &vec![b'x'; served.archive().len()]),
        false => served.serve(asked, out),
    });
    let (dir, store) = store();
    let error = pull(&store, &format!("{}/a:1", liar.address)).await.unwrap_err();
    assert!(matches!(error, Error::Digest { .. }), "{error:?}");
    assert!(partials(&dir).is_empty());
    let layer = content.layer.clone();
    let honest = Scripted::new(move |asked, out| content.serve(asked, out));
    // As a loss of power may leave it.
    let name = crate::partial::name(&honest.address.to_string(), &layer);
    std::fs::write(dir.path().join("partial").join(name), vec![0; 4096]).unwrap();
    pull(&store, &format!("{}/a:1", honest.address)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_was_promised_is_refused() {
    let content = Content::new(1 << 20);
    let registry = Scripted::new(move |asked, out| match content.is_layer(asked) {
        true => {
            let _ = out.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            while out.write_all(&[b'x'; 64 * 1024]).is_ok() {}
        }
        false => content.serve(asked, out),
    });
    let (dir, store) = store();
    let error = pull(&store, &format!("{}/a:1", registry.address)).await.unwrap_err();
    assert!(matches!(&error, Error::Invalid(message) if message.contains("sends more than")), "{error:?}");
    assert!(partials(&dir).is_empty());
    registry.quiet();
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_that_no_disk_has_room_for_are_refused_before_anything_comes() {
    let content = Content::of(&rootfs(b"x"), |manifest| manifest.layers[0].size = u64::MAX);
    let registry = Scripted::new(move |asked, out| content.serve(asked, out));
    let (_dir, store) = store();
    let error = pull(&store, &format!("{}/a:1", registry.address)).await.unwrap_err();
    let full = |source: &io::Error| source.kind() == io::ErrorKind::StorageFull;
    assert!(matches!(&error, Error::Io { source, .. } if full(source)), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_to_be_something_else_is_refused() {
    let content = Content::new(10);
    let registry = Scripted::new(move |asked, out| match asked.path.contains("/manifests/") {
        true => reply(out, "200 OK", &format!("content-type: {}\r\n", document::INDEX), &content.manifest),
        false => content.serve(asked, out),
    });
    let (_dir, store) = store();
    let error = pull(&store, &format!("{}/a:1", registry.address)).await.unwrap_err();
    assert!(matches!(&error, Error::Invalid(message) if message.contains("is said to be")), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_nothing_or_next_to_nothing_is_not_waited_for() {
    let content = Content::new(1 << 20);
    let served = content.clone();
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = Mutex::new(held);
    let registry = Scripted::new(move |asked, out| match served.is_layer(asked) {
        true if asked.path.contains("/drips/") => {
            let _ = out.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            let wait = || held.lock().recv_timeout(Duration::from_millis(20)).is_err();
            while out.write_all(b"x").and_then(|()| out.flush()).is_ok() && wait() {}
        }
        true => {
            cut(out, served.archive(), 10);
            let _ = held.lock().recv_timeout(Duration::from_secs(60));
        }
        false => served.serve(asked, out),
    });
    let pace = Pace { window: Duration::from_millis(300), bytes_min: 1024 };
    for path in ["drips", "stalls"] {
        let (_dir, store) = store();
        let store = hurried(store, pace);
        let error = pull(&store, &format!("{}/{path}/a:1", registry.address)).await.unwrap_err();
        assert!(matches!(error, Error::Unreachable(_)), "{path}: {error:?}");
    }
    drop(release);
    registry.quiet();
}

/// A store whose registry `127.0.0.1:1`, where nobody listens, has these places.
fn mirrored(hosts: &str) -> (tempfile::TempDir, Store) {
    let (dir, store) = store();
    let place = dir.path().join("certs.d/127.0.0.1:1");
    std::fs::create_dir_all(&place).unwrap();
    std::fs::write(place.join("hosts.toml"), hosts).unwrap();
    let directories = vec![dir.path().join("certs.d")];
    (dir, store.with_registries(RegistryConfig { directories, docker_daemon: None }))
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_asked_in_turn_and_believed_only_by_digest() {
    let content = Content::new(100_000);
    let empty = Scripted::new(|_, out| reply(out, "404 Not Found", "", b""));
    let served = content.clone();
    let spoilt = Scripted::new(move |asked, out| match served.is_layer(asked) {
        true => reply(out, "200 OK", "", &vec![b'x'; served.archive().len()]),
        false => served.serve(asked, out),
    });
    let (served, paths) = (content.clone(), Arc::new(Mutex::new(Vec::new())));
    let noted = paths.clone();
    let whole = Scripted::new(move |asked, out| {
        noted.lock().push((asked.path.clone(), asked.headers.get("x-team").cloned()));
        let (path, headers) = (asked.path.replace("/cache", ""), BTreeMap::new());
        served.serve(&Asked { path, headers, body: String::new() }, out);
    });
    let hosts = format!(
        "[host.\"http://{}\"]\n[host.\"http://{}\"]\n[host.\"http://{}/cache\"]\ncapabilities=[\"pull\"]\nheader={{x-team=\"a\"}}\n",
        empty.address, spoilt.address, whole.address
    );
    let (_dir, store) = mirrored(&hosts);
    pull(&store, "127.0.0.1:1/team/app:1").await.unwrap();
    let paths = paths.lock().clone();
    let wanted = format!("/cache/v2/team/app/blobs/{}?ns=127.0.0.1:1", content.layer);
    assert_eq!(paths, [(wanted, Some("a".to_owned()))]);
    // Where nobody has it, the registry's own answer counts, and what the others said is told as well.
    let (_dir, store) = mirrored(&format!("[host.\"http://{}\"]", empty.address));
    let error = pull(&store, "127.0.0.1:1/team/app:1").await.unwrap_err();
    assert!(
        matches!(&error, Error::Unavailable(message) if message.contains("manifest unknown")),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_is_told_who_asks_as_it_wants_to_be() {
    let content = Content::new(100);
    let address = Arc::new(Mutex::new(String::new()));
    let (served, own) = (content.clone(), address.clone());
    let registry = Scripted::new(move |asked, out| {
        let told = asked.headers.get("authorization").map(String::as_str);
        let ask = |how: String| format!("www-authenticate: {how}\r\n");
        let user = "Basic dTpw";
        if asked.path.starts_with("/token?") {
            let wanted = "service=s&scope=repository%3Atoken%2Fa%3Apull";
            let known = told == Some(user) && asked.path.ends_with(wanted);
            return match known {
                true => reply(out, "200 OK", "", br#"{"token":"t1"}"#),
                false => reply(out, "401 Unauthorized", "", b""),
            };
        }
        let (wanted, how) = match asked.path.starts_with("/v2/token/") {
            true => ("Bearer t1", format!("Bearer realm=\"http://{}/token\",service=\"s\"", own.lock())),
            false => (user, "Basic realm=\"r\"".to_owned()),
        };
        match told == Some(wanted) {
            true => served.serve(asked, out),
            false => reply(out, "401 Unauthorized", &ask(how), b""),
        }
    });
    *address.lock() = registry.address.to_string();
    for path in ["token/a", "basic/a"] {
        let name = format!("{}/{path}:1", registry.address);
        let (_dir, store) = store();
        let error = pull(&store, &name).await.unwrap_err();
        assert!(matches!(error, Error::Denied(_)), "{path}: {error:?}");
        let user = Credentials { username: "u".to_owned(), password: "p".to_owned() };
        let (sender, mut told) = listener();
        let told = async { while told.recv().await.is_some() {} };
        futures::future::join(store.pull(&name, Some(user), sender), told).await.0.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_token_is_exchanged_for_one_that_opens_the_repository() {
    let content = Content::new(100);
    let address = Arc::new(Mutex::new(String::new()));
    let (served, own) = (content.clone(), address.clone());
    let registry = Scripted::new(move |asked, out| {
        let told = asked.headers.get("authorization").map(String::as_str);
        if asked.path == "/token" {
            let wanted = "grant_type=refresh_token&client_id=skiff&refresh_token=a%26b&service=s&scope=repository%3Aa%3Apull";
            return match (asked.body.as_str(), told) {
                (body, None) if body == wanted => reply(out, "200 OK", "", br#"{"access_token":"t1"}"#),
                _ => reply(out, "401 Unauthorized", "", b""),
            };
        }
        let how = format!("www-authenticate: Bearer realm=\"http://{}/token\",service=\"s\"\r\n", own.lock());
        match told {
            Some("Bearer t1") => served.serve(asked, out),
            _ => reply(out, "401 Unauthorized", &how, b""),
        }
    });
    *address.lock() = registry.address.to_string();
    let name = format!("{}/a:1", registry.address);
    let (_dir, store) = store();
    for (token, opens) in [("wrong", false), ("a&b", true)] {
        for username in ["", "<token>"] {
            let user = Credentials { username: username.to_owned(), password: token.to_owned() };
            let (sender, mut told) = listener();
            let told = async { while told.recv().await.is_some() {} };
            let pulled = futures::future::join(store.pull(&name, Some(user), sender), told).await.0;
            assert_eq!(pulled.is_ok(), opens, "{pulled:?}");
        }
    }
}

/// An authority of one's own, and what it has signed for 127.0.0.1: certificates and keys in PEM.
struct Authority {
    ca: String,
    server: (String, KeyPair),
    client: (String, String),
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        let sign = |name: &str| {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            (params.signed_by(&key, &issuer).unwrap().pem(), key)
        };
        let client = sign("client");
        Self { ca, server: sign("127.0.0.1"), client: (client.0, client.1.serialize_pem()) }
    }

    /// Of a server that demands a certificate of this authority.
    fn config(&self) -> Arc<rustls::ServerConfig> {
        use rustls::pki_types::pem::PemObject as _;
        let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(der(&self.ca)).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let clients =
            rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.server.1.serialize_der()));
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients.build().unwrap())
            .with_single_cert(vec![der(&self.server.0)], key);
        Arc::new(config.unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_of_an_own_authority_is_believed_where_its_directory_says_so() {
    let authority = Authority::new();
    let content = Content::new(100);
    let registry = Scripted::with(Some(authority.config()), move |asked, out| content.serve(asked, out));
    let name = format!("{}/a:1", registry.address);
    let (dir, store) = store();
    let place = dir.path().join("certs.d").join(registry.address.to_string());
    std::fs::create_dir_all(&place).unwrap();
    let directories = vec![dir.path().join("certs.d")];
    let store = store.with_registries(RegistryConfig { directories, docker_daemon: None });
    let write = |name: &str, text: &str| std::fs::write(place.join(name), text).unwrap();
    // Of Docker's layout: without the authority it is not believed, without its certificate it lets nobody in.
    write("ca.crt", "");
    let error = pull(&store, &name).await.unwrap_err();
    assert!(matches!(&error, Error::Invalid(message) if message.contains("ca.crt")), "{error:?}");
    write("ca.crt", &authority.ca);
    assert!(matches!(pull(&store, &name).await, Err(Error::Unreachable(_))));
    write("client.cert", &authority.client.0);
    write("client.key", &authority.client.1);
    pull(&store, &name).await.unwrap();
    // Of containerd's.
    let other = Authority::new();
    write("other.pem", &other.ca);
    let hosts = |ca: &str| {
        write("hosts.toml", &format!("ca = \"{ca}\"\nclient = [[\"client.cert\", \"client.key\"]]"));
    };
    hosts("other.pem");
    assert!(matches!(pull(&store, &name).await, Err(Error::Unreachable(_))));
    hosts("ca.crt");
    pull(&store, &name).await.unwrap();
}
