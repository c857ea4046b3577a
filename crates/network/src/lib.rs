//! Service proxy, DNS, addresses and routes.
