//! HTTP clients that prove who they are by a certificate in files, which somebody renews while they are in use. Source:
//! `client-go/transport/cert_rotation.go`, which ends the connections of the old certificate too.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use reqwest::Client;

/// Whoever sends a request looks at the files if nobody has for so long.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What tells one content of a file from another without reading it; `None`: there is no file.
type Stamp = Option<(SystemTime, u64, u64)>;

/// A client that is made anew when one of its files changes.
pub(crate) struct Renewed {
    files: Vec<PathBuf>,
    every: Duration,
    make: Box<dyn Fn() -> Result<Client, String> + Send + Sync>,
    held: Mutex<Held>,
}

struct Held {
    client: Client,
    /// The files as they were when it was made.
    seen: Vec<Stamp>,
    looked: Instant,
}

impl std::fmt::Debug for Renewed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Renewed").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Renewed {
    /// The client that `make` makes of these files and of whatever else it knows. The failure is a sentence.
    pub(crate) fn new(
        files: Vec<PathBuf>,
        make: impl Fn() -> Result<Client, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        // Before they are read: a change in between is seen again.
        let seen = stamps(&files);
        let held = Held { client: make()?, seen, looked: Instant::now() };
        Ok(Self { files, every: LOOK_EVERY, make: Box::new(make), held: Mutex::new(held) })
    }

    /// The client of the files as they are. Where they cannot be used the last one goes on: whoever writes two files has
    /// written one of them first.
    pub(crate) fn client(&self) -> Client {
        let mut held = self.held.lock();
        if !self.files.is_empty() && held.looked.elapsed() >= self.every {
            held.looked = Instant::now();
            let present = stamps(&self.files);
            if present != held.seen {
                match (self.make)() {
                    Ok(client) => (held.client, held.seen) = (client, present),
                    Err(error) => {
                        tracing::warn!(files = ?self.files, %error, "a renewed client certificate cannot be used yet");
                    }
                }
            }
        }
        held.client.clone()
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |file: &Path| {
        let meta = std::fs::metadata(file).ok()?;
        Some((meta.modified().ok()?, meta.len(), meta.ino()))
    };
    files.iter().map(|file| stamp(file)).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_client_is_made_anew_when_its_files_can_be_used_and_are_others() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tls.crt");
        std::fs::write(&file, "one").unwrap();
        let made = Arc::new(AtomicUsize::new(0));
        let (counted, read) = (made.clone(), file.clone());
        let make = move || {
            let text = std::fs::read_to_string(&read).map_err(|error| error.to_string())?;
            if text.is_empty() {
                return Err("half written".to_owned());
            }
            counted.fetch_add(1, Ordering::Relaxed);
            Client::builder().build().map_err(|error| error.to_string())
        };
        let mut client = Renewed::new(vec![file.clone()], make).unwrap();
        client.every = Duration::ZERO;
        let made_for = |content: Option<&str>| {
            match content {
                Some(content) => std::fs::write(&file, content).unwrap(),
                None => std::fs::remove_file(&file).unwrap(),
            }
            client.client();
            client.client();
            made.load(Ordering::Relaxed)
        };
        assert_eq!(made_for(Some("two!")), 2);
        assert_eq!([made_for(Some("")), made_for(None)], [2, 2], "the last one goes on");
        assert_eq!(made_for(Some("three!")), 3);
        // Nobody looks more often than that.
        client.every = Duration::from_secs(3600);
        std::fs::write(&file, "four!!!!").unwrap();
        client.client();
        assert_eq!(made.load(Ordering::Relaxed), 3);
    }
}
