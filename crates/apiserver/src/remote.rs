//! Services over HTTPS that decide for the API server (webhooks), named by files in kubeconfig format, and whom such
//! files say to be.
//! Source: `apiserver/pkg/util/webhook`, `client-go/tools/clientcmd/api/v1`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header;
use reqwest::{Certificate, Client, ClientBuilder, Identity, RequestBuilder, Response};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::renewed::Renewed;

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
    http: Renewed,
    url: String,
    credentials: Credentials,
}

/// How whoever asks a service says who they are, in each request.
pub(crate) enum Credentials {
    /// None, or a certificate.
    Connection,
    /// A bearer token.
    Token(String),
    /// Read for each request: it may be renewed.
    TokenFile(PathBuf),
    /// A name and a password.
    Basic(String, String),
}

/// Secrets are not told.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Connection => "Connection",
            Self::Token(_) => "Token",
            Self::TokenFile(_) => "TokenFile",
            Self::Basic(..) => "Basic",
        })
    }
}

impl Credentials {
    /// A request with them. The failure is a sentence.
    pub(crate) async fn sign(&self, request: RequestBuilder) -> Result<RequestBuilder, String> {
        Ok(match self {
            Self::Connection => request,
            Self::Token(token) => request.bearer_auth(token),
            Self::TokenFile(path) => {
                let token = tokio::fs::read_to_string(path).await;
                let token = token.map_err(|error| format!("token in {}: {error}", path.display()))?;
                request.bearer_auth(token.trim())
            }
            Self::Basic(user, password) => request.basic_auth(user, Some(password)),
        })
    }
}

impl Service {
    /// The service that a file in kubeconfig format names by its current context.
    pub(crate) fn from_kubeconfig(path: &Path) -> Result<Self, FileError> {
        let config = Kubeconfig::read(path)?;
        config.service(directory_of(path)).map_err(|cause| FileError::new(path, cause))
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
        let request =
            self.http.client().post(&self.url).header(header::CONTENT_TYPE, "application/json").body(body);
        let request = self.credentials.sign(request).await.map_err(failed)?;
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

/// What a file in kubeconfig format says.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub(crate) struct Kubeconfig {
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

#[derive(Clone, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub(crate) struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: String,
    client_key: Option<PathBuf>,
    client_key_data: String,
    token: String,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    username: String,
    password: String,
    #[serde(rename = "as")]
    impersonated: Option<IgnoredAny>,
    auth_provider: Option<IgnoredAny>,
    exec: Option<IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Context {
    cluster: String,
    user: String,
}

/// The directory that the paths in a file are relative to.
pub(crate) fn directory_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

impl User {
    /// Names what is not known here, before somebody is asked as nobody instead.
    fn check(&self) -> Result<(), String> {
        for (field, stands) in [
            ("exec", self.exec.is_some()),
            ("auth-provider", self.auth_provider.is_some()),
            ("as", self.impersonated.is_some()),
        ] {
            if stands {
                return Err(format!(
                    "{field} is not known here; name a client certificate, token, tokenFile or username instead"
                ));
            }
        }
        if self.has_certificate() != self.has_key() {
            return Err("client-certificate and client-key belong together".to_owned());
        }
        Ok(())
    }

    fn has_certificate(&self) -> bool {
        !self.client_certificate_data.is_empty() || is_named(self.client_certificate.as_deref())
    }

    fn has_key(&self) -> bool {
        !self.client_key_data.is_empty() || is_named(self.client_key.as_deref())
    }

    /// The files of its certificate, which may be renewed.
    pub(crate) fn files(&self, directory: &Path) -> Vec<PathBuf> {
        let certificate = (&self.client_certificate, &self.client_certificate_data);
        let named = [certificate, (&self.client_key, &self.client_key_data)].into_iter();
        let named = named.filter(|(path, data)| data.is_empty() && is_named(path.as_deref()));
        named.filter_map(|(path, _)| path.as_ref()).map(|path| directory.join(path)).collect()
    }

    /// The certificate and key that it proves itself by, if any.
    pub(crate) fn identity(&self, directory: &Path) -> Result<Option<Identity>, String> {
        let file = |path: &Option<PathBuf>, data: &str| contents(directory, path.as_deref(), data);
        let certificate = file(&self.client_certificate, &self.client_certificate_data)?;
        let key = file(&self.client_key, &self.client_key_data)?;
        let (Some(certificate), Some(key)) = (certificate, key) else { return Ok(None) };
        let pem = [certificate, b"\n".to_vec(), key].concat();
        Identity::from_pem(&pem).map(Some).map_err(|error| base::error::chain(&error))
    }

    /// What its requests carry.
    pub(crate) fn credentials(&self, directory: &Path) -> Credentials {
        if !self.token.is_empty() {
            Credentials::Token(self.token.clone())
        } else if let Some(path) = &self.token_file {
            Credentials::TokenFile(directory.join(path))
        } else if !self.username.is_empty() {
            Credentials::Basic(self.username.clone(), self.password.clone())
        } else {
            Credentials::Connection
        }
    }
}

impl Kubeconfig {
    /// Reads a file.
    pub(crate) fn read(path: &Path) -> Result<Self, FileError> {
        let text = std::fs::read_to_string(path).map_err(|error| FileError::new(path, error))?;
        serde_yaml_ng::from_str(&text).map_err(|error| FileError::new(path, error))
    }

    /// The user of a name.
    pub(crate) fn user(&self, name: &str) -> Option<&User> {
        named(&self.users, name).map(|known| &known.user)
    }

    /// The user of the current context.
    pub(crate) fn current_user(&self) -> Option<&User> {
        self.user(&named(&self.contexts, &self.current_context)?.context.user)
    }

    /// Says which user cannot be used, and why.
    pub(crate) fn check_users(&self) -> Result<(), String> {
        self.users.iter().try_for_each(|known| {
            known.user.check().map_err(|cause| format!("user {:?}: {cause}", known.name))
        })
    }

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
        user.check()?;
        let authorities = contents(
            directory,
            cluster.certificate_authority.as_deref(),
            &cluster.certificate_authority_data,
        )?;
        let credentials = user.credentials(directory);
        let (files, user, directory) = (user.files(directory), user.clone(), directory.to_owned());
        let insecure = cluster.insecure_skip_tls_verify;
        let http = Renewed::new(files, move || {
            client(authorities.as_deref(), |mut builder| {
                if insecure {
                    builder = builder.tls_danger_accept_invalid_certs(true);
                }
                Ok(match user.identity(&directory)? {
                    Some(identity) => builder.identity(identity),
                    None => builder,
                })
            })
        })?;
        Ok(Service { http, url: cluster.server.clone(), credentials })
    }
}

fn named<'a>(list: &'a [Named], name: &str) -> Option<&'a Named> {
    list.iter().find(|known| known.name == name)
}

fn is_named(path: Option<&Path>) -> bool {
    path.is_some_and(|path| !path.as_os_str().is_empty())
}

/// What a file says, or the data that stands in its place (which wins, as in clients).
fn contents(directory: &Path, path: Option<&Path>, data: &str) -> Result<Option<Vec<u8>>, String> {
    if !data.is_empty() {
        return STANDARD.decode(data).map(Some).map_err(|error| format!("data is no base64: {error}"));
    }
    let Some(path) = path.filter(|path| is_named(Some(path))) else { return Ok(None) };
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
            (
                "{clusters: [{name: a, cluster: {server: 'https://a'}}], users: [{name: u, user: {exec: {command: x}}}]}",
                "exec is not known here",
            ),
            ("[", "expected struct"),
        ] {
            let said = read(text).unwrap_err();
            assert!(said.contains(cause), "{text}: {said}");
        }
    }
}
