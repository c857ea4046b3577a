//! The versioned key-value store: embedded, and etcd.
