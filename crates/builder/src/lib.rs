//! Dockerfile to build graph, cache and execution.
