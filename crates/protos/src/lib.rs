//! What plugins of the node speak over their sockets: messages, clients and servers, generated from upstream's own
//! definitions (`proto`, each file tells its origin). Requests may hold secrets: whoever has one does not log it.

/// The Container Storage Interface, as far as a node speaks it: volumes staged, published and expanded by a driver.
pub mod csi {
    /// `csi.v1`.
    #[allow(
        missing_docs,
        clippy::all,
        clippy::allow_attributes_without_reason,
        clippy::too_many_lines,
        reason = "generated; the definitions document it"
    )]
    pub mod v1 {
        tonic::include_proto!("csi.v1");
    }
}

/// Devices that plugins have for containers.
pub mod devices {
    /// `deviceplugin/v1beta1`.
    #[allow(
        missing_docs,
        clippy::all,
        clippy::allow_attributes_without_reason,
        clippy::too_many_lines,
        reason = "generated; the definitions document it"
    )]
    pub mod v1beta1 {
        tonic::include_proto!("v1beta1");
    }
}

/// How a plugin makes itself known to the node (`pluginregistration/v1`).
pub mod registration {
    /// `pluginregistration`, which should have been called v1.
    #[allow(
        missing_docs,
        clippy::all,
        clippy::allow_attributes_without_reason,
        clippy::too_many_lines,
        reason = "generated; the definitions document it"
    )]
    pub mod v1 {
        tonic::include_proto!("pluginregistration");
    }
}

/// Devices that claims stand for: what drivers prepare, and how the devices are.
pub mod dra {
    /// `dra/v1`.
    #[allow(
        missing_docs,
        clippy::all,
        clippy::allow_attributes_without_reason,
        clippy::too_many_lines,
        reason = "generated; the definitions document it"
    )]
    pub mod v1 {
        tonic::include_proto!("k8s.io.kubelet.pkg.apis.dra.v1");
    }
    /// `dra/v1beta1`.
    #[allow(
        missing_docs,
        clippy::all,
        clippy::allow_attributes_without_reason,
        clippy::too_many_lines,
        reason = "generated; the definitions document it"
    )]
    pub mod v1beta1 {
        tonic::include_proto!("k8s.io.kubelet.pkg.apis.dra.v1beta1");
    }
    /// `dra-health/v1alpha1`.
    #[allow(
        missing_docs,
        clippy::all,
        clippy::allow_attributes_without_reason,
        clippy::too_many_lines,
        reason = "generated; the definitions document it"
    )]
    pub mod health_v1alpha1 {
        tonic::include_proto!("v1alpha1");
    }
    /// `dra-health/v1`, which shares its package's name with others.
    pub mod health_v1 {
        pub use crate::plain::v1::{
            DeviceHealth, DeviceIdentifier, HealthStatus, NodeWatchResourcesRequest,
            NodeWatchResourcesResponse, dra_resource_health_client, dra_resource_health_server,
        };
    }
}

/// Which devices, cores and memory containers have, for whoever watches a node (`podresources/v1`).
pub mod pod_resources {
    pub use crate::plain::v1;
}

/// Definitions whose package says nothing but its version.
mod plain {
    /// `podresources/v1` and `dra-health/v1`.
    #[allow(
        missing_docs,
        clippy::all,
        clippy::allow_attributes_without_reason,
        clippy::too_many_lines,
        reason = "generated; the definitions document it"
    )]
    pub mod v1 {
        tonic::include_proto!("v1");
    }
}
