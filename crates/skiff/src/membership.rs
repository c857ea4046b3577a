//! What a host keeps that has joined a cluster: where the API server is, whom it trusts, and its node's certificates.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use apiserver::pki::Issued;
use cli::instance::Instance;
use serde::{Deserialize, Serialize};

/// The facts of a membership.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Facts {
    /// `https://host:port` of the API server.
    pub(crate) server: String,
    /// The node's name, which is in its certificates.
    pub(crate) node_name: String,
}

/// The directory of a membership.
#[derive(Debug, Clone)]
pub(crate) struct Membership {
    dir: PathBuf,
    /// Its facts.
    pub(crate) facts: Facts,
}

/// Which of the node's certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Certificate {
    /// With which it speaks to the API server.
    Client,
    /// Which its server shows.
    Serving,
}

impl Certificate {
    fn file(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Serving => "serving",
        }
    }
}

impl Membership {
    fn dir_of(instance: &Instance) -> PathBuf {
        instance.data_dir.join("join")
    }

    /// The membership of this host; `None` if it has joined nothing. The facts are written last, so that a membership
    /// which was interrupted is none.
    pub(crate) fn load(instance: &Instance) -> Result<Option<Self>> {
        let dir = Self::dir_of(instance);
        let path = dir.join("membership.json");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        let facts = serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))?;
        Ok(Some(Self { dir, facts }))
    }

    /// Writes a new membership.
    pub(crate) fn create(instance: &Instance, facts: Facts, ca_pem: &str, client: &Issued) -> Result<()> {
        let dir = Self::dir_of(instance);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .with_context(|| format!("create {}", dir.display()))?;
        let membership = Self { dir, facts };
        membership.keep_ca(ca_pem)?;
        membership.keep(Certificate::Client, client)?;
        membership.keep_facts(&membership.facts)
    }

    /// Keeps another address of the API server.
    pub(crate) fn set_server(&mut self, server: &str) -> Result<()> {
        let facts = Facts { server: server.to_owned(), ..self.facts.clone() };
        self.keep_facts(&facts)?;
        self.facts = facts;
        Ok(())
    }

    fn keep_facts(&self, facts: &Facts) -> Result<()> {
        write(&self.dir.join("membership.json"), &serde_json::to_string_pretty(facts)?)
    }

    /// The cluster's certificate authority, PEM.
    pub(crate) fn ca_pem(&self) -> Result<String> {
        read(&self.dir.join("ca.crt"))
    }

    /// Keeps the authority's certificate.
    pub(crate) fn keep_ca(&self, ca_pem: &str) -> Result<()> {
        write(&self.dir.join("ca.crt"), ca_pem)
    }

    /// A certificate of the node; `None` if it has none yet.
    pub(crate) fn certificate(&self, which: Certificate) -> Result<Option<Issued>> {
        let path = self.dir.join(which.file()).with_extension("pem");
        if !path.exists() {
            return Ok(None);
        }
        // Certificate and key are one file: they are replaced together or not at all.
        let text = read(&path)?;
        let at = text.find(KEY).with_context(|| format!("{} holds no key", path.display()))?;
        let (cert_pem, key_pem) = text.split_at(at);
        let issued = Issued::from_pem(cert_pem.to_owned(), key_pem.to_owned())
            .with_context(|| format!("read {}", path.display()))?;
        Ok(Some(issued))
    }

    /// Keeps a certificate of the node.
    pub(crate) fn keep(&self, which: Certificate, issued: &Issued) -> Result<()> {
        let path = self.dir.join(which.file()).with_extension("pem");
        write(&path, &format!("{}{}", issued.cert_pem, issued.key_pem))
    }
}

const KEY: &str = "-----BEGIN PRIVATE KEY-----";

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

/// Replaces a file that only its owner may read, whole or not at all.
fn write(path: &Path, text: &str) -> Result<()> {
    sys::files::write_durable(path, text.as_bytes()).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;

    use apiserver::pki::{LEAF_LIFE, Pki};

    use super::*;

    #[test]
    fn a_membership_is_kept_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let instance = Instance { name: "t".into(), data_dir: path("data"), run_dir: path("run") };
        assert!(Membership::load(&instance).unwrap().is_none());
        let clock = Arc::new(base::clock::SystemClock);
        let pki = Pki::open(&path("pki"), clock, Vec::new(), []).unwrap();
        let client = pki.issue_client("system:node:n2", &["system:nodes"], LEAF_LIFE).unwrap();
        let facts = Facts { server: "https://192.0.2.1:6443".into(), node_name: "n2".into() };
        Membership::create(&instance, facts.clone(), &pki.ca_pem(), &client).unwrap();
        let loaded = Membership::load(&instance).unwrap().unwrap();
        assert_eq!(loaded.facts, facts);
        assert_eq!(loaded.ca_pem().unwrap(), pki.ca_pem());
        assert!(loaded.certificate(Certificate::Serving).unwrap().is_none());
        let kept = loaded.certificate(Certificate::Client).unwrap().unwrap();
        assert_eq!((kept.cert_pem, kept.key_pem), (client.cert_pem, client.key_pem));
        let mut moved = loaded.clone();
        moved.set_server("https://192.0.2.7:6443").unwrap();
        let again = Membership::load(&instance).unwrap().unwrap().facts;
        assert_eq!((again.server.as_str(), again.node_name), ("https://192.0.2.7:6443", facts.node_name));
        for entry in fs::read_dir(path("data/join")).unwrap() {
            assert_eq!(entry.unwrap().metadata().unwrap().permissions().mode() & 0o077, 0);
        }
    }
}
