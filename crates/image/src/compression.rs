//! Compressed archives: recognised by their first bytes, never by their name.

use std::io::{self, BufRead, BufReader, Read};

const BUFFER_BYTES: usize = 256 * 1024;
/// The most that reading an xz archive may take, in KiB: twice what its highest level needs.
const XZ_MEMORY_KB: u32 = 128 * 1024;

/// Reads an archive that may be compressed with gzip, zstd, xz or bzip2; what is none of them is read as it is.
pub fn decompress<'a>(input: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut input = BufReader::with_capacity(BUFFER_BYTES, input);
    let compression = detect(input.fill_buf()?);
    Ok(match compression {
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Compression::Zstd => Box::new(zstd::Decoder::with_buffer(input)?),
        Compression::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(input, true, XZ_MEMORY_KB)),
        Compression::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(input)),
        Compression::None => Box::new(input),
    })
}

/// How an archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
    Xz,
    Bzip2,
}

/// Recognises a compression by an archive's first bytes (six are enough).
pub(crate) fn detect(start: &[u8]) -> Compression {
    if start.starts_with(&[0x1f, 0x8b, 0x08]) {
        Compression::Gzip
    } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Compression::Zstd
    } else if start.starts_with(&[0xfd, b'7', b'z', b'X', b'Z', 0]) {
        Compression::Xz
    } else if start.starts_with(b"BZh") {
        Compression::Bzip2
    } else {
        Compression::None
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// `hello`, as the programs of that name compress it.
    const XZ: &[u8] = b"\xfd\x37\x7a\x58\x5a\x00\x00\x04\xe6\xd6\xb4\x46\x02\x00\x21\x01\x0c\x00\x00\x00\x8f\x98\x41\x9c\x01\x00\x04\x68\x65\x6c\x6c\x6f\x00\x00\x00\x00\xb1\x37\xb9\xdb\xe5\xda\x1e\x9b\x00\x01\x1d\x05\xb8\x2d\x80\xaf\x1f\xb6\xf3\x7d\x01\x00\x00\x00\x00\x04\x59\x5a";
    const BZIP2: &[u8] = b"\x42\x5a\x68\x39\x31\x41\x59\x26\x53\x59\x19\x31\x65\x3d\x00\x00\x00\x81\x00\x02\x44\xa0\x00\x21\x9a\x68\x33\x4d\x07\x33\x8b\xb9\x22\x9c\x28\x48\x0c\x98\xb2\x9e\x80";

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
        assert_eq!(read(XZ).unwrap(), b"hello");
        assert_eq!(read(&[XZ, XZ].concat()).unwrap(), b"hellohello");
        assert_eq!(read(BZIP2).unwrap(), b"hello");
        assert_eq!(read(&[BZIP2, BZIP2].concat()).unwrap(), b"hellohello");
        for cut in [&XZ[..XZ.len() - 9], &BZIP2[..BZIP2.len() - 9]] {
            assert!(read(cut).is_err());
        }
    }

    #[test]
    fn memory_has_a_bound() {
        // Asks for a dictionary of 1 GiB.
        let greedy: &[u8] = b"\xfd\x37\x7a\x58\x5a\x00\x00\x04\xe6\xd6\xb4\x46\x02\x00\x21\x01\x24\x00\x00\x00\x5e\x1f\xc7\xf9\x01\x00\x04\x68\x65\x6c\x6c\x6f\x00\x00\x00\x00\xb1\x37\xb9\xdb\xe5\xda\x1e\x9b\x00\x01\x1d\x05\xb8\x2d\x80\xaf\x1f\xb6\xf3\x7d\x01\x00\x00\x00\x00\x04\x59\x5a";
        let error = read(greedy).unwrap_err();
        assert!(error.to_string().contains("memory"), "{error}");
    }
}
