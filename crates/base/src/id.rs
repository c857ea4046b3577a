//! Identifiers: UUIDs for objects, short random suffixes for generated names.

use uuid::Uuid;

/// Upstream's alphabet for generated name suffixes: no vowels and no look-alikes, so that no word appears.
/// Source: `k8s.io/apimachinery/pkg/util/rand`.
const SUFFIX_ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// A fresh random UUID in its 36-character form.
pub fn uuid() -> String {
    Uuid::new_v4().to_string()
}

/// `len` random characters of upstream's suffix alphabet (at most 16).
pub fn suffix(len: usize) -> String {
    let random = Uuid::new_v4();
    random
        .as_bytes()
        .iter()
        .take(len)
        .map(|byte| char::from(SUFFIX_ALPHABET[usize::from(*byte) % 27]))
        .collect()
}

/// 64 random lower-case hexadecimal digits: the form of a container id.
pub fn hex64() -> String {
    format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple())
}

/// Spells arbitrary bytes' 32-bit hash in the suffix alphabet, as upstream does for `pod-template-hash`.
/// Source: `rand.SafeEncodeString` over the decimal digits.
pub fn safe_encode(decimal_digits: &str) -> String {
    decimal_digits.bytes().map(|digit| char::from(SUFFIX_ALPHABET[usize::from(digit) % 27])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_their_form() {
        assert_eq!(uuid().len(), 36);
        assert_eq!(suffix(5).len(), 5);
        assert_eq!(hex64().len(), 64);
        assert!(suffix(16).bytes().all(|byte| SUFFIX_ALPHABET.contains(&byte)));
    }
}
