//! The decoders that see bytes from outside, one target each. A target takes any bytes; it fails by a panic, which is
//! also what an invariant that does not hold ends with, by memory beyond the limit, or by not coming to an end.

#![allow(clippy::expect_used, reason = "an invariant that does not hold is what a target ends with")]

mod objects;
mod text;
mod trust;

/// Takes any bytes.
pub type Target = fn(&[u8]);

/// The targets by name.
const TARGETS: [(&str, Target); 10] = [
    ("json", objects::json),
    ("yaml", objects::yaml),
    ("protobuf", objects::protobuf),
    ("patches", objects::patches),
    ("definitions", objects::definitions),
    ("selectors", text::selectors),
    ("scalars", text::scalars),
    ("cel", text::cel),
    ("jwt", trust::jwt),
    ("certificates", trust::certificates),
];

/// The names of all targets.
pub fn names() -> impl Iterator<Item = &'static str> {
    TARGETS.iter().map(|(name, _)| *name)
}

/// A target by its name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().find(|(known, _)| *known == name).map(|(_, target)| *target)
}

/// The first byte, as a choice between `count` things, and the rest.
fn choice(data: &[u8], count: usize) -> Option<(usize, &[u8])> {
    let (first, rest) = data.split_first()?;
    Some((usize::from(*first) % count, rest))
}

/// Bytes up to the first zero, and those after it.
fn halves(data: &[u8]) -> (&[u8], &[u8]) {
    let end = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    (&data[..end], data.get(end + 1..).unwrap_or_default())
}
