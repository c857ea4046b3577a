//! Frames: what is written and checked as one. A frame is all there or it never was.
//!
//! A file starts with a header that carries a random salt. Every frame's checksum is seeded with the salt, so nothing
//! that a client stores can pass for a frame, and carries the checksum of what came before it, so that frames cannot
//! be reordered, dropped or left over from before.

use twox_hash::XxHash3_64;

/// A file's header in bytes.
pub(crate) const FILE_HEADER: usize = 56;
/// A frame's header in bytes.
pub(crate) const FRAME_HEADER: usize = 24;
/// Frames start at multiples of this.
const ALIGN: usize = 8;
const FRAME_MAGIC: [u8; 4] = *b"SkFr";
/// The only format so far.
const VERSION: u32 = 1;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    /// A segment of the log.
    Segment,
    /// The state at one revision.
    Base,
}

impl FileKind {
    fn magic(self) -> [u8; 8] {
        match self {
            Self::Segment => *b"SKIFFLOG",
            Self::Base => *b"SKIFFBAS",
        }
    }
}

/// A file's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileHeader {
    /// What the file is.
    pub(crate) kind: FileKind,
    /// A segment's number, from 1; 0 for a base.
    pub(crate) number: u64,
    /// Segment: the first revision that it may hold. Base: the revision that it describes.
    pub(crate) revision: i64,
    /// The checksum of the last frame (or header) of the segment before; 0 in the first one and in a base.
    pub(crate) previous: u64,
    /// The seed of all checksums in this file.
    pub(crate) salt: u64,
}

/// Why a header was not accepted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BadHeader {
    /// It is cut, torn or something else.
    Torn,
    /// It is whole, and of a format that this version does not know.
    Version(u32),
}

impl FileHeader {
    /// Its bytes and its checksum, which starts the chain of frames.
    pub(crate) fn encode(&self) -> ([u8; FILE_HEADER], u64) {
        let mut out = [0; FILE_HEADER];
        out[..8].copy_from_slice(&self.kind.magic());
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[16..24].copy_from_slice(&self.number.to_le_bytes());
        out[24..32].copy_from_slice(&self.revision.to_le_bytes());
        out[32..40].copy_from_slice(&self.previous.to_le_bytes());
        out[40..48].copy_from_slice(&self.salt.to_le_bytes());
        let checksum = XxHash3_64::oneshot_with_seed(self.salt, &out[..48]);
        out[48..].copy_from_slice(&checksum.to_le_bytes());
        (out, checksum)
    }

    /// Reads a header and its checksum.
    pub(crate) fn decode(kind: FileKind, bytes: &[u8]) -> Result<(Self, u64), BadHeader> {
        let header = bytes.get(..FILE_HEADER).ok_or(BadHeader::Torn)?;
        let (salt, checksum) = (u64_at(header, 40), u64_at(header, 48));
        if header[..8] != kind.magic() || XxHash3_64::oneshot_with_seed(salt, &header[..48]) != checksum {
            return Err(BadHeader::Torn);
        }
        let version = u32_at(header, 8);
        if version != VERSION {
            return Err(BadHeader::Version(version));
        }
        let number = u64_at(header, 16);
        let revision = u64_at(header, 24).cast_signed();
        Ok((Self { kind, number, revision, previous: u64_at(header, 32), salt }, checksum))
    }
}

/// A frame under construction: records are appended behind room for its header.
#[derive(Debug)]
pub(crate) struct FrameBuf {
    bytes: Vec<u8>,
}

impl FrameBuf {
    pub(crate) fn new() -> Self {
        Self { bytes: vec![0; FRAME_HEADER] }
    }

    /// Where records are appended.
    pub(crate) fn records(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// The size so far, with the header.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether no record was appended.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.len() == FRAME_HEADER
    }

    /// Forgets the records; gives memory back after an unusually large frame.
    pub(crate) fn clear(&mut self) {
        self.bytes.truncate(FRAME_HEADER);
        self.bytes.shrink_to(1 << 20);
    }

    /// Takes back what [`FrameBuf::seal`] and its caller put behind the records; `len` as it was before.
    pub(crate) fn unseal(&mut self, len: usize) {
        self.bytes.truncate(len);
    }

    /// Writes the header and pads; returns the frame's bytes and its checksum.
    pub(crate) fn seal(&mut self, salt: u64, previous: u64) -> (&mut Vec<u8>, u64) {
        let payload = self.bytes.len() - FRAME_HEADER;
        // Batches are limited to a few MiB; saturation makes a slip a frame that is refused, never a wrong one.
        let len = u32::try_from(payload).unwrap_or(u32::MAX).to_le_bytes();
        self.bytes[..4].copy_from_slice(&FRAME_MAGIC);
        self.bytes[4..8].copy_from_slice(&len);
        self.bytes[8..16].copy_from_slice(&previous.to_le_bytes());
        let checksum = checksum(salt, previous, len, &self.bytes[FRAME_HEADER..]);
        self.bytes[16..24].copy_from_slice(&checksum.to_le_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
        (&mut self.bytes, checksum)
    }
}

fn checksum(salt: u64, previous: u64, len: [u8; 4], payload: &[u8]) -> u64 {
    let seed = salt ^ previous.rotate_left(32) ^ u64::from(u32::from_le_bytes(len));
    XxHash3_64::oneshot_with_seed(seed, payload)
}

/// A frame as found in a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    /// The checksum of what came before it.
    pub(crate) previous: u64,
    /// Its own.
    pub(crate) checksum: u64,
    /// Its records.
    pub(crate) payload: &'a [u8],
    /// Where the next one starts.
    pub(crate) end: usize,
}

/// The whole frame at `offset` of a file, if there is one.
pub(crate) fn frame_at(file: &[u8], offset: usize, salt: u64) -> Option<Frame<'_>> {
    let header = file.get(offset..offset.checked_add(FRAME_HEADER)?)?;
    if header[..4] != FRAME_MAGIC {
        return None;
    }
    let start = offset + FRAME_HEADER;
    let stop = start.checked_add(usize::try_from(u32_at(header, 4)).ok()?)?;
    let payload = file.get(start..stop)?;
    let (previous, found) = (u64_at(header, 8), u64_at(header, 16));
    let end = stop.next_multiple_of(ALIGN);
    let padded = file[stop..end.min(file.len())].iter().all(|byte| *byte == 0);
    let whole = padded && checksum(salt, previous, u32_at(header, 4).to_le_bytes(), payload) == found;
    whole.then_some(Frame { previous, checksum: found, payload, end })
}

/// Where a whole frame starts behind `offset`. As a frame is only written after the one before it is durable, one
/// that follows damage proves that acknowledged data was damaged, and not just an unfinished write.
pub(crate) fn later_frame(file: &[u8], offset: usize, salt: u64) -> Option<usize> {
    (offset.next_multiple_of(ALIGN)..file.len()).step_by(ALIGN).find(|at| frame_at(file, *at, salt).is_some())
}

/// Callers pass slices of at least `at + 8` bytes.
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut out = [0; 8];
    out.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(out)
}

/// Callers pass slices of at least `at + 4` bytes.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut out = [0; 4];
    out.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: FileHeader =
        FileHeader { kind: FileKind::Segment, number: 3, revision: -9, previous: 5, salt: 0xfeed_beef };

    #[test]
    fn a_header_reads_back_and_one_flipped_bit_does_not() {
        let (bytes, checksum) = HEADER.encode();
        assert_eq!(FileHeader::decode(FileKind::Segment, &bytes), Ok((HEADER, checksum)));
        assert_eq!(FileHeader::decode(FileKind::Base, &bytes), Err(BadHeader::Torn));
        for bit in 0..FILE_HEADER * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(FileHeader::decode(FileKind::Segment, &bad), Err(BadHeader::Torn));
        }
    }

    #[test]
    fn another_version_is_told_from_damage() {
        let (mut bytes, _) = HEADER.encode();
        bytes[8] = 7;
        let checksum = XxHash3_64::oneshot_with_seed(HEADER.salt, &bytes[..48]);
        bytes[48..].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(FileHeader::decode(FileKind::Segment, &bytes), Err(BadHeader::Version(7)));
    }

    #[test]
    fn a_frame_reads_back_and_one_flipped_bit_does_not() {
        let mut frame = FrameBuf::new();
        frame.records().extend_from_slice(b"hello");
        let (bytes, checksum) = frame.seal(7, 42);
        let good = Frame { previous: 42, checksum, payload: b"hello", end: 32 };
        assert_eq!(frame_at(bytes, 0, 7), Some(good));
        assert_eq!(frame_at(bytes, 0, 8), None);
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(frame_at(&bad, 0, 7), None, "bit {bit}");
        }
    }

    #[test]
    fn a_later_frame_is_found() {
        let mut frame = FrameBuf::new();
        frame.records().extend_from_slice(b"x");
        let mut file = vec![0; 24];
        file.extend_from_slice(frame.seal(7, 0).0);
        assert_eq!(later_frame(&file, 8, 7), Some(24));
        assert_eq!(later_frame(&file, 32, 7), None);
    }
}
