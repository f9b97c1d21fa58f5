//! The commands that are more than one step: demo, test, ci, release.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::process::{Tally, cargo, run, run_tests, say};
use crate::{checks, components, fuzz, outside};

/// Builds everything, runs the demo suite on the model in scenarios/demo and verifies the pack it leaves.
pub fn demo(root: &Path) -> Result<(), String> {
    components::run(root)?;
    build_host(root)?;
    run_demo(root)
}

/// The demo with what is built.
fn run_demo(root: &Path) -> Result<(), String> {
    let out = root.join("target/demo");
    if out.exists() {
        fs::remove_dir_all(&out)
            .map_err(|error| format!("cannot remove {}: {error}", out.display()))?;
    }
    fs::create_dir_all(&out)
        .map_err(|error| format!("cannot create {}: {error}", out.display()))?;
    let key = out.join("signing.key.pem");
    let run_dir = out.join("run");
    say("making a throw-away signing key");
    run(packhost(root)
        .args(["pack", "keygen"])
        .arg(&key)
        .stdout(std::process::Stdio::null()))?;
    say("running the demo suite");
    run(packhost(root)
        .args(["run", "--suite", "demo", "--plugins", "plugins"])
        .arg("--signing-key")
        .arg(&key)
        .arg("--out")
        .arg(&run_dir))?;
    say("verifying the pack it left, and deriving its verdict again");
    run(packhost(root)
        .args(["pack", "verify", "--strict", "--profile", "ci", "--replay"])
        .arg(run_dir.join("evidence_pack")))?;
    say(&format!(
        "done: the evidence pack is {}",
        run_dir.join("evidence_pack").display()
    ));
    Ok(())
}

/// Builds everything and runs all tests. Those that need programs which are not there say so and pass.
pub fn test(root: &Path) -> Result<(), String> {
    let tally = all_tests(root, &[])?;
    close(tally)
}

/// What CI runs.
pub fn ci(root: &Path) -> Result<(), String> {
    say("checking the format");
    run(cargo(root).args(["fmt", "--all", "--check"]))?;
    run(cargo(&root.join("plugins")).args(["fmt", "--all", "--check"]))?;
    run(cargo(&root.join("tests/fuzz")).args(["fmt", "--check"]))?;
    say("checking that the project needs nothing outside its tree");
    checks::self_contained(root)?;
    let python = outside::python(root)?;
    outside::strace()?;
    let hermetic = match outside::hermetic() {
        true => "require",
        false => "",
    };
    let browser = std::env::var_os("PACKHOST_BROWSER").filter(|name| !name.is_empty());
    let browser = match outside::browser() {
        true => browser.unwrap_or_else(|| "require".into()),
        false => "".into(),
    };
    let required = [
        ("PACKHOST_BROWSER", browser.as_os_str()),
        ("PACKHOST_PYTHON", python.as_os_str()),
        ("PACKHOST_SECOND_VERIFIER", OsStr::new("require")),
        ("PACKHOST_HERMETIC", OsStr::new(hermetic)),
    ];
    let tally = all_tests(root, &required)?;
    say("linting, warnings denied");
    run(cargo(root).args([
        "clippy",
        "--release",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ]))?;
    say("building the documentation, warnings denied");
    run(cargo(root)
        .args(["doc", "--release", "--workspace", "--no-deps", "--quiet"])
        .env("RUSTDOCFLAGS", "-D warnings"))?;
    fuzz::smoke(root)?;
    run_demo(root)?;
    close(tally)
}

/// Builds the distributable binaries.
pub fn release(root: &Path) -> Result<(), String> {
    components::run(root)?;
    say("building the binaries with link-time optimisation");
    let programs = ["packhost", "packhost-verify"];
    for program in programs {
        run(cargo(root).args(["build", "--profile", "dist", "--package", program]))?;
    }
    for program in programs {
        let binary = root.join("target/dist").join(program);
        let size = fs::metadata(&binary)
            .map_err(|error| format!("cannot find {}: {error}", binary.display()))?
            .len();
        say(&format!(
            "{} ({:.1} MB)",
            binary.display(),
            size as f64 / 1e6
        ));
    }
    Ok(())
}

/// Runs the tests of the workspace and, natively, those of the components. Testing the workspace also builds the program.
/// `environment` says which programs the tests may not do without.
fn all_tests(root: &Path, environment: &[(&str, &OsStr)]) -> Result<Tally, String> {
    components::run(root)?;
    let mut tally = Tally::default();
    say("testing the components natively, against the SDK's bench");
    run_tests(
        cargo(&root.join("plugins")).args(["test", "--workspace", "--quiet"]),
        &mut tally,
    )?;
    say(
        "testing the workspace (the first build takes some minutes: it includes a WebAssembly compiler)",
    );
    run_tests(
        cargo(root)
            .args([
                "test",
                "--release",
                "--workspace",
                "--no-fail-fast",
                "--quiet",
            ])
            // A test that needs the components fails without them here, instead of skipping itself.
            .env("PACKHOST_COMPONENTS", "require")
            .envs(environment.iter().copied()),
        &mut tally,
    )?;
    Ok(tally)
}

/// The closing line that tools count by, and the failure that makes the exit code.
fn close(tally: Tally) -> Result<(), String> {
    println!("{} passed, {} failed", tally.passed, tally.failed);
    match (tally.passed, tally.failed) {
        (0, _) => Err("no test was run".into()),
        (_, 0) => Ok(()),
        (_, failed) => Err(format!("{failed} tests failed; their names stand above")),
    }
}

fn build_host(root: &Path) -> Result<(), String> {
    say(
        "building packhost (the first time takes some minutes: it includes a WebAssembly compiler)",
    );
    // The whole workspace, so that the tests find the same dependencies built: one package alone asks fewer features of them.
    run(cargo(root).args(["build", "--release", "--quiet", "--workspace"]))
}

fn binary(root: &Path) -> std::path::PathBuf {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), Into::into);
    target
        .join("release")
        .join(format!("packhost{}", std::env::consts::EXE_SUFFIX))
}

fn packhost(root: &Path) -> Command {
    let mut command = Command::new(binary(root));
    command.current_dir(root);
    command
}
