//! How much of a device's capacity a request takes, and whether it is there.
//! Source: `structured/internal/incubating/consumable_capacity.go`.

use api::quantity::{Format, Quantity};

use super::types::{Amounts, Capacity, Device, Policy, Range};

/// What a request takes of each capacity of a device. Source: `GetConsumedCapacityFromRequest`.
pub fn taken(device: &Device, asked: &Amounts) -> Amounts {
    let of = |(name, capacity): (&String, &Capacity)| (name.clone(), consumed(asked.get(name), capacity));
    device.capacity.iter().map(of).collect()
}

/// Whether so much can be had of a device of which `used` is taken already. Source: `CmpRequestOverCapacity`.
pub fn suffices(
    device: &Device,
    asked: &Amounts,
    used: impl Fn(&str) -> Option<Quantity>,
    taking: impl Fn(&str) -> Option<Quantity>,
) -> bool {
    // What is negative would make room for others.
    asked.iter().all(|(name, amount)| device.capacity.contains_key(name) && !amount.is_negative())
        && device.capacity.iter().all(|(name, capacity)| {
            let own = consumed(asked.get(name), capacity);
            let sum = [used(name), taking(name)].into_iter().flatten().fold(own, Quantity::plus);
            let allowed = !capacity.policy.as_ref().is_some_and(|policy| violates(own, policy));
            allowed && !own.is_negative() && sum <= capacity.value
        })
}

/// What is taken of one capacity, given what is asked for. Source: `calculateConsumedCapacity`.
fn consumed(asked: Option<&Quantity>, capacity: &Capacity) -> Quantity {
    let policy = capacity.policy.as_ref();
    let Some(asked) = asked else {
        return policy.and_then(|policy| policy.default).unwrap_or(capacity.value);
    };
    match policy {
        Some(Policy { range: Some(range @ Range { min: Some(min), .. }), .. }) => {
            up_to_step(*asked, *min, range)
        }
        Some(Policy { values, .. }) => values.iter().find(|value| asked <= value).copied().unwrap_or(*asked),
        None => *asked,
    }
}

/// Source: `roundUpRange`.
fn up_to_step(asked: Quantity, min: Quantity, range: &Range) -> Quantity {
    if asked < min {
        return min;
    }
    let Some(step) = range.step.map(|step| step.value()).filter(|step| *step > 0) else { return asked };
    let above = asked.value().saturating_sub(min.value());
    let steps = above / step + i64::from(above % step != 0);
    Quantity::from_units(min.value().saturating_add(step.saturating_mul(steps)), Format::BinarySi)
}

/// Source: `violatesPolicy`.
fn violates(own: Quantity, policy: &Policy) -> bool {
    if policy.default == Some(own) {
        return false;
    }
    match &policy.range {
        Some(Range { min, max, step }) => {
            let min = min.map_or(0, |min| min.value());
            let off = step.map(|step| step.value()).filter(|step| *step > 0);
            max.is_some_and(|max| own > max)
                || off.is_some_and(|step| own.value().saturating_sub(min) % step != 0)
        }
        None => !policy.values.is_empty() && !policy.values.contains(&own),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn amount(text: &str) -> Quantity {
        text.parse().unwrap()
    }

    fn device(policy: Option<Policy>) -> Device {
        let memory = Capacity { value: amount("10Gi"), policy };
        Device { capacity: BTreeMap::from([("memory".to_owned(), memory)]), ..Device::default() }
    }

    #[test]
    fn amounts_are_rounded_up_to_what_a_policy_allows() {
        let range = |min: &str, step: Option<&str>| {
            let range = Range { min: Some(amount(min)), max: Some(amount("8Gi")), step: step.map(amount) };
            Policy { default: Some(amount("1Gi")), range: Some(range), ..Policy::default() }
        };
        let values =
            Policy { default: Some(amount("2Gi")), values: vec![amount("2Gi"), amount("4Gi")], range: None };
        let negative = Policy { default: Some(amount("-1Gi")), ..Policy::default() };
        for (policy, asked, used, takes, fits) in [
            (None, None, "0", "10Gi", true),
            (None, None, "1", "10Gi", false),
            (None, Some("4Gi"), "6Gi", "4Gi", true),
            (None, Some("4Gi"), "7Gi", "4Gi", false),
            (Some(range("1Gi", None)), None, "9Gi", "1Gi", true),
            (Some(range("2Gi", None)), Some("1Gi"), "0", "2Gi", true),
            (Some(range("1Gi", Some("2Gi"))), Some("2Gi"), "0", "3Gi", true),
            (Some(range("1Gi", Some("2Gi"))), Some("3Gi"), "0", "3Gi", true),
            (Some(range("1Gi", None)), Some("9Gi"), "0", "9Gi", false),
            (Some(values.clone()), Some("3Gi"), "0", "4Gi", true),
            (Some(values.clone()), Some("5Gi"), "0", "5Gi", false),
            (Some(values), None, "0", "2Gi", true),
            (None, Some("-1Gi"), "0", "-1Gi", false),
            (None, Some("0"), "10Gi", "0", true),
            (Some(range("2Gi", None)), Some("-1Gi"), "0", "2Gi", false),
            (Some(negative), None, "0", "-1Gi", false),
        ] {
            let device = device(policy.clone());
            let asked: Amounts =
                asked.map(|asked| ("memory".to_owned(), amount(asked))).into_iter().collect();
            assert_eq!(taken(&device, &asked)["memory"], amount(takes), "{policy:?} {asked:?}");
            let used = amount(used);
            assert_eq!(suffices(&device, &asked, |_| Some(used), |_| None), fits, "{policy:?} {asked:?}");
            assert_eq!(suffices(&device, &asked, |_| None, |_| Some(used)), fits, "{policy:?} {asked:?}");
        }
        let unknown = Amounts::from([("cores".to_owned(), amount("1"))]);
        assert!(!suffices(&device(None), &unknown, |_| None, |_| None));
    }
}
