//! Mutated packs: none panics, and none is accepted unless the mutation is one that the format ignores.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use packhost_pack::inspect::inspect;
use packhost_pack::verify::{Verification, VerifyOptions, verify};
use serde_json::Value;

use crate::fixtures;

fn options() -> VerifyOptions {
    VerifyOptions {
        strict: true,
        profile: "release".into(),
        report_assurance: "strict".into(),
        ..VerifyOptions::default()
    }
}

struct Tally {
    folder: tempfile::TempDir,
    files: Vec<(String, Vec<u8>)>,
    by_class: BTreeMap<String, usize>,
    accepted: Vec<String>,
    mutants: usize,
}

impl Tally {
    fn new(pack: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source = fixtures::root().join("packs").join(pack);
        fixtures::copy_tree(&source, &folder.path().join("pack"));
        Self {
            folder,
            files: fixtures::files(&source),
            by_class: BTreeMap::new(),
            accepted: Vec::new(),
            mutants: 0,
        }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join("pack").join(name)
    }

    /// Judges the pack as it is now.
    fn judge(&mut self, what: String) {
        let pack = self.folder.path().join("pack");
        let result: Verification = verify(&pack, &options());
        // None of these may panic either.
        let _ = (result.json(), inspect(&pack).json());
        self.mutants += 1;
        let class = result
            .failures
            .first()
            .map_or("ok", |failure| failure.check_id);
        *self.by_class.entry(class.to_owned()).or_default() += 1;
        if result.ok() {
            self.accepted.push(what);
        }
    }

    /// Applies a change, judges the pack, and undoes the change.
    fn try_one(&mut self, what: String, change: impl FnOnce(&Path)) {
        let pack = self.folder.path().join("pack");
        change(&pack);
        self.judge(what);
        fs::remove_dir_all(&pack).unwrap();
        for (name, bytes) in &self.files {
            let path = pack.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }

    /// Judges the pack with other bytes in one file.
    fn write(&mut self, what: String, name: &str, bytes: Vec<u8>) {
        let path = self.path(name);
        let before = fs::read(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        self.judge(what);
        fs::write(&path, before).unwrap();
    }
}

/// Whether a name is one of the small files at the heart of the pack.
fn is_control(name: &str) -> bool {
    [
        "manifest.json",
        "manifest.signature.json",
        "checksums.sha256",
    ]
    .contains(&name)
}

#[test]
fn no_mutant_is_accepted_and_none_panics() {
    let mut total = 0;
    for pack in ["good", "layout_v2"] {
        let mut tally = Tally::new(pack);
        for (name, bytes) in tally.files.clone() {
            // Bits of the small files everywhere, of the others in a sample.
            let step = if is_control(&name) { 7 } else { 97 };
            for at in (0..bytes.len()).step_by(step) {
                for bit in [0, 5] {
                    let mut mutant = bytes.clone();
                    mutant[at] ^= 1 << bit;
                    tally.write(format!("{name}: bit {bit} of byte {at}"), &name, mutant);
                }
            }
            tally.write(
                format!("{name}: cut"),
                &name,
                bytes[..bytes.len() / 2].to_vec(),
            );
            tally.write(format!("{name}: emptied"), &name, Vec::new());
            tally.write(
                format!("{name}: longer"),
                &name,
                [bytes.as_slice(), b" "].concat(),
            );
            tally.try_one(format!("{name}: dropped"), |pack| {
                fs::remove_file(pack.join(&name)).unwrap()
            });
            tally.try_one(format!("{name}: renamed"), |pack| {
                fs::rename(pack.join(&name), pack.join(format!("{name}.x"))).unwrap()
            });
            tally.try_one(format!("{name}: a directory"), |pack| {
                fs::remove_file(pack.join(&name)).unwrap();
                fs::create_dir(pack.join(&name)).unwrap();
            });
            tally.try_one(format!("{name}: a link"), |pack| {
                fs::rename(pack.join(&name), pack.join("moved")).unwrap();
                std::os::unix::fs::symlink(pack.join("moved"), pack.join(&name)).unwrap();
            });
        }
        let files = tally.files.clone();
        for pair in files.windows(2) {
            let ((a, _), (b, _)) = (&pair[0], &pair[1]);
            if pair[0].1 != pair[1].1 {
                tally.try_one(format!("{a} and {b} swapped"), |pack| {
                    fs::rename(pack.join(a), pack.join("swap")).unwrap();
                    fs::rename(pack.join(b), pack.join(a)).unwrap();
                    fs::rename(pack.join("swap"), pack.join(b)).unwrap();
                });
            }
        }
        for name in [
            "new",
            "reports/new/evaluation.report.json",
            "metadata/x/y",
            "._x",
            "README.MD",
        ] {
            tally.try_one(format!("{name} added"), |pack| {
                fs::create_dir_all(pack.join(name).parent().unwrap()).unwrap();
                fs::write(pack.join(name), "x").unwrap();
            });
        }
        // What the format ignores: white space in the bundle, which no mirror fixes here, and whether the optional mirrors are there.
        let mut ignored = vec!["manifest.signature.json: longer".to_owned()];
        if pack == "layout_v2" {
            ignored.clear();
            for (mirror, _) in packhost_pack::layout::MIRRORS {
                ignored.extend([
                    format!("{mirror}: dropped"),
                    format!("{mirror}: a directory"),
                ]);
            }
        }
        tally.accepted.sort();
        ignored.sort();
        assert_eq!(tally.accepted, ignored, "{pack}");
        println!(
            "{pack}: {} mutants, refused as {:?}",
            tally.mutants, tally.by_class
        );
        total += tally.mutants;
    }
    assert!(total > 1000, "only {total} mutants");
}

/// Every field of every JSON document of a pack, replaced by a value of each type and resealed by nobody: the rules themselves must not panic.
#[test]
fn rules_survive_any_type_in_any_field() {
    fn paths(value: &Value, at: &mut Vec<String>, all: &mut Vec<Vec<String>>) {
        all.push(at.clone());
        let children: Vec<(String, &Value)> = match value {
            Value::Object(fields) => fields
                .iter()
                .map(|(key, value)| (key.clone(), value))
                .collect(),
            Value::Array(items) => items
                .iter()
                .enumerate()
                .map(|(index, value)| (index.to_string(), value))
                .collect(),
            _ => Vec::new(),
        };
        for (key, child) in children {
            at.push(key.replace('~', "~0").replace('/', "~1"));
            paths(child, at, all);
            at.pop();
        }
    }
    use packhost_pack::report_rules::{Assurance, Profile, Rules, RuntimeManifest, check};
    let replacements = [
        Value::Null,
        Value::Bool(true),
        serde_json::json!(-1),
        serde_json::json!(1e308),
        serde_json::json!("x"),
        serde_json::json!([]),
        serde_json::json!([[1, 2]]),
        serde_json::json!({}),
        serde_json::json!({"a": {"window_ids": [1]}}),
    ];
    let report = fixtures::json("inputs/a/evaluation.report.json");
    let runtime = fixtures::json("inputs/a/runtime.manifest.json");
    let manifest = fixtures::json("packs/layout_v2/manifest.json");
    let digest = packhost_pack::digest::hex(
        &fs::read(fixtures::root().join("inputs/a/evaluation.report.json")).unwrap(),
    );
    let rules = Rules {
        profile: Profile::Release,
        assurance: Assurance::Strict,
        skip_provenance: false,
    };
    assert!(
        check(
            &report,
            &digest,
            &RuntimeManifest::Found(runtime.clone()),
            rules
        )
        .faults
        .is_empty()
    );
    let mut ran = 0;
    for (which, document) in [(0, &report), (1, &runtime), (2, &manifest)] {
        let mut all = Vec::new();
        paths(document, &mut Vec::new(), &mut all);
        for path in all {
            let pointer = path
                .iter()
                .map(|part| format!("/{part}"))
                .collect::<String>();
            for replacement in &replacements {
                let mut mutant = document.clone();
                *mutant.pointer_mut(&pointer).unwrap() = replacement.clone();
                ran += 1;
                match which {
                    0 => drop(check(
                        &mutant,
                        &digest,
                        &RuntimeManifest::Found(runtime.clone()),
                        rules,
                    )),
                    1 => drop(check(
                        &report,
                        &digest,
                        &RuntimeManifest::Found(mutant.clone()),
                        rules,
                    )),
                    _ => {
                        packhost_pack::manifest::schema_faults(&mutant);
                        packhost_pack::manifest::references(&mutant);
                        packhost_pack::manifest::evidence_level(&mutant);
                    }
                }
                if which == 0 {
                    packhost_pack::verdict::outcome(&mutant, Some(&mutant), Some(&mutant));
                    packhost_pack::verdict::spectral_movement(
                        &mutant["spectral"],
                        &report["spectral"],
                    );
                }
            }
        }
    }
    println!("{ran} documents with one field of another type");
    assert!(ran > 2500);
}
