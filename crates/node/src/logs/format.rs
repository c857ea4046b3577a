//! One line of the CRI log format: `timestamp stream tag content`. Source: CRI's `docs/cri-logging`.

use jiff::Timestamp;

/// A parsed line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    /// As written, RFC 3339 with nanoseconds.
    pub(crate) timestamp: &'a str,
    /// `stderr` rather than `stdout`.
    pub(crate) is_stderr: bool,
    /// The content goes on in the next line of the stream.
    pub(crate) partial: bool,
    /// Without the line's end.
    pub(crate) content: &'a [u8],
}

impl Line<'_> {
    /// When it was written.
    pub(crate) fn at(&self) -> Option<Timestamp> {
        self.timestamp.parse().ok()
    }
}

/// Parses one line, with or without its end; `None` for what is not of the format.
pub(crate) fn parse_line(line: &[u8]) -> Option<Line<'_>> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let timestamp = std::str::from_utf8(parts.next()?).ok()?;
    let is_stderr = match parts.next()? {
        b"stdout" => false,
        b"stderr" => true,
        _ => return None,
    };
    // The tag is a list separated by colons; its first entry says whether the line is whole.
    let partial = match parts.next()?.split(|byte| *byte == b':').next()? {
        b"F" => false,
        b"P" => true,
        _ => return None,
    };
    Some(Line { timestamp, is_stderr, partial, content: parts.next().unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_apart() {
        let line = parse_line(b"2024-01-02T03:04:05.000000006Z stderr P a b\n").unwrap();
        assert_eq!((line.is_stderr, line.partial, line.content), (true, true, b"a b".as_slice()));
        assert_eq!(line.at().unwrap().subsec_nanosecond(), 6);
        let empty = parse_line(b"2024-01-02T03:04:05Z stdout F ").unwrap();
        assert_eq!(empty.content, b"");
        assert_eq!(parse_line(b"rubbish"), None);
        assert_eq!(parse_line(b"t stdin F x"), None);
    }
}
