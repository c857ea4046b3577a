//! A CSI driver as the node sees it: calls with deadlines, and what it can do. Requests hold secrets and are never logged.
//! Source: `pkg/volume/csi/csi_client.go`.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use protos::csi::v1::node_client::NodeClient;
use protos::csi::v1::node_service_capability::{Type, rpc};
use protos::csi::v1::{
    NodeExpandVolumeRequest, NodeGetCapabilitiesRequest, NodeGetInfoRequest, NodeGetInfoResponse,
    NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, NodePublishVolumeRequest, NodeStageVolumeRequest,
    NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest,
};
use tokio::sync::OnceCell;
use tonic::transport::Channel;
use tonic::{Code, Response};

use super::socket::{ANSWER_MAX, ask, channel, words};

/// Source: upstream's `csiTimeout`.
const CALL_MAX: Duration = Duration::from_secs(120);
/// Source: CSI, "Required size limits": 128 bytes for most, of which names have less.
const NAME_MAX: usize = 63;
/// What a driver says of itself is written to API objects.
const NODE_ID_MAX: usize = 256;
const TOPOLOGY_MAX: usize = 64;

/// What a driver says that its node service can do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Capabilities {
    /// A volume is staged once on the node, before it is published to pods.
    pub(crate) stage: bool,
    /// File systems are grown where they are.
    pub(crate) expand: bool,
    /// It knows the access modes with one writer apart.
    pub(crate) single_node_multi_writer: bool,
    /// It gives volumes to a group by itself.
    pub(crate) mount_group: bool,
    /// It tells what is in a volume.
    pub(crate) volume_stats: bool,
    /// And how the volume is.
    pub(crate) volume_condition: bool,
}

/// A version of CSI that a driver speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    major: u32,
    minor: u32,
    patch: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl Version {
    /// `1.2.0`, `v1.2`. Source: `version.ParseGeneric`.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix('v').unwrap_or(text).split('.').map(str::parse);
        let major = parts.next()?.ok()?;
        let minor = parts.next()?.ok()?;
        let patch = parts.next().transpose().ok()?.unwrap_or(0);
        Some(Self { major, minor, patch })
    }
}

/// The highest version that both sides speak. Source: `highestSupportedVersion`.
pub(crate) fn version(name: &str, supported: &[String]) -> Result<Version, String> {
    if supported.is_empty() {
        return Err(format!("CSI driver {name} reports no supported versions"));
    }
    let known = supported.iter().filter_map(|text| Version::parse(text));
    known.filter(|version| version.major == 1).max().ok_or_else(|| {
        format!("none of the CSI versions reported by driver {name} are supported: this node speaks 1.x")
    })
}

/// Whether a name is one, as it becomes part of paths and of objects. Source: CSI, `GetPluginInfoResponse.name`.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    let known = |byte: &u8| byte.is_ascii_alphanumeric() || b"-.".contains(byte);
    if bytes.len() <= NAME_MAX && ends(bytes.first()) && ends(bytes.last()) && bytes.iter().all(known) {
        return Ok(());
    }
    let shown: String = name.chars().take(NAME_MAX).collect();
    Err(format!(
        "{shown:?} is no name of a driver: it has at most 63 letters, digits, '-' and '.', and begins and ends with a letter or digit"
    ))
}

/// What a driver says of this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NodeInfo {
    /// What the driver calls this node.
    pub(crate) id: String,
    /// How many volumes can be attached; `None`: it does not say.
    pub(crate) volumes_max: Option<i64>,
    /// Where volumes are reached from.
    pub(crate) topology: Vec<(String, String)>,
}

impl NodeInfo {
    fn of(answer: NodeGetInfoResponse) -> Result<Self, String> {
        if answer.node_id.is_empty() {
            return Err("error adding CSI driver node info: driverNodeID must not be empty".to_owned());
        }
        if answer.node_id.len() > NODE_ID_MAX {
            return Err(format!("the driver's name for this node has more than {NODE_ID_MAX} bytes"));
        }
        let segments = answer.accessible_topology.map(|topology| topology.segments).unwrap_or_default();
        if segments.len() > TOPOLOGY_MAX {
            return Err(format!("the driver says more than {TOPOLOGY_MAX} things of where this node is"));
        }
        let mut topology: Vec<_> = segments.into_iter().collect();
        topology.sort();
        let volumes_max = Some(answer.max_volumes_per_node).filter(|most| *most > 0);
        Ok(Self { id: answer.node_id, volumes_max, topology })
    }
}

/// A driver that has registered.
pub(crate) struct Driver {
    name: String,
    client: NodeClient<Channel>,
    capabilities: OnceCell<Capabilities>,
    limit: Duration,
}

impl Driver {
    /// The driver `name` whose socket is `endpoint`; nothing is asked yet. Within a tokio runtime.
    pub(crate) fn new(name: &str, endpoint: &Path) -> Self {
        Self::with_limit(name, endpoint, CALL_MAX)
    }

    /// As [`Self::new`], with another deadline.
    pub(crate) fn with_limit(name: &str, endpoint: &Path, limit: Duration) -> Self {
        let client = NodeClient::new(channel(endpoint)).max_decoding_message_size(ANSWER_MAX);
        Self { name: name.to_owned(), client, capabilities: OnceCell::new(), limit }
    }

    /// The same with its connection, and with another deadline from now on.
    #[cfg(test)]
    pub(crate) fn within(&self, limit: Duration) -> Self {
        let (client, capabilities) = (self.client.clone(), self.capabilities.clone());
        Self { name: self.name.clone(), client, capabilities, limit }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) async fn node_info(&self) -> Result<NodeInfo, String> {
        let answer = ask(self.limit, self.client.clone().node_get_info(NodeGetInfoRequest {})).await?;
        NodeInfo::of(answer)
    }

    /// What it can do: asked once, since it registers anew when it becomes another.
    pub(crate) async fn capabilities(&self) -> Result<Capabilities, String> {
        self.capabilities.get_or_try_init(|| self.ask_capabilities()).await.copied()
    }

    async fn ask_capabilities(&self) -> Result<Capabilities, String> {
        let mut client = self.client.clone();
        let answer = ask(self.limit, client.node_get_capabilities(NodeGetCapabilitiesRequest {})).await?;
        let mut found = Capabilities::default();
        for capability in answer.capabilities {
            let Some(Type::Rpc(rpc)) = capability.r#type else { continue };
            match rpc.r#type() {
                rpc::Type::StageUnstageVolume => found.stage = true,
                rpc::Type::ExpandVolume => found.expand = true,
                rpc::Type::SingleNodeMultiWriter => found.single_node_multi_writer = true,
                rpc::Type::VolumeMountGroup => found.mount_group = true,
                rpc::Type::GetVolumeStats => found.volume_stats = true,
                rpc::Type::VolumeCondition => found.volume_condition = true,
                rpc::Type::Unknown => {}
            }
        }
        Ok(found)
    }

    pub(crate) async fn stage(&self, request: NodeStageVolumeRequest) -> Result<(), String> {
        ask(self.limit, self.client.clone().node_stage_volume(request)).await.map(drop)
    }

    pub(crate) async fn unstage(&self, handle: &str, staging: &Path) -> Result<(), String> {
        let request =
            NodeUnstageVolumeRequest { volume_id: handle.to_owned(), staging_target_path: text(staging)? };
        ask(self.limit, self.client.clone().node_unstage_volume(request)).await.map(drop)
    }

    pub(crate) async fn publish(&self, request: NodePublishVolumeRequest) -> Result<(), String> {
        ask(self.limit, self.client.clone().node_publish_volume(request)).await.map(drop)
    }

    /// Has a file system grow. Answers why the driver does not do that as long as the volume is used here, if it says so:
    /// it is not to be asked again, and who uses the volume goes on with what there is.
    pub(crate) async fn expand(&self, request: NodeExpandVolumeRequest) -> Result<Option<String>, String> {
        let mut client = self.client.clone();
        let asked = async {
            match client.node_expand_volume(request).await {
                Err(status) if status.code() == Code::FailedPrecondition => {
                    Ok(Response::new(Some(words(&status))))
                }
                answer => answer.map(|_| Response::new(None)),
            }
        };
        ask(self.limit, asked).await
    }

    /// What is in a volume that is published at `path`.
    pub(crate) async fn volume_stats(
        &self,
        handle: &str,
        path: &str,
    ) -> Result<NodeGetVolumeStatsResponse, String> {
        let request = NodeGetVolumeStatsRequest {
            volume_id: handle.to_owned(),
            volume_path: path.to_owned(),
            staging_target_path: String::new(),
        };
        ask(self.limit, self.client.clone().node_get_volume_stats(request)).await
    }

    pub(crate) async fn unpublish(&self, handle: &str, target: &Path) -> Result<(), String> {
        let request = NodeUnpublishVolumeRequest { volume_id: handle.to_owned(), target_path: text(target)? };
        ask(self.limit, self.client.clone().node_unpublish_volume(request)).await.map(drop)
    }
}

/// A path as requests hold it.
pub(crate) fn text(path: &Path) -> Result<String, String> {
    path.to_str().map(str::to_owned).ok_or_else(|| format!("{} is no UTF-8", path.display()))
}

/// Secrets and attributes, as requests hold them.
pub(crate) type Texts = HashMap<String, String>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_version_that_is_spoken_counts() {
        let of = |versions: &[&str]| {
            let versions: Vec<String> = versions.iter().map(|text| (*text).to_owned()).collect();
            version("d", &versions).map(|version| version.to_string())
        };
        assert_eq!(of(&["0.3.0", "1.2.0", "v1.10", "2.0.0", "x"]), Ok("1.10.0".to_owned()));
        assert!(of(&[]).unwrap_err().contains("no supported versions"));
        for wrong in ["0.3.0", "2.0.0", "1", "", "1.a"] {
            assert!(of(&[wrong]).unwrap_err().contains("are supported"), "{wrong}");
        }
    }

    #[test]
    fn names_stay_within_their_directories() {
        for good in ["d", "ebs.csi.aws.com", "A-1"] {
            check_name(good).unwrap();
        }
        for bad in ["", ".", "..", "a/b", "../a", "a.", "-a", "a b", "a\0", &"x".repeat(64)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_a_driver_says_of_the_node_is_bounded() {
        let info = |id: &str, most: i64| NodeGetInfoResponse {
            node_id: id.to_owned(),
            max_volumes_per_node: most,
            accessible_topology: None,
        };
        assert_eq!(NodeInfo::of(info("n", 5)).unwrap().volumes_max, Some(5));
        assert_eq!(NodeInfo::of(info("n", -5)).unwrap().volumes_max, None);
        assert!(NodeInfo::of(info("", 0)).unwrap_err().contains("must not be empty"));
        assert!(NodeInfo::of(info(&"x".repeat(257), 0)).is_err());
        let segments = (0..65).map(|index| (format!("k{index}"), "v".to_owned())).collect();
        let mut lies = info("n", 0);
        lies.accessible_topology = Some(protos::csi::v1::Topology { segments });
        assert!(NodeInfo::of(lies).is_err());
    }
}
