//! Hosts as network namespaces on one machine, and clusters on them.
