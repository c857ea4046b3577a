//! Ports of a host that lead to containers, as everybody speaks of them: pods' `hostPort`, `docker run -p`.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// Its number in IP headers.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// What is no protocol, or no published port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no {1}")]
pub struct ParseError(String, &'static str);

impl FromStr for Protocol {
    type Err = ParseError;

    /// In any case: Kubernetes writes `TCP`, Docker `tcp`.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let known = [Self::Tcp, Self::Udp, Self::Sctp];
        let found = known.into_iter().find(|protocol| text.eq_ignore_ascii_case(&protocol.to_string()));
        found.ok_or_else(|| ParseError(text.to_owned(), "protocol: use tcp, udp or sctp"))
    }
}

/// A port of the host that leads to a port of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublishedPort {
    /// The address of the host; `None`: every one, loopback included.
    pub host_ip: Option<Ipv4Addr>,
    /// The host's port; 0 asks for a free one.
    pub host_port: u16,
    /// The sandbox's port.
    pub port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
}

/// `0.0.0.0:8080 80/tcp`, which [`FromStr`] reads.
impl fmt::Display for PublishedPort {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ip = self.host_ip.unwrap_or(Ipv4Addr::UNSPECIFIED);
        write!(out, "{ip}:{} {}/{}", self.host_port, self.port, self.protocol)
    }
}

impl FromStr for PublishedPort {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = || ParseError(text.to_owned(), "published port: use 0.0.0.0:8080 80/tcp");
        let (host, inside) = text.split_once(' ').ok_or_else(wrong)?;
        let (ip, host_port) = host.split_once(':').ok_or_else(wrong)?;
        let (port, protocol) = inside.split_once('/').ok_or_else(wrong)?;
        let ip: Ipv4Addr = ip.parse().map_err(|_| wrong())?;
        Ok(Self {
            host_ip: (!ip.is_unspecified()).then_some(ip),
            host_port: host_port.parse().map_err(|_| wrong())?,
            port: port.parse().map_err(|_| wrong())?,
            protocol: protocol.parse()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_written_as_they_are_read() {
        for text in ["0.0.0.0:8080 80/tcp", "127.0.0.1:53 5353/udp", "0.0.0.0:0 9/sctp"] {
            assert_eq!(text.parse::<PublishedPort>().unwrap().to_string(), text);
        }
        assert_eq!("TCP".parse(), Ok(Protocol::Tcp));
        for text in ["", "80", "0.0.0.0:80", "::1:80 80/tcp", "0.0.0.0:80 80/icmp", "0.0.0.0:65536 1/tcp"] {
            assert!(text.parse::<PublishedPort>().is_err(), "{text}");
        }
    }
}
