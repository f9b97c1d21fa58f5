//! Fuzz targets for everything that reads hostile bytes before, or without, the sandbox. One program: the environment variable
//! `PACKHOST_FUZZ` names the target, arguments are libFuzzer's. `cargo xtask fuzz` builds it with coverage and runs each target
//! for some seconds over its corpus; see [`targets::TARGETS`].
#![no_main]

mod targets;

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

/// The target that the environment names.
fn chosen() -> fn(&[u8]) {
    static CHOSEN: OnceLock<fn(&[u8])> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let name = std::env::var("PACKHOST_FUZZ").unwrap_or_default();
        let known = targets::TARGETS.iter().find(|(known, _)| *known == name);
        let Some((_, target)) = known else {
            let names: Vec<&str> = targets::TARGETS.iter().map(|(name, _)| *name).collect();
            eprintln!("PACKHOST_FUZZ must be one of {}", names.join(", "));
            std::process::exit(2);
        };
        *target
    })
}

fuzz_target!(|bytes: &[u8]| chosen()(bytes));
