//! The API over a real socket and an engine that only remembers.

use std::collections::BTreeMap;
use std::path::Path;

use async_trait::async_trait;
use bytes::Bytes;
use engine_api::{
    BuildEvent, BuildRequest, ByteStream, CommitRequest, Connection, ContainerEvent, ContainerSpec,
    ContainerStatus, EngineError, EventsLost, ExecSpec, Exit, Image, ImageConfig, ImageOrigin, Process,
    ProcessIo, ProgressStream, PublishedPort, RegistryAuth, RemovalKind, Resolution, Resources,
    SandboxNetwork, SandboxSpec, SandboxState, SandboxStatus, Stats, TerminalSize,
};
use futures::stream::BoxStream;
use futures::{FutureExt, TryStreamExt};
use http_body_util::Full;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use super::*;

/// Remembers what it was told; a started container writes `hello` and ends with 3 when its input ends.
struct Memory {
    sandboxes: Mutex<BTreeMap<String, SandboxSpec>>,
    containers: watch::Sender<BTreeMap<String, ContainerStatus>>,
    outputs: Mutex<HashMap<String, mpsc::UnboundedSender<Bytes>>>,
    events: broadcast::Sender<ContainerEvent>,
    builds: Mutex<Vec<(BuildRequest, String)>>,
    commits: Mutex<Vec<CommitRequest>>,
    /// The sandboxes whose ports were published, and how many.
    publishes: watch::Sender<Vec<(String, usize)>>,
    /// Whether containers start; until then their start waits.
    open: watch::Sender<bool>,
}

impl Memory {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            sandboxes: Mutex::default(),
            containers: watch::Sender::default(),
            outputs: Mutex::default(),
            events: broadcast::Sender::new(16),
            builds: Mutex::default(),
            commits: Mutex::default(),
            publishes: watch::Sender::default(),
            open: watch::Sender::new(true),
        })
    }

    fn tell(&self, id: &str, kind: ContainerEventKind) {
        let event = ContainerEvent { sandbox_id: id.to_owned(), container_id: id.to_owned(), kind };
        let _ = self.events.send(event);
    }

    fn end(&self, id: &str) -> Exit {
        let exit = Exit {
            code: 3,
            signal: 0,
            oom_killed: false,
            finished_at: Timestamp::now(),
            message: String::new(),
        };
        self.containers.send_modify(|all| {
            if let Some(status) = all.get_mut(id) {
                status.state = ContainerState::Exited { started_at: None, exit: exit.clone() };
            }
        });
        self.outputs.lock().remove(id);
        self.tell(id, ContainerEventKind::Exited(exit.clone()));
        exit
    }
}

fn missing(what: &str) -> EngineError {
    EngineError::not_found(format!("no {what}"))
}

#[async_trait]
impl Runtime for Memory {
    async fn create_sandbox(&self, spec: SandboxSpec) -> Result<SandboxStatus, EngineError> {
        self.sandboxes.lock().insert(spec.id.clone(), spec.clone());
        let netns_path = "/netns".to_owned();
        Ok(SandboxStatus { spec, state: SandboxState::Ready, created_at: Timestamp::now(), netns_path })
    }
    async fn stop_sandbox(&self, _: &str) -> Result<(), EngineError> {
        Ok(())
    }
    async fn remove_sandbox(&self, id: &str) -> Result<(), EngineError> {
        self.sandboxes.lock().remove(id);
        self.containers.send_modify(|all| all.retain(|_, status| status.spec.sandbox_id != id));
        Ok(())
    }
    async fn sandboxes(&self) -> Result<Vec<SandboxStatus>, EngineError> {
        let status = |spec: &SandboxSpec| SandboxStatus {
            spec: spec.clone(),
            state: SandboxState::Ready,
            created_at: Timestamp::now(),
            netns_path: "/netns".to_owned(),
        };
        Ok(self.sandboxes.lock().values().map(status).collect())
    }
    async fn create_container(&self, spec: ContainerSpec) -> Result<ContainerStatus, EngineError> {
        let log_path = std::path::PathBuf::from("/none");
        let status = ContainerStatus {
            spec,
            state: ContainerState::Created,
            created_at: Timestamp::now(),
            log_path,
            identity: None,
        };
        self.containers.send_modify(|all| drop(all.insert(status.spec.id.clone(), status.clone())));
        Ok(status)
    }
    async fn start_container(&self, id: &str) -> Result<ContainerStatus, EngineError> {
        let _ = self.open.subscribe().wait_for(|open| *open).await;
        self.containers.send_modify(|all| {
            if let Some(status) = all.get_mut(id) {
                status.state = ContainerState::Running { pid: 7, started_at: Timestamp::now() };
            }
        });
        if let Some(output) = self.outputs.lock().get(id) {
            let _ = output.send(Bytes::from("hello\n"));
        }
        self.tell(id, ContainerEventKind::Started);
        self.container(id).await
    }
    async fn stop_container(&self, id: &str, _: Duration) -> Result<Exit, EngineError> {
        Ok(self.end(id))
    }
    async fn signal_container(&self, id: &str, _: i32) -> Result<(), EngineError> {
        self.end(id);
        Ok(())
    }
    async fn remove_container(&self, _: &str, _: bool) -> Result<(), EngineError> {
        Ok(())
    }
    async fn container(&self, id: &str) -> Result<ContainerStatus, EngineError> {
        self.containers.borrow().get(id).cloned().ok_or_else(|| missing("container"))
    }
    async fn containers(&self) -> Result<Vec<ContainerStatus>, EngineError> {
        Ok(self.containers.borrow().values().cloned().collect())
    }
    async fn wait_container(&self, id: &str) -> Result<Exit, EngineError> {
        let mut all = self.containers.subscribe();
        let exited = |all: &BTreeMap<String, ContainerStatus>| match &all.get(id)?.state {
            ContainerState::Exited { exit, .. } => Some(exit.clone()),
            _ => None,
        };
        let all = all.wait_for(|all| exited(all).is_some()).await.map_err(|_| missing("container"))?;
        exited(&all).ok_or_else(|| missing("exit"))
    }
    async fn exec(&self, _: &str, spec: ExecSpec) -> Result<Process, EngineError> {
        let (sender, exit) = oneshot::channel();
        let finished_at = Timestamp::now();
        let _ = sender.send(Ok(Exit {
            code: 5,
            signal: 0,
            oom_killed: false,
            finished_at,
            message: String::new(),
        }));
        let output = Bytes::from(spec.command.join(" "));
        let stdout = Some(futures::stream::iter([Ok(output)]).boxed());
        let (resize, _) = mpsc::channel(1);
        Ok(Process { io: ProcessIo { stdin: None, stdout, stderr: None, resize }, exit, pid: 9 })
    }
    async fn attach(&self, id: &str) -> Result<Process, EngineError> {
        let (output, receiver) = mpsc::unbounded_channel();
        self.outputs.lock().insert(id.to_owned(), output);
        let stdout = tokio_stream::wrappers::UnboundedReceiverStream::new(receiver).map(Ok).boxed();
        let (_, exit) = oneshot::channel();
        let (resize, _) = mpsc::channel(1);
        Ok(Process {
            io: ProcessIo { stdin: None, stdout: Some(stdout), stderr: None, resize },
            exit,
            pid: 7,
        })
    }
    async fn resize_container(&self, _: &str, _: TerminalSize) -> Result<(), EngineError> {
        Ok(())
    }
    async fn connect(&self, _: &str, _: u16) -> Result<Box<dyn Connection>, EngineError> {
        Err(missing("network"))
    }
    async fn log_path(&self, _: &str) -> Result<std::path::PathBuf, EngineError> {
        Err(missing("log"))
    }
    async fn stats(&self, _: &str) -> Result<Stats, EngineError> {
        Ok(Stats::default())
    }
    async fn update_resources(&self, _: &str, _: Resources) -> Result<(), EngineError> {
        Ok(())
    }
    async fn limit_group(&self, _: &str, _: Resources) -> Result<(), EngineError> {
        Ok(())
    }
    async fn events(&self) -> BoxStream<'static, Result<ContainerEvent, EventsLost>> {
        let stream = tokio_stream::wrappers::BroadcastStream::new(self.events.subscribe());
        stream.map(|event| event.map_err(|_| EventsLost(1))).boxed()
    }
}

#[async_trait]
impl Images for Memory {
    async fn mount_read_only(&self, _: &str, _: &str, _: &std::path::Path) -> Result<(), EngineError> {
        Err(EngineError::invalid("not here"))
    }
    async fn release(&self, _: &str) -> Result<(), EngineError> {
        Ok(())
    }
    async fn held(&self) -> Result<Vec<(String, String)>, EngineError> {
        Ok(Vec::new())
    }
    fn name(&self, _: &str) -> Result<engine_api::ImageName, EngineError> {
        Err(EngineError::invalid("no name is asked for"))
    }
    async fn resolve(&self, reference: &str) -> Result<Resolution, EngineError> {
        if !["app", "sha256:a"].contains(&reference) {
            return Err(EngineError::not_found(format!("No such image: {reference}")));
        }
        let image = Image {
            id: "sha256:a".to_owned(),
            manifest_digest: String::new(),
            tags: BTreeMap::from([("docker.io/library/app:latest".to_owned(), ImageOrigin::Local)]),
            repo_digests: Vec::new(),
            size_bytes: 5,
            created: None,
            architecture: "amd64".to_owned(),
            config: ImageConfig { cmd: vec!["run".to_owned()], ..ImageConfig::default() },
            config_json: "{}".to_owned(),
            diff_ids: Vec::new(),
            layer_bytes: Vec::new(),
        };
        let reference = "docker.io/library/app:latest".to_owned();
        Ok(Resolution { reference, image, origin: ImageOrigin::Local })
    }
    async fn list(&self) -> Result<Vec<Image>, EngineError> {
        Ok(vec![self.resolve("app").await?.image])
    }
    async fn pull(&self, _: &str, auth: Option<RegistryAuth>) -> Result<ProgressStream, EngineError> {
        let user = auth.map(|auth| auth.username).unwrap_or_default();
        Ok(futures::stream::iter([Err(EngineError::not_found(format!("nothing for {user}")))]).boxed())
    }
    async fn push(&self, _: &str, _: Option<RegistryAuth>) -> Result<ProgressStream, EngineError> {
        Err(missing("registry"))
    }
    async fn tag(&self, _: &str, _: &str) -> Result<(), EngineError> {
        Ok(())
    }
    async fn remove(&self, reference: &str, _: bool) -> Result<Vec<(RemovalKind, String)>, EngineError> {
        Ok(vec![(RemovalKind::Untagged, reference.to_owned())])
    }
    async fn load(&self, mut archive: ByteStream) -> Result<Vec<String>, EngineError> {
        let mut bytes = Vec::new();
        while let Some(chunk) = archive.try_next().await? {
            bytes.extend(chunk);
            // Known before all has arrived.
            if bytes.starts_with(b"no archive") {
                return Err(EngineError::invalid("this is no archive"));
            }
        }
        Ok(vec![String::from_utf8_lossy(&bytes).into_owned()])
    }
    async fn import(&self, _: ByteStream, reference: &str) -> Result<String, EngineError> {
        Ok(reference.to_owned())
    }
    async fn save(&self, references: &[String]) -> Result<ByteStream, EngineError> {
        Ok(futures::stream::iter([Ok(Bytes::from(references.join(",")))]).boxed())
    }
}

#[async_trait]
impl Builds for Memory {
    async fn build(
        &self,
        request: BuildRequest,
    ) -> Result<BoxStream<'static, Result<BuildEvent, EngineError>>, EngineError> {
        let dockerfile = std::fs::read_to_string(request.context.join("Dockerfile")).unwrap_or_default();
        self.builds.lock().push((request, dockerfile));
        let events = [Ok(BuildEvent::Output("Step 1/1\n".to_owned())), Err(EngineError::invalid("it broke"))];
        Ok(futures::stream::iter(events).boxed())
    }
    async fn commit(&self, request: CommitRequest) -> Result<String, EngineError> {
        self.commits.lock().push(request);
        Ok("sha256:c".to_owned())
    }
}

#[async_trait]
impl SandboxNetworks for Memory {
    async fn attach(&self, _: &str, _: &str) -> Result<SandboxNetwork, EngineError> {
        Ok(SandboxNetwork { addresses: vec!["10.0.0.2".parse().unwrap()], host_interface: "v".to_owned() })
    }
    async fn publish(&self, id: &str, ports: &[PublishedPort]) -> Result<Vec<PublishedPort>, EngineError> {
        self.publishes.send_modify(|all| all.push((id.to_owned(), ports.len())));
        Ok(ports.to_vec())
    }
    fn published(&self, _: &str) -> Vec<PublishedPort> {
        vec!["0.0.0.0:8080 80/tcp".parse().unwrap()]
    }
    async fn detach(&self, _: &str) -> Result<(), EngineError> {
        Ok(())
    }
}

struct Site {
    directory: tempfile::TempDir,
    memory: Arc<Memory>,
    ctx: Context,
}

impl Site {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let memory = Memory::new();
        let config = Config {
            version: "1".to_owned(),
            data_dir: directory.path().join("data"),
            node_name: "node".to_owned(),
        };
        let server = Server::new(memory.clone(), memory.clone(), memory.clone(), memory.clone(), config);
        let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
        let ctx = Context::detached("docker");
        let serving = ctx.clone();
        ctx.spawn(async move { server.serve(listener, &serving).await.unwrap() });
        Self { directory, memory, ctx }
    }

    fn socket(&self) -> std::path::PathBuf {
        self.directory.path().join("socket")
    }

    async fn call(&self, method: Method, path: &str, body: impl Into<Bytes>) -> (StatusCode, String) {
        let stream = UnixStream::connect(self.socket()).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        self.ctx.spawn(connection.map(drop));
        let auth = "eyJ1c2VybmFtZSI6InUiLCJwYXNzd29yZCI6InAifQ==";
        let all = "eyJodHRwczovL2luZGV4LmRvY2tlci5pby92MS8iOnsidXNlcm5hbWUiOiJ1IiwicGFzc3dvcmQiOiJwIn19";
        let request = Request::builder().method(method).uri(path).header("X-Registry-Auth", auth);
        let request = request.header("X-Registry-Config", all);
        let request = request.header("Host", "x").body(Full::new(body.into())).unwrap();
        let answer = sender.send_request(request).await.unwrap();
        let status = answer.status();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&bytes).into_owned())
    }

    async fn json(&self, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
        let (status, text) = self.call(method, path, body.to_string()).await;
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// Takes a connection over; gives it when the answer's head has been read.
    async fn hijack(&self, path: &str, body: &str) -> UnixStream {
        let mut stream = UnixStream::connect(self.socket()).await.unwrap();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
        stream
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.ctx.cancel().cancel();
    }
}

#[tokio::test]
async fn run_and_remove_tells_output_and_exit() {
    let site = Site::start();
    let request = json!({ "Image": "app", "HostConfig": { "AutoRemove": true } });
    let (status, answer) =
        site.json(Method::POST, "/v1.50/containers/create?name=one", request.clone()).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    let id = answer["Id"].as_str().unwrap().to_owned();
    assert_eq!(site.json(Method::POST, "/containers/create?name=one", request).await.0, StatusCode::CONFLICT);
    let files = site.directory.path().join("data/containers").join(&id);
    let hosts = std::fs::read_to_string(files.join("hosts")).unwrap();
    assert!(hosts.contains(&format!("10.0.0.2\t{}", &id[..12])), "{hosts}");

    let mut attached = site.hijack(&format!("/containers/{id}/attach?stream=1&stdout=1"), "").await;
    let path = format!("/v1.41/containers/{id}/wait?condition=removed");
    let (waited, ()) = tokio::join!(site.json(Method::POST, &path, Value::Null), async {
        let start = format!("/containers/{}/start", &id[..12]);
        assert_eq!(site.json(Method::POST, &start, Value::Null).await.0, StatusCode::NO_CONTENT);
        assert_eq!(site.json(Method::POST, &start, Value::Null).await.0, StatusCode::NOT_MODIFIED);
        let mut frame = [0; 14];
        attached.read_exact(&mut frame).await.unwrap();
        assert_eq!(&frame, b"\x01\0\0\0\0\0\0\x06hello\n");
        let (_, shown) = site.json(Method::GET, "/containers/one/json", Value::Null).await;
        assert_eq!(shown["State"]["Running"], true);
        assert_eq!(shown["NetworkSettings"]["IPAddress"], "10.0.0.2");
        assert_eq!(shown["HostConfig"]["AutoRemove"], true);
        assert_eq!(shown["Path"], "run");
        assert_eq!(site.json(Method::DELETE, "/containers/one", Value::Null).await.0, StatusCode::CONFLICT);
        let kill = site.json(Method::POST, "/containers/one/kill?signal=TERM", Value::Null).await;
        assert_eq!(kill.0, StatusCode::NO_CONTENT);
        let mut rest = Vec::new();
        attached.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty());
    });
    assert_eq!(waited.1["StatusCode"], 3);
    assert_eq!(site.json(Method::GET, "/containers/one/json", Value::Null).await.0, StatusCode::NOT_FOUND);
    assert!(!Path::exists(&files) && site.memory.sandboxes.lock().is_empty(), "nothing is left");
}

#[tokio::test]
async fn the_janitor_of_one_run_leaves_the_ports_of_the_next() {
    let site = Site::start();
    let create = async |host: Value| {
        let request = json!({ "Image": "app", "HostConfig": host });
        let (_, answer) = site.json(Method::POST, "/containers/create", request).await;
        answer["Id"].as_str().unwrap().to_owned()
    };
    let last = create(json!({ "AutoRemove": true })).await;
    let id = create(json!({ "PortBindings": {"80/tcp": [{"HostPort": "8080"}]} })).await;
    site.memory.end(&id);
    // A further run is about to start: its ports are published, its process is not there yet.
    site.memory.open.send_replace(false);
    let start = format!("/containers/{id}/start");
    let started = async {
        assert_eq!(site.json(Method::POST, &start, Value::Null).await.0, StatusCode::NO_CONTENT);
    };
    let janitor = async {
        let mut publishes = site.memory.publishes.subscribe();
        publishes.wait_for(|all| all.contains(&(id.clone(), 1))).await.unwrap();
        // Now the janitor hears of the run before.
        let exit = site.memory.wait_container(&id).await.unwrap();
        site.memory.tell(&id, ContainerEventKind::Exited(exit));
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        site.memory.open.send_replace(true);
    };
    tokio::join!(started, janitor);
    // One after the other: when it has removed this one, it is done with that.
    let path = format!("/containers/{last}/wait?condition=removed");
    tokio::join!(site.json(Method::POST, &path, Value::Null), async {
        site.memory.end(&last);
    });
    let publishes = site.memory.publishes.borrow().clone();
    let of_it = publishes.iter().rfind(|(sandbox, _)| *sandbox == id).unwrap();
    assert_eq!(of_it.1, 1, "{publishes:?}");
}

#[tokio::test]
async fn an_exec_tells_its_exit_right_after_its_output() {
    let site = Site::start();
    let (_, answer) = site.json(Method::POST, "/containers/create", json!({ "Image": "app" })).await;
    let id = answer["Id"].as_str().unwrap();
    let body = json!({ "Cmd": ["a", "b"], "AttachStdout": true, "Tty": true });
    let path = format!("/containers/{id}/exec");
    assert_eq!(
        site.json(Method::POST, &path, body.clone()).await.0,
        StatusCode::CONFLICT,
        "it does not run yet"
    );
    site.json(Method::POST, &format!("/containers/{id}/start"), Value::Null).await;
    let (status, exec) = site.json(Method::POST, &path, body).await;
    assert_eq!(status, StatusCode::CREATED);
    let exec = exec["Id"].as_str().unwrap();
    let mut stream = site.hijack(&format!("/exec/{exec}/start"), r#"{"Detach":false,"Tty":true}"#).await;
    let mut output = String::new();
    stream.read_to_string(&mut output).await.unwrap();
    assert_eq!(output, "a b", "with a terminal there are no frames");
    let (_, shown) = site.json(Method::GET, &format!("/exec/{exec}/json"), Value::Null).await;
    assert_eq!((&shown["Running"], &shown["ExitCode"]), (&json!(false), &json!(5)));
    let again = site.json(Method::POST, &format!("/exec/{exec}/start"), Value::Null).await;
    assert_eq!(again.0, StatusCode::CONFLICT);
}

#[tokio::test]
async fn containers_of_pods_are_hidden_and_cannot_be_changed() {
    let site = Site::start();
    let id = "c".repeat(64);
    site.memory.create_sandbox(SandboxSpec { id: "s".repeat(64), ..SandboxSpec::default() }).await.unwrap();
    let labels = BTreeMap::from([("io.kubernetes.pod.name".to_owned(), "p".to_owned())]);
    let spec =
        ContainerSpec { id: id.clone(), sandbox_id: "s".repeat(64), labels, ..ContainerSpec::default() };
    site.memory.create_container(spec).await.unwrap();
    site.memory.start_container(&id).await.unwrap();
    assert_eq!(site.json(Method::GET, "/containers/json?all=1", Value::Null).await.1, json!([]));
    let filtered = "/containers/json?filters=%7B%22label%22%3A%5B%22io.kubernetes.pod.name%3Dp%22%5D%7D";
    assert_eq!(site.json(Method::GET, filtered, Value::Null).await.1[0]["Id"], id);
    for (method, action) in [(Method::POST, "/stop"), (Method::POST, "/kill"), (Method::DELETE, "?force=1")] {
        let (status, answer) = site.json(method, &format!("/containers/{id}{action}"), Value::Null).await;
        assert_eq!(status, StatusCode::CONFLICT);
        assert!(answer["message"].as_str().unwrap().contains("kubectl"));
    }
}

#[tokio::test]
async fn builds_take_an_archive_and_end_with_their_error() {
    let site = Site::start();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(6);
    header.set_mode(0o644);
    tar.append_data(&mut header, "Dockerfile", &b"FROM x"[..]).unwrap();
    let context = tar.into_inner().unwrap();
    let path = "/v1.41/build?t=a%3A1&t=b&buildargs=%7B%22V%22%3A%222%22%7D&nocache=1&nohostcerts=1";
    let (status, text) = site.call(Method::POST, path, context).await;
    assert_eq!(status, StatusCode::OK);
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["stream"], "Step 1/1\n");
    assert_eq!(lines[1]["error"], "it broke");
    let (request, dockerfile) = site.memory.builds.lock().pop().unwrap();
    assert_eq!(dockerfile, "FROM x");
    assert_eq!(
        (request.tags.as_slice(), request.no_cache, request.no_host_certs),
        (&["a:1".to_owned(), "b".to_owned()][..], true, true)
    );
    assert_eq!(request.build_args["V"], "2");
    assert!(!request.context.exists(), "the context goes with the build");
    let contexts = site.directory.path().join("data/contexts");
    assert!(request.context.starts_with(&contexts), "it is the instance's own: {:?}", request.context);
    assert_eq!(request.registry_auth["docker.io"].username, "u");
    assert_eq!(site.call(Method::POST, "/build", "no archive").await.0, StatusCode::BAD_REQUEST);
    assert_eq!(site.call(Method::POST, "/build?version=2", "").await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_commit_says_what_the_container_was_made_with() {
    let site = Site::start();
    let request = json!({ "Image": "app", "ExposedPorts": {"80/tcp": {}}, "Volumes": {"/data": {}} });
    site.json(Method::POST, "/containers/create?name=one", request).await;
    let path = "/commit?container=one&repo=made&tag=2&author=me&comment=why&changes=CMD+x&changes=USER+7";
    let (status, answer) = site.call(Method::POST, path, "null").await;
    assert_eq!((status, answer.as_str()), (StatusCode::CREATED, r#"{"Id":"sha256:c"}"#));
    let commit = site.memory.commits.lock().pop().unwrap();
    assert_eq!((commit.reference.as_str(), commit.author.as_str()), ("made:2", "me"));
    assert_eq!(commit.changes, ["EXPOSE 80/tcp", "VOLUME [\"/data\"]", "CMD x", "USER 7"]);
    let missing = site.call(Method::POST, "/commit?container=none", "").await;
    assert_eq!(missing.0, StatusCode::NOT_FOUND);
    let body = site.call(Method::POST, "/commit?container=one", r#"{"Cmd":["x"]}"#).await;
    assert_eq!(body.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn who_still_sends_gets_the_answer() {
    let site = Site::start();
    for (path, start) in [("/images/load", "no archive"), ("/build", "no archive"), ("/build?memory=5", "")] {
        let mut stream = UnixStream::connect(site.socket()).await.unwrap();
        let size = 32 << 20;
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n");
        let mut request = (head.clone() + start).into_bytes();
        request.resize(head.len() + size, b'x');
        // A client that reads when it has sent everything.
        stream.write_all(&request).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{path}: {answer}");
    }
}

#[tokio::test]
async fn images_travel_and_errors_have_their_status() {
    let site = Site::start();
    let (_, images) = site.json(Method::GET, "/v1.41/images/json", Value::Null).await;
    assert_eq!(images[0]["RepoTags"], json!(["app:latest"]));
    let (_, loaded) = site.call(Method::POST, "/images/load", "name").await;
    assert!(loaded.contains("Loaded image: name"), "{loaded}");
    assert_eq!(site.call(Method::GET, "/images/get?names=a&names=b", "").await.1, "a,b");
    assert_eq!(site.call(Method::GET, "/images/ghcr.io/a/b:c/get", "").await.1, "ghcr.io/a/b:c");
    let (status, answer) = site.json(Method::POST, "/images/create?fromImage=x&tag=1", Value::Null).await;
    assert_eq!(
        (status, &answer["message"]),
        (StatusCode::NOT_FOUND, &json!("nothing for u")),
        "with its credentials"
    );
    for (method, path, expected) in [
        (Method::GET, "/images/none/json", StatusCode::NOT_FOUND),
        (Method::POST, "/containers/create", StatusCode::NOT_FOUND),
        (Method::GET, "/containers/none/json", StatusCode::NOT_FOUND),
        (Method::GET, "/v1.99/version", StatusCode::BAD_REQUEST),
        (Method::GET, "/swarm", StatusCode::NOT_FOUND),
        (Method::GET, "/containers/json?filters=x", StatusCode::BAD_REQUEST),
        (Method::POST, "/exec/none/start", StatusCode::NOT_FOUND),
    ] {
        let (status, answer) = site.json(method, path, json!({})).await;
        assert_eq!(status, expected, "{path}");
        assert!(answer["message"].is_string(), "{path}");
    }
    let (status, answer) = site.call(Method::POST, "/containers/create", "{").await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
    let (status, text) = site.call(Method::GET, "/_ping", "").await;
    assert_eq!((status, text.as_str()), (StatusCode::OK, "OK"));
}
