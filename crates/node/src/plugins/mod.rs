//! Programs beside the node that do something for it over a socket: they register, are asked, and may hang, lie or die
//! at any time. Every call has a deadline, every answer a bound, and nobody waits for a plugin but who needs it.
//! Source: `pkg/kubelet/pluginmanager`, KEP-595.

mod around;
pub(crate) mod csi_node;
pub(crate) mod devices;
pub(crate) mod dra;
pub(crate) mod driver;
pub(crate) mod in_use;
pub(crate) mod pod_resources;
pub(crate) mod registration;
mod socket;
pub(crate) mod sweep;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use devices::Devices;
use dra::Claims;
use driver::{Driver, NodeInfo};
use in_use::InUse;

use crate::volumes::csi::Mounted;

/// The plugins that are registered, and what is under way with them.
#[derive(Default)]
pub(crate) struct Plugins {
    drivers: Mutex<BTreeMap<String, Registered>>,
    /// What drivers have done for pods since the node began.
    pub(crate) mounted: Mounted,
    /// What the node says that it uses of volumes which are attached to it.
    pub(crate) in_use: InUse,
    /// Devices that plugins have for containers.
    pub(crate) devices: Devices,
    /// Devices that claims stand for, with their drivers.
    pub(crate) claims: Claims,
    /// Held by who writes the node's objects for a driver.
    objects: tokio::sync::Mutex<()>,
}

/// A driver, and how it came to be known.
#[derive(Clone)]
struct Registered {
    driver: Arc<Driver>,
    version: driver::Version,
    /// What it says of this node.
    node: NodeInfo,
    /// The socket at which it registered.
    socket: PathBuf,
}

impl Plugins {
    /// A driver of volumes, by its name.
    pub(crate) fn driver(&self, name: &str) -> Option<Arc<Driver>> {
        self.drivers.lock().get(name).map(|known| known.driver.clone())
    }

    /// Takes a driver in, in place of one of its name that is no newer; the latest is who answers. Source:
    /// `RegistrationHandler.validateVersions`.
    fn put(
        &self,
        driver: Arc<Driver>,
        version: driver::Version,
        node: NodeInfo,
        socket: &Path,
    ) -> Result<(), String> {
        let mut drivers = self.drivers.lock();
        let known = drivers.get(driver.name()).filter(|known| known.version > version);
        if let Some(known) = known {
            return Err(format!(
                "driver {} is already registered with a higher supported version ({} at {})",
                driver.name(),
                known.version,
                known.socket.display()
            ));
        }
        let registered = Registered { driver: driver.clone(), version, node, socket: socket.to_owned() };
        drivers.insert(driver.name().to_owned(), registered);
        Ok(())
    }

    /// What every driver says of this node.
    fn nodes(&self) -> Vec<(String, NodeInfo)> {
        self.drivers.lock().iter().map(|(name, known)| (name.clone(), known.node.clone())).collect()
    }

    /// The drivers that have registered at a socket.
    fn at(&self, socket: &Path) -> Vec<String> {
        let drivers = self.drivers.lock();
        drivers.iter().filter(|(_, known)| known.socket == socket).map(|(name, _)| name.clone()).collect()
    }

    /// Forgets a driver, if it is the one that registered at a socket. Tells whether it was.
    fn remove(&self, name: &str, socket: &Path) -> bool {
        let mut drivers = self.drivers.lock();
        let is_that = drivers.get(name).is_some_and(|known| known.socket == socket);
        if is_that {
            drivers.remove(name);
        }
        is_that
    }
}
