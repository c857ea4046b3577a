//! JSON where YAML may be: most of what clients send as YAML is JSON, which is read much faster as what it is.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

/// Whether a body is a JSON object in which no key is repeated: it says the same in YAML, of which it is a part.
/// Source: YAML 1.2, chapter 1.3.
pub fn is_plain_json(body: &[u8]) -> bool {
    if body.trim_ascii_start().first() != Some(&b'{') {
        return false;
    }
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    Unique.deserialize(&mut deserializer).is_ok() && deserializer.end().is_ok()
}

/// A value in which no key is repeated.
struct Unique;

impl<'de> DeserializeSeed<'de> for Unique {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unique {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value without repeated keys")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(Self)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        let mut keys: Vec<Cow<'de, str>> = Vec::new();
        while let Some(key) = fields.next_key_seed(Key)? {
            keys.push(key);
            fields.next_value_seed(Self)?;
        }
        keys.sort_unstable();
        if keys.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(de::Error::custom("a key is repeated"));
        }
        Ok(())
    }
}

/// A key, borrowed where nothing in it is escaped.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E>(self, key: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(key))
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(key.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::yaml_to_json;
    use super::*;

    #[test]
    fn plain_json_says_the_same_in_yaml() {
        for body in [
            "{}",
            " \n{\"a\": [1, -2, 1.5, 1e3, true, false, null, \"x\"], \"b\": {\"c\": {}, \"d\": []}}\n",
            r#"{"a\"b": "\u00e9\n\\ \/ é", "": "yes", "on": "1", "date": "2026-01-01", "n": 18446744073709551615}"#,
            r#"{"a": {"x": 1}, "b": {"x": 1}, "c": [{"x": 1}, {"x": 2}]}"#,
        ] {
            assert!(is_plain_json(body.as_bytes()), "{body}");
            let (converted, repeated) = yaml_to_json(body.as_bytes()).unwrap();
            let read = |json: &[u8]| serde_json::from_slice::<Value>(json).unwrap();
            assert_eq!((read(&converted), repeated), (read(body.as_bytes()), None), "{body}");
        }
    }

    #[test]
    fn all_else_is_left_to_yaml() {
        for body in [
            "",
            "a: 1",
            "[1]",
            "\"x\"",
            "{a: 1}",
            "{\"a\": 1} # so",
            "{\"a\": 1}\n---\n{\"b\": 2}",
            "{\"a\": 1, \"a\": 2}",
            "{\"a\": 1, \"\\u0061\": 2}",
            "{\"b\": [{\"c\": 1, \"d\": {}, \"c\": 2}]}",
            "{\"a\": 1,}",
            "{\"a\": 1e999}",
        ] {
            assert!(!is_plain_json(body.as_bytes()), "{body}");
        }
        assert!(!is_plain_json("{\"a\":".repeat(100_000).as_bytes()));
        assert!(!is_plain_json(b"{\"a\": \"\xff\"}"));
    }
}
