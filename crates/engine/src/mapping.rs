//! What a sandbox with a user namespace sees of the host's file systems: their ids as its own.
//!
//! The layers of its images and its volumes are mounted with their ids mapped, by the engine, since nobody else may; the
//! upper layer belongs to the namespace's root and holds the host's ids, which are nobody else's.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use engine_api::{EngineError, ErrorKind, Mount, MountPropagation, MountSource};
use image::overlay::Layers;
use shim::IdRange;
use sys::mount::MountTable;

/// The first kernel that maps what pods need, tmpfs being the last. Source: KEP-127.
const SINCE: (u32, u32) = (6, 3);

/// A sandbox's user namespace.
#[derive(Debug, Clone)]
pub(crate) struct Users {
    /// Where it is pinned.
    pub(crate) path: PathBuf,
    pub(crate) range: IdRange,
}

/// Whether this kernel can do it, and this process may: the ids have to be the machine's.
pub(crate) fn possible() -> bool {
    let limit = std::fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    sys::host::kernel_is_at_least(SINCE.0, SINCE.1)
        && Path::new("/proc/self/ns/user").exists()
        && limit.trim() != "0"
        && !sys::entrance::in_user_namespace()
}

/// Whether processes may be given groups: not in the user namespace of a user who has but one id.
pub(crate) fn may_set_groups() -> bool {
    std::fs::read_to_string("/proc/self/setgroups").map_or(true, |said| said.trim() != "deny")
}

/// The layers of the image that is mounted at a place, and where in it what is shown there lies.
fn image_at(place: &Path) -> io::Result<Option<(Vec<PathBuf>, PathBuf)>> {
    let place = place.canonicalize()?;
    let table = MountTable::own()?;
    let shown = table.entries().iter().rev().find(|entry| entry.target == place);
    let shown = shown.filter(|entry| entry.fs_type == "overlay");
    Ok(shown.and_then(|entry| {
        let within = entry.root.strip_prefix("/").unwrap_or(&entry.root);
        Some((layers(&entry.super_options)?, within.to_owned()))
    }))
}

/// The layers of an overlay that nobody writes to, of its options as the kernel shows them.
fn layers(options: &str) -> Option<Vec<PathBuf>> {
    if options.split(',').any(|option| option.starts_with("upperdir=")) {
        return None;
    }
    let each = options.split(',').filter_map(|option| option.strip_prefix("lowerdir+="));
    let all = options.split(',').filter_map(|option| option.strip_prefix("lowerdir="));
    let layers: Vec<PathBuf> = each.chain(all.flat_map(|list| list.split(':'))).map(PathBuf::from).collect();
    (!layers.is_empty()).then_some(layers)
}

fn is_device(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|data| {
        let kind = data.file_type();
        kind.is_char_device() || kind.is_block_device()
    })
}

impl Users {
    /// Has `mount` mount an overlay over the image's layers as the namespace sees them; they are held in `places` meanwhile.
    /// The upper layer becomes the namespace's, where it is still the host's.
    pub(crate) fn with_layers(
        &self,
        places: &Path,
        lower: &[PathBuf],
        upper: &Path,
        mount: impl FnOnce(&[PathBuf]) -> io::Result<()>,
    ) -> Result<(), EngineError> {
        let failed = |error: io::Error| EngineError::internal("mounting the root file system", &error);
        let first = self.range.first;
        if std::fs::metadata(upper).map_err(failed)?.uid() == 0 {
            std::os::unix::fs::chown(upper, Some(first), Some(first)).map_err(failed)?;
        }
        let mapped: Result<Vec<PathBuf>, EngineError> = (0..)
            .zip(lower)
            .map(|(number, layer)| self.map(layer, &places.join(format!("{number}"))))
            .collect();
        let mounted = mapped.and_then(|layers| mount(&layers).map_err(failed));
        // The overlay has its own hold on them.
        let cleared = crate::engine::clear_directory(places).map_err(failed);
        mounted.and(cleared)
    }

    /// The mounts with the host's directories and files in them replaced by ones below `places`, whose ids are mapped.
    pub(crate) fn map_mounts(&self, places: &Path, mounts: Vec<Mount>) -> Result<Vec<Mount>, EngineError> {
        crate::engine::clear_directory(places)
            .map_err(|error| EngineError::internal("clearing the mounts of the last run", &error))?;
        let map = |(number, mount): (usize, Mount)| match &mount.source {
            MountSource::Tmpfs { .. } => Ok(mount),
            MountSource::Bind(_) if mount.propagation == MountPropagation::Bidirectional => {
                Err(EngineError::invalid(format!(
                    "{}: mounts do not travel to the host from a user namespace; share them one way",
                    mount.target.display()
                )))
            }
            // A device belongs to nobody inside, and opens by its mode: its file system maps no ids.
            MountSource::Bind(source) if is_device(source) => Ok(mount),
            MountSource::Bind(source) => {
                let place = self.map(source, &places.join(number.to_string()))?;
                Ok(Mount { source: MountSource::Bind(place), ..mount })
            }
        };
        mounts.into_iter().enumerate().map(map).collect()
    }

    /// Shows `source` at `place` with its ids mapped.
    fn show(&self, source: &Path, place: &Path) -> io::Result<()> {
        match sys::users::bind_mapped(source, File::open(&self.path)?, place) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => match image_at(source)? {
                Some((layers, within)) => self.show_image(&layers, &within, place),
                None => Err(error),
            },
            shown => shown,
        }
    }

    /// Shows files of an image, whose file system maps no ids: mounted anew over its layers, each of which does.
    fn show_image(&self, layers: &[PathBuf], within: &Path, place: &Path) -> io::Result<()> {
        let own = place.with_extension("image");
        let shown = (|| {
            let mut lower = Vec::new();
            for (number, layer) in layers.iter().enumerate() {
                let mapped = own.join(number.to_string());
                std::fs::create_dir_all(&mapped)?;
                sys::users::bind_mapped(layer, File::open(&self.path)?, &mapped)?;
                lower.push(mapped);
            }
            let whole = own.join("whole");
            std::fs::create_dir(&whole)?;
            Layers { lower, upper: None }.attach_sealed(&whole)?;
            sys::mount::bind(&whole.join(within), place)
        })();
        // What is shown has its own hold on all of it.
        shown.and(crate::engine::clear_directory(&own))
    }

    fn map(&self, source: &Path, place: &Path) -> Result<PathBuf, EngineError> {
        let mapped = (|| {
            let parent = place.parent().ok_or(io::ErrorKind::InvalidInput)?;
            std::fs::create_dir_all(parent)?;
            match std::fs::metadata(source)?.is_dir() {
                true => std::fs::create_dir(place)?,
                false => drop(File::create(place)?),
            }
            self.show(source, place)
        })();
        let shown = source.display();
        mapped.map(|()| place.to_owned()).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidInput => EngineError::new(
                ErrorKind::Unsupported,
                format!("{shown}: its file system cannot show its ids as those of a user namespace: leave the volume or hostUsers: false out"),
            ),
            _ => EngineError::internal(&format!("mapping the ids of {shown}"), &error),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layers_of_what_nobody_writes_to_are_read_off_its_options() {
        let paths = |names: &[&str]| Some(names.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(layers("ro,lowerdir+=/a,lowerdir+=/b,index=off"), paths(&["/a", "/b"]));
        assert_eq!(layers("ro,lowerdir=/a:/b,xino=off"), paths(&["/a", "/b"]));
        assert_eq!(layers("rw,lowerdir+=/a,upperdir=/u,workdir=/w"), None);
        assert_eq!(layers("rw"), None);
    }
}
