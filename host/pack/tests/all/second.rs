//! The second verifier, written in another language from the format's text: both must agree about everything that both check.
//!
//! Needs Python with the package `cryptography`, as `$PACKHOST_PYTHON` or `python3`. Where there is none the tests say so and
//! pass; with `PACKHOST_SECOND_VERIFIER=require`, as CI sets it, they fail.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use packhost_pack::trust::{self, Accepted};
use packhost_pack::verify::{Verification, VerifyOptions, verify};
use rayon::prelude::*;
use serde_json::Value;

use crate::{fixtures, sealing};

/// The interpreter, or nothing where the tests cannot run.
fn python() -> Option<&'static OsString> {
    static PYTHON: OnceLock<Option<OsString>> = OnceLock::new();
    let found = PYTHON.get_or_init(|| {
        let python = std::env::var_os("PACKHOST_PYTHON").unwrap_or_else(|| "python3".into());
        let tried = Command::new(&python)
            .args(["-c", "import cryptography"])
            .output();
        let reason = match tried {
            Ok(output) if output.status.success() => return Some(python),
            Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
            Err(error) => error.to_string(),
        };
        let sentence = format!(
            "the second verifier needs Python with the package `cryptography` ({}): {}",
            python.to_string_lossy(),
            reason.trim()
        );
        assert!(
            std::env::var("PACKHOST_SECOND_VERIFIER").as_deref() != Ok("require"),
            "{sentence}; `cargo xtask ci` sets one up"
        );
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "SKIPPED: {sentence}");
        None
    });
    found.as_ref()
}

/// Classes that only the first verifier checks: reports and edit metadata.
fn only_first(class: &str) -> bool {
    class.starts_with("reports.")
        || ["integrity.edit_metadata", "integrity.scenarios"].contains(&class)
}

/// The signers that the options accept.
fn accepted(options: &VerifyOptions) -> Accepted {
    trust::accepted(
        options.expected_fingerprint.as_deref(),
        options.trust_store.as_deref(),
    )
}

/// What the second one says: exit code and classes.
fn second(python: &OsString, pack: &Path, options: &VerifyOptions) -> (u64, BTreeSet<String>) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/second_verifier.py");
    let mut command = Command::new(python);
    command.arg(script).arg(pack);
    if options.strict {
        command.arg("--strict");
    }
    if options.allow_unverified_provenance {
        command.arg("--allow-unsigned");
    }
    for fingerprint in accepted(options).fingerprints {
        command.args(["--accept", &fingerprint]);
    }
    let output = command.output().unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!(
            "{}: {error}: {}",
            pack.display(),
            String::from_utf8_lossy(&output.stderr)
        )
    });
    assert_eq!(output.status.code().map(i64::from), answer["exit"].as_i64());
    let classes = answer["classes"].as_array().unwrap();
    let classes = classes.iter().map(|class| class.as_str().unwrap().into());
    (answer["exit"].as_u64().unwrap(), classes.collect())
}

/// Where the two disagree, as a sentence.
fn disagreement(
    python: &OsString,
    pack: &Path,
    options: &VerifyOptions,
    first: &Verification,
) -> Option<String> {
    let shared: BTreeSet<String> = first
        .failures
        .iter()
        .map(|failure| failure.check_id.to_owned())
        .filter(|class| !only_first(class))
        .collect();
    let exit = match shared.is_empty() {
        true => 0,
        false => u64::from(first.exit.code()),
    };
    // Bad options stop the first one before it looks at the pack; the second one has none of them.
    if first.exit.code() == 2 {
        return None;
    }
    let (code, classes) = second(python, pack, options);
    // Before stage 6 the second one stops at its first finding.
    let agree = match exit {
        0 | 6 => classes == shared,
        _ => classes.is_subset(&shared) && !classes.is_empty(),
    };
    (code != exit || !agree).then(|| format!("first {exit} {shared:?}, second {code} {classes:?}"))
}

/// The options of a run that the second verifier has too.
fn options(run: &Value) -> VerifyOptions {
    let mut options = VerifyOptions::default();
    let mut args = run["args"].as_array().unwrap().iter();
    let mut value = || args.next().map(|arg| arg.as_str().unwrap().to_owned());
    while let Some(arg) = value() {
        match arg.as_str() {
            "--strict" => options.strict = true,
            "--skip-verify" => options.skip_verify = true,
            "--expected-fingerprint" => options.expected_fingerprint = value(),
            "--trust-store" => {
                let store = value().unwrap();
                options.trust_store = Some(match store.strip_prefix("@trust/") {
                    Some(name) => fixtures::root().join("trust").join(name),
                    None => PathBuf::from(store),
                });
            }
            _ => drop(value()),
        }
    }
    options.allow_unverified_provenance =
        run["env"]["INVARLOCK_ALLOW_UNVERIFIED_PROVENANCE"].as_str() == Some("1");
    options
}

#[test]
fn both_verifiers_agree_on_every_fixture() {
    let Some(python) = python() else { return };
    let expected = fixtures::json("expected.json");
    let cases = expected["cases"].as_array().unwrap().par_iter();
    let of_case = |case: &Value| {
        let work = tempfile::tempdir().unwrap();
        fixtures::make_case(case, work.path());
        let pack = work.path().join("pack");
        compare(python, case, &pack)
    };
    let others = expected["other_packs"].as_array().unwrap().par_iter();
    let of_other = |case: &Value| {
        let name = case["id"].as_str().unwrap();
        compare(python, case, &fixtures::root().join("packs").join(name))
    };
    let compared: Vec<(usize, Vec<String>)> =
        cases.map(of_case).chain(others.map(of_other)).collect();
    let runs: usize = compared.iter().map(|(runs, _)| runs).sum();
    let different: Vec<&String> = compared.iter().flat_map(|(_, found)| found).collect();
    println!("{} cases, {runs} runs", compared.len());
    assert!(different.is_empty(), "{different:#?}");
    assert!(runs >= 189, "only {runs} runs");
}

fn compare(python: &OsString, case: &Value, pack: &Path) -> (usize, Vec<String>) {
    let runs = case["runs"].as_array().unwrap();
    let found = runs.iter().filter_map(|run| {
        let options = options(run);
        let first = verify(pack, &options);
        let what = disagreement(python, pack, &options, &first)?;
        Some(format!("{} {}: {what}", case["id"], run["args"]))
    });
    (runs.len(), found.collect())
}

#[test]
fn both_verifiers_agree_on_a_sealed_pack_and_its_mutants() {
    let Some(python) = python() else { return };
    let work = tempfile::tempdir().unwrap();
    let good = work.path().join("good");
    sealing::seal_with(&good, |_| {}).unwrap();
    let strict = VerifyOptions {
        strict: true,
        ..VerifyOptions::default()
    };
    let first = verify(&good, &strict);
    assert!(first.ok(), "{:?}", first.failures);
    assert_eq!(disagreement(python, &good, &strict, &first), None);
    // Every file, with one byte changed in the middle, and gone.
    let names: Vec<String> = fixtures::files(&good)
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    let mutants: Vec<(String, bool)> = names
        .iter()
        .flat_map(|name| [(name.clone(), true), (name.clone(), false)])
        .collect();
    let different: Vec<String> = mutants
        .par_iter()
        .filter_map(|(name, gone)| {
            let work = tempfile::tempdir().unwrap();
            let pack = work.path().join("pack");
            fixtures::copy_tree(&good, &pack);
            let path = pack.join(name);
            if *gone {
                std::fs::remove_file(&path).unwrap();
            } else {
                let mut bytes = std::fs::read(&path).unwrap();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                std::fs::write(&path, bytes).unwrap();
            }
            let first = verify(&pack, &strict);
            let what = disagreement(python, &pack, &strict, &first)?;
            Some(format!("{name} {gone}: {what}"))
        })
        .collect();
    println!("{} mutants", mutants.len());
    assert!(different.is_empty(), "{different:#?}");
}
