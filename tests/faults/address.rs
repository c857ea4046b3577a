//! The host's address changes, while Skiff runs and while it is stopped.
