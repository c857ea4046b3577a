//! Volumes whose files are made from API objects: configMap, secret, downwardAPI and projected. They lie in memory.

use std::io;
use std::path::Path;

use k8s_openapi::api::core::v1::Volume;

use super::payload::{self, Payload, Readers, Source};
use super::set_up::{Setup, fs_group};
use super::{atomic, empty_dir, ownership};
use crate::pod::PodView;

/// Makes and fills it, or brings it up to date. Blocks.
pub(super) fn prepare(setup: &Setup, volume: &Volume) -> Result<(), String> {
    let io = |error: io::Error| error.to_string();
    let payload = payload(setup, volume)?;
    let target = setup.directories.memory_volume(&volume.name);
    empty_dir::make_directory(&target, 0o755).map_err(io)?;
    let group = fs_group(&setup.pod);
    let own = |fresh: &Path| match group {
        Some(gid) => ownership::give_to_group(fresh, gid, true),
        None => Ok(()),
    };
    atomic::write(&target, &payload, setup.now, &own).map(drop).map_err(io)
}

/// The files that it is to hold.
fn payload(setup: &Setup, volume: &Volume) -> Result<Payload, String> {
    let namespace = setup.pod.metadata.namespace.as_str();
    let mut files = Payload::new();
    if let Some(source) = &volume.config_map {
        let optional = source.optional == Some(true);
        let from = Source { kind: "configmap", namespace, name: &source.name, optional };
        let items = source.items.as_deref().unwrap_or_default();
        let data = setup.objects.config_map(&source.name);
        payload::add_keys(&mut files, from, data, items, source.default_mode)?;
    } else if let Some(source) = &volume.secret {
        let name = source.secret_name.as_deref().unwrap_or_default();
        let from = Source { kind: "secret", namespace, name, optional: source.optional == Some(true) };
        let items = source.items.as_deref().unwrap_or_default();
        payload::add_keys(&mut files, from, setup.objects.secret(name), items, source.default_mode)?;
    } else if let Some(source) = &volume.downward_api {
        let items = source.items.as_deref().unwrap_or_default();
        payload::add_fields(&mut files, &setup.pod, &setup.fields, items, source.default_mode)?;
    } else if let Some(source) = &volume.projected {
        let sources = source.sources.as_deref().unwrap_or_default();
        files = payload::projected(
            &setup.pod,
            &setup.fields,
            &*setup.objects,
            sources,
            source.default_mode,
            readers(&setup.pod),
        )?;
    }
    Ok(files)
}

/// The one uid that every container runs as, if they agree.
fn readers(pod: &PodView) -> Readers {
    let context = pod.spec.security_context.as_ref();
    let pod_uid = context.and_then(|context| context.run_as_user);
    let mut uids = pod.containers().map(|(_, container)| {
        container.security_context.as_ref().and_then(|context| context.run_as_user).or(pod_uid)
    });
    let first = uids.next().flatten();
    let uid = first.filter(|uid| uids.all(|other| other == Some(*uid)));
    Readers { uid: uid.and_then(|uid| u32::try_from(uid).ok()), gid: fs_group(pod) }
}
