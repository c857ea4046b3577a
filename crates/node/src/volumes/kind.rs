//! Which kind of volume a pod asks for. A kind is a module with its ways to prepare; this table is all that others know.

use k8s_openapi::api::core::v1::{
    CSIVolumeSource, EmptyDirVolumeSource, HostPathVolumeSource, ImageVolumeSource, NFSVolumeSource, Volume,
};

/// A volume of a pod, by its kind.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind<'a> {
    /// A directory of the pod's own, as long as the pod is.
    EmptyDir(&'a EmptyDirVolumeSource),
    /// What lies at a path of the host.
    HostPath(&'a HostPathVolumeSource),
    /// A directory of a server.
    Nfs(&'a NFSVolumeSource),
    /// Files made from API objects: configMap, secret, downwardAPI, projected.
    Objects,
    /// What a claim is bound to.
    Claim(ClaimOf),
    /// What a driver makes for this pod alone.
    Csi(&'a CSIVolumeSource),
    /// The files of an image.
    Image(&'a ImageVolumeSource),
}

/// The claim that a pod has a volume through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClaimOf {
    /// Its name, in the pod's namespace.
    pub(crate) name: String,
    /// The pod only reads the volume.
    pub(crate) read_only: bool,
    /// It was made for the pod, which must be its owner (KEP-1698).
    pub(crate) ephemeral: bool,
}

impl<'a> Kind<'a> {
    /// The kind of a volume; an error names what the node does not have.
    pub(crate) fn of(pod_name: &str, volume: &'a Volume) -> Result<Self, String> {
        if let Some(source) = &volume.empty_dir {
            return Ok(Self::EmptyDir(source));
        }
        if let Some(source) = &volume.host_path {
            return Ok(Self::HostPath(source));
        }
        if let Some(source) = &volume.nfs {
            return Ok(Self::Nfs(source));
        }
        if let Some(source) = &volume.csi {
            return Ok(Self::Csi(source));
        }
        if let Some(source) = &volume.image {
            return Ok(Self::Image(source));
        }
        let of_objects = [
            volume.config_map.is_some(),
            volume.secret.is_some(),
            volume.downward_api.is_some(),
            volume.projected.is_some(),
        ];
        if of_objects.contains(&true) {
            return Ok(Self::Objects);
        }
        match Self::claim(pod_name, volume) {
            Some(claim) => Ok(Self::Claim(claim)),
            None => Err(unknown(volume)),
        }
    }

    /// Whether the volume is noted in the pod's ledger before it is set up.
    pub(crate) fn is_noted(pod_name: &str, volume: &Volume) -> bool {
        volume.csi.is_some() || Self::claim(pod_name, volume).is_some()
    }

    /// The claim that a volume is had through, if it is.
    pub(crate) fn claim(pod_name: &str, volume: &Volume) -> Option<ClaimOf> {
        if let Some(source) = &volume.persistent_volume_claim {
            let read_only = source.read_only.unwrap_or(false);
            return Some(ClaimOf { name: source.claim_name.clone(), read_only, ephemeral: false });
        }
        volume.ephemeral.as_ref().map(|_| ClaimOf {
            name: format!("{pod_name}-{}", volume.name),
            read_only: false,
            ephemeral: true,
        })
    }
}

/// What is said of a volume that the node has no kind for.
fn unknown(volume: &Volume) -> String {
    let fields = serde_json::to_value(volume).unwrap_or_default();
    let sources = fields.as_object().into_iter().flat_map(|fields| fields.keys());
    let sources: Vec<&str> = sources.map(String::as_str).filter(|key| *key != "name").collect();
    match sources.as_slice() {
        [] => "this node does not know the volume's type: it is newer than the node".to_owned(),
        sources => format!(
            "this node has no volumes of type {}: use a persistentVolumeClaim, a hostPath or an emptyDir",
            sources.join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(source: serde_json::Value) -> Volume {
        let mut volume = source;
        volume["name"] = "v".into();
        serde_json::from_value(volume).unwrap()
    }

    #[test]
    fn each_source_has_its_kind_and_others_are_named() {
        let claim =
            volume(serde_json::json!({"persistentVolumeClaim": {"claimName": "c", "readOnly": true}}));
        let wanted = ClaimOf { name: "c".into(), read_only: true, ephemeral: false };
        assert_eq!(Kind::of("web", &claim), Ok(Kind::Claim(wanted)));
        let own = volume(serde_json::json!({"ephemeral": {"volumeClaimTemplate": {"spec": {}}}}));
        let wanted = ClaimOf { name: "web-v".into(), read_only: false, ephemeral: true };
        assert_eq!(Kind::of("web", &own), Ok(Kind::Claim(wanted)));
        let image = volume(serde_json::json!({"image": {"reference": "content:1"}}));
        assert!(matches!(Kind::of("web", &image), Ok(Kind::Image(_))));
        for source in ["configMap", "secret", "downwardAPI", "projected"] {
            assert_eq!(
                Kind::of("web", &volume(serde_json::json!({source: {}}))),
                Ok(Kind::Objects),
                "{source}"
            );
        }
        let nfs = volume(serde_json::json!({"nfs": {"server": "s", "path": "/"}}));
        assert!(matches!(Kind::of("web", &nfs), Ok(Kind::Nfs(_))));
        let other = volume(serde_json::json!({"glusterfs": {"endpoints": "e", "path": "p"}}));
        assert!(Kind::of("web", &other).unwrap_err().contains("no volumes of type glusterfs"));
        assert!(Kind::of("web", &volume(serde_json::json!({}))).unwrap_err().contains("newer than the node"));
    }
}
