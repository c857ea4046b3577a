//! Traits for containers, sandboxes, images, builds, volumes and networks, with their contract suite.
