//! Encryption at rest: values of chosen resources lie in the store as `k8s:enc:PROVIDER:v1:KEY:` and what a cipher made of
//! them, bound to their key in the store. The first provider of a resource writes; all of them read, so that keys are
//! rotated by putting a new one first. Source: `apiserver/pkg/storage/value`, `server/options/encryptionconfig`.
//!
//! The file of keys is read anew whenever it changes. Without one, nothing is encrypted.

mod cipher;
mod config;
mod metrics;
mod sealed;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::remote::FileError;
use cipher::Cipher;

pub(crate) use metrics::Metrics;
pub(crate) use sealed::Sealed;

/// What every encrypted value begins with. Reserved: no stored JSON begins so.
const ENCRYPTED: &[u8] = b"k8s:enc:";
/// Where objects lie; everything else in the store is the server's own bookkeeping and stays as it is.
const OBJECTS: &str = "/registry/";
const ANY: &str = "*";

/// One key of a provider: what its values begin with, and how they are opened and closed. `cipher` is absent for
/// `identity`, which leaves values as they are.
struct Provider {
    prefix: Vec<u8>,
    cipher: Option<Cipher>,
    /// What is said of a value of this provider that was written with a key that is not there.
    unknown_key: &'static str,
}

/// The providers of each resource, the writing one first.
#[derive(Default)]
struct Providers {
    by_resource: HashMap<(String, String), Arc<Vec<Provider>>>,
}

/// A value as it was read.
#[derive(Debug, PartialEq, Eq)]
struct Opened {
    value: Bytes,
    /// Whether it would be written otherwise now: by another key, or not encrypted.
    stale: bool,
}

impl Providers {
    /// The providers of the resource that a key in the store belongs to: its own, its group's, or those of everything.
    fn of(&self, key: &[u8]) -> Option<&[Provider]> {
        let (group, resource) = resource_of(key)?;
        [(group, resource), (group, ANY), (ANY, ANY)].into_iter().find_map(|(group, resource)| {
            let found = self.by_resource.get(&(group.to_owned(), resource.to_owned()));
            found.map(|providers| providers.as_slice())
        })
    }

    /// A value as it is written now.
    fn close(&self, key: &[u8], value: Bytes) -> Result<Bytes, String> {
        let Some(Provider { prefix, cipher: Some(cipher), .. }) = self.of(key).and_then(<[_]>::first) else {
            return Ok(value);
        };
        let mut out = prefix.clone();
        cipher.close(&mut out, key, &value)?;
        Ok(out.into())
    }

    /// A value as it was before it was written. The error is the cause alone; it never holds any of the value.
    fn open(&self, key: &[u8], value: &Bytes) -> Result<Opened, String> {
        let encrypted = value.starts_with(ENCRYPTED);
        let Some(providers) = self.of(key) else {
            return if encrypted && key.starts_with(OBJECTS.as_bytes()) {
                Err("no matching prefix found".to_owned())
            } else {
                Ok(Opened { value: value.clone(), stale: false })
            };
        };
        if !encrypted {
            // Only who names `identity` reads plain values: they might have been put there past the server.
            let plain = providers.iter().position(|provider| provider.cipher.is_none());
            let place = plain.ok_or("no matching prefix found")?;
            return Ok(Opened { value: value.clone(), stale: place != 0 });
        }
        let mut cause = None;
        for (place, provider) in providers.iter().enumerate() {
            let Some(cipher) = &provider.cipher else { continue };
            let Some(closed) = value.strip_prefix(provider.prefix.as_slice()) else {
                if cause.is_none() && value.starts_with(family(&provider.prefix)) {
                    cause = Some(provider.unknown_key.to_owned());
                }
                continue;
            };
            // The same name may stand for another key further down.
            match cipher.open(key, closed) {
                Ok(opened) => return Ok(Opened { value: opened.into(), stale: place != 0 }),
                Err(why) => cause = Some(why),
            }
        }
        Err(cause.unwrap_or_else(|| "no matching prefix found".to_owned()))
    }
}

/// The part of a prefix that all keys of a provider share: `k8s:enc:aescbc:v1:`.
fn family(prefix: &[u8]) -> &[u8] {
    let colons = prefix.iter().enumerate().filter(|(_, byte)| **byte == b':');
    colons.map(|(at, _)| at + 1).nth(3).map_or(prefix, |end| &prefix[..end])
}

/// What a value's provider is called in figures: the part of its prefix that names no key. Empty where it has none, or one
/// that nobody knows: what lies in the store does not decide how many figures there are.
fn provider_of<'a>(providers: &[Provider], value: &'a [u8]) -> &'a str {
    let known =
        |provider: &Provider| provider.cipher.is_some() && value.starts_with(family(&provider.prefix));
    let known = value.starts_with(ENCRYPTED) && providers.iter().any(known);
    if known { std::str::from_utf8(family(value)).unwrap_or_default() } else { "" }
}

/// Group and resource of a key in the store; the group of `core` is empty.
fn resource_of(key: &[u8]) -> Option<(&str, &str)> {
    let mut parts = std::str::from_utf8(key).ok()?.strip_prefix(OBJECTS)?.split('/');
    let (group, resource) = (parts.next()?, parts.next()?);
    parts.next()?;
    Some((if group == "core" { "" } else { group }, resource))
}

/// The keys as the file has them now.
pub(crate) struct Keys {
    path: PathBuf,
    now: RwLock<Now>,
    /// How often they became others.
    changes: watch::Sender<u64>,
}

struct Now {
    /// Of the file's text, so that the text, which holds keys, need not be kept.
    digest: [u8; 32],
    providers: Arc<Providers>,
}

impl Keys {
    /// Reads a file of keys.
    pub(crate) fn load(path: &Path) -> Result<Self, FileError> {
        let text = std::fs::read(path).map_err(|error| FileError::new(path, error))?;
        let now = RwLock::new(read(path, &text)?);
        Ok(Self { path: path.to_owned(), now, changes: watch::Sender::new(0) })
    }

    /// Tells when other keys are in use.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn providers(&self) -> Arc<Providers> {
        self.now.read().providers.clone()
    }

    /// Reads the file again whenever it changes. A file that cannot be used leaves the keys as they are.
    pub(crate) async fn follow(self: Arc<Self>) {
        crate::watched::follow(&self.path, || match self.reload() {
            Ok(true) => tracing::info!(path = %self.path.display(), "encryption keys read anew"),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "encryption keys stay as they were"),
        })
        .await;
    }

    /// Whether there was something new.
    fn reload(&self) -> Result<bool, FileError> {
        let text = std::fs::read(&self.path).map_err(|error| FileError::new(&self.path, error))?;
        if digest(&text) == self.now.read().digest {
            return Ok(false);
        }
        let now = read(&self.path, &text)?;
        *self.now.write() = now;
        self.changes.send_modify(|count| *count += 1);
        Ok(true)
    }
}

fn digest(text: &[u8]) -> [u8; 32] {
    Sha256::digest(text).into()
}

fn read(path: &Path, text: &[u8]) -> Result<Now, FileError> {
    let providers = config::parse(text).map_err(|cause| FileError::new(path, cause))?;
    Ok(Now { digest: digest(text), providers: Arc::new(providers) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const TWO: &str = "AQECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const KEY: &[u8] = b"/registry/core/secrets/default/a";

    fn providers(list: &str) -> Providers {
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n\
             resources: [{{resources: [secrets], providers: [{list}]}}]"
        );
        config::parse(text.as_bytes()).unwrap()
    }

    fn keys(provider: &str, keys: &[(&str, &str)]) -> String {
        let keys: Vec<String> =
            keys.iter().map(|(name, secret)| format!("{{name: {name}, secret: {secret}}}")).collect();
        format!("{{{provider}: {{keys: [{}]}}}}", keys.join(","))
    }

    #[test]
    fn every_provider_reads_what_it_wrote_and_says_who_wrote_it() {
        for provider in ["aesgcm", "aescbc", "secretbox"] {
            let with = providers(&keys(provider, &[("one", ONE)]));
            for value in [&b"{}"[..], b"", &[7; 4096]] {
                let closed = with.close(KEY, Bytes::copy_from_slice(value)).unwrap();
                assert!(closed.starts_with(format!("k8s:enc:{provider}:v1:one:").as_bytes()));
                assert!(
                    value.len() < 16
                        || !closed.windows(16).any(|part| value.windows(16).any(|own| own == part))
                );
                let opened = with.open(KEY, &closed).unwrap();
                assert_eq!((&opened.value[..], opened.stale), (value, false), "{provider}");
                assert_ne!(with.close(KEY, Bytes::copy_from_slice(value)).unwrap(), closed, "nonces differ");
            }
        }
    }

    #[test]
    fn keys_rotate_and_values_of_old_ones_are_stale() {
        let value = Bytes::from_static(b"{\"a\":1}");
        let before = providers(&keys("aescbc", &[("one", ONE)]));
        let old = before.close(KEY, value.clone()).unwrap();
        let both = providers(&keys("aescbc", &[("two", TWO), ("one", ONE)]));
        assert_eq!(both.open(KEY, &old), Ok(Opened { value: value.clone(), stale: true }));
        let new = both.close(KEY, value.clone()).unwrap();
        assert!(new.starts_with(b"k8s:enc:aescbc:v1:two:"));
        assert!(before.open(KEY, &new).unwrap_err().contains("no matching key was found"));
        // Another provider before it, and plain values from before.
        let mixed =
            providers(&format!("{},{}", keys("secretbox", &[("s", ONE)]), keys("aescbc", &[("one", ONE)])));
        assert!(mixed.open(KEY, &old).unwrap().stale);
        assert_eq!(mixed.open(KEY, &value).unwrap_err(), "no matching prefix found");
        let from_plain = providers(&format!("{},{{identity: {{}}}}", keys("aescbc", &[("one", ONE)])));
        assert!(from_plain.open(KEY, &value).unwrap().stale);
        // Away from encryption.
        let away = providers(&format!("{{identity: {{}}}},{}", keys("aescbc", &[("one", ONE)])));
        assert!(away.open(KEY, &old).unwrap().stale && !away.open(KEY, &value).unwrap().stale);
        assert_eq!(away.close(KEY, value.clone()).unwrap(), value);
        assert!(providers("{identity: {}}").open(KEY, &old).is_err());
    }

    #[test]
    fn a_wrong_key_and_a_value_from_elsewhere_are_refused() {
        let value = Bytes::from_static(b"{\"a\":1}");
        for provider in ["aesgcm", "secretbox"] {
            let closed = providers(&keys(provider, &[("one", ONE)])).close(KEY, value.clone()).unwrap();
            let wrong = providers(&keys(provider, &[("one", TWO)]));
            assert!(wrong.open(KEY, &closed).is_err(), "{provider}");
            for short in 0..closed.len() {
                let cut = closed.slice(..short);
                // What is cut before its own prefix ends is no encrypted value.
                if cut.starts_with(ENCRYPTED) {
                    assert!(providers(&keys(provider, &[("one", ONE)])).open(KEY, &cut).is_err());
                }
            }
        }
        // The place belongs to the value.
        let gcm = providers(&keys("aesgcm", &[("one", ONE)]));
        let closed = gcm.close(KEY, value).unwrap();
        assert!(gcm.open(b"/registry/core/secrets/default/b", &closed).is_err());
        assert!(gcm.open(b"/registry/core/configmaps/default/b", &closed).is_err());
        assert!(gcm.open(b"/skiff/peers/a", &closed).is_ok());
    }
}
