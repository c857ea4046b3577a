//! Clock, back-off, ids, errors and the lifecycle of components: what every other crate stands on.

pub mod accept;
pub mod backoff;
pub mod clock;
pub mod error;
pub mod go_duration;
pub mod id;
pub mod ignore;
pub mod lifecycle;
pub mod lock;
pub mod pattern;
pub mod published;
pub mod queues;
pub mod spans;

pub use error::BoxError;
