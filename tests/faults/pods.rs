//! Processes, probes and shims that fail.
