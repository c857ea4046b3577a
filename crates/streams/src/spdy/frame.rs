//! Frames of SPDY/3.1: the few that remote commands and port-forwarding use. Source: draft-mbelshe-httpbis-spdy-00, 2.6.

use std::io;

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Data is handed on in pieces of at most this size.
const PIECE_BYTES: usize = 32 * 1024;
/// A longer control frame ends the connection.
const CONTROL_MAX_BYTES: usize = 64 * 1024;
/// The last frame of a stream.
const FIN: u8 = 1;
const CONTROL: u16 = 0x8000;
const VERSION: u16 = 3;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;

/// A frame, as far as its header block is still compressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    SynStream {
        id: u32,
        fin: bool,
        block: Bytes,
    },
    SynReply {
        id: u32,
        block: Bytes,
    },
    Reset {
        id: u32,
        status: u32,
    },
    Ping(u32),
    GoAway {
        last: u32,
    },
    /// A piece of data; long frames come as several.
    Data {
        id: u32,
        fin: bool,
        bytes: Bytes,
    },
    /// Settings, window updates, further headers: nothing to do.
    Other,
}

/// Reads frames.
pub(crate) struct FrameReader<R> {
    io: R,
    /// What is left of a long data frame.
    open: Option<(u32, bool, usize)>,
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("SPDY: {what}"))
}

fn word(bytes: &[u8], at: usize) -> io::Result<u32> {
    let four = bytes.get(at..at + 4).and_then(|four| four.try_into().ok());
    four.map(u32::from_be_bytes).ok_or_else(|| malformed("frame too short"))
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(crate) fn new(io: R) -> Self {
        Self { io, open: None }
    }

    /// The next frame; `None` at the connection's end.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Frame>> {
        if let Some((id, fin, left)) = self.open.take() {
            return self.data(id, fin, left).await.map(Some);
        }
        let mut head = [0; 8];
        match self.io.read_exact(&mut head).await {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let first = word(&head, 0)?;
        let flags = head[4];
        let length = usize::try_from(word(&head, 4)? & 0x00ff_ffff).map_err(|_| malformed("length"))?;
        if first & 0x8000_0000 == 0 {
            return self.data(first, flags & FIN != 0, length).await.map(Some);
        }
        if length > CONTROL_MAX_BYTES {
            return Err(malformed("control frame too long"));
        }
        let mut body = vec![0; length];
        self.io.read_exact(&mut body).await?;
        control(u16::try_from(first & 0xffff).unwrap_or(0), flags, body.into()).map(Some)
    }

    async fn data(&mut self, id: u32, fin: bool, left: usize) -> io::Result<Frame> {
        let mut bytes = vec![0; left.min(PIECE_BYTES)];
        self.io.read_exact(&mut bytes).await?;
        let rest = left - bytes.len();
        if rest > 0 {
            self.open = Some((id, fin, rest));
        }
        Ok(Frame::Data { id, fin: fin && rest == 0, bytes: bytes.into() })
    }
}

fn control(kind: u16, flags: u8, body: Bytes) -> io::Result<Frame> {
    let id = |at| word(&body, at).map(|id| id & 0x7fff_ffff);
    Ok(match kind {
        SYN_STREAM if body.len() >= 10 => {
            Frame::SynStream { id: id(0)?, fin: flags & FIN != 0, block: body.slice(10..) }
        }
        SYN_STREAM => return Err(malformed("SYN_STREAM too short")),
        SYN_REPLY => Frame::SynReply { id: id(0)?, block: body.slice(4..) },
        RST_STREAM => Frame::Reset { id: id(0)?, status: word(&body, 4)? },
        PING => Frame::Ping(word(&body, 0)?),
        GOAWAY => Frame::GoAway { last: id(0)? },
        _ => Frame::Other,
    })
}

impl Frame {
    /// The frame's bytes.
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        match self {
            Self::Data { id, fin, bytes } => {
                out.put_u32(*id);
                put_length(&mut out, u8::from(*fin), bytes.len());
                out.extend_from_slice(bytes);
            }
            Self::SynStream { id, fin, block } => {
                put_control(&mut out, SYN_STREAM, u8::from(*fin), 10 + block.len());
                out.put_u32(*id);
                out.put_u32(0);
                // Priority and credential slot: neither is used.
                out.put_u16(0);
                out.extend_from_slice(block);
            }
            Self::SynReply { id, block } => {
                put_control(&mut out, SYN_REPLY, 0, 4 + block.len());
                out.put_u32(*id);
                out.extend_from_slice(block);
            }
            Self::Reset { id, status } => {
                put_control(&mut out, RST_STREAM, 0, 8);
                out.put_u32(*id);
                out.put_u32(*status);
            }
            Self::Ping(id) => {
                put_control(&mut out, PING, 0, 4);
                out.put_u32(*id);
            }
            Self::GoAway { last } => {
                put_control(&mut out, GOAWAY, 0, 8);
                out.put_u32(*last);
                out.put_u32(0);
            }
            Self::Other => {}
        }
        out.freeze()
    }
}

fn put_control(out: &mut BytesMut, kind: u16, flags: u8, length: usize) {
    out.put_u16(CONTROL | VERSION);
    out.put_u16(kind);
    put_length(out, flags, length);
}

/// Flags and length share a word. Callers never write more than [`PIECE_BYTES`] at once.
fn put_length(out: &mut BytesMut, flags: u8, length: usize) {
    let length = u32::try_from(length).unwrap_or(0) & 0x00ff_ffff;
    out.put_u32(u32::from(flags) << 24 | length);
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(bytes: &[u8]) -> Vec<Frame> {
        let mut reader = FrameReader::new(bytes);
        let mut frames = Vec::new();
        while let Some(frame) = reader.next().await.unwrap() {
            frames.push(frame);
        }
        frames
    }

    #[tokio::test]
    async fn frames_survive_the_way_there_and_back() {
        let frames = [
            Frame::SynStream { id: 1, fin: false, block: Bytes::from_static(b"abc") },
            Frame::SynReply { id: 1, block: Bytes::from_static(b"d") },
            Frame::Data { id: 1, fin: true, bytes: Bytes::from_static(b"hello") },
            Frame::Reset { id: 3, status: 5 },
            Frame::Ping(7),
            Frame::GoAway { last: 1 },
        ];
        let bytes: Vec<u8> = frames.iter().flat_map(|frame| frame.encode().to_vec()).collect();
        assert_eq!(read(&bytes).await, frames);
    }

    #[tokio::test]
    async fn the_bytes_are_the_protocols() {
        let ping = [0x80, 0x03, 0x00, 0x06, 0x00, 0x00, 0x00, 0x04, 0x00, 0x00, 0x00, 0x09];
        assert_eq!(read(&ping).await, [Frame::Ping(9)]);
        let data = [0x00, 0x00, 0x00, 0x05, 0x01, 0x00, 0x00, 0x02, b'h', b'i'];
        assert_eq!(read(&data).await, [Frame::Data { id: 5, fin: true, bytes: Bytes::from_static(b"hi") }]);
    }

    #[tokio::test]
    async fn long_data_comes_in_pieces_and_only_the_last_ends_the_stream() {
        let long = Frame::Data { id: 1, fin: true, bytes: vec![7; PIECE_BYTES * 2 + 1].into() };
        let frames = read(&long.encode()).await;
        let ends: Vec<bool> =
            frames.iter().map(|frame| matches!(frame, Frame::Data { fin: true, .. })).collect();
        assert_eq!(ends, [false, false, true]);
    }

    #[tokio::test]
    async fn malformed_frames_are_refused() {
        for bytes in [
            [0x80, 3, 0, 1, 0, 0, 0, 2, 0, 0].as_slice(),
            [0x80, 3, 0, 6, 0, 0, 0, 1, 0].as_slice(),
            [0x80, 3, 0, 6, 0, 0xff, 0xff, 0xff].as_slice(),
        ] {
            assert!(FrameReader::new(bytes).next().await.is_err());
        }
    }
}
