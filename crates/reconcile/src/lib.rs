//! Shared informers, keyed work queues, expectations, events, leader election and the ports between agents.
