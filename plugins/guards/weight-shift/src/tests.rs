//! Constructed tables: known changes, simulated rounding noise, broken tables.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use packhost_sdk::json::Value as Json;
use packhost_sdk::stats::{normal, rng::Pcg64};
use packhost_sdk::{Row, Value, bench, json};
use std::collections::BTreeMap;

/// A tensor's rows; the subject's also tell how it moved.
#[derive(Clone)]
struct Tensor {
    shape: Vec<f64>,
    dtype: &'static str,
    sigma: f64,
    bound: f64,
    squares: f64,
    zeros: f64,
    least_row: f64,
    shift: Option<[f64; 2]>,
    overlap: f64,
}

type Model = BTreeMap<String, Tensor>;

fn model(tensors: usize) -> Model {
    let tensor = |index: usize| {
        let tensor = Tensor {
            shape: vec![64.0, 32.0],
            dtype: "BF16",
            sigma: 2.0 + index as f64 / 10.0,
            bound: 1e-7,
            squares: 40.0,
            zeros: 3.0,
            least_row: 0.5,
            shift: None,
            overlap: 1.0,
        };
        (
            format!("model.layers.{index:02}.mlp.up_proj.weight"),
            tensor,
        )
    };
    (0..tensors).map(tensor).collect()
}

fn name(index: usize) -> String {
    format!("model.layers.{index:02}.mlp.up_proj.weight")
}

fn row(scope: &str, quantity: &str, value: Value) -> Row {
    Row {
        scope: scope.to_owned(),
        quantity: quantity.to_owned(),
        value,
    }
}

fn rows(model: &Model, structure: &str, tying: &str) -> Vec<Row> {
    let text = |text: &str| Value::Text(text.to_owned());
    let mut rows = vec![
        row("model", "structure.digest", text(structure)),
        row("model", "tying", text(tying)),
        row("preview", "window.ids", Value::Vector(vec![0.0])),
        row("final", "window.ids", Value::Vector(vec![1.0])),
    ];
    for (name, t) in model {
        let mut add = |quantity: &str, value| rows.push(row(name, quantity, value));
        add("tensor.shape", Value::Vector(t.shape.clone()));
        add("tensor.dtype", text(t.dtype));
        add("weight.zeros", Value::Number(t.zeros));
        add("weight.frobenius_sq", Value::Number(t.squares));
        add(
            "weight.singular",
            Value::Vector(vec![t.sigma, t.sigma / 2.0, t.bound]),
        );
        add(
            "weight.row_norms",
            Value::Vector(vec![t.least_row, 1.0, 2.0]),
        );
        add("weight.column_norms", Value::Vector(vec![0.5, 1.0, 2.0]));
        if let Some(shift) = t.shift {
            add("weight.shift", Value::Vector(shift.to_vec()));
            add("weight.overlap", Value::Number(t.overlap));
        }
    }
    rows
}

fn table(model: &Model) -> Table {
    Table::new(rows(model, "s", "untied"))
}

fn judge(policy: &Policy, baseline: &Model, subject: &Model) -> Verdict {
    match WeightShift::judge(policy, &table(baseline), &table(subject)).unwrap() {
        Step::Verdict(verdict) => verdict,
        Step::Measure(requests) => panic!("{requests:?}"),
    }
}

fn refusal(policy: &Policy, baseline: &Table, subject: &Table) -> String {
    WeightShift::judge(policy, baseline, subject)
        .unwrap_err()
        .to_string()
}

fn codes(verdict: &Verdict) -> Vec<(&str, &str)> {
    let findings = verdict.findings.iter();
    findings
        .map(|f| (f.code.as_str(), f.scope.as_str()))
        .collect()
}

/// Scales one tensor.
fn scaled(model: &Model, index: usize, factor: f64) -> Model {
    let mut model = model.clone();
    let tensor = model.get_mut(&name(index)).unwrap();
    tensor.shift = Some([(factor - 1.0).powi(2) * tensor.squares, tensor.squares]);
    tensor.sigma *= factor;
    tensor.squares *= factor * factor;
    model
}

/// Rounding noise on every tensor: relative size about 0.002, as of stochastic rounding to BF16.
fn noisy(model: &Model, rng: &mut Pcg64) -> Model {
    let mut gauss = || normal::quantile(rng.uniform().max(1e-300));
    let mut model = model.clone();
    for (index, tensor) in model.values_mut().enumerate() {
        let relative = 0.002 * (1.0 + 0.1 * (index % 5) as f64) * (0.02 * gauss()).exp();
        tensor.shift = Some([relative * relative * tensor.squares, tensor.squares]);
        tensor.sigma *= (1e-4 * gauss()).exp();
        tensor.squares *= (5e-5 * gauss()).exp();
        tensor.overlap = 1.0 - 1e-5 * (0.3 * gauss()).exp();
    }
    model
}

fn runs(baseline: &Model, count: usize, rng: &mut Pcg64) -> Vec<Table> {
    let noise = |_| {
        let mut rows = rows(&noisy(baseline, rng), "s", "untied");
        rows.push(row(
            "model",
            "calibration.kind",
            Value::Text("perturbation".to_owned()),
        ));
        Table::new(rows)
    };
    let noise: Vec<Table> = (0..count).map(noise).collect();
    [vec![table(baseline)], noise].concat()
}

#[test]
fn a_model_equals_itself_and_costs_nothing() {
    let model = model(4);
    let verdict = judge(&Policy::default(), &model, &model);
    assert_eq!((verdict.status, verdict.findings.len()), (Status::Pass, 0));
    assert_eq!(verdict.details["calibrated"], false);
    assert_eq!(verdict.details["false_alarm_rate"], Json::Null);
    assert_eq!(verdict.details["tensors_different"], 0);
}

#[test]
fn scales_are_told_to_the_percent() {
    let model = model(4);
    for (factor, status, codes_expected) in [
        (1.12, Status::Fail, vec!["damaged", "changed"]),
        (1.05, Status::Warn, vec!["marked", "changed"]),
        (1.02, Status::Warn, vec!["marked", "changed"]),
        (1.01, Status::Pass, vec!["changed"]),
        (1.001, Status::Pass, vec![]),
    ] {
        let verdict = judge(&Policy::default(), &model, &scaled(&model, 2, factor));
        assert_eq!(verdict.status, status, "{factor}");
        let codes: Vec<&str> = codes(&verdict).into_iter().map(|(code, _)| code).collect();
        assert_eq!(codes, codes_expected, "{factor}");
        let row = &verdict.details["most_changed"][0];
        assert_eq!(row["tensor"], name(2));
        let log = row["log_top_singular_value"].as_f64().unwrap();
        assert!((log - f64::ln(factor)).abs() < 1e-6, "{factor}: {log}");
        assert!(row["log_stable_rank"].as_f64().unwrap().abs() < 1e-12);
        assert!((row["relative_change"].as_f64().unwrap() - (factor - 1.0)).abs() < 1e-12);
    }
}

#[test]
fn what_lies_within_the_error_bounds_is_not_there() {
    let model = model(3);
    let mut subject = scaled(&model, 1, 1.12);
    let tensor = subject.get_mut(&name(1)).unwrap();
    // Only the largest singular value moved, and the norm of the change is the least that it can be.
    tensor.squares = 40.0;
    tensor.shift = Some([(0.12 * 2.1_f64).powi(2), 40.0]);
    tensor.bound = 0.2 * tensor.sigma;
    let verdict = judge(&Policy::default(), &model, &subject);
    assert_eq!(
        verdict.details["most_changed"][0]["log_top_singular_value"],
        0.0
    );
    assert_eq!(verdict.status, Status::Pass);
    // A bound that takes half of the shift leaves the other half.
    let tensor = subject.get_mut(&name(1)).unwrap();
    tensor.bound = (1.0 - (-f64::ln(1.12) / 2.0).exp()) * tensor.sigma;
    let verdict = judge(&Policy::default(), &model, &subject);
    let log = verdict.details["most_changed"][0]["log_top_singular_value"]
        .as_f64()
        .unwrap();
    assert!((log - f64::ln(1.12) / 2.0).abs() < 1e-6, "{log}");
}

/// Rows of a matrix and of what an edit makes of it, the largest singular value left alone.
fn edited(seed: u64, edit: impl Fn(f64, &mut Pcg64) -> f64) -> (Model, Model) {
    let mut rng = Pcg64::new(seed);
    let before = model(1);
    let values: Vec<f64> = (0..2048)
        .map(|_| normal::quantile(rng.uniform().max(1e-300)))
        .collect();
    let after: Vec<f64> = values.iter().map(|v| edit(*v, &mut rng)).collect();
    let squares = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>();
    let moved: Vec<f64> = values.iter().zip(&after).map(|(a, b)| a - b).collect();
    let with = |squares: f64, shift| {
        let mut model = before.clone();
        let tensor = model.get_mut(&name(0)).unwrap();
        (tensor.squares, tensor.shift) = (squares, shift);
        model
    };
    let shift = [squares(&moved), squares(&values)];
    (
        with(squares(&values), None),
        with(squares(&after), Some(shift)),
    )
}

#[test]
fn rescaling_is_told_from_noise_rounding_and_leaving_out() {
    let gauss = |rng: &mut Pcg64| normal::quantile(rng.uniform().max(1e-300));
    let log = |edit: &dyn Fn(f64, &mut Pcg64) -> f64| {
        let (before, after) = edited(5, edit);
        let verdict = judge(&Policy::default(), &before, &after);
        verdict.details["most_changed"][0]["log_rescaling"]
            .as_f64()
            .unwrap()
    };
    // Without a factor: noise, rounding to quarters, the smaller half left out.
    for edit in [
        &|v: f64, rng: &mut Pcg64| v + 0.1 * gauss(rng),
        &|v: f64, _: &mut Pcg64| (v * 4.0).round() / 4.0,
        &|v: f64, _: &mut Pcg64| if v.abs() < 0.67 { 0.0 } else { v },
    ] as [&dyn Fn(f64, &mut Pcg64) -> f64; 3]
    {
        assert!(log(edit).abs() < 0.006, "{}", log(edit));
    }
    // With one, alone and under noise; what is left out hides as much of a shrinking as its own share of the norm.
    for factor in [1.5, 1.12, 1.02, 0.98, 0.9, 0.5] {
        let alone = log(&|v, _| v * factor);
        let size = (factor - 1.0_f64).abs().ln_1p();
        assert!((alone.abs() - size).abs() < 1e-9, "{factor}: {alone}");
        assert_eq!(alone > 0.0, factor > 1.0);
        let noisy = log(&|v, rng| factor * v + 0.05 * gauss(rng));
        assert!((noisy - alone).abs() < 0.007, "{factor}: {noisy}");
    }
    assert_eq!(log(&|_, _| 0.0), 0.0, "nothing is left: other effects tell");
    assert_eq!(
        log(&|v, _| -v),
        0.0,
        "moved by twice its norm: other effects tell"
    );
}

#[test]
fn a_spike_is_told_from_noise_of_the_same_size() {
    let model = model(2);
    let moved = |relative: f64| {
        let mut subject = model.clone();
        let tensor = subject.get_mut(&name(0)).unwrap();
        tensor.sigma *= f64::exp(0.03);
        tensor.shift = Some([relative * relative * tensor.squares, tensor.squares]);
        judge(&Policy::default(), &model, &subject)
    };
    // A rank-one change that moves the largest singular value of 2 by 0.03 of it has 0.0096 of the norm.
    let spike = moved(0.0096);
    assert_eq!(codes(&spike)[0], ("marked", name(0).as_str()));
    assert!(spike.findings[0].message.starts_with("top_singular_value"));
    // Noise that may move it as far by chance has more: 0.06 · √(40/4) · (1/8 + 1/√32) = 0.057.
    let noise = moved(0.06);
    assert_eq!(noise.status, Status::Pass);
    let row = &noise.details["most_changed"][0];
    let allowed = row["log_top_singular_value_without_direction"].as_f64();
    assert!((allowed.unwrap() - 0.0573).abs() < 1e-4, "{allowed:?}");
    assert!((row["log_top_singular_value"].as_f64().unwrap() - 0.03).abs() < 1e-6);
}

#[test]
fn a_clean_four_bit_edit_is_seen_and_passes() {
    let model = model(6);
    let mut subject = model.clone();
    for tensor in subject.values_mut() {
        tensor.shift = Some([0.09_f64.powi(2) * tensor.squares, tensor.squares]);
        tensor.sigma *= 1.001;
        tensor.squares *= 1.008;
        tensor.overlap = 0.97;
    }
    let verdict = judge(&Policy::default(), &model, &subject);
    assert_eq!(verdict.status, Status::Pass);
    assert_eq!(verdict.findings.len(), 1);
    assert_eq!(verdict.findings[0].code, "changed");
    assert_eq!(verdict.findings[0].value, Some(6.0));
}

#[test]
fn collapse_sparsity_and_a_dead_head() {
    let model = model(3);
    let change = |edit: &dyn Fn(&mut Tensor)| {
        let mut subject = model.clone();
        let tensor = subject.get_mut(&name(0)).unwrap();
        tensor.shift = Some([0.2, tensor.squares]);
        edit(tensor);
        judge(&Policy::default(), &model, &subject)
    };
    let collapsed = change(&|t| {
        t.squares = t.sigma * t.sigma / 2.0;
        t.overlap = 0.1;
        t.shift = Some([50.0, 40.0]);
    });
    assert_eq!(collapsed.status, Status::Fail);
    assert!(
        collapsed
            .findings
            .iter()
            .filter(|f| f.code == "damaged")
            .count()
            >= 2
    );
    let sparse = change(&|t| t.zeros = 3.0 + 0.5 * 64.0 * 32.0);
    assert_eq!(codes(&sparse)[0], ("marked", name(0).as_str()));
    assert_eq!(sparse.details["most_changed"][0]["sparsity_rise"], 0.5);
    let headless = change(&|t| t.least_row = 1e-12);
    assert_eq!(
        (headless.status, codes(&headless)[0].0),
        (Status::Warn, "dead")
    );
    let gone = change(&|t| {
        t.sigma = 0.0;
        t.squares = 0.0;
        t.shift = Some([40.0, 40.0]);
    });
    assert!(codes(&gone).contains(&("dead", name(0).as_str())));
}

#[test]
fn structure() {
    let before = model(3);
    let mut after = before.clone();
    after.remove(&name(0));
    after.get_mut(&name(1)).unwrap().shape = vec![32.0, 64.0];
    after.get_mut(&name(2)).unwrap().dtype = "F16";
    after.insert("extra.weight".to_owned(), before[&name(0)].clone());
    let subject = Table::new(rows(&after, "t", "tied"));
    let Step::Verdict(verdict) =
        WeightShift::judge(&Policy::default(), &table(&before), &subject).unwrap()
    else {
        panic!()
    };
    assert_eq!(verdict.status, Status::Fail);
    let found: Vec<&str> = codes(&verdict).iter().map(|(code, _)| *code).collect();
    assert_eq!(found, ["shape", "missing", "added", "dtype", "tying"]);
    assert_eq!(verdict.details["structure"]["missing"], json!([name(0)]));
}

#[test]
fn numbers_that_are_not() {
    let before = model(2);
    for edit in [
        (|t| t.sigma = f64::NAN) as fn(&mut Tensor),
        |t| t.shift = Some([f64::NAN, 40.0]),
        |t| t.shift = Some([f64::INFINITY, 40.0]),
        |t| t.overlap = f64::NAN,
        |t| t.squares = f64::INFINITY,
        |t| t.zeros = f64::NAN,
    ] {
        let mut after = before.clone();
        let tensor = after.get_mut(&name(1)).unwrap();
        tensor.shift = Some([0.0001, 40.0]);
        edit(tensor);
        let verdict = judge(&Policy::default(), &before, &after);
        assert_eq!(verdict.status, Status::Fail);
        assert!(codes(&verdict).contains(&("not_finite", name(1).as_str())));
        assert!(codes(&verdict).iter().any(|(code, _)| *code == "changed"));
    }
}

#[test]
fn rounding_noise_keeps_the_false_discovery_rate_and_more_is_found() {
    let baseline = model(60);
    let (suites, mut alarms, mut found) = (200, 0, 0);
    for seed in 0..suites {
        let mut rng = Pcg64::new(seed);
        let runs = runs(&baseline, 5, &mut rng);
        let policy = WeightShift::calibrate(&Policy::default(), &runs).unwrap();
        let fresh = noisy(&baseline, &mut rng);
        let verdict = judge(&policy, &baseline, &fresh);
        assert_eq!(verdict.status, Status::Pass);
        alarms += usize::from(verdict.details["tensors_changed"] != 0);
        // One more thing: one tensor scaled by a thousandth, a tenth of what the uncalibrated limit sees.
        let mut moved = fresh.clone();
        let tensor = moved.get_mut(&name(7)).unwrap();
        tensor.sigma *= 1.002;
        let verdict = judge(&policy, &baseline, &moved);
        let rows = verdict.details["most_changed"].as_array().unwrap();
        found += usize::from(
            rows.iter()
                .any(|r| r["tensor"] == name(7) && r["changed"] == true),
        );
    }
    let rate = alarms as f64 / suites as f64;
    assert!(rate <= 0.09, "{rate}");
    assert!(found as f64 / suites as f64 > 0.95, "{found}");
}

#[test]
fn calibration_states_its_rate_and_refuses_other_models() {
    let baseline = model(20);
    let mut rng = Pcg64::new(3);
    let runs = runs(&baseline, 5, &mut rng);
    let policy = WeightShift::calibrate(&Policy::default(), &runs).unwrap();
    let text = json::to_string(&policy).unwrap();
    let read: Policy = json::from_str(&text).unwrap();
    assert_eq!(read, policy);
    let verdict = judge(&policy, &baseline, &scaled(&baseline, 3, 1.01));
    assert_eq!(verdict.details["calibrated"], true);
    let rate = &verdict.details["false_alarm_rate"];
    assert_eq!(rate["nominal_false_discovery_rate"], 0.05);
    assert_eq!(rate["leave_one_out"]["runs"], 5);
    assert_eq!(rate["leave_one_out"]["places"], 100);
    assert_eq!(verdict.details["tensors_changed"], 1);
    let other = Table::new(rows(&baseline, "other", "untied"));
    let error = refusal(&policy, &other, &other);
    assert!(
        error.contains("calibrated on a model of structure s"),
        "{error}"
    );
    assert_eq!(WeightShift::calibrate(&policy, &runs[..1]).unwrap(), policy);
    let error = WeightShift::calibrate(&policy, &runs[..3])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("3 perturbation runs are needed to calibrate and 2"),
        "{error}"
    );
}

#[test]
fn broken_tables() {
    let before = model(2);
    let after = scaled(&before, 1, 1.05);
    let without = |quantity: &str| {
        let rows = rows(&after, "s", "untied");
        let kept = rows
            .into_iter()
            .filter(|row| row.quantity != quantity || row.scope != name(1));
        refusal(
            &Policy::default(),
            &table(&before),
            &Table::new(kept.collect()),
        )
    };
    for quantity in [
        "weight.singular",
        "weight.frobenius_sq",
        "weight.zeros",
        "weight.overlap",
        "weight.row_norms",
    ] {
        let error = without(quantity);
        assert!(
            error.contains(&format!("`{quantity}` at `{}`", name(1))),
            "{error}"
        );
    }
    let error = without("weight.shift");
    assert!(error.contains("there is no `weight.shift` row"), "{error}");
    assert!(
        refusal(&Policy::default(), &Table::default(), &table(&after)).contains("tensor.shape")
    );
}

#[test]
fn policies_are_checked() {
    for (text, reason) in [
        (r#"{"limit": {}}"#, "unknown field `limit`"),
        (
            r#"{"limits": {"sigma": {"warn": 1}}}"#,
            "no effect of this guard",
        ),
        (
            r#"{"limits": {"sparsity": {"wran": 1}}}"#,
            "unknown field `wran`",
        ),
        (r#"{"false_discovery_rate": 1}"#, "must be between 0 and 1"),
        (r#"{"runs": 2}"#, "`runs` must be at least 3"),
    ] {
        let error = bench::requests::<WeightShift>(text, &ModelInfo::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains(reason), "{error}");
    }
    assert_eq!(
        bench::requests::<WeightShift>("{}", &ModelInfo::default())
            .unwrap()
            .len(),
        11
    );
    let strict = r#"{"limits": {"relative_change": {"fail": 0.005}}}"#;
    let before = model(2);
    let step =
        bench::judge::<WeightShift>(strict, &table(&before), &table(&scaled(&before, 0, 1.01)));
    assert!(matches!(step.unwrap(), Step::Verdict(verdict) if verdict.status == Status::Fail));
    let schema = bench::schema::<Policy>();
    assert_eq!(schema["additionalProperties"], false);
    assert!(schema["properties"]["calibration"].is_object());
}
