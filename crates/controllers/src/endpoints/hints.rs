//! Who should use which endpoint, as `spec.trafficDistribution` says. Source: `k8s.io/endpointslice/trafficdist`.

use super::plan::Drafts;
use super::types::{Endpoint, Hints, Named, Service};

/// How near an endpoint should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Distribution {
    /// In the client's zone, as it was called first.
    Close,
    /// In the client's zone.
    Zone,
    /// On the client's node, else in its zone.
    Node,
}

impl Distribution {
    /// What a Service asks for.
    pub(super) fn of(service: &Service) -> Option<Self> {
        match service.spec.traffic_distribution.as_str() {
            "PreferClose" => Some(Self::Close),
            "PreferSameZone" => Some(Self::Zone),
            "PreferSameNode" => Some(Self::Node),
            _ => None,
        }
    }

    /// The word for it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Close => "PreferClose",
            Self::Zone => "PreferSameZone",
            Self::Node => "PreferSameNode",
        }
    }

    fn hints(self, endpoint: &Endpoint) -> Option<Hints> {
        let named = |name: &Option<String>| name.iter().map(|name| Named { name: name.clone() }).collect();
        let for_nodes = if self == Self::Node { named(&endpoint.node_name) } else { Vec::new() };
        let hints = Hints { for_zones: named(&endpoint.zone), for_nodes };
        (hints != Hints::default()).then_some(hints)
    }
}

/// Every endpoint that is ready is for its own zone, or its own node too.
pub(super) fn give(drafts: &mut Drafts, distribution: Distribution) {
    let is_wrong = |endpoint: &Endpoint| {
        endpoint.is_ready()
            && endpoint.hints.clone().unwrap_or_default() != distribution.hints(endpoint).unwrap_or_default()
    };
    drafts.rewrite(|slice| slice.endpoints.iter().any(is_wrong));
    for draft in drafts.written() {
        for endpoint in draft.endpoints.iter_mut().filter(|endpoint| endpoint.is_ready()) {
            endpoint.hints = distribution.hints(endpoint);
        }
    }
}

/// Every endpoint is for everybody.
pub(super) fn remove(drafts: &mut Drafts) {
    drafts.rewrite(|slice| slice.endpoints.iter().any(|endpoint| endpoint.hints.is_some()));
    for draft in drafts.written() {
        draft.endpoints.iter_mut().for_each(|endpoint| endpoint.hints = None);
    }
}
