//! The small static program that owns a pod's containers while Skiff comes and goes, and its protocol.
