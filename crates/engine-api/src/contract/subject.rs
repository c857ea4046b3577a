//! What a case works with.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;

use crate::{ByteStream, ContainerSpec, ContainerStatus, Exit, Images, Process, Runtime, SandboxSpec};

/// Nothing that a case waits for takes this long, also on a loaded machine, unless it is broken.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Implementations under test, in a place of the case's own.
#[derive(Clone)]
pub struct Subject {
    /// Keeps sandboxes and containers.
    pub runtime: Arc<dyn Runtime>,
    /// Keeps the images that `runtime` runs.
    pub images: Arc<dyn Images>,
    /// The id of the image of [`super::busybox`], tagged `busybox:test`.
    pub image: String,
    /// The runtime handler of its sandboxes.
    pub handler: String,
}

impl Subject {
    /// A sandbox with its defaults; its id.
    pub async fn sandbox(&self) -> String {
        self.sandbox_from(SandboxSpec { hostname: "pod".into(), ..SandboxSpec::default() }).await
    }

    /// A sandbox from a specification, which gets an id of its own; that id.
    pub async fn sandbox_from(&self, spec: SandboxSpec) -> String {
        let id = base::id::hex64();
        let runtime_handler = self.handler.clone();
        self.runtime.create_sandbox(SandboxSpec { id: id.clone(), runtime_handler, ..spec }).await.unwrap();
        id
    }

    /// The specification of a shell script.
    pub fn script(&self, sandbox: &str, script: &str) -> ContainerSpec {
        ContainerSpec {
            id: base::id::hex64(),
            sandbox_id: sandbox.to_owned(),
            name: "test".into(),
            image: "busybox:test".into(),
            image_id: self.image.clone(),
            args: ["sh", "-c", script].map(str::to_owned).to_vec(),
            ..ContainerSpec::default()
        }
    }

    /// Makes and starts a container.
    pub async fn start(&self, spec: ContainerSpec) -> ContainerStatus {
        let id = spec.id.clone();
        self.runtime.create_container(spec).await.unwrap();
        self.runtime.start_container(&id).await.unwrap()
    }

    /// Makes and starts a container and waits until it has written `needle`; answers what it wrote up to there.
    pub async fn start_until(&self, spec: ContainerSpec, needle: &str) -> (ContainerStatus, String) {
        let id = spec.id.clone();
        self.runtime.create_container(spec).await.unwrap();
        let mut process = self.runtime.attach(&id).await.unwrap();
        let status = self.runtime.start_container(&id).await.unwrap();
        let text = until(process.io.stdout.as_mut().unwrap(), needle).await;
        (status, text)
    }

    /// How a container ends, waited for.
    pub async fn end(&self, id: &str) -> Exit {
        patiently(self.runtime.wait_container(id)).await.unwrap()
    }

    /// Runs a container to its end; answers how it ended and what it wrote, both streams as logged.
    pub async fn run(&self, spec: ContainerSpec) -> (Exit, String) {
        let status = self.start(spec).await;
        let exit = self.end(&status.spec.id).await;
        (exit, log_text(&status.log_path))
    }
}

/// Waits for what has to come; panics after [`PATIENCE`].
#[track_caller]
pub fn patiently<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let caller = std::panic::Location::caller();
    async move {
        match tokio::time::timeout(PATIENCE, future).await {
            Ok(value) => value,
            Err(_) => panic!("{caller}: not within {PATIENCE:?}"),
        }
    }
}

/// The text of a log, without times and tags.
pub fn log_text(path: &Path) -> String {
    let log = Bytes::from(std::fs::read(path).unwrap());
    let mut text = Vec::new();
    for line in log.split_inclusive(|byte| *byte == b'\n') {
        let entry = crate::logs::LogEntry::parse(&log.slice_ref(line)).unwrap();
        text.extend_from_slice(&entry.text);
        if !entry.partial {
            text.push(b'\n');
        }
    }
    String::from_utf8(text).unwrap()
}

/// All that a stream gives.
pub async fn bytes(mut stream: ByteStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(chunk) = patiently(stream.next()).await {
        bytes.extend_from_slice(&chunk.unwrap());
    }
    bytes
}

/// All text that a process's stream gives.
pub async fn all(stream: Option<ByteStream>) -> String {
    String::from_utf8(bytes(stream.expect("the stream is there")).await).unwrap()
}

/// A stream until it has given `needle`; panics at its end.
pub async fn until(stream: &mut ByteStream, needle: &str) -> String {
    let mut text = String::new();
    while !text.contains(needle) {
        let chunk = patiently(stream.next()).await;
        let chunk = chunk.unwrap_or_else(|| panic!("the stream ended after {text:?}")).unwrap();
        text.push_str(&String::from_utf8_lossy(&chunk));
    }
    text
}

/// How a process ended and what it wrote.
pub async fn outcome(process: Process) -> (Exit, String, String) {
    let (stdout, stderr) = tokio::join!(all(process.io.stdout), all(process.io.stderr));
    (patiently(process.exit).await.unwrap().unwrap(), stdout, stderr)
}
