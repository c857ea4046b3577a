//! Nodes that have a pod's images already are better. Source: `imagelocality`.

use std::collections::HashMap;

use crate::cluster::groups::Slot;
use crate::cluster::{Cluster, NodeState};
use crate::framework::{MAX_SCORE, Plugin, Point, Rate};
use crate::types::Pod;

const MIB: i64 = 1 << 20;
/// Less than this does not matter, …
const LEAST: i64 = 23 * MIB;
/// … and no more than this for each image.
const MOST: i64 = 1000 * MIB;

/// Nodes are better by the size of what they need not fetch.
pub(super) struct Images;

struct Present<'a> {
    /// Where each image is, and which part of the nodes that is.
    images: Vec<(&'a HashMap<Slot, i64>, f64)>,
    most: i64,
}

impl Rate for Present<'_> {
    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "sizes of images")]
    fn score(&self, state: &NodeState) -> i64 {
        let sizes = self.images.iter().filter_map(|(nodes, part)| Some((*nodes.get(&state.slot)?, part)));
        // An image that few nodes have counts less, so that they are not filled up.
        let sum = sizes.map(|(size, part)| (size as f64 * part) as i64).fold(0, i64::saturating_add);
        MAX_SCORE * (sum.clamp(LEAST, self.most) - LEAST) / (self.most - LEAST)
    }
}

impl Plugin for Images {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::Score]
    }

    #[allow(clippy::cast_precision_loss, reason = "numbers of nodes")]
    fn rate<'a>(
        &'a self,
        pod: &'a Pod,
        cluster: &'a Cluster,
        _nodes: &[&'a NodeState],
    ) -> Option<Box<dyn Rate + 'a>> {
        let known = pod.spec.images.iter().filter_map(|image| cluster.image(image));
        let all = cluster.len() as f64;
        let images: Vec<_> = known.map(|nodes| (nodes, nodes.len() as f64 / all)).collect();
        let count = i64::try_from(pod.spec.images.len()).unwrap_or(i64::MAX);
        let most = MOST.saturating_mul(count).min(i64::MAX / MAX_SCORE);
        (!images.is_empty()).then(|| Box::new(Present { images, most }) as Box<dyn Rate>)
    }
}
