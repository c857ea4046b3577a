//! Checks on the repository itself and the generators of its committed tables.

use anyhow::{Context, Result, bail};

#[cfg(test)]
mod checks;
mod schema;
mod workspace;

const USAGE: &str = "usage: cargo xtask generate schema --swagger PATH
       cargo xtask generate protobuf --go PATH    (upstream's staging/src/k8s.io)";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["generate", "schema", "--swagger", path] => {
            let target = workspace::root().join("crates/api/schema");
            write(&target.join("kubernetes.tsv"), &schema::generate(path.as_ref(), &target)?)
        }
        ["generate", "protobuf", "--go", path] => {
            let out = workspace::root().join("crates/api/schema/protobuf.tsv");
            write(&out, &schema::protobuf(path.as_ref())?)
        }
        _ => bail!(USAGE),
    }
}

fn write(out: &std::path::Path, text: &str) -> Result<()> {
    std::fs::write(out, text).with_context(|| format!("cannot write {}", out.display()))?;
    println!("wrote {}", out.display());
    Ok(())
}
