//! Content digests (`sha256:…`) and readers and writers that compute them on the way.

use std::fmt;
use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::Error;

/// A verified-form SHA-256 digest: `sha256:` and 64 lower-case hexadecimal digits. The form makes it safe as a file
/// name. Source: OCI image specification, "Digests".
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// Parses `sha256:<hex>`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let hex = text
            .strip_prefix("sha256:")
            .ok_or_else(|| Error::Reference(text.to_owned(), "only sha256 digests are supported"))?;
        if !is_hex64(hex) {
            return Err(Error::Reference(text.to_owned(), "a digest has 64 lower-case hexadecimal digits"));
        }
        Ok(Self(text.to_owned()))
    }

    /// The digest of bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self::from_hash(Sha256::new_with_prefix(bytes))
    }

    pub(crate) fn from_hash(hash: Sha256) -> Self {
        Self(format!("sha256:{:x}", hash.finalize()))
    }

    /// The 64 hexadecimal digits.
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }

    /// With its algorithm.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether text has the form of a full hexadecimal id.
pub(crate) fn is_hex64(text: &str) -> bool {
    text.len() == 64 && is_hex(text)
}

/// Whether text has lower-case hexadecimal digits only.
pub(crate) fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        Self::parse(&text)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

/// Hashes what is read through it.
pub(crate) struct HashReader<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> HashReader<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, hash: Sha256::new() }
    }

    /// Reads what is left (an archive's reader stops at its end mark) and tells the digest of everything.
    pub(crate) fn finish(mut self) -> io::Result<Digest> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(Digest::from_hash(self.hash))
    }
}

impl<R: Read> Read for HashReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}

/// Hashes and counts what is written through it.
pub(crate) struct HashWriter<W> {
    inner: W,
    hash: Sha256,
    written: u64,
}

impl<W: Write> HashWriter<W> {
    pub(crate) fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), written: 0 }
    }

    /// The inner writer, the digest and the number of bytes.
    pub(crate) fn finish(self) -> (W, Digest, u64) {
        (self.inner, Digest::from_hash(self.hash), self.written)
    }
}

impl<W: Write> Write for HashWriter<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.hash.update(&buffer[..written]);
        self.written += written as u64;
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// The chain id of each prefix of a list of layers. Source: OCI image specification, "Layer ChainID".
pub(crate) fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let next = match chain.last() {
            None => diff_id.clone(),
            Some(parent) => Digest::of(format!("{parent} {diff_id}").as_bytes()),
        };
        chain.push(next);
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_form_is_a_digest() {
        let good = Digest::of(b"");
        assert_eq!(good.hex(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(Digest::parse(good.as_str()).unwrap(), good);
        for bad in ["", "sha256:", "sha256:../../etc/passwd", "sha512:00", &good.as_str().to_uppercase()] {
            assert!(Digest::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_chain_starts_with_the_first_layer_itself() {
        let layers = [Digest::of(b"a"), Digest::of(b"b")];
        let chain = chain_ids(&layers);
        assert_eq!(chain[0], layers[0]);
        assert_eq!(chain[1], Digest::of(format!("{} {}", layers[0], layers[1]).as_bytes()));
    }

    #[test]
    fn readers_and_writers_agree() {
        let mut writer = HashWriter::new(Vec::new());
        writer.write_all(b"hello").unwrap();
        let (bytes, digest, written) = writer.finish();
        assert_eq!((written, &digest), (5, &Digest::of(b"hello")));
        assert_eq!(HashReader::new(&bytes[..]).finish().unwrap(), digest);
    }
}
