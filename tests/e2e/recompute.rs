//! `pack verify --recompute`: who holds the model finds what a replay must take as it stands: tables, reports and summaries
//! that were forged so that everything follows from everything else.

use std::fs;

use insta::assert_snapshot;
use packhost_pack::layout;
use packhost_pack::seal::Draw as _;
use packhost_pack::verify::{VerifyOptions, verify};
use packhost_pack::{canonical, digest};
use packhost_suite::page::PackPage;
use serde_json::{Value, json};

use crate::replay::{Forgery, MODEL, falsify, sealed};
use crate::support::{json as read_json, repository};

/// The arguments by which an auditor measures everything again.
fn everything() -> String {
    let model = repository().join("scenarios/demo/model");
    format!("--recompute 100 --model {}", model.display())
}

/// The answer of verifying a pack in a forgery's folder.
fn answer(forgery: &Forgery, options: &str) -> (Option<i32>, Value) {
    let line = format!("pack verify pack --strict --json {options}");
    let output = forgery.bench.line(&line).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let answer = serde_json::from_slice(&output.stdout);
    (
        output.status.code(),
        answer.unwrap_or_else(|error| panic!("{error}: {said}")),
    )
}

/// Puts into the pack what a replay derives of it, until it follows from itself: what a forger does who knows this program.
fn make_consistent(forgery: &Forgery) {
    for _ in 0..8 {
        let found = forgery.differences().unwrap();
        if found.is_empty() {
            return;
        }
        let last = found.len() == 1;
        for difference in found {
            let path = forgery.pack().join(&difference.file);
            if difference.file == layout::PAGE {
                // A difference shows the beginning of a line only, so the forger draws the page anew, when all else is forged.
                if !last {
                    continue;
                }
                let files = verify(&forgery.pack(), &VerifyOptions::default()).files;
                fs::write(&path, PackPage.draw(&files.unwrap())).unwrap();
                continue;
            }
            if let Some(line) = difference.pointer.strip_prefix("line ") {
                let text = fs::read_to_string(&path).unwrap();
                let mut lines: Vec<&str> = text.split('\n').collect();
                lines[line.parse::<usize>().unwrap() - 1] = difference.derived.trim_matches('`');
                fs::write(&path, lines.join("\n")).unwrap();
                continue;
            }
            let derived: Value = serde_json::from_str(&difference.derived)
                .unwrap_or_else(|_| panic!("cannot forge: {difference}"));
            forgery.change(&difference.file, |document| {
                *document.pointer_mut(&difference.pointer).unwrap() = derived;
            });
        }
    }
    panic!("the forgery does not settle: {:#?}", forgery.differences());
}

/// Replaces a digest by another in a file, its short form included.
fn rename(forgery: &Forgery, file: &str, old: &str, new: &str) {
    let path = forgery.pack().join(file);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(old), "{file}");
    let text = text.replace(old, new).replace(&old[..16], &new[..16]);
    fs::write(&path, text).unwrap();
}

fn found<'a>(answer: &'a Value, step: &str) -> Vec<&'a Value> {
    let listed = answer["packhost"][step]["differences"].as_array();
    listed.unwrap().iter().collect()
}

const TABLE: &str = "metadata/packhost/tables/packhost__demo/prune_50pct_stress/run_1.json";
const REPORT: &str = "reports/packhost__demo/prune_50pct_stress/run_1/evaluation.report.json";

#[test]
fn an_honest_pack_is_measured_again_to_the_bit() {
    let line = format!("pack verify run/evidence_pack --strict {}", everything());
    assert_snapshot!(sealed().says(&line), @r"
    exit: 0
    ----- stdout -----
    verified: every byte is as signed by sha256:[digest]; whether that is the right signer was not asked (--expected-fingerprint)
    replayed: 8 reports and 64 verdicts of guards follow from the pack's tables, and 77 files have the derived bytes; 12 are taken as they stand
    measured again: 57 tensors have the stated digests; of 10 measurements 10 were drawn and made again from the weights, 56883 values: all are the same
    ");
    // The auditor's word chooses, with the pack; the same word chooses the same.
    let drawn = |word: &str| {
        let model = repository().join("scenarios/demo/model");
        let line = format!(
            "pack verify run/evidence_pack --json --recompute 2 --recompute-seed {word} --model {}",
            model.display()
        );
        let output = sealed().line(&line).output().unwrap();
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        let measured = &answer["packhost"]["recompute"];
        assert_eq!(measured["status"], "agrees", "{measured:#}");
        assert_eq!(measured["bound"], json!({"relative": 0.0, "absolute": 0.0}));
        let drawn = measured["drawn"].clone();
        assert_eq!(drawn.as_array().unwrap().len(), 2);
        drawn
    };
    let first = drawn("first");
    assert_eq!(drawn("first"), first);
    assert!(
        ["second", "third", "fourth"]
            .map(drawn)
            .iter()
            .any(|other| *other != first)
    );
}

#[test]
fn a_forged_loss_that_everything_follows_from_is_found() {
    let forgery = Forgery::new();
    let (old, new) = falsify(&forgery.pack().join(TABLE));
    rename(&forgery, REPORT, &old, &new);
    make_consistent(&forgery);
    let (code, replayed) = answer(&forgery, "--replay");
    assert_eq!(code, Some(0), "{:#}", replayed["packhost"]["replay"]);
    let (code, measured) = answer(&forgery, &everything());
    assert_eq!(code, Some(20));
    assert_eq!(measured["packhost"]["exit"], 20);
    assert_eq!(measured["ok"], false);
    let found = found(&measured, "recompute");
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0]["file"], TABLE);
    assert_eq!(found[0]["check_id"], "recompute.row");
    assert!(
        found[0]["stated"]
            .as_str()
            .unwrap()
            .contains("`window.loss`")
    );
    // The pointer leads to the forged number, which is the one that is stated.
    let pointer = found[0]["pointer"].as_str().unwrap();
    let table = read_json(&forgery.pack().join(TABLE));
    let number = table.pointer(pointer).unwrap().as_f64().unwrap();
    assert!(
        found[0]["stated"]
            .as_str()
            .unwrap()
            .starts_with(&format!("{number:?} as"))
    );
}

#[test]
fn a_forged_digest_of_a_changed_tensor_is_found() {
    let forgery = Forgery::new();
    let changes = format!("metadata/packhost/{MODEL}/subjects/prune_50pct_stress.changes.json");
    let sha = |name: &str| digest::hex(&fs::read(forgery.pack().join(name)).unwrap());
    let (list, table) = (sha(&changes), sha(TABLE));
    forgery.change(&changes, |changes| {
        changes["changed"][0]["sha256"] = json!("ab".repeat(32));
    });
    rename(&forgery, TABLE, &list, &sha(&changes));
    rename(&forgery, REPORT, &table, &sha(TABLE));
    make_consistent(&forgery);
    let (code, replayed) = answer(&forgery, "--replay");
    assert_eq!(code, Some(0), "{:#}", replayed["packhost"]["replay"]);
    let (code, measured) = answer(&forgery, &everything());
    assert_eq!(code, Some(20));
    let found = found(&measured, "recompute");
    let named = found.iter().any(|difference| {
        difference["file"] == changes.as_str() && difference["pointer"] == "/changed/0/sha256"
    });
    assert!(named, "{found:#?}");
}

#[test]
fn another_model_is_told_apart_by_its_tensors() {
    let bench = &Forgery::new().bench;
    let model = bench.demo("model");
    let path = model.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let output = bench.says("pack verify pack --recompute 0 --model model");
    assert!(output.starts_with("exit: 20\n"), "{output}");
    assert!(
        output.contains(
            "[recompute.model] `metadata/packhost/models/packhost__demo.json` /weights/tensors/"
        ),
        "{output}"
    );
    assert!(
        output.contains("/shards/model.safetensors states "),
        "{output}"
    );

    // What the auditor got wrong is no finding about the pack.
    let exit = |options: &str| {
        let output = bench.says(&format!("pack verify pack --recompute 1 {options}"));
        output.lines().next().unwrap().to_owned()
    };
    assert_eq!(exit("--model absent"), "exit: 3");
    assert_eq!(exit("--model other=model"), "exit: 2");
    assert_eq!(exit(""), "exit: 2");
}

#[test]
fn on_another_kind_of_processor_rows_are_held_to_a_bound() {
    let forgery = Forgery::new();
    // As if it had been made elsewhere: the manifest repeats what the file says.
    let environment = "metadata/environment.json";
    let mut elsewhere = Value::Null;
    forgery.change(environment, |machine| {
        machine["matrix_tiles"] = json!(!machine["matrix_tiles"].as_bool().unwrap());
        elsewhere = machine["matrix_tiles"].clone();
    });
    let manifest = forgery.pack().join("manifest.json");
    let mut document = read_json(&manifest);
    document["environment"]["matrix_tiles"] = elsewhere;
    fs::write(&manifest, canonical::line_file(&document)).unwrap();
    // A last place that another processor might have made differently.
    let path = forgery.pack().join(TABLE);
    let text = fs::read_to_string(&path).unwrap();
    let from = text.find("\"window.loss\"").unwrap();
    let at = from + text[from..].find("\"vector\":[").unwrap();
    let at = at + text[at..].find('.').unwrap() + 8;
    let digit = if text[at..].starts_with('3') {
        "7"
    } else {
        "3"
    };
    let mut other = text.clone();
    other.replace_range(at..=at, digit);
    fs::write(&path, &other).unwrap();
    let sha = |text: &str| digest::hex(text.as_bytes());
    rename(&forgery, REPORT, &sha(&text), &sha(&other));
    make_consistent(&forgery);
    let (code, measured) = answer(&forgery, &everything());
    let measured = &measured["packhost"]["recompute"];
    assert_eq!(code, Some(0), "{measured:#}");
    assert_eq!(
        measured["bound"],
        json!({"relative": 1e-3, "absolute": 1e-6})
    );
    assert_eq!(measured["within"], 1);
}
