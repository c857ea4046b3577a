//! Reads the files that the environment of a container is taken from. Containers have written them: they are opened
//! without ever leaving their volume, nobody waits for them, and they are read only so far.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, FileKeySelector};
use sys::files::{open_in_root, read_bounded};

use crate::pod::PodView;
use crate::pod::env_file::EnvFile;
use crate::volumes::{PodDirectories, empty_dir};

/// More no such file has: an environment that were larger no process could be started with.
const SIZE_MAX: u64 = 1 << 20;
/// More no container's files have together.
const ALL_MAX: usize = 4 << 20;

/// Files by volume and path; `None`: there is none.
pub(crate) type EnvFiles = HashMap<(String, String), Option<EnvFile>>;

/// Which variables of a container come from files.
fn selectors(container: &Container) -> impl Iterator<Item = &FileKeySelector> {
    let sources = container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref());
    sources.filter_map(|from| from.file_key_ref.as_ref())
}

/// Whether the container's environment needs files at all.
pub(crate) fn needed(container: &Container) -> bool {
    selectors(container).next().is_some()
}

/// Reads every file that the container's environment names. Blocks.
pub(crate) fn gather(
    pod: &PodView,
    container: &Container,
    directories: &PodDirectories,
) -> Result<EnvFiles, String> {
    let mut files = EnvFiles::new();
    let mut bytes = 0;
    for FileKeySelector { volume_name, path, .. } in selectors(container) {
        let file = (volume_name.clone(), path.clone());
        if files.contains_key(&file) {
            continue;
        }
        let root = root(pod, directories, volume_name)
            .ok_or_else(|| format!("cannot find the volume \"{volume_name}\" referenced by FileKeyRef"))?;
        let text = match read(&root, path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                return Err(format!("couldn't parse env file: {path} of volume {volume_name}: {error}"));
            }
        };
        bytes += text.as_ref().map_or(0, String::len);
        if bytes > ALL_MAX {
            return Err("couldn't parse env files: together they are larger than 4 MiB".to_owned());
        }
        files.insert(file, text.as_deref().map(EnvFile::parse));
    }
    Ok(files)
}

/// Where a volume lies; only directories that containers share are allowed.
fn root(pod: &PodView, directories: &PodDirectories, name: &str) -> Option<PathBuf> {
    let volume = pod.spec.volumes.iter().flatten().find(|volume| volume.name == name)?;
    Some(empty_dir::path(directories, name, volume.empty_dir.as_ref()?))
}

fn read(root: &Path, path: &str) -> io::Result<String> {
    let bytes = read_bounded(open_in_root(root, path.as_ref())?, SIZE_MAX)?;
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not UTF-8"))
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, Mode};
    use serde_json::json;

    use super::*;
    use crate::pod::tests::pod;

    #[test]
    fn files_are_found_in_their_volume_and_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let directories = PodDirectories::new(&dir.path().join("data"), &dir.path().join("run"), "u1");
        let volume = directories.disk_volume("v");
        std::fs::create_dir_all(volume.join("d")).unwrap();
        std::fs::write(dir.path().join("secret"), "K='host'").unwrap();
        std::fs::write(volume.join("d/env"), "K='v'").unwrap();
        std::fs::write(volume.join("large"), vec![b'x'; (1 << 20) + 1]).unwrap();
        std::os::unix::fs::symlink("d/env", volume.join("link")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("secret"), volume.join("out")).unwrap();
        rustix::fs::mknodat(CWD, volume.join("pipe"), rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
        let read = |name: &str, path: &str| {
            let spec = json!({"volumes": [{"name": "v", "emptyDir": {}}, {"name": "h", "hostPath": {"path": "/"}}],
                "containers": [{"name": "a", "env": [{"name": "K",
                    "valueFrom": {"fileKeyRef": {"volumeName": name, "path": path, "key": "K"}}}]}]});
            let pod = pod(spec);
            let files = gather(&pod, &pod.spec.containers[0], &directories)?;
            Ok::<_, String>(files.get(&(name.to_owned(), path.to_owned())).cloned().flatten())
        };
        let found = Ok(Some(EnvFile::parse("K='v'")));
        assert_eq!((read("v", "d/env"), read("v", "link")), (found.clone(), found));
        assert_eq!((read("v", "none"), read("v", "out")), (Ok(None), Ok(None)), "also a link that leads out");
        for (name, path, error) in [
            ("v", "d", "not a regular file"),
            ("v", "pipe", "not a regular file"),
            ("v", "large", "larger than 1048576 bytes"),
            ("h", "etc/hostname", "cannot find the volume \"h\" referenced by FileKeyRef"),
        ] {
            assert!(read(name, path).unwrap_err().contains(error), "{name} {path}");
        }
    }

    #[test]
    fn files_are_read_once_and_only_so_many() {
        let dir = tempfile::tempdir().unwrap();
        let directories = PodDirectories::new(&dir.path().join("data"), &dir.path().join("run"), "u1");
        let volume = directories.disk_volume("v");
        std::fs::create_dir_all(&volume).unwrap();
        std::fs::write(volume.join("0"), vec![b'#'; 1 << 20]).unwrap();
        (1..5).for_each(|n| std::os::unix::fs::symlink("0", volume.join(n.to_string())).unwrap());
        let of = |paths: &[u32]| {
            let env: Vec<_> = paths
                .iter()
                .map(|path| json!({"name": "K", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": path.to_string(), "key": "K"}}}))
                .collect();
            let pod = pod(
                json!({"volumes": [{"name": "v", "emptyDir": {}}], "containers": [{"name": "a", "env": env}]}),
            );
            gather(&pod, &pod.spec.containers[0], &directories).map(|files| files.len())
        };
        assert_eq!(of(&[0, 0, 0, 0, 0, 0, 1]), Ok(2));
        assert!(of(&[0, 1, 2, 3, 4]).unwrap_err().contains("4 MiB"));
    }
}
