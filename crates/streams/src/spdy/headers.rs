//! Header blocks of SPDY/3: names and values, compressed with zlib and the dictionary that the protocol fixes. One
//! compressor and one decompressor live as long as their connection. Source: draft-mbelshe-httpbis-spdy-00, 2.6.10.

use std::sync::LazyLock;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// Names and values, in order.
pub(crate) type Headers = Vec<(String, String)>;

/// A block that is longer, decompressed, ends the connection.
const BLOCK_MAX_BYTES: usize = 64 * 1024;
/// More pairs than this ends it, too.
const PAIRS_MAX: usize = 256;

/// The dictionary's first part: each word preceded by its length.
const WORDS: [&str; 65] = [
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
];

/// Its second part.
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
    203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized\
    403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
    Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
    chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,\
    text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = Vec::with_capacity(1423);
    for word in WORDS {
        bytes.put_u32(u32::try_from(word.len()).unwrap_or(0));
        bytes.extend_from_slice(word.as_bytes());
    }
    bytes.extend_from_slice(TAIL.as_bytes());
    bytes
});

/// A header block that cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("malformed SPDY header block")]
pub(crate) struct Malformed;

/// Writes header blocks.
pub(crate) struct Encoder(Compress);

impl Encoder {
    pub(crate) fn new() -> Self {
        let mut compress = Compress::new(Compression::default(), true);
        // Fails only on a stream that is already in use.
        let _ = compress.set_dictionary(&DICTIONARY);
        Self(compress)
    }

    /// One block.
    pub(crate) fn encode(&mut self, headers: &Headers) -> Result<Bytes, Malformed> {
        let length = |size: usize| u32::try_from(size).map_err(|_| Malformed);
        let mut plain = BytesMut::new();
        plain.put_u32(length(headers.len())?);
        for (name, value) in headers {
            for text in [name, value] {
                plain.put_u32(length(text.len())?);
                plain.extend_from_slice(text.as_bytes());
            }
        }
        let mut out = Vec::with_capacity(plain.len() + 64);
        let before = self.0.total_in();
        loop {
            out.reserve(256);
            let done = usize::try_from(self.0.total_in() - before).map_err(|_| Malformed)?;
            self.0.compress_vec(&plain[done..], &mut out, FlushCompress::Sync).map_err(|_| Malformed)?;
            let all = usize::try_from(self.0.total_in() - before).map_err(|_| Malformed)? == plain.len();
            if all && out.len() < out.capacity() {
                return Ok(out.into());
            }
        }
    }
}

/// Reads header blocks.
pub(crate) struct Decoder(Decompress);

impl Decoder {
    pub(crate) fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// One block.
    pub(crate) fn decode(&mut self, block: &[u8]) -> Result<Headers, Malformed> {
        let mut plain = Vec::with_capacity(1024);
        let start = self.0.total_in();
        loop {
            let done = usize::try_from(self.0.total_in() - start).map_err(|_| Malformed)?;
            let rest = block.get(done..).ok_or(Malformed)?;
            if plain.len() == plain.capacity() {
                if plain.len() >= BLOCK_MAX_BYTES {
                    return Err(Malformed);
                }
                plain.reserve(plain.len().clamp(1024, BLOCK_MAX_BYTES));
            }
            let before = (self.0.total_in(), plain.len());
            match self.0.decompress_vec(rest, &mut plain, FlushDecompress::Sync) {
                Ok(Status::StreamEnd) => return Err(Malformed),
                Ok(Status::Ok | Status::BufError) => {
                    if before == (self.0.total_in(), plain.len()) {
                        break;
                    }
                }
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&DICTIONARY).map_err(|_| Malformed)?;
                }
                Err(_) => return Err(Malformed),
            }
        }
        pairs(&plain)
    }
}

fn pairs(mut plain: &[u8]) -> Result<Headers, Malformed> {
    let count = number(&mut plain)?;
    if count > PAIRS_MAX {
        return Err(Malformed);
    }
    let mut headers = Headers::with_capacity(count);
    for _ in 0..count {
        headers.push((text(&mut plain)?, text(&mut plain)?));
    }
    if plain.is_empty() { Ok(headers) } else { Err(Malformed) }
}

fn number(from: &mut &[u8]) -> Result<usize, Malformed> {
    if from.len() < 4 {
        return Err(Malformed);
    }
    usize::try_from(from.get_u32()).map_err(|_| Malformed)
}

fn text(from: &mut &[u8]) -> Result<String, Malformed> {
    let length = number(from)?;
    let bytes = from.get(..length).ok_or(Malformed)?;
    let text = std::str::from_utf8(bytes).map_err(|_| Malformed)?.to_owned();
    *from = &from[length..];
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adler32(bytes: &[u8]) -> u32 {
        let (a, b) = bytes.iter().fold((1_u32, 0_u32), |(a, b), byte| {
            let a = (a + u32::from(*byte)) % 65521;
            (a, (b + a) % 65521)
        });
        (b << 16) | a
    }

    #[test]
    fn the_dictionary_is_the_protocols() {
        // The checksum that every SPDY/3 peer announces in its first block.
        assert_eq!((DICTIONARY.len(), adler32(&DICTIONARY)), (1423, 0xe3c6_a7c2));
    }

    #[test]
    fn blocks_survive_the_way_there_and_back() {
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
        for n in 0..50 {
            let headers: Headers = vec![
                ("streamtype".into(), "data".into()),
                ("port".into(), n.to_string()),
                ("long".into(), "x".repeat(n * 100)),
            ];
            let block = encoder.encode(&headers).unwrap();
            assert_eq!(decoder.decode(&block).unwrap(), headers);
        }
        assert_eq!(decoder.decode(&encoder.encode(&Vec::new()).unwrap()).unwrap(), Vec::new());
    }

    #[test]
    fn a_block_from_another_implementation_is_read() {
        // `{"streamtype": "error"}`, compressed by zlib 1.2 with level 6, this dictionary and a sync flush.
        let block = [
            0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2, 0x02, 0xa6, 0x23, 0x46, 0x70, 0x3a, 0x2b, 0x29, 0x4a, 0x4d,
            0xcc, 0x85, 0x16, 0x25, 0xac, 0xa9, 0xa0, 0x80, 0x06, 0x00, 0x00, 0x00, 0xff, 0xff,
        ];
        let headers = Decoder::new().decode(&block);
        assert_eq!(headers, Ok(vec![("streamtype".to_owned(), "error".to_owned())]));
    }

    #[test]
    fn rubbish_and_bombs_end_in_errors() {
        assert_eq!(Decoder::new().decode(&[1, 2, 3, 4]), Err(Malformed));
        let bomb: Headers = vec![("x".into(), "0".repeat(10 * BLOCK_MAX_BYTES))];
        let block = Encoder::new().encode(&bomb).unwrap();
        assert!(block.len() < BLOCK_MAX_BYTES);
        assert_eq!(Decoder::new().decode(&block), Err(Malformed));
    }
}
