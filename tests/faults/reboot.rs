//! The host reboots.
