//! The kernel's word that something in a log's directory changed (inotify(7)): one instance for all who follow, since a
//! user has 128 of them at most, and hundreds of logs are followed at once.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::sync::Arc;

use base::lifecycle::Tasks;
use futures::{Stream, StreamExt as _};
use inotify::{Event, EventMask, Inotify, WatchDescriptor, WatchMask, Watches};
use parking_lot::Mutex;
use tokio::sync::watch;

/// What followers of logs have in common; the kernel's instance is made for the first one.
#[derive(Clone, Default)]
pub struct Notices(Arc<Mutex<Option<Arc<Hub>>>>);

struct Hub {
    watched: Arc<Mutex<Watched>>,
    /// Reads the kernel's events. No follower could do it: one whose client is slow is not asked to go on for long.
    _reading: Tasks,
}

struct Watched {
    watches: Watches,
    directories: HashMap<WatchDescriptor, Directory>,
    /// Why nothing is told any more.
    failed: Option<String>,
}

/// A directory, and how many follow logs in it.
struct Directory {
    followers: usize,
    changed: watch::Sender<()>,
}

impl Notices {
    /// Notices from now on about everything in the directory of a log.
    pub(super) fn watch(&self, log: &Path) -> io::Result<Watch> {
        let hub = self.hub()?;
        let mut watched = hub.watched.lock();
        let what = WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO;
        // The same directory is the same watch, by whatever path.
        let descriptor = watched.watches.add(log.parent().unwrap_or(Path::new("/")), what)?;
        let directory = watched
            .directories
            .entry(descriptor.clone())
            .or_insert_with(|| Directory { followers: 0, changed: watch::Sender::new(()) });
        directory.followers += 1;
        let changed = directory.changed.subscribe();
        drop(watched);
        Ok(Watch { hub, descriptor, changed })
    }

    fn hub(&self) -> io::Result<Arc<Hub>> {
        let mut known = self.0.lock();
        // One that failed tells nobody any more.
        if let Some(hub) = &*known
            && hub.watched.lock().failed.is_none()
        {
            return Ok(hub.clone());
        }
        let inotify = Inotify::init().map_err(|error| {
            let remedy = "if too many logs are followed, raise fs.inotify.max_user_instances";
            io::Error::new(error.kind(), format!("following a log: {error}; {remedy}"))
        })?;
        let watches = inotify.watches();
        let events = inotify.into_event_stream([0; 4096])?;
        let watched = Watched { watches, directories: HashMap::new(), failed: None };
        let (watched, reading) = (Arc::new(Mutex::new(watched)), Tasks::default());
        reading.spawn(pass_on(events, watched.clone()));
        Ok(known.insert(Arc::new(Hub { watched, _reading: reading })).clone())
    }
}

/// Passes the kernel's events on, as long as there are any.
async fn pass_on(
    mut events: impl Stream<Item = io::Result<Event<OsString>>> + Unpin,
    watched: Arc<Mutex<Watched>>,
) {
    let failed = loop {
        match events.next().await {
            Some(Ok(event)) => watched.lock().tell(&event),
            Some(Err(error)) => break error.to_string(),
            None => break "the kernel tells of changes no more".to_owned(),
        }
    };
    let mut watched = watched.lock();
    watched.failed = Some(failed);
    watched.directories.clear();
}

impl Watched {
    fn tell<S>(&mut self, event: &Event<S>) {
        if event.mask.contains(EventMask::Q_OVERFLOW) {
            // Nobody knows about what: everybody looks.
            self.directories.values().for_each(|directory| directory.changed.send_replace(()));
        } else if event.mask.contains(EventMask::IGNORED) {
            // The directory is gone, and with it what its followers waited for.
            self.directories.remove(&event.wd);
        } else if let Some(directory) = self.directories.get(&event.wd) {
            directory.changed.send_replace(());
        }
    }
}

/// One follower's watch of a directory.
pub(super) struct Watch {
    hub: Arc<Hub>,
    descriptor: WatchDescriptor,
    changed: watch::Receiver<()>,
}

impl Watch {
    /// Returns when something changed since the last call. Many writes in a row are one change.
    pub(super) async fn changed(&mut self) -> io::Result<()> {
        if self.changed.changed().await.is_ok() {
            return Ok(());
        }
        let failed = self.hub.watched.lock().failed.clone();
        match failed {
            Some(error) => Err(io::Error::other(format!("following a log: {error}"))),
            // The directory is gone: nothing will be written there any more.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut watched = self.hub.watched.lock();
        let Some(directory) = watched.directories.get_mut(&self.descriptor) else { return };
        directory.followers -= 1;
        if directory.followers == 0 {
            watched.directories.remove(&self.descriptor);
            // Gone already where the directory is.
            let _ = watched.watches.remove(self.descriptor.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_follows_hears_that_nothing_will_be_told_any_more() {
        let error = || Err(io::Error::other("broken"));
        for (events, why) in [(vec![], "the kernel tells of changes no more"), (vec![error()], "broken")] {
            let (directory, notices) = (tempfile::tempdir().unwrap(), Notices::default());
            let mut watch = notices.watch(&directory.path().join("0.log")).unwrap();
            let watched = notices.hub().unwrap().watched.clone();
            pass_on(futures::stream::iter(events), watched).await;
            assert_eq!(watch.changed().await.unwrap_err().to_string(), format!("following a log: {why}"));
        }
    }
}
