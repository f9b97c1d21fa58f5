//! Presets: derivation, reading back, variants per edit type.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use packhost_measure::preset::{
    PresetInputs, derive, for_edit, max_caps, overrides, parse, to_yaml,
};
use packhost_measure::table::Table;
use packhost_measure::tiers::{MetricOptions, Policies, PolicyInputs, Profile, Tier};
use packhost_measure::windows::{Selection, WindowPlan};
use serde_json::{Value, json};

fn run(drift: f64) -> Table {
    let mut table = Table::new();
    for (scope, loss) in [("preview", 2.0), ("final", 2.0 + drift.ln())] {
        table.put_vector(scope, "window.loss", vec![loss]);
        table.put_vector(scope, "window.tokens", vec![10.0]);
    }
    table
}

const PLAN: WindowPlan = WindowPlan {
    seq_len: 128,
    preview: 4,
    final_: 4,
    seed: 42,
    run: 0,
    selection: Selection::Stratified,
    profile: Profile::Ci,
};

fn inputs<'a>(
    policies: &'a Policies,
    runs: &'a [Table],
    guards: &'a [String],
    fitted: &'a [(String, Value)],
) -> PresetInputs<'a> {
    PresetInputs {
        model_name: "tiny",
        model_id: "models/tiny",
        model_sha256: "00ff",
        policies,
        windows: &PLAN,
        provider: "local_jsonl",
        runs,
        perturbations: &[],
        guards,
        fitted,
    }
}

#[test]
fn derived_and_applied() {
    let policies = Policies::resolve(&PolicyInputs::default()).unwrap();
    let runs = [0.974, 1.021, 0.95, 1.012, 0.978].map(run);
    let guards = ["invariants".to_owned()];
    let fitted = [
        (
            "primary-metric".to_owned(),
            json!({"drift_band": {"min": 0.8995, "max": 1.0745}, "pm_ratio": {}}),
        ),
        (
            "invariants".to_owned(),
            policies.section("invariants").clone(),
        ),
    ];
    let (preset, stats) = derive(&inputs(&policies, &runs, &guards, &fitted)).unwrap();
    assert_eq!(
        preset,
        json!({
            "_calibration_meta": {
                "model_name": "tiny", "num_runs": 5, "tier": "balanced", "drift_mean": 0.987, "drift_std": 0.0292,
                "drift_band_compatible": true, "suggested_drift_band": [0.8995, 1.0745],
            },
            "model": {"id": "models/tiny", "sha256": "00ff"},
            "dataset": {
                "provider": "local_jsonl", "split": "validation", "seq_len": 128, "stride": 128, "preview_n": 4,
                "final_n": 4, "seed": 42,
            },
            "guards": {"order": ["invariants"]},
            "primary_metric": {"drift_band": {"min": 0.8995, "max": 1.0745}},
        })
    );
    assert_eq!(stats["drift"]["min"], 0.95);
    assert_eq!(stats["runs"].as_array().unwrap().len(), 5);

    assert_eq!(parse(&preset.to_string()).unwrap(), preset);
    assert_eq!(parse(&to_yaml(&preset)).unwrap(), preset);
    let overrides = overrides(&preset).unwrap();
    let applied = PolicyInputs {
        overrides: Some(&overrides),
        ..PolicyInputs::default()
    };
    let options = MetricOptions {
        seed: 0,
        replicates: 1,
        alpha: 0.05,
    };
    let policy = Policies::resolve(&applied)
        .unwrap()
        .for_guard("primary-metric", &options);
    assert_eq!(policy["drift_band"], json!({"min": 0.8995, "max": 1.0745}));
}

#[test]
fn refused() {
    let policies = Policies::resolve(&PolicyInputs::default()).unwrap();
    let error = derive(&inputs(&policies, &[], &[], &[]))
        .unwrap_err()
        .to_string();
    assert!(error.contains("0 calibration runs"), "{error}");
    let runs = [Table::new()];
    let error = derive(&inputs(&policies, &runs, &[], &[]))
        .unwrap_err()
        .to_string();
    assert!(error.contains("has no final losses"), "{error}");
    for (text, reason) in [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        (r#"{"guard": {}}"#, "unknown key `guard`"),
    ] {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn variants_per_edit_type() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/vectors/guards/preset.json"
    );
    let file: Value = serde_json::from_str(&std::fs::read_to_string(path).expect(path)).unwrap();
    let mut seen = 0;
    for vector in file["vectors"].as_array().unwrap() {
        if vector["fn"] == "edit_type_max_caps" {
            seen += 1;
            let got = max_caps(
                vector["edit_type"].as_str().unwrap(),
                vector["base_max_caps"].as_u64().unwrap(),
            );
            assert_eq!(json!(got), vector["expected"], "{}", vector["id"]);
        }
    }
    assert!(seen > 0);
    let preset = json!({"_calibration_meta": {}, "guards": {"spectral": {"max_caps": 5}}});
    let variant = for_edit(&preset, "lowrank_svd", Tier::Balanced, None);
    assert_eq!(variant["guards"]["spectral"]["max_caps"], 25);
    assert_eq!(variant["_calibration_meta"]["edit_type"], "lowrank_svd");
    assert_eq!(
        for_edit(&preset, "x", Tier::Balanced, Some(7))["guards"]["spectral"]["max_caps"],
        7
    );
}
