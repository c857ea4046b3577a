//! What every controller and agent stands on: shared informers, keyed work queues, expectations, events, leader
//! election, and the ports at which agents meet.

pub mod controller;
pub mod elected;
pub mod events;
pub mod expectations;
pub mod informer;
pub mod kinds;
pub mod leader;
pub mod local_path;
pub mod node_affinity;
pub mod ports;
pub mod queue;
pub mod taints;
pub mod time;

mod cache;
mod reflector;

#[cfg(test)]
mod tests;

pub use controller::{Action, Reconcile, run_workers};
pub use events::{EventRecorder, EventType, Involved};
pub use expectations::Expectations;
pub use informer::{Change, Informer, Informers, ObjectInformer, Registration, Subscription};
pub use kinds::Kind;
pub use queue::{Claim, Queue};
