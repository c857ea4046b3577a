//! Configuration files that are read again when they change: the kernel tells (inotify), nothing looks again and again.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use futures::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};

/// Room for the kernel's notices.
const NOTICE_BYTES: usize = 4096;

/// Calls `changed` whenever something happened to the directory's entry that a path names, and once at first: between
/// reading a file and following it nothing is missed. A file is replaced by renaming as often as written, and mounted
/// volumes move a link beside it (`..data`), so that the directory is followed and any entry counts.
/// Returns only where the kernel gives no notices; that is logged, and the file then holds as it was read.
pub(crate) async fn follow(path: &Path, changed: impl Fn()) {
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let mut events = match open(&directory) {
        Ok(events) => events,
        Err(error) => {
            let remedy = "raise fs.inotify.max_user_instances and start again";
            tracing::warn!(%error, path = %path.display(), remedy, "changes of this file are not followed");
            return;
        }
    };
    changed();
    while let Some(event) = events.next().await {
        let ours = match &event {
            Ok(event) => concerns(path, event.name.as_deref()),
            Err(_) => true,
        };
        if ours {
            changed();
        }
    }
}

fn concerns(path: &Path, name: Option<&OsStr>) -> bool {
    name.is_none_or(|name| path.file_name() == Some(name) || name == "..data")
}

fn open(directory: &Path) -> io::Result<EventStream<[u8; NOTICE_BYTES]>> {
    let inotify = Inotify::init()?;
    let what = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::CREATE;
    inotify.watches().add(directory, what)?;
    inotify.into_event_stream([0; NOTICE_BYTES])
}
