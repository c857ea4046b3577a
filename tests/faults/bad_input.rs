//! Bad input: one clear error each, and nothing half-applied.
