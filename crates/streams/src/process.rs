//! Connects a process's streams with a remote client's, whatever protocol carries them.

use api::Status;
use bytes::Bytes;
use engine_api::{ByteStream, EngineError, Exit, Process, ProcessIo, TerminalSize};
use futures::StreamExt as _;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;

/// A stream towards the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Output {
    Stdout,
    Stderr,
    /// Carries one `Status` at the end.
    Error,
}

/// The client's side.
pub(crate) struct Remote {
    /// Closed when the client closes its standard input; `None` if it has none.
    pub(crate) stdin: Option<mpsc::Receiver<Bytes>>,
    /// Raw JSON messages of the resize channel.
    pub(crate) resize: Option<mpsc::Receiver<Bytes>>,
    pub(crate) output: mpsc::Sender<(Output, Bytes)>,
}

/// Which streams the client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error, which a terminal does not have.
    pub stderr: bool,
    /// A terminal, with its sizes.
    pub tty: bool,
    /// The process was there before. Its exit is the pod's to tell: as upstream, attaching to it succeeds when it ends,
    /// however it ends.
    pub attached: bool,
}

impl Wanted {
    /// A command has to be connected with something.
    pub fn check(self) -> Result<(), Status> {
        if self.stdin || self.stdout || self.stderr {
            Ok(())
        } else {
            Err(Status::bad_request("you must specify at least one of stdin, stdout, stderr"))
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

/// A resize message: `{"Width":80,"Height":24}`.
pub(crate) fn terminal_size(message: &[u8]) -> Option<TerminalSize> {
    let Size { width, height } = serde_json::from_slice(message).ok()?;
    Some(TerminalSize { height, width })
}

/// Moves bytes until the process has ended and its output is delivered; then sends the final status.
pub(crate) async fn run(process: Result<Process, EngineError>, wanted: Wanted, remote: Remote) {
    let Remote { stdin, resize, output } = remote;
    let status = match process {
        Err(error) => failed_to_start(&error),
        Ok(Process { io, exit, .. }) => {
            let ProcessIo { stdin: process_stdin, stdout, stderr, resize: process_resize } = io;
            let input = async {
                tokio::join!(feed(stdin, process_stdin), resizes(resize, process_resize));
                // Its end ends nothing else.
                std::future::pending::<()>().await;
            };
            let outputs = async {
                tokio::join!(drain(stdout, Output::Stdout, &output), drain(stderr, Output::Stderr, &output));
                exit.await
            };
            tokio::select! {
                // The client is gone: whoever dropped the receiver does not want the rest.
                () = output.closed() => return,
                () = input => return,
                exit = outputs => match exit {
                    Ok(Ok(_)) if wanted.attached => success(),
                    Ok(Ok(exit)) => exit_status(&exit),
                    Ok(Err(error)) => failed_to_start(&error),
                    Err(_) => internal("the process's exit is unknown"),
                },
            }
        }
    };
    let _ = output.send((Output::Error, Bytes::from(status.to_string()))).await;
}

async fn feed(
    from: Option<mpsc::Receiver<Bytes>>,
    to: Option<std::pin::Pin<Box<dyn tokio::io::AsyncWrite + Send>>>,
) {
    let (Some(mut from), Some(mut to)) = (from, to) else { return };
    while let Some(bytes) = from.recv().await {
        // The process has closed its input: nobody reads the rest.
        if to.write_all(&bytes).await.is_err() || to.flush().await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

async fn resizes(from: Option<mpsc::Receiver<Bytes>>, to: mpsc::Sender<TerminalSize>) {
    let Some(mut from) = from else { return };
    while let Some(message) = from.recv().await {
        if let Some(size) = terminal_size(&message)
            && to.send(size).await.is_err()
        {
            return;
        }
    }
}

async fn drain(stream: Option<ByteStream>, which: Output, to: &mpsc::Sender<(Output, Bytes)>) {
    let Some(mut stream) = stream else { return };
    while let Some(Ok(bytes)) = stream.next().await {
        if to.send((which, bytes)).await.is_err() {
            return;
        }
    }
}

/// The final status in the shape that clients read the exit code from. Source: `remotecommand` v4.
pub(crate) fn exit_status(exit: &Exit) -> Value {
    if exit.code == 0 {
        return success();
    }
    json!({
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": format!("command terminated with non-zero exit code: exit status {}", exit.code),
        "details": { "causes": [{ "reason": "ExitCode", "message": exit.code.to_string() }] },
    })
}

fn success() -> Value {
    json!({ "metadata": {}, "status": "Success" })
}

fn failed_to_start(error: &EngineError) -> Value {
    internal(&format!("error executing command in container: {error}"))
}

fn internal(message: &str) -> Value {
    json!({ "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500, "message": message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_where_clients_look() {
        let exit = |code| Exit {
            code,
            signal: 0,
            oom_killed: false,
            finished_at: jiff::Timestamp::UNIX_EPOCH,
            message: String::new(),
        };
        assert_eq!(exit_status(&exit(0))["status"], "Success");
        let failed = exit_status(&exit(3));
        assert_eq!(failed["reason"], "NonZeroExitCode");
        assert_eq!(failed["details"]["causes"][0], json!({"reason": "ExitCode", "message": "3"}));
    }

    #[tokio::test]
    async fn attaching_succeeds_however_the_process_ends() {
        for (attached, status) in [(true, "Success"), (false, "Failure")] {
            let (sender, exit) = tokio::sync::oneshot::channel();
            let (code, finished_at) = (3, jiff::Timestamp::UNIX_EPOCH);
            let ended = Exit { code, signal: 0, oom_killed: false, finished_at, message: String::new() };
            sender.send(Ok(ended)).unwrap();
            let io = ProcessIo { stdin: None, stdout: None, stderr: None, resize: mpsc::channel(1).0 };
            let (output, mut sent) = mpsc::channel(1);
            let remote = Remote { stdin: None, resize: None, output };
            let wanted = Wanted { attached, ..Wanted::default() };
            run(Ok(Process { io, exit, pid: 1 }), wanted, remote).await;
            let (channel, bytes) = sent.recv().await.unwrap();
            let said: Value = serde_json::from_slice(&bytes).unwrap();
            assert_eq!((channel, said["status"].as_str()), (Output::Error, Some(status)));
        }
    }

    #[test]
    fn resize_messages_are_read() {
        let size = terminal_size(br#"{"Width":80,"Height":24}"#);
        assert_eq!(size, Some(TerminalSize { height: 24, width: 80 }));
        assert_eq!(terminal_size(b"rubbish"), None);
    }
}
