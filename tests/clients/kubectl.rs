//! `kubectl`, the newest and one three releases older: every command that needs the API, as transcripts in `kubectl/`.
//!
//! A transcript is what a person would see. `$ ` begins a command line of bash, `> ` goes on with it; what follows is all
//! that it prints, on both outputs, and `? N` its exit code where that is not 0. `[..]` stands for anything within a
//! line, runs of blanks within a line count as one, `## ` is a remark, and log lines of the client library are left out.
//! Each transcript runs in a namespace of its own, `$NAMESPACE`, which stands in the expected output as `transcript`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Site, client, file};

/// A command of a transcript and what it is to print.
#[derive(Debug, PartialEq)]
struct Step {
    line: usize,
    command: String,
    expected: Vec<String>,
    code: i32,
}

/// The steps of a transcript.
fn steps(text: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if let Some(command) = line.strip_prefix("$ ") {
            steps.push(Step { line: index + 1, command: command.to_owned(), expected: Vec::new(), code: 0 });
            continue;
        }
        let Some(step) = steps.last_mut() else {
            assert!(line.starts_with("## ") || line.is_empty(), "line {}: no command yet", index + 1);
            continue;
        };
        if let Some(more) = line.strip_prefix("> ") {
            step.command.push('\n');
            step.command.push_str(more);
        } else if let Some(code) = line.strip_prefix("? ") {
            step.code = code.parse().unwrap_or_else(|_| panic!("line {}: no exit code", index + 1));
        } else if !line.starts_with("## ") {
            step.expected.push(line.to_owned());
        }
    }
    steps
}

/// A line with runs of blanks made one, but for those it begins with, and none at its end.
fn plain(line: &str) -> String {
    let line = line.trim_end();
    let text = line.trim_start();
    let words: Vec<&str> = text.split_whitespace().collect();
    format!("{}{}", &line[..line.len() - text.len()], words.join(" "))
}

/// Whether a line is as expected; `[..]` fits anything.
fn fits(expected: &str, line: &str) -> bool {
    let (expected, line) = (plain(expected), plain(line));
    let mut parts = expected.split("[..]");
    let Some(mut rest) = line.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, between)) = parts.split_last() else { return rest.is_empty() };
    for part in between {
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// Whether a line is the client library's own log (klog: `E1121 22:39:40.490860 …`), which says when it saw something: that
/// depends on the moment.
fn is_log(line: &str) -> bool {
    let mut words = line.split(' ');
    let head = words.next().and_then(|word| word.strip_prefix(['I', 'W', 'E', 'F'])).unwrap_or_default();
    let time = words.next().unwrap_or_default();
    head.len() == 4
        && head.bytes().all(|byte| byte.is_ascii_digit())
        && time.len() == "22:39:40.490860".len()
        && time.bytes().all(|byte| byte.is_ascii_digit() || b":.".contains(&byte))
}

/// A person's home directory with one `kubectl` on the path.
struct Person<'a> {
    site: &'a Site,
    home: PathBuf,
}

impl<'a> Person<'a> {
    fn new(site: &'a Site, name: &str, kubectl: &Path) -> Self {
        let home = site.host.directory().join(name);
        fs::create_dir_all(home.join("bin")).unwrap();
        fs::create_dir_all(home.join(".kube")).unwrap();
        std::os::unix::fs::symlink(kubectl, home.join("bin/kubectl")).unwrap();
        let config = site.host.directory().join("home/.kube/config");
        fs::copy(config, home.join(".kube/config")).unwrap();
        Self { site, home }
    }

    fn bash(&self, namespace: &str, line: &str) -> (i32, String) {
        let home = self.home.display();
        // One pipe for both outputs, so that they come in their order.
        let line = format!("cd {home}/{namespace}; exec 2>&1\n{line}");
        let ran = self
            .site
            .host
            .command("bash")
            .args(["-c", &line])
            .env("HOME", &self.home)
            .env("PATH", format!("{home}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"))
            .env("NAMESPACE", namespace)
            .output()
            .unwrap();
        (
            ran.status.code().unwrap_or(-1),
            String::from_utf8_lossy(&ran.stdout).replace(namespace, "transcript"),
        )
    }

    /// Plays a transcript; tells what went otherwise.
    fn play(&self, name: &str) -> Vec<String> {
        let namespace = format!("{name}-{}", self.home.file_name().unwrap().display());
        fs::create_dir_all(self.home.join(&namespace)).unwrap();
        let set_up = "kubectl create namespace $NAMESPACE && \
                      kubectl wait sa/default -n $NAMESPACE --for=create --timeout=120s && \
                      kubectl config set-context --current --namespace=$NAMESPACE";
        let (code, said) = self.bash(&namespace, set_up);
        assert_eq!(code, 0, "{said}");
        let mut wrong = Vec::new();
        for step in steps(&fs::read_to_string(file(&format!("kubectl/{name}.txt"))).unwrap()) {
            let (code, said) = self.bash(&namespace, &step.command);
            let lines: Vec<&str> = said.lines().filter(|line| !is_log(line)).collect();
            let same = lines.len() == step.expected.len()
                && step.expected.iter().zip(&lines).all(|(expected, line)| fits(expected, line));
            if !same || code != step.code {
                let expected = step.expected.join("\n");
                wrong.push(format!(
                    "{namespace}, line {}: {}\n--- expected, code {}\n{expected}\n--- seen, code {code}\n{said}",
                    step.line, step.command, step.code
                ));
            }
        }
        let (code, said) = self.bash(&namespace, "kubectl delete namespace $NAMESPACE --timeout=180s");
        assert_eq!(code, 0, "{said}");
        wrong
    }
}

#[test]
fn kubectl_tells_what_upstream_tells() {
    let site = Site::up();
    let newest = testbed::kubectl().unwrap();
    let people = [Person::new(&site, "newest", &newest), Person::new(&site, "older", &client("go/kubectl"))];
    let names = ["access", "apply", "change", "create", "discovery", "get", "rollout"];
    let mut wrong: Vec<String> = std::thread::scope(|scope| {
        let play =
            |person| move || names.iter().flat_map(|name| Person::play(person, name)).collect::<Vec<_>>();
        let playing: Vec<_> = people.iter().map(|person| scope.spawn(play(person))).collect();
        playing.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    // The node is everybody's.
    wrong.extend(people.iter().flat_map(|person| person.play("nodes")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    site.end();
}

#[test]
fn a_transcript_is_read_and_compared() {
    let read = steps("## About\n$ a <<E\n> b\n> E\nsaid  so\n? 2\n## then\n$ c\n");
    let step = |line, command: &str, expected: &[&str], code| Step {
        line,
        command: command.to_owned(),
        expected: expected.iter().map(|line| (*line).to_owned()).collect(),
        code,
    };
    assert_eq!(read, [step(2, "a <<E\nb\nE", &["said  so"], 2), step(8, "c", &[], 0)]);
    assert!(fits("a   b", "a b ") && !fits("a b", " a b") && fits("a [..] c[..]", "a b b c"));
    let log = "E1121 22:39:40.490860    4782 reflector.go:205] \"Failed to watch\" err=\"context deadline exceeded\"";
    assert!(is_log(log) && !is_log("Error from server") && !is_log("E1121 is no log"));
    assert!(!fits("a [..]c", "a b") && !fits("a", "ab") && fits("[..]", ""));
}
