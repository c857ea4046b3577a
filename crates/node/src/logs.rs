//! Container logs as `kubectl logs` shows them: text, with time stamps if asked for, cut at a number of bytes.

use std::path::PathBuf;

use base::BoxError;
use bytes::{Bytes, BytesMut};
use engine_api::logs::{LogLine, LogQuery, Notices, Verdict, read_lines};
use futures::future::BoxFuture;
use futures::{Stream, StreamExt as _};

/// Which text is wanted. Source: the API's `PodLogOptions`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LogOptions {
    pub(crate) entries: LogQuery,
    pub(crate) timestamps: bool,
    pub(crate) limit_bytes: Option<u64>,
}

/// The log's text. `ended` resolves when the container has ended: what is there then is the whole log.
pub(crate) fn text(
    path: PathBuf,
    options: LogOptions,
    notices: Notices,
    ended: BoxFuture<'static, ()>,
) -> impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static {
    let chunks = Box::pin(read_lines(path, &options.entries, notices, ended));
    let left = options.limit_bytes.unwrap_or(u64::MAX);
    let shown = Shown { left, options, inside: false, over: left == 0 };
    futures::stream::try_unfold((chunks, shown), |(mut chunks, mut shown)| async move {
        while !shown.over {
            let Some(chunk) = chunks.next().await else { break };
            let text = shown.text_of(chunk?);
            if !text.is_empty() {
                return Ok(Some((text.freeze(), (chunks, shown))));
            }
        }
        Ok(None)
    })
}

/// How far a log has been shown.
struct Shown {
    options: LogOptions,
    /// Bytes that may still be shown.
    left: u64,
    /// The last entry's line goes on.
    inside: bool,
    /// What follows is not waited for.
    over: bool,
}

impl Shown {
    /// What is wanted of whole lines, moved together where they lie: what is shown of a line is never longer than it.
    fn text_of(&mut self, mut lines: BytesMut) -> BytesMut {
        let (mut begin, mut length) = (0, 0);
        while let Some(end) = memchr::memchr(b'\n', &lines[begin..]).map(|at| begin + at) {
            let line = begin..end;
            begin = end + 1;
            let Some(entry) = LogLine::parse(&lines[line.clone()]) else { continue };
            match self.options.entries.judge(&entry) {
                Verdict::Wanted => {}
                Verdict::Unwanted => continue,
                Verdict::TooNew => {
                    self.over = true;
                    break;
                }
            }
            // A line has its time where it begins, as upstream: its further parts are appended as they are.
            let stamp = if self.options.timestamps && !self.inside { entry.time.len() + 1 } else { 0 };
            let (text, partial) = (end - entry.text.len(), entry.partial);
            self.inside = partial;
            if stamp > 0 {
                // With the space that follows it.
                lines.copy_within(line.start..line.start + stamp, length);
                length += stamp;
            }
            let until = if partial { end } else { begin };
            lines.copy_within(text..until, length);
            length += until - text;
        }
        lines.truncate(length.min(usize::try_from(self.left).unwrap_or(usize::MAX)));
        self.left -= lines.len() as u64;
        self.over |= self.left == 0;
        lines
    }
}

#[cfg(test)]
mod tests {
    use engine_api::logs::LogStream;
    use futures::{FutureExt as _, TryStreamExt as _};

    use super::*;

    async fn all(log: &str, options: LogOptions) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, log).unwrap();
        // A container that goes on running, where it is followed.
        let ended = futures::future::pending().boxed();
        let chunks: Vec<Bytes> = text(path, options, Notices::default(), ended).try_collect().await.unwrap();
        String::from_utf8(chunks.concat()).unwrap()
    }

    #[tokio::test]
    async fn text_is_shown_as_asked() {
        let log = "t1 stdout P ab\nt2 stdout F cd\nt3 stderr F e\n";
        let none = LogOptions::default();
        assert_eq!(all(log, none.clone()).await, "abcd\ne\n");
        assert_eq!(all(log, LogOptions { timestamps: true, ..none.clone() }).await, "t1 abcd\nt3 e\n");
        assert_eq!(all(log, LogOptions { limit_bytes: Some(0), ..none.clone() }).await, "");
        assert_eq!(all(log, LogOptions { limit_bytes: Some(3), ..none.clone() }).await, "abc");
        let only = LogQuery { only: Some(LogStream::Stderr), ..LogQuery::default() };
        assert_eq!(all(log, LogOptions { entries: only, timestamps: true, ..none.clone() }).await, "t3 e\n");
        let tail = LogQuery { tail: Some(2), ..LogQuery::default() };
        assert_eq!(all(log, LogOptions { entries: tail, timestamps: true, ..none }).await, "t2 cd\nt3 e\n");
    }

    #[tokio::test]
    async fn a_time_cuts_the_log_and_rubbish_is_passed_over() {
        let log = "2024-01-01T00:00:00Z stdout F a\nrubbish\n\n2024-01-01T00:00:01Z stdout P b\n2024-01-01T00:00:01Z \
                   stdout F \n2024-01-01T00:00:02Z stdout F:x c\n";
        let since = Some("2024-01-01T00:00:01Z".parse().unwrap());
        let entries = LogQuery { since, ..LogQuery::default() };
        assert_eq!(all(log, LogOptions { entries, ..LogOptions::default() }).await, "b\nc\n");
        let until = LogQuery { until: since, ..LogQuery::default() };
        assert_eq!(all(log, LogOptions { entries: until, ..LogOptions::default() }).await, "a\nb\n");
        // The limit cuts what is shown, the times with it, also in the midst of many lines.
        let long: String = (0..50_000).map(|number| format!("t stdout F line {number}\n")).collect();
        let options = LogOptions { limit_bytes: Some(300_001), timestamps: true, ..LogOptions::default() };
        let wanted: String = (0..50_000).map(|number| format!("t line {number}\n")).collect();
        assert_eq!(all(&long, options).await, wanted[..300_001]);
    }

    #[tokio::test]
    async fn a_reached_limit_ends_what_is_followed() {
        let entries = LogQuery { follow: true, ..LogQuery::default() };
        let options = LogOptions { entries, limit_bytes: Some(2), ..LogOptions::default() };
        assert_eq!(all("t1 stdout F abc\n", options).await, "ab");
    }
}
