//! Addresses of this node's sandboxes: one file per address, named by it, holding the sandbox's id.
//!
//! The files outlive the process, as sandboxes do. They do not outlive the boot: each is kept under the boot's id, and
//! those of earlier boots are removed when the directory is opened.

use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;

use crate::Error;
use crate::ranges::nth;

/// The addresses of one node.
#[derive(Debug)]
pub struct Ipam {
    dir: PathBuf,
    range: Ipv4Net,
    by_sandbox: HashMap<String, Ipv4Addr>,
    by_address: BTreeMap<Ipv4Addr, String>,
    /// The last address given out: the next search starts after it, so that a freed address rests for a while.
    last: u32,
}

impl Ipam {
    /// Opens the directory `dir` and forgets the addresses of other boots and ranges.
    pub fn open(dir: &Path, boot_id: &str, range: Ipv4Net) -> Result<Self, Error> {
        let what = |path: &Path| format!("keep sandbox addresses in {}", path.display());
        let own = dir.join(boot_id.trim());
        std::fs::create_dir_all(&own).map_err(|error| Error::io(what(&own), error))?;
        for entry in std::fs::read_dir(dir).map_err(|error| Error::io(what(dir), error))?.flatten() {
            if entry.path() != own {
                std::fs::remove_dir_all(entry.path()).map_err(|error| Error::io(what(dir), error))?;
            }
        }
        let mut ipam = Self {
            dir: own.clone(),
            range,
            by_sandbox: HashMap::new(),
            by_address: BTreeMap::new(),
            last: 1,
        };
        for entry in std::fs::read_dir(&own).map_err(|error| Error::io(what(&own), error))?.flatten() {
            let address = entry.file_name().to_str().and_then(|name| name.parse::<Ipv4Addr>().ok());
            let sandbox = std::fs::read_to_string(entry.path()).unwrap_or_default();
            match address.filter(|address| range.contains(address) && !sandbox.is_empty()) {
                Some(address) => ipam.remember(&sandbox, address),
                // Cut short by a crash, or of a range that the node no longer has: nobody uses it.
                None => std::fs::remove_file(entry.path()).map_err(|error| Error::io(what(&own), error))?,
            }
        }
        Ok(ipam)
    }

    /// The address of a sandbox, if it has one.
    pub fn get(&self, sandbox: &str) -> Option<Ipv4Addr> {
        self.by_sandbox.get(sandbox).copied()
    }

    /// Every sandbox with an address.
    pub fn sandboxes(&self) -> impl Iterator<Item = (&str, Ipv4Addr)> {
        self.by_sandbox.iter().map(|(sandbox, address)| (sandbox.as_str(), *address))
    }

    /// The sandbox's address, a free one if it has none yet.
    pub fn allocate(&mut self, sandbox: &str) -> Result<Ipv4Addr, Error> {
        if let Some(address) = self.get(sandbox) {
            return Ok(address);
        }
        let address = self.next_free().ok_or(Error::RangeFull(self.range))?;
        let path = self.dir.join(address.to_string());
        std::fs::File::create(&path)
            .and_then(|mut file| file.write_all(sandbox.as_bytes()))
            .map_err(|error| Error::io(format!("keep a sandbox's address in {}", path.display()), error))?;
        self.remember(sandbox, address);
        self.last = u32::from(address) - u32::from(self.range.network());
        Ok(address)
    }

    /// Frees the sandbox's address, if it has one.
    pub fn release(&mut self, sandbox: &str) -> Result<Option<Ipv4Addr>, Error> {
        let Some(address) = self.by_sandbox.remove(sandbox) else { return Ok(None) };
        self.by_address.remove(&address);
        let path = self.dir.join(address.to_string());
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(format!("free a sandbox's address in {}", path.display()), error))
            }
            _ => Ok(Some(address)),
        }
    }

    fn remember(&mut self, sandbox: &str, address: Ipv4Addr) {
        self.by_sandbox.insert(sandbox.to_owned(), address);
        self.by_address.insert(address, sandbox.to_owned());
    }

    /// The next free address after the last one given out. The network's own, the gateway's (1) and the broadcast
    /// address are never given out.
    fn next_free(&self) -> Option<Ipv4Addr> {
        let hosts = 1u32.checked_shl(u32::from(32 - self.range.prefix_len()))?.saturating_sub(3);
        (0..hosts)
            .map(|step| nth(self.range, 2 + (self.last.saturating_sub(1) + step) % hosts))
            .find(|address| !self.by_address.contains_key(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path, boot: &str) -> Ipam {
        Ipam::open(dir, boot, "10.42.0.0/29".parse().unwrap()).unwrap()
    }

    #[test]
    fn addresses_rest_before_they_are_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut ipam = open(dir.path(), "boot-1");
        let first = ipam.allocate("a").unwrap();
        assert_eq!(first.to_string(), "10.42.0.2");
        assert_eq!(ipam.allocate("a").unwrap(), first);
        assert_eq!(ipam.release("a").unwrap(), Some(first));
        assert_eq!(ipam.release("a").unwrap(), None);
        let rest: Vec<_> = ["b", "c", "d", "e", "f"].map(|id| ipam.allocate(id).unwrap().octets()[3]).into();
        assert_eq!(rest, [3, 4, 5, 6, 2]);
        assert!(matches!(ipam.allocate("g"), Err(Error::RangeFull(_))));
    }

    #[test]
    fn a_restart_keeps_addresses_and_a_reboot_frees_them() {
        let dir = tempfile::tempdir().unwrap();
        let address = open(dir.path(), "boot-1").allocate("a").unwrap();
        std::fs::write(dir.path().join("boot-1/10.42.0.5"), "").unwrap();
        let again = open(dir.path(), "boot-1");
        assert_eq!(again.get("a"), Some(address));
        assert_eq!(again.sandboxes().count(), 1);
        assert_eq!(open(dir.path(), "boot-2").sandboxes().count(), 0);
        assert_eq!(open(dir.path(), "boot-1").sandboxes().count(), 0);
    }
}
