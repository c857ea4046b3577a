//! Commands and output; speaks only to the public APIs.
