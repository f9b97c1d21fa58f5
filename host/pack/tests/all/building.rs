//! The package-native builder against the reference's packs and answers, and its refusals.

use std::fs;
use std::path::{Path, PathBuf};

use packhost_pack::build::{BuildRequest, build};
use packhost_pack::inspect::inspect;
use packhost_pack::verify::{VerifyOptions, verify};
use packhost_pack::{Error, ExitClass};
use serde_json::{Value, json};

use crate::fixtures;

fn input(name: &str) -> PathBuf {
    fixtures::root().join("inputs").join(name)
}

fn report(name: &str) -> PathBuf {
    input(name).join("evaluation.report.json")
}

/// The request that made `packs/good`.
fn good(out: &Path) -> BuildRequest {
    BuildRequest {
        source_repo: Some(input("meta/source_repo.json")),
        environment: Some(input("meta/environment.json")),
        materials: vec![format!(
            "model_revisions={}",
            input("meta/model_revisions.json").display()
        )],
        readme: Some(input("meta/README.md")),
        signing_key: Some(fixtures::root().join("keys/signer.pem")),
        profile: "release".to_owned(),
        report_assurance: "strict".to_owned(),
        release_review: true,
        ..BuildRequest::new(
            out,
            input("meta/final_verdict.json"),
            vec![report("a"), report("b")],
        )
    }
}

fn same_files(got: &Path, want: &str) {
    let (got, want) = (
        fixtures::files(got),
        fixtures::files(&fixtures::root().join("packs").join(want)),
    );
    let names = |files: &[(String, Vec<u8>)]| {
        files
            .iter()
            .map(|(name, _)| name.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&got), names(&want));
    for ((name, got), (_, want)) in got.iter().zip(&want) {
        assert_eq!(
            String::from_utf8_lossy(got),
            String::from_utf8_lossy(want),
            "{name}"
        );
    }
}

#[test]
fn the_reference_packs_are_built_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("good");
    let built = build(&good(&out)).unwrap();
    same_files(&out, "good");
    let mut want = fixtures::json("outputs/build_good.json");
    let text = built
        .json()
        .to_string()
        .replace(&format!("{}/", fixtures::root().display()), "");
    let mut got: Value = serde_json::from_str(&text).unwrap();
    got["pack"] = Value::Null;
    want["pack"] = Value::Null;
    assert_eq!(got, want);

    for (name, key) in [("minimal", Some("keys/signer.pem")), ("unsigned", None)] {
        let out = folder.path().join(name);
        let request = BuildRequest {
            readme: Some(input("meta/README.md")),
            signing_key: key.map(|key| fixtures::root().join(key)),
            ..BuildRequest::new(&out, input("meta/final_verdict.json"), vec![report("m")])
        };
        let built = build(&request).unwrap();
        assert_eq!(built.warnings.len(), usize::from(key.is_none()));
        same_files(&out, name);
    }
}

#[test]
fn inspecting_the_good_pack_answers_as_the_reference_does() {
    let mut want = fixtures::json("outputs/inspect_good.json");
    let mut got = inspect(&fixtures::root().join("packs/good")).json();
    got["pack"] = Value::Null;
    want["pack"] = Value::Null;
    assert_eq!(got, want);
}

#[test]
fn inspecting_finds_extras_and_mirrors() {
    let folder = tempfile::tempdir().unwrap();
    let pack = folder.path().join("pack");
    fixtures::copy_tree(&fixtures::root().join("packs/good"), &pack);
    fs::write(pack.join("metadata/manifest.json"), "{}").unwrap();
    let inspection = inspect(&pack);
    assert!(inspection.ok() && !inspection.strict_ready());
    assert_eq!(
        inspection.json()["integrity"]["control_file_mirrors_ok"],
        json!(false)
    );
    fs::write(pack.join("x"), "").unwrap();
    assert_eq!(inspect(&pack).exit, ExitClass::Integrity);
    assert_eq!(
        inspect(&pack).json()["integrity"]["extra_files"],
        json!(["x"])
    );
    assert_eq!(
        inspect(&folder.path().join("absent")).exit,
        ExitClass::Missing
    );
    fs::write(pack.join("manifest.json"), "[]").unwrap();
    assert_eq!(inspect(&pack).exit, ExitClass::Format);
}

/// Exit class and check ids of a refusal; the target must not exist afterwards, nor anything beside it.
fn refusal(
    folder: &Path,
    change: impl FnOnce(&mut BuildRequest),
) -> (ExitClass, Vec<&'static str>) {
    let mut request = good(&folder.join("out"));
    change(&mut request);
    let existed = request.out.exists();
    let error = build(&request).unwrap_err();
    assert_eq!(request.out.exists(), existed);
    assert!(fs::read_dir(folder).unwrap().all(|entry| {
        !entry
            .unwrap()
            .file_name()
            .to_str()
            .unwrap()
            .starts_with(".out")
    }));
    assert_eq!(request.refusal_json(&error)["ok"], json!(false));
    match error {
        Error::Refused { exit, failures } => (
            exit,
            failures.iter().map(|failure| failure.check_id).collect(),
        ),
        other => panic!("{other}"),
    }
}

#[test]
fn refusals_come_in_order_with_all_their_faults() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let usage = |ids: &[&'static str]| (ExitClass::Usage, ids.to_vec());
    let format = |ids: &[&'static str]| (ExitClass::Format, ids.to_vec());
    assert_eq!(
        refusal(folder, |r| r.materials =
            vec!["a".into(), "=b".into(), "c=".into()]),
        usage(&["usage.material"; 3])
    );
    assert_eq!(
        refusal(folder, |r| r.reports.clear()),
        usage(&["usage.reports"])
    );
    fs::create_dir(folder.join("empty")).unwrap();
    assert_eq!(
        refusal(folder, |r| r.out = folder.join("empty")),
        usage(&["usage.output_exists"])
    );
    assert_eq!(
        refusal(folder, |r| r.report_assurance = "maybe".into()),
        usage(&["usage.report_assurance"])
    );
    let unfit = |r: &mut BuildRequest| {
        r.profile = "dev".into();
        r.report_assurance = "report".into();
        r.signing_key = None;
        r.final_verdict = input("meta/environment.json");
    };
    assert_eq!(refusal(folder, unfit), usage(&["usage.release_review"; 4]));
    let lonely = folder.join("lonely.json");
    fs::copy(report("a"), &lonely).unwrap();
    assert_eq!(
        refusal(folder, |r| r.reports.push(lonely)),
        (ExitClass::Missing, vec!["input.json"])
    );
    let array = folder.join("array.json");
    fs::write(&array, "[]").unwrap();
    assert_eq!(
        refusal(folder, |r| r.environment = Some(array)),
        format(&["input.json"])
    );
    let material = |name: &str| format!("{name}={}", input("meta/environment.json").display());
    for taken in [
        "environment",
        "source_repo",
        "manifest",
        "Manifest.signature",
        "scenarios",
        "a/b",
        ".x",
    ] {
        assert_eq!(
            refusal(folder, |r| r.materials = vec![material(taken)]),
            format(&["input.material"]),
            "{taken}"
        );
    }
    assert_eq!(
        refusal(folder, |r| r.materials = vec![material("x"), material("X")]),
        format(&["input.material"])
    );
    assert_eq!(
        refusal(folder, |r| r.signing_key =
            Some(fixtures::root().join("keys/x25519.pub.pem"))),
        format(&["input.signing_key"])
    );
    let (exit, _) = refusal(folder, |r| r.reports.push(report("m")));
    assert_eq!(exit, ExitClass::Reports);
}

#[test]
fn a_missing_readme_is_a_warning_and_the_pack_verifies() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let built = build(&BuildRequest {
        readme: Some(folder.path().join("none")),
        ..good(&out)
    })
    .unwrap();
    assert_eq!(built.warnings.len(), 1);
    assert!(!out.join("README.md").exists());
    assert!(
        verify(
            &out,
            &VerifyOptions {
                strict: true,
                require_pass: true,
                ..VerifyOptions::default()
            }
        )
        .ok()
    );
}
