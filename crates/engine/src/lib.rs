//! Containers and sandboxes behind engine-api.
