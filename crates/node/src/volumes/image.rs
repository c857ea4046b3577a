//! Volumes that show the files of an image: pulled as a container's image is, mounted where nothing of it can be written or
//! executed, and kept as long as the pod has them. What is mounted stays what it is for the pod's life, whatever becomes of
//! its tag. Source: KEP-4639, `pkg/volume/image`, `getImageVolumes` in `pkg/kubelet/kuberuntime`.

use std::path::Path;

use futures::future::join_all;
use k8s_openapi::api::core::v1::{ImageVolumeSource, Volume};

use super::kind::Kind;
use super::{VolumeError, empty_dir};
use crate::deps::{Deps, blocking};
use crate::images;
use crate::pod::PodView;

/// Mounts the images that a pod has as volumes; those that are mounted stay as they are. Cancel safe.
pub(crate) async fn mount_all(deps: &Deps, pod: &PodView) -> Result<(), VolumeError> {
    let works = pod.spec.volumes.iter().flatten().filter_map(|volume| {
        let source = source(pod, volume)?;
        Some(async move {
            let failed = |cause| VolumeError::SetUp { volume: volume.name.clone(), cause };
            mount(deps, pod, &volume.name, source).await.map_err(failed)
        })
    });
    join_all(works).await.into_iter().collect()
}

fn source<'a>(pod: &PodView, volume: &'a Volume) -> Option<&'a ImageVolumeSource> {
    match Kind::of(&pod.metadata.name, volume) {
        Ok(Kind::Image(source)) => Some(source),
        _ => None,
    }
}

async fn mount(deps: &Deps, pod: &PodView, volume: &str, source: &ImageVolumeSource) -> Result<(), String> {
    let target = deps.directories(pod.uid()).memory_volume(volume);
    let place = target.clone();
    let mounted = blocking(move || is_mounted(&place)).await.map_err(|error| error.to_string())?;
    if mounted.map_err(|error| error.to_string())? {
        return Ok(());
    }
    let id = images::ensure_for_volume(deps, pod, source).await;
    let id = id.map_err(|missing| format!("{}: {}", missing.reason, missing.message))?;
    let done = deps.images.mount_read_only(pod.uid(), &id, &target).await;
    done.map_err(|error| error.to_string())
}

/// Makes the directory where there is none. Blocks.
fn is_mounted(target: &Path) -> std::io::Result<bool> {
    std::fs::create_dir_all(target)?;
    empty_dir::is_mounted(target)
}
