//! The reader on files as a runtime writes, rotates and loses them.

use std::io::Write as _;

use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};

use super::*;

fn line(n: u32) -> String {
    let stream = if n.is_multiple_of(2) { "stdout" } else { "stderr" };
    format!("2024-01-01T00:00:{n:02}.000000000Z {stream} F line {n}\n")
}

fn lines(range: std::ops::Range<u32>) -> String {
    range.map(line).collect()
}

fn texts(entries: &[LogEntry]) -> Vec<String> {
    entries.iter().map(|entry| String::from_utf8(entry.text.to_vec()).unwrap()).collect()
}

fn ended() -> BoxFuture<'static, ()> {
    futures::future::ready(()).boxed()
}

async fn all_of(path: &Path, query: LogQuery) -> Vec<String> {
    let batches: Vec<Vec<LogEntry>> = read(path.to_owned(), query, ended()).try_collect().await.unwrap();
    texts(&batches.concat())
}

fn append(path: &Path, text: &str) {
    std::fs::OpenOptions::new().append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

/// Moves the files of a log as the runtime does, keeping two.
fn rotate(path: &Path) {
    let name = |number: u32| path.with_extension(format!("log.{number}"));
    let _ = std::fs::rename(name(1), name(2));
    std::fs::rename(path, name(1)).unwrap();
    std::fs::File::create_new(path).unwrap();
}

#[test]
fn entries_are_taken_apart() {
    let parse = |text: &'static [u8]| LogEntry::parse(&Bytes::from_static(text));
    let entry = parse(b"2024-01-02T03:04:05.000000006Z stderr P a b\n").unwrap();
    assert_eq!((entry.stream, entry.partial, &entry.text[..]), (LogStream::Stderr, true, &b"a b"[..]));
    assert_eq!(moment(&entry.time).unwrap().subsec_nanosecond(), 6);
    assert_eq!(parse(b"2024-01-02T03:04:05Z stdout F ").unwrap().text, "");
    assert_eq!(parse(b"2024-01-02T03:04:05Z stdout F:x y").unwrap().text, "y");
    for wrong in [&b"rubbish"[..], b"t stdin F x", b"t stdout X x", b"", b"\n", b"t stdout"] {
        assert_eq!(parse(wrong), None);
    }
}

#[tokio::test]
async fn queries_choose_entries() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    std::fs::write(&path, format!("rubbish\n{}", lines(0..5))).unwrap();
    let all = LogQuery::default();
    assert_eq!(all_of(&path, all.clone()).await, ["line 0", "line 1", "line 2", "line 3", "line 4"]);
    assert_eq!(all_of(&path, LogQuery { tail: Some(2), ..all.clone() }).await, ["line 3", "line 4"]);
    assert!(all_of(&path, LogQuery { tail: Some(0), ..all.clone() }).await.is_empty());
    assert_eq!(all_of(&path, LogQuery { tail: Some(99), ..all.clone() }).await.len(), 5);
    let at = |text: &str| Some(text.parse().unwrap());
    let since = LogQuery { since: at("2024-01-01T00:00:03Z"), ..all.clone() };
    assert_eq!(all_of(&path, since.clone()).await, ["line 3", "line 4"]);
    let until = LogQuery { until: at("2024-01-01T00:00:03Z"), ..since };
    assert_eq!(all_of(&path, until).await, ["line 3"]);
    let errors = LogQuery { only: Some(LogStream::Stderr), tail: Some(2), ..all };
    assert_eq!(all_of(&path, errors).await, ["line 3"], "the tail counts every entry");
}

#[tokio::test]
async fn a_missing_log_is_told_from_an_empty_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    let first = read(path.clone(), LogQuery::default(), ended()).try_collect::<Vec<_>>().await;
    assert_eq!(first.unwrap_err().kind(), io::ErrorKind::NotFound);
    std::fs::write(&path, "").unwrap();
    assert!(all_of(&path, LogQuery::default()).await.is_empty());
}

#[tokio::test]
async fn older_files_come_first_and_count_for_the_tail() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    std::fs::write(&path, lines(0..2)).unwrap();
    rotate(&path);
    append(&path, &lines(2..4));
    rotate(&path);
    append(&path, &lines(4..5));
    assert_eq!(all_of(&path, LogQuery::default()).await, ["line 0", "line 1", "line 2", "line 3", "line 4"]);
    for (tail, first) in [(1, 4), (2, 3), (3, 2), (4, 1), (5, 0), (6, 0)] {
        let query = LogQuery { tail: Some(tail), ..LogQuery::default() };
        assert_eq!(all_of(&path, query).await[0], format!("line {first}"), "tail {tail}");
    }
}

#[tokio::test]
async fn a_tail_is_found_over_many_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    let text: String =
        (0..20_000).map(|number| format!("2024-01-01T00:00:00Z stdout F {number}\n")).collect();
    assert!(text.len() > 5 * CHUNK_BYTES);
    std::fs::write(&path, text).unwrap();
    for tail in [1, 3000, 19_999, 20_000, 20_001] {
        let read = all_of(&path, LogQuery { tail: Some(tail), ..LogQuery::default() }).await;
        assert_eq!(read.len() as u64, tail.min(20_000));
        assert_eq!(read[0], (20_000 - tail.min(20_000)).to_string());
    }
}

#[tokio::test]
async fn lines_come_as_they_stand_however_large_the_log_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    let text: String =
        (0..100_000).map(|number| format!("2024-01-01T00:00:00Z stdout F {number}\n")).collect();
    assert!(text.len() > 4 * READ_MOST);
    std::fs::write(&path, format!("{text}2024-01-01T00:00:00Z stdout F half")).unwrap();
    let chunks: Vec<BytesMut> =
        read_lines(path, &LogQuery::default(), Notices::default(), ended()).try_collect().await.unwrap();
    assert!(chunks.iter().all(|chunk| chunk.ends_with(b"\n")));
    assert!(chunks.iter().any(|chunk| chunk.len() > READ_MOST / 2), "larger reads where there is more");
    assert_eq!(chunks.concat(), text.as_bytes());
}

#[tokio::test]
async fn what_is_no_line_is_passed_over_in_bounded_memory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    std::fs::write(&path, format!("{}\n{}", "x".repeat(3 * LINE_MAX_BYTES), line(1))).unwrap();
    assert_eq!(all_of(&path, LogQuery::default()).await, ["line 1"]);
}

#[tokio::test]
async fn following_sees_the_beginning_growth_rotations_and_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let query = LogQuery { follow: true, ..LogQuery::default() };
    let mut stream = Box::pin(read(path.clone(), query, ended.map(drop).boxed()));
    // Waits for the file before there is one.
    assert!(stream.next().now_or_never().is_none());
    std::fs::write(&path, line(0)).unwrap();
    let mut seen = texts(&stream.next().await.unwrap().unwrap());
    append(&path, &line(1));
    seen.extend(texts(&stream.next().await.unwrap().unwrap()));
    // Two rotations before the reader looks again, with an entry before each and after both.
    append(&path, &line(2));
    rotate(&path);
    append(&path, &line(3));
    rotate(&path);
    append(&path, &line(4));
    while seen.len() < 5 {
        seen.extend(texts(&stream.next().await.unwrap().unwrap()));
    }
    append(&path, &line(5));
    end.send(()).unwrap();
    while let Some(batch) = stream.next().await {
        seen.extend(texts(&batch.unwrap()));
    }
    assert_eq!(seen, ["line 0", "line 1", "line 2", "line 3", "line 4", "line 5"]);
}

#[tokio::test]
async fn nothing_is_lost_or_told_twice_while_a_log_is_written_and_rotated() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    std::fs::write(&path, "").unwrap();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let query = LogQuery { follow: true, ..LogQuery::default() };
    let stream = read(path.clone(), query, ended.map(drop).boxed());
    let writer = std::thread::spawn(move || {
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        for number in 0..3000 {
            writeln!(file, "2024-01-01T00:00:00Z stdout F {number}").unwrap();
            if number == 1000 || number == 2000 {
                rotate(&path);
                file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
            }
        }
        end.send(()).unwrap();
    });
    let batches: Vec<Vec<LogEntry>> = stream.try_collect().await.unwrap();
    writer.join().unwrap();
    let expected: Vec<String> = (0..3000).map(|number| number.to_string()).collect();
    assert_eq!(texts(&batches.concat()), expected);
}

#[tokio::test]
async fn a_log_that_is_followed_ends_after_its_last_wanted_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    std::fs::write(&path, lines(0..5)).unwrap();
    let until = Some("2024-01-01T00:00:02Z".parse().unwrap());
    let query = LogQuery { follow: true, until, ..LogQuery::default() };
    let never = futures::future::pending().boxed();
    let batches: Vec<Vec<LogEntry>> = read(path, query, never).try_collect().await.unwrap();
    assert_eq!(texts(&batches.concat()), ["line 0", "line 1", "line 2"]);
}

#[tokio::test]
async fn hundreds_follow_with_one_instance_of_the_kernels() {
    let dir = tempfile::tempdir().unwrap();
    let notices = Notices::default();
    let query = LogQuery { follow: true, ..LogQuery::default() };
    let mut followers = Vec::new();
    for number in 0..300 {
        let directory = dir.path().join((number % 3).to_string());
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("0.log");
        let never = futures::future::pending().boxed();
        let mut lines = Box::pin(read_lines(path, &query, notices.clone(), never));
        assert!(lines.next().now_or_never().is_none());
        followers.push(lines);
    }
    // Whoever passed the events on may leave.
    drop(followers.drain(..10));
    for name in ["0", "1", "2"] {
        std::fs::write(dir.path().join(name).join("0.log"), line(0)).unwrap();
    }
    let first = futures::future::join_all(followers.iter_mut().map(|lines| lines.next())).await;
    assert!(first.into_iter().all(|lines| lines.unwrap().unwrap() == line(0).as_bytes()));
    append(&dir.path().join("0/0.log"), &line(1));
    let more =
        futures::future::join_all(followers.iter_mut().skip(2).step_by(3).map(|lines| lines.next())).await;
    assert!(more.into_iter().all(|lines| lines.unwrap().unwrap() == line(1).as_bytes()));
}
