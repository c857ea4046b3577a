//! Credentials for registries, found for an image as upstream's keyring finds them: hosts with globs and ports, the
//! longest path first, all that match. Pure. Source: `pkg/credentialprovider/{config,keyring}.go` and its `secrets`.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use engine_api::RegistryAuth;
use k8s_openapi::ByteString;
use serde::Deserialize;

use super::records::{SecretSource, Source, Tracked, hash};

/// Where credentials for Docker's registry stand, whatever they are said to be for.
const DEFAULT_REGISTRY: &str = "index.docker.io";
/// Upstream takes both: with and without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The parts of a Secret that are read.
#[derive(Deserialize)]
pub(super) struct PullSecret {
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    data: BTreeMap<String, ByteString>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata {
    uid: String,
    namespace: String,
    name: String,
}

impl PullSecret {
    fn source(&self, auth: &RegistryAuth) -> Source {
        let Metadata { uid, namespace, name } = &self.metadata;
        Source::Secret(SecretSource {
            uid: uid.clone(),
            namespace: namespace.clone(),
            name: name.clone(),
            credential_hash: hash(auth),
        })
    }
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerAuth>,
}

#[derive(Deserialize)]
struct DockerAuth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
}

impl DockerAuth {
    /// `auth` counts before the fields; `None` where it is unreadable.
    fn credentials(self) -> Option<RegistryAuth> {
        let Self { username, password, auth } = self;
        if auth.is_empty() {
            return Some(RegistryAuth { username, password });
        }
        let decoded = BASE64.decode(auth).ok()?;
        let (username, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
        Some(RegistryAuth { username: username.to_owned(), password: password.to_owned() })
    }
}

/// Credentials by what they are for.
#[derive(Default)]
pub(super) struct Keyring(BTreeMap<String, Vec<Tracked>>);

impl Keyring {
    /// Adds what a Secret holds; says of one that holds something unreadable what and why. The rest of it counts.
    pub(super) fn add(&mut self, secret: &PullSecret) -> Result<(), String> {
        let data = |name: &str| secret.data.get(name).map(|data| data.0.as_slice());
        // The parser's own words may be those of the secret.
        let unreadable = |error: serde_json::Error| {
            format!("no Docker configuration, at line {} column {}", error.line(), error.column())
        };
        let auths = match secret.kind.as_str() {
            "kubernetes.io/dockerconfigjson" => {
                let text = data(".dockerconfigjson").ok_or("no key .dockerconfigjson")?;
                serde_json::from_slice::<DockerConfig>(text).map_err(unreadable)?.auths
            }
            // The older form has no `auths`.
            "kubernetes.io/dockercfg" => {
                let text = data(".dockercfg").ok_or("no key .dockercfg")?;
                serde_json::from_slice(text).map_err(unreadable)?
            }
            kind => return Err(format!("of type {kind}, which holds no credentials for registries")),
        };
        let mut unreadable = Vec::new();
        for (server, auth) in auths {
            match auth.credentials() {
                Some(auth) => {
                    let source = secret.source(&auth);
                    self.insert(&server, Tracked { auth, source });
                }
                None => unreadable.push(server),
            }
        }
        match unreadable.as_slice() {
            [] => Ok(()),
            servers => Err(format!("the auth for {} is not user:password in base64", servers.join(", "))),
        }
    }

    /// Adds credentials for a place: a host, maybe with a port and a path.
    pub(super) fn insert(&mut self, server: &str, tracked: Tracked) {
        self.0.entry(place(server)).or_default().push(tracked);
    }

    /// All credentials for a repository (`docker.io/library/x`), those for the longest path first; as often as they stand
    /// there.
    pub(super) fn lookup(&self, repository: &str) -> Vec<Tracked> {
        let matching = self.0.iter().rev().filter(|(place, _)| matches(place, repository));
        let found: Vec<Tracked> = matching.flat_map(|(_, tracked)| tracked.iter().cloned()).collect();
        if found.is_empty() && repository.starts_with("docker.io/") {
            return self.0.get(DEFAULT_REGISTRY).cloned().unwrap_or_default();
        }
        found
    }
}

/// What credentials are for: host and path, without scheme, and without the version of the registry's API.
fn place(server: &str) -> String {
    let server = server.strip_prefix("https://").or(server.strip_prefix("http://")).unwrap_or(server);
    let (host, path) = server.split_at(server.find('/').unwrap_or(server.len()));
    let versioned = path.starts_with("/v1/") || path.starts_with("/v2/");
    let path = if versioned { &path[3..] } else { path };
    if path == "/" { host.to_owned() } else { format!("{host}{path}") }
}

/// Whether credentials for a place are for an image: each part of the host by its glob, the same port, a path that the
/// image's begins with.
pub(super) fn matches(place: &str, image: &str) -> bool {
    let split = |url: &str| {
        let (host, path) = url.split_at(url.find('/').unwrap_or(url.len()));
        let (host, port) = host.split_once(':').unwrap_or((host, ""));
        (host.to_owned(), port.to_owned(), path.to_owned())
    };
    let ((globs, glob_port, prefix), (host, port, path)) = (split(place), split(image));
    let (globs, parts): (Vec<&str>, Vec<&str>) = (globs.split('.').collect(), host.split('.').collect());
    glob_port == port
        && path.starts_with(&prefix)
        && globs.len() == parts.len()
        && globs.iter().zip(&parts).all(|(glob, part)| base::pattern::matches(glob, part))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn secret(kind: &str, key: &str, config: &serde_json::Value) -> PullSecret {
        let data = BTreeMap::from([(key.to_owned(), ByteString(config.to_string().into_bytes()))]);
        PullSecret { kind: kind.to_owned(), metadata: Metadata::default(), data }
    }

    fn keyring(configs: &[serde_json::Value]) -> Keyring {
        let mut keyring = Keyring::default();
        for auths in configs {
            let config = json!({ "auths": auths });
            let secret = secret("kubernetes.io/dockerconfigjson", ".dockerconfigjson", &config);
            keyring.add(&secret).unwrap();
        }
        keyring
    }

    fn user(name: &str) -> serde_json::Value {
        json!({ "username": name, "password": "p" })
    }

    fn found(keyring: &Keyring, image: &str) -> Vec<String> {
        keyring.lookup(image).into_iter().map(|found| found.auth.username).collect()
    }

    #[test]
    fn the_longest_path_comes_first_and_all_that_match_count() {
        let keyring = keyring(&[
            json!({ "r.example": user("host"), "https://r.example/team/app": user("app") }),
            json!({ "r.example/team": user("team"), "r.example:5000": user("port") }),
            json!({ "r.example": user("second") }),
        ]);
        assert_eq!(found(&keyring, "r.example/team/app"), ["app", "team", "host", "second"]);
        assert_eq!(found(&keyring, "r.example/team/other"), ["team", "host", "second"]);
        assert_eq!(found(&keyring, "r.example/x"), ["host", "second"]);
        assert_eq!(found(&keyring, "r.example:5000/team/app"), ["port"]);
        assert!(found(&keyring, "other.example/team/app").is_empty());
        assert!(found(&keyring, "docker.io/team/app").is_empty());
    }

    #[test]
    fn hosts_have_globs_and_versions_of_the_api_are_no_path() {
        let keyring = keyring(&[json!({
            "*.r.example": user("star"), "https://v.example/v2/": user("v2"), "http://w.example/v1/team": user("w"),
            "a?c.example/": user("question"),
        })]);
        assert_eq!(found(&keyring, "x.r.example/app"), ["star"]);
        assert!(found(&keyring, "x.y.r.example/app").is_empty(), "a star is one part of the host");
        assert_eq!(found(&keyring, "v.example/app"), ["v2"]);
        assert_eq!(found(&keyring, "w.example/team/app"), ["w"]);
        assert!(found(&keyring, "w.example/other").is_empty());
        assert_eq!(found(&keyring, "abc.example/app"), ["question"]);
    }

    #[test]
    fn dockers_own_registry_has_several_names() {
        let of = |server: &str| keyring(&[json!({ server: { "auth": "dTpwOnE=" } })]);
        for server in ["https://index.docker.io/v1/", "index.docker.io", "docker.io", "https://docker.io"] {
            for image in ["docker.io/library/x", "docker.io/team/x"] {
                let auths = of(server).lookup(image);
                assert_eq!((auths.len(), auths[0].auth.password.as_str()), (1, "p:q"), "{server} {image}");
            }
        }
        assert!(of("index.docker.io").lookup("localhost/x").is_empty());
    }

    #[test]
    fn the_older_form_is_read_and_others_are_named() {
        let mut keyring = Keyring::default();
        let old = json!({ "r.example": { "username": "u", "password": "p", "auth": "YTpi" } });
        keyring.add(&secret("kubernetes.io/dockercfg", ".dockercfg", &old)).unwrap();
        assert_eq!(found(&keyring, "r.example/x"), ["a"]);
        let wrong = |kind: &str, key: &str, config| keyring_error(&secret(kind, key, &config));
        assert!(wrong("Opaque", ".dockerconfigjson", json!({})).contains("of type Opaque"));
        assert!(wrong("kubernetes.io/dockerconfigjson", "x", json!({})).contains("no key"));
        let half =
            json!({ "bad.example": { "auth": "?" }, "r.example": { "username": "b", "password": "p" } });
        let told = keyring.add(&secret("kubernetes.io/dockercfg", ".dockercfg", &half)).unwrap_err();
        assert!(told.contains("the auth for bad.example") && !told.contains("r.example"), "{told}");
        assert_eq!(found(&keyring, "r.example/x"), ["a", "b"]);
        assert!(
            wrong("kubernetes.io/dockercfg", ".dockercfg", json!([])).contains("no Docker configuration")
        );
    }

    fn keyring_error(secret: &PullSecret) -> String {
        Keyring::default().add(secret).unwrap_err()
    }
}
