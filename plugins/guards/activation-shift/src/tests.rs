//! Constructed tables: known shifts, simulated rounding noise, broken tables.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use packhost_sdk::stats::{normal, rng::Pcg64};
use packhost_sdk::{Row, Value, bench, json};

fn gauss(rng: &mut Pcg64) -> f64 {
    normal::quantile(rng.uniform().max(1e-300))
}

/// One module's rows.
#[derive(Clone)]
struct Module {
    variance: f64,
    top: f64,
    rank: f64,
    shift: Option<[f64; 4]>,
}

type Model = BTreeMap<String, Module>;

fn name(index: usize) -> String {
    format!("model.layers.{}.mlp.m{}", index / 4, index % 4)
}

fn model(modules: usize) -> Model {
    let module = |index: usize| Module {
        variance: 0.5 + index as f64,
        top: 3.0,
        rank: 20.0,
        shift: None,
    };
    (0..modules)
        .map(|index| (name(index), module(index)))
        .collect()
}

fn row(scope: &str, quantity: &str, value: Value) -> Row {
    Row {
        scope: scope.to_owned(),
        quantity: quantity.to_owned(),
        value,
    }
}

fn rows(model: &Model, structure: &str) -> Vec<Row> {
    let mut rows = vec![
        row(
            "model",
            "structure.digest",
            Value::Text(structure.to_owned()),
        ),
        row("preview", "window.ids", Value::Vector(vec![4.0, 5.0])),
        row("final", "window.ids", Value::Vector(vec![6.0])),
    ];
    for (name, module) in model {
        let mut add = |quantity: &str, values: Vec<f64>| {
            rows.push(row(name, quantity, Value::Vector(values)));
        };
        add("activation.moments", vec![0.1, module.variance]);
        add(
            "activation.singular",
            vec![module.top, module.top / 2.0, module.rank],
        );
        if let Some(shift) = module.shift {
            add("activation.shift", shift.to_vec());
        }
    }
    rows
}

fn table(model: &Model) -> Table {
    Table::new(rows(model, "s"))
}

fn judge(policy: &Policy, baseline: &Model, subject: &Model) -> Verdict {
    match ActivationShift::judge(policy, &table(baseline), &table(subject)).unwrap() {
        Step::Verdict(verdict) => verdict,
        Step::Measure(requests) => panic!("{requests:?}"),
    }
}

fn refusal(policy: &Policy, baseline: &Table, subject: &Table) -> String {
    let refused = ActivationShift::judge(policy, baseline, subject);
    refused.unwrap_err().to_string()
}

/// Scales the output of one module.
fn scaled(model: &Model, index: usize, factor: f64) -> Model {
    let mut model = model.clone();
    let module = model.get_mut(&name(index)).unwrap();
    module.variance *= factor * factor;
    module.top *= factor;
    let log = 2.0 * f64::ln(factor);
    module.shift = Some([(factor - 1.0).powi(2) * 0.01, log.abs(), log.abs(), log]);
    model
}

/// Noise of `size` on every module, a part of it shared by all.
fn noisy(model: &Model, size: f64, rng: &mut Pcg64) -> Model {
    let mut model = model.clone();
    let shared = gauss(rng);
    for (index, module) in model.values_mut().enumerate() {
        let spread = size * (1.0 + (index % 5) as f64);
        let mut draw = || spread * (0.6 * shared + 0.8 * gauss(rng));
        let log = draw();
        module.variance *= log.exp();
        module.top *= (log / 2.0 + 0.1 * draw()).exp();
        module.rank *= draw().exp();
        let median = 3.0 * spread * (0.1 * gauss(rng)).exp();
        let mean = spread * spread * (0.3 * gauss(rng)).exp();
        module.shift = Some([mean, median, 5.0 * median, log]);
    }
    model
}

fn runs(baseline: &Model, rng: &mut Pcg64, count: usize) -> Vec<Table> {
    let noise = |_| {
        let mut rows = rows(&noisy(baseline, 1e-4, rng), "s");
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
fn a_model_equals_itself() {
    let model = model(8);
    let verdict = judge(&Policy::default(), &model, &model);
    assert_eq!((verdict.status, verdict.findings.len()), (Status::Pass, 0));
    assert_eq!(verdict.details["modules"], 8);
    assert_eq!(verdict.details["first_changed"], Json::Null);
    // Rows that say that nothing moved are as good as none.
    let mut stated = model.clone();
    for module in stated.values_mut() {
        module.shift = Some([0.0; 4]);
    }
    let verdict = judge(&Policy::default(), &model, &stated);
    assert_eq!(verdict.details["modules_different"], 0);
}

#[test]
fn scales_of_one_module() {
    let model = model(12);
    for (factor, status, codes) in [
        (
            1.5,
            Status::Fail,
            vec!["damaged", "damaged", "marked", "changed"],
        ),
        (
            1.12,
            Status::Warn,
            vec!["marked", "marked", "marked", "changed"],
        ),
        (
            0.9,
            Status::Warn,
            vec!["marked", "marked", "marked", "changed"],
        ),
        (1.05, Status::Pass, vec!["changed"]),
        (1.005, Status::Pass, vec![]),
    ] {
        let verdict = judge(&Policy::default(), &model, &scaled(&model, 6, factor));
        let found: Vec<&str> = verdict.findings.iter().map(|f| f.code.as_str()).collect();
        assert_eq!((verdict.status, found), (status, codes), "{factor}");
        let row = &verdict.details["most_changed"][0];
        assert_eq!(row["module"], name(6));
        assert!(
            (row["alpha"].as_f64().unwrap() - 1.0 / factor).abs() < 1e-12,
            "{factor}"
        );
        assert_eq!(verdict.details["modules_different"], 1);
    }
    let verdict = judge(&Policy::default(), &model, &scaled(&model, 6, 1.12));
    let expected = json!({"layer": 1, "modules": [name(6)]});
    assert_eq!(verdict.details["first_changed"], expected);
}

#[test]
fn the_first_layer_is_first_by_number() {
    let mut baseline = model(0);
    let module = model(1)[&name(0)].clone();
    for name in [
        "model.layers.10.a",
        "model.layers.2.b",
        "model.norm",
        "lm_head",
    ] {
        baseline.insert(name.to_owned(), module.clone());
    }
    let mut subject = baseline.clone();
    for module in subject.values_mut() {
        module.variance *= 1.2;
        module.shift = Some([0.0, 0.18, 0.18, 0.18]);
    }
    let verdict = judge(&Policy::default(), &baseline, &subject);
    assert_eq!(
        verdict.details["first_changed"],
        json!({"layer": 2, "modules": ["model.layers.2.b"]})
    );
}

#[test]
fn dead_features_and_dead_modules() {
    let baseline = model(4);
    let mut subject = baseline.clone();
    let module = subject.get_mut(&name(1)).unwrap();
    module.variance *= 0.99;
    module.shift = Some([0.0, 0.01, f64::INFINITY, -0.01]);
    let verdict = judge(&Policy::default(), &baseline, &subject);
    assert_eq!(
        (verdict.status, verdict.findings[0].code.as_str()),
        (Status::Warn, "dead")
    );
    subject.get_mut(&name(1)).unwrap().variance = 0.0;
    let verdict = judge(&Policy::default(), &baseline, &subject);
    assert_eq!(verdict.status, Status::Fail);
    assert!(
        verdict
            .findings
            .iter()
            .any(|f| f.message.starts_with("alpha"))
    );
}

#[test]
fn numbers_that_are_not_and_missing_modules() {
    let baseline = model(4);
    for edit in [
        (|m| m.variance = f64::NAN) as fn(&mut Module),
        |m| m.variance = f64::INFINITY,
        |m| m.top = f64::NAN,
        |m| m.shift = Some([f64::NAN, 0.0, 0.0, 0.0]),
    ] {
        let mut subject = scaled(&baseline, 2, 1.01);
        edit(subject.get_mut(&name(2)).unwrap());
        let verdict = judge(&Policy::default(), &baseline, &subject);
        assert_eq!(verdict.status, Status::Fail);
        assert_eq!(verdict.findings[0].code, "not_finite");
        assert_eq!(verdict.details["modules_changed"], 1);
    }
    let mut subject = baseline.clone();
    subject.remove(&name(3));
    let verdict = judge(&Policy::default(), &baseline, &subject);
    assert_eq!(
        (verdict.status, verdict.findings[0].code.as_str()),
        (Status::Fail, "missing")
    );
}

#[test]
fn rounding_noise_keeps_the_false_discovery_rate_and_more_is_found() {
    let baseline = model(44);
    let (suites, mut alarms, mut found) = (200, 0, 0);
    for seed in 0..suites {
        let mut rng = Pcg64::new(seed);
        let runs = runs(&baseline, &mut rng, 5);
        let policy = ActivationShift::calibrate(&Policy::default(), &runs).unwrap();
        let fresh = noisy(&baseline, 1e-4, &mut rng);
        let verdict = judge(&policy, &baseline, &fresh);
        assert_eq!(verdict.status, Status::Pass);
        alarms += usize::from(verdict.details["modules_changed"] != 0);
        // A module scaled by half a percent: a quarter of the deadband.
        let mut moved = fresh.clone();
        moved.get_mut(&name(9)).unwrap().variance *= 1.005 * 1.005;
        let verdict = judge(&policy, &baseline, &moved);
        let rows = verdict.details["most_changed"].as_array().unwrap();
        found += usize::from(
            rows.iter()
                .any(|r| r["module"] == name(9) && r["changed"] == true),
        );
    }
    let rate = alarms as f64 / suites as f64;
    assert!(rate <= 0.09, "{rate}");
    assert!(found as f64 / suites as f64 > 0.9, "{found}");
}

#[test]
fn calibration_is_of_one_model() {
    let baseline = model(10);
    let runs = runs(&baseline, &mut Pcg64::new(1), 5);
    let policy = ActivationShift::calibrate(&Policy::default(), &runs).unwrap();
    let read: Policy = json::from_str(&json::to_string(&policy).unwrap()).unwrap();
    assert_eq!(read, policy);
    let verdict = judge(&policy, &baseline, &scaled(&baseline, 3, 1.05));
    assert_eq!(verdict.details["calibrated"], true);
    assert_eq!(
        verdict.details["false_alarm_rate"]["leave_one_out"]["places"],
        50
    );
    let other = Table::new(rows(&baseline, "other"));
    let error = refusal(&policy, &other, &other);
    assert!(
        error.contains("calibrated on a model of structure s"),
        "{error}"
    );
    let error = ActivationShift::calibrate(&policy, &runs[..3])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("3 perturbation runs are needed to calibrate and 2"),
        "{error}"
    );
    assert_eq!(
        ActivationShift::calibrate(&policy, &runs[..1]).unwrap(),
        policy
    );
    let none = [Table::new(rows(&model(0), "s"))];
    let unpaired = [&none[..], &runs[1..]].concat();
    assert!(ActivationShift::calibrate(&policy, &unpaired).is_err());
}

#[test]
fn broken_tables() {
    let baseline = model(4);
    let subject = scaled(&baseline, 2, 1.05);
    let without = |quantity: &str| {
        let kept = rows(&subject, "s")
            .into_iter()
            .filter(|row| row.quantity != quantity || row.scope != name(2) && row.scope != "final");
        refusal(
            &Policy::default(),
            &table(&baseline),
            &Table::new(kept.collect()),
        )
    };
    assert!(
        without("activation.singular").contains("`activation.singular` at `model.layers.0.mlp.m2`")
    );
    assert!(without("window.ids").contains("different windows"));
    let mut short = rows(&subject, "s");
    for row in short
        .iter_mut()
        .filter(|row| row.quantity == "activation.shift")
    {
        row.value = Value::Vector(vec![0.0]);
    }
    let error = refusal(&Policy::default(), &table(&baseline), &Table::new(short));
    assert!(error.contains("at least 4 numbers"), "{error}");
    let empty = Table::new(rows(&model(0), "s"));
    assert!(refusal(&Policy::default(), &empty, &empty).contains("no activation rows"));
}

#[test]
fn modules_that_cannot_be_compared_do_not_pass() {
    let baseline = model(4);
    let mut subject = scaled(&baseline, 2, 1.05);
    subject.get_mut(&name(2)).unwrap().shift = None;
    let verdict = judge(&Policy::default(), &baseline, &subject);
    assert_eq!(verdict.status, Status::Fail);
    assert_eq!(verdict.findings[0].code, "not_comparable");
    assert_eq!(verdict.details["not_comparable"], json!([name(2)]));
}

#[test]
fn policies_are_checked() {
    for (text, reason) in [
        (r#"{"deadband": 1}"#, "unknown field `deadband`"),
        (
            r#"{"limits": {"beta": {"fail": 1}}}"#,
            "no effect of this guard",
        ),
        (r#"{"calibration": {"structure": "s"}}"#, "missing field"),
    ] {
        let error = bench::requests::<ActivationShift>(text, &ModelInfo::default()).unwrap_err();
        assert!(error.message().contains(reason), "{error}");
    }
    let requests = bench::requests::<ActivationShift>("", &ModelInfo::default()).unwrap();
    assert_eq!(requests.len(), 6);
    assert_eq!(bench::schema::<Policy>()["additionalProperties"], false);
}
