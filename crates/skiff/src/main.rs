//! Skiff: arguments, configuration, wiring, supervision.

fn main() {}
