//! ConfigMaps, Secrets, trust bundles, claims, Services and tokens that a pod refers to: which they are, and their contents gathered
//! before anything is decided.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use api::{Key, ListOptions, Object, Reason, Status};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{
    ClusterTrustBundleProjection, Container, PodCertificateProjection, ServiceAccountTokenProjection,
};
use reconcile::{Kind, kinds};
use serde::Deserialize;

use crate::certificates::{self, Credential};
use crate::deps::Deps;
use crate::pod::PodView;
use crate::pod::env::ServiceLink;
use crate::volumes;
use crate::volumes::claim::{Claims, NodeLabels};
use crate::volumes::payload::{Data, Objects};
use crate::volumes::trust::{self, Bundle};

/// What a pod refers to in its namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct References {
    pub(crate) config_maps: BTreeSet<String>,
    pub(crate) secrets: BTreeSet<String>,
    pub(crate) claims: BTreeSet<String>,
    /// It has certificates of ClusterTrustBundles: of which ones, signers and labels may say.
    pub(crate) trust_bundles: bool,
    /// It has certificates of its own, for which requests are made.
    pub(crate) pod_certificates: bool,
}

impl References {
    /// Everything by kind and name.
    pub(crate) fn each(&self) -> impl Iterator<Item = (Kind, &String)> {
        let config_maps = self.config_maps.iter().map(|name| (kinds::CONFIG_MAPS, name));
        let secrets = self.secrets.iter().map(|name| (kinds::SECRETS, name));
        let claims = self.claims.iter().map(|name| (kinds::PERSISTENT_VOLUME_CLAIMS, name));
        config_maps.chain(secrets).chain(claims)
    }

    /// Whether an object is among them.
    pub(crate) fn contain(&self, kind: &Kind, name: &str) -> bool {
        let bundle = self.trust_bundles && *kind == kinds::CLUSTER_TRUST_BUNDLES;
        let request = self.pod_certificates && *kind == kinds::POD_CERTIFICATE_REQUESTS;
        bundle || request || self.each().any(|(of, known)| of == *kind && known == name)
    }
}

/// What the pod's volumes refer to.
pub(crate) fn volume_references(pod: &PodView) -> References {
    let mut references = References::default();
    for volume in pod.spec.volumes.iter().flatten() {
        let claim = volumes::kind::Kind::claim(&pod.metadata.name, volume);
        references.claims.extend(claim.map(|claim| claim.name));
        if let Some(source) = &volume.config_map {
            references.config_maps.insert(source.name.clone());
        }
        if let Some(source) = &volume.secret {
            references.secrets.extend(source.secret_name.clone());
        }
        let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        for source in sources {
            references.config_maps.extend(source.config_map.iter().map(|map| map.name.clone()));
            references.secrets.extend(source.secret.iter().map(|secret| secret.name.clone()));
            references.trust_bundles |= source.cluster_trust_bundle.is_some();
            references.pod_certificates |= source.pod_certificate.is_some();
        }
    }
    references
}

/// What a container's environment refers to.
pub(crate) fn env_references(container: &Container) -> References {
    let mut references = References::default();
    for source in container.env_from.iter().flatten() {
        references.config_maps.extend(source.config_map_ref.iter().map(|map| map.name.clone()));
        references.secrets.extend(source.secret_ref.iter().map(|secret| secret.name.clone()));
    }
    for from in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
        references.config_maps.extend(from.config_map_key_ref.iter().map(|map| map.name.clone()));
        references.secrets.extend(from.secret_key_ref.iter().map(|secret| secret.name.clone()));
    }
    references
}

/// Everything that the pod refers to.
pub(crate) fn references(pod: &PodView) -> References {
    let mut all = volume_references(pod);
    for (_, container) in pod.containers() {
        let own = env_references(container);
        all.config_maps.extend(own.config_maps);
        all.secrets.extend(own.secrets);
    }
    all
}

/// The uid of the pod that a request for a certificate is of.
pub(crate) fn certified_pod(request: &Object) -> Option<String> {
    #[derive(Deserialize)]
    struct Request {
        spec: Spec,
    }
    #[derive(Deserialize)]
    struct Spec {
        #[serde(rename = "podUID")]
        pod_uid: String,
    }
    request.decode::<Request>().ok().map(|request| request.spec.pod_uid)
}

/// The token projections of a pod.
pub(crate) fn token_projections(pod: &PodView) -> Vec<ServiceAccountTokenProjection> {
    let volumes = pod.spec.volumes.iter().flatten();
    let projected = volumes.filter_map(|volume| volume.projected.as_ref());
    let sources = projected.flat_map(|projected| projected.sources.iter().flatten());
    sources.filter_map(|source| source.service_account_token.clone()).collect()
}

/// What tells two token projections apart.
pub(crate) type TokenKey = (String, i64);

/// The key of a projection.
pub(crate) fn token_key(projection: &ServiceAccountTokenProjection) -> TokenKey {
    (projection.audience.clone().unwrap_or_default(), projection.expiration_seconds.unwrap_or(3600))
}

/// Contents, gathered.
#[derive(Default)]
pub(crate) struct Gathered {
    config_maps: HashMap<String, Data>,
    secrets: HashMap<String, Data>,
    bundles: Vec<Bundle>,
    pub(crate) tokens: HashMap<TokenKey, Vec<u8>>,
    pub(crate) certificates: HashMap<certificates::Source, Credential>,
}

impl Objects for Gathered {
    fn config_map(&self, name: &str) -> Option<Data> {
        self.config_maps.get(name).cloned()
    }

    fn secret(&self, name: &str) -> Option<Data> {
        self.secrets.get(name).cloned()
    }

    fn token(&self, projection: &ServiceAccountTokenProjection) -> Option<Vec<u8>> {
        self.tokens.get(&token_key(projection)).cloned()
    }

    fn credential(&self, projection: &PodCertificateProjection) -> Option<Credential> {
        self.certificates.get(&certificates::source(projection)).cloned()
    }

    fn trust_anchors(&self, projection: &ClusterTrustBundleProjection) -> Result<String, String> {
        trust::anchors(&self.bundles, projection)
    }
}

impl Gathered {
    /// A ConfigMap's text values, for the environment.
    pub(crate) fn text(&self, name: &str) -> Option<BTreeMap<String, String>> {
        let data = self.config_maps.get(name)?;
        let texts = data
            .iter()
            .filter_map(|(key, value)| String::from_utf8(value.clone()).ok().map(|text| (key.clone(), text)));
        Some(texts.collect())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConfigMapView {
    #[serde(default)]
    data: BTreeMap<String, String>,
    #[serde(default)]
    binary_data: BTreeMap<String, ByteString>,
}

#[derive(Deserialize)]
struct SecretView {
    #[serde(default)]
    data: BTreeMap<String, ByteString>,
}

fn config_map_data(object: &Object) -> Result<Data, serde_json::Error> {
    let view: ConfigMapView = object.decode()?;
    let texts = view.data.into_iter().map(|(key, text)| (key, text.into_bytes()));
    Ok(texts.chain(view.binary_data.into_iter().map(|(key, bytes)| (key, bytes.0))).collect())
}

fn secret_data(object: &Object) -> Result<Data, serde_json::Error> {
    let view: SecretView = object.decode()?;
    Ok(view.data.into_iter().map(|(key, bytes)| (key, bytes.0)).collect())
}

/// Gathers what `references` name. What does not exist is absent; a failing API server is an error.
pub(crate) async fn gather(
    deps: &Deps,
    namespace: &str,
    references: &References,
) -> Result<Gathered, Status> {
    let mut gathered = Gathered::default();
    let unreadable = |error: serde_json::Error| Status::internal(format!("object not readable: {error}"));
    for name in &references.config_maps {
        let key = Key::new(namespace, name);
        if let Some(object) = look_up(deps, &kinds::CONFIG_MAPS, &key).await? {
            gathered.config_maps.insert(name.clone(), config_map_data(&object).map_err(unreadable)?);
        }
    }
    for name in &references.secrets {
        let key = Key::new(namespace, name);
        if let Some(object) = look_up(deps, &kinds::SECRETS, &key).await? {
            gathered.secrets.insert(name.clone(), secret_data(&object).map_err(unreadable)?);
        }
    }
    if references.trust_bundles {
        let bundles = match deps.watched.trust_bundles() {
            Some(bundles) => bundles,
            None => {
                let kind = kinds::CLUSTER_TRUST_BUNDLES.gvr();
                deps.client.list(&kind, "", ListOptions::default()).await?.items
            }
        };
        gathered.bundles =
            bundles.iter().map(|object| object.decode()).collect::<Result<_, _>>().map_err(unreadable)?;
    }
    Ok(gathered)
}

/// The pod's claims, and the volumes that they are bound to. A volume is complete before its claim says that it is bound,
/// so that nothing of it is waited for: the claim is.
pub(crate) async fn gather_claims(deps: &Deps, pod: &PodView) -> Result<Claims, Status> {
    let unreadable = |error: serde_json::Error| Status::internal(format!("object not readable: {error}"));
    let mut found = Claims::default();
    for name in volume_references(pod).claims {
        let key = Key::new(&*pod.metadata.namespace, &*name);
        let claim = look_up(deps, &kinds::PERSISTENT_VOLUME_CLAIMS, &key).await?;
        let Some(claim) = claim else { continue };
        let claim: volumes::claim::ClaimView = claim.decode().map_err(unreadable)?;
        let volume = claim.volume_name().to_owned();
        found.claims.insert(name, claim);
        if volume.is_empty() {
            continue;
        }
        let key = Key::new("", &*volume);
        if let Some(object) = look_up(deps, &kinds::PERSISTENT_VOLUMES, &key).await? {
            found.volumes.insert(volume, object.decode().map_err(unreadable)?);
        }
    }
    let inline = pod.spec.volumes.iter().flatten().filter_map(|volume| volume.csi.as_ref());
    let inline = inline.map(|source| source.driver.clone());
    let claimed = found.volumes.values().filter_map(|volume| volume.driver().map(str::to_owned));
    for driver in claimed.chain(inline).collect::<BTreeSet<_>>() {
        if let Some(object) = look_up(deps, &kinds::CSI_DRIVERS, &Key::new("", &*driver)).await? {
            found.drivers.insert(driver, object.decode().map_err(unreadable)?);
        }
    }
    Ok(found)
}

/// This node, as volumes ask for it.
pub(crate) fn node_labels(deps: &Deps) -> NodeLabels {
    let name = deps.config.node_name.clone();
    let node = deps.caches.nodes.get(&Key::new("", &*name));
    let labels = node.map(|node| node.meta().labels.clone()).unwrap_or_default();
    NodeLabels { name, labels }
}

/// From the objects that are watched; what is not among them may be so new that only the server knows it.
pub(crate) async fn look_up(
    deps: &Deps,
    kind: &Kind,
    key: &Key,
) -> Result<Option<std::sync::Arc<Object>>, Status> {
    if let Some(object) = deps.watched.get(kind, key) {
        return Ok(Some(object));
    }
    match deps.client.get(&kind.gvr(), key).await {
        Ok(object) => Ok(Some(object)),
        Err(status) if status.reason == Reason::NotFound => Ok(None),
        Err(status) => Err(status),
    }
}

#[derive(Deserialize)]
struct ServiceView {
    #[serde(default)]
    spec: k8s_openapi::api::core::v1::ServiceSpec,
}

/// The Services that become variables in a pod: those of its namespace (unless it declines) and `default/kubernetes`.
pub(crate) fn service_links(deps: &Deps, pod: &PodView) -> Vec<ServiceLink> {
    let mut objects = Vec::new();
    objects.extend(deps.caches.services.get(&Key::new("default", "kubernetes")));
    if pod.spec.enable_service_links != Some(false) {
        let own = deps.caches.services.in_namespace(&pod.metadata.namespace);
        objects.extend(
            own.into_iter()
                .filter(|object| object.meta().name != "kubernetes" || object.meta().namespace != "default"),
        );
    }
    objects.iter().filter_map(|object| service_link(object)).collect()
}

fn service_link(object: &Object) -> Option<ServiceLink> {
    let view: ServiceView = object.decode().ok()?;
    let cluster_ip = view.spec.cluster_ip.filter(|ip| !ip.is_empty() && ip != "None")?;
    let ports = view.spec.ports.into_iter().flatten().map(|port| {
        (port.name.unwrap_or_default(), port.protocol.unwrap_or_else(|| "TCP".to_owned()), port.port)
    });
    Some(ServiceLink { name: object.meta().name.clone(), cluster_ip, ports: ports.collect() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_for_a_certificate_is_of_one_pod() {
        for (spec, of) in [(json!({ "podName": "web", "podUID": "u" }), Some("u")), (json!({}), None)] {
            let request = json!({ "apiVersion": "certificates.k8s.io/v1", "kind": "PodCertificateRequest",
                "metadata": { "name": "r", "namespace": "default" }, "spec": spec });
            let request = Object::parse(request.to_string().into()).unwrap();
            assert_eq!(certified_pod(&request).as_deref(), of);
        }
    }
}
