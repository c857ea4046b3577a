//! Services over HTTPS that decide for the API server (webhooks), named by files in kubeconfig format.
//! Source: `apiserver/pkg/util/webhook`, `client-go/tools/clientcmd/api/v1`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header;
use reqwest::{Certificate, Client, ClientBuilder, Identity, Response};
use serde::Deserialize;
use serde_json::Value;

/// A service has this long to answer. Source: upstream's webhook defaults.
const ANSWER_MAX: Duration = Duration::from_secs(30);
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// An answer is at most this large.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// A configuration file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {cause}")]
pub struct FileError {
    path: String,
    cause: String,
}

impl FileError {
    /// What is wrong with a file.
    pub(crate) fn new(path: &Path, cause: impl ToString) -> Self {
        Self { path: path.display().to_string(), cause: cause.to_string() }
    }
}

/// A service that did not answer as it should.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{url}: {cause}")]
pub(crate) struct RemoteError {
    url: String,
    cause: String,
}

/// A service.
#[derive(Debug)]
pub(crate) struct Service {
    http: Client,
    url: String,
    credentials: Credentials,
}

#[derive(Debug)]
enum Credentials {
    /// None, or a certificate.
    Connection,
    Token(String),
    /// Read for each request: it may be renewed.
    TokenFile(PathBuf),
    Basic(String, String),
}

impl Service {
    /// The service that a file in kubeconfig format names by its current context.
    pub(crate) fn from_kubeconfig(path: &Path) -> Result<Self, FileError> {
        let failed = |cause: String| FileError::new(path, cause);
        let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        let config: Kubeconfig = serde_yaml_ng::from_str(&text).map_err(|error| failed(error.to_string()))?;
        let directory = path.parent().unwrap_or(Path::new("/"));
        config.service(directory).map_err(failed)
    }

    /// Sends an object and reads the answer.
    pub(crate) async fn ask(&self, object: &Value) -> Result<Value, RemoteError> {
        let failed = |cause: String| RemoteError { url: self.url.clone(), cause };
        let body = serde_json::to_vec(object).map_err(|error| failed(error.to_string()))?;
        json(self.send(body).await?).await.map_err(failed)
    }

    /// Sends JSON to a service whose answer says nothing but whether it took it.
    pub(crate) async fn tell(&self, body: Vec<u8>) -> Result<(), RemoteError> {
        let response = self.send(body).await?;
        let refused = |code| RemoteError { url: self.url.clone(), cause: format!("answered {code}") };
        if response.status().is_success() { Ok(()) } else { Err(refused(response.status())) }
    }

    async fn send(&self, body: Vec<u8>) -> Result<Response, RemoteError> {
        let failed = |cause: String| RemoteError { url: self.url.clone(), cause };
        let request = self.http.post(&self.url).header(header::CONTENT_TYPE, "application/json").body(body);
        let request = match &self.credentials {
            Credentials::Connection => request,
            Credentials::Token(token) => request.bearer_auth(token),
            Credentials::TokenFile(path) => {
                let token = tokio::fs::read_to_string(path).await;
                let token = token.map_err(|error| failed(format!("token in {}: {error}", path.display())))?;
                request.bearer_auth(token.trim())
            }
            Credentials::Basic(user, password) => request.basic_auth(user, Some(password)),
        };
        request.send().await.map_err(|error| failed(base::error::chain(&error)))
    }
}

/// A client that trusts these authorities (PEM; `None`: the system's), to which `more` is added.
pub(crate) fn client(
    authorities: Option<&[u8]>,
    more: impl FnOnce(ClientBuilder) -> Result<ClientBuilder, String>,
) -> Result<Client, String> {
    let mut builder = Client::builder()
        .connect_timeout(CONNECT_MAX)
        .timeout(ANSWER_MAX)
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("skiff/", env!("CARGO_PKG_VERSION")));
    if let Some(pem) = authorities {
        let certificates = Certificate::from_pem_bundle(pem).map_err(|error| base::error::chain(&error))?;
        builder = builder.tls_certs_only(certificates);
    }
    more(builder)?.build().map_err(|error| base::error::chain(&error))
}

/// The JSON of a successful answer of bounded size.
pub(crate) async fn json(response: Response) -> Result<Value, String> {
    let status = response.status();
    if !status.is_success() {
        return Err(format!("answered {status}"));
    }
    let bytes = bytes(response, ANSWER_BYTES_MAX).await?;
    serde_json::from_slice(&bytes).map_err(|error| format!("the answer is no JSON: {error}"))
}

/// An answer's body of bounded size.
pub(crate) async fn bytes(mut response: Response, bytes_max: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| base::error::chain(&error))? {
        if bytes.len() + chunk.len() > bytes_max {
            return Err(format!("the answer is larger than {bytes_max} bytes"));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Kubeconfig {
    current_context: String,
    clusters: Vec<Named>,
    users: Vec<Named>,
    contexts: Vec<Named>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Named {
    name: String,
    cluster: Cluster,
    user: User,
    context: Context,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: String,
    insecure_skip_tls_verify: bool,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: String,
    client_key: Option<PathBuf>,
    client_key_data: String,
    token: String,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    username: String,
    password: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Context {
    cluster: String,
    user: String,
}

impl Kubeconfig {
    fn service(&self, directory: &Path) -> Result<Service, String> {
        let none = Context::default();
        let context = match self.current_context.as_str() {
            "" => &none,
            name => &named(&self.contexts, name).ok_or(format!("no context {name:?}"))?.context,
        };
        let first = self.clusters.first().filter(|_| context.cluster.is_empty());
        let cluster =
            first.or_else(|| named(&self.clusters, &context.cluster)).ok_or("no cluster is named")?;
        let cluster = &cluster.cluster;
        if !cluster.server.starts_with("https://") && !cluster.server.starts_with("http://") {
            return Err(format!("server {:?} is no URL such as https://host/path", cluster.server));
        }
        let first = self.users.first().filter(|_| context.user.is_empty());
        let none = User::default();
        let user = first.or_else(|| named(&self.users, &context.user)).map_or(&none, |user| &user.user);
        let file = |path: &Option<PathBuf>, data: &str| contents(directory, path.as_deref(), data);
        let authorities = file(&cluster.certificate_authority, &cluster.certificate_authority_data)?;
        let certificate = file(&user.client_certificate, &user.client_certificate_data)?;
        let key = file(&user.client_key, &user.client_key_data)?;
        let http = client(authorities.as_deref(), |mut builder| {
            if cluster.insecure_skip_tls_verify {
                builder = builder.tls_danger_accept_invalid_certs(true);
            }
            match (certificate, key) {
                (Some(certificate), Some(key)) => {
                    let pem = [certificate, b"\n".to_vec(), key].concat();
                    let identity = Identity::from_pem(&pem).map_err(|error| base::error::chain(&error))?;
                    Ok(builder.identity(identity))
                }
                (None, None) => Ok(builder),
                _ => Err("client-certificate and client-key belong together".to_owned()),
            }
        })?;
        let credentials = if !user.token.is_empty() {
            Credentials::Token(user.token.clone())
        } else if let Some(path) = &user.token_file {
            Credentials::TokenFile(directory.join(path))
        } else if !user.username.is_empty() {
            Credentials::Basic(user.username.clone(), user.password.clone())
        } else {
            Credentials::Connection
        };
        Ok(Service { http, url: cluster.server.clone(), credentials })
    }
}

fn named<'a>(list: &'a [Named], name: &str) -> Option<&'a Named> {
    list.iter().find(|known| known.name == name)
}

/// What a file says, or the data that stands in its place (which wins, as in clients).
fn contents(directory: &Path, path: Option<&Path>, data: &str) -> Result<Option<Vec<u8>>, String> {
    if !data.is_empty() {
        return STANDARD.decode(data).map(Some).map_err(|error| format!("data is no base64: {error}"));
    }
    let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) else { return Ok(None) };
    let path = directory.join(path);
    std::fs::read(&path).map(Some).map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Service, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        std::fs::write(&path, text).unwrap();
        Service::from_kubeconfig(&path).map_err(|error| error.cause)
    }

    #[test]
    fn a_file_names_the_service_and_how_to_speak_to_it() {
        let contexts = "contexts: [{name: x, context: {cluster: b, user: u}}]\ncurrent-context: x\n";
        let clusters = "clusters: [{name: a, cluster: {server: 'https://a'}}, {name: b, cluster: {server: 'https://b/p'}}]\n";
        let users = "users: [{name: u, user: {token: t}}]\n";
        let service = read(&[contexts, clusters, users].concat()).unwrap();
        assert_eq!(service.url, "https://b/p");
        assert!(matches!(service.credentials, Credentials::Token(token) if token == "t"));
        let alone = read(clusters).unwrap();
        assert_eq!(alone.url, "https://a");
        assert!(matches!(alone.credentials, Credentials::Connection));
    }

    #[test]
    fn a_file_that_names_none_says_what_is_wrong() {
        for (text, cause) in [
            ("{}", "no cluster"),
            ("clusters: [{name: a, cluster: {server: a}}]", "is no URL"),
            (
                "clusters: [{name: a, cluster: {server: 'https://a', certificate-authority: none}}]",
                "none: No such file",
            ),
            (
                "clusters: [{name: a, cluster: {server: 'https://a', certificate-authority-data: '*'}}]",
                "no base64",
            ),
            ("current-context: x", "no context \"x\""),
            ("[", "expected struct"),
        ] {
            let said = read(text).unwrap_err();
            assert!(said.contains(cause), "{text}: {said}");
        }
    }
}
