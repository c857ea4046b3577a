//! `GET /containers/{id}/logs`: the engine's log files as Docker's clients read them.

use std::io;

use bytes::{Bytes, BytesMut};
use engine_api::ContainerState;
use engine_api::logs::{self, LogEntry, LogQuery, LogStream};
use futures::{FutureExt as _, StreamExt as _};
use jiff::Timestamp;

use crate::answer::{Answer, Failure, streamed};
use crate::hijack::{STDERR, STDOUT, Wants, frame};
use crate::inspect::tail;
use crate::server::Call;

pub(crate) async fn logs(call: &Call, name: &str) -> Answer {
    let found = call.shared.find(name).await?;
    let query = &call.query;
    let wants = Wants {
        stdin: false,
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
        terminal: found.container.spec.terminal,
    };
    let wanted = LogQuery {
        follow: query.flag("follow") && !matches!(found.container.state, ContainerState::Exited { .. }),
        tail: tail(query.text("tail"))?,
        since: time(query.text("since"))?,
        until: time(query.text("until"))?,
        only: only(wants)?,
    };
    let timestamps = query.flag("timestamps");
    let (runtime, id) = (call.shared.runtime.clone(), found.id().to_owned());
    let ended = async move {
        // Whatever the answer, nothing more will be written.
        let _ = runtime.wait_container(&id).await;
    };
    let batches =
        logs::read_with(found.container.log_path, wanted, call.shared.notices.clone(), ended.boxed());
    let shown = batches.map(move |batch| match batch {
        Ok(entries) => Ok(show_all(&entries, wants.terminal, timestamps)),
        // Before the start nothing is logged.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Bytes::new()),
        Err(error) => Err(error),
    });
    Ok(streamed(wants.content_type(call.version), shown))
}

/// The only stream that a client wants, if it does not want both.
fn only(wants: Wants) -> Result<Option<LogStream>, Failure> {
    match (wants.stdout, wants.stderr) {
        (true, true) => Ok(None),
        (true, false) => Ok(Some(LogStream::Stdout)),
        (false, true) => Ok(Some(LogStream::Stderr)),
        (false, false) => Err(Failure::bad_request("Bad parameters: you must choose at least one stream")),
    }
}

/// Seconds since 1970 with an optional fraction; Docker's clients send nothing else.
fn time(text: &str) -> Result<Option<Timestamp>, Failure> {
    if matches!(text, "" | "0") {
        return Ok(None);
    }
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let nanoseconds = format!("{fraction:0<9}");
    let parsed = seconds.parse().ok().zip(nanoseconds.get(..9).and_then(|digits| digits.parse().ok()));
    let time = parsed.and_then(|(seconds, nanoseconds)| Timestamp::new(seconds, nanoseconds).ok());
    time.map(Some).ok_or_else(|| Failure::bad_request(format!("not a time in seconds: {text:?}")))
}

fn show_all(entries: &[LogEntry], terminal: bool, timestamps: bool) -> Bytes {
    let mut all = BytesMut::new();
    for entry in entries {
        all.extend_from_slice(&show(entry, terminal, timestamps));
    }
    all.freeze()
}

/// A log entry as a client sees it: as it is for a terminal, else in a frame of its stream.
fn show(entry: &LogEntry, terminal: bool, timestamps: bool) -> Bytes {
    let mut out = BytesMut::with_capacity(entry.time.len() + entry.text.len() + 2);
    if timestamps {
        out.extend_from_slice(&entry.time);
        out.extend_from_slice(b" ");
    }
    out.extend_from_slice(&entry.text);
    if !entry.partial {
        out.extend_from_slice(b"\n");
    }
    match (terminal, entry.stream) {
        (true, _) => out.freeze(),
        (false, LogStream::Stdout) => frame(STDOUT, &out),
        (false, LogStream::Stderr) => frame(STDERR, &out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_shown_as_asked() {
        let entry = |line: &'static str| LogEntry::parse(&Bytes::from_static(line.as_bytes())).unwrap();
        let full = entry("2024-01-01T00:00:05.5Z stdout F hello world");
        assert_eq!(show(&full, true, false), "hello world\n");
        assert_eq!(show(&full, true, true), "2024-01-01T00:00:05.5Z hello world\n");
        assert_eq!(show(&entry("2024-01-01T00:00:05Z stdout P part"), true, false), "part");
        assert_eq!(show(&entry("2024-01-01T00:00:05Z stdout F "), true, false), "\n");
        let error = entry("2024-01-01T00:00:05Z stderr F e");
        assert_eq!(show(&error, false, false), frame(STDERR, b"e\n"));
        let both = show_all(&[full, error], false, false);
        assert_eq!(both, [frame(STDOUT, b"hello world\n"), frame(STDERR, b"e\n")].concat());
    }

    #[test]
    fn times_are_seconds_with_fractions() {
        assert_eq!(time("5.25").unwrap().unwrap(), Timestamp::new(5, 250_000_000).unwrap());
        assert_eq!(time("").unwrap(), None);
        assert!(time("yesterday").is_err());
        assert!(time("1.\u{e9}").is_err());
    }
}
