//! Netlink's wire format: messages, attributes and nested attributes. Source: `linux/netlink.h`.

/// Length of `struct nlmsghdr`.
pub(super) const HEADER: usize = 16;
/// Flag of an attribute that holds attributes.
const NESTED: u16 = 1 << 15;

/// One message, or several in a row, being written.
#[derive(Debug, Default)]
pub(super) struct Messages {
    bytes: Vec<u8>,
    /// Where the last message begins.
    last: usize,
    count: u32,
}

impl Messages {
    /// Begins a message. `body` is the fixed part after the header.
    pub(super) fn begin(&mut self, kind: u16, flags: u16, body: &[u8]) -> &mut Self {
        self.last = self.bytes.len();
        self.count += 1;
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&self.count.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(body);
        self.pad();
        self
    }

    /// Ends the message: its length is known now.
    pub(super) fn end(&mut self) {
        let len = u32::try_from(self.bytes.len() - self.last).unwrap_or(u32::MAX);
        self.bytes[self.last..self.last + 4].copy_from_slice(&len.to_ne_bytes());
    }

    /// Sets further flags of the last message.
    pub(super) fn flag_last(&mut self, flags: u16) {
        let at = self.last + 6;
        let held = u16::from_ne_bytes([self.bytes[at], self.bytes[at + 1]]);
        self.bytes[at..at + 2].copy_from_slice(&(held | flags).to_ne_bytes());
    }

    /// One attribute.
    pub(super) fn attr(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let len = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
        self
    }

    /// A terminated string.
    pub(super) fn string(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    /// A number in the machine's byte order (rtnetlink).
    pub(super) fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// A number in network byte order (nfnetlink).
    pub(super) fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_be_bytes())
    }

    /// A 64-bit number in network byte order (nfnetlink).
    pub(super) fn be64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.attr(kind, &value.to_be_bytes())
    }

    /// An attribute that holds what `fill` writes.
    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.attr(kind | NESTED, &[]);
        fill(self);
        let len = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self
    }

    /// Fixed bytes inside a nest (the `ifinfomsg` of a veth's peer).
    pub(super) fn raw(&mut self, value: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(value);
        self.pad();
        self
    }

    /// How many messages there are: the sequence number of the last one.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn pad(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }
}

/// A received message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Received<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    pub(super) body: &'a [u8],
}

/// The messages of one datagram. Stops at what is cut short.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let len = usize::try_from(u32_at(bytes, 0)?).ok()?;
        if len < HEADER || bytes.len() < len {
            return None;
        }
        let message = Received {
            kind: u16_at(bytes, 4)?,
            flags: u16_at(bytes, 6)?,
            sequence: u32_at(bytes, 8)?,
            body: &bytes[HEADER..len],
        };
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes in `bytes`, flags taken off their kinds. Stops at what is cut short.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(bytes, 0)?);
        if len < 4 || bytes.len() < len {
            return None;
        }
        let found = (u16_at(bytes, 2)? & 0x3fff, &bytes[4..len]);
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(found)
    })
}

/// One attribute by kind.
pub(super) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// A string attribute without its terminator.
pub(super) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut out = Messages::default();
        out.begin(7, 1, &[9; 5]).string(1, "lo").nest(2, |inner| {
            inner.be32(3, 0x0102_0304);
        });
        out.end();
        out.begin(8, 0, &[]);
        out.end();
        let found: Vec<_> = messages(out.as_bytes()).collect();
        assert_eq!(found.iter().map(|m| (m.kind, m.sequence)).collect::<Vec<_>>(), [(7, 1), (8, 2)]);
        let attrs = &found[0].body[8..];
        assert_eq!(text(attribute(attrs, 1).unwrap()), "lo");
        assert_eq!(attribute(attribute(attrs, 2).unwrap(), 3).unwrap(), [1, 2, 3, 4]);
    }

    #[test]
    fn cut_input_ends_quietly() {
        let mut out = Messages::default();
        out.begin(7, 1, &[]).string(1, "a name that is long");
        out.end();
        for len in 0..out.as_bytes().len() {
            for message in messages(&out.as_bytes()[..len]) {
                attributes(message.body).for_each(drop);
            }
            attributes(&out.as_bytes()[..len]).for_each(drop);
        }
    }
}
