//! Compressed archives: recognised by their first bytes, never by their name.

use std::io::{self, BufRead, BufReader, Read};

const BUFFER_BYTES: usize = 256 * 1024;

/// Reads an archive that may be compressed with gzip or zstd; what is neither is read as it is.
pub fn decompress<'a>(input: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut input = BufReader::with_capacity(BUFFER_BYTES, input);
    let compression = detect(input.fill_buf()?);
    Ok(match compression {
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Compression::Zstd => Box::new(zstd::Decoder::with_buffer(input)?),
        Compression::Unsupported(name) => {
            let message = format!("{name} archives are not supported: recompress it with gzip or zstd");
            return Err(io::Error::new(io::ErrorKind::Unsupported, message));
        }
        Compression::None => Box::new(input),
    })
}

/// How an archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
    Unsupported(&'static str),
}

/// Recognises a compression by an archive's first bytes (six are enough).
pub(crate) fn detect(start: &[u8]) -> Compression {
    if start.starts_with(&[0x1f, 0x8b, 0x08]) {
        Compression::Gzip
    } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Compression::Zstd
    } else if start.starts_with(&[0xfd, b'7', b'z', b'X', b'Z', 0]) {
        Compression::Unsupported("xz")
    } else if start.starts_with(b"BZh") {
        Compression::Unsupported("bzip2")
    } else {
        Compression::None
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        decompress(bytes)?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn compressions_are_recognised() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"hello").unwrap();
        assert_eq!(read(&gzip.finish().unwrap()).unwrap(), b"hello");
        assert_eq!(read(&zstd::encode_all(&b"hello"[..], 1).unwrap()).unwrap(), b"hello");
        assert_eq!(read(b"hello").unwrap(), b"hello");
        assert_eq!(read(b"").unwrap(), b"");
        assert!(read(b"BZh91AY").unwrap_err().to_string().contains("bzip2"));
    }
}
