//! Pull and push against Debian's docker-registry on loopback.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use super::*;

#[path = "scripted_tests.rs"]
mod scripted;
use scripted::{Scripted, reply};

/// A registry of its own on a free port; killed with this value.
struct Server {
    child: Child,
    address: String,
    _data: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let config = data.path().join("config.yml");
        let storage = data.path().join("data");
        let text = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:0'}}\n",
            storage.display()
        );
        std::fs::write(&config, text).unwrap();
        let mut child = Command::new("docker-registry")
            .args(["serve".as_ref(), config.as_os_str()])
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("Debian's package docker-registry is needed for this test");
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = loop {
            let line = lines.next().expect("the registry ended").unwrap();
            if let Some((_, rest)) = line.split_once("listening on ") {
                break rest.chars().take_while(|c| c.is_ascii_digit() || matches!(c, '.' | ':')).collect();
            }
        };
        // The pipe has to be read on, or the registry stops when it is full.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address, _data: data }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

fn rootfs(content: &[u8]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "etc/file", content).unwrap();
    tar.into_inner().unwrap()
}

async fn pull(store: &Store, name: &str) -> Result<Digest, Error> {
    let (sender, mut told) = listener();
    let told = async { while told.recv().await.is_some() {} };
    futures::future::join(store.pull(name, None, sender), told).await.0
}

fn listener() -> (mpsc::Sender<Progress>, mpsc::Receiver<Progress>) {
    mpsc::channel(1024)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_goes_to_a_registry_and_comes_back() {
    let server = Server::start();
    let name = format!("{}/a/image:v1", server.address);
    let (_here, here) = store();
    let content = vec![b'x'; 3 << 20];
    let id = here.import(rootfs(&content).as_slice(), &name).unwrap();
    let (sender, mut told) = listener();
    let pushed = here.push(&name, None, sender).await.unwrap();
    let mut lines = Vec::new();
    while let Some(step) = told.recv().await {
        lines.push(step.status);
    }
    assert!(lines.contains(&"Pushed".to_owned()), "{lines:?}");
    assert!(lines.last().unwrap().starts_with(&format!("v1: digest: {pushed} size: ")), "{lines:?}");

    let (_there, there) = store();
    let (sender, mut told) = listener();
    assert_eq!(there.pull(&name, None, sender).await.unwrap(), id);
    while let Some(step) = told.recv().await {
        lines.push(step.status);
    }
    assert!(lines.contains(&"Pull complete".to_owned()), "{lines:?}");
    let found = there.resolve(&name).unwrap();
    assert_eq!(found.origin, Origin::Registry);
    assert_eq!(found.image.manifest_digest, pushed);
    assert_eq!(found.image.repo_digests, [format!("{}/a/image@{pushed}", server.address)]);
    let mut read = Vec::new();
    there.view(&id).unwrap().file(std::path::Path::new("etc/file")).unwrap().read_to_end(&mut read).unwrap();
    assert_eq!(read, content);

    // By digest; nothing is fetched twice; what came compressed goes out as it came.
    let by_digest = format!("{}/a/image@{pushed}", server.address);
    let (sender, mut told) = listener();
    there.pull(&by_digest, None, sender).await.unwrap();
    let mut seen = Vec::new();
    while let Some(step) = told.recv().await {
        seen.push(step.status);
    }
    assert!(seen.contains(&"Already exists".to_owned()), "{seen:?}");
    there.tag(&name, &format!("{}/copy:v2", server.address)).unwrap();
    let (sender, _told) = listener();
    assert_eq!(there.push(&format!("{}/copy:v2", server.address), None, sender).await.unwrap(), pushed);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_said_and_leaves_nothing() {
    let server = Server::start();
    let (_dir, store) = store();
    let (sender, _told) = listener();
    let error = store.pull(&format!("{}/nope:1", server.address), None, sender).await.unwrap_err();
    assert!(matches!(error, Error::NotInRegistry(_)), "{error:?}");
    let address = server.address.clone();
    drop(server);
    let (sender, _told) = listener();
    let error = store.pull(&format!("{address}/nope:1"), None, sender).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
    assert!(store.list().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_registrys_own_words_are_told() {
    let registry = Scripted::new(|_, out| {
        reply(out, "403 Forbidden", "", br#"{"errors":[{"code":"DENIED","message":"team only"}]}"#);
    });
    let (_dir, store) = store();
    let error = pull(&store, &format!("{}/private:1", registry.address)).await.unwrap_err();
    assert!(matches!(&error, Error::Denied(message) if message.contains("(denied: team only)")), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_without_end_is_refused() {
    let registry = Scripted::new(|_, out| {
        out.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        while out.write_all(&[b' '; 64 * 1024]).is_ok() {}
    });
    let (_dir, store) = store();
    let error = pull(&store, &format!("{}/endless:1", registry.address)).await.unwrap_err();
    assert!(matches!(&error, Error::Invalid(message) if message.contains("larger than")), "{error:?}");
    // The connection was closed: it did not go on for ever.
    registry.quiet();
}

#[tokio::test]
#[allow(clippy::await_holding_lock, reason = "what is held is what the pull waits for, on another thread")]
async fn a_pull_that_is_given_up_never_names_an_image_without_content() {
    let server = Server::start();
    let name = format!("{}/a/image:v1", server.address);
    let (_here, here) = store();
    let id = here.import(rootfs(b"x").as_slice(), &name).unwrap();
    here.push(&name, None, listener().0).await.unwrap();

    let (_there, there) = store();
    let (sender, mut told) = listener();
    // Unpacking waits for this, so that the pull is in the midst of it.
    let unpacking = there.inner.unpacking.lock();
    let mut pull = Box::pin(there.pull(&name, None, sender));
    loop {
        tokio::select! {
            biased;
            done = &mut pull => panic!("{done:?} although nothing could be unpacked"),
            step = told.recv() => if step.unwrap().status == "Extracting" { break },
        }
    }
    // The step was told in the same turn in which the work was handed over.
    drop(pull);
    there.collect_garbage().unwrap();
    drop(unpacking);
    let found = tokio::time::timeout(Duration::from_secs(60), async {
        loop {
            match there.resolve(&name) {
                Ok(found) => break found,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    });
    assert_eq!(found.await.expect("the image was recorded").image.id, id);
    assert_eq!(there.list().unwrap().len(), 1);
    let mut text = String::new();
    there
        .view(&id)
        .unwrap()
        .file(std::path::Path::new("etc/file"))
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "x");
}
