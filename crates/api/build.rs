//! Takes the descriptions of fields from the k8s-openapi dependency and leaves them, compressed, for `include_bytes!`.
//! They are shown by `kubectl explain`; the repository does not store them.

use std::error::Error;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

#[allow(unreachable_pub, reason = "shared with xtask")]
#[path = "build/source.rs"]
mod source;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build/source.rs");
    println!("cargo::rerun-if-changed=Cargo.toml");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?).join("descriptions.gz");
    let release =
        source::newest_release(&crate_root("k8s-openapi")?).ok_or("k8s-openapi holds no release")?;
    let mut text = String::new();
    for definition in source::read(&release)?.values() {
        writeln!(text, "{}\t{}", definition.name, escape(&definition.doc))?;
        for field in definition.fields.iter().filter(|field| !field.doc.is_empty()) {
            writeln!(text, "\t{}\t{}", field.json, escape(&field.doc))?;
        }
    }
    let mut encoder = flate2::write::GzEncoder::new(File::create(out)?, flate2::Compression::best());
    encoder.write_all(text.as_bytes())?;
    encoder.finish()?;
    Ok(())
}

/// One line each: the table is read by lines.
fn escape(prose: &str) -> String {
    prose.replace('\\', "\\\\").replace('\n', "\\n").replace('\t', "\\t")
}

/// Where the sources of a dependency lie. Not `--offline`: a first build has fetched only what it compiles, and cargo
/// wants every package of the target that it tells about.
fn crate_root(name: &str) -> Result<PathBuf, Box<dyn Error>> {
    let cargo = std::env::var_os("CARGO").ok_or("CARGO is not set")?;
    let manifest =
        Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").ok_or("no manifest")?).join("Cargo.toml");
    let target = std::env::var_os("TARGET").ok_or("TARGET is not set")?;
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--filter-platform"])
        .arg(target)
        .arg("--manifest-path")
        .arg(&manifest)
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().ok_or("cargo metadata lists no packages")?;
    let package = packages.iter().find(|package| package["name"] == name);
    let path = package.and_then(|package| package["manifest_path"].as_str());
    let path = path.ok_or_else(|| format!("{name} is not among the workspace's dependencies"))?;
    Ok(Path::new(path).parent().unwrap_or(Path::new("/")).to_owned())
}
