//! The project's own build steps, as `cargo xtask <step>`.

use std::{path::Path, process::ExitCode};

mod components;
mod toolchain;

fn main() -> ExitCode {
    // This crate lies in host/xtask, two folders below the project's root.
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let step = std::env::args().nth(1);
    let result = match step.as_deref() {
        Some("components") => components::run(root),
        Some(other) => Err(format!("there is no step `{other}`; there is: components")),
        None => Err("name a step: components".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}
