//! Namespaces: made by this process, kept alive by bind mounts of `/proc/self/ns/*`, joined for one call.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use crate::process::Pidfd;
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

/// A kind of namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespace {
    /// Network devices, addresses, routes, ports.
    Network,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Host name.
    Uts,
    /// Process ids: for children made from now on.
    Pid,
    /// Mounts.
    Mount,
    /// User and group ids, and rights.
    User,
}

impl Namespace {
    /// Its file in `/proc/<pid>/ns`.
    pub fn file(self) -> &'static str {
        match self {
            Self::Network => "net",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Pid => "pid",
            Self::Mount => "mnt",
            Self::User => "user",
        }
    }

    fn flag(self) -> UnshareFlags {
        match self {
            Self::Network => UnshareFlags::NEWNET,
            Self::Ipc => UnshareFlags::NEWIPC,
            Self::Uts => UnshareFlags::NEWUTS,
            Self::Pid => UnshareFlags::NEWPID,
            Self::Mount => UnshareFlags::NEWNS,
            Self::User => UnshareFlags::NEWUSER,
        }
    }

    fn link_type(self) -> LinkNameSpaceType {
        match self {
            Self::Network => LinkNameSpaceType::Network,
            Self::Ipc => LinkNameSpaceType::InterProcessCommunication,
            Self::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
            Self::Pid => LinkNameSpaceType::ProcessID,
            Self::Mount => LinkNameSpaceType::Mount,
            Self::User => LinkNameSpaceType::User,
        }
    }
}

/// Moves the calling thread (a single-threaded process: the process) into new namespaces.
pub fn unshare(namespaces: &[Namespace]) -> io::Result<()> {
    let flags = namespaces.iter().fold(UnshareFlags::empty(), |flags, kind| flags | kind.flag());
    // SAFETY: the flag that is unsafe is `FILES` (a descriptor table of the thread's own); `flag` never gives it.
    unsafe { rustix::thread::unshare_unsafe(flags)? };
    Ok(())
}

/// Joins the namespace that an open `/proc/<pid>/ns` file or bind mount of one refers to.
pub fn join(namespace: impl AsFd, kind: Namespace) -> io::Result<()> {
    Ok(rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(kind.link_type()))?)
}

/// Keeps the calling process's namespace alive by a bind mount on `target`, which is made as an empty file.
pub fn pin_own(kind: Namespace, target: &Path) -> io::Result<()> {
    std::fs::File::create(target)?;
    // The thread's own namespace, also where the caller is not the main thread.
    Ok(rustix::mount::mount_bind(format!("/proc/thread-self/ns/{}", kind.file()), target)?)
}

/// Keeps another process's namespace alive by a bind mount on `target`, which is made as an empty file. `pid` is the
/// number of `process`: a process that has ended by now is not found.
pub fn pin_of(process: &Pidfd, pid: u32, kind: Namespace, target: &Path) -> io::Result<()> {
    let namespace = std::fs::File::open(format!("/proc/{pid}/ns/{}", kind.file()))?;
    // It lives, so its number was nobody else's when the file was opened.
    if process.wait(Duration::ZERO)? {
        return Err(io::ErrorKind::NotFound.into());
    }
    std::fs::File::create(target)?;
    Ok(rustix::mount::mount_bind(format!("/proc/self/fd/{}", namespace.as_raw_fd()), target)?)
}

/// Sets the host name of the calling process's UTS namespace.
pub fn set_hostname(name: &str) -> io::Result<()> {
    Ok(rustix::system::sethostname(name.as_bytes())?)
}

/// Sets a kernel parameter, as the calling process's namespaces see it (`net.ipv4.ip_forward`).
pub fn set_sysctl(name: &str, value: &str) -> io::Result<()> {
    let path = Path::new("/proc/sys").join(sysctl_path(name)?);
    std::fs::write(path, value)
}

/// The path of a parameter below /proc/sys. Dots separate; where a slash comes first, slashes do and dots are part of
/// the name (sysctl(8)).
fn sysctl_path(name: &str) -> io::Result<String> {
    let first = name.find(['.', '/']).map(|at| &name[at..=at]);
    let path = if first == Some("/") { name.to_owned() } else { name.replace('.', "/") };
    if path.is_empty() || path.split('/').any(|part| part.is_empty() || part == "..") {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("`{name}` is no kernel parameter")));
    }
    Ok(path)
}

/// Brings the loopback interface of the calling process's network namespace up.
pub fn loopback_up() -> io::Result<()> {
    // SAFETY: the request is zeroed plain data with a terminated name, lives across both calls, and the socket's
    // descriptor is owned here alone.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(socket);
        let mut request: libc::ifreq = std::mem::zeroed();
        for (slot, byte) in request.ifr_name.iter_mut().zip(b"lo\0") {
            *slot = libc::c_char::from_ne_bytes([*byte]);
        }
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) < 0 {
            return Err(io::Error::last_os_error());
        }
        request.ifr_ifru.ifru_flags |= (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Runs `work` on a thread of its own inside the network namespace at `netns`, so that no thread of the caller ever
/// leaves its own. Blocks until it is done.
pub fn run_in_netns<T: Send>(netns: &Path, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let namespace = std::fs::File::open(netns)?;
    std::thread::scope(|scope| {
        let worker = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, move || {
            join(&namespace, Namespace::Network)?;
            work()
        })?;
        worker
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread in the network namespace panicked")))
    })
}

/// Opens a TCP connection to `localhost:port` inside the network namespace at `netns`, IPv4 before IPv6. Blocks for at
/// most `timeout` for each of them. The connection is non-blocking.
pub fn connect_localhost(netns: &Path, port: u16, timeout: Duration) -> io::Result<TcpStream> {
    run_in_netns(netns, || {
        let connect = |address: IpAddr| TcpStream::connect_timeout(&SocketAddr::new(address, port), timeout);
        let stream = connect(Ipv4Addr::LOCALHOST.into()).or_else(|first| {
            // The first error is the one that a user understands; most sandboxes listen on IPv4.
            connect(Ipv6Addr::LOCALHOST.into()).map_err(|_| first)
        })?;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(stream)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_cannot_leave_their_tree() {
        assert_eq!(sysctl_path("net.ipv4.ip_forward").unwrap(), "net/ipv4/ip_forward");
        assert_eq!(
            sysctl_path("net/ipv4/conf/eth0.1/forwarding").unwrap(),
            "net/ipv4/conf/eth0.1/forwarding"
        );
        for bad in ["", "net/../kernel/hostname", "..", ".net"] {
            assert!(sysctl_path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_namespace_is_held_only_of_who_lives() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("uts");
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let process = Pidfd::open(child.id()).unwrap();
        let held = pin_of(&process, child.id(), Namespace::Uts, &path);
        let same =
            |path: &str| std::fs::metadata(path).map(|file| std::os::unix::fs::MetadataExt::ino(&file));
        let inode = same(path.to_str().unwrap()).unwrap();
        crate::mount::unmount(&path).unwrap();
        held.unwrap();
        assert_eq!(inode, same("/proc/self/ns/uts").unwrap());
        child.kill().unwrap();
        // Not reaped: its number is still there, and it has ended.
        assert!(process.wait(Duration::from_secs(60)).unwrap());
        let late = pin_of(&process, child.id(), Namespace::Uts, &path);
        child.wait().unwrap();
        assert!(late.is_err());
    }

    #[test]
    fn a_pinned_network_namespace_answers_on_loopback() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net");
        let pinned = path.clone();
        let listener = std::thread::spawn(move || {
            unshare(&[Namespace::Network]).unwrap();
            loopback_up().unwrap();
            pin_own(Namespace::Network, &pinned).unwrap();
            std::net::TcpListener::bind("127.0.0.1:0").unwrap()
        })
        .join()
        .unwrap();
        let port = listener.local_addr().unwrap().port();
        let stream = connect_localhost(&path, port, Duration::from_secs(60));
        drop(listener);
        let refused = connect_localhost(&path, port, Duration::from_secs(60));
        crate::mount::unmount(&path).unwrap();
        assert!(stream.is_ok());
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
