//! The image configuration document and the pieces of manifests that Skiff reads.
//!
//! Source: OCI image specification ("Image Configuration", "Manifest", "Index") and Docker's additions
//! (`Healthcheck`, `OnBuild`, `Shell`). Unknown members survive a round trip.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::digest::Digest;

/// Media type of an OCI manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an OCI index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of an image configuration.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of an uncompressed layer; `+gzip` and `+zstd` are the compressed ones.
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Docker's configuration.
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// What types of layers begin with.
const LAYER_FAMILIES: [&str; 2] =
    ["application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs."];
/// Docker's manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's index.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// An image's configuration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ImageDocument {
    /// `amd64`, ….
    #[serde(default)]
    pub architecture: String,
    /// `linux`.
    #[serde(default)]
    pub os: String,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Who made it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// What containers start from.
    #[serde(default, deserialize_with = "or_default")]
    pub config: ContainerConfig,
    /// The layers.
    pub rootfs: RootFs,
    /// How it came to be, one entry per instruction.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<History>,
    /// What else stands in it.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// An image's layers by the digest of their uncompressed archives, the lowest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The digests.
    #[serde(deserialize_with = "or_default")]
    pub diff_ids: Vec<Digest>,
}

impl Default for RootFs {
    fn default() -> Self {
        Self { kind: "layers".to_owned(), diff_ids: Vec::new() }
    }
}

/// What containers start from. Lists that may be absent or empty with different meanings are options.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ContainerConfig {
    /// `user[:group]`.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// `80/tcp`.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub exposed_ports: BTreeMap<String, Value>,
    /// `KEY=value`.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Entry point.
    #[serde(default)]
    pub entrypoint: Option<Vec<String>>,
    /// Command.
    #[serde(default)]
    pub cmd: Option<Vec<String>>,
    /// Paths.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<String, Value>,
    /// Working directory.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// Labels.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Stop signal.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// The shell of shell-form instructions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<Vec<String>>,
    /// Docker's health check, as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Value>,
    /// Instructions for builds on top.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub on_build: Vec<String>,
    /// What else stands in it.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// One instruction of an image's making.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The instruction.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub created_by: String,
    /// Author.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// Remark.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// It made no layer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

/// Points at content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    #[serde(default)]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Names and remarks.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Which machines it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

/// A kind of machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// `amd64`, ….
    pub architecture: String,
    /// `linux`.
    pub os: String,
    /// `v8`, ….
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// The machine that this program was built for, in the words of the specification (those of Go).
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            other => other,
        };
        Self { architecture: architecture.to_owned(), os: "linux".to_owned(), variant: None }
    }
}

/// A manifest: configuration and layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// 2.
    pub schema_version: u32,
    /// What it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// The configuration.
    pub config: Descriptor,
    /// The layers, the lowest first.
    pub layers: Vec<Descriptor>,
}

impl Manifest {
    /// An OCI manifest.
    pub fn new(config: Descriptor, layers: Vec<Descriptor>) -> Self {
        Self { schema_version: 2, media_type: MANIFEST.to_owned(), config, layers }
    }
}

impl Manifest {
    /// Refuses what is no image: other artifacts have manifests as well.
    pub(crate) fn check_types(&self) -> Result<(), String> {
        let kind = self.config.media_type.as_str();
        if !matches!(kind, "" | CONFIG | DOCKER_CONFIG) {
            return Err(format!("it is no container image: its configuration is of type {kind:?}"));
        }
        let is_layer =
            |kind: &str| kind.is_empty() || LAYER_FAMILIES.iter().any(|family| kind.starts_with(family));
        match self
            .layers
            .iter()
            .map(|layer| layer.media_type.as_str())
            .find(|kind| !is_layer(kind) || kind.ends_with("+encrypted"))
        {
            Some(kind) => Err(format!("a layer is of type {kind:?}, which no container can be made from")),
            None => Ok(()),
        }
    }
}

/// What a document by a name or digest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Manifest,
    Index,
}

/// What a document is: by what stands in it, which what is said of it must not contradict. One that could be read as
/// either is neither. Source: OCI image specification, and GHSA-77vh-xpmg-72qh on media types that are confused.
pub(crate) fn shape(document: &Value, said: &str) -> Result<Shape, String> {
    let has = |field: &str| document.get(field).is_some_and(|value| !value.is_null());
    let shape = match (has("manifests"), has("config") || has("layers")) {
        (true, false) => Shape::Index,
        (false, true) => Shape::Manifest,
        (true, true) => {
            return Err("its manifest is an index as well, so that nobody knows what it means".to_owned());
        }
        (false, false) if has("fsLayers") => {
            return Err(
                "its manifest is of schema 1, which is no longer read: push the image again".to_owned()
            );
        }
        (false, false) => return Err("its manifest names no layers and no other manifests".to_owned()),
    };
    let written = document.get("mediaType").and_then(Value::as_str).unwrap_or_default();
    for kind in [written, said] {
        let meant = match kind {
            MANIFEST | DOCKER_MANIFEST => Shape::Manifest,
            INDEX | DOCKER_LIST => Shape::Index,
            _ => continue,
        };
        if meant != shape {
            return Err(format!("its manifest is said to be {kind:?} and is not"));
        }
    }
    Ok(shape)
}

/// An index: manifests for several machines, or the images of a layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// 2.
    pub schema_version: u32,
    /// What it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// The manifests.
    pub manifests: Vec<Descriptor>,
}

impl Index {
    /// The manifest for a machine: an exact match, or the only one that names no platform.
    pub fn select(&self, platform: &Platform) -> Option<&Descriptor> {
        let fits = |entry: &&Descriptor| {
            entry
                .platform
                .as_ref()
                .is_some_and(|p| p.os == platform.os && p.architecture == platform.architecture)
        };
        self.manifests.iter().find(fits).or_else(|| match self.manifests.as_slice() {
            [only] if only.platform.is_none() => Some(only),
            _ => None,
        })
    }
}

/// Now, in the form of `created`.
pub fn timestamp() -> String {
    jiff::Timestamp::now().to_string()
}

/// Go writes absent lists, maps and strings as `null`.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(input: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(input)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_of_docker_survives_a_round_trip() {
        let text = r#"{"architecture":"amd64","os":"linux","docker_version":"20","config":{"Hostname":"h","Env":null,
            "Cmd":["sh"],"Entrypoint":null,"Labels":null,"Healthcheck":{"Test":["CMD","true"]},"OnBuild":null},
            "rootfs":{"type":"layers","diff_ids":null},"history":null}"#;
        let document: ImageDocument = serde_json::from_str(text).unwrap();
        assert_eq!(document.config.cmd.as_deref(), Some(&["sh".to_owned()][..]));
        assert_eq!(document.config.entrypoint, None);
        let again = serde_json::to_value(&document).unwrap();
        assert_eq!(again["docker_version"], "20");
        assert_eq!(again["config"]["Hostname"], "h");
        assert_eq!(again["config"]["Healthcheck"]["Test"][1], "true");
        assert_eq!(serde_json::from_value::<ImageDocument>(again).unwrap(), document);
    }

    #[test]
    fn a_manifest_means_one_thing() {
        let index = serde_json::json!({ "mediaType": INDEX, "manifests": [] });
        let manifest = serde_json::json!({ "config": {}, "layers": [] });
        assert_eq!(shape(&index, ""), Ok(Shape::Index));
        assert_eq!(shape(&manifest, DOCKER_MANIFEST), Ok(Shape::Manifest));
        assert_eq!(shape(&manifest, "application/json"), Ok(Shape::Manifest));
        let mut both = index.clone();
        both["layers"] = serde_json::json!([]);
        for (document, said, part) in [
            (both, INDEX, "nobody knows"),
            (serde_json::json!({ "fsLayers": [] }), "", "schema 1"),
            (serde_json::json!({}), "", "no layers"),
            (index, MANIFEST, "is said to be"),
            (serde_json::json!({ "mediaType": DOCKER_LIST, "config": {} }), "", "is said to be"),
        ] {
            let told = shape(&document, said).unwrap_err();
            assert!(told.contains(part), "{told}");
        }
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let of = |config: &str, layer: &str| {
            let descriptor = |kind: &str| Descriptor {
                media_type: kind.to_owned(),
                digest: Digest::of(b""),
                size: 0,
                annotations: BTreeMap::new(),
                platform: None,
            };
            Manifest::new(descriptor(config), vec![descriptor(layer)]).check_types()
        };
        for layer in ["", LAYER, "application/vnd.docker.image.rootfs.diff.tar.gzip"] {
            assert_eq!(of(CONFIG, layer), Ok(()), "{layer}");
        }
        assert!(
            of("application/vnd.cncf.helm.config.v1+json", LAYER).unwrap_err().contains("no container image")
        );
        assert!(of(CONFIG, "text/plain").unwrap_err().contains("text/plain"));
        let encrypted = format!("{LAYER}+gzip+encrypted");
        assert!(of(DOCKER_CONFIG, &encrypted).unwrap_err().contains("encrypted"));
    }

    #[test]
    fn an_index_is_searched_by_machine() {
        let entry = |architecture: &str, content: &[u8]| Descriptor {
            media_type: MANIFEST.to_owned(),
            digest: Digest::of(content),
            size: 1,
            annotations: BTreeMap::new(),
            platform: Some(Platform {
                architecture: architecture.to_owned(),
                os: "linux".to_owned(),
                variant: None,
            }),
        };
        let index = Index {
            schema_version: 2,
            media_type: String::new(),
            manifests: vec![entry("arm64", b"a"), entry("amd64", b"b")],
        };
        let wanted = Platform { architecture: "amd64".to_owned(), os: "linux".to_owned(), variant: None };
        assert_eq!(index.select(&wanted).unwrap().digest, Digest::of(b"b"));
        let other = Platform { architecture: "s390x".to_owned(), os: "linux".to_owned(), variant: None };
        assert!(index.select(&other).is_none());
    }
}
