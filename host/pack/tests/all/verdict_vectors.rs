//! The verdict against the reference: single rules by vectors, and the whole verdict of the layout-v2 pack, byte for byte.

use std::collections::BTreeMap;
use std::fs;

use packhost_pack::probes::{
    VarianceLimits, VarianceMeasurement, rmt_probe, variance_signal_reasons,
};
use packhost_pack::verdict::{self, JudgeOptions, RecordInput};
use serde_json::{Value, json};

use crate::fixtures;

fn map<T: serde::de::DeserializeOwned>(value: &Value) -> BTreeMap<String, T> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn vectors_of_single_rules() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/vectors/guards/verdict.json"
    );
    let vectors: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let mut ran = 0;
    for vector in vectors["vectors"].as_array().unwrap() {
        let (id, want) = (vector["id"].as_str().unwrap(), &vector["expected"]);
        ran += 1;
        match vector["fn"].as_str().unwrap() {
            "report_outcome" => {
                let got = verdict::outcome(&vector["report"], None, None);
                assert_eq!(
                    json!({"passed": got.passed, "reasons": got.reasons, "guard_flags": got.flags.json()}),
                    *want,
                    "{id}"
                );
            }
            "spectral_movement" => {
                assert_eq!(
                    verdict::spectral_movement(&vector["subject"], &vector["baseline"]).json(),
                    *want,
                    "{id}"
                );
            }
            "rmt_probe" => {
                let got = rmt_probe(
                    &map(&vector["base_by_module"]),
                    &map(&vector["cur_by_module"]),
                    &map(&vector["family"]),
                    &map(&vector["epsilon"]),
                );
                assert_eq!(
                    (got.stable, got.stable_guard),
                    (want["stable"] == true, want["stable_guard"] == true),
                    "{id}"
                );
                assert_eq!(
                    (got.edge_base, got.edge_cur),
                    (map(&want["edge_base"]), map(&want["edge_cur"])),
                    "{id}"
                );
                let violations = want["epsilon_violations"].as_array().unwrap();
                assert_eq!(got.violations.len(), violations.len(), "{id}");
                for (got, want) in got.violations.iter().zip(violations) {
                    assert_eq!(
                        (got.family.as_str(), got.module.as_str()),
                        (
                            want["family"].as_str().unwrap(),
                            want["module"].as_str().unwrap()
                        )
                    );
                    assert!(
                        (got.delta - want["delta"].as_f64().unwrap()).abs() < 1e-12,
                        "{id}"
                    );
                    assert!(
                        (got.allowed - want["allowed"].as_f64().unwrap()).abs() < 1e-12,
                        "{id}"
                    );
                }
            }
            "ve_probe" => {
                let probe = &vector["probe"];
                let measured = VarianceMeasurement {
                    proposed_scales: probe["proposed_scales"].as_u64().unwrap(),
                    ppl_no_ve: probe["ppl_no_ve"].as_f64(),
                    ppl_with_ve: probe["ppl_with_ve"].as_f64(),
                    ab_gain: probe["ab_gain"].as_f64(),
                    would_enable: probe["would_enable"] == true,
                };
                let reasons = variance_signal_reasons(&measured, &VarianceLimits::default());
                assert_eq!(
                    json!({"signal": reasons.is_empty(), "signal_reasons": reasons}),
                    *want,
                    "{id}"
                );
            }
            other => panic!("unknown function {other}"),
        }
    }
    assert_eq!(ran, vectors["count"].as_u64().unwrap());
}

/// The reports of the layout-v2 pack, as (scenario, run, path in the run directory, report).
fn reports() -> Vec<(&'static str, u32, String, Value)> {
    [
        ("prune_clean", 1),
        ("prune_50pct_stress", 1),
        ("quant_4bit_stress", 1),
        ("nan_injection", 0),
    ]
    .into_iter()
    .map(|(scenario, run)| {
        let rest = if run == 0 {
            format!("errors/{scenario}")
        } else {
            format!("{scenario}/run_{run}")
        };
        let report = fixtures::json(&format!(
            "packs/layout_v2/reports/demo__tiny-lm/{rest}/evaluation.report.json"
        ));
        (
            scenario,
            run,
            format!("demo__tiny-lm/reports/{rest}/evaluation.report.json"),
            report,
        )
    })
    .collect()
}

fn inputs<'a>(reports: &'a [(&'static str, u32, String, Value)]) -> Vec<RecordInput<'a>> {
    reports
        .iter()
        .map(|(scenario, run, path, report)| RecordInput {
            model: "demo__tiny-lm",
            scenario,
            run: *run,
            path,
            report,
            baseline: None,
            rmt_probe: None,
            ve_probe: None,
        })
        .collect()
}

const OPTIONS: JudgeOptions<'static> = JudgeOptions {
    timestamp: "2026-01-02T03:04:05.000000",
    manifest_path: "state/scenarios.json",
};

#[test]
fn the_verdict_of_the_reference_pack_is_derived_again() {
    let scenarios =
        verdict::scenarios(&fixtures::json("packs/layout_v2/metadata/scenarios.json")).unwrap();
    let reports = reports();
    let judged = verdict::judge_run(
        &scenarios,
        &["demo__tiny-lm".to_owned()],
        &inputs(&reports),
        OPTIONS,
    )
    .unwrap();
    assert!(judged.pass);
    let files = verdict::files(&judged);
    assert_eq!(files.len(), 6);
    for (name, bytes) in files {
        let want =
            fs::read_to_string(fixtures::root().join("packs/layout_v2").join(&name)).unwrap();
        assert_eq!(String::from_utf8(bytes).unwrap(), want, "{name}");
    }
}

#[test]
fn every_run_of_a_scenario_counts() {
    let scenarios =
        verdict::scenarios(&fixtures::json("packs/layout_v2/metadata/scenarios.json")).unwrap();
    let models = ["demo__tiny-lm".to_owned()];
    let failed = |reports: &[(&'static str, u32, String, Value)]| -> Vec<&'static str> {
        let judged = verdict::judge_run(&scenarios, &models, &inputs(reports), OPTIONS).unwrap();
        assert_eq!(judged.pass, judged.failed_requirements.is_empty());
        judged
            .failed_requirements
            .iter()
            .map(|failed| failed.id)
            .collect()
    };
    let good = reports();
    let with = |scenario: &str, run: u32, of: &str| {
        let mut reports = good.clone();
        let source = good.iter().find(|(id, ..)| *id == of).unwrap().3.clone();
        let id = good.iter().find(|(id, ..)| *id == scenario).unwrap().0;
        reports.insert(0, (id, run, format!("{id} {run}"), source));
        failed(&reports)
    };
    assert_eq!(failed(&good), Vec::<&str>::new());
    assert_eq!(with("prune_clean", 2, "prune_clean"), Vec::<&str>::new());
    // An earlier or later run that goes wrong is not outvoted by the others.
    assert_eq!(
        with("prune_clean", 2, "prune_50pct_stress"),
        ["clean_all_pass"]
    );
    assert_eq!(
        with("prune_clean", 0, "prune_50pct_stress"),
        ["clean_all_pass"]
    );
    assert_eq!(
        with("prune_50pct_stress", 2, "prune_clean"),
        ["stress_required_fail", "stress_expected_detectors"]
    );
    assert_eq!(
        with("nan_injection", 1, "prune_clean"),
        [
            "error_injection_detected",
            "scenario_primary_guard_signal",
            "scenario_expected_detectors",
            "guard_primary_demonstrated"
        ]
    );
    // Half of the informational records signal: that is enough. A third is not.
    assert_eq!(
        with("quant_4bit_stress", 2, "prune_clean"),
        Vec::<&str>::new()
    );
    let mut third = good.clone();
    for run in [2, 3] {
        third.push((
            "quant_4bit_stress",
            run,
            format!("{run}"),
            good[0].3.clone(),
        ));
    }
    assert_eq!(failed(&third), ["informational_stress_min_signal_fraction"]);
    // Nothing at all, and a gap.
    assert_eq!(failed(&[]), ["evidence_present", "scenario_coverage"]);
    assert_eq!(failed(&good[..3]), ["scenario_coverage"]);
    // The same run twice is a mistake of the caller.
    let twice: Vec<_> = good.iter().chain(&good[..1]).cloned().collect();
    assert!(verdict::judge_run(&scenarios, &models, &inputs(&twice), OPTIONS).is_err());
}
