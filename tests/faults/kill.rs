//! `kill -9` of the daemon at random moments under load.
