//! Lists as bodies: item by item as the client takes them, so that a list costs no memory of its own.

use std::io::Write as _;
use std::sync::Arc;

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
/// Lists up to this size are held whole where their length has to be known before.
const HELD_BYTES_MAX: usize = 16 * 1024 * 1024;

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
    pub(super) items: std::vec::IntoIter<Arc<Object>>,
    pub(super) write: Write,
    pub(super) tail: Vec<u8>,
}

impl Listing {
    /// The next piece; `None`: it was the last.
    fn piece(&mut self) -> Result<Option<Vec<u8>>, Status> {
        let mut out = std::mem::take(&mut self.head);
        out.reserve(CHUNK_BYTES + CHUNK_BYTES / 8);
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
        Ok((!out.is_empty()).then_some(out))
    }

    /// The list at once, if it has at most so many bytes.
    pub(super) fn whole(&mut self, bytes_max: usize) -> Result<Option<Bytes>, Status> {
        let mut out = Vec::new();
        while out.len() <= bytes_max {
            match self.piece()? {
                Some(mut piece) => out.append(&mut piece),
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
                piece = indent.piece(&piece);
            }
            let Some(gzip) = &mut self.gzip else { return Ok(Some(piece.into())) };
            gzip.write_all(&piece)?;
            let packed = std::mem::take(gzip.get_mut());
            if !packed.is_empty() {
                return Ok(Some(packed.into()));
            }
        }
        Ok(None)
    }
}

/// The items of a protobuf list, encoded, or how long they are if they are too long to be held. The length has to stand
/// before them: what is not held is encoded a second time.
pub(super) async fn measured(
    items: &[Arc<Object>],
    write: &Write,
) -> Result<(usize, Option<Vec<u8>>), Status> {
    let (mut held, mut gone) = (Vec::new(), 0);
    for object in items {
        let before = held.len();
        write.item(object, &mut held)?;
        if gone > 0 || held.len() > HELD_BYTES_MAX {
            gone += held.len();
            held.clear();
        }
        // Others get their turn while a long list is measured.
        if before / CHUNK_BYTES != (gone + held.len()) / CHUNK_BYTES {
            tokio::task::yield_now().await;
        }
    }
    Ok(if gone > 0 { (gone + held.len(), None) } else { (held.len(), Some(held)) })
}
