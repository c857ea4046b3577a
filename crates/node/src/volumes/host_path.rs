//! `hostPath` volumes: checks and creations by type. Source: the API's `HostPathType`.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Component, Path};

/// Makes sure that `path` is what `kind` asks for.
pub(crate) fn prepare(path: &Path, kind: &str) -> Result<(), String> {
    let text = path.display();
    if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
        return Err(format!("hostPath \"{text}\" must be absolute and must not contain '..'"));
    }
    let failed = |error: io::Error| format!("hostPath {text}: {error}");
    match kind {
        "DirectoryOrCreate" if !path.exists() => {
            return fs::DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(failed);
        }
        "FileOrCreate" if !path.exists() => {
            let file = fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o644).open(path);
            return file.map(drop).map_err(failed);
        }
        _ => {}
    }
    let metadata = fs::metadata(path);
    if kind.is_empty() {
        // No check; but a container cannot bind what is not there, so it becomes a directory as with Docker.
        return match metadata {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir_all(path).map_err(failed),
            Err(error) => Err(failed(error)),
        };
    }
    let found =
        metadata.map_err(|_| format!("hostPath type check failed: {text} is not a {}", noun(kind)))?;
    let file_type = found.file_type();
    let fits = match kind {
        "Directory" | "DirectoryOrCreate" => file_type.is_dir(),
        "File" | "FileOrCreate" => file_type.is_file(),
        "Socket" => file_type.is_socket(),
        "CharDevice" => file_type.is_char_device(),
        "BlockDevice" => file_type.is_block_device(),
        other => return Err(format!("unknown hostPath type \"{other}\"")),
    };
    if fits { Ok(()) } else { Err(format!("hostPath type check failed: {text} is not a {}", noun(kind))) }
}

fn noun(kind: &str) -> &'static str {
    match kind {
        "File" | "FileOrCreate" => "file",
        "Socket" => "socket file",
        "CharDevice" => "character device",
        "BlockDevice" => "block device",
        _ => "directory",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_type_checks_or_makes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        assert!(prepare(&path, "Directory").unwrap_err().ends_with("is not a directory"));
        prepare(&path, "DirectoryOrCreate").unwrap();
        prepare(&path, "Directory").unwrap();
        assert!(prepare(&path, "File").unwrap_err().ends_with("is not a file"));
        let file = dir.path().join("f");
        prepare(&file, "FileOrCreate").unwrap();
        prepare(&file, "File").unwrap();
        assert!(prepare(&file, "Socket").is_err());
        prepare(Path::new("/dev/null"), "CharDevice").unwrap();
        assert!(prepare(Path::new("relative"), "").is_err());
        assert!(prepare(&dir.path().join("../x"), "").is_err());
    }
}
