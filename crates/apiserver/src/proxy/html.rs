//! Links of pages that come through a proxy: a page that is told that its server is at `/` names addresses there, which
//! would lead past the proxy. Of start tags the attributes that hold addresses are changed, as the bytes come; everything
//! else stays as it is. Pure. Source: `apimachinery/pkg/util/proxy/transport.go`.

/// The attributes that hold addresses, by element. Source: upstream's `atomsToAttrs`.
const LINKS: [(&str, &[&str]); 25] = [
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];
/// Elements whose content is text, whatever it looks like.
const RAW: [&str; 8] = ["iframe", "noembed", "noframes", "script", "style", "textarea", "title", "xmp"];
/// A tag that is longer is left as it is.
const TAG_BYTES_MAX: usize = 64 * 1024;

/// Rewrites a page piece by piece.
pub(crate) struct Page<F> {
    link: F,
    /// What has come and is not understood yet.
    pending: Vec<u8>,
    /// The element whose text goes on.
    raw: Option<&'static str>,
}

/// What stands at the beginning of some bytes, and how long it is.
enum Piece {
    /// As it is.
    Plain(usize),
    /// A start tag.
    Tag(usize),
    /// Its end has not come yet.
    Unfinished,
}

impl<F: Fn(&str) -> String> Page<F> {
    /// A page whose addresses `link` changes.
    pub(crate) fn new(link: F) -> Self {
        Self { link, pending: Vec::new(), raw: None }
    }

    /// Takes more of the page and gives what can be told of it.
    pub(crate) fn feed(&mut self, more: &[u8]) -> Vec<u8> {
        self.pending.extend_from_slice(more);
        let bytes = std::mem::take(&mut self.pending);
        let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
        while at < bytes.len() {
            let rest = &bytes[at..];
            let length = match self.piece(rest) {
                Piece::Unfinished if rest.len() < TAG_BYTES_MAX => {
                    self.pending = rest.to_vec();
                    break;
                }
                Piece::Unfinished => rest.len(),
                Piece::Plain(length) => length,
                Piece::Tag(length) => {
                    self.tag(&rest[..length], &mut out);
                    at += length;
                    continue;
                }
            };
            out.extend_from_slice(&rest[..length]);
            at += length;
        }
        out
    }

    /// What begins here.
    fn piece(&mut self, bytes: &[u8]) -> Piece {
        let Some(element) = self.raw else { return piece(bytes) };
        match end_of_text(bytes, element) {
            Some(0) => {
                self.raw = None;
                piece(bytes)
            }
            Some(at) => {
                self.raw = None;
                Piece::Plain(at)
            }
            // The beginning of the end may have come.
            None => match bytes.len().saturating_sub(element.len() + 1) {
                0 => Piece::Unfinished,
                known => Piece::Plain(known),
            },
        }
    }

    /// What is left when the page is over.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.pending)
    }

    /// Writes a start tag, from `<` to `>`.
    fn tag(&mut self, tag: &[u8], out: &mut Vec<u8>) {
        let name_end =
            tag.iter().skip(1).position(|byte| is_end_of_name(*byte)).map_or(tag.len(), |at| at + 1);
        let name = String::from_utf8_lossy(&tag[1..name_end]).to_ascii_lowercase();
        self.raw = RAW.into_iter().find(|raw| *raw == name);
        let links = LINKS.iter().find(|(element, _)| *element == name).map_or(&[][..], |(_, links)| links);
        let mut at = 0;
        for (attribute, from, to) in attributes(tag, name_end) {
            let is_link = links.iter().any(|link| attribute.eq_ignore_ascii_case(link.as_bytes()));
            let Ok(value) = std::str::from_utf8(&tag[from..to]) else { continue };
            if is_link {
                out.extend_from_slice(&tag[at..from]);
                out.extend_from_slice((self.link)(value).as_bytes());
                at = to;
            }
        }
        out.extend_from_slice(&tag[at..]);
    }
}

fn is_end_of_name(byte: u8) -> bool {
    byte.is_ascii_whitespace() || matches!(byte, b'/' | b'>')
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|part| part == wanted)
}

/// What begins here, outside of elements whose content is text.
fn piece(bytes: &[u8]) -> Piece {
    if bytes[0] != b'<' {
        let next = bytes.iter().position(|byte| *byte == b'<');
        return Piece::Plain(next.unwrap_or(bytes.len()));
    }
    if b"<!--".starts_with(&bytes[..bytes.len().min(4)]) {
        return find(bytes, b"-->").map_or(Piece::Unfinished, |at| Piece::Plain(at + 3));
    }
    match bytes[1] {
        byte if byte.is_ascii_alphabetic() => {
            tag_end(bytes).map_or(Piece::Unfinished, |at| Piece::Tag(at + 1))
        }
        b'/' | b'!' | b'?' => {
            let end = bytes.iter().position(|byte| *byte == b'>');
            end.map_or(Piece::Unfinished, |at| Piece::Plain(at + 1))
        }
        _ => Piece::Plain(1),
    }
}

/// Where the text of an element ends: at `</element`.
fn end_of_text(bytes: &[u8], element: &str) -> Option<usize> {
    let ends = |part: &[u8]| part.starts_with(b"</") && part[2..].eq_ignore_ascii_case(element.as_bytes());
    bytes.windows(element.len() + 2).position(ends)
}

/// Where a tag's `>` is: not within a quoted value.
fn tag_end(tag: &[u8]) -> Option<usize> {
    let (mut quote, mut value) = (None, false);
    for (at, byte) in tag.iter().enumerate() {
        match (quote, *byte) {
            (Some(open), byte) if byte == open => quote = None,
            (Some(_), _) => {}
            (None, b'>') => return Some(at),
            (None, open @ (b'"' | b'\'')) if value => quote = Some(open),
            (None, byte) => value = byte == b'=' || (value && byte.is_ascii_whitespace()),
        }
    }
    None
}

/// The attributes of a tag that have a value: the name, and where the value begins and ends.
fn attributes(tag: &[u8], from: usize) -> Vec<(&[u8], usize, usize)> {
    let skip = |mut at: usize, over: fn(u8) -> bool| {
        while tag.get(at).is_some_and(|byte| over(*byte)) {
            at += 1;
        }
        at
    };
    let (mut all, mut at) = (Vec::new(), from);
    loop {
        at = skip(at, |byte| byte.is_ascii_whitespace() || byte == b'/');
        let name = at;
        at = skip(at, |byte| byte != b'=' && !is_end_of_name(byte));
        let name = &tag[name..at];
        let equals = skip(at, |byte| byte.is_ascii_whitespace());
        if tag.get(equals) != Some(&b'=') {
            if name.is_empty() {
                return all;
            }
            continue;
        }
        at = skip(equals + 1, |byte| byte.is_ascii_whitespace());
        let Some(first) = tag.get(at) else { return all };
        if matches!(first, b'"' | b'\'') {
            let value = at + 1;
            let Some(length) = tag[value..].iter().position(|byte| byte == first) else { return all };
            all.push((name, value, value + length));
            at = value + length + 1;
        } else {
            let value = at;
            at = skip(at, |byte| !byte.is_ascii_whitespace() && byte != b'>');
            all.push((name, value, at));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "<!DOCTYPE html><html><head><!-- <a href=\"/x\"> --><link rel=s href='/s.css'/>\
        <script src=\"/a.js\">if (a < b) { x = '<a href=\"/x\">' }</SCRIPT></head><body class=\"a>b\">\
        <a title=\"a > b\" HREF = \"/a?x=1&amp;y=2#z\">1 < 2</a><a href=b>c</a><img src=/i.png><p href=\"/p\">ä</p></body>";

    fn rewritten(pieces: &[&[u8]]) -> String {
        let link = |value: &str| if value.starts_with('/') { format!("/P{value}") } else { value.to_owned() };
        let mut page = Page::new(link);
        let mut out: Vec<u8> = pieces.iter().flat_map(|piece| page.feed(piece)).collect();
        out.extend(page.finish());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn links_get_the_prefix_and_nothing_else_changes() {
        let expected = PAGE
            .replace("'/s.css'", "'/P/s.css'")
            .replace("\"/a.js\"", "\"/P/a.js\"")
            .replace("\"/a?", "\"/P/a?")
            .replace("=/i.png", "=/P/i.png");
        assert_eq!(rewritten(&[PAGE.as_bytes()]), expected);
        // However it comes.
        let bytes: Vec<&[u8]> = PAGE.as_bytes().chunks(1).collect();
        assert_eq!(rewritten(&bytes), expected);
    }

    #[test]
    fn what_is_no_page_stays_as_it_is() {
        let long = format!("<a href=\"{}", "x".repeat(2 * TAG_BYTES_MAX));
        for text in
            ["", "<", "<a href=\"/x", "<script>a", "< a", "<a =/x>", "<a href=", "<a/b=c/>", long.as_str()]
        {
            assert_eq!(rewritten(&[text.as_bytes()]), text, "{text}");
        }
    }
}
