//! How many volumes and claims there are, when somebody asks. Source: `persistentvolume/metrics`.

use std::sync::Arc;

use api::Object;
use reconcile::Informer;
use serde::Deserialize;
use serde_json::Value;

use super::Worker;
use super::types::{Claim, Volume};
use crate::context::decode;
use crate::figures::made::{Counts, Teller, count_one};
use crate::figures::volumes::VolumeFigures;

/// Of a volume without a plugin that is known.
const UNKNOWN_PLUGIN: &str = "N/A";
/// The plugins of volumes that no driver took over, by their source. Source: the `GetPluginName` of `pkg/volume`.
const PLUGINS: [(&str, &str); 6] = [
    ("hostPath", "kubernetes.io/host-path"),
    ("nfs", "kubernetes.io/nfs"),
    ("local", "kubernetes.io/local-volume"),
    ("iscsi", "kubernetes.io/iscsi"),
    ("fc", "kubernetes.io/fc"),
    ("flexVolume", "kubernetes.io/flexvolume"),
];

/// Tells as long as what it gives is held.
pub(super) fn tell(figures: &VolumeFigures, worker: &Arc<Worker>) -> [Arc<Teller>; 5] {
    let volumes = |cache: &Informer, is_bound: bool| {
        let cache = cache.clone();
        move || {
            count(&cache, |counts, volume: Volume| {
                if (volume.status.phase == "Bound") == is_bound {
                    count_one(counts, [volume.class()]);
                }
            })
        }
    };
    let claims = |cache: &Informer, is_bound: bool| {
        let cache = cache.clone();
        move || {
            count(&cache, |counts, claim: Claim| {
                if (claim.status.phase == "Bound") == is_bound {
                    count_one(counts, [&claim.metadata.namespace, claim.class(), claim.attributes()]);
                }
            })
        }
    };
    let all = worker.volumes.clone();
    [
        figures.bound.by(volumes(&worker.volumes, true)),
        figures.unbound.by(volumes(&worker.volumes, false)),
        figures.bound_claims.by(claims(&worker.claims, true)),
        figures.unbound_claims.by(claims(&worker.claims, false)),
        figures.all.by(move || {
            count(&all, |counts, volume: Whole| {
                count_one(
                    counts,
                    [&plugin(&volume.spec), volume.spec["volumeMode"].as_str().unwrap_or("Filesystem")],
                );
            })
        }),
    ]
}

/// A volume with its source, whatever that is.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Whole {
    spec: Value,
}

fn count<T: serde::de::DeserializeOwned>(cache: &Informer, each: impl Fn(&mut Counts, T)) -> Counts {
    let mut counts = Counts::new();
    let read = |object: &Arc<Object>| decode::<T>(object).ok();
    cache.list().iter().filter_map(read).for_each(|object| each(&mut counts, object));
    counts
}

/// Source: `GetFullQualifiedPluginNameForVolume`.
fn plugin(spec: &Value) -> String {
    if let Some(driver) = spec["csi"]["driver"].as_str() {
        return format!("kubernetes.io/csi:{driver}");
    }
    let known = PLUGINS.iter().find(|(source, _)| spec.get(source).is_some());
    known.map_or(UNKNOWN_PLUGIN, |(_, plugin)| plugin).to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn plugins_are_named_as_upstream_names_them() {
        for (spec, name) in [
            (json!({ "csi": { "driver": "d.example.com" } }), "kubernetes.io/csi:d.example.com"),
            (json!({ "hostPath": { "path": "/" } }), "kubernetes.io/host-path"),
            (json!({ "local": { "path": "/" } }), "kubernetes.io/local-volume"),
            (json!({}), "N/A"),
        ] {
            assert_eq!(plugin(&spec), name);
        }
    }
}
