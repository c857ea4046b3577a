//! Changes in the cluster that may let a pod fit that did not.

use std::sync::Arc;

use crate::types::{Node, Pod};

/// A change.
#[derive(Debug, Clone)]
pub enum Event {
    /// A node came.
    NodeAdded(Arc<Node>),
    /// A node changed: before and after.
    NodeChanged(Arc<Node>, Arc<Node>),
    /// A node went.
    NodeGone(Arc<Node>),
    /// A pod came to a node.
    PodPlaced(Arc<Pod>),
    /// A pod on a node changed: before and after.
    PodChanged(Arc<Pod>, Arc<Pod>),
    /// A pod left its node.
    PodLeft(Arc<Pod>),
    /// The pod that waits changed itself: before and after.
    OwnChanged(Arc<Pod>, Arc<Pod>),
    /// A namespace's labels changed.
    NamespaceChanged,
}
