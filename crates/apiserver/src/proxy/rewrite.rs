//! How requests and answers are changed on their way through a proxy. Pure. Source: `net/http/httputil` (hop-by-hop
//! headers), `apimachinery/pkg/util/proxy` (`Transport`, `UpgradeAwareHandler`).

use std::net::IpAddr;

use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Uri};

/// What concerns one connection only. Source: RFC 9110, section 7.6.1, and Go's reverse proxy.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "proxy-connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// A backend does not say which sites may use the API server.
const CORS: [&str; 4] = [
    "access-control-allow-credentials",
    "access-control-allow-headers",
    "access-control-allow-methods",
    "access-control-allow-origin",
];
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");

/// Whether a request asks to change the protocol.
pub(crate) fn is_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(header::UPGRADE) && names(headers, &header::CONNECTION, "upgrade")
}

/// Whether a list header names a token.
fn names(headers: &HeaderMap, list: &HeaderName, token: &str) -> bool {
    let texts = headers.get_all(list).iter().filter_map(|value| value.to_str().ok());
    texts.flat_map(|text| text.split(',')).any(|word| word.trim().eq_ignore_ascii_case(token))
}

/// Takes away what concerned the connection on which the message came.
fn strip(headers: &mut HeaderMap) {
    let listed: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .filter_map(|word| word.trim().parse().ok())
        .collect();
    for name in listed {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// A request's headers as the backend gets them. An upgrade keeps what asks for it.
pub(crate) fn request(headers: &mut HeaderMap, client: Option<IpAddr>) {
    let upgrade = headers.get(header::UPGRADE).cloned().filter(|_| is_upgrade(headers));
    let trailers = names(headers, &header::TE, "trailers");
    strip(headers);
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if let Some(protocol) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, protocol);
    }
    if let Some(client) = client {
        let before = headers.get_all(FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok());
        let all: Vec<String> = before.map(str::to_owned).chain([client.to_canonical().to_string()]).collect();
        if let Ok(value) = HeaderValue::from_str(&all.join(", ")) {
            headers.insert(FORWARDED_FOR, value);
        }
    }
}

/// What a backend is told of the address by which it was asked.
pub(crate) fn forwarded_uri(headers: &mut HeaderMap, prefix: &str, rest: &str) {
    if let Ok(value) = HeaderValue::from_str(&format!("{prefix}{rest}")) {
        headers.insert(FORWARDED_URI, value);
    }
}

/// An answer's headers as the client gets them; `prefix` is the path of the proxy without what follows it, `hosts` are
/// the names by which client and API server called the backend.
pub(crate) fn answer(headers: &mut HeaderMap, prefix: &str, hosts: [&str; 2], upgraded: bool) {
    if !upgraded {
        strip(headers);
    }
    for name in CORS {
        headers.remove(name);
    }
    let location = headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
    if let Some(value) = location.map(|text| location_of(text, prefix, hosts))
        && let Ok(value) = HeaderValue::from_str(&value)
    {
        headers.insert(header::LOCATION, value);
    }
}

/// An address that a backend names, so that it leads through the proxy again: absolute paths on the backend itself get
/// the proxy's prefix, everything else stays.
fn location_of(text: &str, prefix: &str, hosts: [&str; 2]) -> String {
    let Ok(uri) = text.parse::<Uri>() else { return text.to_owned() };
    let elsewhere = uri.authority().is_some_and(|host| !hosts.contains(&host.as_str()));
    if elsewhere || !uri.path().starts_with('/') || (uri.authority().is_none() && !text.starts_with('/')) {
        return text.to_owned();
    }
    let query = uri.query().map_or_else(String::new, |query| format!("?{query}"));
    let fragment = text.split_once('#').map_or_else(String::new, |(_, rest)| format!("#{rest}"));
    let path = uri.path();
    let prefix = if path.starts_with(prefix) { "" } else { prefix };
    format!("{prefix}{path}{query}{fragment}")
}

/// An address that a page names, as [`location_of`] changes it; its path may hold what no header may.
pub(crate) fn link(text: &str, prefix: &str, hosts: [&str; 2]) -> String {
    match text.strip_prefix('/') {
        // Of a host that is named, and through the proxy already.
        Some(rest) if rest.starts_with('/') || text.starts_with(prefix) => text.to_owned(),
        Some(_) => format!("{prefix}{text}"),
        None => location_of(text, prefix, hosts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap())
        };
        let mut all = HeaderMap::new();
        for (name, value) in pairs.iter().map(pair) {
            all.append(name, value);
        }
        all
    }

    #[test]
    fn what_concerns_one_connection_stays_on_it() {
        let mut sent = headers(&[
            ("connection", "close, X-Own"),
            ("x-own", "1"),
            ("keep-alive", "5"),
            ("te", "gzip, trailers"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-other", "2"),
        ]);
        request(&mut sent, Some("192.0.2.7".parse().unwrap()));
        let expected =
            headers(&[("te", "trailers"), ("x-forwarded-for", "10.0.0.1, 192.0.2.7"), ("x-other", "2")]);
        assert_eq!(sent, expected);
    }

    #[test]
    fn an_upgrade_is_passed_on() {
        let mut sent = headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        assert!(is_upgrade(&sent));
        request(&mut sent, None);
        assert_eq!(sent, headers(&[("connection", "Upgrade"), ("upgrade", "websocket")]));
        assert!(!is_upgrade(&headers(&[("upgrade", "websocket")])));
        assert!(!is_upgrade(&headers(&[("connection", "upgrade")])));
    }

    #[test]
    fn a_redirect_on_the_backend_leads_through_the_proxy_again() {
        let prefix = "/api/v1/namespaces/n/services/s/proxy";
        let hosts = ["10.1.0.7:80", "localhost:8001"];
        let to = |text: &str| location_of(text, prefix, hosts);
        assert_eq!(to("/login?x=1#top"), format!("{prefix}/login?x=1#top"));
        assert_eq!(to("http://10.1.0.7:80/a/"), format!("{prefix}/a/"));
        assert_eq!(to("http://localhost:8001/a"), format!("{prefix}/a"));
        assert_eq!(to(&format!("{prefix}/done")), format!("{prefix}/done"));
        for stays in ["relative/path", "http://example.com/a", "https://10.1.0.7:81/a", "mailto:a@b"] {
            assert_eq!(to(stays), stays);
        }
    }

    #[test]
    fn a_link_of_a_page_leads_through_the_proxy_again() {
        let to = |text: &str| link(text, "/p", ["10.1.0.7:80", "localhost:8001"]);
        for (text, expected) in [
            ("/a b?x=1#y", "/p/a b?x=1#y"),
            ("/p/a", "/p/a"),
            ("//example.com/a", "//example.com/a"),
            ("http://localhost:8001/a", "/p/a"),
            ("http://example.com/a", "http://example.com/a"),
            ("a/b", "a/b"),
            ("#top", "#top"),
            ("", ""),
        ] {
            assert_eq!(to(text), expected, "{text}");
        }
    }

    #[test]
    fn an_answer_says_nothing_about_other_sites() {
        let mut given = headers(&[
            ("access-control-allow-origin", "*"),
            ("location", "/a"),
            ("transfer-encoding", "chunked"),
        ]);
        answer(&mut given, "/p", ["", ""], false);
        assert_eq!(given, headers(&[("location", "/p/a")]));
    }
}
