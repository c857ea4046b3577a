//! A webhook's client: one review is posted, its answer read. Connections are kept. A webhook that is named by a Service
//! is reached at one of the Service's endpoints and has to prove that it is `<name>.<namespace>.svc`.
//! Source: `apiserver/pkg/util/webhook/client.go`, `client-go/rest/request.go`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header;
use parking_lot::Mutex;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{ClientBuilder, Identity, Response, Url};
use serde_json::Value;

use super::failure;
use super::{Services, Unanswered, Users};
use crate::remote::{self, Credentials};
use crate::renewed::Renewed;
use crate::tree;

const JSON: &str = "application/json";
/// The port of a Service that names none.
const PORT: u16 = 443;
/// Under which code a webhook is counted that could not be asked. Source: `NewServiceUnavailable`.
const UNREACHABLE: u16 = 503;
/// How often a webhook that asks to be called later is called. Source: client-go's `maxRetries`.
const ATTEMPTS_MAX: u32 = 11;
/// An answer is at most so much larger than its question: one converts objects, or says what to change in one.
const ANSWER_EXTRA_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A webhook's client.
#[derive(Debug)]
pub(crate) struct Client {
    http: Renewed,
    /// Where requests go.
    url: Url,
    /// The same as upstream spells it in messages.
    shown: String,
    /// `Host` where it is not the URL's.
    host: Option<String>,
    dialed: Dialed,
    credentials: Credentials,
}

/// The address that was last tried to reach, where a name had to be resolved.
#[derive(Debug, Clone, Default)]
struct Dialed(Arc<Mutex<Option<SocketAddr>>>);

/// Resolves a Service's name.
#[derive(Clone)]
struct Dial {
    services: Arc<Services>,
    namespace: String,
    name: String,
    port: u16,
    dialed: Dialed,
}

impl Resolve for Dial {
    fn resolve(&self, _: Name) -> Resolving {
        let dial = self.clone();
        Box::pin(async move {
            let found = dial.services.endpoint(&dial.namespace, &dial.name, dial.port).await;
            *dial.dialed.0.lock() = found.as_ref().ok().copied();
            let reached = dial.services.stands_at(found?);
            Ok(Box::new(std::iter::once(reached)) as Addrs)
        })
    }
}

impl Client {
    /// The client of a `clientConfig`. The failure is what is wrong with the configuration.
    pub(super) fn new(
        config: &Value,
        services: &Arc<Services>,
        users: Option<&Users>,
    ) -> Result<Self, String> {
        let bundle = STANDARD
            .decode(tree::text(config, &["caBundle"]))
            .map_err(|error| format!("caBundle is no base64: {error}"))?;
        let authorities = Some(bundle.trim_ascii()).filter(|bundle| !bundle.is_empty());
        let service = tree::at(config, &["service"]);
        if service.is_object() {
            return Self::of_service(service, authorities, services, users);
        }
        let text = tree::text(config, &["url"]);
        if text.is_empty() {
            return Err("webhook configuration must have either service or URL".to_owned());
        }
        let url: Url = text.parse().map_err(|error| format!("Unparsable URL: {error}"))?;
        let target =
            format!("{}:{}", url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or(PORT));
        let user = Users::known(users, &target);
        let (credentials, authorities) = (user.credentials(), authorities.map(<[u8]>::to_vec));
        let http = Renewed::new(user.files(), move || {
            remote::client(authorities.as_deref(), |builder| Ok(proven(builder.no_proxy(), user.identity()?)))
        })?;
        Ok(Self { http, shown: url.to_string(), url, host: None, dialed: Dialed::default(), credentials })
    }

    fn of_service(
        service: &Value,
        authorities: Option<&[u8]>,
        services: &Arc<Services>,
        users: Option<&Users>,
    ) -> Result<Self, String> {
        let text = |field: &str| tree::text(service, &[field]);
        let port = tree::at(service, &["port"]).as_u64().and_then(|port| u16::try_from(port).ok());
        let port = port.filter(|port| *port > 0).unwrap_or(PORT);
        let host = format!("{}.{}.svc", text("name"), text("namespace"));
        let path = if text("path").is_empty() { "/" } else { text("path") };
        // A URL without a port: the one that the name is resolved to holds.
        let url = format!("https://{host}{path}");
        let url = url.parse().map_err(|error| format!("Unparsable URL: {error}"))?;
        let dialed = Dialed::default();
        let dial = Dial {
            services: services.clone(),
            namespace: text("namespace").to_owned(),
            name: text("name").to_owned(),
            port,
            dialed: dialed.clone(),
        };
        let target = format!("{host}:{port}");
        let user = Users::known(users, &target);
        let (credentials, authorities) = (user.credentials(), authorities.map(<[u8]>::to_vec));
        let http = Renewed::new(user.files(), move || {
            remote::client(authorities.as_deref(), |builder| {
                let builder = builder.no_proxy().dns_resolver(Arc::new(dial.clone()) as Arc<dyn Resolve>);
                Ok(proven(builder, user.identity()?))
            })
        })?;
        let shown = format!("https://{target}{path}");
        Ok(Self { http, url, shown, host: Some(target), dialed, credentials })
    }

    /// Posts a review and reads the answer, all within a time. `told`: the webhook is told how long it has. The failure
    /// is a sentence such as upstream's clients say.
    pub(crate) async fn post(
        &self,
        review: &Value,
        within: Duration,
        told: bool,
    ) -> Result<Value, Unanswered> {
        let mut url = self.url.clone();
        let mut shown = self.shown.clone();
        if told {
            let query = format!("timeout={}s", within.as_secs());
            url.set_query(Some(&query));
            shown = format!("{shown}?{query}");
        }
        let body = Bytes::from(review.to_string());
        let answered = tokio::time::timeout(within, self.answered(&url, &body)).await;
        let answer = answered.unwrap_or_else(|_| Err(Failed::Call(failure::DEADLINE.to_owned())));
        answer.map_err(|failed| match failed {
            Failed::Call(cause) => Unanswered::new(UNREACHABLE, format!("Post {shown:?}: {cause}")),
            Failed::Answer(code, sentence) => Unanswered::new(code, sentence),
        })
    }

    /// The answer of a webhook that may first ask for patience.
    async fn answered(&self, url: &Url, body: &Bytes) -> Result<Value, Failed> {
        let mut attempt = 1;
        loop {
            let mut request = self.http.client().post(url.clone()).header(header::CONTENT_TYPE, JSON);
            request = request.header(header::ACCEPT, "application/json, */*").body(body.clone());
            if let Some(host) = &self.host {
                request = request.header(header::HOST, host);
            }
            let request = self.credentials.sign(request).await.map_err(Failed::Call)?;
            let response = request.send().await.map_err(|error| Failed::Call(self.cause(&error)))?;
            match patience(&response).filter(|_| attempt < ATTEMPTS_MAX) {
                Some(patience) => tokio::time::sleep(patience).await,
                None => return read(response, body.len() + ANSWER_EXTRA_BYTES_MAX).await,
            }
            attempt += 1;
        }
    }

    /// Why nothing was answered.
    fn cause(&self, error: &reqwest::Error) -> String {
        let dialed = self.dialed.0.lock().map(|address| address.to_string());
        let authority = || {
            let port = self.url.port_or_known_default().unwrap_or(PORT);
            format!("{}:{port}", self.url.host_str().unwrap_or_default())
        };
        failure::cause(error, &dialed.unwrap_or_else(authority))
    }
}

/// A client that proves who it is by a certificate, if there is one.
fn proven(builder: ClientBuilder, identity: Option<Identity>) -> ClientBuilder {
    match identity {
        Some(identity) => builder.identity(identity),
        None => builder,
    }
}

/// Why there is no answer.
enum Failed {
    /// The webhook was not reached, or did not end its answer.
    Call(String),
    /// What it answered is none: its code, and what is wrong.
    Answer(u16, String),
}

/// How long a webhook that is busy wants to be left alone.
fn patience(response: &Response) -> Option<Duration> {
    let code = response.status().as_u16();
    let seconds = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    (code == 429 || code >= 500).then(|| Duration::from_secs(seconds))
}

/// The object that a webhook answered with, of bounded size.
async fn read(response: Response, bytes_max: usize) -> Result<Value, Failed> {
    let code = response.status().as_u16();
    let bytes = remote::bytes(response, bytes_max).await.map_err(Failed::Call)?;
    if !(200..=206).contains(&code) {
        return Err(Failed::Answer(code, failure::answered(code, &bytes)));
    }
    serde_json::from_slice(&bytes).map_err(|error| {
        Failed::Answer(UNREACHABLE, format!("couldn't get version/kind; json parse error: {error}"))
    })
}
