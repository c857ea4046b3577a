//! `hosts`, `hostname` and `resolv.conf` of a sandbox, which its containers mount over those of their images.

use std::path::{Path, PathBuf};

use engine_api::{Mount, MountPropagation, MountSource};
use tonic::Status;

use crate::failure::internal;
use crate::proto::{DnsConfig, PodSandboxConfig};

/// The files by the paths at which containers see them.
pub(crate) const FILES: [(&str, &str); 3] =
    [("hosts", "/etc/hosts"), ("hostname", "/etc/hostname"), ("resolv.conf", "/etc/resolv.conf")];

/// The text of a resolver's configuration. Source: resolv.conf(5).
fn resolver(dns: &DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

/// Writes the files of a sandbox. Without a configuration of its resolver it has the host's.
pub(crate) async fn write(
    directory: &Path,
    config: &PodSandboxConfig,
    hostname: &str,
    address: Option<&str>,
) -> Result<(), Status> {
    let failed = |error| internal("write the sandbox's files", &error);
    let of_host = |path: &'static str| async move { tokio::fs::read(path).await.unwrap_or_default() };
    let resolver = match config.dns_config.as_ref().map(resolver).filter(|text| !text.is_empty()) {
        Some(text) => text.into_bytes(),
        None => of_host("/etc/resolv.conf").await,
    };
    let hosts = match (address, hostname) {
        // In the host's network: the host's names.
        (None, _) => of_host("/etc/hosts").await,
        (Some(address), name) => {
            format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{address}\t{name}\n")
                .into_bytes()
        }
    };
    tokio::fs::create_dir_all(directory).await.map_err(failed)?;
    let texts = [hosts, format!("{hostname}\n").into_bytes(), resolver];
    for ((name, _), text) in FILES.iter().zip(texts) {
        // What a maker that was killed has left half written is written again, and what is whole is left as it is: its
        // containers may have it mounted.
        let path = directory.join(name);
        if !is_file(&path).await {
            let half = directory.join(format!("{name}.new"));
            tokio::fs::write(&half, text).await.map_err(failed)?;
            tokio::fs::rename(&half, &path).await.map_err(failed)?;
        }
    }
    Ok(())
}

async fn is_file(path: &Path) -> bool {
    tokio::fs::metadata(path).await.is_ok_and(|data| data.is_file())
}

/// Whether every file of a sandbox has been written.
pub(crate) async fn are_whole(directory: &Path) -> bool {
    for (name, _) in FILES {
        if !is_file(&directory.join(name)).await {
            return false;
        }
    }
    true
}

/// The mounts of the files that a container does not replace by its own.
pub(crate) fn mounts(directory: &Path, own: &[Mount], read_only: bool) -> Vec<Mount> {
    let missing =
        FILES.iter().filter(|(_, target)| own.iter().all(|mount| mount.target != Path::new(target)));
    let mount = |(name, target): &(&str, &str)| Mount {
        source: MountSource::Bind(directory.join(name)),
        target: PathBuf::from(target),
        read_only,
        recursive_read_only: false,
        propagation: MountPropagation::Private,
    };
    missing.map(mount).collect()
}

/// Removes directories of sandboxes that are not there any more: of a process that was killed in a removal.
pub(crate) async fn clear_unknown(directory: &Path, is_known: impl Fn(&str) -> bool) {
    let Ok(mut entries) = tokio::fs::read_dir(directory).await else { return };
    while let Ok(Some(entry)) = entries.next_entry().await {
        if entry.file_name().to_str().is_some_and(&is_known) {
            continue;
        }
        if let Err(error) = tokio::fs::remove_dir_all(entry.path()).await {
            tracing::warn!(path = %entry.path().display(), %error, "files of a sandbox that is gone stay");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_are_written_and_left_ones_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let dns = DnsConfig {
            servers: vec!["10.0.0.10".into()],
            searches: vec!["a".into(), "b".into()],
            options: vec!["ndots:5".into()],
        };
        let config = PodSandboxConfig { dns_config: Some(dns), ..PodSandboxConfig::default() };
        let own = dir.path().join("own");
        write(&own, &config, "name", Some("10.1.2.3")).await.unwrap();
        let read = |name: &str| std::fs::read_to_string(own.join(name)).unwrap();
        assert_eq!(read("resolv.conf"), "search a b\nnameserver 10.0.0.10\noptions ndots:5\n");
        assert!(read("hosts").ends_with("10.1.2.3\tname\n"));
        assert_eq!(read("hostname"), "name\n");
        std::fs::create_dir(dir.path().join("left")).unwrap();
        clear_unknown(dir.path(), |name| name == "own").await;
        assert!(own.exists() && !dir.path().join("left").exists());
    }

    #[test]
    fn own_files_take_the_place_of_these() {
        let hosts = mounts(Path::new("/d"), &[], true).remove(0);
        assert_eq!((hosts.target.as_path(), hosts.read_only), (Path::new("/etc/hosts"), true));
        let rest = mounts(Path::new("/d"), &[hosts], false);
        assert_eq!(rest.len(), 2);
    }
}
