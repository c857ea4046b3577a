//! The two forms in which the API spells moments. Go clients refuse other numbers of decimals.

use jiff::Timestamp;
use serde::Serializer;

/// `meta/v1.Time`: whole seconds, `2006-01-02T15:04:05Z`.
pub fn seconds(moment: Timestamp) -> String {
    moment.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `meta/v1.MicroTime`: six decimals, `2006-01-02T15:04:05.000000Z`.
pub fn micros(moment: Timestamp) -> String {
    moment.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

/// For `#[serde(serialize_with)]` on `Option<Timestamp>` fields of type `meta/v1.Time`.
pub fn serialize_seconds<S: Serializer>(
    moment: &Option<Timestamp>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match moment {
        Some(moment) => serializer.serialize_str(&seconds(*moment)),
        None => serializer.serialize_none(),
    }
}

/// For `#[serde(serialize_with)]` on `Option<Timestamp>` fields of type `meta/v1.MicroTime`.
pub fn serialize_micro<S: Serializer>(moment: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    match moment {
        Some(moment) => serializer.serialize_str(&micros(*moment)),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_as_go_wants_them() {
        let moment = Timestamp::new(1_700_000_000, 120_000).unwrap();
        assert_eq!(seconds(moment), "2023-11-14T22:13:20Z");
        assert_eq!(micros(moment), "2023-11-14T22:13:20.000120Z");
    }
}
