//! Image names as users write them, normalised as Docker does: `nginx` means `docker.io/library/nginx:latest`.
//!
//! Grammar: the distribution project's `reference` package.

use std::fmt;

use crate::Error;
use crate::digest::{Digest, is_hex64};

const DEFAULT_DOMAIN: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";
const NAME_LENGTH_MAX: usize = 255;

/// A complete name of an image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// `docker.io`, `127.0.0.1:5000`.
    pub domain: String,
    /// `library/nginx`.
    pub path: String,
    /// `latest`; absent only where a digest stands.
    pub tag: Option<String>,
    /// The manifest's digest, where the user gave one.
    pub digest: Option<Digest>,
}

impl Reference {
    /// Parses a name; without tag and digest it means `latest`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let fail = |why| Error::Reference(text.to_owned(), why);
        if is_hex64(text) {
            return Err(fail("64 hexadecimal digits are an id, not a name"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(Digest::parse(digest)?)),
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(fail(
                "a tag has letters, digits, '_', '.' and '-', at most 128, and starts with none of '.-'",
            ));
        }
        let (domain, path) = split_domain(name);
        if !is_domain(&domain) {
            return Err(fail("the registry is not a host name with an optional port"));
        }
        if path.is_empty() || !path.split('/').all(is_path_component) {
            return Err(fail(
                "repository names have lower-case letters, digits and single separators '.', '_', '-'",
            ));
        }
        if domain.len() + path.len() + 1 > NAME_LENGTH_MAX {
            return Err(fail("repository names have at most 255 characters"));
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, None) => Some(DEFAULT_TAG.to_owned()),
            (None, Some(_)) => None,
        };
        Ok(Self { domain, path, tag, digest })
    }

    /// Registry and repository: `docker.io/library/nginx`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// `repository@digest`.
    pub fn with_digest(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.repository())
    }

    /// As users read it: without Docker's default registry and namespace.
    pub fn familiar(&self) -> String {
        familiar(&self.to_string())
    }
}

/// Takes Docker's default registry and namespace off a normalised name.
pub fn familiar(normalised: &str) -> String {
    let rest = normalised.strip_prefix("docker.io/").unwrap_or(normalised);
    if rest.len() == normalised.len() {
        return rest.to_owned();
    }
    rest.strip_prefix("library/").filter(|name| !name.contains('/')).unwrap_or(rest).to_owned()
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

/// Splits the registry off a name: the first component is one only if it looks like a host.
fn split_domain(name: &str) -> (String, String) {
    let looks_like_host = |first: &str| {
        first.contains(['.', ':'])
            || first == "localhost"
            || first.bytes().any(|byte| byte.is_ascii_uppercase())
    };
    let (domain, path) = match name.split_once('/') {
        Some((first, rest)) if looks_like_host(first) => (first, rest),
        _ => (DEFAULT_DOMAIN, name),
    };
    let domain = if domain == "index.docker.io" { DEFAULT_DOMAIN } else { domain };
    if domain == DEFAULT_DOMAIN && !path.contains('/') {
        return (domain.to_owned(), format!("library/{path}"));
    }
    (domain.to_owned(), path.to_owned())
}

fn is_domain(domain: &str) -> bool {
    if let Some(rest) = domain.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return false };
        let port_fits = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        return address.parse::<std::net::Ipv6Addr>().is_ok() && port_fits;
    }
    let (host, port) = domain.split_once(':').map_or((domain, None), |(host, port)| (host, Some(port)));
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    host.split('.').all(label) && port.is_none_or(is_port)
}

fn is_port(port: &str) -> bool {
    port.parse::<u16>().is_ok()
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
}

/// Alphanumeric runs separated by `.`, `_`, `__` or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separator = |text: &str| matches!(text, "." | "_" | "__") || text.bytes().all(|byte| byte == b'-');
    component.starts_with(alphanumeric)
        && component.ends_with(alphanumeric)
        && component.split(alphanumeric).all(|between| between.is_empty() || separator(between))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised_as_docker_does() {
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for (written, meant) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.25", "docker.io/library/nginx:1.25"),
            (
                "rinormaloku/sentiment-analysis-web-app",
                "docker.io/rinormaloku/sentiment-analysis-web-app:latest",
            ),
            ("index.docker.io/library/a", "docker.io/library/a:latest"),
            ("docker.io/a", "docker.io/library/a:latest"),
            ("localhost/a", "localhost/a:latest"),
            ("127.0.0.1:5000/a/b:v1", "127.0.0.1:5000/a/b:v1"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("ghcr.io/a/b__c-d.e", "ghcr.io/a/b__c-d.e:latest"),
            (&format!("a@sha256:{hex}"), &format!("docker.io/library/a@sha256:{hex}")),
            (&format!("a:b@sha256:{hex}"), &format!("docker.io/library/a:b@sha256:{hex}")),
        ] {
            assert_eq!(Reference::parse(written).unwrap().to_string(), meant);
        }
        assert_eq!(familiar("docker.io/library/nginx:latest"), "nginx:latest");
        assert_eq!(familiar("docker.io/a/b:c"), "a/b:c");
        assert_eq!(familiar("localhost/library/b:c"), "localhost/library/b:c");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for bad in [
            "",
            ":",
            "a:",
            "A",
            "a//b",
            "/a",
            "a/",
            "../a",
            "a/../b",
            "a b",
            "a:b:c",
            "a@b",
            "a._b",
            "a___b",
            "-a",
            hex,
            "docker.io/",
            "ex ample.com/a",
            "[::1/a",
            "a:-b",
            "ä",
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad:?}");
        }
        assert!(Reference::parse(&format!("a/{}", "b".repeat(300))).is_err());
    }
}
