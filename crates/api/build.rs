//! Takes the descriptions of fields from the k8s-openapi dependency and leaves them, compressed, for `include_bytes!`.
//! They are shown by `kubectl explain`; the repository does not store them.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

#[allow(unreachable_pub, reason = "shared with xtask")]
#[path = "build/source.rs"]
mod source;

/// What documents are made of besides prose.
const MADE_OF: [&str; 4] = ["schema", "src/openapi", "src/catalog", "src/schema"];

/// The table of retired versions, which k8s-openapi does not have.
const RETIRED: &str = "schema/retired.tsv";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build/source.rs");
    println!("cargo::rerun-if-changed=Cargo.toml");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?).join("descriptions.gz");
    let release =
        source::newest_release(&crate_root("k8s-openapi")?).ok_or("k8s-openapi holds no release")?;
    let mut text = String::new();
    let definitions = source::read(&release)?;
    for definition in definitions.values() {
        writeln!(text, "{}\t{}", definition.name, escape(&definition.doc))?;
        for field in definition.fields.iter().filter(|field| !field.doc.is_empty()) {
            writeln!(text, "\t{}\t{}", field.json, escape(&field.doc))?;
        }
    }
    let retired = fs::read_to_string(RETIRED)?;
    for (name, like) in
        twins(&retired, &definitions).iter().filter(|(name, _)| !definitions.contains_key(**name))
    {
        writeln!(text, "{name}\t\t{like}")?;
    }
    println!("cargo::rustc-env=SKIFF_DOCUMENTS={}", documents(&text)?);
    let mut encoder = flate2::write::GzEncoder::new(File::create(out)?, flate2::Compression::best());
    encoder.write_all(text.as_bytes())?;
    encoder.finish()?;
    Ok(())
}

/// A number that changes with what documents are made of: the tables, the prose and the code that writes them.
fn documents(prose: &str) -> Result<String, Box<dyn Error>> {
    let mut hasher = DefaultHasher::new();
    prose.hash(&mut hasher);
    for directory in MADE_OF {
        println!("cargo::rerun-if-changed={directory}");
        let mut files: Vec<PathBuf> =
            fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<Result<_, std::io::Error>>()?;
        files.sort();
        for file in files.iter().filter(|file| file.is_file()) {
            fs::read(file)?.hash(&mut hasher);
        }
    }
    Ok(format!("{:016x}", hasher.finish()))
}

/// Definitions of retired versions, and those whose descriptions are theirs: the one that they are declared like, or the
/// one of the same name in the newest version of their group.
fn twins<'t>(
    retired: &'t str,
    definitions: &'t BTreeMap<String, source::Definition>,
) -> BTreeMap<&'t str, &'t str> {
    let declared = retired.lines().filter(|line| line.starts_with("io."));
    let twins = declared.filter_map(|line| {
        let mut parts = line.split('\t');
        let name = parts.next()?;
        let like = parts.find_map(|attribute| attribute.strip_prefix("like="));
        Some((name, like.or_else(|| newest(name, definitions))?))
    });
    twins.collect()
}

fn newest<'t>(name: &str, definitions: &'t BTreeMap<String, source::Definition>) -> Option<&'t str> {
    let (version, kind) = name.rsplit_once('.')?;
    let (group, _) = version.rsplit_once('.')?;
    let same = definitions.keys().map(String::as_str).filter(|other| {
        let parts =
            other.rsplit_once('.').and_then(|(version, kind)| Some((version.rsplit_once('.')?, kind)));
        parts.is_some_and(|((other, _), of)| other == group && of == kind)
    });
    // Stable versions have the shortest names, and among those the last is the newest.
    same.max_by_key(|other| (std::cmp::Reverse(other.len()), *other))
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
