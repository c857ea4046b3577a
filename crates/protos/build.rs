//! Generates messages, clients and servers from the definitions in `proto`, each of which tells its origin.

use std::error::Error;

const DEFINITIONS: [&str; 8] = [
    "proto/csi.proto",
    "proto/deviceplugin.proto",
    "proto/dra_health_v1.proto",
    "proto/dra_health_v1alpha1.proto",
    "proto/dra_v1.proto",
    "proto/dra_v1beta1.proto",
    "proto/pluginregistration.proto",
    "proto/podresources.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    // Connections are the callers' own: they have bounds and deadlines.
    tonic_prost_build::configure().build_transport(false).compile_protos(&DEFINITIONS, &["proto"])?;
    Ok(())
}
