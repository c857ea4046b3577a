//! Rules for single files. Reasons for an exception are stated in the file, where its readers see them.

use super::SourceFile;

/// Lines that a file may have.
const FILE_LINES_MAX: usize = 900;

/// Lines that a function may have.
const FUNCTION_LINES_MAX: usize = 100;

/// Complaints about a file.
pub(super) fn check(file: &SourceFile) -> Vec<String> {
    let mut complaints = places(file);
    if file.path.ends_with(".rs") {
        complaints.extend(header(file));
        complaints.extend(length(file));
        complaints.extend(long_functions(file));
        complaints.extend(tasks(file));
        complaints.extend(unsafe_code(file));
    }
    complaints
}

/// Nothing refers to where and with what the work was done.
fn places(file: &SourceFile) -> Vec<String> {
    // Written in parts: this file is checked as well.
    let forbidden = [concat!("/wo", "rk/"), concat!("../sha", "red/"), concat!(".lib", "rary")];
    let lines = file.text.lines().enumerate();
    lines
        .filter(|(_, line)| forbidden.iter().any(|place| line.contains(place)))
        .map(|(index, _)| format!("{}:{}: refers to a place outside the repository", file.path, index + 1))
        .collect()
}

/// A module says what it is before anything else.
fn header(file: &SourceFile) -> Option<String> {
    let first =
        file.text.lines().find(|line| !line.is_empty() && !line.starts_with("#!")).unwrap_or_default();
    (!first.starts_with("//!"))
        .then(|| format!("{}: begin with a `//!` header that says what it is", file.path))
}

fn length(file: &SourceFile) -> Option<String> {
    let lines = file.text.lines().count();
    let reasoned = file
        .text
        .lines()
        .take_while(|line| line.starts_with("//!"))
        .any(|line| line.contains("One file because"));
    (lines > FILE_LINES_MAX && !reasoned)
        .then(|| format!("{}: {lines} lines: split it, or say `One file because …` in its header", file.path))
}

/// Functions by their lines. The format is rustfmt's: a function ends with a brace in the column where it began.
fn long_functions(file: &SourceFile) -> Vec<String> {
    let lines: Vec<&str> = file.text.lines().collect();
    let mut complaints = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else { continue };
        let indent = &line[..line.len() - line.trim_start().len()];
        let end = format!("{indent}}}");
        let body =
            lines[start..].iter().position(|line| *line == end || line.starts_with(&format!("{indent}}} ")));
        let signature_only =
            lines[start..].iter().take_while(|line| !line.ends_with('{')).any(|line| line.ends_with(';'));
        let Some(length) = body.filter(|_| !signature_only) else { continue };
        let reasoned = allows(&lines[..start], indent, "clippy::too_many_lines");
        if length > FUNCTION_LINES_MAX + 1 && !reasoned {
            complaints.push(format!(
                "{}:{}: `{name}` has {length} lines: split it, or allow clippy::too_many_lines with a `reason = …`",
                file.path,
                start + 1
            ));
        }
    }
    complaints
}

/// Whether an attribute above a place allows a lint and gives a reason. Comments, documentation included, say nothing
/// here: what they contain is prose.
fn allows(before: &[&str], indent: &str, lint: &str) -> bool {
    // Attributes and comments at the same depth; an attribute of several lines is deeper in between.
    let belongs = |rest: &str| ["//", "#[", ")]", " "].iter().any(|start| rest.starts_with(start));
    let above = before.iter().rev().take_while(|line| line.strip_prefix(indent).is_some_and(belongs));
    let mut above: Vec<&str> = above.map(|line| line.trim()).filter(|line| !line.starts_with("//")).collect();
    above.reverse();
    let attributes = above.join(" ");
    attributes.split("#[").any(|attribute| {
        let words = attribute.trim_start();
        let lifts = words.starts_with("allow(") || words.starts_with("expect(");
        let reason = words.split_once("reason = \"").map(|(_, reason)| reason);
        lifts && words.contains(lint) && reason.is_some_and(|reason| !reason.starts_with('"'))
    })
}

/// The name of a function that begins on a line.
fn function_name(line: &str) -> Option<&str> {
    let mut rest = line.trim_start();
    loop {
        if let Some(name) = rest.strip_prefix("fn ") {
            let end = name.find(|letter: char| !(letter.is_alphanumeric() || letter == '_'))?;
            return Some(&name[..end]);
        }
        let word = ["pub ", "pub(crate) ", "pub(super) ", "async ", "const ", "unsafe ", "extern \"C\" "];
        rest = word.iter().find_map(|word| rest.strip_prefix(word))?;
    }
}

/// Words that start a task. Written in parts: this file is checked as well.
const TASKS: [&str; 6] = [
    concat!("tokio::", "spawn"),
    concat!("task::", "spawn("),
    concat!("spawn", "_local("),
    concat!("Join", "Set"),
    concat!("Handle::", "current().spawn("),
    concat!("handle.", "spawn("),
];

/// Words that start a thread.
const THREADS: [&str; 2] = [concat!("thread::", "spawn("), concat!("thread::", "Builder::new")];

/// Every task and every thread has an owner: only the lifecycle spawns tasks. Threads are also made by `sys`, by the
/// shim, which has no other means, and by tests, which wait for them.
fn tasks(file: &SourceFile) -> Vec<String> {
    if file.path == "crates/base/src/lifecycle.rs" {
        return Vec::new();
    }
    let lines: Vec<&str> = file.text.lines().collect();
    let tests = lines.iter().position(|line| line.trim() == "#[cfg(test)]").unwrap_or(lines.len());
    let mut complaints = Vec::new();
    for (index, line) in code(&lines) {
        let indent = &line[..line.len() - line.trim_start().len()];
        let task = TASKS.iter().any(|word| line.contains(word));
        let thread =
            index < tests && !may_have_threads(&file.path) && THREADS.iter().any(|word| line.contains(word));
        if (task || thread) && !allows(&lines[..index], indent, "clippy::disallowed_methods") {
            complaints.push(format!(
                "{}:{}: a {} without an owner: use base::lifecycle (Context::spawn or Tasks), or allow \
                 clippy::disallowed_methods with a `reason = …`",
                file.path,
                index + 1,
                if task { "task" } else { "thread" },
            ));
        }
    }
    complaints
}

/// Whether threads are what a file has: the kernel's own crate, the shim, and whatever is only a test.
fn may_have_threads(path: &str) -> bool {
    ["crates/sys/", "crates/shim/", "crates/testbed/", "tests/", "bench/"]
        .iter()
        .any(|home| path.starts_with(home))
        || path.contains("/tests/")
        || path.ends_with("/tests.rs")
        || path.ends_with("_tests.rs")
}

/// `unsafe` has one home. The lint forbids it in code; this finds a crate that would switch the lint off.
fn unsafe_code(file: &SourceFile) -> Vec<String> {
    if file.path.starts_with("crates/sys/") {
        return Vec::new();
    }
    let lines: Vec<&str> = file.text.lines().collect();
    let marks = [concat!("unsafe", " {"), concat!("unsafe", " fn "), concat!("unsafe", " impl ")];
    code(&lines)
        .filter(|(_, line)| marks.iter().any(|mark| line.contains(mark)))
        .map(|(index, _)| format!("{}:{}: unsafe code belongs in crates/sys", file.path, index + 1))
        .collect()
}

/// Lines that are not comments.
fn code<'l>(lines: &'l [&'l str]) -> impl Iterator<Item = (usize, &'l str)> {
    let all = lines.iter().copied().enumerate();
    all.filter(|(_, line)| !line.trim_start().starts_with("//"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(text: &str) -> Vec<String> {
        check(&SourceFile { path: "crates/x/src/y.rs".into(), text: text.into() })
    }

    fn function(lines: usize, above: &str) -> String {
        format!("//! X.\n\n{above}pub fn long() {{\n{}}}\n", "    let _ = 1;\n".repeat(lines))
    }

    #[test]
    fn each_rule_finds_what_breaks_it() {
        assert_eq!(complaints("//! X.\n"), Vec::<String>::new());
        assert!(complaints("fn x() {}\n")[0].contains("header"));
        assert!(complaints(&format!("//! X.\n{}", "\n".repeat(900)))[0].contains("901 lines"));
        assert!(complaints(&format!("//! X. One file because.\n{}", "\n".repeat(900))).is_empty());
        assert!(complaints(&function(101, ""))[0].contains("`long`"));
        assert!(complaints(&function(100, "")).is_empty());
        assert!(
            complaints(&function(101, "#[allow(clippy::too_many_lines, reason = \"a table\")]\n")).is_empty()
        );
        for no_reason in [
            "#[allow(clippy::too_many_lines)]\n",
            "#[allow(clippy::too_many_lines, reason = \"\")]\n",
            "/// Documented.\n",
            "/// Its authors allow(clippy::too_many_lines, reason = \"a table\").\n",
            "/// Documented.\n#[allow(clippy::too_many_lines)] // a table\n",
            "#[allow(clippy::too_many_lines)]\n#[allow(dead_code, reason = \"of another lint\")]\n",
            "#[doc = \"allow(clippy::too_many_lines, reason = \"]\n",
        ] {
            assert!(!complaints(&function(101, no_reason)).is_empty(), "{no_reason}");
        }
        let reason = "/// Documented.\n#[expect(\n    clippy::too_many_lines,\n    reason = \"a table\"\n)]\n#[inline]\n";
        assert!(complaints(&function(101, reason)).is_empty());
        assert!(complaints(concat!("//! X.\nfn x() { unsafe", " { y() } }\n"))[0].contains("crates/sys"));
        assert!(complaints(concat!("//! X.\n// see /wo", "rk/x\n"))[0].contains("outside the repository"));
    }

    #[test]
    fn every_task_and_thread_has_an_owner_or_a_reason() {
        for spawn in [
            concat!("    tokio::", "spawn(async {});\n"),
            concat!("    use tokio::", "spawn;\n"),
            concat!("    tokio::task::", "spawn(async {});\n"),
            concat!("    task::spawn", "_local(async {});\n"),
            concat!("    let mut all = Join", "Set::new();\n"),
            concat!("    Handle::", "current().spawn(async {});\n"),
            concat!("    self.handle.", "spawn(async {});\n"),
            concat!("    std::thread::", "spawn(|| {});\n"),
            concat!("    thread::", "Builder::new();\n"),
        ] {
            assert!(complaints(&format!("//! X.\n{spawn}"))[0].contains("owner"), "{spawn}");
            assert!(
                !complaints(&format!("//! X.\n    /// It never ends. reason = \"x\"\n{spawn}")).is_empty()
            );
            assert!(complaints(&format!("//! X.\n// {spawn}")).is_empty());
            let allow = |why: &str| {
                format!("//! X.\n    #[allow(\n        clippy::disallowed_methods{why}\n    )]\n{spawn}")
            };
            assert!(complaints(&allow(",\n        reason = \"it ends with the process\"")).is_empty());
            assert!(!complaints(&allow("")).is_empty());
        }
        let thread = concat!("//! X.\n    std::thread::", "spawn(|| {});\n");
        let task = concat!("//! X.\n    tokio::", "spawn(async {});\n");
        for (path, threads) in [
            ("crates/sys/src/ns.rs", true),
            ("crates/shim/src/program/x.rs", true),
            ("crates/x/tests/it/y.rs", true),
            ("crates/x/src/y_tests.rs", true),
            ("crates/x/src/y.rs", false),
        ] {
            let of = |text: &str| check(&SourceFile { path: path.into(), text: text.into() }).is_empty();
            assert_eq!((of(thread), of(task)), (threads, false), "{path}");
        }
        assert!(complaints(&thread.replace("    std", "#[cfg(test)]\n    std")).is_empty());
    }
}
