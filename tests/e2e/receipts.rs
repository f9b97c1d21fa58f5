//! Receipts of verifications, and verdicts as in-toto statements: written, checked, forged.

use std::fs;
use std::process::Command;

use base64::Engine as _;
use serde_json::Value;

use crate::support::{Bench, copy, flip, repository, text};

/// The good pack in `pack`, and the key pair of a verifier with its fingerprint.
fn bench() -> (Bench, String) {
    let bench = Bench::new();
    let from = repository().join("tests/vectors/evidence-pack/packs/good");
    copy(&from, &bench.path("pack"));
    let made = bench.line("pack keygen auditor.pem").output().unwrap();
    let said = String::from_utf8(made.stdout).unwrap();
    let print = said.trim().rsplit(' ').next().unwrap().to_owned();
    (bench, print)
}

fn envelope(bench: &Bench, name: &str) -> Value {
    serde_json::from_slice(&fs::read(bench.path(name)).unwrap()).unwrap()
}

fn payload(envelope: &Value) -> Value {
    let engine = base64::engine::general_purpose::STANDARD;
    let bytes = engine.decode(envelope["payload"].as_str().unwrap());
    serde_json::from_slice(&bytes.unwrap()).unwrap()
}

/// Checks an envelope with the verifier that is not ours, where its Python is.
fn second_opinion(bench: &Bench, name: &str) -> Option<bool> {
    let python = std::env::var_os("PACKHOST_PYTHON").unwrap_or_else(|| "python3".into());
    let tried = Command::new(&python)
        .args(["-c", "import cryptography"])
        .output();
    if !tried.is_ok_and(|output| output.status.success()) {
        let required = std::env::var("PACKHOST_SECOND_VERIFIER");
        assert!(required.as_deref() != Ok("require"), "no cryptography");
        eprintln!("SKIPPED: envelopes are not checked by Python: it has no cryptography");
        return None;
    }
    let output = Command::new(&python)
        .arg(repository().join("tests/dsse.py"))
        .args([bench.path(name), bench.path("auditor.pub.pem")])
        .output()
        .unwrap();
    Some(output.status.success())
}

#[test]
fn a_receipt_says_what_was_checked() {
    let (bench, print) = bench();
    let verify = "pack verify pack --strict --receipt-key auditor.pem --receipt";
    let said = bench.says(&format!("{verify} receipt.json"));
    assert!(said.starts_with("exit: 0\n"), "{said}");
    let receipt = payload(&envelope(&bench, "receipt.json"));
    assert_eq!(receipt["outcome"], "PASS");
    assert_eq!(receipt["status"], "integrity_only");
    assert_eq!(receipt["signer"]["fingerprint"], print.as_str());
    assert_eq!(receipt["stages"][5]["result"], "passed");
    assert_eq!(receipt["stages"][7]["result"], "not_asked");
    assert_eq!(receipt["verifier"]["sha256"].as_str().unwrap().len(), 64);
    assert_eq!(receipt["replay"], Value::Null);
    let check = format!("pack receipt receipt.json --expected-fingerprint {print}");
    let said = bench.says(&format!("{check} --pack pack"));
    assert!(
        said.starts_with("exit: 0\n") && said.contains("PASS: "),
        "{said}"
    );
    assert_ne!(second_opinion(&bench, "receipt.json"), Some(false));

    // Not over a file, not into the pack, not by a bad key.
    let said = bench.says(&format!("{verify} receipt.json"));
    assert!(
        said.contains("exit: 2") && said.contains("usage.receipt"),
        "{said}"
    );
    let said = bench.says(&format!("{verify} pack/receipt.json"));
    assert!(
        said.contains("exit: 2") && !bench.path("pack/receipt.json").exists(),
        "{said}"
    );
    let said = bench.says("pack verify pack --receipt-key auditor.pub.pem --receipt other.json");
    assert!(
        said.contains("exit: 5") && !bench.path("other.json").exists(),
        "{said}"
    );

    // A pack that is refused gets a receipt that says so, and the check of it fails.
    flip(&bench.path("pack/README.md"), 3);
    let said = bench.says(&format!("{verify} failed.json"));
    assert!(said.starts_with("exit: 6\n"), "{said}");
    let receipt = payload(&envelope(&bench, "failed.json"));
    assert_eq!(
        (&receipt["outcome"], &receipt["exit"]),
        (&"FAIL".into(), &6.into())
    );
    assert_eq!(receipt["failures"][0]["check_id"], "integrity.digest");
    assert_eq!(receipt["stages"][5]["result"], "failed");
    assert_eq!(receipt["stages"][6]["result"], "not_reached");
    let said = bench.says("pack receipt failed.json");
    assert!(
        said.starts_with("exit: 10\n") && said.contains("FAIL: "),
        "{said}"
    );
    assert_eq!(bench.leftovers("."), Vec::<String>::new());
}

#[test]
fn a_forged_receipt_is_refused() {
    let (bench, print) = bench();
    bench.says("pack verify pack --receipt-key auditor.pem --receipt receipt.json");
    let good = envelope(&bench, "receipt.json");
    let engine = base64::engine::general_purpose::STANDARD;
    let mut forged = good.clone();
    let bytes = engine.decode(good["payload"].as_str().unwrap()).unwrap();
    let changed = String::from_utf8(bytes)
        .unwrap()
        .replace("\"strict\": false", "\"strict\": true");
    forged["payload"] = engine.encode(changed).into();
    bench.write("forged.json", forged.to_string());
    let said = bench.says("pack receipt forged.json");
    assert!(
        said.contains("exit: 5") && said.contains("receipt.signature"),
        "{said}"
    );
    assert_ne!(second_opinion(&bench, "forged.json"), Some(true));
    let other = "sha256:9659a9b4d34b37dd94be6bb383c5a73f2fbf40d1783dbb3ff355357eb7911673";
    let said = bench.says(&format!(
        "pack receipt receipt.json --expected-fingerprint {other}"
    ));
    assert!(
        said.contains("exit: 5") && said.contains("receipt.untrusted_signer"),
        "{said}"
    );
    bench.write("empty.json", "{}");
    let said = bench.says("pack receipt empty.json");
    assert!(
        said.contains("exit: 4") && said.contains("receipt.form"),
        "{said}"
    );
    fs::write(bench.path("pack/manifest.json"), "{}").unwrap();
    let check = format!("pack receipt receipt.json --expected-fingerprint {print} --pack pack");
    let said = bench.says(&check);
    assert!(
        said.contains("exit: 6") && said.contains("receipt.other_pack"),
        "{said}"
    );
}

#[test]
fn a_verdict_is_exported_for_in_toto() {
    let (bench, _) = bench();
    let line = "pack export pack --signing-key auditor.pem --in-toto";
    let said = bench.says(&format!("{line} statement.json"));
    assert!(said.starts_with("exit: 0\n"), "{said}");
    let sealed = envelope(&bench, "statement.json");
    assert_eq!(sealed["payloadType"], "application/vnd.in-toto+json");
    let statement = payload(&sealed);
    assert_eq!(statement["_type"], "https://in-toto.io/Statement/v1");
    let digest = Command::new("sha256sum")
        .arg(text(&bench.path("pack/manifest.json")))
        .output()
        .unwrap();
    let digest = String::from_utf8(digest.stdout).unwrap();
    assert_eq!(
        statement["subject"][0]["digest"]["sha256"],
        digest.split(' ').next().unwrap()
    );
    assert_eq!(
        statement["predicateType"],
        "https://in-toto.io/attestation/test-result/v0.1"
    );
    assert_eq!(statement["predicate"]["result"], "PASSED");
    assert!(statement["predicate"]["configuration"].is_array());
    assert_ne!(second_opinion(&bench, "statement.json"), Some(false));
    let said = bench.says(&format!("{line} statement.json"));
    assert!(said.starts_with("exit: 15\n"), "{said}");
    let said = bench.says(&format!("{line} pack/statement.json"));
    assert!(said.starts_with("exit: 2\n"), "{said}");
    flip(&bench.path("pack/README.md"), 3);
    let said = bench.says(&format!("{line} late.json"));
    assert!(
        said.starts_with("exit: 6\n") && !bench.path("late.json").exists(),
        "{said}"
    );
}

/// Kills a build by hand at each call of every kind that changes the disk: there is no pack, or a whole one.
#[test]
fn a_build_that_is_killed_leaves_a_whole_pack_or_none() {
    let bench = Bench::new();
    let vectors = "[REPO]/tests/vectors/evidence-pack";
    let (mut whole, mut none) = (0, 0);
    for call in ["mkdir", "write", "fsync", "rename"] {
        for number in 1..200 {
            let out = format!("{call}-{number}");
            let inject = format!("inject={call}:signal=SIGKILL:when={number}");
            let strace = [
                "strace",
                "-f",
                "-qq",
                "-o",
                "/dev/null",
                "-e",
                call_filter(call),
                "-e",
                &inject,
            ];
            let line = format!(
                "pack build {out} --final-verdict {vectors}/inputs/meta/final_verdict.json \
                 --report {vectors}/inputs/m/evaluation.report.json --signing-key {vectors}/keys/signer.pem"
            );
            let Some(output) = crate::hermetic::under(&bench, &strace, &line) else {
                return;
            };
            if bench.path(&out).exists() {
                whole += 1;
                let said = bench.says(&format!("pack verify {out} --strict"));
                assert!(said.starts_with("exit: 0\n"), "{call} {number}: {said}");
            } else {
                none += 1;
                assert_ne!(output.status.code(), Some(0), "{call} {number}");
            }
            if output.status.code() == Some(0) {
                break;
            }
            assert!(number < 199, "{call}: {}", bench.render(&output));
        }
    }
    println!("killed builds: {none} left no pack, {whole} a whole one");
    assert!(whole >= 4 && none >= 20, "{none} none, {whole} whole");
}

fn call_filter(call: &str) -> &'static str {
    match call {
        "mkdir" => "trace=mkdir",
        "write" => "trace=write",
        "fsync" => "trace=fsync",
        _ => "trace=rename",
    }
}
