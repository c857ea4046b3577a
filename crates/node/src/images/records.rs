//! Which images the node has pulled, and with whose credentials: an image that was pulled with a secret is not run by a pod
//! that does not have it. Kept on disk as upstream keeps it.
//! Source: KEP-2535, `pkg/kubelet/images/pullmanager` and `ImagePulledRecord` of `kubelet.config.k8s.io/v1beta1`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use engine_api::RegistryAuth;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
const OLDER_API_VERSION: &str = "kubelet.config.k8s.io/v1alpha1";
/// No record is larger.
const RECORD_BYTES_MAX: u64 = 1024 * 1024;
/// Whoever is found to match is noted, up to so many: upstream's bound on what the turnover of namespaces writes.
const SECRETS_MAX: usize = 100;

/// Where credentials come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// A Secret of the pod's.
    Secret(SecretSource),
    /// What a credential provider gave for the pod's ServiceAccount.
    ServiceAccount(AccountSource),
    /// The node: every pod has them.
    Node,
}

/// Credentials, and whence they come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tracked {
    pub(crate) auth: RegistryAuth,
    pub(crate) source: Source,
}

/// A Secret, and what its credentials are the hash of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SecretSource {
    pub(crate) uid: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) credential_hash: String,
}

impl SecretSource {
    fn is_same_object(&self, other: &Self) -> bool {
        (&self.uid, &self.namespace, &self.name) == (&other.uid, &other.namespace, &other.name)
    }
}

/// A ServiceAccount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AccountSource {
    pub(crate) uid: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// The hash by which credentials are known again.
pub(super) fn hash(auth: &RegistryAuth) -> String {
    #[derive(Serialize)]
    struct AuthConfig<'a> {
        #[serde(skip_serializing_if = "str::is_empty")]
        username: &'a str,
        #[serde(skip_serializing_if = "str::is_empty")]
        password: &'a str,
    }
    let config = AuthConfig { username: &auth.username, password: &auth.password };
    let bytes = serde_json::to_vec(&config).unwrap_or_default();
    format!("{:x}", Sha256::digest(bytes))
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PulledRecord {
    kind: String,
    api_version: String,
    last_updated_time: Timestamp,
    image_ref: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    credential_mapping: BTreeMap<String, Access>,
}

/// Who may use an image under one name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Access {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kubernetes_secrets: Vec<SecretSource>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kubernetes_service_accounts: Vec<AccountSource>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    node_pods_accessible: bool,
}

impl Access {
    /// Adds who has shown credentials. What everybody may have had stays everybody's.
    fn add(&mut self, source: &Source) {
        match source {
            _ if self.node_pods_accessible => {}
            Source::Node => *self = Self { node_pods_accessible: true, ..Self::default() },
            Source::Secret(secret) => {
                self.kubernetes_secrets.retain(|known| !known.is_same_object(secret));
                // The oldest one goes: whoever has it is asked for it again.
                let surplus = (self.kubernetes_secrets.len() + 1).saturating_sub(SECRETS_MAX);
                self.kubernetes_secrets.drain(..surplus);
                self.kubernetes_secrets.push(secret.clone());
            }
            Source::ServiceAccount(account) => {
                self.kubernetes_service_accounts.retain(|known| known != account);
                let surplus = (self.kubernetes_service_accounts.len() + 1).saturating_sub(SECRETS_MAX);
                self.kubernetes_service_accounts.drain(..surplus);
                self.kubernetes_service_accounts.push(account.clone());
            }
        }
    }

    /// Whether any of a pod's credentials is known.
    fn knows(&self, sources: &[Source]) -> Option<Source> {
        let known = |source: &&Source| match source {
            Source::Secret(secret) => self.kubernetes_secrets.iter().any(|known| {
                let same =
                    !known.credential_hash.is_empty() && known.credential_hash == secret.credential_hash;
                same || known.is_same_object(secret)
            }),
            Source::ServiceAccount(account) => self.kubernetes_service_accounts.contains(account),
            Source::Node => false,
        };
        sources.iter().find(known).cloned()
    }
}

/// What is known of the way by which an image came here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Known {
    /// The node has not pulled it.
    Preloaded,
    /// The node has pulled it, and any pod may use it.
    Open,
    /// The node has pulled it; who has one of some credentials may use it, and maybe nobody.
    Guarded,
}

/// The directory of records. Its methods block.
pub(super) struct Records {
    pulling: PathBuf,
    pulled: PathBuf,
    /// Records are read and written back under this.
    changing: Mutex<()>,
}

impl Records {
    /// Below the node's directory.
    pub(super) fn new(node: &Path) -> Self {
        let root = node.join("image_manager");
        Self { pulling: root.join("pulling"), pulled: root.join("pulled"), changing: Mutex::new(()) }
    }

    /// Notes that an image is about to be pulled, before it is: an image whose pull is not told of in the end is one that
    /// the node has pulled all the same. Whether that had been noted before.
    pub(super) fn intend(&self, image: &str) -> io::Result<bool> {
        std::fs::create_dir_all(&self.pulling)?;
        let path = file(&self.pulling, image);
        let before = path.try_exists()?;
        if !before {
            let intent = Intent { kind: "ImagePullIntent", api_version: API_VERSION, image };
            sys::files::write_atomic(&path, &serde_json::to_vec(&intent)?)?;
        }
        Ok(before)
    }

    /// The pull of an image has failed, and left nothing.
    pub(super) fn failed(&self, image: &str) -> io::Result<()> {
        gone(std::fs::remove_file(file(&self.pulling, image)))
    }

    /// An image has been pulled with these credentials.
    pub(super) fn pulled(&self, image: &str, id: &str, source: &Source, now: Timestamp) -> io::Result<()> {
        self.change(image, id, Some(source), now)?;
        self.failed(image)
    }

    /// What is known of an image under a name.
    pub(super) fn known(&self, image: &str, id: &str) -> io::Result<Known> {
        let _alone = self.changing.lock();
        let Some(record) = self.read(id)? else {
            let pulling = file(&self.pulling, image).try_exists()?;
            return Ok(if pulling { Known::Guarded } else { Known::Preloaded });
        };
        let access = record.credential_mapping.get(untagged(image));
        Ok(if access.is_some_and(|access| access.node_pods_accessible) {
            Known::Open
        } else {
            Known::Guarded
        })
    }

    /// Whether an image was pulled with credentials that a pod has. What is found is noted under all that it is known by now:
    /// the Secret under its new password, or the other Secret with the same one.
    pub(super) fn admits(
        &self,
        image: &str,
        id: &str,
        sources: &[Source],
        now: Timestamp,
    ) -> io::Result<bool> {
        let found = {
            let _alone = self.changing.lock();
            let record = self.read(id)?;
            let access = record.and_then(|mut record| record.credential_mapping.remove(untagged(image)));
            access.and_then(|access| access.knows(sources))
        };
        let Some(source) = found else { return Ok(false) };
        self.change(image, id, Some(&source), now)?;
        Ok(true)
    }

    /// The names of images whose pull was noted so long ago and not told the end of.
    pub(super) fn intents(&self, age: Duration) -> io::Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Noted {
            image: String,
        }
        let mut noted = Vec::new();
        for path in files(&self.pulling)? {
            let modified = std::fs::metadata(&path)?.modified()?;
            let old = SystemTime::now().duration_since(modified).unwrap_or_default() >= age;
            if let (true, Ok(Noted { image })) = (old, serde_json::from_slice(&read_bounded(&path)?)) {
                noted.push(image);
            }
        }
        Ok(noted)
    }

    /// What was being pulled is here: the node has pulled it, and nobody knows with whose credentials.
    pub(super) fn recovered(&self, image: &str, id: &str, now: Timestamp) -> io::Result<()> {
        self.change(image, id, None, now)?;
        self.failed(image)
    }

    /// Forgets images that are not here, but for what is newer than the list of those that are.
    pub(super) fn prune(&self, images: &BTreeSet<&str>, listed: Timestamp) -> io::Result<()> {
        let _alone = self.changing.lock();
        for path in files(&self.pulled)? {
            let record = serde_json::from_slice::<PulledRecord>(&read_bounded(&path)?);
            // One that cannot be read still says that the node pulled something: nobody knows what.
            let Ok(record) = record else { continue };
            if record.last_updated_time < listed && !images.contains(record.image_ref.as_str()) {
                gone(std::fs::remove_file(path))?;
            }
        }
        Ok(())
    }

    fn change(&self, image: &str, id: &str, source: Option<&Source>, now: Timestamp) -> io::Result<()> {
        let _alone = self.changing.lock();
        // A crash may have left half a record: the image's next pull begins a new one, as upstream's does.
        let before = self.read(id).unwrap_or_else(|error| {
            tracing::warn!(image, id, %error, "the record of an image's pulls is unreadable: a new one is begun");
            None
        });
        let mut record = before.clone().unwrap_or_else(|| PulledRecord {
            kind: "ImagePulledRecord".to_owned(),
            api_version: API_VERSION.to_owned(),
            last_updated_time: now,
            image_ref: id.to_owned(),
            credential_mapping: BTreeMap::new(),
        });
        if let Some(source) = source {
            record.credential_mapping.entry(untagged(image).to_owned()).or_default().add(source);
        }
        if before.as_ref() == Some(&record) {
            return Ok(());
        }
        record.last_updated_time = now;
        std::fs::create_dir_all(&self.pulled)?;
        sys::files::write_durable(&file(&self.pulled, id), &serde_json::to_vec(&record)?)
    }

    fn read(&self, id: &str) -> io::Result<Option<PulledRecord>> {
        let bytes = match read_bounded(&file(&self.pulled, id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes?,
        };
        let record: PulledRecord = serde_json::from_slice(&bytes)?;
        match record.api_version.as_str() {
            API_VERSION | OLDER_API_VERSION => Ok(Some(record)),
            other => Err(io::Error::new(io::ErrorKind::InvalidData, format!("a record of version {other}"))),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Intent<'a> {
    kind: &'a str,
    api_version: &'a str,
    image: &'a str,
}

/// The file of an image or a name: names have characters that no file has.
fn file(directory: &Path, of: &str) -> PathBuf {
    directory.join(format!("sha256-{:x}", Sha256::digest(of.as_bytes())))
}

fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    entries.map(|entry| entry.map(|entry| entry.path())).collect()
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    sys::files::read_bounded(std::fs::File::open(path)?, RECORD_BYTES_MAX)
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A name as it is written, without tag and digest.
pub(super) fn untagged(image: &str) -> &str {
    let name = image.split_once('@').map_or(image, |(name, _)| name);
    // A colon before the last slash is a port's.
    match name.rsplit_once(':') {
        Some((before, tag)) if !tag.contains('/') => before,
        _ => name,
    }
}

#[cfg(test)]
#[path = "records_tests.rs"]
mod tests;
