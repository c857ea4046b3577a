//! Manifests from a registry, read up to the size that one may have: the client library reads whatever comes into
//! memory. Source: OCI distribution specification, "Pulling manifests".

use http::StatusCode;
use http::header::ACCEPT;

use crate::Error;
use crate::blobs::DOCUMENT_BYTES_MAX;
use crate::document;
use crate::registry::{CONNECT_TIMEOUT, Credentials, READ_TIMEOUT, USER_AGENT};

const ACCEPTED: [&str; 4] =
    [document::MANIFEST, document::INDEX, document::DOCKER_MANIFEST, document::DOCKER_LIST];

/// What a registry was told about who asks.
#[derive(Clone)]
pub(crate) enum Identity {
    Nobody,
    User(Credentials),
    /// What an authorization server gave for one repository.
    Token(String),
}

/// Asks a registry for manifests.
pub(crate) struct Manifests {
    http: reqwest::Client,
    identity: Identity,
}

/// Why there is none.
pub(crate) enum Refusal {
    /// The registry answered with this.
    Status(StatusCode),
    /// It could not be asked, or broke off.
    Connection(reqwest::Error),
    TooLarge,
}

impl Manifests {
    pub(crate) fn new(identity: Identity) -> Result<Self, Error> {
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .user_agent(USER_AGENT)
            .build();
        let http = http.map_err(|error| Error::Unreachable(format!("no client for registries: {error}")))?;
        Ok(Self { http, identity })
    }

    /// The document at `url`, as it came.
    pub(crate) async fn fetch(&self, url: &str) -> Result<Vec<u8>, Refusal> {
        let mut request = self.http.get(url);
        for kind in ACCEPTED {
            request = request.header(ACCEPT, kind);
        }
        let request = match &self.identity {
            Identity::Nobody => request,
            Identity::User(user) => request.basic_auth(&user.username, Some(&user.password)),
            Identity::Token(token) => request.bearer_auth(token),
        };
        let mut response = request.send().await.map_err(Refusal::Connection)?;
        if !response.status().is_success() {
            return Err(Refusal::Status(response.status()));
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(Refusal::Connection)? {
            if (bytes.len() + chunk.len()) as u64 > DOCUMENT_BYTES_MAX {
                return Err(Refusal::TooLarge);
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }
}
