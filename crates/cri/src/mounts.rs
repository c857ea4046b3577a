//! Mounts of a container, from the interface's words.

use std::path::{Path, PathBuf};

use engine_api::{Mount, MountPropagation, MountSource};
use tonic::Status;

use crate::proto;

/// One mount. What this engine cannot do is refused, as its status says.
pub(crate) fn of(asked: &proto::Mount) -> Result<Mount, Status> {
    let refused =
        |what: &str| Err(Status::invalid_argument(format!("mount {:?}: {what}", asked.container_path)));
    if asked.container_path.is_empty() {
        return refused("it has no path in the container");
    }
    if asked.image.is_some() {
        return refused("images cannot be mounted: copy what is needed into the container's image");
    }
    if !asked.uid_mappings.is_empty() || !asked.gid_mappings.is_empty() {
        return refused("mounts with mapped ids need user namespaces, which are not supported");
    }
    if asked.recursive_read_only {
        return refused("recursive read-only mounts are not supported: mount what lies below one by one");
    }
    if !asked.mount_options.is_empty() {
        return refused("options of mounts are not supported: leave them out");
    }
    if !Path::new(&asked.host_path).is_absolute() {
        return refused(&format!("{:?} is no absolute path of the host", asked.host_path));
    }
    Ok(Mount {
        source: MountSource::Bind(PathBuf::from(&asked.host_path)),
        target: Path::new("/").join(&asked.container_path),
        read_only: asked.readonly,
        propagation: match asked.propagation() {
            proto::MountPropagation::PropagationPrivate => MountPropagation::Private,
            proto::MountPropagation::PropagationHostToContainer => MountPropagation::HostToContainer,
            proto::MountPropagation::PropagationBidirectional => MountPropagation::Bidirectional,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_done_is_refused() {
        let good = proto::Mount {
            container_path: "data".into(),
            host_path: "/srv".into(),
            readonly: true,
            ..proto::Mount::default()
        };
        let made = of(&good).unwrap();
        assert_eq!((made.target, made.read_only), (PathBuf::from("/data"), true));
        let bad = [
            proto::Mount { container_path: String::new(), ..good.clone() },
            proto::Mount { host_path: "srv".into(), ..good.clone() },
            proto::Mount { recursive_read_only: true, ..good.clone() },
            proto::Mount { image: Some(proto::ImageSpec::default()), ..good.clone() },
            proto::Mount { mount_options: vec!["noexec".into()], ..good.clone() },
            proto::Mount { uid_mappings: vec![proto::IdMapping::default()], ..good },
        ];
        for mount in bad {
            assert_eq!(of(&mount).unwrap_err().code(), tonic::Code::InvalidArgument, "{mount:?}");
        }
    }
}
