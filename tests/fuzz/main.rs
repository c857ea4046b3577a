//! libFuzzer around one target, which the environment names (`SKIFF_FUZZ=json`); `scripts/fuzz` runs them all.
#![no_main]

use std::sync::OnceLock;

use fuzz::Target;

fn target() -> Target {
    static TARGET: OnceLock<Target> = OnceLock::new();
    *TARGET.get_or_init(|| {
        let name = std::env::var("SKIFF_FUZZ").unwrap_or_default();
        fuzz::target(&name).unwrap_or_else(|| {
            eprintln!(
                "SKIFF_FUZZ names no target; there are: {}",
                fuzz::names().collect::<Vec<_>>().join(" ")
            );
            std::process::exit(2);
        })
    })
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| target()(data));
