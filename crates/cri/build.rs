//! Messages and services from the interface's own definition.

fn main() -> std::io::Result<()> {
    println!("cargo::rerun-if-changed=proto/api.proto");
    let mut prost = tonic_prost_build::Config::new();
    // Bears credentials: `proto` says by hand what of it may be shown.
    prost.skip_debug(["runtime.v1.AuthConfig"]);
    // How to connect is the caller's choice: no transport of tonic's own is compiled.
    tonic_prost_build::configure().build_transport(false).compile_with_config(
        prost,
        &["proto/api.proto"],
        &["proto"],
    )
}
