//! `GET /logs/…`: the host's log files, for whoever may see them. Source: the kubelet's `/logs/` (`http.FileServer` over
//! `/var/log`).

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use api::connect::Body;
use api::{Reason, Status};
use futures::StreamExt as _;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use tokio_util::io::ReaderStream;

use super::{full, response};
use crate::deps::blocking;

const ROOT: &str = "/var/log";

/// What a path below the root is.
enum Found {
    File(PathBuf),
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
        Some(Found::File(path)) => {
            let file = tokio::fs::File::open(&path).await.map_err(|error| unreadable(&error))?;
            let chunks = ReaderStream::new(file).map(|chunk| chunk.map(Frame::data).map_err(Into::into));
            Ok(response(StatusCode::OK, "text/plain; charset=utf-8", StreamBody::new(chunks).boxed_unsync()))
        }
        None => Err(Status::new(Reason::NotFound, "404 page not found")),
    }
}

fn unreadable(error: &std::io::Error) -> Status {
    Status::new(Reason::Forbidden, format!("the log cannot be read: {error}"))
}

/// Looks at a path below `root`; `None` for what leads out of it (by name or by link) or is neither file nor directory.
fn find(root: &Path, wanted: &str) -> Option<Found> {
    let root = root.canonicalize().ok()?;
    let path = root.join(wanted).canonicalize().ok()?;
    let kind = path.metadata().ok()?;
    if !path.starts_with(&root) {
        return None;
    }
    if kind.is_file() {
        return Some(Found::File(path));
    }
    let entries = path.read_dir().ok()?.filter_map(Result::ok);
    let mut names: Vec<String> = entries
        .filter_map(|entry| {
            let slash = if entry.path().is_dir() { "/" } else { "" };
            Some(entry.file_name().into_string().ok()? + slash)
        })
        .collect();
    names.sort();
    Some(Found::Directory(names))
}

/// Links in a list work only where its address ends in a slash.
fn to_directory(path: &str) -> Response<Body> {
    let name = path.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("logs");
    let mut answer = response(StatusCode::MOVED_PERMANENTLY, "text/html; charset=utf-8", full(""));
    if let Ok(location) = HeaderValue::from_str(&format!("{name}/")) {
        answer.headers_mut().insert(header::LOCATION, location);
    }
    answer
}

fn list(names: &[String]) -> String {
    let mut page =
        String::from("<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n");
    for name in names {
        let shown =
            name.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&#34;");
        // Writing to a string cannot fail.
        let _ = writeln!(page, "<a href=\"{shown}\">{shown}</a>");
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
        assert!(list(&names).contains("<a href=\"a&lt;b\">a&lt;b</a>"));
        assert!(matches!(find(&root, "a<b"), Some(Found::File(_))));
        for outside in ["../secret", "link", "/etc/passwd", "nothing"] {
            assert!(find(&root, outside).is_none(), "{outside}");
        }
    }
}
