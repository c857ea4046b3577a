//! Reads a container's log as `kubectl logs` asks for it, and follows it while it grows: woken by the kernel (inotify)
//! when the file changes and by the container's end, never by a timer.

use std::io::{self, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use base::BoxError;
use bytes::{Bytes, BytesMut};
use futures::Stream;
use futures::future::BoxFuture;
use jiff::Timestamp;
use rustix::fs::inotify;
use tokio::fs::File;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

use super::format::parse_line;

/// Read at once.
const CHUNK_BYTES: usize = 64 * 1024;
/// A line longer than this is no line of the format: it is passed over.
const LINE_MAX_BYTES: usize = 1024 * 1024;

/// Which lines are wanted, and how. Source: the API's `PodLogOptions`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LogOptions {
    pub(crate) follow: bool,
    pub(crate) tail_lines: Option<u64>,
    pub(crate) since: Option<Timestamp>,
    pub(crate) timestamps: bool,
    pub(crate) limit_bytes: Option<u64>,
    /// Only standard error (true) or only standard output (false).
    pub(crate) only_stderr: Option<bool>,
}

/// The log's text. `ended` resolves when the container has ended: what is there then is the whole log.
pub(crate) fn read(
    path: PathBuf,
    options: LogOptions,
    ended: BoxFuture<'static, ()>,
) -> impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static {
    let reader = Reader {
        path,
        left: options.limit_bytes.unwrap_or(u64::MAX),
        options,
        ended: Some(ended),
        open: None,
        done: false,
    };
    futures::stream::try_unfold(reader, |mut reader| async move {
        let chunk = reader.next().await?;
        Ok(chunk.map(|chunk| (chunk, reader)))
    })
}

struct Reader {
    path: PathBuf,
    options: LogOptions,
    /// Bytes that may still be given.
    left: u64,
    /// Gone once the container has ended.
    ended: Option<BoxFuture<'static, ()>>,
    open: Option<Open>,
    done: bool,
}

struct Open {
    file: File,
    inode: u64,
    watch: Option<Watch>,
    /// The beginning of a line whose end has not been read.
    rest: BytesMut,
    /// The last line given was partial: the next of it has no timestamp.
    inside: bool,
}

impl Reader {
    /// The next text; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, BoxError> {
        if self.done || self.left == 0 {
            return Ok(None);
        }
        if self.open.is_none() {
            self.open = Some(open(&self.path, &self.options).await?);
        }
        loop {
            let Some(open) = self.open.as_mut() else { return Ok(None) };
            let mut chunk = vec![0; CHUNK_BYTES];
            let count = open.file.read(&mut chunk).await?;
            if count > 0 {
                open.rest.extend_from_slice(&chunk[..count]);
                let mut text = open.take_lines(&self.options);
                let limit = usize::try_from(self.left).unwrap_or(usize::MAX);
                text.truncate(limit);
                self.left = self.left.saturating_sub(u64::try_from(text.len()).unwrap_or(u64::MAX));
                if !text.is_empty() {
                    return Ok(Some(text.freeze()));
                }
                continue;
            }
            if open.rotated(&self.path).await? {
                continue;
            }
            if !self.options.follow || self.ended.is_none() {
                self.done = true;
                return Ok(None);
            }
            self.wait().await?;
        }
    }

    /// Waits until the file may have grown or the container has ended.
    async fn wait(&mut self) -> io::Result<()> {
        let (Some(open), Some(ended)) = (self.open.as_ref(), self.ended.as_mut()) else { return Ok(()) };
        let grown = async {
            match &open.watch {
                Some(watch) => watch.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            grown = grown => grown,
            () = ended => {
                self.ended = None;
                Ok(())
            }
        }
    }
}

async fn open(path: &Path, options: &LogOptions) -> Result<Open, BoxError> {
    // The watch comes first: nothing that is written from now on goes unnoticed.
    let watch = if options.follow { Some(Watch::new(path)?) } else { None };
    let mut file = File::open(path).await.map_err(|error| format!("log {}: {error}", path.display()))?;
    let inode = file.metadata().await?.ino();
    if let Some(lines) = options.tail_lines {
        let start = tail_start(&mut file, lines).await?;
        file.seek(SeekFrom::Start(start)).await?;
    }
    Ok(Open { file, inode, watch, rest: BytesMut::new(), inside: false })
}

impl Open {
    /// The text of every whole line that has been read.
    fn take_lines(&mut self, options: &LogOptions) -> BytesMut {
        let mut text = BytesMut::new();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line = self.rest.split_to(end + 1);
            let Some(line) = parse_line(&line) else { continue };
            if options.only_stderr.is_some_and(|wanted| wanted != line.is_stderr) {
                continue;
            }
            if let Some(since) = options.since
                && line.at().is_some_and(|at| at < since)
            {
                continue;
            }
            if options.timestamps && !self.inside {
                text.extend_from_slice(line.timestamp.as_bytes());
                text.extend_from_slice(b" ");
            }
            text.extend_from_slice(line.content);
            if !line.partial {
                text.extend_from_slice(b"\n");
            }
            self.inside = line.partial;
        }
        if self.rest.len() > LINE_MAX_BYTES {
            self.rest.clear();
        }
        text
    }

    /// Goes on with the new file if the log was rotated since this one was opened.
    async fn rotated(&mut self, path: &Path) -> io::Result<bool> {
        let inode = match tokio::fs::metadata(path).await {
            Ok(metadata) => metadata.ino(),
            // Between two files, or removed with its container.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        if inode == self.inode {
            return Ok(false);
        }
        self.file = File::open(path).await?;
        self.inode = self.file.metadata().await?.ino();
        self.rest.clear();
        Ok(true)
    }
}

/// Where the last `lines` lines begin: searched from the end, block by block.
async fn tail_start(file: &mut File, lines: u64) -> io::Result<u64> {
    let length = file.metadata().await?.len();
    if lines == 0 {
        return Ok(length);
    }
    let mut end = length;
    let mut found = 0;
    let mut block = vec![0; CHUNK_BYTES];
    while end > 0 {
        let start = end.saturating_sub(u64::try_from(CHUNK_BYTES).unwrap_or(u64::MAX));
        let size = usize::try_from(end - start).unwrap_or(CHUNK_BYTES);
        file.seek(SeekFrom::Start(start)).await?;
        file.read_exact(&mut block[..size]).await?;
        for (index, byte) in block[..size].iter().enumerate().rev() {
            let at = start + u64::try_from(index).unwrap_or(0);
            // The end of the last line begins nothing.
            if *byte == b'\n' && at + 1 < length {
                found += 1;
                if found == lines {
                    return Ok(at + 1);
                }
            }
        }
        end = start;
    }
    Ok(0)
}

/// The kernel's word that something in the log's directory changed.
struct Watch {
    queue: AsyncFd<OwnedFd>,
}

impl Watch {
    fn new(path: &Path) -> io::Result<Self> {
        let queue = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        let directory = path.parent().unwrap_or(Path::new("/"));
        let flags = inotify::WatchFlags::MODIFY
            | inotify::WatchFlags::CREATE
            | inotify::WatchFlags::MOVED_TO
            | inotify::WatchFlags::DELETE_SELF;
        inotify::add_watch(&queue, directory, flags)?;
        // Deprecated for types that lie about their descriptor, in favour of an unsafe function; an owned descriptor
        // cannot lie.
        #[allow(deprecated)]
        let queue = AsyncFd::new(queue)?;
        Ok(Self { queue })
    }

    async fn changed(&self) -> io::Result<()> {
        loop {
            let mut guard = self.queue.readable().await?;
            let mut buffer = [0; 4096];
            match guard.try_io(|queue| rustix::io::read(queue, &mut buffer).map_err(io::Error::from)) {
                Ok(read) => return read.map(drop),
                Err(_would_block) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};

    use super::*;

    fn line(n: u32) -> String {
        format!(
            "2024-01-01T00:00:{n:02}.000000000Z {} F line {n}\n",
            if n.is_multiple_of(2) { "stdout" } else { "stderr" }
        )
    }

    async fn all(path: &Path, options: LogOptions) -> String {
        let chunks: Vec<Bytes> =
            read(path.to_owned(), options, futures::future::ready(()).boxed()).try_collect().await.unwrap();
        String::from_utf8(chunks.concat()).unwrap()
    }

    #[tokio::test]
    async fn options_choose_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, (0..5).map(line).collect::<String>()).unwrap();
        let none = LogOptions::default();
        assert_eq!(all(&path, none.clone()).await, "line 0\nline 1\nline 2\nline 3\nline 4\n");
        assert_eq!(all(&path, LogOptions { tail_lines: Some(2), ..none.clone() }).await, "line 3\nline 4\n");
        assert_eq!(all(&path, LogOptions { tail_lines: Some(0), ..none.clone() }).await, "");
        assert_eq!(all(&path, LogOptions { tail_lines: Some(99), ..none.clone() }).await.lines().count(), 5);
        let since = Some("2024-01-01T00:00:03Z".parse().unwrap());
        assert_eq!(all(&path, LogOptions { since, ..none.clone() }).await, "line 3\nline 4\n");
        assert_eq!(all(&path, LogOptions { limit_bytes: Some(8), ..none.clone() }).await, "line 0\nl");
        assert_eq!(
            all(&path, LogOptions { only_stderr: Some(true), ..none.clone() }).await,
            "line 1\nline 3\n"
        );
        let stamped = LogOptions { timestamps: true, tail_lines: Some(1), ..none };
        assert_eq!(all(&path, stamped).await, "2024-01-01T00:00:04.000000000Z line 4\n");
    }

    #[tokio::test]
    async fn partial_lines_are_joined() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, "t1 stdout P ab\nt2 stdout F cd\nt3 stdout F e\n").unwrap();
        let options = LogOptions { timestamps: true, ..LogOptions::default() };
        assert_eq!(all(&path, options).await, "t1 abcd\nt3 e\n");
    }

    #[tokio::test]
    async fn following_sees_growth_rotation_and_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, line(0)).unwrap();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let options = LogOptions { follow: true, ..LogOptions::default() };
        let mut stream = Box::pin(read(path.clone(), options, ended.map(drop).boxed()));
        let mut next = async || String::from_utf8(stream.next().await.unwrap().unwrap().to_vec()).unwrap();
        assert_eq!(next().await, "line 0\n");
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(line(1).as_bytes()).unwrap();
        assert_eq!(next().await, "line 1\n");
        std::fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        std::fs::write(&path, line(2)).unwrap();
        assert_eq!(next().await, "line 2\n");
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(line(3).as_bytes()).unwrap();
        end.send(()).unwrap();
        assert_eq!(next().await, "line 3\n");
        assert!(stream.next().await.is_none());
    }
}
