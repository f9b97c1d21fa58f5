//! Reports: their fields, what a verifier recomputes, and what is said about guards that did not judge.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use packhost_measure::dataset::Dataset;
use packhost_measure::report::{
    EditIdentity, Finding, Judged, ModelIdentity, ReportInputs, Status, StructuralFailure, build,
    run_id, structural_failure,
};
use packhost_measure::table::Table;
use packhost_measure::tiers::{MetricOptions, Policies, PolicyInputs, Profile};
use packhost_measure::windows::{Selection, WindowPlan, Windows, select};
use packhost_stats::summary::weighted_mean;
use serde_json::{Value, json};

const OPTIONS: MetricOptions = MetricOptions {
    seed: 42,
    replicates: 1000,
    alpha: 0.05,
};

struct Fixture {
    dataset: Dataset,
    windows: Windows,
    baseline: Table,
    rounds: Table,
    subject: Table,
    policies: Policies,
    models: [ModelIdentity; 2],
    edit: EditIdentity,
    guards: Vec<Judged>,
}

fn table(windows: &Windows, losses: [&[f64]; 2]) -> Table {
    let mut table = Table::new();
    for ((scope, arm), losses) in [("preview", &windows.preview), ("final", &windows.final_)]
        .into_iter()
        .zip(losses)
    {
        let of =
            |value: fn(&packhost_measure::windows::Window) -> f64| arm.iter().map(value).collect();
        table.put_vector(scope, "window.ids", of(|window| f64::from(window.id)));
        table.put_vector(
            scope,
            "window.tokens",
            of(|window| window.tokens.len() as f64),
        );
        table.put_vector(scope, "window.loss", losses.to_vec());
    }
    table.put_number("model", "kl.mean", 0.25);
    table.put_number("model", "same_top.share", 0.9);
    table
}

/// What the guard primary-metric answers, in the fields that the report reads.
fn metric(final_point: f64) -> Value {
    json!({
        "kind": "ppl_causal", "unit": "ppl", "direction": "lower", "aggregation_scope": "token",
        "analysis_basis": "mean_logloss", "gating_basis": "point", "paired": true, "supports_bootstrap": true,
        "invalid": false, "degraded": false, "degraded_reason": null,
        "preview": 7.5, "final": final_point.exp(), "analysis_point_preview": 2.0, "analysis_point_final": final_point,
        "ratio_vs_baseline": 1.01, "ci": [0.0, 0.02], "display_ci": [1.0, 1.0202013400267558],
        "baseline": {"preview": 7.4, "final": 7.3},
        "windows": {
            "paired_preview": {"matched": 2, "expected": 2, "reason": null},
            "paired_final": {"matched": 2, "expected": 2, "reason": null},
        },
        "tokens": {"preview": 20.0, "final": 22.0},
        "bootstrap": {"method": "bca_paired_delta_log"},
        "paired_delta_summary": {"mean": 0.1},
        "coverage": {"preview": {"ok": false}, "final": {"ok": false}, "replicates": {"ok": true}},
        "acceptance": {"tokens_acceptable": false, "drift_band": {"min": 0.95, "max": 1.05}},
        "tail": {"mode": "warn", "passed": true},
        "flags": {
            "primary_metric_acceptable": true, "preview_final_drift_acceptable": false,
            "primary_metric_tail_acceptable": true, "hysteresis_applied": true,
        },
        "ours": {"closed_form_interval": [0.0, 0.03], "drift_ratio_vs_baseline": 1.0},
    })
}

fn judged(id: &str, status: Status, details: Value) -> Judged {
    Judged {
        id: id.into(),
        version: "0.1.0".into(),
        digest: "ab".repeat(32),
        policy: json!({}),
        asked: Vec::new(),
        status,
        findings: Vec::new(),
        details,
        fuel: 1,
    }
}

fn fixture(losses: [&[f64]; 2]) -> Fixture {
    let mut file = tempfile::Builder::new()
        .suffix(".jsonl")
        .tempfile()
        .unwrap();
    for i in 0..4 {
        std::io::Write::write_all(
            &mut file,
            format!("{{\"text\": \"text no {i}\"}}\n").as_bytes(),
        )
        .unwrap();
    }
    let dataset = Dataset::open(file.path()).unwrap();
    let plan = WindowPlan {
        seq_len: 16,
        preview: 2,
        final_: 2,
        seed: 42,
        run: 1,
        selection: Selection::FileOrder,
        profile: Profile::Dev,
    };
    let encoder = |text: &str| text.bytes().map(u32::from).collect::<Vec<u32>>();
    let windows = select(dataset.texts(), &encoder, &plan).unwrap();
    let model = |name: &str| ModelIdentity {
        run_id: run_id(&[name, "42"]),
        model_id: name.into(),
        revision: String::new(),
        family: "llama".into(),
        tokenizer_digest: "cd".repeat(32),
        vocab_size: 256,
    };
    let (subject, baseline) = (
        table(&windows, losses),
        table(&windows, [&[1.9, 1.9], &[1.9, 1.9]]),
    );
    let tokens = subject.vector("final", "window.tokens").unwrap().to_vec();
    let point = weighted_mean(subject.vector("final", "window.loss").unwrap(), &tokens);
    let invariants = json!({
        "passed": true, "decision": "allow", "details": {"current_checks": {}}, "violations": [],
        "summary": {"fatal_violations": 0, "warning_violations": 0, "violations_found": 0},
    });
    Fixture {
        dataset,
        windows,
        baseline,
        rounds: Table::new(),
        subject,
        policies: Policies::resolve(&PolicyInputs::default()).unwrap(),
        models: [model("subject"), model("baseline")],
        edit: EditIdentity {
            name: "quant_rtn".into(),
            spec: "quant_rtn:8:128:ffn".into(),
            ..EditIdentity::default()
        },
        guards: vec![
            judged("invariants", Status::Pass, invariants),
            judged("primary-metric", Status::Fail, metric(point)),
        ],
    }
}

impl Fixture {
    fn inputs(&self) -> ReportInputs<'_> {
        ReportInputs {
            timestamp: "2026-01-02T03:04:05Z",
            host_version: "0.1.0",
            device: "cpu",
            subject: &self.models[0],
            baseline: &self.models[1],
            edit: &self.edit,
            dataset: self.dataset.identity(),
            windows: &self.windows,
            baseline_table: &self.baseline,
            baseline_rounds: &self.rounds,
            subject_table: &self.subject,
            policies: &self.policies,
            metric: OPTIONS,
            guards: &self.guards,
        }
    }
}

fn numbers(value: &Value) -> Vec<f64> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_f64().unwrap())
        .collect()
}

/// What a verifier checks of a report at every profile.
fn verify(report: &Value) {
    for key in [
        "run_id",
        "artifacts",
        "plugins",
        "meta",
        "dataset",
        "primary_metric",
    ] {
        assert!(!report[key].is_null(), "{key}");
    }
    assert_eq!(report["schema_version"], "v1");
    let windows = &report["dataset"]["windows"];
    let stats = &windows["stats"];
    assert!(stats["window_pairing_reason"].is_null());
    assert_eq!(stats["window_match_fraction"], 1.0);
    assert_eq!(stats["window_overlap_fraction"], 0.0);
    assert_eq!(stats["paired_windows"], windows["preview"]);
    for arm in ["preview", "final"] {
        assert_eq!(stats["coverage"][arm]["used"], windows[arm]);
    }
    assert_eq!(
        report["meta"]["tokenizer_hash"],
        report["baseline_ref"]["tokenizer_hash"]
    );
    let arm = &report["evaluation_windows"]["final"];
    let (losses, counts) = (numbers(&arm["logloss"]), numbers(&arm["token_counts"]));
    if !losses.is_empty() {
        let point = report["primary_metric"]["analysis_point_final"]
            .as_f64()
            .unwrap();
        assert!((weighted_mean(&losses, &counts) - point).abs() <= 1e-9);
    }
    let allowed = [
        "guard_overhead_acceptable",
        "hysteresis_applied",
        "invariants_pass",
        "preview_final_drift_acceptable",
        "primary_metric_acceptable",
        "primary_metric_tail_acceptable",
        "rmt_stable",
        "spectral_stable",
    ];
    for (flag, value) in report["validation"].as_object().unwrap() {
        assert!(
            allowed.contains(&flag.as_str()) && value.is_boolean(),
            "{flag}"
        );
    }
    for (key, value) in report["primary_metric"].as_object().unwrap() {
        assert!(!value.is_null(), "{key}");
    }
    assert_eq!(
        report["provenance"]["provider_digest"]["ids_sha256"]
            .as_str()
            .unwrap()
            .len(),
        64
    );
}

#[test]
fn a_report_holds_what_a_verifier_recomputes() {
    let fixture = fixture([&[2.0, 2.1], &[2.0, 2.25]]);
    let report = build(&fixture.inputs()).unwrap();
    verify(&report);
    assert_eq!(
        report,
        build(&fixture.inputs()).unwrap(),
        "the same inputs give the same report"
    );
    assert_eq!(report["dataset"]["windows"]["seed"], 43, "seed and run");
    assert_eq!(report["validation"]["hysteresis_applied"], true);
    assert_eq!(
        report["validation"]["preview_final_drift_acceptable"],
        false
    );
    assert_eq!(report["confidence"]["label"], "Low");
    assert_eq!(
        report["packhost"]["divergence"]["all_scored_tokens"]["kl"]["mean"],
        0.25
    );
    assert_eq!(report["packhost"]["divergence"]["final"], Value::Null);
    assert_eq!(
        report["packhost"]["tables"]["subject"]["sha256"],
        fixture.subject.digest()
    );
    assert_eq!(report["packhost"]["guards"][0]["id"], "invariants");
    // Guards that did not judge say so, and claim no measurement.
    assert_eq!(
        report["packhost"]["not_evaluated"],
        json!(["spectral", "rmt", "variance"])
    );
    for guard in ["spectral", "rmt", "variance"] {
        assert_eq!(report[guard]["evaluated"], false);
        assert!(report[guard]["measurement_contract"].is_null());
    }
    assert_eq!(report["validation"]["spectral_stable"], true);
}

#[test]
fn a_guard_that_fails_lowers_its_flag() {
    let mut fixture = fixture([&[2.0, 2.1], &[2.0, 2.25]]);
    fixture.guards[0].status = Status::Fail;
    fixture.guards[0].findings.push(Finding {
        scope: "a.weight".into(),
        code: "non_finite".into(),
        message: "a NaN".into(),
        value: Some(1.0),
        limit: None,
    });
    fixture
        .guards
        .push(judged("spectral", Status::Fail, json!({"caps_applied": 9})));
    let report = build(&fixture.inputs()).unwrap();
    assert_eq!(report["validation"]["invariants_pass"], false);
    assert_eq!(report["invariants"]["status"], "fail");
    assert_eq!(report["validation"]["spectral_stable"], false);
    assert_eq!(report["spectral"]["evaluated"], true);
    assert_eq!(report["spectral"]["caps_applied"], 9);
    assert_eq!(
        report["packhost"]["not_evaluated"],
        json!(["rmt", "variance"])
    );
    assert_eq!(
        report["packhost"]["guards"][0]["findings"][0]["scope"],
        "a.weight"
    );
}

#[test]
fn windows_without_a_loss_are_left_out() {
    let mut fixture = fixture([&[2.0, 2.1], &[2.0, f64::NAN]]);
    fixture.guards[1].details["degraded"] = json!(true);
    fixture.guards[1].details["degraded_reason"] = json!("non_finite_windows");
    let report = build(&fixture.inputs()).unwrap();
    verify(&report);
    assert_eq!(
        report["evaluation_windows"]["final"]["window_ids"],
        json!([2])
    );
    assert_eq!(
        report["evaluation_windows"]["final"]["skipped_non_finite"],
        1
    );
    assert_eq!(
        report["primary_metric"]["degraded_reason"],
        "non_finite_windows"
    );
}

#[test]
fn a_subject_that_cannot_run() {
    let mut fixture = fixture([&[2.0, 2.1], &[2.0, 2.25]]);
    fixture.guards.pop();
    let error = build(&fixture.inputs()).unwrap_err().to_string();
    assert!(error.contains("primary-metric did not judge"), "{error}");
    let failure = StructuralFailure {
        kind: "missing_tensors",
        message: "tensor x is missing",
    };
    let report = structural_failure(&fixture.inputs(), &failure);
    assert_eq!(
        report["run_id"],
        format!(
            "{}-structural-failure-missing_tensors",
            fixture.models[0].run_id
        )
    );
    assert_eq!(report["invariants"]["status"], "fail");
    assert_eq!(
        report["invariants"]["failures"][0]["type"],
        "evidence_pack_structural_failure"
    );
    assert_eq!(
        report["primary_metric"]["degraded_reason"],
        "structural_failure"
    );
    assert_eq!(report["primary_metric"]["invalid"], true);
    assert!(report["primary_metric"].get("ratio_vs_baseline").is_none());
    let marker = &report["_evidence_pack_structural_failure"];
    assert_eq!(
        marker["format"],
        "evidence-pack-structural-failure-report-v1"
    );
    assert_eq!(marker["message"], "tensor x is missing");
    assert_eq!(report["meta"]["structural_failure"], *marker);
    for (flag, value) in report["validation"].as_object().unwrap() {
        assert_eq!(*value, json!(flag == "guard_overhead_acceptable"), "{flag}");
    }
}
