//! Container logs as `kubectl logs` shows them: text, with time stamps if asked for, cut at a number of bytes.

use std::path::PathBuf;

use base::BoxError;
use bytes::{Bytes, BytesMut};
use engine_api::logs::{LogEntry, LogQuery, read};
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
    ended: BoxFuture<'static, ()>,
) -> impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static {
    let mut left = options.limit_bytes.unwrap_or(u64::MAX);
    let mut inside = false;
    let batches = read(path, options.entries, ended);
    let texts = batches.map(move |batch| {
        let mut text = BytesMut::new();
        for entry in batch? {
            append(&mut text, &entry, options.timestamps && !inside);
            inside = entry.partial;
        }
        text.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        left -= text.len() as u64;
        Ok((text.freeze(), left))
    });
    ending(texts)
}

/// Ends a stream with the text that used the limit up: what follows is not waited for.
fn ending(
    texts: impl Stream<Item = Result<(Bytes, u64), BoxError>> + Send + 'static,
) -> impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static {
    futures::stream::unfold(Some(Box::pin(texts)), |texts| async {
        let mut texts = texts?;
        match texts.next().await? {
            Ok((text, left)) => Some((Ok(text), (left > 0).then_some(texts))),
            Err(error) => Some((Err(error), None)),
        }
    })
}

/// A line has its time where it begins, as upstream: its further parts are appended as they are.
fn append(text: &mut BytesMut, entry: &LogEntry, stamped: bool) {
    if stamped {
        text.extend_from_slice(&entry.time);
        text.extend_from_slice(b" ");
    }
    text.extend_from_slice(&entry.text);
    if !entry.partial {
        text.extend_from_slice(b"\n");
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt as _, TryStreamExt as _};

    use super::*;

    async fn all(log: &str, options: LogOptions) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, log).unwrap();
        // A container that goes on running, where it is followed.
        let ended = futures::future::pending().boxed();
        let chunks: Vec<Bytes> = text(path, options, ended).try_collect().await.unwrap();
        String::from_utf8(chunks.concat()).unwrap()
    }

    #[tokio::test]
    async fn text_is_shown_as_asked() {
        let log = "t1 stdout P ab\nt2 stdout F cd\nt3 stderr F e\n";
        let none = LogOptions::default();
        assert_eq!(all(log, none.clone()).await, "abcd\ne\n");
        assert_eq!(all(log, LogOptions { timestamps: true, ..none.clone() }).await, "t1 abcd\nt3 e\n");
        assert_eq!(all(log, LogOptions { limit_bytes: Some(0), ..none.clone() }).await, "");
        assert_eq!(all(log, LogOptions { limit_bytes: Some(3), ..none }).await, "abc");
    }

    #[tokio::test]
    async fn a_reached_limit_ends_what_is_followed() {
        let entries = LogQuery { follow: true, ..LogQuery::default() };
        let options = LogOptions { entries, limit_bytes: Some(2), ..LogOptions::default() };
        assert_eq!(all("t1 stdout F abc\n", options).await, "ab");
    }
}
