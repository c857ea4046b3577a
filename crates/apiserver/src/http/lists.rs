//! Lists as bodies: item by item as the client takes them, so that a list costs no memory of its own.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use api::connect::Body;
use api::protobuf::Items;
use api::schema::Schema;
use api::{Object, Status};
use base::BoxError;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::stream;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};

use super::pretty::Indent;
use crate::words::{Kind, write_metadata};

/// How much is written at once.
const CHUNK_BYTES: usize = 64 * 1024;
/// How many items are looked at to know how much will be written at once.
const CHUNK_ITEMS: usize = 128;
/// Of lists whose length has to be known before so much is held, all together; what finds no place is encoded twice.
const HELD_BYTES_MAX: usize = 64 * 1024 * 1024;
/// One list holds so much at most.
const LIST_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How much is held.
static HELD: AtomicUsize = AtomicUsize::new(0);

/// The items of a list, encoded, and the room that was taken for them.
struct Held {
    bytes: Vec<u8>,
    room: usize,
}

impl Held {
    /// Takes room, if there is some.
    fn take(room: usize) -> Option<Self> {
        let held = Self { bytes: Vec::new(), room };
        let before = HELD.fetch_add(room, Ordering::Relaxed);
        // Dropped, it gives the room back.
        (room <= LIST_BYTES_MAX && before + room <= HELD_BYTES_MAX).then_some(held)
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        HELD.fetch_sub(self.room, Ordering::Relaxed);
    }
}

/// How an item is written.
#[derive(Clone)]
pub(super) enum Write {
    /// Its JSON.
    Json,
    /// JSON of its `PartialObjectMetadata`, of an `apiVersion`.
    Metadata(&'static str),
    /// Its message.
    Protobuf(Arc<Kind>),
    /// The message of its `PartialObjectMetadata`.
    ProtobufMetadata,
}

impl Write {
    fn item(&self, object: &Object, out: &mut Vec<u8>) -> Result<(), Status> {
        match self {
            Self::Json => out.extend_from_slice(object.bytes()),
            Self::Metadata(version) => write_metadata(object, version, out)?,
            Self::Protobuf(_) | Self::ProtobufMetadata => self.items().item(object.bytes(), out)?,
        }
        Ok(())
    }

    /// How a list's message holds items.
    pub(super) fn items(&self) -> Items<'_> {
        match self {
            Self::Protobuf(kind) => Items::Whole(kind.typed()),
            _ => Items::Metadata(Schema::builtin()),
        }
    }

    fn separates(&self) -> bool {
        matches!(self, Self::Json | Self::Metadata(_))
    }
}

/// A list that is being written.
pub(super) struct Listing {
    pub(super) head: Vec<u8>,
    /// Items that are written already; they come before the others.
    pub(super) held: Option<Bytes>,
    pub(super) items: std::vec::IntoIter<Arc<Object>>,
    pub(super) write: Write,
    pub(super) tail: Vec<u8>,
}

impl Listing {
    /// The next piece; `None`: it was the last.
    fn piece(&mut self) -> Result<Option<Bytes>, Status> {
        let mut out = std::mem::take(&mut self.head);
        if !out.is_empty() && self.held.is_some() {
            return Ok(Some(out.into()));
        }
        if let Some(held) = self.held.take() {
            return Ok(Some(held));
        }
        if self.items.len() > 1 && out.len() < CHUNK_BYTES {
            let next = self.items.as_slice().iter().take(CHUNK_ITEMS);
            let size: usize = next.map(|item| item.bytes().len()).sum();
            out.reserve(size.min(CHUNK_BYTES + CHUNK_BYTES / 8));
        }
        while out.len() < CHUNK_BYTES {
            let Some(object) = self.items.next() else {
                out.append(&mut self.tail);
                break;
            };
            self.write.item(&object, &mut out)?;
            if self.write.separates() && !self.items.as_slice().is_empty() {
                out.push(b',');
            }
        }
        Ok((!out.is_empty()).then(|| out.into()))
    }

    /// The list at once, if it has at most so many bytes.
    pub(super) fn whole(&mut self, bytes_max: usize) -> Result<Option<Bytes>, Status> {
        if self.held.as_ref().is_some_and(|held| held.len() > bytes_max) {
            return Ok(None);
        }
        let mut out = Vec::new();
        while out.len() <= bytes_max {
            match self.piece()? {
                Some(piece) => out.extend_from_slice(&piece),
                None => return Ok(Some(out.into())),
            }
        }
        self.head = out;
        Ok(None)
    }

    /// The list as it is taken.
    pub(super) fn body(self, pretty: bool, gzip: bool) -> Body {
        let flow = Flow {
            listing: self,
            indent: pretty.then(Indent::default),
            gzip: gzip.then(|| GzEncoder::new(Vec::new(), Compression::fast())),
            over: false,
        };
        let pieces = stream::unfold(flow, |mut flow| async move {
            let piece = flow.next().transpose()?;
            Some((piece.map(Frame::data), flow))
        });
        StreamBody::new(pieces).boxed_unsync()
    }
}

/// A list on its way out.
struct Flow {
    listing: Listing,
    indent: Option<Indent>,
    gzip: Option<GzEncoder<Vec<u8>>>,
    over: bool,
}

impl Flow {
    fn next(&mut self) -> Result<Option<Bytes>, BoxError> {
        while !self.over {
            let Some(mut piece) = self.listing.piece()? else {
                self.over = true;
                return Ok(self.gzip.take().map(GzEncoder::finish).transpose()?.map(Bytes::from));
            };
            if let Some(indent) = &mut self.indent {
                piece = indent.piece(&piece).into();
            }
            let Some(gzip) = &mut self.gzip else { return Ok(Some(piece)) };
            gzip.write_all(&piece)?;
            let packed = std::mem::take(gzip.get_mut());
            if !packed.is_empty() {
                return Ok(Some(packed.into()));
            }
        }
        Ok(None)
    }
}

/// The items of a protobuf list, encoded, or how long they are if there is no room for them. The length has to stand before
/// them: what is not held is encoded a second time.
pub(super) async fn measured(items: &[Arc<Object>], write: &Write) -> Result<(usize, Option<Bytes>), Status> {
    // A message is no longer than its JSON, but for odd ones.
    let mut held = Held::take(items.iter().map(|item| item.bytes().len()).sum());
    let (mut all, mut item, mut told) = (0, Vec::new(), 0);
    for object in items {
        let out = held.as_mut().map_or(&mut item, |held| &mut held.bytes);
        let before = out.len();
        write.item(object, out)?;
        all += out.len() - before;
        item.clear();
        // Others get their turn while a long list is measured.
        if all / CHUNK_BYTES != told {
            told = all / CHUNK_BYTES;
            tokio::task::yield_now().await;
        }
    }
    Ok((all, held.map(Bytes::from_owner)))
}
