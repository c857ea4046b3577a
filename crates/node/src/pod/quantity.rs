//! Quantities of the API in the units that the kernel takes. Unparsable text (the API server lets none pass) counts as
//! zero.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The value in thousandths, rounded up.
pub(crate) fn milli(quantity: &Quantity) -> i64 {
    parsed(quantity).map_or(0, |amount| amount.milli_value())
}

/// The value in whole units, rounded up.
pub(crate) fn value(quantity: &Quantity) -> i64 {
    parsed(quantity).map_or(0, |amount| amount.value())
}

fn parsed(quantity: &Quantity) -> Option<api::quantity::Quantity> {
    quantity.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_in_every_form() {
        let cases = [
            ("100m", 100, 1),
            ("1", 1000, 1),
            ("1.5", 1500, 2),
            ("0.1", 100, 1),
            ("64Mi", 64 * 1024 * 1024 * 1000, 64 * 1024 * 1024),
            ("1e3", 1_000_000, 1000),
            ("1E", i64::MAX, 10_i64.pow(18)),
            ("1u", 1, 1),
            ("rubbish", 0, 0),
        ];
        for (text, thousandths, units) in cases {
            let quantity = Quantity(text.to_owned());
            if thousandths != i64::MAX {
                assert_eq!(milli(&quantity), thousandths, "{text}");
            }
            assert_eq!(value(&quantity), units, "{text}");
        }
    }
}
