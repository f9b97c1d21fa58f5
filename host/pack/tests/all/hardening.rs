//! Where we are stricter than the reference, and what only we offer.

use std::fs;
use std::path::{Path, PathBuf};

use packhost_pack::verify::{Authenticity, Status, VerifyOptions, verify};
use packhost_pack::{ExitClass, canonical, checksums, digest, keys, signature};
use serde_json::{Value, json};

use crate::fixtures;

struct Pack {
    folder: tempfile::TempDir,
}

impl Pack {
    fn good() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fixtures::copy_tree(
            &fixtures::root().join("packs/good"),
            &folder.path().join("pack"),
        );
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("pack").join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), bytes).unwrap();
    }

    /// Makes the pack whole again after a change: lists every file, binds the list, refreshes references, signs.
    fn reseal(&self) {
        let root = self.path("");
        let control = |name: &str| packhost_pack::layout::is_control(name);
        let lines: Vec<checksums::Line> = fixtures::files(&root)
            .into_iter()
            .filter(|(name, _)| !control(name))
            .map(|(name, bytes)| checksums::Line {
                digest: digest::hex(&bytes),
                name,
            })
            .collect();
        let list = checksums::write(&lines, checksums::Form::Native);
        self.write("checksums.sha256", &list);
        let mut manifest: Value =
            serde_json::from_slice(&fs::read(self.path("manifest.json")).unwrap()).unwrap();
        manifest["checksums_sha256_digest"] = json!(digest::hex(&list));
        let subject = manifest["subject"]["path"].as_str().unwrap().to_owned();
        manifest["subject"]["digest"] =
            json!(digest::prefixed(&fs::read(self.path(&subject)).unwrap()));
        let bytes = canonical::line_file(&manifest);
        let key = keys::load_signing(&fixtures::root().join("keys/signer.pem")).unwrap();
        self.write(
            "manifest.signature.json",
            canonical::line_file(&signature::sign(&bytes, &key).unwrap()),
        );
        self.write("manifest.json", bytes);
    }

    /// Exit class and first check of a strict and of a lenient verification.
    fn both(&self) -> [(ExitClass, &'static str); 2] {
        [true, false].map(|strict| {
            let result = verify(
                &self.path(""),
                &VerifyOptions {
                    strict,
                    ..VerifyOptions::default()
                },
            );
            (
                result.exit,
                result
                    .failures
                    .first()
                    .map_or("ok", |failure| failure.check_id),
            )
        })
    }
}

const OK: (ExitClass, &str) = (ExitClass::Ok, "ok");

fn integrity(check: &'static str) -> (ExitClass, &'static str) {
    (ExitClass::Integrity, check)
}

#[test]
fn links_and_special_files() {
    use std::os::unix::fs::symlink;
    let link = |target: &str, name: &str| {
        let pack = Pack::good();
        symlink(target, pack.path(name)).unwrap();
        pack.both()
    };
    assert_eq!(
        link("nowhere", "dangling"),
        [integrity("integrity.link"), OK]
    );
    assert_eq!(link("results", "alias"), [integrity("integrity.link"), OK]);
    // A link to a file inside is an unlisted file first.
    assert_eq!(
        link("README.md", "alias"),
        [integrity("integrity.extra_files"), OK]
    );
    // What leads to a file outside would make the answer depend on more than the pack.
    let outside = fixtures::root().join("README.md");
    assert_eq!(
        link(outside.to_str().unwrap(), "alias"),
        [
            integrity("integrity.extra_files"),
            integrity("integrity.link")
        ]
    );
    for control in [
        "manifest.json",
        "manifest.signature.json",
        "checksums.sha256",
    ] {
        let pack = Pack::good();
        fs::rename(pack.path(control), pack.folder.path().join("moved")).unwrap();
        symlink("../moved", pack.path(control)).unwrap();
        assert_eq!(pack.both(), [integrity("integrity.link"); 2], "{control}");
    }
    let pack = Pack::good();
    let made = std::process::Command::new("mkfifo")
        .arg(pack.path("pipe"))
        .status()
        .unwrap();
    assert!(made.success());
    assert_eq!(pack.both(), [integrity("integrity.link"), OK]);
    // A pipe in place of a file must not be waited for.
    for name in [
        "manifest.signature.json",
        "README.md",
        "reports/report-001/runtime.manifest.json",
    ] {
        let pack = Pack::good();
        fs::remove_file(pack.path(name)).unwrap();
        assert!(
            std::process::Command::new("mkfifo")
                .arg(pack.path(name))
                .status()
                .unwrap()
                .success()
        );
        assert!(
            pack.both().iter().all(|(exit, _)| *exit != ExitClass::Ok),
            "{name}"
        );
    }
}

#[test]
fn names_that_differ_in_case_only() {
    let pack = Pack::good();
    pack.write("readme.md", "x");
    pack.reseal();
    assert_eq!(pack.both(), [integrity("integrity.collision"), OK]);
}

#[test]
fn ambiguous_scenario_tables() {
    for (table, expected) in [
        (
            r#"{"scenarios": [{"id": "a", "id": "b"}]}"#,
            integrity("integrity.scenarios"),
        ),
        (r#"{"scenarios": NaN}"#, integrity("integrity.scenarios")),
        (r#"[1]"#, OK),
        (r#"{"scenarios": {"a": 1}}"#, OK),
        ("nonsense", OK),
    ] {
        let pack = Pack::good();
        pack.write("metadata/scenarios.json", table);
        pack.reseal();
        assert_eq!(pack.both(), [expected; 2], "{table}");
    }
    let pack = Pack::good();
    pack.write("metadata/scenarios.json", "[".repeat(200_000));
    pack.reseal();
    assert_eq!(pack.both(), [integrity("integrity.scenarios"); 2]);
}

#[test]
fn directories_without_end() {
    let pack = Pack::good();
    let mut deep = pack.path("");
    for _ in 0..80 {
        deep.push("d");
    }
    fs::create_dir_all(&deep).unwrap();
    assert_eq!(pack.both(), [integrity("integrity.limits"); 2]);
}

#[test]
fn a_verdict_of_pass_can_be_required() {
    let required = VerifyOptions {
        require_pass: true,
        ..VerifyOptions::default()
    };
    for (verdict, exit) in [
        ("{\"verdict\": \" pass \"}", ExitClass::Ok),
        ("{\"verdict\": \"FAIL\"}", ExitClass::Verdict),
        ("{}", ExitClass::Verdict),
        ("x", ExitClass::Verdict),
    ] {
        let pack = Pack::good();
        pack.write("results/final_verdict.json", verdict);
        pack.reseal();
        assert_eq!(verify(&pack.path(""), &required).exit, exit, "{verdict}");
        assert!(
            verify(&pack.path(""), &VerifyOptions::default()).ok(),
            "{verdict}"
        );
    }
    let pack = Pack::good();
    fs::remove_file(pack.path("manifest.signature.json")).unwrap();
    let result = verify(
        &pack.path(""),
        &VerifyOptions {
            require_pass: true,
            skip_verify: true,
            allow_unverified_provenance: true,
            ..VerifyOptions::default()
        },
    );
    assert_eq!(result.failures[0].check_id, "verdict.unsigned");
}

#[test]
fn integrity_and_authenticity_are_told_apart() {
    let pack = Pack::good();
    let signer = "sha256:927650e7ed371f7c3751a515e31f03e9ff864d9fed74d03638fd6b8480dd76a4";
    let unpinned = verify(&pack.path(""), &VerifyOptions::default());
    assert_eq!(
        (unpinned.status(), unpinned.authenticity),
        (Status::IntegrityOnly, Authenticity::Unpinned)
    );
    let pinned = verify(
        &pack.path(""),
        &VerifyOptions {
            expected_fingerprint: Some(signer.into()),
            ..VerifyOptions::default()
        },
    );
    assert_eq!(pinned.status(), Status::Authentic);
    assert_eq!(
        pinned.json()["packhost"],
        json!({"status": "authentic", "exit": 0, "failures": [], "warnings": []})
    );
    fs::write(pack.path("README.md"), "changed").unwrap();
    let changed = verify(
        &pack.path(""),
        &VerifyOptions {
            expected_fingerprint: Some(signer.into()),
            ..VerifyOptions::default()
        },
    );
    assert_eq!(
        (changed.status(), changed.authenticity),
        (Status::Refused, Authenticity::Pinned)
    );
}

#[test]
fn the_nested_payload_is_written_where_asked() {
    let pack = Pack::good();
    let out = pack.folder.path().join("nested.json");
    let options = VerifyOptions {
        json_out: Some(out.clone()),
        ..VerifyOptions::default()
    };
    let result = verify(&pack.path(""), &options);
    let text = fs::read_to_string(&out).unwrap();
    assert_eq!(
        text,
        format!("{}\n", canonical::to_line(result.nested.as_ref().unwrap()))
    );
    fs::remove_file(&out).unwrap();
    // Also through a link into the pack, and not without the nested verification.
    std::os::unix::fs::symlink(pack.path("reports"), pack.folder.path().join("door")).unwrap();
    let inside = VerifyOptions {
        json_out: Some(pack.folder.path().join("door/x.json")),
        ..VerifyOptions::default()
    };
    assert_eq!(verify(&pack.path(""), &inside).exit, ExitClass::Usage);
    assert!(
        verify(
            &pack.path(""),
            &VerifyOptions {
                skip_verify: true,
                ..options.clone()
            }
        )
        .ok()
    );
    assert!(!out.exists());
    // An unwritable place is the caller's mistake, not the pack's.
    let nowhere = VerifyOptions {
        json_out: Some(Path::new("/no/such/place.json").to_path_buf()),
        ..options
    };
    assert_eq!(verify(&pack.path(""), &nowhere).exit, ExitClass::Usage);
}

#[test]
fn a_pack_below_a_folder_called_errors_is_as_good() {
    let folder = tempfile::tempdir().unwrap();
    let pack = folder.path().join("errors/pack");
    fixtures::copy_tree(&fixtures::root().join("packs/good"), &pack);
    assert!(
        verify(
            &pack,
            &VerifyOptions {
                strict: true,
                ..VerifyOptions::default()
            }
        )
        .ok()
    );
}
