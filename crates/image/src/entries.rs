//! The entries of a tar stream, with bounded memory.
//!
//! Headers are the `tar` crate's; the framing is here because its reader takes extension records of any size into
//! memory and splits them at line ends, which binary attributes (file capabilities) may hold.
//! Source: POSIX pax, "Extended Header"; GNU tar, long names.

use std::io::{self, Read};

use tar::{EntryType, Header};

const BLOCK: u64 = 512;
/// The most that all extension records of one entry may take, in bytes.
const EXTENSIONS_BYTES_MAX: u64 = 1 << 20;

/// One entry; its content is read through [`Entries`].
pub(crate) struct Entry {
    pub(crate) header: Header,
    pub(crate) path: Vec<u8>,
    pub(crate) link: Option<Vec<u8>>,
    /// Records of the extended header, in order.
    pub(crate) extensions: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    pub(crate) fn kind(&self) -> EntryType {
        self.header.entry_type()
    }
}

/// Reads a tar stream.
pub(crate) struct Entries<R> {
    reader: R,
    /// Bytes of the current entry's content that were not read yet.
    content: u64,
    /// Bytes that fill its last block.
    padding: u64,
}

impl<R: Read> Entries<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self { reader, content: 0, padding: 0 }
    }

    /// The next entry, skipping what is left of the one before. `None` at the end.
    pub(crate) fn next(&mut self) -> io::Result<Option<Entry>> {
        let mut name = None;
        let mut link = None;
        let mut extensions: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let mut budget = EXTENSIONS_BYTES_MAX;
        loop {
            self.skip()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = header.entry_size().map_err(|_| bad("a size that is no number"))?;
            match header.entry_type() {
                EntryType::GNULongName => name = Some(until_zero(self.record(size, &mut budget)?)),
                EntryType::GNULongLink => link = Some(until_zero(self.record(size, &mut budget)?)),
                EntryType::XHeader => extensions.extend(parse_records(&self.record(size, &mut budget)?)?),
                EntryType::XGlobalHeader => drop(self.record(size, &mut budget)?),
                _ => {
                    let find = |key: &[u8]| {
                        extensions.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value)
                    };
                    let size = match find(b"size") {
                        Some(text) => decimal(text).ok_or_else(|| bad("a size that is no number"))?,
                        None => size,
                    };
                    self.enter(size);
                    return Ok(Some(Entry {
                        path: find(b"path")
                            .cloned()
                            .or(name)
                            .unwrap_or_else(|| header.path_bytes().into_owned()),
                        link: find(b"linkpath")
                            .cloned()
                            .or(link)
                            .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned)),
                        extensions,
                        header,
                    }));
                }
            }
        }
    }

    /// The current entry's content.
    pub(crate) fn content(&mut self) -> Content<'_, R> {
        Content { entries: self }
    }

    fn enter(&mut self, size: u64) {
        self.content = size;
        self.padding = (BLOCK - size % BLOCK) % BLOCK;
    }

    fn skip(&mut self) -> io::Result<()> {
        let left = self.content.saturating_add(self.padding);
        let skipped = io::copy(&mut self.reader.by_ref().take(left), &mut io::sink())?;
        (self.content, self.padding) = (0, 0);
        if skipped < left { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    /// The next header; `None` at the end mark, and where the stream ends between entries.
    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut header = Header::new_old();
        let bytes = header.as_mut_bytes();
        let mut filled = 0;
        while filled < bytes.len() {
            match self.reader.read(&mut bytes[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => filled += read,
            }
        }
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        let expected = sum(&bytes[..148]) + sum(&bytes[156..]) + 8 * u32::from(b' ');
        if header.cksum().ok() != Some(expected) {
            return Err(bad("a header with a wrong checksum"));
        }
        Ok(Some(header))
    }

    fn record(&mut self, size: u64, budget: &mut u64) -> io::Result<Vec<u8>> {
        *budget = budget.checked_sub(size).ok_or_else(|| bad("an extended header of more than 1 MiB"))?;
        self.enter(size);
        let mut bytes = Vec::new();
        self.content().read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// The content of the current entry of a stream.
pub(crate) struct Content<'a, R> {
    entries: &'a mut Entries<R>,
}

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.entries.reader.by_ref().take(self.entries.content).read(buffer)?;
        if read == 0 && self.entries.content > 0 && !buffer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.entries.content -= read as u64;
        Ok(read)
    }
}

/// Whether a stream starts as a tar archive does.
pub fn is_archive(reader: impl Read) -> bool {
    matches!(Entries::new(reader).header(), Ok(Some(_)))
}

/// `<length> <key>=<value>\n` and so on, where the length counts the whole record: values may hold anything.
fn parse_records(mut bytes: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let malformed = || bad("a malformed extended header");
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let space = bytes.iter().position(|byte| *byte == b' ').ok_or_else(malformed)?;
        let length =
            decimal(&bytes[..space]).and_then(|length| usize::try_from(length).ok()).ok_or_else(malformed)?;
        let record = bytes.get(space + 1..length).ok_or_else(malformed)?;
        let record = record.strip_suffix(b"\n").ok_or_else(malformed)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(malformed)?;
        records.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
        bytes = &bytes[length..];
    }
    Ok(records)
}

fn decimal(bytes: &[u8]) -> Option<u64> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

fn until_zero(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the archive holds {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(bytes: &[u8]) -> io::Result<Vec<(String, String)>> {
        let mut entries = Entries::new(bytes);
        let mut found = Vec::new();
        while let Some(entry) = entries.next()? {
            let mut content = String::new();
            // Every second one is skipped unread.
            if found.len() % 2 == 0 {
                entries.content().read_to_string(&mut content)?;
            }
            found.push((String::from_utf8_lossy(&entry.path).into_owned(), content));
        }
        Ok(found)
    }

    fn add(tar: &mut tar::Builder<Vec<u8>>, path: &str, content: &str) {
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, path, content.as_bytes()).unwrap();
    }

    #[test]
    fn long_names_and_binary_attributes_are_read() {
        let long = "d/".repeat(90) + "f";
        let mut tar = tar::Builder::new(Vec::new());
        add(&mut tar, "a", "one");
        add(&mut tar, &long, "two");
        tar.append_pax_extensions([("SCHILY.xattr.user.x", &b"a\nb=\0"[..]), ("path", b"renamed")]).unwrap();
        add(&mut tar, "c", "three");
        let bytes = tar.into_inner().unwrap();
        let expected = [("a", "one"), (&long, ""), ("renamed", "three")];
        let expected: Vec<_> =
            expected.iter().map(|(name, content)| ((*name).to_owned(), (*content).to_owned())).collect();
        assert_eq!(names(&bytes).unwrap(), expected);
        let mut entries = Entries::new(bytes.as_slice());
        entries.next().unwrap();
        entries.next().unwrap();
        assert_eq!(entries.next().unwrap().unwrap().extensions[0].1, b"a\nb=\0");
        for cut in [100, 512 + 2, 600, bytes.len() - 1024 - 300] {
            assert!(names(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn hostile_headers_are_refused() {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::XHeader);
        header.set_size(1 << 40);
        header.set_cksum();
        assert!(names(header.as_bytes()).unwrap_err().to_string().contains("more than 1 MiB"));
        for record in ["5 a=b", "x a=b\n", "3 a=b\n", "99 a=b\n", "6 ab\n\n", "0 \n", "\n"] {
            assert!(parse_records(record.as_bytes()).is_err(), "{record:?}");
        }
        assert!(!is_archive(&[7_u8; 1024][..]) && !is_archive(&b""[..]));
        let mut bytes = Header::new_gnu();
        bytes.set_size(u64::MAX - 5);
        bytes.set_cksum();
        assert!(names(bytes.as_bytes()).is_err(), "a size that no stream has");
    }
}
