//! Users whom a front proxy names in headers: it has authenticated them, and proves itself by a certificate of its own
//! authority. Source: `apiserver/pkg/authentication/request/headerrequest`, `client-go/transport` (`SetAuthProxyHeaders`).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use api::connect::User;
use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;

/// The headers, as the API server sends them and names them to extension API servers.
pub(crate) const USER: HeaderName = HeaderName::from_static("x-remote-user");
/// A header for each group.
pub(crate) const GROUP: HeaderName = HeaderName::from_static("x-remote-group");
/// The user's unique id.
pub(crate) const UID: HeaderName = HeaderName::from_static("x-remote-uid");
/// Before the name of an attribute.
pub(crate) const EXTRA: &str = "x-remote-extra-";

/// What a connection's certificate says: it is one of the authority of front proxies; whether it is a front proxy's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrontProxy(pub(crate) bool);

/// The user whom the headers name; `None` if they name none.
pub(crate) fn user(headers: &HeaderMap) -> Option<User> {
    let texts = |name: &HeaderName| -> Vec<String> {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.filter(|text| !text.is_empty()).map(str::to_owned).collect()
    };
    let name = texts(&USER).into_iter().next()?;
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (header, value) in headers {
        let Some(key) = header.as_str().strip_prefix(EXTRA) else { continue };
        let (Ok(key), Ok(value)) = (percent_decode_str(key).decode_utf8(), value.to_str()) else { continue };
        extra.entry(key.into_owned()).or_default().push(value.to_owned());
    }
    let uid = texts(&UID).into_iter().next().unwrap_or_default();
    Some(super::foreign(User { name, uid, groups: texts(&GROUP), extra: extra.into_iter().collect() }))
}

/// Names a user in a request's headers; what they said before is gone. What a header cannot say is left out.
pub(crate) fn name(headers: &mut HeaderMap, user: &User) {
    let said: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("x-remote-")).cloned().collect();
    for header in said {
        headers.remove(header);
    }
    let mut say = |header: HeaderName, text: &str| {
        if let Ok(value) = HeaderValue::from_str(text) {
            headers.append(header, value);
        }
    };
    say(USER, &user.name);
    if !user.uid.is_empty() {
        say(UID, &user.uid);
    }
    for group in &user.groups {
        say(GROUP, group);
    }
    for (key, values) in &user.extra {
        let Ok(header) = HeaderName::try_from(format!("{EXTRA}{}", escaped(key))) else { continue };
        for value in values {
            say(header.clone(), value);
        }
    }
}

/// A key as a header's name can say it: what is no token (RFC 9110, section 5.6.2), and `%`, is percent-encoded.
fn escaped(key: &str) -> String {
    let mut text = String::new();
    for byte in key.bytes() {
        if byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authn::names;

    #[test]
    fn a_user_comes_out_as_it_went_in() {
        let mut headers = HeaderMap::new();
        headers.insert(USER, HeaderValue::from_static("somebody else"));
        headers.insert("x-remote-extra-old", HeaderValue::from_static("x"));
        let jane = User {
            name: "jane".into(),
            uid: "7".into(),
            groups: vec!["a".into(), "b".into(), names::AUTHENTICATED.into()],
            extra: vec![("example.com/scope%".into(), vec!["x".into(), "y".into()])],
        };
        name(&mut headers, &jane);
        assert_eq!(user(&headers), Some(jane));
        assert_eq!(user(&HeaderMap::new()), None);
    }

    #[test]
    fn nobody_outside_makes_a_component() {
        let mut headers = HeaderMap::new();
        name(&mut headers, &crate::authn::component("controllers"));
        assert!(!crate::authn::in_group(&user(&headers).unwrap(), names::COMPONENTS));
    }
}
