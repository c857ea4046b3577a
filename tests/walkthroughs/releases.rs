//! What `docs/walkthroughs` teaches: each document's commands as they stand there, in their order, on the todo example.
//! Between them is looked whether what the text says is so.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::Value;
use testbed::{Host, LoadReport, Testbed};

use crate::pressure::Pressure;
use crate::terminal::{CURL, Terminal};

/// A document whose commands are typed section by section.
struct Document<'a> {
    terminal: Terminal<'a>,
    /// The titles of what has not been typed yet, each with its blocks of commands; the next one comes last.
    rest: Vec<(String, Vec<String>)>,
}

impl<'a> Document<'a> {
    /// Opens a document of `docs/walkthroughs` on a host whose instance holds the example's images.
    fn open(host: &'a Host, name: &str) -> Self {
        let path = testbed::repository().join("docs/walkthroughs").join(name);
        let text = std::fs::read_to_string(path).unwrap();
        let mut rest: Vec<_> = text.split("\n## ").skip(1).map(section).collect();
        rest.reverse();
        let terminal = Terminal::open(host, &host.directory().join("home"));
        Self { terminal, rest }
    }

    /// Types the next section, which has that title. Gives what each block of commands printed.
    #[track_caller]
    fn section(&mut self, title: &str) -> Vec<String> {
        let (next, blocks) = self.rest.pop().unwrap();
        assert_eq!(next, title, "the document goes another way");
        blocks.iter().map(|block| self.terminal.types(&format!("set -e\n{block}"))).collect()
    }

    /// Passes over the next section.
    #[track_caller]
    fn skip(&mut self, title: &str) {
        assert_eq!(self.rest.pop().unwrap().0, title);
    }

    /// Nothing is left of the document, nor of what it made.
    fn end(self) {
        assert_eq!(self.rest, []);
        self.terminal.types("kubectl wait pods --all --for=delete --timeout=120s");
        assert_eq!(self.terminal.types("kubectl get all -o name"), "service/kubernetes\n");
    }
}

/// A section's title and its blocks of commands.
fn section(text: &str) -> (String, Vec<String>) {
    let (title, body) = text.split_once('\n').unwrap();
    let blocks = body.split("```sh\n").skip(1).map(|block| block.split_once("\n```").unwrap().0.to_owned());
    (title.to_owned(), blocks.collect())
}

/// What the list says at a Service's balancer: version and items.
#[track_caller]
fn todos(terminal: &Terminal<'_>, service: &str) -> (String, Vec<String>) {
    let answer = terminal.types(&format!("{CURL} {}/todos", terminal.balancer(service)));
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let items = answer["todos"].as_array().unwrap().iter().map(|item| item.as_str().unwrap().to_owned());
    (answer["version"].as_str().unwrap().to_owned(), items.collect())
}

/// Asks until the list is that: what was written to the master reaches those who follow it a moment later.
#[track_caller]
fn until_list(terminal: &Terminal<'_>, service: &str, wanted: &[&str]) {
    let told = serde_json::to_string(wanted).unwrap();
    let address = terminal.balancer(service);
    // The condition is asked of the application, which tells of no change by itself.
    terminal.types(&format!(
        "timeout 60 sh -c 'until {CURL} {address}/todos | grep -qF \"$1\"; do sleep 0.1; done' - '\"todos\":{told}'"
    ));
}

/// How often each version's page was given.
fn pages(report: &LoadReport) -> BTreeMap<&'static str, u64> {
    let mut pages = BTreeMap::new();
    for (page, count) in &report.answers {
        let version = ["v1", "v2"]
            .into_iter()
            .find(|version| page.contains(&format!("<title>Todo list {version}</title>")));
        *pages.entry(version.unwrap_or("neither")).or_default() += count;
    }
    pages
}

/// The versions that a Service answers with, asked a few times on new connections.
#[track_caller]
fn versions(terminal: &Terminal<'_>, service: &str, times: u64) -> BTreeMap<String, u64> {
    let address = terminal.balancer(service);
    let asked = format!("for i in $(seq {times}); do {CURL} {address}/ | grep -o 'Todo list v.'; done");
    let mut versions = BTreeMap::new();
    for line in terminal.types(&asked).lines() {
        *versions.entry(line.trim_start_matches("Todo list ").to_owned()).or_default() += 1;
    }
    versions
}

/// A load that Python can bear.
fn pressure(host: &Host, targets: Vec<SocketAddr>) -> Pressure {
    Pressure::of(host, targets, 40, 5)
}

/// Waits until the pods that were told to end are gone.
fn quiet(terminal: &Terminal<'_>) {
    let ending = "jsonpath='{.items[?(@.metadata.deletionTimestamp)].metadata.name}'";
    for pod in terminal.types(&format!("kubectl get pods -o {ending}")).split_whitespace() {
        terminal.types(&format!("kubectl wait pod {pod} --for=delete --timeout=120s"));
    }
}

fn ready_pods(listed: &str) -> usize {
    listed.lines().filter(|line| line.contains("1/1") && line.contains("Running")).count()
}

fn the_todo_app_is_scaled_healed_updated_and_rolled_back(host: &Host) {
    let mut document = Document::open(host, "todo.md");
    document.skip("Images");
    let started = document.section("Start");
    assert!(started[1].contains("<title>Todo list v1</title>"), "{started:?}");
    until_list(&document.terminal, "todo-app", &["water the plants"]);

    let mut load = pressure(host, document.terminal.addresses("todo-app"));
    let scaled = document.section("Scale");
    assert_eq!(ready_pods(&scaled[0]), 10, "{scaled:?}");
    quiet(&document.terminal);
    load.after_the_end_of(8);
    load.stop();
    // A process that ends by itself refuses whoever asks before anybody knows of it: no load here.
    let healed = document.section("Self-healing");
    assert!(ready_pods(&healed[0]) >= 3, "{healed:?}");
    quiet(&document.terminal);

    let mut load = pressure(host, document.terminal.addresses("todo-app"));
    document.section("Rolling update");
    quiet(&document.terminal);
    load.after_the_end_of(3);
    until_list(&document.terminal, "todo-app", &[]);
    assert_eq!(todos(&document.terminal, "todo-app").0, "v2");
    document.section("Roll back");
    quiet(&document.terminal);
    load.after_the_end_of(3);
    assert_eq!(versions(&document.terminal, "todo-app", 6), BTreeMap::from([("v1".to_owned(), 6)]));
    let pages = pages(&load.stop());
    assert_eq!(pages.keys().collect::<Vec<_>>(), [&"v1", &"v2"], "{pages:?}");

    document.section("Clean up");
    document.end();
}

fn blue_and_green_change_places_and_back(host: &Host) {
    let mut document = Document::open(host, "blue-green.md");
    document.section("Start");
    let load = pressure(host, document.terminal.addresses("production"));
    let staged = document.section("Update the stage");
    assert!(staged[0].contains("<title>Todo list v2</title>"), "{staged:?}");
    let all = |version: &str| BTreeMap::from([(version.to_owned(), 8)]);
    assert_eq!(versions(&document.terminal, "production", 8), all("v1"), "the users see nothing of it");

    let swapped = document.section("Swap");
    assert!(swapped[0].contains("<title>Todo list v2</title>"), "{swapped:?}");
    assert_eq!(versions(&document.terminal, "production", 8), all("v2"));
    assert_eq!(versions(&document.terminal, "staging", 8), all("v1"));
    document.section("Swap back");
    assert_eq!(versions(&document.terminal, "production", 8), all("v1"));
    assert_eq!(versions(&document.terminal, "staging", 8), all("v2"));
    let report = load.stop();
    assert_eq!(report.crossed, 0, "no pod of production ended: {report}");
    let pages = pages(&report);
    assert_eq!(pages.keys().collect::<Vec<_>>(), [&"v1", &"v2"], "{pages:?}");

    document.section("Clean up");
    document.end();
}

fn a_canary_has_its_share_of_the_requests(host: &Host) {
    let mut document = Document::open(host, "canary.md");
    document.section("Start");
    let mut load = pressure(host, document.terminal.addresses("todo-app"));
    let listed = document.section("Canary");
    let canaries = listed[0].lines().filter(|line| line.ends_with(" canary"));
    assert_eq!((ready_pods(&listed[0]), canaries.count()), (4, 1), "{listed:?}");
    let shares = versions(&document.terminal, "todo-app", 200);
    // Four in a hundred thousand times, 200 fair draws of a quarter lie further off than this.
    assert!((25..=75).contains(&shares["v2"]), "{shares:?}");

    document.section("Promote");
    quiet(&document.terminal);
    load.after_the_end_of(4);
    assert_eq!(versions(&document.terminal, "todo-app", 8), BTreeMap::from([("v2".to_owned(), 8)]));
    load.stop();

    document.section("Clean up");
    document.end();
}

#[test]
fn the_documents_say_what_happens() {
    let bed = Testbed::new().unwrap();
    let host = bed.host().unwrap();
    let manifests = testbed::repository().join("examples/todo/manifests");
    host.must_sh(&format!("cp -r {} {}/home", manifests.display(), host.directory().display()));
    host.must_skiff(&["up"]);
    // A testbed host has no way out: `scripts/example-images` has typed `make images` before.
    host.must_skiff(&["load", "-i", &testbed::example_images("todo").unwrap().to_string_lossy()]);
    the_todo_app_is_scaled_healed_updated_and_rolled_back(&host);
    blue_and_green_change_places_and_back(&host);
    a_canary_has_its_share_of_the_requests(&host);

    assert_eq!(bed.leaked_packets().unwrap(), 0, "{}", bed.leaks().unwrap());
    host.must_skiff(&["down", "--purge"]);
}
