//! The service proxy: Services and their endpoints as elements of nftables maps.
//!
//! What the kernel holds is a fixed set of chains ([`table`]) and of maps ([`balance`]). A Service is elements only: each
//! of its frontends (an address and port, or a node port) leads to the chain for its count of endpoints, which draws
//! one of them. So a change costs as many elements as it changes, and a packet the same few look-ups whether there are
//! ten Services or ten thousand. Only where clients keep their endpoint, a Service has a chain of its own.

pub mod agent;
pub mod balance;
pub mod desired;
pub mod plan;
pub mod table;
