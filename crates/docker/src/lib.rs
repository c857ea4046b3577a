//! Docker Engine API: thin HTTP over the engine.
