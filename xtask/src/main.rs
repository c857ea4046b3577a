//! Checks on the repository itself and the generators of its committed tables.

fn main() {}
