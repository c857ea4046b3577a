//! The sign by which a directory is known as an instance's: a file in it that says whose it is, where the instance's
//! other directory lies, and which kubeconfigs hold its context.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What an instance says of itself in each of its directories.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// The instance's name.
    pub name: String,
    /// Its data directory.
    pub data_dir: PathBuf,
    /// Its run directory.
    pub run_dir: PathBuf,
    /// The kubeconfigs that its context was ever merged into.
    #[serde(default)]
    pub kubeconfigs: BTreeSet<PathBuf>,
}

impl Claim {
    /// The file's name.
    pub const FILE: &'static str = "skiff-instance";

    /// The claim in a directory; `None` where there is none, or no directory.
    ///
    /// # Errors
    /// If the file cannot be read, or says something else (`InvalidData`).
    pub fn read(directory: &Path) -> io::Result<Option<Self>> {
        match std::fs::read(directory.join(Self::FILE)) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The claim of the instance `name` in a directory, as far as this user may see it.
    pub(crate) fn seen(directory: &Path, name: &str) -> Option<Self> {
        Self::read(directory).ok().flatten().filter(|claim| claim.name == name)
    }
}
