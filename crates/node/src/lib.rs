//! A worker per pod, probes, volumes, status and streams.
