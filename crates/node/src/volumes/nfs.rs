//! Directories of NFS servers. The kernel is asked to mount them: a program that does it for others (`mount.nfs`) is not
//! needed, but what it does before is done here, which is to look up the server's address and to try the versions of the
//! protocol. Source: `pkg/volume/nfs`, nfs(5).

use std::io;
use std::net::{IpAddr, ToSocketAddrs as _};
use std::path::Path;

use rustix::io::Errno;
use sys::mount_options::Options;

use super::empty_dir;

/// The port of NFS, which a lookup of addresses wants to have.
const PORT: u16 = 2049;
/// Of one server; nobody has more.
const ADDRESSES_MAX: usize = 16;
/// The newest first, as `mount.nfs` tries them.
const VERSIONS: [&str; 4] = ["4.2", "4.1", "4.0", "3"];

/// A directory of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Export {
    server: String,
    path: String,
    options: Options,
}

impl Export {
    /// Checks what a volume says.
    pub(crate) fn of<W: AsRef<str>>(
        server: &str,
        path: &str,
        read_only: bool,
        options: &[W],
    ) -> Result<Self, String> {
        let bare = server.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(server);
        let is_name = |name: &str| {
            let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
            !name.is_empty() && name.len() <= 253 && !name.starts_with('-') && name.bytes().all(known)
        };
        if bare.parse::<IpAddr>().is_err() && !is_name(bare) {
            return Err(format!("nfs.server {server:?} is neither a name nor an address"));
        }
        if !path.starts_with('/') || path.contains('\0') {
            return Err(format!("nfs.path {path:?} must be absolute"));
        }
        let mut options = Options::parse(options)?;
        if read_only {
            options.read_only();
        }
        Ok(Self { server: bare.to_owned(), path: path.to_owned(), options })
    }

    /// What the kernel is to mount.
    fn source(&self) -> String {
        match self.server.parse::<IpAddr>() {
            Ok(IpAddr::V6(address)) => format!("[{address}]:{}", self.path),
            _ => format!("{}:{}", self.server, self.path),
        }
    }

    /// The options of each try: of the version that was asked for, else of every version. Pure.
    fn tries(&self, address: IpAddr) -> Vec<Options> {
        let asked = self.options.data().iter().any(|option| {
            let name = option.split('=').next().unwrap_or_default();
            matches!(name, "vers" | "nfsvers" | "v3" | "v4" | "v4.0" | "v4.1" | "v4.2" | "minorversion")
        });
        let with = |version: Option<&&str>| {
            let mut options = self.options.clone();
            options.push(format!("addr={address}"));
            if let Some(version) = version {
                options.push(format!("vers={version}"));
            }
            options
        };
        if asked { vec![with(None)] } else { VERSIONS.iter().map(|version| with(Some(version))).collect() }
    }
}

/// Mounts the directory where it is not mounted yet. Blocks, for ever where the server does not answer.
pub(crate) fn prepare(export: &Export, target: &Path) -> Result<(), String> {
    let source = export.source();
    let failed = |why: String| format!("mount failed: mounting {source}: {why}");
    let io = |error: io::Error| failed(error.to_string());
    // Before anything looks at the directory: the server of what is mounted there may not answer any more.
    if empty_dir::is_mounted(target).map_err(io)? {
        return Ok(());
    }
    empty_dir::make_directory(target, 0o750).map_err(io)?;
    let addresses = (export.server.as_str(), PORT)
        .to_socket_addrs()
        .map_err(|error| failed(format!("the address of {}: {error}", export.server)))?;
    let addresses: Vec<IpAddr> = addresses.map(|address| address.ip()).take(ADDRESSES_MAX).collect();
    let mount = |options: &Options| options.mount(&*source, target, "nfs");
    match mount_one(export, &addresses, mount) {
        Ok(()) => Ok(()),
        Err(None) => Err(failed(format!("{} has no address", export.server))),
        Err(Some(error)) => Err(failed(why(&error))),
    }
}

/// Mounts from the first of a server's addresses at which somebody is, in the first version of the protocol that both
/// speak. Answers the last error, if there was an address.
fn mount_one(
    export: &Export,
    addresses: &[IpAddr],
    mount: impl Fn(&Options) -> io::Result<()>,
) -> Result<(), Option<io::Error>> {
    let mut last = None;
    for address in addresses {
        for options in export.tries(*address) {
            let Err(error) = mount(&options) else { return Ok(()) };
            let other = is_of_the_version(&error);
            last = Some(error);
            if !other {
                break;
            }
        }
        if !last.as_ref().is_some_and(is_of_the_address) {
            break;
        }
    }
    Err(last)
}

/// Whether another address of the server may do better: nobody is at this one.
fn is_of_the_address(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::CONNREFUSED | Errno::HOSTUNREACH | Errno::NETUNREACH))
}

/// Whether another version may do better: the server, or this kernel, does not speak this one.
fn is_of_the_version(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::PROTONOSUPPORT | Errno::INVAL))
}

/// What an error of the kernel means to whoever wants the volume.
fn why(error: &io::Error) -> String {
    match Errno::from_io_error(error) {
        Some(Errno::NODEV) => "this host's kernel has no NFS client: load its module (modprobe nfsv4, or nfs), or boot a kernel with CONFIG_NFS_FS".to_owned(),
        Some(Errno::PROTONOSUPPORT) => "the server speaks no version of NFS that this kernel speaks: name one in the volume's mountOptions (nfsvers=)".to_owned(),
        Some(Errno::ACCESS | Errno::PERM) => "access denied by the server: it has to export the directory to this host".to_owned(),
        Some(Errno::NOENT) => "the server has no such directory".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn export(server: &str, path: &str, options: &[&str]) -> Result<Export, String> {
        Export::of(server, path, false, options)
    }

    #[test]
    fn what_names_no_directory_of_a_server_is_refused() {
        for (server, path, wanted) in [
            ("", "/x", "neither a name"),
            ("-o", "/x", "neither a name"),
            ("a:b", "/x", "neither a name"),
            ("a/b", "/x", "neither a name"),
            ("server", "x", "must be absolute"),
        ] {
            assert!(export(server, path, &[]).unwrap_err().contains(wanted), "{server} {path}");
        }
        assert!(export("server", "/x", &["bind"]).is_err());
        for (server, source) in [
            ("nfs.example.com", "nfs.example.com:/x"),
            ("192.0.2.1", "192.0.2.1:/x"),
            ("[fd00::1]", "[fd00::1]:/x"),
        ] {
            assert_eq!(export(server, "/x", &[]).unwrap().source(), source);
        }
    }

    #[test]
    fn every_version_is_tried_unless_one_is_asked_for() {
        let data = |options: &[&str]| -> Vec<String> {
            let tries = export("server", "/x", options).unwrap().tries("192.0.2.1".parse().unwrap());
            tries.iter().map(|options| options.data().join(",")).collect()
        };
        let all = ["4.2", "4.1", "4.0", "3"].map(|version| format!("soft,addr=192.0.2.1,vers={version}"));
        assert_eq!(data(&["soft", "ro"]), all);
        for asked in ["vers=3", "nfsvers=4.1", "v4.2"] {
            assert_eq!(data(&[asked]), [format!("{asked},addr=192.0.2.1")]);
        }
    }

    #[test]
    fn every_address_is_tried_until_somebody_is_there() {
        let export = export("server", "/x", &["vers=3"]).unwrap();
        let addresses = ["fd00::1", "192.0.2.1", "192.0.2.2"].map(|text| text.parse().unwrap());
        let tried = |answers: &[Errno]| {
            let asked = std::cell::RefCell::new(Vec::new());
            let mount = |options: &Options| {
                let mut asked = asked.borrow_mut();
                asked.push(options.data().join(","));
                answers.get(asked.len() - 1).map_or(Ok(()), |errno| Err((*errno).into()))
            };
            let done = mount_one(&export, &addresses, mount).is_ok();
            (done, asked.into_inner().len())
        };
        assert_eq!(tried(&[]), (true, 1));
        assert_eq!(tried(&[Errno::NETUNREACH, Errno::CONNREFUSED]), (true, 3));
        assert_eq!(tried(&[Errno::HOSTUNREACH; 3]), (false, 3));
        assert_eq!(tried(&[Errno::ACCESS]), (false, 1), "somebody is there, and says no");
        assert!(mount_one(&export, &[], |_| Ok(())).unwrap_err().is_none());
    }

    #[test]
    fn what_the_kernel_says_becomes_a_remedy() {
        let says = |errno: Errno| why(&errno.into());
        assert!(says(Errno::NODEV).contains("modprobe nfs"));
        assert!(says(Errno::ACCESS).contains("export the directory to this host"));
        assert!(
            is_of_the_version(&Errno::PROTONOSUPPORT.into()) && !is_of_the_version(&Errno::TIMEDOUT.into())
        );
        // Where the kernel has a client nobody answers on this address and port.
        let dir = tempfile::tempdir().unwrap();
        let error = prepare(&export("127.0.0.1", "/x", &["soft,timeo=1,retrans=1"]).unwrap(), dir.path());
        assert!(error.unwrap_err().starts_with("mount failed: mounting 127.0.0.1:/x: "));
    }
}
