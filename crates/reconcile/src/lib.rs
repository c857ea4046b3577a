//! What every controller and agent stands on: shared informers, keyed work queues, expectations, events, leader
//! election, and the ports at which agents meet.

pub mod ports;
