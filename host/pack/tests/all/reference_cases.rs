//! Every run that the reference verifier answered, compared by exit code, class, warnings, nested outcome and authenticity.

use std::path::{Path, PathBuf};

use packhost_pack::verify::{Verification, VerifyOptions, verify};
use serde_json::Value;

use crate::fixtures;

/// Runs one line of arguments of a case.
fn run(pack: &Path, run: &Value) -> Verification {
    let place = |text: &str| match (text.strip_prefix("@trust/"), text.strip_prefix("@pack/")) {
        (Some(name), _) => fixtures::root().join("trust").join(name),
        (_, Some(name)) => pack.join(name),
        _ => PathBuf::from(text),
    };
    let mut options = VerifyOptions::default();
    let mut args = run["args"]
        .as_array()
        .unwrap()
        .iter()
        .map(|arg| arg.as_str().unwrap());
    while let Some(arg) = args.next() {
        match arg {
            "--strict" => options.strict = true,
            "--skip-verify" => options.skip_verify = true,
            "--profile" => options.profile = args.next().unwrap().to_owned(),
            "--report-assurance" => options.report_assurance = args.next().unwrap().to_owned(),
            "--expected-fingerprint" => {
                options.expected_fingerprint = Some(args.next().unwrap().to_owned())
            }
            "--trust-store" => options.trust_store = Some(place(args.next().unwrap())),
            "--json-out" => options.json_out = Some(place(args.next().unwrap())),
            other => panic!("unknown argument {other}"),
        }
    }
    options.allow_unverified_provenance =
        run["env"]["INVARLOCK_ALLOW_UNVERIFIED_PROVENANCE"].as_str() == Some("1");
    verify(pack, &options)
}

/// Summary reason and error code of the nested verification, as the expectations write them.
fn nested(result: &Verification) -> String {
    let payload = result.nested.as_ref().unwrap_or(&Value::Null);
    let reason = payload["summary"]["reason"].as_str().unwrap_or_default();
    payload["error"]["code"]
        .as_str()
        .map_or_else(|| reason.to_owned(), |code| format!("{reason} {code}"))
}

fn distinct(ids: impl Iterator<Item = &'static str>) -> Vec<&'static str> {
    let mut distinct = Vec::new();
    for id in ids {
        if !distinct.contains(&id) {
            distinct.push(id);
        }
    }
    distinct
}

/// Differences between an answer and its expectation.
fn differences(result: &Verification, run: &Value, stricter: &Value) -> Vec<String> {
    // Where the reference is lax or dies, the stricter answer is the one that we give.
    let lax = stricter.is_object() && (run["expect"]["exit"] == 0 || run["expect"]["exit"] == 1);
    let expect = if lax { stricter } else { &run["expect"] };
    let mut differences = Vec::new();
    let mut compare = |what: &str, got: String, want: String| {
        if got != want {
            differences.push(format!(
                "{what}: got {got}, want {want}; failures {:?}",
                result.failures
            ));
        }
    };
    let classes = distinct(result.failures.iter().map(|failure| failure.check_id));
    compare(
        "exit",
        result.exit.code().to_string(),
        expect["exit"].to_string(),
    );
    compare(
        "class",
        (*classes.first().unwrap_or(&"ok")).to_owned(),
        expect["class"].as_str().unwrap().to_owned(),
    );
    if let Some(all) = expect["all_classes"].as_array() {
        compare(
            "all classes",
            format!("{classes:?}"),
            format!(
                "{:?}",
                all.iter()
                    .map(|class| class.as_str().unwrap())
                    .collect::<Vec<_>>()
            ),
        );
    }
    if !lax {
        let warnings = distinct(result.warnings.iter().map(|warning| warning.check_id));
        let want: Vec<&str> = expect["warnings"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|class| class.as_str().unwrap())
            .collect();
        compare("warnings", format!("{warnings:?}"), format!("{want:?}"));
        compare(
            "authenticity",
            result.authenticity.name().to_owned(),
            expect["authenticity"]
                .as_str()
                .unwrap_or("unpinned")
                .to_owned(),
        );
        if let Some(want) = expect["nested"].as_str() {
            compare("nested", nested(result), want.to_owned());
        }
    }
    differences
}

#[test]
fn every_reference_run_is_answered_alike() {
    let expected = fixtures::json("expected.json");
    let (mut cases, mut runs, mut stricter, mut failed) = (0, 0, 0, Vec::new());
    for case in expected["cases"].as_array().unwrap() {
        let work = tempfile::tempdir().unwrap();
        fixtures::make_case(case, work.path());
        let pack = work.path().join("pack");
        let before = fixtures::files(work.path());
        cases += 1;
        for one in case["runs"].as_array().unwrap() {
            runs += 1;
            stricter += usize::from(case["stricter_outcome_allowed"].is_object());
            let result = run(&pack, one);
            for difference in differences(&result, one, &case["stricter_outcome_allowed"]) {
                failed.push(format!("{} {}: {difference}", case["id"], one["args"]));
            }
        }
        assert_eq!(
            fixtures::files(work.path()),
            before,
            "{}: verifying wrote something",
            case["id"]
        );
    }
    for other in expected["other_packs"].as_array().unwrap() {
        cases += 1;
        let pack = fixtures::root()
            .join("packs")
            .join(other["id"].as_str().unwrap());
        for one in other["runs"].as_array().unwrap() {
            runs += 1;
            for difference in differences(&run(&pack, one), one, &Value::Null) {
                failed.push(format!("{} {}: {difference}", other["id"], one["args"]));
            }
        }
    }
    println!(
        "{cases} cases, {runs} runs, {stricter} of them answered more strictly than the reference"
    );
    assert!(
        failed.is_empty(),
        "{} differences\n{}",
        failed.len(),
        failed.join("\n")
    );
    assert!(runs >= 189, "only {runs} runs");
}

#[test]
fn the_answers_to_good_packs_have_the_reference_fields() {
    for (name, profile) in [("good", "release"), ("layout_v2", "release")] {
        let mut want = fixtures::json(&format!("outputs/verify_{name}.json"));
        let options = VerifyOptions {
            strict: true,
            profile: profile.to_owned(),
            report_assurance: "strict".to_owned(),
            expected_fingerprint: (want["authenticity"] == "pinned")
                .then(|| want["signer_fingerprint"].as_str().unwrap().to_owned()),
            ..VerifyOptions::default()
        };
        let pack = fixtures::root().join("packs").join(name);
        let mut got = verify(&pack, &options).json();
        assert_eq!(got["packhost"]["exit"], 0);
        got.as_object_mut().unwrap().remove("packhost");
        // Paths depend on where the pack lies; the texts of failed reports and their error context are ours.
        let text = got
            .to_string()
            .replace(fixtures::root().to_str().unwrap(), "")
            .replace("\"/packs", "\"packs");
        let got: Value = serde_json::from_str(&text).unwrap();
        want["pack"] = got["pack"].clone();
        assert_eq!(got, want);
    }
}
