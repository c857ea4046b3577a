//! The Container Runtime Interface on its socket.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use async_trait::async_trait;
use base::BoxError;
use base::lifecycle::{Component, Context as Running};
use cli::instance::Instance;
use engine_api::{Images, Runtime, SandboxNetworks};
use tokio::net::UnixListener;

/// Serves `cri.sock` in the run directory, which only root may use.
pub(super) struct RuntimeSocket {
    server: cri::Server,
    listener: parking_lot::Mutex<Option<UnixListener>>,
}

impl RuntimeSocket {
    /// Takes the socket and the port of streams.
    pub(super) async fn bind(
        instance: &Instance,
        runtime: Arc<dyn Runtime>,
        images: Arc<dyn Images>,
        networks: Arc<dyn SandboxNetworks>,
    ) -> Result<Self> {
        let config = cri::Config {
            version: env!("CARGO_PKG_VERSION").into(),
            data_dir: instance.data_dir.join("cri"),
            image_dir: instance.data_dir.join("images"),
            cgroup_root: instance.name.clone(),
        };
        let server = cri::Server::bind(runtime, images, networks, config).await;
        let server = server.context("take a port of loopback for the runtime's streams")?;
        let listener = parking_lot::Mutex::new(Some(listen(&instance.runtime_socket())?));
        Ok(Self { server, listener })
    }
}

/// Whoever may write to this socket is root on the host: nobody else may.
fn listen(path: &Path) -> Result<UnixListener> {
    // What a killed daemon left; the lock on the data directory says that no other one listens.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).context("remove the old socket");
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
    let private = std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600));
    private.with_context(|| format!("close {} to others", path.display()))?;
    Ok(listener)
}

#[async_trait]
impl Component for RuntimeSocket {
    fn name(&self) -> &'static str {
        "cri"
    }

    async fn run(&self, ctx: Running) -> Result<(), BoxError> {
        let listener = self.listener.lock().take().ok_or("the socket was served before")?;
        ctx.ready();
        self.server.serve(listener, &ctx).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_roots_alone_and_takes_the_place_of_an_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cri.sock");
        for _ in 0..2 {
            let _listener = listen(&path).unwrap();
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }
}
