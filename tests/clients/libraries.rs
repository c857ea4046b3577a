//! Programs on the official client libraries. Each is a script that checks what it sees and ends with 0.

use crate::{Site, client, file};

#[test]
fn the_official_python_client() {
    let site = Site::up();
    let said = site.must("python/bin/python3", &[&file("python/client.py")]);
    assert!(said.ends_with("all is well\n"), "{said}");
    site.end();
}

#[test]
fn the_official_javascript_client() {
    let site = Site::up();
    // Modules are looked for beside the script.
    let script = client("javascript").join("client.mjs");
    std::fs::copy(file("javascript/client.mjs"), &script).unwrap();
    let said = site.host.command("node").arg(script).output().unwrap();
    let said = testbed::Ran::from(said).ok().unwrap_or_else(|error| panic!("{error:#}"));
    assert!(said.ends_with("all is well\n"), "{said}");
    site.end();
}
