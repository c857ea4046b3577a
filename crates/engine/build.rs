//! Builds the shim as a static executable of its own and hands its path to the crate, which embeds it.
//!
//! It is another cargo run with its own target directory: another profile, other flags, no feature shared with the
//! workspace's own build. `SKIFF_SHIM_PROFILE=dev` builds it fast and large, for work on the shim itself.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=CLIPPY_ARGS");
    if std::env::var_os("CLIPPY_ARGS").is_some() {
        // A lint runs nothing of the shim: an empty file stands for it, and minutes are saved. Cargo keeps the outputs
        // of a linted workspace apart from those that are built.
        let shim = Path::new(&variable("OUT_DIR")).join("no-shim");
        std::fs::write(&shim, "").unwrap_or_else(|error| panic!("{}: {error}", shim.display()));
        println!("cargo::rustc-env=SKIFF_SHIM={}", shim.display());
        println!("cargo::rustc-env=SKIFF_SHIM_HASH=0000000000000000");
        return;
    }
    let shim = build();
    let contents = std::fs::read(&shim).unwrap_or_else(|error| panic!("{}: {error}", shim.display()));
    let mut hasher = DefaultHasher::new();
    contents.hash(&mut hasher);
    println!("cargo::rustc-env=SKIFF_SHIM={}", shim.display());
    println!("cargo::rustc-env=SKIFF_SHIM_HASH={:016x}", hasher.finish());
}

/// Builds the shim and gives its path.
fn build() -> PathBuf {
    let workspace = Path::new(&variable("CARGO_MANIFEST_DIR")).join("../..");
    for watched in ["shim", "sys", "libcgroups"].map(|name| workspace.join("crates").join(name)) {
        println!("cargo::rerun-if-changed={}", watched.join("src").display());
        println!("cargo::rerun-if-changed={}", watched.join("Cargo.toml").display());
    }
    println!("cargo::rerun-if-env-changed=SKIFF_SHIM_PROFILE");
    let profile = std::env::var("SKIFF_SHIM_PROFILE").unwrap_or_else(|_| "shim".to_owned());
    let triple = variable("TARGET");
    let target_dir = PathBuf::from(variable("OUT_DIR")).join("shim");
    let mut cargo = Command::new(variable("CARGO"));
    cargo
        .current_dir(&workspace)
        .args(["build", "--package", "shim", "--features", "program", "--bin", "skiff-shim"])
        .args(["--profile", &profile, "--target", &triple, "--target-dir"])
        .arg(&target_dir);
    // What the outer run set for itself: clippy's wrapper, its flags, its target directory.
    for inherited in ["RUSTC_WORKSPACE_WRAPPER", "CLIPPY_ARGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_TARGET_DIR"]
    {
        cargo.env_remove(inherited);
    }
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
    cargo.env("LIBSECCOMP_LINK_TYPE", "static").env("LIBSECCOMP_LIB_PATH", seccomp_directory());
    let status = cargo.status().unwrap_or_else(|error| panic!("cargo cannot be run for the shim: {error}"));
    assert!(status.success(), "the shim could not be built: see cargo's messages above");
    // Cargo names the directory of the profile `dev` differently.
    let directory = if profile == "dev" { "debug" } else { &profile };
    target_dir.join(triple).join(directory).join("skiff-shim")
}

/// Where libseccomp.a is: by pkg-config, else in the places where Debian and others have it.
fn seccomp_directory() -> PathBuf {
    let pkg_config = Command::new("pkg-config").args(["--variable=libdir", "libseccomp"]).output();
    let told = pkg_config.ok().map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    let arch = variable("CARGO_CFG_TARGET_ARCH");
    let known = [format!("/usr/lib/{arch}-linux-gnu"), "/usr/lib64".to_owned(), "/usr/lib".to_owned()];
    let found =
        told.into_iter().chain(known.map(PathBuf::from)).find(|dir| dir.join("libseccomp.a").exists());
    found.unwrap_or_else(|| panic!("libseccomp.a is missing: install libseccomp-dev"))
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"))
}
