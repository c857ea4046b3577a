//! The way to the cluster's API: the instance's own kubeconfig, or, for users who may not read that, their own.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use api::{GroupVersionResource, Key, List, ListOptions, Reason};
use client::Client;
use client::https::Https;
use client::kubeconfig::{default_paths, load};
use serde_json::Value;

use crate::instance::Instance;

/// A connection to an instance's API server as its administrator.
pub struct Access {
    /// For resources.
    pub client: Client,
    /// For what is no resource verb: logs, exec, version.
    pub https: Arc<Https>,
}

impl Access {
    /// Prepares the connection; nothing is sent yet.
    pub fn to(instance: &Instance) -> Result<Self> {
        let path = kubeconfig(instance)?;
        if path == instance.kubeconfig() {
            instance.expect_running()?;
        }
        let loaded = load(&path, Some(&instance.name))?;
        let https = Arc::new(Https::new(&loaded.config)?);
        Ok(Self { client: Client::new(https.clone(), "skiff"), https })
    }

    /// One object as JSON; `None` where there is none.
    pub async fn find(
        &self,
        resource: &GroupVersionResource,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Value>> {
        match self.client.get(resource, &Key::new(namespace, name)).await {
            Ok(object) => Ok(Some(object.decode()?)),
            Err(status) if status.reason == Reason::NotFound => Ok(None),
            Err(status) => Err(status.into()),
        }
    }

    /// The objects of a namespace (empty: of all) that match the selectors, as JSON.
    pub async fn list(
        &self,
        resource: &GroupVersionResource,
        namespace: &str,
        options: ListOptions,
    ) -> Result<Vec<Value>> {
        let List { items, .. } = self.client.list(resource, namespace, options).await?;
        items.iter().map(|object| object.decode().context("decode an answer of the API server")).collect()
    }
}

/// Which kubeconfig to use. It always holds a context of the instance's name.
pub fn kubeconfig(instance: &Instance) -> Result<PathBuf> {
    let own = instance.kubeconfig();
    match std::fs::File::open(&own) {
        Ok(_) => Ok(own),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            let list = std::env::var("KUBECONFIG").ok();
            let home = std::env::var_os("HOME").map(PathBuf::from);
            let usable = |path: &Path| load(path, Some(&instance.name)).is_ok();
            let found = default_paths(list.as_deref(), home.as_deref()).into_iter().find(|path| usable(path));
            found.with_context(|| {
                format!(
                    "{} may be read by root only, and your kubeconfig has no context {:?}. Use sudo, or add it with: \
                     sudo skiff kubeconfig > FILE",
                    own.display(),
                    instance.name
                )
            })
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!(
                "no instance {:?} was ever started here; start it with: {}",
                instance.name,
                instance.command("up")
            )
        }
        Err(error) => Err(error).with_context(|| format!("read {}", own.display())),
    }
}
