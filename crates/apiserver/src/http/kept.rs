//! Documents that are made once and kept until what they are made of has changed: OpenAPI is megabytes and takes a core
//! for a good part of a second. They are kept packed, as most clients take them. Source: `k8s.io/kube-openapi/pkg/cached`.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::sync::{Arc, Weak};

use api::Status;
use api::catalog::Catalog;
use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde_json::Value;
use sha2::{Digest, Sha512};
use tokio::sync::Mutex;

use super::body::COMPRESS_BYTES_MIN;
use crate::aggregation::{Remotes, Stamp};
use crate::lengthy;

/// A document as it is sent.
pub(super) struct Document {
    bytes: Bytes,
    packed: bool,
    /// The digest of the plain bytes, in quotation marks. Source: `sha512.Sum512` in `kube-openapi` and `etag.go`.
    pub(super) etag: String,
}

impl Document {
    /// A tree as JSON; it is packed as it is written, so that its text never stands in memory whole.
    pub(super) fn json(value: &Value) -> Result<Self, Status> {
        Self::written(|out| serde_json::to_writer(out, value).map_err(io::Error::from))
    }

    /// Bytes as they are.
    pub(super) fn plain(bytes: &[u8]) -> Result<Self, Status> {
        Self::written(|out| out.write_all(bytes))
    }

    /// The same under the tag of another.
    pub(super) fn with_tag_of(self, other: &Self) -> Self {
        Self { etag: other.etag.clone(), ..self }
    }

    fn written(write: impl FnOnce(&mut Packer) -> io::Result<()>) -> Result<Self, Status> {
        let mut packer = Packer {
            digest: Sha512::new(),
            packed: GzEncoder::new(Vec::new(), Compression::fast()),
            length: 0,
        };
        let packed = write(&mut packer).and_then(|()| packer.packed.finish());
        let packed =
            packed.map_err(|error| Status::internal(format!("a document is not written: {error}")))?;
        let etag = tag(&packer.digest.finalize());
        let document = Self { bytes: packed.into(), packed: true, etag };
        if packer.length > COMPRESS_BYTES_MIN {
            return Ok(document);
        }
        let bytes = document.unpacked()?;
        Ok(Self { bytes, packed: false, ..document })
    }

    /// What is sent to a client that takes gzip or does not, and whether it is packed.
    pub(super) fn sent(&self, gzip: bool) -> Result<(Bytes, bool), Status> {
        if gzip || !self.packed {
            Ok((self.bytes.clone(), self.packed))
        } else {
            Ok((self.unpacked()?, false))
        }
    }

    fn unpacked(&self) -> Result<Bytes, Status> {
        let mut plain = Vec::new();
        let read = GzDecoder::new(&self.bytes[..]).read_to_end(&mut plain);
        read.map_err(|error| Status::internal(format!("a document is not unpacked: {error}")))?;
        Ok(plain.into())
    }
}

/// A digest as an entity tag.
pub(super) fn tag(digest: &[u8]) -> String {
    let digest: String = digest.iter().map(|byte| format!("{byte:02X}")).collect();
    format!("\"{digest}\"")
}

/// Packs what is written, and takes its digest and length.
struct Packer {
    digest: Sha512,
    packed: GzEncoder<Vec<u8>>,
    length: usize,
}

impl Write for Packer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.packed.write_all(bytes)?;
        self.digest.update(bytes);
        self.length += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What documents are made of, without keeping it.
#[derive(Default)]
struct MadeOf {
    catalog: Weak<Catalog>,
    remotes: Vec<Stamp>,
}

impl MadeOf {
    fn is(&self, other: &Self) -> bool {
        self.catalog.ptr_eq(&other.catalog) && self.remotes == other.remotes
    }
}

/// Documents by name.
#[derive(Default)]
pub(crate) struct Kept(Mutex<(MadeOf, HashMap<String, Arc<Document>>)>);

impl Kept {
    /// A document by its name, if there is one of that name; where none is kept, `make` makes it, and others of the same
    /// work. Whoever asks meanwhile waits for the same one.
    pub(super) async fn find(
        &self,
        (catalog, remotes): (&Arc<Catalog>, &Remotes),
        name: &str,
        make: impl FnOnce() -> Result<Vec<(String, Document)>, Status>,
    ) -> Result<Option<Arc<Document>>, Status> {
        let present = MadeOf { catalog: Arc::downgrade(catalog), remotes: remotes.stamps() };
        let mut kept = self.0.lock().await;
        if !kept.0.is(&present) {
            *kept = (present, HashMap::new());
        }
        if !kept.1.contains_key(name) {
            let made = lengthy::run(make)?;
            kept.1.extend(made.into_iter().map(|(name, document)| (name, Arc::new(document))));
        }
        Ok(kept.1.get(name).cloned())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn a_document_is_made_once_for_what_it_is_made_of() {
        let (kept, remotes) = (Kept::default(), Remotes::default());
        let mut catalog = Arc::new(Catalog::builtin());
        let mut made = 0;
        for expected in [1, 1, 2] {
            if expected == 2 {
                // As the table of a server is changed.
                let row = catalog.rows().next().unwrap().as_ref().clone();
                Arc::make_mut(&mut catalog).insert(row);
            }
            let find = kept.find((&catalog, &remotes), "a", || {
                made += 1;
                Ok(vec![("a".to_owned(), Document::json(&json!({ "made": made }))?)])
            });
            let (bytes, packed) = find.await.unwrap().unwrap().sent(true).unwrap();
            assert_eq!((&bytes[..], packed), (format!("{{\"made\":{expected}}}").as_bytes(), false));
        }
        let none = kept.find((&catalog, &remotes), "b", || Ok(Vec::new())).await;
        assert!(none.unwrap().is_none());
    }

    #[test]
    fn large_documents_are_kept_packed_and_sent_as_clients_take_them() {
        let text = "a".repeat(COMPRESS_BYTES_MIN + 1);
        let document = Document::plain(text.as_bytes()).unwrap();
        let (packed, is_packed) = document.sent(true).unwrap();
        assert!(is_packed && packed.len() < text.len() / 10);
        assert_eq!(document.sent(false).unwrap(), (Bytes::from(text.clone()), false));
        assert_eq!(document.etag, tag(&Sha512::digest(text)));
    }
}
