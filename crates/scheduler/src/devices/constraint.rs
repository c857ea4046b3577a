//! What the devices of a claim have to have in common, or not, while they are chosen one after the other.
//! Source: `matchAttributeConstraint`, `distinctAttributeConstraint`.

use api::cel::devices::Attribute;

use super::types::{Constraint, Device};

/// A constraint with the values of the devices that are chosen so far.
#[derive(Debug)]
pub(super) struct Held<'a> {
    requests: &'a [String],
    attribute: &'a str,
    distinct: bool,
    /// In the order of the devices.
    values: Vec<&'a Attribute>,
}

impl<'a> Held<'a> {
    /// A constraint, if it is one of a kind that is known.
    pub(super) fn new(constraint: &'a Constraint) -> Option<Self> {
        let same = constraint.match_attribute.as_deref().map(|name| (name, false));
        let (attribute, distinct) =
            same.or(constraint.distinct_attribute.as_deref().map(|name| (name, true)))?;
        Some(Self { requests: &constraint.requests, attribute, distinct, values: Vec::new() })
    }

    fn is_about(&self, request: &str, full: &str) -> bool {
        self.requests.is_empty() || self.requests.iter().any(|named| named == request || named == full)
    }

    /// Takes a device in for a request and, by the full name, for one of its alternatives; whether it may be.
    pub(super) fn add(&mut self, request: &str, full: &str, device: &'a Device) -> bool {
        if !self.is_about(request, full) {
            return true;
        }
        let Some(value) = device.attribute(self.attribute) else { return false };
        let fits = if self.distinct {
            !self.values.contains(&value)
        } else {
            self.values.first().is_none_or(|first| *first == value)
        };
        if fits {
            self.values.push(value);
        }
        fits
    }

    /// Takes the last device out again that was taken in.
    pub(super) fn remove(&mut self, request: &str, full: &str) {
        if self.is_about(request, full) {
            self.values.pop();
        }
    }
}
