//! Programs from outside that only tests need: Python with a package for signatures, a tracer of system calls, a browser.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{run, say};

/// The one package that the second verifier needs beside Python itself.
const PACKAGE: &str = "cryptography";

/// A Python that has the package: the system's own if it does, else one in a virtual environment under `target/`.
pub fn python(root: &Path) -> Result<PathBuf, String> {
    let system = PathBuf::from("python3");
    if imports(&system) {
        return Ok(system);
    }
    let folder = root.join("target/python");
    let own = folder.join("bin/python");
    if imports(&own) {
        return Ok(own);
    }
    say("setting up Python for the second verifier");
    run(Command::new(&system)
        .args(["-m", "venv", "--clear"])
        .arg(&folder))
    .map_err(|error| format!("the second verifier needs Python 3 with venv: {error}"))?;
    run(Command::new(&own).args(["-m", "pip", "install", "--quiet", PACKAGE]))
        .map_err(|error| format!("the second verifier needs the package {PACKAGE}: {error}"))?;
    Ok(own)
}

fn imports(python: &Path) -> bool {
    let tried = Command::new(python)
        .args(["-c", &format!("import {PACKAGE}")])
        .output();
    tried.is_ok_and(|output| output.status.success())
}

/// Whether this machine lets tests trace a program and start one without a network; says what is not tested if not.
pub fn hermetic() -> bool {
    let tries = [
        &["unshare", "--map-root-user", "--net", "true"][..],
        &["strace", "-o", "/dev/null", "true"],
    ];
    let works = |words: &&[&str]| {
        let tried = Command::new(words[0]).args(&words[1..]).output();
        tried.is_ok_and(|output| output.status.success())
    };
    let refused: Vec<&str> = tries
        .iter()
        .filter(|words| !works(words))
        .map(|words| words[0])
        .collect();
    if !refused.is_empty() {
        say(&format!(
            "SKIPPED: this machine does not permit {}, so what verifying touches is not tested in full",
            refused.join(" and ")
        ));
    }
    refused.is_empty()
}

/// Whether there is a browser in which tests open `report.html`; says what is not tested if not.
pub fn browser() -> bool {
    let named = std::env::var_os("PACKHOST_BROWSER").is_some_and(|name| !name.is_empty());
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let works = |name: &&str| {
        let tried = Command::new(name).arg("--version").output();
        tried.is_ok_and(|output| output.status.success())
    };
    let found = named || names.iter().any(works);
    if !found {
        say(&format!(
            "SKIPPED: no browser ({}, or one that PACKHOST_BROWSER names), so report.html is not looked at",
            names.join(", ")
        ));
    }
    found
}

/// Sees to it that `strace` is there.
pub fn strace() -> Result<(), String> {
    let there = || Command::new("strace").arg("--version").output().is_ok();
    if there() {
        return Ok(());
    }
    say("installing strace, by which tests see that verifying opens no socket");
    let sentence = "the tests of what verifying touches need strace; install the package strace";
    run(Command::new("apt-get").args(["install", "--yes", "--quiet", "strace"]))
        .map_err(|error| format!("{sentence}: {error}"))?;
    match there() {
        true => Ok(()),
        false => Err(sentence.into()),
    }
}
