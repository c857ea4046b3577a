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
