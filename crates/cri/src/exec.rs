//! Processes in containers and connections into sandboxes: run at once, or asked for as streams.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use engine_api::{EngineError, ExecSpec, Exit, Process};
use futures::StreamExt as _;
use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::sync::oneshot;
use tonic::Status;

use crate::proto::{AttachRequest, ExecRequest, ExecSyncRequest, ExecSyncResponse, PortForwardRequest};
use crate::shared::Shared;
use crate::streaming::Stream;
use crate::{containers, failure};

/// Output that a process run at once may give, both streams together; the rest is passed over. Clients take messages of
/// 16 MiB, in which the frame has to fit as well.
const OUTPUT_BYTES_MAX: usize = (16 << 20) - 1024;
/// How long output may still come when the process has ended: what it left behind may hold its streams for ever.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// Runs a process to its end.
pub(crate) async fn run(shared: &Shared, request: ExecSyncRequest) -> Result<ExecSyncResponse, Status> {
    if request.cmd.is_empty() {
        return Err(Status::invalid_argument("no command to execute"));
    }
    let container = containers::running(shared, &request.container_id).await?;
    let seconds = u64::try_from(request.timeout).ok().filter(|seconds| *seconds > 0);
    let limits = Limits {
        output: OUTPUT_BYTES_MAX,
        drain: DRAIN_MAX,
        end: seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds)),
    };
    let spec = ExecSpec { command: request.cmd, ..ExecSpec::default() };
    let process = shared.runtime.exec(&container.status.spec.id, spec).await.map_err(failure::of)?;
    collect(process, limits).await
}

/// What a process that is run at once may take.
#[derive(Clone, Copy)]
struct Limits {
    /// Bytes of output.
    output: usize,
    /// How long output may come after the process's end.
    drain: Duration,
    /// When the process has to have ended; `None`: never.
    end: Option<Instant>,
}

/// The process's end with its output.
async fn collect(process: Process, limits: Limits) -> Result<ExecSyncResponse, Status> {
    let Process { io, mut exit, pid } = process;
    // Names the process however soon it ends and its number is another's.
    let handle = handle_of(pid);
    drop(io.stdin);
    let none = || futures::stream::empty().boxed();
    let said = io.stdout.unwrap_or_else(none).map(|piece| (false, piece));
    let complained = io.stderr.unwrap_or_else(none).map(|piece| (true, piece));
    let mut outputs = futures::stream::select(said, complained);
    let mut answer = ExecSyncResponse::default();
    let (mut room, mut exit_code, mut said_all, mut deadline) = (limits.output, None, false, None);
    while exit_code.is_none() || !said_all {
        tokio::select! {
            piece = outputs.next(), if !said_all => match piece {
                Some((is_error, Ok(piece))) => {
                    let fits = piece.len().min(room);
                    let to = if is_error { &mut answer.stderr } else { &mut answer.stdout };
                    to.extend_from_slice(&piece[..fits]);
                    room -= fits;
                }
                // A stream that breaks off has ended.
                Some((_, Err(_))) => {}
                None => said_all = true,
            },
            end = &mut exit, if exit_code.is_none() => {
                exit_code = Some(exit_of(end)?.code);
                deadline = Some(Instant::now() + limits.drain);
            }
            () = until(deadline), if deadline.is_some() => break,
            () = until(limits.end), if limits.end.is_some() && exit_code.is_none() => {
                kill(handle, exit).await;
                return Err(Status::deadline_exceeded("the command did not end within its timeout: it was killed"));
            }
        }
    }
    answer.exit_code = exit_code.unwrap_or(-1);
    Ok(answer)
}

fn handle_of(pid: u32) -> Option<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// Kills a process and waits until it is gone, so that whoever looks for it does not find it. Without a handle it is
/// killed by whoever learns that nobody waits for its end.
async fn kill(handle: Option<OwnedFd>, exit: oneshot::Receiver<Result<Exit, EngineError>>) {
    let Some(handle) = handle else { return };
    // It may have ended on its own meanwhile.
    let _ = rustix::process::pidfd_send_signal(&handle, Signal::KILL);
    let _ = tokio::time::timeout(DRAIN_MAX, exit).await;
}

async fn until(deadline: Option<Instant>) {
    if let Some(deadline) = deadline {
        tokio::time::sleep_until(deadline.into()).await;
    }
}

fn exit_of(
    end: Result<Result<Exit, EngineError>, tokio::sync::oneshot::error::RecvError>,
) -> Result<Exit, Status> {
    end.map_err(|_| Status::internal("the process's exit is unknown"))?.map_err(failure::of)
}

/// The URL of a process's streams.
pub(crate) async fn exec_url(shared: &Shared, request: ExecRequest) -> Result<String, Status> {
    check_streams(&request.container_id, request.tty, [request.stdin, request.stdout, request.stderr])?;
    if request.cmd.is_empty() {
        return Err(Status::invalid_argument("no command to execute"));
    }
    let container = containers::running(shared, &request.container_id).await?;
    let request = ExecRequest { container_id: container.status.spec.id, ..request };
    url(shared, "exec", Stream::Exec(request))
}

/// The URL of the streams of a container's first process.
pub(crate) async fn attach_url(shared: &Shared, request: AttachRequest) -> Result<String, Status> {
    check_streams(&request.container_id, request.tty, [request.stdin, request.stdout, request.stderr])?;
    let container = containers::running(shared, &request.container_id).await?;
    let spec = container.status.spec;
    let request = AttachRequest { container_id: spec.id, tty: spec.terminal, ..request };
    url(shared, "attach", Stream::Attach(request))
}

/// The URL of connections into a sandbox.
pub(crate) async fn port_forward_url(shared: &Shared, request: PortForwardRequest) -> Result<String, Status> {
    if request.pod_sandbox_id.is_empty() {
        return Err(Status::invalid_argument("missing required pod_sandbox_id"));
    }
    let pod = shared.pod(&request.pod_sandbox_id).await?;
    if pod.status.state != engine_api::SandboxState::Ready {
        let text = format!("sandbox {} is not ready: nothing listens there", pod.status.spec.id);
        return Err(Status::failed_precondition(text));
    }
    let request = PortForwardRequest { pod_sandbox_id: pod.status.spec.id, ..request };
    url(shared, "portforward", Stream::PortForward(request))
}

/// Source: `validateExecRequest` of upstream's streaming server.
fn check_streams(container_id: &str, tty: bool, [stdin, stdout, stderr]: [bool; 3]) -> Result<(), Status> {
    if container_id.is_empty() {
        return Err(Status::invalid_argument("missing required container_id"));
    }
    if tty && stderr {
        return Err(Status::invalid_argument("tty and stderr cannot both be true"));
    }
    if !stdin && !stdout && !stderr {
        return Err(Status::invalid_argument("one of stdin, stdout, or stderr must be set"));
    }
    Ok(())
}

fn url(shared: &Shared, kind: &str, stream: Stream) -> Result<String, Status> {
    let token = shared.tokens.give(stream, Instant::now())?;
    Ok(format!("{}/{kind}/{token}", shared.streams_at))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use engine_api::ProcessIo;
    use tokio::sync::mpsc;

    use super::*;

    fn limits(output: usize) -> Limits {
        Limits { output, drain: DRAIN_MAX, end: None }
    }

    fn process(stdout: Vec<&'static str>, code: i32) -> Process {
        let pieces: Vec<_> =
            stdout.into_iter().map(|piece| Ok(Bytes::from_static(piece.as_bytes()))).collect();
        let (sender, exit) = oneshot::channel();
        let finished_at = jiff::Timestamp::UNIX_EPOCH;
        sender
            .send(Ok(Exit { code, signal: 0, oom_killed: false, finished_at, message: String::new() }))
            .unwrap();
        let io = ProcessIo {
            stdin: None,
            stdout: Some(futures::stream::iter(pieces).boxed()),
            stderr: Some(futures::stream::iter([Ok(Bytes::from_static(b"e"))]).boxed()),
            resize: mpsc::channel(1).0,
        };
        Process { io, exit, pid: 1 }
    }

    #[tokio::test]
    async fn output_is_bounded_and_the_exit_code_told() {
        let answer = collect(process(vec!["abc", "def", "ghi"], 3), limits(1024)).await.unwrap();
        assert_eq!((answer.stdout.as_slice(), answer.stderr.as_slice()), (&b"abcdefghi"[..], &b"e"[..]));
        assert_eq!(answer.exit_code, 3);
        let answer = collect(process(vec!["abc", "def", "ghi"], 0), limits(5)).await.unwrap();
        assert_eq!(answer.stdout.len() + answer.stderr.len(), 5);
    }

    #[tokio::test]
    async fn streams_that_somebody_else_holds_are_not_waited_for() {
        let mut left = process(vec![], 0);
        let held = futures::stream::iter([Ok(Bytes::from_static(b"x"))]).chain(futures::stream::pending());
        left.io.stdout = Some(held.boxed());
        let answer = collect(left, Limits { drain: Duration::from_millis(1), ..limits(1024) }).await.unwrap();
        assert_eq!((answer.stdout.as_slice(), answer.exit_code), (&b"x"[..], 0));
    }

    #[test]
    fn streams_have_to_make_sense() {
        assert!(check_streams("c", true, [true, true, false]).is_ok());
        for (id, tty, streams) in [("", false, [true; 3]), ("c", true, [true; 3]), ("c", false, [false; 3])] {
            let status = check_streams(id, tty, streams).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
        }
    }
}
