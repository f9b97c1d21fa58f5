//! The project's own commands: `cargo xtask components | demo | test | fuzz | ci | release`.
//!
//! Each sets up what it needs on a fresh machine, says what it does, and fails with a sentence that tells what is missing.
//! Nothing here is part of the program; it has no dependencies, so that it is built in a second.

mod checks;
mod components;
mod fuzz;
mod outside;
mod process;
mod tasks;
mod toolchain;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask <command>

  components   build the WebAssembly components under plugins/ (and the toolchain for them, if it is missing)
  demo         build everything and run the demo suite: leaves a signed, verified evidence pack
  test         build everything and run all tests
  fuzz         build the fuzz targets and run each for some seconds over its corpus
  ci           format, lints, documentation, tests, fuzzing, demo and self-containment checks: what CI runs
  release      build the distributable binaries into target/dist
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let root = workspace_root();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["components"] => components::run(&root),
        ["demo"] => tasks::demo(&root),
        ["test"] => tasks::test(&root),
        ["fuzz"] => fuzz::smoke(&root),
        ["ci"] => tasks::ci(&root),
        ["release"] => tasks::release(&root),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace that this program was built in.
fn workspace_root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}
