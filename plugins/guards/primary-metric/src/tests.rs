//! The judge against the reference's vectors and reports.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use packhost_sdk::Row;
use packhost_sdk::json;
use policy::Coverage;

fn vectors(path: &str) -> Json {
    let path = format!(
        "{}/../../../tests/vectors/{path}",
        env!("CARGO_MANIFEST_DIR")
    );
    json::from_str(&std::fs::read_to_string(&path).expect(&path)).unwrap()
}

fn numbers(value: &Json) -> Vec<f64> {
    let items = value.as_array().unwrap().iter();
    items.map(|v| v.as_f64().unwrap()).collect()
}

fn arm(scope: &str, ids: Vec<f64>, losses: &[f64], tokens: &[f64]) -> Vec<Row> {
    let row = |quantity: &str, value: Vec<f64>| Row {
        scope: scope.to_owned(),
        quantity: quantity.to_owned(),
        value: Value::Vector(value),
    };
    vec![
        row("window.ids", ids),
        row("window.loss", losses.to_vec()),
        row("window.tokens", tokens.to_vec()),
    ]
}

/// A table whose preview arm is its final arm under other ids.
fn table(losses: &[f64], tokens: &[f64]) -> Table {
    let ids = |from: usize| (from..from + losses.len()).map(|id| id as f64).collect();
    let mut rows = arm("preview", ids(0), losses, tokens);
    rows.extend(arm("final", ids(losses.len()), losses, tokens));
    Table::new(rows)
}

fn judge(policy: &Policy, baseline: &Table, subject: &Table) -> Verdict {
    match PrimaryMetric::judge(policy, baseline, subject).unwrap() {
        Step::Verdict(verdict) => verdict,
        Step::Measure(more) => panic!("asked for {more:?}"),
    }
}

fn policy(value: Json) -> Policy {
    let policy: Policy = json::from_value(value).unwrap();
    policy.check().unwrap();
    policy
}

fn close(what: &str, got: &Json, expected: &Json, tolerance: f64) {
    match expected {
        Json::Number(number) => {
            let (got, expected) = (got.as_f64(), number.as_f64().unwrap());
            let got = got.unwrap_or_else(|| panic!("{what} is missing"));
            assert!(
                (got - expected).abs() <= tolerance,
                "{what}: {got} for {expected}"
            );
        }
        Json::Array(items) => {
            assert_eq!(got.as_array().map(Vec::len), Some(items.len()), "{what}");
            for (position, item) in items.iter().enumerate() {
                close(
                    &format!("{what}[{position}]"),
                    &got[position],
                    item,
                    tolerance,
                );
            }
        }
        Json::Object(map) => {
            for (key, value) in map {
                close(&format!("{what}.{key}"), &got[key], value, tolerance);
            }
        }
        other => assert_eq!(got, other, "{what}"),
    }
}

#[test]
fn gates_follow_the_vectors() {
    let file = vectors("guards/primary_metric.json");
    let limits = |tier: &str| match tier {
        "conservative" => (1.05, 20_000.0),
        "aggressive" => (1.20, 50_000.0),
        _ => (1.10, 50_000.0),
    };
    let mut seen = 0;
    for vector in file["vectors"].as_array().unwrap() {
        if vector["fn"] != "validation_flags" {
            continue;
        }
        seen += 1;
        let (limit, floor) = limits(vector["tier"].as_str().unwrap());
        let mut policy = policy(json!({
            "pm_ratio": {"ratio_limit_base": limit, "min_tokens": floor},
        }));
        if let Some(range) = vector.get("pm_acceptance_range") {
            policy.acceptance_range = Some(json::from_value(range.clone()).unwrap());
        }
        if let Some(band) = vector.get("pm_drift_band") {
            policy.drift_band = Some(json::from_value(band.clone()).unwrap());
        }
        let ppl = &vector["ppl"];
        let metrics = &vector["_ppl_metrics"];
        let coverage = &metrics["bootstrap"]["coverage"];
        let measured = gates::Measured {
            ratio: ppl["ratio_vs_baseline"].as_f64().unwrap_or(f64::NAN),
            ratio_ci_upper: ppl["ratio_ci"][1].as_f64(),
            drift: ppl["preview_final_ratio"].as_f64().unwrap(),
            tokens: metrics["preview_total_tokens"].as_f64().unwrap()
                + metrics["final_total_tokens"].as_f64().unwrap(),
            tokens_available: None,
            coverage_ok: coverage["preview"]["ok"]
                .as_bool()
                .map(|preview| preview && coverage["final"]["ok"].as_bool().unwrap()),
        };
        let flags = gates::Flags::decide(&policy, measured);
        let (id, expected) = (&vector["id"], &vector["expected"]);
        assert_eq!(
            flags.acceptable, expected["primary_metric_acceptable"],
            "{id}"
        );
        assert_eq!(
            flags.drift_acceptable, expected["preview_final_drift_acceptable"],
            "{id}"
        );
        let hysteresis = expected["hysteresis_applied"].as_bool().unwrap_or(false);
        assert_eq!(flags.hysteresis_applied, hysteresis, "{id}");
        if id == "ci_upper_over_but_point_ok" {
            assert_eq!(flags.ci_upper_within_limit, Some(false));
        }
    }
    assert_eq!(seen, 21);
}

#[test]
fn tails_follow_the_vectors() {
    let file = vectors("guards/primary_metric.json");
    let mut seen = 0;
    for vector in file["vectors"].as_array().unwrap() {
        if vector["fn"] != "tail" {
            continue;
        }
        seen += 1;
        let policy: policy::Tail = json::from_value(vector["policy"].clone()).unwrap();
        let got = tail::evaluate(&policy, &numbers(&vector["deltas"]), &[]).details(&policy);
        close(
            vector["id"].as_str().unwrap(),
            &got,
            &vector["expected"],
            1e-12,
        );
    }
    assert_eq!(seen, 3);
}

#[test]
fn intervals_follow_the_vectors() {
    let file = vectors("guards/bootstrap.json");
    let mut seen = 0;
    for vector in file["vectors"].as_array().unwrap() {
        if vector["fn"] != "paired_delta" {
            continue;
        }
        seen += 1;
        let (subject, baseline) = (numbers(&vector["final"]), numbers(&vector["baseline"]));
        let tokens = match vector["weights"].as_array() {
            Some(_) => numbers(&vector["weights"]),
            None => vec![100.0; subject.len()],
        };
        let seed = vector["seed"].as_u64().unwrap().wrapping_sub(503);
        let policy = policy(json!({"bootstrap": {
            "method": vector["method"], "replicates": vector["replicates"],
            "alpha": vector["alpha"], "seed": seed,
        }}));
        let verdict = judge(
            &policy,
            &table(&baseline, &tokens),
            &table(&subject, &tokens),
        );
        let (id, expected) = (vector["id"].as_str().unwrap(), &vector["expected"]);
        let details = &verdict.details;
        close(
            id,
            &details["ci"],
            &json!([expected["lo"], expected["hi"]]),
            1e-9,
        );
        let ratios = json!([expected["ratio_lo"], expected["ratio_hi"]]);
        close(id, &details["display_ci"], &ratios, 1e-9);
    }
    assert_eq!(seen, 10);
}

#[test]
fn coverage_follows_the_vectors() {
    let file = vectors("guards/primary_metric.json");
    let mut seen = 0;
    for vector in file["vectors"].as_array().unwrap() {
        if vector["fn"] != "coverage" {
            continue;
        }
        seen += 1;
        let count = |key: &str| vector[key].as_u64().unwrap() as usize;
        let required = |key: &str| vector["expected"][key].as_u64().unwrap() as usize;
        let mut policy = Policy::default();
        policy.bootstrap.replicates = count("replicates");
        policy.coverage = Some(Coverage {
            preview: required("preview_required"),
            final_: required("final_required"),
            replicates: required("replicates_required"),
        });
        let losses = |n: usize| vec![2.0; n];
        let ids = |from: usize, n: usize| (from..from + n).map(|id| id as f64).collect();
        let (p, f) = (count("preview"), count("final"));
        let mut rows = arm("preview", ids(0, p), &losses(p), &vec![10.0; p]);
        rows.extend(arm("final", ids(p, f), &losses(f), &vec![10.0; f]));
        let table = Table::new(rows);
        let verdict = judge(&policy, &table, &table);
        for key in ["preview", "final", "replicates"] {
            let expected = &vector["expected"]["coverage"][key];
            assert_eq!(
                &verdict.details["coverage"][key], expected,
                "{} {key}",
                vector["id"]
            );
        }
    }
    assert_eq!(seen, 2);
}

fn report_table(windows: &Json) -> Table {
    let rows = ["preview", "final"].into_iter().flat_map(|scope| {
        let of = |key: &str| numbers(&windows[scope][key]);
        arm(scope, of("window_ids"), &of("logloss"), &of("token_counts"))
    });
    Table::new(rows.collect())
}

fn reference_policy() -> Policy {
    policy(json!({
        "pm_ratio": {"min_tokens": 50000, "hysteresis_ratio": 0.002, "min_token_fraction": 0.01, "ratio_limit_base": 1.1},
        "pm_tail": {"mode": "warn", "min_windows": 50, "quantile": 0.95, "quantile_max": 0.2, "epsilon": 0.0001, "mass_max": 1.0},
        "coverage": {"preview": 180, "final": 180, "replicates": 1200},
        "bootstrap": {"replicates": 1000, "alpha": 0.05, "seed": 42},
    }))
}

#[test]
fn reports_of_the_reference_follow_from_its_losses() {
    let file = vectors("evaluate/reports.json");
    let baseline = report_table(&file["baseline"]["windows"]);
    let runs = file["runs"].as_object().unwrap();
    assert_eq!(runs.len(), 4);
    for (name, run) in runs {
        let verdict = judge(
            &reference_policy(),
            &baseline,
            &report_table(&run["windows"]),
        );
        let details = &verdict.details;
        for (key, expected) in run["primary_metric"].as_object().unwrap() {
            // The reference names the interval's upper end as its basis, but decides by the point; `unstable` is the
            // report's own judgement.
            if !matches!(key.as_str(), "gating_basis" | "unstable") {
                close(&format!("{name} {key}"), &details[key], expected, 1e-9);
            }
        }
        close(name, &details["tail"], &run["tail"], 1e-9);
        for key in ["logloss_preview_ci", "logloss_final_ci", "logloss_delta_ci"] {
            close(&format!("{name} {key}"), &details[key], &run[key], 1e-9);
        }
        let stats = &run["stats"];
        let summary = &stats["paired_delta_summary"];
        close(name, &details["paired_delta_summary"], summary, 1e-9);
        for key in ["preview", "final", "replicates"] {
            assert_eq!(details["coverage"][key], stats["coverage"][key], "{name}");
        }
        for flag in [
            "primary_metric_acceptable",
            "preview_final_drift_acceptable",
            "primary_metric_tail_acceptable",
        ] {
            assert_eq!(
                details["flags"][flag], run["validation"][flag],
                "{name} {flag}"
            );
        }
        assert_eq!(verdict.status, Status::Fail);
    }
}

#[test]
fn a_model_equals_itself() {
    let table = table(&[2.0, 2.5, 3.0], &[100.0, 50.0, 70.0]);
    let policy = policy(json!({"pm_ratio": {"min_tokens": 100}}));
    let verdict = judge(&policy, &table, &table);
    assert_eq!(verdict.status, Status::Pass);
    assert_eq!(verdict.details["ratio_vs_baseline"], 1.0);
    assert_eq!(verdict.details["display_ci"], json!([1.0, 1.0]));
    assert!(verdict.findings.is_empty());
}

#[test]
fn losses_that_are_not_numbers() {
    let tokens = [100.0, 50.0, 70.0];
    let baseline = table(&[2.0, 2.5, 3.0], &tokens);
    let policy = policy(json!({"pm_ratio": {"min_tokens": 100}}));

    let verdict = judge(&policy, &baseline, &table(&[f64::NAN; 3], &tokens));
    assert_eq!(verdict.status, Status::Fail);
    assert_eq!(verdict.details["invalid"], true);
    assert_eq!(verdict.details["degraded_reason"], "non_finite_pm");
    assert_eq!(verdict.details["final"], Json::Null);
    assert_eq!(verdict.details["ci"], Json::Null);
    assert_eq!(verdict.details["flags"]["primary_metric_acceptable"], false);
    assert_eq!(
        verdict.details["flags"]["preview_final_drift_acceptable"],
        false
    );
    assert_eq!(verdict.findings[0].code, "non_finite_pm");

    let verdict = judge(
        &policy,
        &baseline,
        &table(&[2.0, f64::INFINITY, 3.0], &tokens),
    );
    assert_eq!(verdict.status, Status::Fail);
    assert_eq!(verdict.details["invalid"], false);
    assert_eq!(verdict.details["degraded_reason"], "non_finite_windows");
    assert_eq!(verdict.details["windows"]["skipped_non_finite"], 2);

    let verdict = judge(&policy, &baseline, &table(&[800.0; 3], &tokens));
    assert_eq!(verdict.details["degraded_reason"], "non_finite_pm");

    let verdict = judge(&policy, &table(&[f64::NAN; 3], &tokens), &baseline);
    assert_eq!(verdict.details["degraded_reason"], "non_finite_baseline");
    assert_eq!(verdict.status, Status::Fail);
}

#[test]
fn findings_name_figures() {
    let tokens = [100.0; 3];
    let policy = policy(json!({
        "pm_tail": {"mode": "fail", "min_windows": 2, "quantile": 0.95, "quantile_max": 0.1, "mass_max": 0.5},
        "acceptance_range": {"min": 0.9, "max": 1.2},
    }));
    let verdict = judge(
        &policy,
        &table(&[2.0, 2.1, 2.2], &tokens),
        &table(&[2.4, 2.6, 2.7], &tokens),
    );
    let codes: Vec<&str> = verdict.findings.iter().map(|f| f.code.as_str()).collect();
    assert_eq!(
        codes,
        [
            "ratio_over_limit",
            "token_floor",
            "quantile_max_exceeded",
            "tail_mass_exceeded"
        ]
    );
    assert_eq!(verdict.findings[0].limit, Some(1.202));
    assert_eq!(verdict.findings[1].value, Some(600.0));

    let verdict = judge(
        &policy,
        &table(&[2.4, 2.6], &tokens[..2]),
        &table(&[2.0, 2.1], &tokens[..2]),
    );
    assert_eq!(verdict.findings[0].code, "ratio_under_minimum");
}

#[test]
fn windows_must_match() {
    let two = table(&[2.0, 2.5], &[10.0; 2]);
    let three = table(&[2.0, 2.5, 3.0], &[10.0; 3]);
    // Ids of the smaller table: 0, 1 and 2, 3; of the larger: 0, 1, 2 and 3, 4, 5.
    let verdict = judge(&Policy::default(), &three, &two);
    assert_eq!(verdict.details["degraded_reason"], "unmatched_windows");
    assert_eq!(verdict.status, Status::Fail);
    let mut rows = arm("preview", vec![0.0], &[1.0], &[1.0]);
    rows.extend(arm("final", vec![9.0], &[1.0], &[1.0]));
    let error = PrimaryMetric::judge(&Policy::default(), &two, &Table::new(rows)).unwrap_err();
    assert!(error.message().contains("share no window"), "{error}");
    let rows = arm("preview", vec![0.0], &[1.0, 2.0], &[1.0]);
    let error = PrimaryMetric::judge(&Policy::default(), &two, &Table::new(rows)).unwrap_err();
    assert!(
        error
            .message()
            .contains("1 window ids, 2 losses and 1 token counts"),
        "{error}"
    );
    assert!(PrimaryMetric::judge(&Policy::default(), &two, &Table::default()).is_err());
}

#[test]
fn calibration_fits_the_drift_band() {
    let run = |drift: f64| {
        let mut rows = arm("preview", vec![0.0], &[2.0], &[10.0]);
        rows.extend(arm("final", vec![1.0], &[2.0 + drift.ln()], &[10.0]));
        Table::new(rows)
    };
    let policy = reference_policy();
    let runs: Vec<Table> = [0.974, 1.021, 0.95, 1.012, 0.978].map(run).to_vec();
    let fitted = PrimaryMetric::calibrate(&policy, &runs).unwrap();
    assert_eq!(
        fitted.drift_band,
        Some(Band {
            min: 0.8995,
            max: 1.0745
        })
    );
    assert_eq!(fitted.pm_ratio, policy.pm_ratio);
    // Identical ratios give no band.
    let same = PrimaryMetric::calibrate(&policy, &[run(1.0), run(1.0)]).unwrap();
    assert_eq!(same.drift_band, None);
    assert!(PrimaryMetric::calibrate(&policy, &[]).is_err());
    assert!(PrimaryMetric::calibrate(&policy, &[run(f64::NAN)]).is_err());
}

#[test]
fn policies_are_checked() {
    for (text, reason) in [
        (r#"{"ratio": 1}"#, "unknown field `ratio`"),
        (r#"{"pm_ratio": {"limit": 1}}"#, "unknown field `limit`"),
        (r#"{"pm_tail": {"mode": "loud"}}"#, "unknown variant `loud`"),
    ] {
        let error = json::from_str::<Policy>(text).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    let model = ModelInfo::default();
    for (text, reason) in [
        (
            r#"{"bootstrap": {"alpha": 0}}"#,
            "`bootstrap.alpha` must be between 0 and 1",
        ),
        (
            r#"{"bootstrap": {"replicates": 0}}"#,
            "`bootstrap.replicates` must be 1 to 1000000",
        ),
        (
            r#"{"acceptance_range": {"min": 2.0}}"#,
            "`acceptance_range.max` must be at least",
        ),
        (
            r#"{"pm_ratio": {"ratio_limit_base": 0}}"#,
            "`pm_ratio.ratio_limit_base` must be above 0",
        ),
    ] {
        let policy: Policy = json::from_str(text).unwrap();
        let error = PrimaryMetric::plan(&policy, &model).unwrap_err();
        assert!(error.message().contains(reason), "{error}");
    }
    let requests = PrimaryMetric::plan(&Policy::default(), &model).unwrap();
    assert_eq!(requests.len(), 16);
}
