//! Whole builds over a real store and real overlay mounts (as root); RUN goes to a runtime that only pretends.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use engine_api::{
    BuildEvent, Builds, Connection, ContainerEvent, ContainerSpec, ContainerState, ContainerStatus,
    EngineError, EventsLost, ExecSpec, Exit, Process, ProcessIo, Resources, SandboxSpec, SandboxState,
    SandboxStatus, Stats, TerminalSize,
};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use parking_lot::Mutex;

use super::*;
use crate::Builder;

/// Pretends to run: leaves what a runtime leaves (the resolver's mount point), writes the command's last word as a
/// file into the root, prints it, and fails on `false`.
struct Pretender {
    store: Store,
    specs: Mutex<Vec<ContainerSpec>>,
    /// Of each sandbox: whether it has the host's network.
    networks: Mutex<Vec<bool>>,
    alive: Mutex<BTreeSet<String>>,
}

impl Pretender {
    fn spec(&self, id: &str) -> ContainerSpec {
        self.specs.lock().iter().find(|spec| spec.id == id).unwrap().clone()
    }

    fn status(&self, id: &str) -> ContainerStatus {
        let state = ContainerState::Running { pid: 1, started_at: Timestamp::now() };
        ContainerStatus {
            spec: self.spec(id),
            state,
            created_at: Timestamp::now(),
            log_path: PathBuf::new(),
            identity: None,
        }
    }

    fn exit(&self, id: &str) -> Exit {
        let failed = self.spec(id).entrypoint.last().unwrap() == "false";
        Exit {
            code: failed.into(),
            signal: 0,
            oom_killed: false,
            finished_at: Timestamp::now(),
            message: String::new(),
        }
    }
}

#[async_trait]
impl Runtime for Pretender {
    async fn create_sandbox(&self, spec: SandboxSpec) -> Result<SandboxStatus, EngineError> {
        self.networks.lock().push(spec.host_network);
        self.alive.lock().insert(spec.id.clone());
        let created_at = Timestamp::now();
        Ok(SandboxStatus { spec, state: SandboxState::Ready, created_at, netns_path: String::new() })
    }
    async fn stop_sandbox(&self, _: &str) -> Result<(), EngineError> {
        Ok(())
    }
    async fn remove_sandbox(&self, id: &str) -> Result<(), EngineError> {
        self.store.remove_snapshot(id).unwrap();
        self.alive.lock().remove(id);
        Ok(())
    }
    async fn sandboxes(&self) -> Result<Vec<SandboxStatus>, EngineError> {
        Ok(Vec::new())
    }
    async fn create_container(&self, spec: ContainerSpec) -> Result<ContainerStatus, EngineError> {
        self.store.prepare(&spec.id, &Digest::parse(&spec.image_id).unwrap()).unwrap();
        let id = spec.id.clone();
        self.specs.lock().push(spec);
        Ok(self.status(&id))
    }
    async fn start_container(&self, id: &str) -> Result<ContainerStatus, EngineError> {
        let upper = self.store.snapshot(id).unwrap().upper;
        let image = Digest::parse(&self.spec(id).image_id).unwrap();
        let target = self.store.view(&image).unwrap().follow(Path::new("/etc/resolv.conf")).unwrap();
        fs::create_dir_all(upper.join(&target).parent().unwrap()).unwrap();
        fs::write(upper.join(&target), "").unwrap();
        if let Some(hosts) = self.spec(id).mounts.iter().find(|mount| mount.target == Path::new("/etc/hosts"))
        {
            fs::write(upper.join("etc/hosts"), "").unwrap();
            let engine_api::MountSource::Bind(source) = &hosts.source else { panic!("no file") };
            let text = fs::read_to_string(source).unwrap();
            fs::write(upper.join("seen-hosts"), text).unwrap();
        }
        let word = self.spec(id).entrypoint.last().unwrap().clone();
        fs::write(upper.join(word.rsplit([' ', '/']).next().unwrap()), "made").unwrap();
        Ok(self.status(id))
    }
    async fn attach(&self, id: &str) -> Result<Process, EngineError> {
        let (exit_sender, exit) = tokio::sync::oneshot::channel();
        let _ = exit_sender.send(Ok(self.exit(id)));
        let line = format!("ran {}\n", self.spec(id).entrypoint.join(" "));
        let stdout = futures::stream::iter([Ok(bytes::Bytes::from(line))]).boxed();
        let (resize, _) = mpsc::channel(1);
        Ok(Process {
            io: ProcessIo { stdin: None, stdout: Some(stdout), stderr: None, resize },
            exit,
            pid: 1,
        })
    }
    async fn wait_container(&self, id: &str) -> Result<Exit, EngineError> {
        Ok(self.exit(id))
    }
    async fn stop_container(&self, id: &str, _: Duration) -> Result<Exit, EngineError> {
        Ok(self.exit(id))
    }
    async fn signal_container(&self, _: &str, _: i32) -> Result<(), EngineError> {
        Ok(())
    }
    async fn remove_container(&self, _: &str, _: bool) -> Result<(), EngineError> {
        Ok(())
    }
    async fn container(&self, id: &str) -> Result<ContainerStatus, EngineError> {
        match self.specs.lock().iter().any(|spec| spec.id == id) {
            true => {}
            false => return Err(EngineError::not_found(format!("No such container: {id}"))),
        }
        Ok(self.status(id))
    }
    async fn containers(&self) -> Result<Vec<ContainerStatus>, EngineError> {
        Ok(Vec::new())
    }
    async fn exec(&self, id: &str, _: ExecSpec) -> Result<Process, EngineError> {
        self.attach(id).await
    }
    async fn resize_container(&self, _: &str, _: TerminalSize) -> Result<(), EngineError> {
        Ok(())
    }
    async fn connect(&self, _: &str, _: u16) -> Result<Box<dyn Connection>, EngineError> {
        Err(EngineError::invalid("it only pretends"))
    }
    async fn log_path(&self, _: &str) -> Result<PathBuf, EngineError> {
        Ok(PathBuf::new())
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
        futures::stream::pending().boxed()
    }
}

/// A store with the image `base`, a context and a builder.
struct Site {
    _data: tempfile::TempDir,
    context: tempfile::TempDir,
    store: Store,
    runtime: Arc<Pretender>,
    builder: Builder,
}

impl Site {
    fn new() -> Self {
        let data = tempfile::tempdir().unwrap();
        let store = Store::open(data.path()).unwrap();
        let mut tar = tar::Builder::new(Vec::new());
        for (path, content) in
            [("etc/passwd", "root:x:0:0::/:/bin/sh\napp:x:7:7::/:/bin/sh\n"), ("usr/lib/l", "l")]
        {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            header.set_mtime(1_000);
            tar.append_data(&mut header, path, content.as_bytes()).unwrap();
        }
        store.import(tar.into_inner().unwrap().as_slice(), "base").unwrap();
        let runtime = Arc::new(Pretender {
            store: store.clone(),
            specs: Mutex::new(Vec::new()),
            networks: Mutex::default(),
            alive: Mutex::new(BTreeSet::new()),
        });
        let host = Host {
            resolver: PathBuf::from("/etc/resolv.conf"),
            ca_bundle: Some(PathBuf::from("/ca")),
            proxies: vec!["HTTP_PROXY=http://p".to_owned()],
        };
        let builder = Builder::new(store.clone(), runtime.clone(), host);
        Self { _data: data, context: tempfile::tempdir().unwrap(), store, runtime, builder }
    }

    fn file(&self, path: &str, content: &str) {
        let path = self.context.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    async fn build(&self, dockerfile: &str) -> Result<(image::Image, String), EngineError> {
        self.build_with(dockerfile, |_| {}).await
    }

    async fn build_with(
        &self,
        dockerfile: &str,
        change: impl FnOnce(&mut BuildRequest),
    ) -> Result<(image::Image, String), EngineError> {
        self.file("Dockerfile", dockerfile);
        let mut request = BuildRequest { context: self.context.path().to_owned(), ..BuildRequest::default() };
        change(&mut request);
        let events: Vec<BuildEvent> = self.builder.build(request).await?.try_collect().await?;
        let mut output = String::new();
        let mut built = None;
        for event in events {
            match event {
                BuildEvent::Output(text) => output.push_str(&text),
                BuildEvent::Built(id) => built = Some(id),
            }
        }
        let image = self.store.image(&Digest::parse(&built.unwrap()).unwrap()).unwrap();
        Ok((image, output))
    }

    fn read(&self, image: &image::Image, path: &str) -> Option<String> {
        let view = self.store.view(&image.id).unwrap();
        let mut text = String::new();
        view.file(Path::new(path)).ok()?.read_to_string(&mut text).ok()?;
        Some(text)
    }
}

/// Runs a case of the contract on a site of its own.
async fn with<F: Future<Output = ()>>(case: impl FnOnce(engine_api::contract::BuildSubject) -> F) {
    let site = Site::new();
    site.store.tag("base", "busybox:test").unwrap();
    let store = site.store.clone();
    let origin = |origin| match origin {
        image::Origin::Local => engine_api::ImageOrigin::Local,
        image::Origin::Registry => engine_api::ImageOrigin::Registry,
    };
    let resolve = move |name: &str| {
        store.resolve(name).ok().map(|found| (found.image.id.to_string(), origin(found.origin)))
    };
    case(engine_api::contract::BuildSubject {
        builds: Arc::new(site.builder),
        runtime: site.runtime.clone(),
        resolve: Arc::new(resolve),
        context: site.context.path().to_owned(),
    })
    .await;
    assert!(site.runtime.alive.lock().is_empty() && site.store.snapshots().is_empty(), "something is left");
}

engine_api::builds_contract!(with);

#[tokio::test]
async fn a_build_runs_once_and_then_comes_from_the_cache() {
    let site = Site::new();
    site.file("app/main.py", "print()");
    site.file("app/skipped.log", "x");
    site.file(".dockerignore", "**/*.log\n");
    let text = "FROM base\nARG V=1\nENV A=x\nWORKDIR /srv/app\nCOPY app .\nRUN touch /made\nEXPOSE 80\nCMD [\"serve\"]\n";
    let tagged = |request: &mut BuildRequest| {
        request.tags = vec!["demo:1".to_owned()];
        request.build_args.insert("V".to_owned(), "2".to_owned());
    };
    let (image, output) = site.build_with(text, tagged).await.unwrap();
    assert_eq!(site.read(&image, "srv/app/main.py").as_deref(), Some("print()"));
    assert_eq!(site.read(&image, "srv/app/skipped.log"), None);
    assert_eq!(site.read(&image, "made").as_deref(), Some("made"));
    assert_eq!(site.read(&image, "etc/resolv.conf"), None, "the mount point is no part of the layer");
    assert_eq!(image.document.config.working_dir, "/srv/app");
    assert_eq!(image.document.config.cmd.as_deref(), Some(&["serve".to_owned()][..]));
    for line in [
        "Step 1/8 : FROM base",
        "Step 6/8 : RUN touch /made",
        "ran /bin/sh -c touch /made",
        "Successfully tagged demo:1",
    ] {
        assert!(output.contains(line), "{line} in {output}");
    }
    let spec = site.runtime.specs.lock()[0].clone();
    for variable in ["V=2", "HTTP_PROXY=http://p", "SSL_CERT_FILE=/dev/skiff-host-ca.crt"] {
        assert!(spec.env.contains(&variable.to_owned()), "{variable}");
    }
    assert!(
        site.runtime.alive.lock().is_empty() && site.store.snapshots().is_empty(),
        "nothing is left running"
    );

    let (again, output) = site.build_with(text, tagged).await.unwrap();
    assert_eq!(again.id, image.id);
    assert_eq!(output.matches("Using cache").count(), 7, "{output}");
    assert_eq!(site.store.resolve("demo:1").unwrap().origin, image::Origin::Local);

    // Another argument runs the step again, another time stamp does not, another content does.
    let other = |request: &mut BuildRequest| drop(request.build_args.insert("V".to_owned(), "3".to_owned()));
    let (_, output) = site.build_with(text, other).await.unwrap();
    assert!(output.contains("ran "), "{output}");
    fs::File::open(site.context.path().join("app/main.py"))
        .unwrap()
        .set_modified(std::time::UNIX_EPOCH)
        .unwrap();
    assert_eq!(site.build_with(text, tagged).await.unwrap().0.id, image.id);
    site.file("app/main.py", "print(1)");
    let (_, output) = site.build_with(text, tagged).await.unwrap();
    assert_eq!(output.matches("Using cache").count(), 3, "{output}");
    let (_, output) = site.build_with(text, |request| request.no_cache = true).await.unwrap();
    assert_eq!(output.matches("Using cache").count(), 0);
}

#[tokio::test]
async fn the_host_stays_out_when_asked() {
    let site = Site::new();
    site.build_with("FROM base\nRUN touch /x\n", |request| request.no_host_certs = true).await.unwrap();
    let spec = site.runtime.specs.lock()[0].clone();
    assert!(!spec.env.iter().any(|line| line.contains("CERT")), "{:?}", spec.env);
    assert_eq!(spec.mounts.len(), 1, "the resolver only");
    assert!(spec.mounts[0].read_only);
}

#[tokio::test]
async fn steps_have_the_network_and_the_hosts_that_were_asked_for() {
    let site = Site::new();
    site.build("FROM base\nRUN touch /x\n").await.unwrap();
    let alone = |request: &mut BuildRequest| {
        request.no_network = true;
        request.extra_hosts = vec!["db:10.0.0.9".to_owned(), "six:fd00::1".to_owned()];
    };
    let (image, output) = site.build_with("FROM base\nRUN touch /x\n", alone).await.unwrap();
    assert!(!output.contains("Using cache"), "the step may give something else: {output}");
    assert_eq!(*site.runtime.networks.lock(), [true, false]);
    let seen = site.read(&image, "seen-hosts").unwrap();
    assert!(seen.contains("10.0.0.9\tdb\n") && seen.contains("fd00::1\tsix\n"), "{seen}");
    assert_eq!(site.read(&image, "etc/hosts"), None, "the mount point is no part of the layer");
    let wrong = |request: &mut BuildRequest| request.extra_hosts = vec!["db".to_owned()];
    let error = site.build_with("FROM base\nRUN touch /y\n", wrong).await.unwrap_err();
    assert!(error.message.contains("--add-host \"db\""), "{}", error.message);
}

#[tokio::test]
async fn a_failing_command_ends_the_build_and_leaves_nothing() {
    let site = Site::new();
    let error = site.build("FROM base\nRUN false\nRUN touch /never\n").await.unwrap_err();
    assert_eq!(error.message, "The command '/bin/sh -c false' returned a non-zero code: 1");
    assert!(site.runtime.alive.lock().is_empty() && site.store.snapshots().is_empty());
    assert_eq!(site.runtime.specs.lock().len(), 1);
}

#[tokio::test]
async fn stages_copy_from_each_other_and_unneeded_ones_are_left_out() {
    let site = Site::new();
    let text = "FROM base AS build\nRUN touch /out\nFROM base AS unneeded\nRUN false\nFROM scratch\nCOPY --from=build /out /etc/passwd /bin/\nCOPY --from=base usr/lib/l /l\n";
    let (image, output) = site.build(text).await.unwrap();
    assert_eq!(site.read(&image, "bin/out").as_deref(), Some("made"));
    assert_eq!(site.read(&image, "l").as_deref(), Some("l"));
    assert!(site.read(&image, "etc/passwd").is_none(), "nothing else comes along");
    assert!(output.contains("Step 1/5") && !output.contains("unneeded"), "{output}");
    let (image, _) = site.build_with(text, |request| request.target = "build".to_owned()).await.unwrap();
    assert!(site.read(&image, "etc/passwd").is_some());
}

#[tokio::test]
async fn copies_have_owner_mode_and_time_and_follow_the_image_links() {
    let site = Site::new();
    site.file("d/f", "1");
    site.file("d/sub/g", "2");
    symlink("f", site.context.path().join("d/link")).unwrap();
    fs::set_permissions(site.context.path().join("d/f"), fs::Permissions::from_mode(0o750)).unwrap();
    let time = std::time::UNIX_EPOCH + Duration::from_secs(5_000);
    fs::File::open(site.context.path().join("d/f")).unwrap().set_modified(time).unwrap();
    let text = "FROM base\nCOPY --chown=app d /d\nCOPY --chmod=0600 d/f /one/\nCOPY d/f /usr/lib/\nCOPY d/* /all/\nCOPY <<doc /doc\n'$A' it's\ndoc\n";
    let (image, _) = site.build(text).await.unwrap();
    let view = site.store.view(&image.id).unwrap();
    let stat = |path: &str| view.stat_itself(Path::new(path)).unwrap();
    assert_eq!((stat("d/f").st_uid, stat("d/f").st_gid, stat("d/f").st_mode & 0o7777), (7, 7, 0o750));
    assert_eq!(stat("d/f").st_mtime, 5_000);
    assert_eq!(stat("d/sub/g").st_uid, 7);
    assert_eq!(stat("one/f").st_mode & 0o7777, 0o600);
    assert_eq!(stat("one/f").st_uid, 0);
    assert_eq!(site.read(&image, "d/link").as_deref(), Some("1"));
    assert_eq!(site.read(&image, "all/g").as_deref(), Some("2"), "a directory stands for its content");
    assert_eq!(site.read(&image, "doc").as_deref(), Some("'' it's\n"));
    assert_eq!(site.read(&image, "usr/lib/l").as_deref(), Some("l"));
    // The same files make the same layers.
    let (again, _) = site.build_with(text, |request| request.no_cache = true).await.unwrap();
    assert_eq!(again.document.rootfs.diff_ids, image.document.rootfs.diff_ids);
}

#[tokio::test]
async fn nothing_outside_the_context_can_be_copied() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "s").unwrap();
    let site = Site::new();
    symlink(outside.path(), site.context.path().join("link")).unwrap();
    symlink(outside.path().join("secret"), site.context.path().join("file")).unwrap();
    let up = format!("COPY ../../../../../..{}/secret /x", outside.path().display());
    for copy in
        ["COPY link/secret /x", "COPY file /x", &up, "COPY none /x", "COPY no*ne /x", "COPY link link /x"]
    {
        let error = site.build(&format!("FROM base\n{copy}\n")).await.unwrap_err();
        assert!(error.message.starts_with("COPY failed: "), "{copy}: {}", error.message);
    }
    // A link inside the image cannot lead a copy out of it either.
    site.file("f", "evil");
    site.file("tree/marker", "m");
    let target = format!("{}", outside.path().display());
    symlink(&target, site.context.path().join("tree/escape")).unwrap();
    let _ = site.build("FROM base\nCOPY tree /t\nCOPY f /t/escape/secret\n").await;
    assert_eq!(fs::read_to_string(outside.path().join("secret")).unwrap(), "s");
}

#[tokio::test]
async fn add_unpacks_archives_and_triggers_fire_later() {
    let site = Site::new();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(2);
    header.set_uid(9);
    header.set_mode(0o644);
    tar.append_data(&mut header, "in/side", &b"ok"[..]).unwrap();
    fs::write(site.context.path().join("a.tar"), tar.into_inner().unwrap()).unwrap();
    site.file("plain.txt", "p");
    let (image, _) = site.build("FROM base\nADD a.tar plain.txt /x/\nCOPY a.tar /y/\n").await.unwrap();
    assert_eq!(site.read(&image, "x/in/side").as_deref(), Some("ok"));
    assert_eq!(site.read(&image, "x/plain.txt").as_deref(), Some("p"));
    let view = site.store.view(&image.id).unwrap();
    assert_eq!(view.stat(Path::new("x/in/side")).unwrap().st_uid, 9);
    assert!(view.file(Path::new("y/a.tar")).is_ok(), "COPY unpacks nothing");

    let parent = |request: &mut BuildRequest| request.tags = vec!["parent".to_owned()];
    site.build_with("FROM base\nONBUILD COPY plain.txt /from-child\n", parent).await.unwrap();
    let (image, output) = site.build("FROM parent\nCMD x\n").await.unwrap();
    assert!(output.contains("# Executing 1 build trigger\n"), "{output}");
    assert_eq!(site.read(&image, "from-child").as_deref(), Some("p"));
    assert!(image.document.config.on_build.is_empty());
}

#[tokio::test]
async fn triggers_copy_from_stages_that_nothing_else_needs() {
    let site = Site::new();
    let parent = |request: &mut BuildRequest| request.tags = vec!["parent".to_owned()];
    site.build_with("FROM base\nONBUILD COPY --from=files /made /here\n", parent).await.unwrap();
    let text = "FROM base AS unneeded\nRUN false\nFROM base AS files\nRUN touch /made\nFROM parent\nCMD x\n";
    let (image, output) = site.build(text).await.unwrap();
    assert_eq!(site.read(&image, "here").as_deref(), Some("made"));
    assert!(output.contains("Step 1/4") && !output.contains("unneeded"), "{output}");
}

#[tokio::test]
async fn the_cache_knows_whom_copied_files_belong_to() {
    let site = Site::new();
    site.file("f", "1");
    let text = |owner: &str| {
        format!("FROM base AS files\nCOPY --chown={owner} f /f\nFROM base\nCOPY --from=files /f /f\n")
    };
    let owner =
        |image: &image::Image| site.store.view(&image.id).unwrap().stat(Path::new("f")).unwrap().st_uid;
    let (image, _) = site.build(&text("7")).await.unwrap();
    assert_eq!(owner(&image), 7);
    let (image, _) = site.build(&text("8")).await.unwrap();
    assert_eq!(owner(&image), 8, "the same content of another owner is another layer");
    // What is copied from the context is root's, whoever owns it there.
    let (image, _) = site.build("FROM base\nCOPY f /f\n").await.unwrap();
    assert_eq!(owner(&image), 0, "it is not taken for the same file of another image");
    std::os::unix::fs::chown(site.context.path().join("f"), Some(9), Some(9)).unwrap();
    let (_, output) = site.build("FROM base\nCOPY f /f\n").await.unwrap();
    assert!(output.contains("Using cache"), "{output}");
}

#[tokio::test]
async fn a_resolver_behind_a_dangling_link_leaves_nothing_in_the_layer() {
    let site = Site::new();
    symlink("../run/systemd/resolve/stub.conf", site.context.path().join("link")).unwrap();
    fs::create_dir(site.context.path().join("etc")).unwrap();
    fs::rename(site.context.path().join("link"), site.context.path().join("etc/resolv.conf")).unwrap();
    let (image, _) = site.build("FROM base\nCOPY etc /etc\nRUN touch /made\n").await.unwrap();
    let view = site.store.view(&image.id).unwrap();
    assert!(view.stat_itself(Path::new("etc/resolv.conf")).is_ok(), "the link stays");
    assert!(view.stat_itself(Path::new("made")).is_ok());
    assert!(view.stat_itself(Path::new("run")).is_err(), "neither file nor directories of the mount point");
}

#[tokio::test]
async fn a_container_becomes_an_image_with_its_settings() {
    let site = Site::new();
    let base = site.store.resolve("base").unwrap().image;
    let spec = ContainerSpec {
        id: "c".repeat(64),
        image_id: base.id.to_string(),
        args: vec!["serve".to_owned()],
        env: vec!["A=1".to_owned()],
        working_dir: "/srv".to_owned(),
        labels: BTreeMap::from([("own".to_owned(), "yes".to_owned())]),
        mounts: vec![engine_api::Mount {
            source: engine_api::MountSource::Bind("/etc/hosts".into()),
            target: "/etc/hosts".into(),
            read_only: false,
            recursive_read_only: false,
            propagation: engine_api::MountPropagation::Private,
        }],
        ..ContainerSpec::default()
    };
    site.runtime.create_container(spec.clone()).await.unwrap();
    let upper = site.store.snapshot(&spec.id).unwrap().upper;
    fs::create_dir(upper.join("etc")).unwrap();
    for (path, text) in [("etc/hosts", ""), ("etc/empty", ""), ("made", "m")] {
        fs::write(upper.join(path), text).unwrap();
    }
    let request = engine_api::CommitRequest {
        container: spec.id.clone(),
        reference: "made:1".to_owned(),
        changes: [r#"ENTRYPOINT ["run"]"#, "ENV B=${A}2", "WORKDIR sub", "EXPOSE 80", "LABEL c=d"]
            .map(str::to_owned)
            .to_vec(),
        author: "me".to_owned(),
        comment: "by hand".to_owned(),
    };
    let id = site.builder.commit(request.clone()).await.unwrap();
    let found = site.store.resolve("made:1").unwrap();
    assert_eq!((found.image.id.as_str(), found.origin), (id.as_str(), image::Origin::Local));
    assert_eq!(found.image.parent.as_ref(), Some(&base.id));
    assert_eq!(site.read(&found.image, "made").as_deref(), Some("m"));
    assert_eq!(site.read(&found.image, "etc/empty").as_deref(), Some(""));
    assert_eq!(site.read(&found.image, "etc/hosts"), None, "the mount point is no part of the layer");
    assert!(site.read(&found.image, "etc/passwd").is_some());
    let document = &found.image.document;
    let config = &document.config;
    assert_eq!(config.entrypoint.as_deref().unwrap(), ["run"]);
    assert_eq!(config.env, ["A=1", "B=12"]);
    assert_eq!((config.working_dir.as_str(), config.labels["own"].as_str()), ("/srv/sub", "yes"));
    assert!(config.exposed_ports.contains_key("80/tcp") && config.labels["c"] == "d");
    let last = document.history.last().unwrap();
    assert_eq!((last.comment.as_str(), last.author.as_str(), last.empty_layer), ("by hand", "me", false));
    assert_eq!(last.created_by, "serve", "what ran");
    assert_eq!(document.rootfs.diff_ids.len(), base.document.rootfs.diff_ids.len() + 1);
    // What it cannot do is told, and nothing is made.
    let before = site.store.list().unwrap().len();
    for (change, expected) in [("RUN x", "RUN is not a valid change"), ("NOPE x", "unknown instruction")] {
        let request = engine_api::CommitRequest { changes: vec![change.to_owned()], ..request.clone() };
        let error = site.builder.commit(request).await.unwrap_err();
        assert!(error.message.contains(expected), "{}", error.message);
    }
    assert_eq!(site.store.list().unwrap().len(), before);
}

#[tokio::test]
async fn deeply_nested_substitutions_are_one_clear_line() {
    let site = Site::new();
    let nested = format!("ENV A={}\n", "${a:-".repeat(100_000));
    for text in [format!("FROM base\n{nested}"), format!("FROM base\nONBUILD {nested}")] {
        let parent = |request: &mut BuildRequest| request.tags = vec!["deep".to_owned()];
        let built = match text.contains("ONBUILD") {
            true => {
                site.build_with(&text, parent).await.unwrap();
                site.build("FROM deep\nCMD x\n").await
            }
            false => site.build(&text).await,
        };
        let error = built.unwrap_err();
        assert!(error.message.contains("substitutions are nested too deeply"), "{}", error.message);
    }
}

#[tokio::test]
async fn a_download_ends_when_its_client_leaves() {
    use tokio::io::AsyncReadExt as _;
    let site = Site::new();
    let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    site.file("Dockerfile", &format!("FROM base\nADD http://{address}/a/file.bin /got/\n"));
    let request = BuildRequest { context: site.context.path().to_owned(), ..BuildRequest::default() };
    let events = site.builder.build(request).await.unwrap();
    // The server takes the request and never answers.
    let (mut connection, _) = server.accept().await.unwrap();
    let mut request = [0; 4096];
    assert!(connection.read(&mut request).await.unwrap() > 0);
    drop(events);
    // The end of the connection; a reset is one too.
    let ended = tokio::time::timeout(Duration::from_secs(50), connection.read_to_end(&mut Vec::new())).await;
    let _ = ended.expect("the download goes on although nobody wants it");
}

#[tokio::test]
async fn add_fetches_and_the_server_decides_the_name() {
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    let serving = std::thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        let mut request = [0; 1024];
        let _ = stream.read(&mut request).unwrap();
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nLast-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\nConnection: close\r\n\r\nbody";
        std::io::Write::write_all(&mut stream, answer.as_bytes()).unwrap();
    });
    let site = Site::new();
    let (image, _) =
        site.build(&format!("FROM base\nADD http://{address}/a/file.bin /got/\n")).await.unwrap();
    serving.join().unwrap();
    assert_eq!(site.read(&image, "got/file.bin").as_deref(), Some("body"));
    let stat = site.store.view(&image.id).unwrap().stat(Path::new("got/file.bin")).unwrap();
    assert_eq!((stat.st_mtime, stat.st_mode & 0o7777), (1_445_412_480, 0o600));
}

#[tokio::test]
async fn configuration_follows_the_reference() {
    let site = Site::new();
    let text = "FROM base\nCMD one\nENV A=1 B=\"two words\"\nENV A=2 C=$A\nENTRYPOINT [\"e\"]\nLABEL a=$B 'b c'=d\nEXPOSE 80 53/udp\nVOLUME [\"/v\"]\nUSER app\nSTOPSIGNAL SIGQUIT\nSHELL [\"/bin/bash\", \"-c\"]\nHEALTHCHECK --interval=5s CMD check\nRUN touch /x\n";
    let labelled =
        |request: &mut BuildRequest| drop(request.labels.insert("l".to_owned(), "it's $A".to_owned()));
    let (image, output) = site.build_with(text, labelled).await.unwrap();
    let config = &image.document.config;
    assert_eq!(config.env, ["A=2", "B=two words", "C=1"]);
    assert_eq!(config.cmd.as_deref().unwrap(), ["/bin/sh", "-c", "one"], "set in this stage, so it stays");
    assert_eq!(config.labels["a"], "two words");
    assert_eq!(config.labels["b c"], "d");
    assert_eq!(config.labels["l"], "it's $A");
    assert_eq!(config.user, "app");
    assert_eq!(config.healthcheck.as_ref().unwrap()["Test"][0], "CMD-SHELL");
    assert!(output.contains("ran /bin/bash -c touch /x"), "{output}");
    let told: Vec<&str> = image.document.history.iter().map(|step| step.created_by.as_str()).collect();
    for expected in ["ENV A=2 C=1", "LABEL a=two words b c=d", "EXPOSE 80 53/udp", "VOLUME [/v]"] {
        assert!(told.contains(&format!("/bin/sh -c #(nop)  {expected}").as_str()), "{expected} in {told:?}");
    }
    let (child, _) = site
        .build_with("FROM base\nCMD x\nENTRYPOINT y\n", |request| request.tags = vec!["c".to_owned()])
        .await
        .unwrap();
    assert!(child.document.config.cmd.is_some());
    let (child, _) = site.build("FROM c\nENTRYPOINT z\n").await.unwrap();
    assert_eq!(child.document.config.cmd, None, "an inherited command does not fit a new entry point");
}

#[tokio::test]
async fn bad_requests_are_one_clear_line() {
    let site = Site::new();
    for (text, expected) in [
        ("FROM none-such-image:1@sha256:00\n", "invalid reference"),
        ("FROM base\nNOPE\n", "line 2"),
        ("FROM scratch\n", "no image was generated"),
        ("FROM --platform=linux/s390x base\nCMD x\n", "platform linux/s390x"),
        ("FROM base\nCOPY --chown=nobody-here Dockerfile /x\n", "unable to find user nobody-here"),
        ("FROM base\nCOPY --chmod=rwx Dockerfile /x\n", "invalid --chmod"),
    ] {
        let error = site.build(text).await.unwrap_err();
        assert!(error.message.contains(expected), "{text}: {}", error.message);
        assert!(!error.message.contains('\n'));
    }
    let error =
        site.build_with("FROM base\n", |request| request.dockerfile = "../x".to_owned()).await.unwrap_err();
    assert!(error.message.contains("failed to read dockerfile"), "{}", error.message);
    let metadata = fs::metadata(site.context.path()).unwrap();
    assert_eq!(metadata.uid(), 0, "these tests run as root");
}
