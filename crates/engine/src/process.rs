//! A client's ends of a process's streams: pipes and terminals as asynchronous streams.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use engine_api::{ByteStream, EngineError, ProcessIo, TerminalSize};
use futures::StreamExt;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio_util::io::ReaderStream;

/// How much is read from a process at once.
const CHUNK_BYTES: usize = 32 * 1024;

/// Both ends of a process's streams.
pub(crate) struct Ends {
    /// The client's.
    pub(crate) io: ProcessIo,
    /// Where the client's terminal resizes come out.
    pub(crate) resizes: mpsc::Receiver<TerminalSize>,
    /// The process's, in the order that the caller asked for.
    pub(crate) remote: Vec<OwnedFd>,
}

/// Pipes for a process without a terminal, in the order of [`shim::Call::Exec`]: input, output, error. Without `stdin`
/// the process reads /dev/null.
pub(crate) fn exec_pipes(stdin: bool) -> io::Result<Ends> {
    let (stdin, input) = if stdin {
        let (reader, writer) = io::pipe()?;
        (Some(writable(writer.into())?), reader.into())
    } else {
        (None, std::fs::File::open("/dev/null")?.into())
    };
    let (stdout, output) = output_pipe()?;
    let (stderr, error) = output_pipe()?;
    let (resize, resizes) = mpsc::channel(4);
    let io = ProcessIo { stdin, stdout: Some(stdout), stderr: Some(stderr), resize };
    Ok(Ends { io, resizes, remote: vec![input, output, error] })
}

/// Pipes to a container's first process, in the order of [`shim::Call::Attach`]: output, error (not with a terminal),
/// input.
pub(crate) fn attach_pipes(stdin: bool, terminal: bool) -> io::Result<Ends> {
    let (stdout, output) = output_pipe()?;
    let mut remote = vec![output];
    let stderr = if terminal {
        None
    } else {
        let (stderr, error) = output_pipe()?;
        remote.push(error);
        Some(stderr)
    };
    let stdin = if stdin {
        let (reader, writer) = io::pipe()?;
        remote.push(reader.into());
        Some(writable(writer.into())?)
    } else {
        None
    };
    let (resize, resizes) = mpsc::channel(4);
    Ok(Ends { io: ProcessIo { stdin, stdout: Some(stdout), stderr, resize }, resizes, remote })
}

/// The streams of a process with a terminal, and a handle that resizes it.
pub(crate) fn terminal(master: OwnedFd, stdin: bool) -> io::Result<(Ends, Arc<Terminal>)> {
    rustix::io::ioctl_fionbio(&master, true)?;
    let terminal = Arc::new(Terminal { fd: sys::watch::watch(master)? });
    let stdout = stream_of(TerminalIo(terminal.clone()));
    let stdin: Option<Pin<Box<dyn AsyncWrite + Send>>> =
        if stdin { Some(Box::pin(TerminalIo(terminal.clone()))) } else { None };
    let (resize, resizes) = mpsc::channel(4);
    let io = ProcessIo { stdin, stdout: Some(stdout), stderr: None, resize };
    Ok((Ends { io, resizes, remote: Vec::new() }, terminal))
}

fn output_pipe() -> io::Result<(ByteStream, OwnedFd)> {
    let (reader, writer) = io::pipe()?;
    Ok((stream_of(pipe::Receiver::from_owned_fd(reader.into())?), writer.into()))
}

fn writable(fd: OwnedFd) -> io::Result<Pin<Box<dyn AsyncWrite + Send>>> {
    Ok(Box::pin(pipe::Sender::from_owned_fd(fd)?))
}

fn stream_of(reader: impl AsyncRead + Send + 'static) -> ByteStream {
    let chunks = ReaderStream::with_capacity(reader, CHUNK_BYTES);
    chunks
        .map(|chunk| chunk.map_err(|error| EngineError::internal("reading a process's output", &error)))
        .boxed()
}

/// A terminal's master.
pub(crate) struct Terminal {
    fd: AsyncFd<OwnedFd>,
}

impl Terminal {
    pub(crate) fn resize(&self, size: TerminalSize) {
        // A terminal whose processes are gone cannot be resized and needs not be.
        let _ = sys::tty::set_size(self.fd.get_ref(), size.height, size.width);
    }
}

/// A use of a terminal's master. Closing it for writing does nothing: the terminal stays.
struct TerminalIo(Arc<Terminal>);

impl AsyncRead for TerminalIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.fd.poll_read_ready(cx))?;
            let target = buffer.initialize_unfilled();
            match guard.try_io(|fd| Ok(rustix::io::read(fd.as_fd(), target)?)) {
                Ok(Ok(length)) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                // The last process that had the terminal open is gone.
                Ok(Err(error)) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for TerminalIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.fd.poll_write_ready(cx))?;
            if let Ok(result) = guard.try_io(|fd| Ok(rustix::io::write(fd.as_fd(), bytes)?)) {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Returns when a process has ended, by its pidfd.
pub(crate) async fn ended(pidfd: &sys::process::Pidfd) -> io::Result<()> {
    let fd = sys::watch::watch_readable(pidfd.as_fd().try_clone_to_owned()?)?;
    fd.readable().await.map(drop)
}
