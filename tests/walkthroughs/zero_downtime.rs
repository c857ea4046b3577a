//! Updates and rollbacks under load: no request fails.
