//! What a create request mounts: binds, volumes, temporary file systems, and the container's own files in /etc.

use std::path::{Path, PathBuf};

use engine_api::{Image, Mount, MountPropagation, MountSource};

use crate::answer::Failure;
use crate::container_spec::{CreateRequest, Directories, MountRequest};

/// What `--tmpfs` sets unless the opposite is asked for; the engine's own defaults are the rest.
const TMPFS_DEFAULT: &str = "noexec";

/// Every mount of a container, and the paths that become directories where nothing is: named volumes, and what `-v`
/// names (`--mount` does not make its source).
pub(crate) fn all(
    request: &CreateRequest,
    image: &Image,
    directories: &Directories,
) -> Result<(Vec<Mount>, Vec<PathBuf>), Failure> {
    let mut mounts = Mounts { directories, list: Vec::new(), volumes: Vec::new() };
    let host = &request.host_config;
    for text in &host.binds {
        mounts.bind_text(text)?;
    }
    for mount in &host.mounts {
        mounts.request(mount)?;
    }
    for (target, options) in &host.tmpfs {
        mounts.tmpfs(target, options)?;
    }
    for target in image.config.volumes.iter().chain(request.volumes.keys()) {
        let taken = |mount: &Mount| mount.target == Path::new(target);
        if !mounts.list.iter().any(taken) {
            mounts.add(&anonymous(), target, false, MountPropagation::Private)?;
        }
    }
    for name in ["hosts", "hostname", "resolv.conf"] {
        let target = format!("/etc/{name}");
        if !mounts.list.iter().any(|mount| mount.target == Path::new(&target)) {
            let source = MountSource::Bind(directories.files.join(name));
            mounts.push(source, &target, false, MountPropagation::Private);
        }
    }
    Ok((mounts.list, mounts.volumes))
}

struct Mounts<'a> {
    directories: &'a Directories,
    list: Vec<Mount>,
    volumes: Vec<PathBuf>,
}

impl Mounts<'_> {
    /// `-v source:target[:options]`.
    fn bind_text(&mut self, text: &str) -> Result<(), Failure> {
        let parts: Vec<&str> = text.splitn(3, ':').collect();
        let (source, target, options) = match parts.as_slice() {
            [source, target] => (*source, *target, ""),
            [source, target, options] => (*source, *target, *options),
            _ => return Err(Failure::bad_request(format!("invalid volume specification: '{text}'"))),
        };
        let mut read_only = false;
        let mut propagation = MountPropagation::Private;
        for option in options.split(',') {
            match option {
                // Labels are SELinux's, which is not used; consistency is for other systems; nothing is copied anyway.
                "" | "rw" | "z" | "Z" | "nocopy" | "consistent" | "cached" | "delegated" => {}
                "ro" => read_only = true,
                other => propagation = propagation_of(other, text)?,
            }
        }
        if source.starts_with('/') {
            self.volumes.push(PathBuf::from(source));
        }
        self.add(source, target, read_only, propagation)
    }

    /// `--mount`.
    fn request(&mut self, mount: &MountRequest) -> Result<(), Failure> {
        let MountRequest { kind, source, target, read_only, bind_options, tmpfs_options } = mount;
        let propagation = match bind_options.propagation.as_str() {
            "" => MountPropagation::Private,
            named => propagation_of(named, target)?,
        };
        match kind.as_str() {
            "bind" if source.starts_with('/') => self.add(source, target, *read_only, propagation),
            "volume" if source.is_empty() => self.add(&anonymous(), target, *read_only, propagation),
            "volume" => self.add(source, target, *read_only, propagation),
            "tmpfs" => {
                absolute(target)?;
                let mut options = vec![TMPFS_DEFAULT.to_owned()];
                if tmpfs_options.mode != 0 {
                    options.push(format!("mode={:o}", tmpfs_options.mode));
                }
                let source = MountSource::Tmpfs { size_bytes: tmpfs_options.size_bytes, options };
                self.push(source, target, *read_only, MountPropagation::Private);
                Ok(())
            }
            other => Err(Failure::bad_request(format!("invalid mount of type {other:?} at {target}"))),
        }
    }

    /// `--tmpfs target[:options]`.
    fn tmpfs(&mut self, target: &str, text: &str) -> Result<(), Failure> {
        absolute(target)?;
        let invalid =
            |option: &str| Failure::bad_request(format!("invalid tmpfs option {option:?} at {target}"));
        let mut options = Vec::new();
        let (mut size_bytes, mut read_only, mut executable) = (0, false, false);
        for option in text.split(',').filter(|option| !option.is_empty()) {
            match option.split_once('=').unwrap_or((option, "")) {
                ("ro", "") => read_only = true,
                ("rw", "") => read_only = false,
                ("exec", "") => executable = true,
                ("noexec", "") => executable = false,
                ("suid" | "nosuid" | "dev" | "nodev" | "sync" | "noatime", "") => {
                    options.push(option.to_owned())
                }
                ("size", size) => size_bytes = bytes(size).ok_or_else(|| invalid(option))?,
                ("mode", mode) if u32::from_str_radix(mode, 8).is_ok() => options.push(option.to_owned()),
                ("uid" | "gid", id) if id.parse::<u32>().is_ok() => options.push(option.to_owned()),
                ("nr_inodes", count) if bytes(count).is_some() => options.push(option.to_owned()),
                _ => return Err(invalid(option)),
            }
        }
        if !executable {
            options.push(TMPFS_DEFAULT.to_owned());
        }
        self.push(MountSource::Tmpfs { size_bytes, options }, target, read_only, MountPropagation::Private);
        Ok(())
    }

    /// A directory or file of the host, or a named volume.
    fn add(
        &mut self,
        source: &str,
        target: &str,
        read_only: bool,
        propagation: MountPropagation,
    ) -> Result<(), Failure> {
        absolute(target)?;
        let source = if source.starts_with('/') {
            PathBuf::from(source)
        } else {
            let volume = self.directories.volumes.join(volume_name(source)?);
            self.volumes.push(volume.clone());
            volume
        };
        self.push(MountSource::Bind(source), target, read_only, propagation);
        Ok(())
    }

    fn push(&mut self, source: MountSource, target: &str, read_only: bool, propagation: MountPropagation) {
        self.list.push(Mount {
            source,
            target: PathBuf::from(target),
            read_only,
            recursive_read_only: false,
            propagation,
        });
    }
}

fn propagation_of(name: &str, of: &str) -> Result<MountPropagation, Failure> {
    match name {
        "private" | "rprivate" => Ok(MountPropagation::Private),
        "slave" | "rslave" => Ok(MountPropagation::HostToContainer),
        "shared" | "rshared" => Ok(MountPropagation::Bidirectional),
        other => Err(Failure::bad_request(format!("invalid mount option {other:?} of {of:?}"))),
    }
}

/// `64m`: bytes with a suffix of 1024s.
fn bytes(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let shift = match lower.chars().last()? {
        'k' => 10,
        'm' => 20,
        'g' => 30,
        _ => 0,
    };
    let digits = if shift > 0 { &lower[..lower.len() - 1] } else { &lower };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn anonymous() -> String {
    base::id::hex64()
}

fn absolute(target: &str) -> Result<(), Failure> {
    match target.starts_with('/') && target != "/" {
        true => Ok(()),
        false => Err(Failure::bad_request(format!(
            "invalid mount path: '{target}' must be absolute and not the root"
        ))),
    }
}

/// A volume's name is a directory's name and nothing more.
fn volume_name(name: &str) -> Result<&str, Failure> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let good =
        name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(fits) && name.len() <= 255;
    good.then_some(name).ok_or_else(|| {
        Failure::bad_request(format!(
            "{name:?} is neither an absolute path nor a volume name ([a-zA-Z0-9][a-zA-Z0-9_.-]*)"
        ))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn mounts(host: Value) -> Result<Vec<Mount>, Failure> {
        let request: CreateRequest =
            serde_json::from_value(json!({"Image": "x", "HostConfig": host})).unwrap();
        let directories = Directories { volumes: PathBuf::from("/v"), files: PathBuf::from("/f") };
        let mut mounts = Mounts { directories: &directories, list: Vec::new(), volumes: Vec::new() };
        let host = &request.host_config;
        host.binds.iter().try_for_each(|text| mounts.bind_text(text))?;
        host.mounts.iter().try_for_each(|mount| mounts.request(mount))?;
        host.tmpfs.iter().try_for_each(|(target, options)| mounts.tmpfs(target, options))?;
        Ok(mounts.list)
    }

    #[test]
    fn options_of_mounts_are_kept() {
        let list = mounts(json!({
            "Binds": ["/a:/a:ro,rslave", "b:/b:z,rshared"],
            "Mounts": [{"Type": "tmpfs", "Target": "/m", "ReadOnly": true, "TmpfsOptions": {"SizeBytes": 7, "Mode": 448}},
                {"Type": "bind", "Source": "/c", "Target": "/c", "BindOptions": {"Propagation": "slave"}}],
            "Tmpfs": {"/t": "size=1m,ro,mode=700,uid=5", "/x": "exec,suid"}
        }))
        .unwrap();
        assert!(list[0].read_only && list[0].propagation == MountPropagation::HostToContainer);
        assert!(!list[1].read_only && list[1].propagation == MountPropagation::Bidirectional);
        let tmpfs = |size_bytes, options: &[&str]| MountSource::Tmpfs {
            size_bytes,
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        };
        assert!(list[2].read_only);
        assert_eq!(list[2].source, tmpfs(7, &["noexec", "mode=700"]));
        assert_eq!(list[3].propagation, MountPropagation::HostToContainer);
        assert!(list[4].read_only);
        assert_eq!(list[4].source, tmpfs(1 << 20, &["mode=700", "uid=5", "noexec"]));
        assert_eq!(list[5].source, tmpfs(0, &["suid"]));
    }

    #[test]
    fn what_no_mount_can_have_is_refused() {
        for host in [
            json!({"Binds": ["/a:/a:wo"]}),
            json!({"Tmpfs": {"/t": "size=much"}}),
            json!({"Tmpfs": {"/t": "mode=9"}}),
            json!({"Tmpfs": {"/t": "context=x"}}),
            json!({"Tmpfs": {"t": ""}}),
            json!({"Mounts": [{"Type": "bind", "Source": "/c", "Target": "/c", "BindOptions": {"Propagation": "up"}}]}),
        ] {
            assert!(mounts(host.clone()).is_err(), "{host}");
        }
        assert_eq!(bytes("99999999999g"), None);
    }
}
