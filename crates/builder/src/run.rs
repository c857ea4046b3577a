//! RUN: a command in a container over the image so far, in a sandbox with the host's network.
//!
//! The step sees the host's resolver, proxy variables and CA bundle; none of them gets into the layer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine_api::{ByteStream, ContainerSpec, Mount, MountPropagation, MountSource, Runtime, SandboxSpec};
use futures::StreamExt;
use image::root::Root;
use image::{Digest, PackedLayer, Store};
use rustix::fs::{AtFlags, FileType, Timespec, Timestamps, UTIME_OMIT, statat, unlinkat, utimensat};

use crate::Error;
use crate::service::{Events, Host};

/// The label that marks a build's sandboxes, so that a restart removes what is left of them.
pub(crate) const OWNER_LABEL: (&str, &str) = ("skiff.owner", "build");
const RESOLVER: &str = "/etc/resolv.conf";
const HOSTS: &str = "/etc/hosts";
/// Inside /dev, which is a fresh tmpfs in every container: the mount point leaves no trace in the layer.
const CA_BUNDLE: &str = "/dev/skiff-host-ca.crt";
/// What the common TLS libraries and tools read.
const CA_VARIABLES: [&str; 6] = [
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "PIP_CERT",
    "GIT_SSL_CAINFO",
];
const LINE_BYTES_MAX: usize = 64 * 1024;

/// A command to run.
pub(crate) struct Job<'a> {
    pub(crate) store: &'a Store,
    pub(crate) runtime: &'a Arc<dyn Runtime>,
    pub(crate) host: &'a Host,
    pub(crate) events: &'a Events,
    /// The image so far: user, working directory and environment are its.
    pub(crate) image: &'a Digest,
    pub(crate) command: Vec<String>,
    /// Build arguments.
    pub(crate) environment: Vec<String>,
    pub(crate) host_certs: bool,
    /// The host's network; else none but loopback.
    pub(crate) network: bool,
    /// `name:address`.
    pub(crate) extra_hosts: &'a [String],
    /// Where files for the step may be kept.
    pub(crate) context: &'a Path,
}

impl Job<'_> {
    /// Runs it and packs what it changed.
    pub(crate) async fn run(&self) -> Result<PackedLayer, Error> {
        let id = base::id::hex64();
        self.events.output(format!(" ---> Running in {}\n", &id[..12])).await?;
        let result = self.in_sandbox(&id).await;
        // Also after a failure and after a cancellation; a second failure must not hide the first.
        let removed = self.runtime.remove_sandbox(&id).await;
        let layer = result?;
        removed?;
        self.events.output(format!("Removing intermediate container {}\n", &id[..12])).await?;
        Ok(layer)
    }

    async fn in_sandbox(&self, id: &str) -> Result<PackedLayer, Error> {
        let labels = BTreeMap::from([(OWNER_LABEL.0.to_owned(), OWNER_LABEL.1.to_owned())]);
        let sandbox = SandboxSpec {
            id: id.to_owned(),
            name: format!("build-{}", &id[..12]),
            labels: labels.clone(),
            hostname: id[..12].to_owned(),
            host_network: self.network,
            ..SandboxSpec::default()
        };
        let hosts = hosts_file(self.extra_hosts, self.context)?;
        let stubs = self.stubs(hosts.is_some()).await?;
        self.runtime.create_sandbox(sandbox).await?;
        let hosts_path = hosts.as_ref().map(tempfile::NamedTempFile::path);
        self.runtime.create_container(self.container(id, labels, hosts_path)).await?;
        let process = self.runtime.attach(id).await?;
        self.runtime.start_container(id).await?;
        drop(process.io.stdin);
        let exit = {
            let finished = async {
                let output =
                    futures::future::join(self.copy(process.io.stdout), self.copy(process.io.stderr));
                let (exit, (stdout, stderr)) =
                    futures::future::join(self.runtime.wait_container(id), output).await;
                stdout.and(stderr)?;
                Ok::<_, Error>(exit?)
            };
            tokio::select! {
                exit = finished => exit?,
                () = self.events.closed() => return Err(Error::Cancelled),
            }
        };
        if exit.code != 0 {
            if !exit.message.is_empty() {
                self.events.output(format!("{}\n", exit.message)).await?;
            }
            return Err(Error::Command { command: self.command.join(" "), code: exit.code });
        }
        // Nothing of it is mounted any more when the sandbox has stopped.
        self.runtime.stop_sandbox(id).await?;
        let (store, key) = (self.store.clone(), id.to_owned());
        blocking(move || {
            if !stubs.is_empty() {
                let view = store.writable_view(&key)?;
                stubs.iter().try_for_each(|stub| stub.remove(&view))?;
            }
            Ok(store.diff(&key)?)
        })
        .await
    }

    fn container(&self, id: &str, labels: BTreeMap<String, String>, hosts: Option<&Path>) -> ContainerSpec {
        let bind = |source: &Path, target: &str| Mount {
            source: MountSource::Bind(source.to_owned()),
            target: PathBuf::from(target),
            read_only: true,
            recursive_read_only: false,
            propagation: MountPropagation::Private,
        };
        let mut env = self.host.proxies.clone();
        let mut mounts = vec![bind(&self.host.resolver, RESOLVER)];
        mounts.extend(hosts.map(|hosts| bind(hosts, HOSTS)));
        if let (true, Some(bundle)) = (self.host_certs, &self.host.ca_bundle) {
            mounts.push(bind(bundle, CA_BUNDLE));
            env.extend(CA_VARIABLES.iter().map(|name| format!("{name}={CA_BUNDLE}")));
        }
        // Last, so that what the user gave wins.
        env.extend(self.environment.iter().cloned());
        ContainerSpec {
            id: id.to_owned(),
            sandbox_id: id.to_owned(),
            name: "build".to_owned(),
            labels,
            image: self.image.to_string(),
            image_id: self.image.to_string(),
            entrypoint: self.command.clone(),
            env,
            mounts,
            ..ContainerSpec::default()
        }
    }

    /// What mounting the resolver, and the hosts where there are some, will leave behind in the image's root.
    async fn stubs(&self, with_hosts: bool) -> Result<Vec<Stub>, Error> {
        let (store, image) = (self.store.clone(), self.image.clone());
        blocking(move || {
            let view = store.view(&image)?;
            let paths = [Some(RESOLVER), with_hosts.then_some(HOSTS)];
            let stubs = paths
                .into_iter()
                .flatten()
                .filter_map(|path| Stub::before(&view, Path::new(path)).transpose());
            stubs.collect()
        })
        .await
    }

    async fn copy(&self, stream: Option<ByteStream>) -> Result<(), Error> {
        let Some(mut stream) = stream else { return Ok(()) };
        let mut waiting = Vec::new();
        while let Some(chunk) = stream.next().await {
            waiting.extend_from_slice(&chunk?);
            let end = match waiting.iter().rposition(|byte| *byte == b'\n') {
                Some(end) => end + 1,
                None if waiting.len() > LINE_BYTES_MAX => waiting.len(),
                None => continue,
            };
            let rest = waiting.split_off(end);
            self.events.output(String::from_utf8_lossy(&waiting).into_owned()).await?;
            waiting = rest;
        }
        match waiting.is_empty() {
            true => Ok(()),
            false => self.events.output(format!("{}\n", String::from_utf8_lossy(&waiting))).await,
        }
    }
}

/// The hosts of a step, as a file that goes with the returned value; none where nobody asked for any.
fn hosts_file(extra: &[String], directory: &Path) -> Result<Option<tempfile::NamedTempFile>, Error> {
    if extra.is_empty() {
        return Ok(None);
    }
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    for entry in extra {
        // Addresses of version 6 hold colons, names never do.
        let (name, address) = entry
            .split_once([':', '='])
            .and_then(|(name, address)| Some((name, address.parse::<std::net::IpAddr>().ok()?)))
            .ok_or_else(|| {
                Error::invalid(format!("invalid --add-host {entry:?}: write it as name:address"))
            })?;
        text.push_str(&format!("{address}\t{name}\n"));
    }
    let write = || {
        use std::os::unix::fs::PermissionsExt as _;
        let file = tempfile::NamedTempFile::new_in(directory)?;
        std::fs::write(file.path(), text)?;
        // Also for a step that does not run as root.
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o644))?;
        Ok(file)
    };
    write().map(Some).map_err(|error: std::io::Error| Error::io("write the hosts of a step", error))
}

/// A mount point that an image lacks: the runtime makes an empty file there (where a link leads to, if there is one),
/// and the directories above it. None of them may get into the layer.
struct Stub {
    path: PathBuf,
    /// The innermost directory of the path that was there before.
    existing: PathBuf,
    /// Its time.
    time: Timespec,
}

impl Stub {
    fn before(view: &Root, path: &Path) -> Result<Option<Self>, Error> {
        let fail = |error| Error::io(format!("look at {}", path.display()), error);
        if view.stat(&image::root::clean(path)).is_ok() {
            return Ok(None);
        }
        let path = view.follow(path).map_err(fail)?;
        let mut existing = path.clone();
        while existing.pop() {
            if let Ok(stat) = view.stat(&existing) {
                let nanoseconds = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
                let time = Timespec { tv_sec: stat.st_mtime, tv_nsec: nanoseconds };
                return Ok(Some(Self { path, existing, time }));
            }
        }
        Ok(None)
    }

    /// Removes the file if it is still empty, and the directories that were made for it alone.
    fn remove(&self, view: &Root) -> Result<(), Error> {
        let fail = |error: rustix::io::Errno| {
            Error::io(format!("remove the mount point /{}", self.path.display()), error)
        };
        let Ok(Some((directory, name))) = view.parent(&self.path) else { return Ok(()) };
        let Ok(stat) = statat(&directory, &name, AtFlags::SYMLINK_NOFOLLOW) else { return Ok(()) };
        if !FileType::from_raw_mode(stat.st_mode).is_file() || stat.st_size > 0 {
            return Ok(());
        }
        unlinkat(&directory, &name, AtFlags::empty()).map_err(fail)?;
        for above in self.path.ancestors().skip(1).take_while(|above| *above != self.existing) {
            let Ok(Some((parent, name))) = view.parent(above) else { return Ok(()) };
            // Fails, as it should, where the command put something there.
            if unlinkat(parent, name, AtFlags::REMOVEDIR).is_err() {
                return Ok(());
            }
        }
        let Ok(directory) = view.directory(&self.existing) else { return Ok(()) };
        let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ };
        let times = Timestamps { last_access: omit, last_modification: self.time };
        utimensat(&directory, ".", &times, AtFlags::empty()).map_err(fail)
    }
}

/// Runs blocking work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::io("build", std::io::Error::other(error))),
    }
}
