//! The fuzz targets under tests/fuzz: built with coverage, each run for some seconds over its committed corpus.
//!
//! The instrumentation is the compiler's own and libFuzzer comes with its crate, so no other toolchain is needed; a C++
//! compiler is.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::process::{cargo, run, say};

/// Seconds per target.
const SECONDS: u32 = 3;

/// The one machine that the flags below are tried on.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What makes a build count which edges an input reaches.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

/// Builds the targets and runs each one. Where that cannot be done it says why, and passes: what is fuzzed has its tests.
pub fn smoke(root: &Path) -> Result<(), String> {
    let folder = root.join("tests/fuzz");
    if let Some(why) = impossible(&folder) {
        say(&format!("SKIPPED: the fuzz targets cannot run here: {why}"));
        return Ok(());
    }
    say("building the fuzz targets (the first time takes some minutes)");
    run(cargo(&folder)
        .args(["build", "--release", "--locked", "--quiet"])
        .args(["--target", TARGET])
        .env_remove("CARGO_TARGET_DIR")
        .env("RUSTFLAGS", COVERAGE))?;
    let binary = folder
        .join("target")
        .join(TARGET)
        .join("release/packhost-fuzz");
    let corpora = folder.join("corpus");
    let listed = fs::read_dir(&corpora).map_err(|error| format!("no fuzz corpora: {error}"))?;
    let mut names: Vec<String> = listed
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    for name in names {
        // What is found on the way is kept apart from the committed inputs.
        let found = folder.join("target/found").join(&name);
        fs::create_dir_all(&found)
            .map_err(|error| format!("cannot create {}: {error}", found.display()))?;
        let output = Command::new(&binary)
            .arg(format!("-max_total_time={SECONDS}"))
            .arg("-timeout=10")
            .arg(format!("-artifact_prefix={}/", found.display()))
            .args([found.as_path(), &corpora.join(&name)])
            .env("PACKHOST_FUZZ", &name)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("cannot start {}: {error}", binary.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        let runs = said.lines().rev().find(|line| line.starts_with("Done "));
        match (output.status.success(), runs) {
            (true, Some(runs)) => say(&format!("fuzzed {name}: {runs}")),
            _ => return Err(format!("the fuzz target `{name}` failed:\n{said}")),
        }
    }
    Ok(())
}

/// Why the targets cannot be built here, if so.
fn impossible(folder: &Path) -> Option<String> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Some(format!("their flags are for {TARGET}"));
    }
    let tried = Command::new("c++").arg("--version").output();
    if !tried.is_ok_and(|output| output.status.success()) {
        return Some("libFuzzer needs a C++ compiler called `c++`".into());
    }
    let fetched = cargo(folder)
        .args(["fetch", "--locked", "--quiet"])
        .output();
    match fetched {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!(
            "their dependencies cannot be had: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Some(format!("cargo cannot be started: {error}")),
    }
}
