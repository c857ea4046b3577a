//! Numbers of pods that may be percentages (`intstr.IntOrString`), and sizes of storage.

use std::collections::BTreeMap;

use api::quantity::Quantity;
use serde_json::Value;

/// A number, or a percentage (`25%`) of `total`; nothing sensible is 0. Source: `intstr.GetScaledValueFromIntOrPercent`.
pub(crate) fn resolve(value: &Value, total: i64, round_up: bool) -> i64 {
    match value {
        Value::Number(number) => number.as_i64().unwrap_or(0).max(0),
        Value::String(text) => {
            let percent = text.strip_suffix('%').and_then(|percent| percent.parse::<i64>().ok()).unwrap_or(0);
            let hundredths = percent.max(0).saturating_mul(total);
            if round_up { hundredths.saturating_add(99) / 100 } else { hundredths / 100 }
        }
        _ => 0,
    }
}

/// How much storage amounts name; none or nothing sensible is 0.
pub(crate) fn storage(amounts: &BTreeMap<String, String>) -> Quantity {
    amounts.get("storage").and_then(|text| text.parse().ok()).unwrap_or(Quantity::ZERO)
}
