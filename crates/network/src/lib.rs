//! Service proxy, DNS, addresses and routes.
pub mod dns;
