//! Kubeconfig files: reading one to connect, and putting an entry into one that others use too.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_yaml_ng::{Mapping, Value};

use crate::https::{Config, Token};

/// Why a kubeconfig cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file, or one that it names, cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no kubeconfig.
    #[error("{path} is not a kubeconfig: {source}")]
    Parse {
        /// Which.
        path: PathBuf,
        /// Why.
        source: serde_yaml_ng::Error,
    },
    /// It names something that it does not hold.
    #[error("kubeconfig {path} has no {what} {name:?}; it has: {known}")]
    Missing {
        /// Which file.
        path: PathBuf,
        /// `context`, `cluster` or `user`.
        what: &'static str,
        /// The name.
        name: String,
        /// The names that it holds.
        known: String,
    },
    /// A `*-data` field is not base64.
    #[error("kubeconfig field {field} is not base64: {source}")]
    Base64 {
        /// Which.
        field: &'static str,
        /// Why.
        source: base64::DecodeError,
    },
    /// Something that this client does not do.
    #[error(
        "kubeconfig uses {0}, which Skiff's client does not support; use a client certificate or a token"
    )]
    Unsupported(&'static str),
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct File {
    current_context: Option<String>,
    clusters: Vec<NamedCluster>,
    users: Vec<NamedUser>,
    contexts: Vec<NamedContext>,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    #[serde(default)]
    cluster: Cluster,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    tls_server_name: Option<String>,
    insecure_skip_tls_verify: bool,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    #[serde(default)]
    user: User,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    exec: Option<Value>,
    username: Option<String>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    #[serde(default)]
    context: Context,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Context {
    cluster: String,
    user: String,
    namespace: Option<String>,
}

/// What a context of a kubeconfig stands for.
pub struct Loaded {
    /// How to connect.
    pub config: Config,
    /// The context's namespace, `default` if it names none.
    pub namespace: String,
    /// The context's name.
    pub context: String,
}

/// Where kubectl looks: the files of `$KUBECONFIG`, else `~/.kube/config`. `kubeconfig` and `home` are the values of the
/// variables.
pub fn default_paths(kubeconfig: Option<&str>, home: Option<&Path>) -> Vec<PathBuf> {
    match kubeconfig.filter(|list| !list.is_empty()) {
        Some(list) => list.split(':').filter(|path| !path.is_empty()).map(PathBuf::from).collect(),
        None => home.map(|home| home.join(".kube/config")).into_iter().collect(),
    }
}

/// Reads a kubeconfig's context (the current one if `None`) with everything that it names.
pub fn load(path: &Path, context: Option<&str>) -> Result<Loaded, Error> {
    let text =
        std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    parse(&text, path, context)
}

fn find<'a, T>(
    path: &Path,
    what: &'static str,
    name: &str,
    all: &'a [T],
    name_of: impl Fn(&T) -> &str,
) -> Result<&'a T, Error> {
    all.iter().find(|entry| name_of(entry) == name).ok_or_else(|| Error::Missing {
        path: path.to_owned(),
        what,
        name: name.to_owned(),
        known: all.iter().map(name_of).collect::<Vec<_>>().join(", "),
    })
}

fn parse(text: &str, path: &Path, context: Option<&str>) -> Result<Loaded, Error> {
    let file: File =
        serde_yaml_ng::from_str(text).map_err(|source| Error::Parse { path: path.to_owned(), source })?;
    let name = context.map_or_else(|| file.current_context.clone().unwrap_or_default(), str::to_owned);
    let context = &find(path, "context", &name, &file.contexts, |entry| &entry.name)?.context;
    let cluster = &find(path, "cluster", &context.cluster, &file.clusters, |entry| &entry.name)?.cluster;
    let user = &find(path, "user", &context.user, &file.users, |entry| &entry.name)?.user;
    if user.exec.is_some() {
        return Err(Error::Unsupported("an exec plugin"));
    }
    if user.username.is_some() {
        return Err(Error::Unsupported("a password"));
    }
    if cluster.insecure_skip_tls_verify {
        return Err(Error::Unsupported("insecure-skip-tls-verify"));
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    let pem = |data: &Option<String>, file: &Option<PathBuf>, field| pem(folder, data, file, field);
    let cert = pem(&user.client_certificate_data, &user.client_certificate, "client-certificate-data")?;
    let key = pem(&user.client_key_data, &user.client_key, "client-key-data")?;
    let ca = &cluster.certificate_authority;
    let ca = pem(&cluster.certificate_authority_data, ca, "certificate-authority-data")?;
    let token = match (&user.token, &user.token_file) {
        (Some(token), _) => Token::Fixed(token.clone()),
        (None, Some(file)) => Token::File(folder.join(file)),
        (None, None) => Token::None,
    };
    let config = Config {
        server: cluster.server.clone(),
        ca_pem: ca.unwrap_or_default(),
        tls_server_name: cluster.tls_server_name.clone(),
        client_pem: cert.zip(key),
        token,
        user_agent: String::new(),
    };
    let namespace = context.namespace.clone().unwrap_or_else(|| "default".to_owned());
    Ok(Loaded { config, namespace, context: name })
}

/// Inline data wins over a file, as with kubectl.
fn pem(
    folder: &Path,
    data: &Option<String>,
    file: &Option<PathBuf>,
    field: &'static str,
) -> Result<Option<Vec<u8>>, Error> {
    if let Some(data) = data {
        return STANDARD.decode(data.trim()).map(Some).map_err(|source| Error::Base64 { field, source });
    }
    let Some(file) = file else { return Ok(None) };
    let path = folder.join(file);
    std::fs::read(&path).map(Some).map_err(|source| Error::Read { path, source })
}

/// One cluster, user and context of the same name, to be put into a kubeconfig.
pub struct Entry<'a> {
    /// Name of all three.
    pub name: &'a str,
    /// `https://host:port`.
    pub server: &'a str,
    /// Certificate authority, PEM.
    pub ca_pem: &'a [u8],
    /// Client certificate chain, PEM.
    pub cert_pem: &'a [u8],
    /// Client key, PEM.
    pub key_pem: &'a [u8],
}

/// Puts an entry into the text of a kubeconfig (may be empty), replacing one of the same name and leaving everything
/// else; makes it the current context if asked, or if there is none. `path` is for messages.
pub fn upsert(text: &str, path: &Path, entry: &Entry<'_>, make_current: bool) -> Result<String, Error> {
    let mut root = mapping(text, path)?;
    let data = |pem: &[u8]| Value::from(STANDARD.encode(pem));
    let cluster =
        object([("certificate-authority-data", data(entry.ca_pem)), ("server", Value::from(entry.server))]);
    let user =
        object([("client-certificate-data", data(entry.cert_pem)), ("client-key-data", data(entry.key_pem))]);
    let context = object([("cluster", Value::from(entry.name)), ("user", Value::from(entry.name))]);
    for (name, value) in [("apiVersion", "v1"), ("kind", "Config")] {
        root.entry(name.into()).or_insert(value.into());
    }
    for (list, field, value) in
        [("clusters", "cluster", cluster), ("users", "user", user), ("contexts", "context", context)]
    {
        let named = object([("name", Value::from(entry.name)), (field, value)]);
        replace(&mut root, list, entry.name, Some(named));
    }
    let none = root.get("current-context").and_then(Value::as_str).is_none_or(str::is_empty);
    if make_current || none {
        root.insert("current-context".into(), entry.name.into());
    }
    print(root, path)
}

/// Takes the cluster, user and context of a name out of the text of a kubeconfig. `path` is for messages.
pub fn remove(text: &str, path: &Path, name: &str) -> Result<String, Error> {
    let mut root = mapping(text, path)?;
    for list in ["clusters", "users", "contexts"] {
        if root.contains_key(list) {
            replace(&mut root, list, name, None);
        }
    }
    if root.get("current-context").and_then(Value::as_str) == Some(name) {
        root.insert("current-context".into(), "".into());
    }
    print(root, path)
}

fn mapping(text: &str, path: &Path) -> Result<Mapping, Error> {
    if text.trim().is_empty() {
        return Ok(Mapping::new());
    }
    serde_yaml_ng::from_str(text).map_err(|source| Error::Parse { path: path.to_owned(), source })
}

fn print(root: Mapping, path: &Path) -> Result<String, Error> {
    serde_yaml_ng::to_string(&root).map_err(|source| Error::Parse { path: path.to_owned(), source })
}

fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    Value::Mapping(fields.into_iter().map(|(name, value)| (Value::from(name), value)).collect())
}

/// Takes the entry `name` out of a list and puts `entry` in.
fn replace(root: &mut Mapping, list: &str, name: &str, entry: Option<Value>) {
    let slot = root.entry(list.into()).or_insert(Value::Null);
    let mut entries = match std::mem::replace(slot, Value::Null) {
        Value::Sequence(entries) => entries,
        _ => Vec::new(),
    };
    entries.retain(|entry| entry.get("name").and_then(Value::as_str) != Some(name));
    entries.extend(entry);
    *slot = Value::Sequence(entries);
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHER: &str = "apiVersion: v1\nkind: Config\ncurrent-context: old\npreferences: {colors: true}\n\
        clusters:\n- name: old\n  cluster: {server: 'https://old:1', extra: kept}\n\
        users:\n- name: old\n  user: {token: t}\ncontexts:\n- name: old\n  context: {cluster: old, user: old, namespace: n}\n";

    fn entry(server: &str) -> Entry<'_> {
        Entry { name: "skiff", server, ca_pem: b"ca", cert_pem: b"cert", key_pem: b"key" }
    }

    #[test]
    fn an_entry_joins_what_is_there_and_leaves_again() {
        let path = Path::new("config");
        let text = upsert(OTHER, path, &entry("https://a:1"), false).unwrap();
        let text = upsert(&text, path, &entry("https://b:2"), false).unwrap();
        assert!(text.contains("extra: kept") && text.contains("colors: true"));
        let old = parse(&text, path, None).unwrap();
        assert_eq!((old.context.as_str(), old.namespace.as_str()), ("old", "n"));
        let ours = parse(&text, path, Some("skiff")).unwrap();
        assert_eq!(ours.config.server, "https://b:2");
        assert_eq!(ours.config.client_pem, Some((b"cert".to_vec(), b"key".to_vec())));
        assert_eq!(text.matches("name: skiff").count(), 3);
        let text = remove(&text, path, "skiff").unwrap();
        let (left, before): (Value, Value) =
            (serde_yaml_ng::from_str(&text).unwrap(), serde_yaml_ng::from_str(OTHER).unwrap());
        assert_eq!(left, before);
    }

    #[test]
    fn an_empty_file_gets_a_current_context_and_a_missing_one_is_named() {
        let path = Path::new("config");
        let text = upsert("", path, &entry("https://a:1"), false).unwrap();
        assert_eq!(parse(&text, path, None).unwrap().context, "skiff");
        let Err(error) = parse(&text, path, Some("nope")) else { panic!("there is no such context") };
        assert_eq!(error.to_string(), "kubeconfig config has no context \"nope\"; it has: skiff");
    }
}
