//! The real pipeline over a store in memory, with the strategies and the admission chain of every cluster.

mod cluster;
mod lifecycle;
mod services;
mod watching;
mod writes;
