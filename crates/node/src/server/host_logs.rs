//! `GET /logs/…`: the host's log files, for whoever may see them. Source: the kubelet's `/logs/` (`http.FileServer` over
//! `/var/log`). Unlike there no link leads out: pods that mount the directory would have all of the host read to them.

use std::fmt::Write as _;
use std::fs::File;
use std::path::Path;

use api::connect::Body;
use api::{Reason, Status};
use futures::StreamExt as _;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, ResolveFlags, openat, openat2};
use tokio::io::AsyncReadExt as _;
use tokio_util::io::ReaderStream;

use super::{full, response};
use crate::deps::blocking;

const ROOT: &str = "/var/log";

/// Of a name, all that is not plain in a path's segment. Source: Go's `url.URL.String`.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'$')
    .remove(b'+')
    .remove(b'=')
    .remove(b'@');

/// What a path below the root is.
enum Found {
    /// A file, and its length when it was opened.
    File(File, u64),
    /// The names in it, those of directories with a slash, in order.
    Directory(Vec<String>),
}

/// Serves a file, or a list of those in a directory; `path` is what follows `/logs`.
pub(super) async fn serve(path: &str) -> Result<Response<Body>, Status> {
    let wanted = path.trim_matches('/').to_owned();
    let found = blocking(move || find(Path::new(ROOT), &wanted)).await;
    match found.map_err(|error| Status::internal(error.to_string()))? {
        Some(Found::Directory(_)) if !path.ends_with('/') => Ok(to_directory(path)),
        Some(Found::Directory(names)) => {
            Ok(response(StatusCode::OK, "text/html; charset=utf-8", full(list(&names))))
        }
        Some(Found::File(file, length)) => {
            // What is appended meanwhile is left out: an answer ends however fast the log grows.
            let file = tokio::fs::File::from_std(file).take(length);
            let chunks = ReaderStream::new(file).map(|chunk| chunk.map(Frame::data).map_err(Into::into));
            Ok(response(StatusCode::OK, "text/plain; charset=utf-8", StreamBody::new(chunks).boxed_unsync()))
        }
        None => Err(Status::new(Reason::NotFound, "404 page not found")),
    }
}

/// Looks at a path below `root`; `None` for what leads out of it (by name or by link) or is neither file nor directory.
fn find(root: &Path, wanted: &str) -> Option<Found> {
    let root = root.canonicalize().ok()?;
    let path = root.join(wanted).canonicalize().ok()?;
    let inside = path.strip_prefix(&root).ok()?;
    let file = open(&root, inside).ok()?;
    let kind = file.metadata().ok()?;
    if kind.is_file() {
        return Some(Found::File(file, kind.len()));
    }
    if !kind.is_dir() {
        return None;
    }
    let mut names = Vec::new();
    for entry in Dir::new(file).ok()?.filter_map(Result::ok) {
        let Ok(name) = entry.file_name().to_str() else { continue };
        if !matches!(name, "." | "..") {
            let slash = if entry.file_type() == FileType::Directory { "/" } else { "" };
            names.push(format!("{name}{slash}"));
        }
    }
    names.sort();
    Some(Found::Directory(names))
}

/// Opens what was found. No link is followed any more: whoever puts one in its place in between gets nothing. What is no
/// file keeps nobody waiting.
fn open(root: &Path, inside: &Path) -> rustix::io::Result<File> {
    let root = openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let inside = if inside.as_os_str().is_empty() { Path::new(".") } else { inside };
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let strict = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    openat2(&root, inside, flags, Mode::empty(), strict).map(File::from)
}

/// Links in a list work only where its address ends in a slash.
fn to_directory(path: &str) -> Response<Body> {
    let name = path.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("logs");
    let mut answer = response(StatusCode::MOVED_PERMANENTLY, "text/html; charset=utf-8", full(""));
    if let Ok(location) = HeaderValue::from_str(&format!("{}/", reference(name))) {
        answer.headers_mut().insert(header::LOCATION, location);
    }
    answer
}

/// A name as a reference to it: one with a colon would be a scheme.
fn reference(name: &str) -> String {
    utf8_percent_encode(name, SEGMENT).to_string()
}

fn list(names: &[String]) -> String {
    let mut page =
        String::from("<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n");
    for name in names {
        let shown =
            name.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&#34;");
        let (bare, slash) = name.strip_suffix('/').map_or((name.as_str(), ""), |bare| (bare, "/"));
        // Writing to a string cannot fail.
        let _ = writeln!(page, "<a href=\"{}{slash}\">{shown}</a>", reference(bare));
    }
    page + "</pre>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_the_root_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("log");
        std::fs::create_dir_all(root.join("pods")).unwrap();
        std::fs::write(root.join("a<b"), "x").unwrap();
        std::fs::write(dir.path().join("secret"), "x").unwrap();
        std::os::unix::fs::symlink(dir.path().join("secret"), root.join("link")).unwrap();
        let Some(Found::Directory(names)) = find(&root, "") else { panic!("the root is a directory") };
        assert_eq!(names, ["a<b", "link", "pods/"]);
        assert!(list(&names).contains("<a href=\"a%3Cb\">a&lt;b</a>"));
        assert!(list(&names).contains("<a href=\"pods/\">pods/</a>"));
        assert!(matches!(find(&root, "a<b"), Some(Found::File(_, 1))));
        for outside in ["../secret", "link", "/etc/passwd", "nothing"] {
            assert!(find(&root, outside).is_none(), "{outside}");
        }
        // A link within, as that of a container's log.
        std::os::unix::fs::symlink(root.join("a<b"), root.join("pods/0.log")).unwrap();
        assert!(matches!(find(&root, "pods/0.log"), Some(Found::File(_, 1))));
        // One that was put there after the path was looked at.
        assert!(open(&root, Path::new("link")).is_err() && open(&root, Path::new("pods/0.log")).is_err());
        assert!(open(&root, Path::new("../secret")).is_err());
    }

    #[test]
    fn names_are_references_whatever_they_are() {
        assert_eq!(reference("a b%2f?#:\"é"), "a%20b%252f%3F%23%3A%22%C3%A9");
        let sent = to_directory("/x/a b");
        assert_eq!(sent.headers()[header::LOCATION], "a%20b/");
    }
}
