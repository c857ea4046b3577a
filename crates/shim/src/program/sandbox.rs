//! What a shim makes for its sandbox before it serves: session, namespaces, kernel parameters, PID 1.

use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use shim::{CONFIG_FILE, NAMESPACES_DIR, SandboxConfig};
use sys::ns::Namespace;

/// Reads the sandbox's configuration.
pub(crate) fn read_config(directory: &Path) -> io::Result<SandboxConfig> {
    shim::decode(&std::fs::read(directory.join(CONFIG_FILE))?)
}

/// Makes the namespaces, pins them in the directory and sets them up. The shim lives in them: what it starts joins
/// them by inheritance. Answers PID 1 of the shared PID namespace, if there is one.
pub(crate) fn set_up(directory: &Path, config: &SandboxConfig) -> io::Result<Option<Child>> {
    let pins = directory.join(NAMESPACES_DIR);
    std::fs::create_dir_all(&pins)?;
    let mut kinds = Vec::new();
    kinds.extend(config.network.then_some(Namespace::Network));
    kinds.extend(config.ipc.then_some(Namespace::Ipc));
    kinds.extend(config.hostname.is_some().then_some(Namespace::Uts));
    match config.users {
        Some(range) => join_those_of(&pins, range, &kinds).map_err(during("making a user namespace"))?,
        None => {
            sys::ns::unshare(&kinds).map_err(during("making namespaces"))?;
            for kind in kinds {
                sys::ns::pin_own(kind, &pins.join(kind.file())).map_err(during("pinning a namespace"))?;
            }
        }
    }
    if config.network {
        sys::ns::loopback_up().map_err(during("bringing loopback up"))?;
    }
    if let Some(hostname) = &config.hostname {
        sys::ns::set_hostname(hostname).map_err(during("setting the host name"))?;
    }
    for (name, value) in &config.sysctls {
        sys::ns::set_sysctl(name, value)
            .map_err(|error| io::Error::new(error.kind(), format!("setting {name}={value}: {error}")))?;
    }
    let users = config.users.is_some();
    config
        .shared_pid
        .then(|| start_init(&pins, users))
        .transpose()
        .map_err(during("starting the sandbox's init"))
}

/// Makes a user namespace with namespaces that belong to it, and goes into those.
fn join_those_of(pins: &Path, range: shim::IdRange, kinds: &[Namespace]) -> io::Result<()> {
    super::users::make(pins, range, kinds)?;
    for kind in kinds {
        sys::ns::join(&std::fs::File::open(pins.join(kind.file()))?, *kind)?;
    }
    Ok(())
}

/// Leaves the daemon's cgroup. A hierarchy that refuses is left as it is: grouping is not worth a sandbox. Answers what
/// was refused, in words: in the daemon's cgroup the shim ends where that is killed whole.
pub(crate) fn enter_cgroups(config: &SandboxConfig) -> Vec<String> {
    let refused = |entrance: &std::path::PathBuf| {
        let error = std::fs::write(entrance, "0").err()?;
        Some(format!("the shim stays in the daemon's cgroup: {}: {error}", entrance.display()))
    };
    config.cgroup_entrances.iter().filter_map(refused).collect()
}

/// Starts PID 1 of a new PID namespace and pins that. `users`: it belongs to the sandbox's user namespace.
fn start_init(pins: &Path, users: bool) -> io::Result<Child> {
    let own = std::fs::File::open("/proc/self/ns/pid")?;
    let empty = pins.join("empty");
    std::fs::create_dir_all(&empty)?;
    if users {
        return super::users::start_init(pins, &empty);
    }
    sys::ns::unshare(&[Namespace::Pid])?;
    let spawned = Command::new("/proc/self/exe")
        .arg("init")
        .arg(&empty)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    // Children made from now on are the host's again.
    sys::ns::join(&own, Namespace::Pid)?;
    let mut child = spawned?;
    // It says so when it has given up its rights; before that no container may see it.
    let mut ready = [0];
    child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?.read_exact(&mut ready)?;
    let target = pins.join(Namespace::Pid.file());
    std::fs::File::create(&target)?;
    sys::mount::bind(Path::new(&format!("/proc/{}/ns/pid", child.id())), &target)?;
    Ok(child)
}

/// Says what failed.
pub(super) fn during(what: &'static str) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{what}: {error}"))
}
