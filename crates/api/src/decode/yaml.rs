//! YAML bodies, turned into JSON before anything looks at them.

use serde_json::Value;
use serde_saphyr::DuplicateKeyPolicy;

/// One YAML document as JSON text, and the first key that it repeats (the last value of it counts); the failure says what
/// is wrong with it. The parser bounds nesting, nodes and what aliases may repeat, and refuses further documents.
pub fn yaml_to_json(body: &[u8]) -> Result<(Vec<u8>, Option<String>), String> {
    let text = std::str::from_utf8(body).map_err(|error| format!("yaml: {error}"))?;
    let (tree, repeated) = match serde_saphyr::from_str::<Value>(text) {
        Ok(tree) => (tree, None),
        // What is wrong may be a repeated key and nothing else.
        Err(strict) => {
            let options = serde_saphyr::options! { duplicate_keys: DuplicateKeyPolicy::LastWins };
            let tree = serde_saphyr::from_str_with_options(text, options).map_err(|error| said(&error))?;
            (tree, Some(repeated_key(&said(&strict))))
        }
    };
    let json = serde_json::to_vec(&tree).map_err(|error| format!("yaml: {error}"))?;
    Ok((json, repeated))
}

fn said(error: &serde_saphyr::Error) -> String {
    // The first line says what and where; a picture of the source follows.
    let message = error.to_string();
    let line = message.lines().next().unwrap_or_default().trim_start_matches("error: ");
    // The parser's advice to programmers is none to users.
    format!("yaml: {}", line.split(", set ").next().unwrap_or_default())
}

/// Go's sentence for a repeated key: the line, and the key.
fn repeated_key(said: &str) -> String {
    let parts = said.strip_prefix("yaml: line ").and_then(|rest| {
        let (line, rest) = rest.split_once(' ')?;
        Some((line, rest.split_once("duplicate mapping key: ")?.1))
    });
    match parts {
        Some((line, key)) => format!("line {line}: key {key:?} already set in map"),
        None => said.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_keep_their_types_and_keys_are_text() {
        let (json, repeated) = yaml_to_json(b"a: 1\nb: 'x'\nc: [true, null, 1.5]\n80: http\n").expect("YAML");
        assert_eq!(json, br#"{"80":"http","a":1,"b":"x","c":[true,null,1.5]}"#);
        assert_eq!(repeated, None);
    }

    #[test]
    fn bombs_and_nonsense_are_refused() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let before = format!("*a{}", level - 1);
            bomb += &format!("a{level}: &a{level} [{}]\n", [before.as_str(); 9].join(", "));
        }
        assert!(yaml_to_json(bomb.as_bytes()).is_err());
        assert!(yaml_to_json("[".repeat(100_000).as_bytes()).is_err());
        assert!(yaml_to_json(b"a: [").is_err());
        assert!(yaml_to_json(b"a: 1\n---\nb: 2\n").is_err());
        assert!(yaml_to_json(b"\xff").is_err());
    }

    #[test]
    fn a_repeated_key_is_told_and_its_last_value_counts() {
        let (json, repeated) = yaml_to_json(b"a: 1\nb: {c: 1, c: 2}\na: 2\n").expect("YAML");
        assert_eq!(json, br#"{"a":2,"b":{"c":2}}"#);
        assert_eq!(repeated.as_deref(), Some("line 2: key \"c\" already set in map"));
        assert!(yaml_to_json(b"a: 1\na: [").is_err());
    }
}
