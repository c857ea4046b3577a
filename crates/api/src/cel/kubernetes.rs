//! Kubernetes' own libraries: quantities, URLs, addresses and named formats. Source: `k8s.io/apiserver/pkg/cel/library`.

use std::net::IpAddr;
use std::sync::Arc;

use super::operators::length;
use super::patterns::pattern;
use super::semver::Semver;
use super::value::{Key, Text};
use super::{Budget, CelError, Val, told};
use crate::custom::fits_format;
use crate::quantity::Quantity;

type Result<T> = std::result::Result<T, CelError>;

/// A function without a receiver; `None`: there is none of the name.
pub(super) fn function<'v>(
    name: &str,
    arguments: &[Val<'v>],
    budget: &mut Budget,
) -> Result<Option<Val<'v>>> {
    if let [value, ..] = arguments {
        budget.spend(length(value) as u64 / 10)?;
    }
    let value = match (name, arguments) {
        ("quantity", [Val::Text(text)]) => {
            Val::Quantity(Arc::new(text.parse().map_err(|error| CelError::fault(format!("{error}")))?))
        }
        ("isQuantity", [Val::Text(text)]) => Val::Bool(text.parse::<Quantity>().is_ok()),
        ("url", [Val::Text(text)]) if is_url(text) => Val::Url(text.clone()),
        ("url", [Val::Text(text)]) => {
            let text = told(text);
            return Err(CelError::fault(format!("URL parse error during conversion from string: {text:?}")));
        }
        ("isURL", [Val::Text(text)]) => Val::Bool(is_url(text)),
        ("ip", [Val::Text(text)]) => Val::Ip(address(text).ok_or_else(|| {
            let text = told(text);
            CelError::fault(format!("IP Address {text:?} parse error during conversion from string"))
        })?),
        ("isIP", [Val::Text(text)]) => Val::Bool(address(text).is_some()),
        ("ip.isCanonical", [Val::Text(text)]) => {
            let parsed = address(text).ok_or_else(|| CelError::fault("not an IP address"))?;
            Val::Bool(parsed.to_string() == **text)
        }
        ("cidr", [Val::Text(text)]) => {
            let (address, length) = cidr(text).ok_or_else(|| {
                let text = told(text);
                CelError::fault(format!(
                    "network address parse error during conversion from string: {text:?}"
                ))
            })?;
            Val::Cidr(address, length)
        }
        ("semver", [Val::Text(text), rest @ ..]) => {
            let normalize = matches!(rest, [Val::Bool(true)]);
            Val::Semver(Arc::new(Semver::parse(text, normalize).map_err(CelError::fault)?))
        }
        ("isSemver", [Val::Text(text), rest @ ..]) => {
            Val::Bool(Semver::parse(text, matches!(rest, [Val::Bool(true)])).is_ok())
        }
        ("jsonpatch.escapeKey", [Val::Text(text)]) => Val::text(&text.replace('~', "~0").replace('/', "~1")),
        ("isCIDR", [Val::Text(text)]) => Val::Bool(cidr(text).is_some()),
        ("format.named", [Val::Text(format)]) if FORMATS.iter().any(|(known, _)| **known == **format) => {
            Val::some(Val::Format(format.clone()))?
        }
        ("format.named", [Val::Text(_)]) => Val::Optional(None),
        (name, []) => match name.strip_prefix("format.") {
            Some(format) if FORMATS.iter().any(|(known, _)| *known == format) => {
                Val::Format(Text::from(format.to_owned()))
            }
            _ => return Ok(None),
        },
        _ => return Ok(None),
    };
    Ok(Some(value))
}

/// A function of a receiver; `None`: there is none of the name.
pub(super) fn method<'v>(
    name: &str,
    value: &Val<'v>,
    arguments: &[Val<'v>],
    budget: &mut Budget,
) -> Result<Option<Val<'v>>> {
    match value {
        Val::Quantity(quantity) => quantity_method(name, **quantity, arguments),
        Val::Url(url) => url_method(name, url, budget),
        Val::Ip(address) => Ok(ip_method(name, *address, arguments)),
        Val::Cidr(base, length) => cidr_method(name, *base, *length, arguments),
        Val::Authz(step) => step.method(name, arguments, budget),
        Val::Semver(version) => Ok(semver_method(name, version, arguments)),
        Val::Format(format) => match (name, arguments) {
            ("validate", [Val::Text(text)]) => validate(format, text, budget).map(Some),
            _ => Ok(None),
        },
        _ => Ok(None),
    }
}

fn quantity_method<'v>(name: &str, one: Quantity, arguments: &[Val<'v>]) -> Result<Option<Val<'v>>> {
    let other = match arguments {
        [] => None,
        [Val::Quantity(other)] => Some(**other),
        [Val::Int(units)] => Some(Quantity::from_units(*units, crate::quantity::Format::DecimalSi)),
        _ => return Ok(None),
    };
    let whole = one.value().checked_mul(1000) == Some(one.milli_value());
    Ok(Some(match (name, other) {
        ("isInteger", None) => Val::Bool(whole),
        ("asInteger", None) if whole => Val::Int(one.value()),
        ("asInteger", None) => return Err(CelError::fault("cannot convert value to integer")),
        ("asApproximateFloat", None) => Val::Double(one.milli_value() as f64 / 1000.0),
        ("sign", None) => Val::Int(if one.is_negative() { -1 } else { i64::from(one.milli_value() != 0) }),
        ("add", Some(other)) => Val::Quantity(Arc::new(one.plus(other))),
        ("sub", Some(other)) => Val::Quantity(Arc::new(one.minus(other))),
        ("isLessThan", Some(other)) => Val::Bool(one < other),
        ("isGreaterThan", Some(other)) => Val::Bool(one > other),
        ("compareTo", Some(other)) => Val::Int(one.cmp(&other) as i64),
        _ => return Ok(None),
    }))
}

fn semver_method<'v>(name: &str, one: &Semver, arguments: &[Val<'v>]) -> Option<Val<'v>> {
    let number = |place: usize| Val::Int(i64::try_from(one.numbers[place]).unwrap_or(i64::MAX));
    Some(match (name, arguments) {
        ("major", []) => number(0),
        ("minor", []) => number(1),
        ("patch", []) => number(2),
        ("isLessThan", [Val::Semver(other)]) => Val::Bool(one.order(other).is_lt()),
        ("isGreaterThan", [Val::Semver(other)]) => Val::Bool(one.order(other).is_gt()),
        ("compareTo", [Val::Semver(other)]) => Val::Int(one.order(other) as i64),
        _ => return None,
    })
}

/// Absolute URIs and absolute paths. Source: `net/url.ParseRequestURI`.
fn is_url(text: &str) -> bool {
    let clean = !text.chars().any(|letter| letter.is_control() || letter == ' ');
    clean && (text.starts_with('/') || text.parse::<http::Uri>().is_ok_and(|uri| uri.scheme().is_some()))
}

/// Each reads the URL anew.
fn url_method<'v>(name: &str, url: &str, budget: &mut Budget) -> Result<Option<Val<'v>>> {
    budget.spend_on(url.len().saturating_mul(2))?;
    let uri: Option<http::Uri> = url.parse().ok();
    let uri = uri.as_ref();
    let host = || uri.and_then(http::Uri::host).unwrap_or_default();
    let port = || uri.and_then(http::Uri::port).map(|port| port.to_string());
    Ok(Some(match name {
        "getScheme" => Val::text(uri.and_then(http::Uri::scheme_str).unwrap_or_default()),
        "getHostname" => Val::text(host().trim_start_matches('[').trim_end_matches(']')),
        "getHost" => {
            Val::text(&port().map_or_else(|| host().to_owned(), |port| format!("{}:{port}", host())))
        }
        "getPort" => Val::text(&port().unwrap_or_default()),
        "getEscapedPath" => Val::text(uri.map_or("", http::Uri::path)),
        "getQuery" => {
            let mut query = std::collections::BTreeMap::<_, Vec<Val<'v>>>::new();
            for pair in
                uri.and_then(http::Uri::query).unwrap_or_default().split('&').filter(|pair| !pair.is_empty())
            {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                budget.spend_items(4)?;
                query.entry(Key::Text(key.to_owned().into())).or_default().push(Val::text(value));
            }
            let entries = query.into_iter().map(|(key, values)| Ok((key, Val::list(values)?)));
            Val::map(entries.collect::<Result<_>>()?)?
        }
        _ => return Ok(None),
    }))
}

/// An address without a zone, and no IPv4 address in IPv6's clothes.
fn address(text: &str) -> Option<IpAddr> {
    let address: IpAddr = text.parse().ok()?;
    let mapped = matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some());
    (!mapped).then_some(address)
}

fn cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (base, length) = text.split_once('/')?;
    let address = address(base)?;
    let canonical = length == "0" || !length.starts_with(['0', '+']);
    let length = length.parse().ok().filter(|length| canonical && *length <= bits(address))?;
    Some((address, length))
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// An address as a number at the top of 128 bits.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)) << 96,
        IpAddr::V6(address) => u128::from(address),
    }
}

fn mask(length: u8) -> u128 {
    if length == 0 { 0 } else { u128::MAX << (128 - u32::from(length.min(128))) }
}

fn ip_method<'v>(name: &str, address: IpAddr, arguments: &[Val<'v>]) -> Option<Val<'v>> {
    if !arguments.is_empty() {
        return None;
    }
    let holds = match (name, address) {
        ("family", address) => return Some(Val::Int(if address.is_ipv4() { 4 } else { 6 })),
        ("isUnspecified", address) => address.is_unspecified(),
        ("isLoopback", address) => address.is_loopback(),
        ("isLinkLocalMulticast", IpAddr::V4(address)) => address.octets()[..3] == [224, 0, 0],
        ("isLinkLocalMulticast", IpAddr::V6(address)) => address.segments()[0] & 0xff0f == 0xff02,
        ("isLinkLocalUnicast", IpAddr::V4(address)) => address.is_link_local(),
        ("isLinkLocalUnicast", IpAddr::V6(address)) => address.is_unicast_link_local(),
        ("isGlobalUnicast", IpAddr::V4(address)) => {
            !(address.is_unspecified()
                || address.is_loopback()
                || address.is_multicast()
                || address.is_link_local()
                || address.is_broadcast())
        }
        ("isGlobalUnicast", IpAddr::V6(address)) => {
            !(address.is_unspecified()
                || address.is_loopback()
                || address.is_multicast()
                || address.is_unicast_link_local())
        }
        _ => return None,
    };
    Some(Val::Bool(holds))
}

fn cidr_method<'v>(name: &str, base: IpAddr, length: u8, arguments: &[Val<'v>]) -> Result<Option<Val<'v>>> {
    let inside = |address: IpAddr, least: u8| {
        address.is_ipv4() == base.is_ipv4()
            && least >= length
            && number(address) & mask(length) == number(base) & mask(length)
    };
    let network = || match base {
        IpAddr::V4(address) => IpAddr::V4((u32::from(address) & (mask(length) >> 96) as u32).into()),
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) & mask(length)).into()),
    };
    Ok(Some(match (name, arguments) {
        ("containsIP", [Val::Ip(address)]) => Val::Bool(inside(*address, bits(base))),
        ("containsIP", [Val::Text(text)]) => {
            let address = address(text)
                .ok_or_else(|| CelError::fault(format!("IP Address {:?} parse error", told(text))))?;
            Val::Bool(inside(address, bits(base)))
        }
        ("containsCIDR", [Val::Cidr(address, other)]) => Val::Bool(inside(*address, *other)),
        ("containsCIDR", [Val::Text(text)]) => {
            let parsed = cidr(text)
                .ok_or_else(|| CelError::fault(format!("network address parse error: {:?}", told(text))))?;
            Val::Bool(inside(parsed.0, parsed.1))
        }
        ("ip", []) => Val::Ip(base),
        ("masked", []) => Val::Cidr(network(), length),
        ("prefixLength", []) => Val::Int(i64::from(length)),
        _ => return Ok(None),
    }))
}

/// Named formats and the pattern that each is (empty: it is checked otherwise).
const FORMATS: [(&str, &str); 13] = [
    ("dns1123Label", "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"),
    ("dns1123Subdomain", "^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"),
    ("dns1035Label", "^[a-z]([-a-z0-9]*[a-z0-9])?$"),
    ("qualifiedName", "^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$"),
    ("dns1123LabelPrefix", "^[a-z0-9]([-a-z0-9]*[-a-z0-9])?$"),
    ("dns1123SubdomainPrefix", "^[a-z0-9]([-a-z0-9.]*)?$"),
    ("dns1035LabelPrefix", "^[a-z]([-a-z0-9]*)?$"),
    ("labelValue", "^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"),
    ("uri", ""),
    ("uuid", ""),
    ("byte", ""),
    ("date", ""),
    ("datetime", ""),
];

fn validate<'v>(format: &str, text: &str, budget: &mut Budget) -> Result<Val<'v>> {
    budget.spend_on(text.len())?;
    let known = FORMATS.iter().find(|(known, _)| *known == format);
    let fits = match known {
        Some((_, "")) => fits_format(format, text),
        Some((name, source)) => {
            let max = if name.contains("Subdomain") { 253 } else { 63 };
            (text.len() <= max || *name == "qualifiedName") && pattern(text, source, budget)?.is_match(text)
        }
        None => false,
    };
    if fits {
        return Ok(Val::Optional(None));
    }
    Val::some(Val::list(vec![Val::text(&format!("{:?} is no {format}", told(text)))])?)
}

/// As how long upstream counts the pattern of a format. Source: `MaxRegexSize` in `library/format.go`.
pub(super) fn format_pattern_size(format: &str) -> u64 {
    match format {
        "dns1123Label" | "dns1035Label" | "dns1123LabelPrefix" | "dns1035LabelPrefix" => 30,
        "labelValue" => 40,
        "dns1123Subdomain" | "dns1123SubdomainPrefix" | "qualifiedName" => 60,
        _ => 128,
    }
}
