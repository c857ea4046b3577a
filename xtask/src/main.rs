//! Checks on the repository itself and the generators of its committed tables.

use anyhow::{Context, Result, bail};

#[cfg(test)]
mod checks;
mod schema;
mod workspace;

const USAGE: &str = "usage: cargo xtask generate schema --swagger PATH";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["generate", "schema", "--swagger", path] => {
            let target = workspace::root().join("crates/api/schema");
            let table = schema::generate(path.as_ref(), &target.join("overlay.tsv"))?;
            let out = target.join("kubernetes.tsv");
            std::fs::write(&out, table).with_context(|| format!("cannot write {}", out.display()))?;
            println!("wrote {}", out.display());
            Ok(())
        }
        _ => bail!(USAGE),
    }
}
