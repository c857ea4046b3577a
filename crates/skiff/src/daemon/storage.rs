//! Where the cluster's objects are kept: in the instance's own directory, or in etcd.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use store::{Embedded, EmbeddedConfig, Etcd, EtcdConfig, EtcdTls, Files, ProgressTrust, Store};

use crate::settings::{EtcdAccess, Settings};

/// One request to etcd may take this long.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The directory of the embedded store.
const EMBEDDED: &str = "store";
/// The file that says that the instance's objects are in etcd.
const ELSEWHERE: &str = "store-is-etcd";

/// Opens the store that the settings name. An instance stays with the kind of store that it began with: with the other
/// one it would seem to have lost everything.
pub(crate) async fn open(settings: &Settings) -> Result<Arc<dyn Store>> {
    let data = &settings.instance.data_dir;
    let (embedded, elsewhere) = (data.join(EMBEDDED), data.join(ELSEWHERE));
    let Some(access) = &settings.etcd else {
        if let Ok(servers) = std::fs::read_to_string(&elsewhere) {
            bail!(
                "this instance keeps its objects in etcd; start it with --store etcd --etcd-servers {servers}"
            );
        }
        let files = Files::open(embedded).context("open the store's directory")?;
        return Ok(Embedded::open(Arc::new(files), EmbeddedConfig::STANDARD).context("open the store")?);
    };
    if embedded.exists() {
        bail!(
            "this instance keeps its objects in {}; use --store embedded, or begin anew after skiff down --purge",
            embedded.display()
        );
    }
    let store = Etcd::connect(config(access)?).await.context("open the store")?;
    std::fs::write(&elsewhere, access.servers.join(","))
        .with_context(|| format!("write {}", elsewhere.display()))?;
    Ok(store)
}

fn config(access: &EtcdAccess) -> Result<EtcdConfig> {
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("read {}", path.display()));
    let identity = match &access.identity {
        Some((cert, key)) => Some((read(cert)?, read(key)?)),
        None => None,
    };
    let tls = match &access.ca {
        Some(ca) => Some(EtcdTls { ca: read(ca)?, identity, server_name: None }),
        None => None,
    };
    Ok(EtcdConfig {
        endpoints: access.servers.clone(),
        tls,
        user: None,
        timeout: TIMEOUT,
        progress: ProgressTrust::ByVersion,
    })
}
