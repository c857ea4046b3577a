//! The service proxy: Services and their endpoints as elements of nftables maps.
//!
//! What the kernel holds is a fixed set of chains and maps ([`table`]). A Service is elements only: each of its
//! frontends (an address and port, or a node port) leads to a number, and each (number, index) to an endpoint. A rule
//! for every count of endpoints in use picks a random index. So a change costs as many elements as it changes, and a
//! packet the same few look-ups whether there are ten Services or ten thousand.

pub mod agent;
pub mod desired;
pub mod plan;
pub mod table;
