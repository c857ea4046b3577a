//! One history for all clients: what concurrent writers were told, what readers read and what watchers saw fits into one
//! order that keeps with real time, over kills of the server. Each write counts a register up by one, so that a lost
//! update, a version that is seen twice and an event that is left out all show as a wrong number.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::sync::mpsc::channel;
use std::time::Duration;

use serde_json::Value;

use crate::support::Cluster;

const ROUNDS: u32 = 6;
/// Acknowledged writes between two kills.
const WRITES: u32 = 120;
/// Those of `registers.py`.
const WATCHERS: [&str; 2] = ["watcher-0", "watcher-1"];

/// What happened, in the order in which it was told.
#[derive(Debug, Default)]
struct History(Vec<Value>);

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or_else(|| panic!("no number: {value}"))
}

fn moment(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("no moment: {value}"))
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

impl History {
    fn of<'a>(&'a self, kinds: &'a [&str]) -> impl Iterator<Item = &'a Value> {
        self.0.iter().filter(|line| kinds.contains(&word(&line["kind"])))
    }

    fn registers(&self) -> BTreeSet<&str> {
        self.of(&["read"]).map(|line| word(&line["name"])).collect()
    }

    /// Who asks after another was answered sees what that one saw, or something newer.
    fn keeps_with_time(&self) -> Result<(), String> {
        for register in self.registers() {
            let told = || self.of(&["read", "write"]).filter(|line| word(&line["name"]) == register);
            let mut begun: Vec<&Value> = told().collect();
            let mut ended = begun.clone();
            begun.sort_by(|a, b| moment(&a["from"]).total_cmp(&moment(&b["from"])));
            ended.sort_by(|a, b| moment(&a["to"]).total_cmp(&moment(&b["to"])));
            let (mut ended, mut newest) = (ended.into_iter().peekable(), (0, -1));
            for one in begun {
                while let Some(before) = ended.next_if(|before| moment(&before["to"]) < moment(&one["from"]))
                {
                    newest = newest.max((number(&before["version"]), number(&before["n"])));
                }
                let seen = (number(&one["version"]), number(&one["n"]));
                let newer = seen.0 > newest.0 && seen.1 > newest.1;
                let holds = if one["kind"] == "write" { newer } else { newer || seen == newest };
                if !holds {
                    return Err(format!("{one} began after {newest:?} was seen"));
                }
            }
        }
        Ok(())
    }

    /// No version stands for two writes, and each of these watchers saw every write, once and in order.
    fn watched_without_gap(&self, watchers: &[&str]) -> Result<(), String> {
        let mut written = BTreeMap::new();
        for line in self.of(&["write"]) {
            if let Some(other) = written.insert(number(&line["version"]), line) {
                return Err(format!("one version for two writes: {line} and {other}"));
            }
        }
        for watcher in watchers {
            let seen: Vec<&Value> = self.of(&["event"]).filter(|line| line["who"] == *watcher).collect();
            if seen.is_empty() {
                return Err(format!("{watcher} saw nothing"));
            }
            let (mut last, mut counts) = (0, BTreeMap::<&str, i64>::new());
            for event in &seen {
                let count = counts.entry(word(&event["name"])).or_default();
                if number(&event["version"]) <= last || number(&event["n"]) != *count + 1 {
                    return Err(format!("{event} after version {last} and count {count}"));
                }
                (last, *count) = (number(&event["version"]), *count + 1);
            }
            let tokens: BTreeMap<i64, &str> =
                seen.iter().map(|event| (number(&event["version"]), word(&event["token"]))).collect();
            for (version, write) in &written {
                if tokens.get(version) != Some(&word(&write["token"])) {
                    return Err(format!("{watcher} saw {:?} in place of {write}", tokens.get(version)));
                }
            }
        }
        Ok(())
    }

    /// In the end each register counts what was acknowledged, and of what had no answer as much as took effect.
    fn counts(&self) -> Result<(), String> {
        for register in self.registers() {
            let of = |kind| self.of(&[kind]).filter(|line| word(&line["name"]) == register).count() as i64;
            let last =
                self.of(&["read"]).find(|line| line["who"] == "last" && word(&line["name"]) == register);
            let last = number(&last.ok_or("no last read")?["n"]);
            let (least, most) = (of("write"), of("write") + of("lost"));
            if !(least..=most).contains(&last) {
                return Err(format!("{register} counts {last}, and {least} to {most} were written"));
            }
        }
        Ok(())
    }

    fn check(&self, watchers: &[&str]) -> Result<(), String> {
        self.keeps_with_time()?;
        self.watched_without_gap(watchers)?;
        self.counts()
    }
}

#[test]
fn all_clients_see_one_history_over_kills() {
    let cluster = Cluster::up();
    let (keys, server) = cluster.keys();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/registers.py");
    let mut command = cluster.host.command("python3");
    command.args([script, &keys, &server]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut clients = command.spawn().unwrap();
    let (sender, writes) = channel();
    let lines = BufReader::new(clients.stdout.take().unwrap()).lines();
    let reader = std::thread::spawn(move || {
        let mut history = History::default();
        for line in lines.map_while(Result::ok) {
            let line: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
            if line["kind"] == "write" {
                // Nobody listens at the end.
                let _ = sender.send(());
            }
            history.0.push(line);
        }
        history
    });
    for _ in 0..ROUNDS {
        for _ in 0..WRITES {
            writes.recv_timeout(Duration::from_secs(120)).expect("the writers get on");
        }
        cluster.kill_daemon();
        cluster.host.must_skiff(&["up"]);
    }
    for _ in 0..WRITES {
        writes.recv_timeout(Duration::from_secs(120)).expect("the writers get on after the last kill");
    }
    drop(clients.stdin.take());
    assert!(clients.wait().unwrap().success());
    let history = reader.join().expect("every line was understood");
    let count = |kind| history.of(&[kind]).count();
    eprintln!("{} writes, {} without an answer, {} events", count("write"), count("lost"), count("event"));
    assert_eq!(count("end"), 9, "every client came to its end");
    history.check(&WATCHERS).unwrap();
    cluster.purge();
}

/// The judge has to know a wrong history from a right one.
#[test]
fn a_wrong_history_is_told_from_a_right_one() {
    let told = |lines: &str| History(lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect());
    let right = r#"{"kind":"write","who":"w","name":"a","token":"w-1","n":1,"version":5,"from":1.0,"to":2.0}
{"kind":"lost","who":"v","name":"a","token":"v-1","n":2}
{"kind":"event","who":"e","type":"MODIFIED","name":"a","n":1,"token":"w-1","version":5}
{"kind":"event","who":"e","type":"MODIFIED","name":"a","n":2,"token":"v-1","version":7}
{"kind":"read","who":"last","name":"a","n":2,"version":7,"from":3.0,"to":4.0}"#;
    assert_eq!(told(right).check(&["e"]), Ok(()));
    // Who was never heard of saw nothing, however right the others are.
    assert_eq!(told(right).check(&["e", "f"]), Err("f saw nothing".to_owned()));
    let wrong = [
        // A read that goes back, an event left out, one of another write, a count that nobody wrote.
        (r#""n":2,"version":7,"from""#, r#""n":0,"version":4,"from""#),
        (r#""n":1,"token":"w-1","version":5}"#, r#""n":2,"token":"w-1","version":5}"#),
        (r#""token":"w-1","version":5}"#, r#""token":"x-1","version":5}"#),
        (r#""n":2,"version":7,"from""#, r#""n":3,"version":8,"from""#),
    ];
    for (from, to) in wrong {
        let changed = right.replacen(from, to, 1);
        assert_ne!(changed, right);
        assert!(told(&changed).check(&["e"]).is_err(), "{changed}");
    }
}
