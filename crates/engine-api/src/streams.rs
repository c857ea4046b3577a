//! Standard streams of a process that a client is connected to.

use std::pin::Pin;

use bytes::Bytes;
use futures::stream::BoxStream;
use tokio::io::AsyncWrite;
use tokio::sync::{mpsc, oneshot};

use crate::{EngineError, Exit};

/// A stream of bytes that can fail.
pub type ByteStream = BoxStream<'static, Result<Bytes, EngineError>>;

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Rows.
    pub height: u16,
    /// Columns.
    pub width: u16,
}

/// The client's end of a process's standard streams.
pub struct ProcessIo {
    /// Where to write standard input; dropping or shutting it down closes the process's standard input.
    pub stdin: Option<Pin<Box<dyn AsyncWrite + Send>>>,
    /// Standard output; with a terminal it carries both.
    pub stdout: Option<ByteStream>,
    /// Standard error; `None` with a terminal.
    pub stderr: Option<ByteStream>,
    /// Terminal resizes; ignored without a terminal.
    pub resize: mpsc::Sender<TerminalSize>,
}

/// A running process that a client is connected to.
pub struct Process {
    /// Its streams.
    pub io: ProcessIo,
    /// Resolves once with how it ended. Dropping it before kills a process of [`crate::Runtime::exec`] (nobody wants its
    /// answer any more: a probe that timed out); a container's first process is left alone.
    pub exit: oneshot::Receiver<Result<Exit, EngineError>>,
    /// Its process id as the host sees it.
    pub pid: u32,
}
