//! An extender whose certificate bears another name than its URL has as host. Requests go to that name, so that it is the
//! one that TLS asks for and looks for in the certificate; the name is resolved to the host of the URL.

use std::sync::Arc;

use base::BoxError;
use http::{HeaderValue, header};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{ClientBuilder, RequestBuilder, Url};

/// Where an extender is, and under which name.
#[derive(Debug, Clone)]
pub(super) struct Address {
    /// The name in its certificate.
    name: String,
    /// Its URL's host.
    host: Arc<str>,
    /// The same with the port, as `Host` of requests.
    authority: HeaderValue,
}

/// Every name stands for one host.
struct Only(Arc<str>);

impl Resolve for Only {
    fn resolve(&self, _: Name) -> Resolving {
        let host = self.0.clone();
        Box::pin(async move {
            // The client puts in the port of the URL.
            let found = tokio::net::lookup_host((&*host, 0)).await.map_err(BoxError::from)?;
            Ok(Box::new(found.collect::<Vec<_>>().into_iter()) as Addrs)
        })
    }
}

impl Address {
    /// The address of an extender at `url` whose certificate bears `name`.
    ///
    /// # Errors
    /// If that is no DNS name: addresses are not resolved.
    pub(super) fn new(url: Url, name: &str) -> Result<Self, String> {
        let host = url.host_str().unwrap_or_default().to_owned();
        let authority = match url.port() {
            None => host.clone(),
            Some(port) => format!("{host}:{port}"),
        };
        let address = Self {
            name: name.to_owned(),
            host: host.trim_start_matches('[').trim_end_matches(']').into(),
            authority: HeaderValue::from_str(&authority).map_err(|error| error.to_string())?,
        };
        match address.named(url.as_str())?.domain() {
            Some(_) => Ok(address),
            None => Err(format!("serverName {name:?} has to be a DNS name")),
        }
    }

    /// Has a client reach the extender. HTTP/2 has no `Host` of its own, and a proxy would resolve the name by itself.
    pub(super) fn reached(&self, builder: ClientBuilder) -> ClientBuilder {
        builder.dns_resolver(Only(self.host.clone())).http1_only().no_proxy()
    }

    /// A URL of the extender under its name.
    pub(super) fn named(&self, url: &str) -> Result<Url, String> {
        let mut url: Url = url.parse().map_err(|error| format!("{url}: {error}"))?;
        url.set_host(Some(&self.name)).map_err(|error| format!("serverName {:?}: {error}", self.name))?;
        Ok(url)
    }

    /// A request that says where it goes as if there were no other name.
    pub(super) fn sign(&self, request: RequestBuilder) -> RequestBuilder {
        request.header(header::HOST, self.authority.clone())
    }
}
