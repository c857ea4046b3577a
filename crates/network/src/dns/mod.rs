//! Cluster DNS on the address of the Service `kube-system/kube-dns`: Services, headless Services and pods by name, all
//! other names through the host's resolvers. Source: the Kubernetes DNS-Based Service Discovery specification 1.1.0.

mod answer;
mod feed;
mod forward;
mod serve;
mod zone;

pub use forward::{Forwarder, Resolvers};
pub use serve::{Dns, DnsConfig};
pub use zone::{Found, Record, Zone};
