//! The parts of the program.

pub(crate) mod filter;
pub(crate) mod groups;
pub(crate) mod init;
pub(crate) mod launch;
pub(crate) mod log;
pub(crate) mod outside;
pub(crate) mod passage;
pub(crate) mod poller;
pub(crate) mod sandbox;
pub(crate) mod server;
pub(crate) mod spare;
pub(crate) mod steps;
pub(crate) mod streams;
pub(crate) mod users;
