//! `.dockerignore`, for who packs a build context and who builds from it. Source: Dockerfile reference, ".dockerignore file": the last pattern that matches decides.

use std::path::Path;

use crate::pattern::{clean, matches};

/// Which paths of a context do not belong to it.
#[derive(Debug, Default)]
pub struct Ignore {
    /// Pattern, and whether it takes paths back in.
    rules: Vec<(String, bool)>,
}

impl Ignore {
    /// Reads the file's text; nothing in it is an error.
    pub fn parse(text: &str) -> Self {
        let mut rules = Vec::new();
        for line in text.strip_prefix('\u{feff}').unwrap_or(text).lines() {
            if line.starts_with('#') {
                continue;
            }
            let line = line.trim();
            let (line, includes) = line.strip_prefix('!').map_or((line, false), |rest| (rest.trim(), true));
            let pattern = clean(line);
            if !pattern.is_empty() {
                rules.push((pattern, includes));
            }
        }
        Self { rules }
    }

    /// Whether a path, or a directory above it, is left out.
    pub fn excludes(&self, path: &Path) -> bool {
        let path = path.to_string_lossy();
        let mut excluded = false;
        for (pattern, includes) in &self.rules {
            if *includes == excluded && matches_path_or_parent(pattern, &path) {
                excluded = !includes;
            }
        }
        excluded
    }

    /// Whether something below an excluded directory may be taken back in.
    pub fn has_exceptions(&self) -> bool {
        self.rules.iter().any(|(_, includes)| *includes)
    }
}

fn matches_path_or_parent(pattern: &str, path: &str) -> bool {
    let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
    ends.into_iter().any(|end| matches(pattern, &path[..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excluded(rules: &str, path: &str) -> bool {
        Ignore::parse(rules).excludes(Path::new(path))
    }

    #[test]
    fn the_last_match_decides() {
        let only_jars = "*\n!target/*.jar\n";
        assert!(excluded(only_jars, "src/Main.java"));
        assert!(excluded(only_jars, "target/classes/A.class"));
        assert!(!excluded(only_jars, "target/a.jar"));
        assert!(excluded("!a\na", "a"));
        assert!(!excluded("a\n!a", "a"));
    }

    #[test]
    fn directories_take_their_content_along() {
        assert!(excluded("node_modules", "node_modules/x/y"));
        assert!(!excluded("node_modules", "a/node_modules/x"));
        assert!(excluded("**/node_modules", "a/node_modules/x"));
        assert!(excluded("/a/", "a"));
        assert!(excluded("./a/../b", "b"));
        assert!(!excluded("# a\n\n  \n", "a"));
        assert!(!excluded("a", "ab"));
        assert!(!excluded("*.md\n!README.md", "README.md"));
        assert!(Ignore::parse("*\n!a").has_exceptions());
    }
}
