//! A user's first hour with `kubectl`.
