//! Where the images of a registry may be had from: mirrors and private authorities, as the host's administrator says.
//!
//! Read are containerd's `hosts.toml`, the certificates that Docker keeps per registry, and what Docker's `daemon.json`
//! says of mirrors and of registries without proof of who they are. Nothing is kept: each pull reads anew.
//! Sources: containerd's `docs/hosts.md` and `core/remotes/docker/config/hosts.go`; Docker's `dockerd` reference,
//! "Insecure registries" and "Daemon configuration file".

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use reqwest::Url;
use serde::Deserialize;

use crate::Error;
use crate::error::During;

/// Where the registry of Docker Hub's names is.
const DOCKER_HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");
/// No file of configuration or certificates is larger.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Where the administrator says how registries are reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistryConfig {
    /// Directories with a directory for each registry (`registry.example:5000`, `registry.example_5000_` or `_default`) that
    /// holds `hosts.toml` or certificates. The first one that has a registry counts.
    pub directories: Vec<PathBuf>,
    /// Docker's `daemon.json`.
    pub docker_daemon: Option<PathBuf>,
}

/// A place that serves a registry's images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Up to the repository: `https://registry.example/v2`.
    pub(crate) base: String,
    pub(crate) can: Can,
    pub(crate) tls: Tls,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) connect_timeout: Option<Duration>,
    /// The registry that it stands in for.
    pub(crate) mirror_of: Option<String>,
}

/// What a place may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Can {
    /// What a tag means.
    pub(crate) resolve: bool,
    pub(crate) pull: bool,
    pub(crate) push: bool,
}

impl Can {
    const ALL: Self = Self { resolve: true, pull: true, push: true };
    pub(crate) const READ: Self = Self { resolve: true, pull: true, push: false };
}

/// How a place proves itself, and who asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tls {
    /// Authorities that are believed beside the host's.
    pub(crate) authorities: Vec<PathBuf>,
    /// Certificate and key; without the latter both stand in the former.
    pub(crate) clients: Vec<(PathBuf, Option<PathBuf>)>,
    /// Whether who answers need not prove who it is; `None`: nothing is said.
    pub(crate) skip_verify: Option<bool>,
}

impl Tls {
    fn is_said(&self) -> bool {
        *self != Self::default()
    }
}

/// The parts of Docker's `daemon.json` that are read.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct DockerDaemon {
    insecure_registries: Option<Vec<String>>,
    registry_mirrors: Option<Vec<String>>,
}

impl RegistryConfig {
    /// The places to ask for images of a registry, in their order. Blocks.
    ///
    /// # Errors
    /// Where a file cannot be read, or says what cannot be: what it is for is not guessed.
    pub(crate) fn endpoints(&self, registry: &str) -> Result<Vec<Endpoint>, Error> {
        let daemon = self.docker_daemon()?;
        let Some(directory) = self.directory(registry)? else {
            return Ok(of_docker(registry, &daemon, Tls::default()));
        };
        let file = directory.join("hosts.toml");
        match read(&file)? {
            Some(text) if !text.trim().is_empty() => {
                let told = |why: String| Error::Invalid(format!("{}: {why}", file.display()));
                parse_hosts(&text, &directory, registry).map_err(told)
            }
            _ => Ok(of_docker(registry, &daemon, certificates(&directory)?)),
        }
    }

    fn directory(&self, registry: &str) -> Result<Option<PathBuf>, Error> {
        for root in &self.directories {
            for name in directory_names(registry) {
                let path = root.join(name);
                if path.try_exists().during_on("look at", &path)? {
                    return Ok(Some(path));
                }
            }
        }
        Ok(None)
    }

    fn docker_daemon(&self) -> Result<DockerDaemon, Error> {
        let Some(path) = &self.docker_daemon else { return Ok(DockerDaemon::default()) };
        let Some(text) = read(path)?.filter(|text| !text.trim().is_empty()) else {
            return Ok(DockerDaemon::default());
        };
        serde_json::from_str(&text)
            .map_err(|error| Error::Invalid(format!("{} cannot be read: {error}", path.display())))
    }
}

/// The names that a registry's directory may have, in the order in which they count.
fn directory_names(registry: &str) -> Vec<String> {
    let mut names = Vec::new();
    if let Some((host, port)) = registry.rsplit_once(':').filter(|(host, _)| !host.is_empty()) {
        names.push(format!("{host}_{port}_"));
    }
    names.extend([registry.to_owned(), "_default".to_owned()]);
    names
}

/// A small file's text; `None` where there is none.
fn read(path: &Path) -> Result<Option<String>, Error> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.during_on("open", path)?,
    };
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).during_on("read", path)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(Error::Invalid(format!("{} is larger than {FILE_BYTES_MAX} bytes", path.display())));
    }
    Ok(Some(text))
}

/// A certificate or key that somebody has named.
pub(crate) fn read_named(path: &Path) -> Result<String, Error> {
    let missing = || io::Error::from(io::ErrorKind::NotFound);
    read(path)?.ok_or_else(missing).during_on("read", path)
}

/// A registry's certificates in Docker's layout: `*.crt` of authorities, `*.cert` and `*.key` to show.
fn certificates(directory: &Path) -> Result<Tls, Error> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).during_on("read", directory)? {
        names.push(entry.during_on("read", directory)?.path());
    }
    names.sort();
    let of_kind = |kind: &'static str| {
        names.iter().filter(move |path| path.extension().is_some_and(|extension| extension == kind))
    };
    let with_key =
        |path: &PathBuf| (path.clone(), Some(path.with_extension("key")).filter(|key| key.exists()));
    Ok(Tls {
        authorities: of_kind("crt").cloned().collect(),
        clients: of_kind("cert").map(with_key).collect(),
        skip_verify: None,
    })
}

/// As Docker reaches a registry: Docker Hub through its mirrors, and what need not prove itself also in the clear.
fn of_docker(registry: &str, daemon: &DockerDaemon, mut tls: Tls) -> Vec<Endpoint> {
    let mut endpoints = Vec::new();
    for mirror in daemon.registry_mirrors.iter().flatten().filter(|_| registry == DOCKER_HUB.0) {
        endpoints.push(Endpoint {
            base: format!("{}/v2", mirror.trim_end_matches('/')),
            can: Can::READ,
            tls: Tls::default(),
            headers: Vec::new(),
            connect_timeout: None,
            mirror_of: None,
        });
    }
    if daemon.insecure_registries.iter().flatten().any(|place| covers(place, registry)) {
        tls.skip_verify = Some(true);
        endpoints.push(itself(registry, "https", tls));
        endpoints.push(itself(registry, "http", Tls::default()));
    } else {
        let scheme = if is_loopback(registry) && !tls.is_said() { "http" } else { "https" };
        endpoints.push(itself(registry, scheme, tls));
    }
    endpoints
}

/// The host at which a registry is.
pub(crate) fn own_host(registry: &str) -> &str {
    if registry == DOCKER_HUB.0 { DOCKER_HUB.1 } else { registry }
}

/// The registry's own place.
fn itself(registry: &str, scheme: &str, tls: Tls) -> Endpoint {
    let host = own_host(registry);
    Endpoint {
        base: format!("{scheme}://{host}/v2"),
        can: Can::ALL,
        tls,
        headers: Vec::new(),
        connect_timeout: None,
        mirror_of: None,
    }
}

/// Whether an entry of `insecure-registries` is for a registry: its host and port, or a network with its address.
fn covers(place: &str, registry: &str) -> bool {
    let network = place.parse::<IpNet>();
    let address = host_of(registry).parse::<IpAddr>();
    match (network, address) {
        (Ok(network), Ok(address)) => network.contains(&address),
        _ => place == registry,
    }
}

/// Without the port.
fn host_of(registry: &str) -> &str {
    match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => registry.split(':').next().unwrap_or_default(),
    }
}

/// Whether a registry is on this machine: those are spoken to without TLS where nothing else is said.
pub(crate) fn is_loopback(registry: &str) -> bool {
    let host = host_of(registry);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The fields of `hosts.toml` for one place.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Fields {
    capabilities: Vec<String>,
    ca: Option<OneOrMany>,
    client: Option<Clients>,
    skip_verify: Option<bool>,
    header: BTreeMap<String, OneOrMany>,
    override_path: bool,
    dial_timeout: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Clients {
    One(String),
    Many(Vec<OneOrMany>),
}

/// The places that a `hosts.toml` names: those under `host` in the file's order, and the server last.
fn parse_hosts(text: &str, directory: &Path, registry: &str) -> Result<Vec<Endpoint>, String> {
    let mut file: toml::Table = text.parse().map_err(|error: toml::de::Error| error.to_string())?;
    let hosts = match file.remove("host") {
        None => toml::Table::new(),
        Some(toml::Value::Table(hosts)) => hosts,
        Some(_) => return Err("host is no table".to_owned()),
    };
    let server = match file.remove("server") {
        None => None,
        Some(toml::Value::String(server)) => Some(server).filter(|server| !server.is_empty()),
        Some(_) => return Err("server is no string".to_owned()),
    };
    let mut endpoints = Vec::new();
    for (name, fields) in hosts {
        let told = |why: String| format!("host {name:?}: {why}");
        let fields = fields.try_into().map_err(|error| told(error.to_string()))?;
        endpoints.extend(place(&name, fields, directory, registry).map_err(told)?);
    }
    let own: Fields = toml::Value::Table(file).try_into().map_err(|error| error.to_string())?;
    match server {
        Some(server) => endpoints.extend(place(&server, own, directory, registry)?),
        None => endpoints.extend(unnamed_server(own, directory, registry)?),
    }
    Ok(endpoints)
}

/// The registry itself, with what the file says of it.
fn unnamed_server(own: Fields, directory: &Path, registry: &str) -> Result<Vec<Endpoint>, String> {
    let scheme_of = |tls: &Tls| if is_loopback(registry) && !tls.is_said() { "http" } else { "https" };
    let told = detail(own, directory)?;
    let server = itself(registry, scheme_of(&told.tls), told.tls);
    Ok(vec![Endpoint {
        can: told.can,
        headers: told.headers,
        connect_timeout: told.connect_timeout,
        ..server
    }])
}

/// A place by its URL. One in the clear for which TLS is configured is asked with TLS first.
fn place(url: &str, fields: Fields, directory: &Path, registry: &str) -> Result<Vec<Endpoint>, String> {
    let text = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
    let url: Url = text.parse().map_err(|error| format!("{text:?} is no URL: {error}"))?;
    let Some(host) = url.host_str().filter(|_| matches!(url.scheme(), "http" | "https")) else {
        return Err(format!("{text:?} is no URL of a registry: use https://HOST[:PORT][/PATH]"));
    };
    let authority = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    let path = url.path().trim_end_matches('/');
    let version = if fields.override_path || path.ends_with("/v2") { "" } else { "/v2" };
    let told = detail(fields, directory)?;
    let is_itself = authority == registry || (registry, authority.as_str()) == DOCKER_HUB;
    let with = |scheme: &str, tls: Tls| Endpoint {
        base: format!("{scheme}://{authority}{path}{version}"),
        can: told.can,
        tls,
        headers: told.headers.clone(),
        connect_timeout: told.connect_timeout,
        mirror_of: Some(registry.to_owned()).filter(|_| !is_itself),
    };
    let both = url.scheme() == "http" && told.tls.is_said() && url.port_or_known_default() != Some(80);
    Ok(match both {
        true => vec![with("https", told.tls.clone()), with("http", Tls::default())],
        false => vec![with(url.scheme(), told.tls.clone())],
    })
}

/// What a file says of a place beside its URL.
struct Detail {
    can: Can,
    tls: Tls,
    headers: Vec<(String, String)>,
    connect_timeout: Option<Duration>,
}

fn detail(fields: Fields, directory: &Path) -> Result<Detail, String> {
    let absolute = |path: String| directory.join(path);
    let headers = fields.header.into_iter();
    let headers = headers.flat_map(|(name, values)| {
        values.into_vec().into_iter().map(move |value| (name.clone(), value)).collect::<Vec<_>>()
    });
    let timeout = fields.dial_timeout.filter(|text| !text.is_empty());
    let connect_timeout = timeout.map(|text| {
        base::go_duration::parse_unsigned(&text)
            .ok_or_else(|| format!("dial_timeout {text:?} is no duration: use 10s, 1m or the like"))
    });
    Ok(Detail {
        can: capabilities(&fields.capabilities)?,
        tls: Tls {
            authorities: fields
                .ca
                .map(OneOrMany::into_vec)
                .unwrap_or_default()
                .into_iter()
                .map(absolute)
                .collect(),
            clients: fields.client.map(|clients| pairs(clients, directory)).transpose()?.unwrap_or_default(),
            skip_verify: fields.skip_verify,
        },
        headers: headers.collect(),
        connect_timeout: connect_timeout.transpose()?,
    })
}

fn capabilities(names: &[String]) -> Result<Can, String> {
    if names.is_empty() {
        return Ok(Can::ALL);
    }
    let mut can = Can { resolve: false, pull: false, push: false };
    for name in names {
        match name.to_lowercase().as_str() {
            "pull" => can.pull = true,
            "resolve" => can.resolve = true,
            "push" => can.push = true,
            "referrers" => {}
            _ => return Err(format!("unknown capability {name:?}: use pull, resolve, push")),
        }
    }
    Ok(can)
}

fn pairs(clients: Clients, directory: &Path) -> Result<Vec<(PathBuf, Option<PathBuf>)>, String> {
    let entries = match clients {
        Clients::One(path) => vec![OneOrMany::One(path)],
        Clients::Many(entries) => entries,
    };
    let pair = |entry: OneOrMany| match entry {
        OneOrMany::One(path) => Ok((directory.join(path), None)),
        OneOrMany::Many(paths) => match <[String; 2]>::try_from(paths) {
            Ok([certificate, key]) => Ok((directory.join(certificate), Some(directory.join(key)))),
            Err(paths) => Err(format!("client {paths:?} is not a certificate and a key")),
        },
    };
    entries.into_iter().map(pair).collect()
}

#[cfg(test)]
#[path = "hosts_tests.rs"]
mod tests;
