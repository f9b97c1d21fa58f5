//! Evidence packs: the good one of the reference, and what became of it. The full table of cases is in the pack crate.

use std::fs;

use insta::assert_snapshot;
use serde_json::Value;

use crate::support::{Bench, copy, flip, repository};

/// The good pack in the folder `pack`.
fn good() -> Bench {
    let bench = Bench::new();
    let from = repository().join("tests/vectors/evidence-pack/packs/good");
    copy(&from, &bench.path("pack"));
    bench
}

#[test]
fn the_good_pack_verifies() {
    let bench = good();
    assert_snapshot!(bench.says("pack verify pack --strict"), @r"
    exit: 0
    ----- stdout -----
    verified: every byte is as signed by sha256:[digest]; whether that is the right signer was not asked (--expected-fingerprint)
    ");
    let signer = "sha256:927650e7ed371f7c3751a515e31f03e9ff864d9fed74d03638fd6b8480dd76a4";
    assert_snapshot!(bench.says(&format!("pack verify pack --strict --expected-fingerprint {signer}")), @r"
    exit: 0
    ----- stdout -----
    verified: every byte is as signed by the expected signer sha256:[digest]
    ");
    assert_snapshot!(bench.says("pack verify pack --trust-store [REPO]/tests/vectors/evidence-pack/trust/signer.json"), @r"
    exit: 0
    ----- stdout -----
    verified: every byte is as signed by the expected signer sha256:[digest]
    ");
}

#[test]
fn a_flipped_byte() {
    let bench = good();
    flip(
        &bench.path("pack/reports/report-001/evaluation.report.json"),
        1000,
    );
    assert_snapshot!(bench.says("pack verify pack"), @r"
    exit: 6
    ----- stderr -----
    error: [integrity.digest] `reports/report-001/evaluation.report.json` has the digest [digest], the list says [digest]: the file was changed
    ");
    let bench = good();
    flip(&bench.path("pack/manifest.json"), 30);
    assert_snapshot!(bench.says("pack verify pack"), @r"
    exit: 4
    ----- stderr -----
    error: [format.json] `manifest.json` is not plain UTF-8 text: invalid utf-8 sequence of 1 bytes from index 30
    ");
}

#[test]
fn a_missing_file() {
    let bench = good();
    fs::remove_file(bench.path("pack/results/final_verdict.json")).unwrap();
    assert_snapshot!(bench.says("pack verify pack"), @r"
    exit: 6
    ----- stderr -----
    error: [integrity.missing_file] `results/final_verdict.json` is listed in `checksums.sha256`, but is no file in the pack
    error: [integrity.ref_missing] manifest field `subject` names `results/final_verdict.json`, which is no file in the pack
    ");
}

#[test]
fn an_extra_file() {
    let bench = good();
    bench.write("pack/notes.txt", "not in the checksums");
    assert_snapshot!(bench.says("pack verify pack --strict"), @r"
    exit: 6
    ----- stderr -----
    error: [integrity.extra_files] in the pack, but not in `checksums.sha256`: `notes.txt`
    ");
    assert_snapshot!(bench.says("pack verify pack"), @r"
    exit: 0
    ----- stdout -----
    verified: every byte is as signed by sha256:[digest]; whether that is the right signer was not asked (--expected-fingerprint)
    ----- stderr -----
    warning: in the pack, but not in `checksums.sha256`: `notes.txt`
    ");
}

#[test]
fn a_missing_signature() {
    let bench = good();
    fs::remove_file(bench.path("pack/manifest.signature.json")).unwrap();
    assert_snapshot!(bench.says("pack verify pack --strict"), @r"
    exit: 5
    ----- stderr -----
    error: [signature.missing] the pack has no `manifest.signature.json`, so nothing shows that it was not changed
    ");
}

#[test]
fn another_key() {
    let bench = good();
    let other = "sha256:9659a9b4d34b37dd94be6bb383c5a73f2fbf40d1783dbb3ff355357eb7911673";
    assert_snapshot!(bench.says(&format!("pack verify pack --expected-fingerprint {other}")), @r"
    exit: 5
    ----- stderr -----
    error: [signature.untrusted_signer] the signer sha256:[digest] is not among the 1 accepted; add it to the trust store only if you know whose key it is
    ");
    assert_snapshot!(bench.says("pack verify pack --trust-store [REPO]/tests/vectors/evidence-pack/trust/other.json"), @r"
    exit: 5
    ----- stderr -----
    error: [signature.untrusted_signer] the signer sha256:[digest] is not among the 1 accepted; add it to the trust store only if you know whose key it is
    ");
}

#[test]
fn no_pack() {
    let bench = Bench::new();
    assert_snapshot!(bench.says("pack verify pack"), @r"
    exit: 3
    ----- stderr -----
    error: [missing.pack] `pack` is not a directory
    ");
    assert_snapshot!(bench.says("pack inspect pack"), @r#"
    exit: 3
    ----- stdout -----
    {
      "artifacts": {
        "files": 0,
        "hashed": 0
      },
      "evidence_level": null,
      "format_version": "evidence-pack-inspect-v1",
      "integrity": {
        "checksums_bound": false,
        "checksums_ok": false,
        "control_file_mirrors_ok": false,
        "extra_files": [],
        "manifest_provenance_ok": false
      },
      "issues": [
        "`pack` is not a directory"
      ],
      "manifest": {
        "evidence_level": null,
        "format": null,
        "valid": false
      },
      "ok": false,
      "pack": "pack",
      "reports": {
        "clean": 0,
        "errors": 0,
        "total": 0
      },
      "signature": {
        "present": false,
        "signer_fingerprint": null
      },
      "strict_ready": false
    }
    ----- stderr -----
    error: [missing.pack] `pack` is not a directory
    "#);
}

#[test]
fn inspection() {
    let bench = good();
    let output = bench.line("pack inspect pack --json").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", bench.render(&output));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(answer.is_object(), "{answer}");
}

#[test]
fn new_keys() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::new();
    assert_snapshot!(bench.says("pack keygen signer.key.pem"), @r"
    exit: 0
    ----- stdout -----
    private key: signer.key.pem
    public key:  signer.key.pub.pem
    fingerprint: sha256:[digest]
    ");
    let mode = |name: &str| fs::metadata(bench.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("signer.key.pem"), 0o600);
    // An existing key is never written over, neither half of it.
    let before = fs::read(bench.path("signer.key.pem")).unwrap();
    assert_snapshot!(bench.says("pack keygen signer.key.pem"), @r"
    exit: 2
    ----- stderr -----
    error: [usage.key_exists] `signer.key.pem` exists and is not overwritten; choose another name or remove it yourself
    ");
    assert_eq!(fs::read(bench.path("signer.key.pem")).unwrap(), before);
    fs::rename(bench.path("signer.key.pem"), bench.path("moved.pem")).unwrap();
    assert_snapshot!(bench.says("pack keygen signer.key.pem"), @r"
    exit: 2
    ----- stderr -----
    error: [usage.key_exists] `signer.key.pub.pem` exists and is not overwritten; choose another name or remove it yourself
    ");
    assert!(!bench.path("signer.key.pem").exists());
}

#[test]
fn keys_that_cannot_sign() {
    let bench = Bench::new();
    let run = "run --suite demo --suites-file [REPO]/scenarios/suites.json --plugins [REPO]/plugins --out run";
    assert_snapshot!(bench.says(&format!("{run} --signing-key absent.pem")), @r"
    exit: 5
    ----- stderr -----
    error: signing key `absent.pem` cannot be used: it cannot be read: there is no such file
    ");
    bench.write(
        "garbage.pem",
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    );
    assert_snapshot!(bench.says(&format!("{run} --signing-key garbage.pem")), @r"
    exit: 5
    ----- stderr -----
    error: signing key `garbage.pem` cannot be used: it is not an Ed25519 private key in PKCS#8 PEM (PKCS#8 ASN.1 error: unknown/unsupported ASN.1 DER tag: 0x00 at DER byte 1); make one with `packhost pack keygen`
    ");
    let vectors = "[REPO]/tests/vectors/evidence-pack/keys";
    assert_snapshot!(bench.says(&format!("{run} --signing-key {vectors}/signer.pub.pem")), @r#"
    exit: 5
    ----- stderr -----
    error: signing key `[REPO]/tests/vectors/evidence-pack/keys/signer.pub.pem` cannot be used: it is not an Ed25519 private key in PKCS#8 PEM (PKCS#8 ASN.1 error: PEM error: unexpected PEM type label: expecting "BEGIN PRIVATE KEY"); make one with `packhost pack keygen`
    "#);
    fs::create_dir(bench.path("folder.pem")).unwrap();
    assert_snapshot!(bench.says(&format!("{run} --signing-key folder.pem")), @r"
    exit: 5
    ----- stderr -----
    error: signing key `folder.pem` cannot be used: it cannot be read: Is a directory (os error 21)
    ");
    // Found out before any work was done.
    assert!(!bench.path("run").exists());
}

#[test]
fn building_by_hand() {
    let bench = Bench::new();
    let inputs = "[REPO]/tests/vectors/evidence-pack/inputs";
    let vectors = repository().join("tests/vectors/evidence-pack");
    assert!(vectors.join("inputs").is_dir());
    let line = format!(
        "pack build pack --final-verdict {inputs}/absent.json --report {inputs}/m/evaluation.report.json"
    );
    assert_snapshot!(bench.says(&line), @r"
    exit: 3
    ----- stderr -----
    error: [input.json] `[REPO]/tests/vectors/evidence-pack/inputs/absent.json` cannot be read: there is no such file
    ");
    assert!(!bench.path("pack").exists());
}

#[test]
fn a_second_signature() {
    let bench = good();
    let made = bench.line("pack keygen second.key.pem").output().unwrap();
    let fingerprint = String::from_utf8(made.stdout).unwrap();
    let second = fingerprint.trim().rsplit(' ').next().unwrap();
    let signer = "sha256:927650e7ed371f7c3751a515e31f03e9ff864d9fed74d03638fd6b8480dd76a4";
    let key = |name: &str, print: &str| {
        format!("[[key]]\nname = \"{name}\"\nfingerprint = \"{print}\"\n")
    };
    let policy = format!(
        "format = 1\nthreshold = 2\n{}{}",
        key("builder", signer),
        key("reviewer", second)
    );
    bench.write("policy.toml", policy);
    assert_snapshot!(bench.says("pack verify pack --trust-policy policy.toml"), @r"
    exit: 5
    ----- stderr -----
    error: [signature.policy] the trust policy demands 2 signatures of its keys, and 1 count
    ");
    let sign = "pack sign pack --signing-key second.key.pem --out";
    assert_snapshot!(bench.says(&format!("{sign} pack/second.json")), @r"
    exit: 2
    ----- stderr -----
    error: the signature would lie inside the pack, which then holds a file that its list does not cover; name another place
    ");
    assert_snapshot!(bench.says(&format!("{sign} second.json")), @r"
    exit: 0
    ----- stdout -----
    signed by sha256:[digest]
    ");
    let output = bench.says("pack verify pack --trust-policy policy.toml --signature second.json");
    assert!(output.contains("as the trust policy demands"), "{output}");
    // It is never written over, and a changed pack is not signed.
    assert_snapshot!(bench.says(&format!("{sign} second.json")), @r"
    exit: 15
    ----- stderr -----
    error: failed to write the signature second.json: File exists (os error 17)
    ");
    flip(&bench.path("pack/README.md"), 3);
    let output = bench.says(&format!("{sign} third.json"));
    assert!(
        output.contains("exit: 6") && !bench.path("third.json").exists(),
        "{output}"
    );
    bench.write("policy.toml", "format = 1\nsigners = 2\n");
    let output = bench.says("pack verify pack --trust-policy policy.toml");
    assert!(
        output.contains("exit: 2") && output.contains("unknown field"),
        "{output}"
    );
}

/// What verified once verifies for ever.
#[test]
fn a_pack_of_every_released_kind_still_verifies() {
    let bench = Bench::new();
    let folder = repository().join("tests/vectors/released");
    let entries = fs::read_dir(&folder).unwrap();
    let packs: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    assert!(packs.len() >= 2, "{packs:?}");
    let first = "sha256:e04c34b9aac2f0d59e7717e3344897bc1e4e837c526e6dc9d644d511fdf5a274";
    let second = "sha256:5aa6b8835e0c3fb14ba89afad83b9285277cde30fb0777ef09848704a749ebe0";
    for pack in packs {
        let run = pack
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .strip_prefix("run-");
        let form: Option<u8> = run.map(|form| form.parse().unwrap());
        let signer = if form == Some(2) { second } else { first };
        let mut line = format!(
            "pack verify {} --strict --expected-fingerprint {signer}",
            pack.display()
        );
        // What followed from a run's evidence once follows for ever, as far as the pack's form goes.
        if form.is_some() {
            line += " --replay --json";
        }
        let output = bench.line(&line).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", bench.render(&output));
        if let Some(form) = form {
            let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(answer["packhost"]["replay"]["form"], form);
        }
    }
}
