//! Constructed tables: known shifts, simulated noise, broken tables.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use packhost_sdk::stats::{normal, rng::Pcg64};
use packhost_sdk::{Row, Value, bench, json};

const WINDOWS: usize = 40;

fn gauss(rng: &mut Pcg64) -> f64 {
    normal::quantile(rng.uniform().max(1e-300))
}

fn row(scope: &str, quantity: &str, value: Value) -> Row {
    Row {
        scope: scope.to_owned(),
        quantity: quantity.to_owned(),
        value,
    }
}

/// Per-window vectors of both arms, preview first.
#[derive(Clone)]
struct Windows {
    tokens: Vec<f64>,
    loss: Vec<f64>,
    divergence: Vec<f64>,
    same_top: Vec<f64>,
    variation: Vec<f64>,
}

fn baseline() -> Windows {
    let tokens = (0..2 * WINDOWS).map(|i| 100.0 + (i % 7) as f64).collect();
    let loss = (0..2 * WINDOWS)
        .map(|i| 2.0 + (i % 11) as f64 / 10.0)
        .collect();
    Windows {
        tokens,
        loss,
        divergence: vec![],
        same_top: vec![],
        variation: vec![],
    }
}

/// A subject with mean divergence `kl`, scattered by a third, and losses up by half of it.
fn shifted(rng: &mut Pcg64, kl: f64) -> Windows {
    let mut windows = baseline();
    for loss in &mut windows.loss {
        *loss += kl / 2.0 + 0.3 * kl * gauss(rng);
    }
    let count = windows.loss.len();
    windows.divergence = (0..count).map(|_| kl * (0.3 * gauss(rng)).exp()).collect();
    windows.same_top = windows.divergence.iter().map(|k| 1.0 - k.sqrt()).collect();
    windows.variation = windows
        .divergence
        .iter()
        .map(|k| (k / 2.0).sqrt())
        .collect();
    windows
}

fn rows(windows: &Windows, structure: &str) -> Vec<Row> {
    let mut rows = vec![row(
        "model",
        "structure.digest",
        Value::Text(structure.to_owned()),
    )];
    for (arm, from) in [("preview", 0), ("final", WINDOWS)] {
        let part = |values: &[f64]| Value::Vector(values[from..from + WINDOWS].to_vec());
        let ids = (from..from + WINDOWS).map(|id| id as f64).collect();
        rows.push(row(arm, "window.ids", Value::Vector(ids)));
        rows.push(row(arm, "window.tokens", part(&windows.tokens)));
        rows.push(row(arm, "window.loss", part(&windows.loss)));
        if !windows.divergence.is_empty() {
            rows.push(row(arm, "window.kl", part(&windows.divergence)));
            rows.push(row(arm, "window.same_top", part(&windows.same_top)));
            rows.push(row(arm, "window.tv", part(&windows.variation)));
        }
    }
    if let Some(max) = windows.divergence.iter().copied().reduce(f64::max) {
        for (quantity, value) in [
            ("kl.mean", max / 2.0),
            ("kl.median", max / 2.0),
            ("kl.p99", 2.0 * max),
            ("kl.max", 4.0 * max),
        ] {
            rows.push(row("model", quantity, Value::Number(value)));
        }
    }
    rows
}

fn table(windows: &Windows) -> Table {
    Table::new(rows(windows, "s"))
}

fn judge(policy: &Policy, subject: &Windows) -> Verdict {
    match DistributionShift::judge(policy, &table(&baseline()), &table(subject)).unwrap() {
        Step::Verdict(verdict) => verdict,
        Step::Measure(requests) => panic!("{requests:?}"),
    }
}

fn codes(verdict: &Verdict) -> Vec<&str> {
    verdict.findings.iter().map(|f| f.code.as_str()).collect()
}

fn effects(verdict: &Verdict) -> Vec<&str> {
    let damaged = verdict.findings.iter().filter(|f| f.code == "damaged");
    damaged
        .map(|f| f.message.split(':').next().unwrap())
        .collect()
}

fn refusal(baseline: &Table, subject: &Table) -> String {
    let refused = DistributionShift::judge(&Policy::default(), baseline, subject);
    refused.unwrap_err().to_string()
}

#[test]
fn a_model_equals_itself() {
    let verdict = judge(&Policy::default(), &baseline());
    assert_eq!((verdict.status, verdict.findings.len()), (Status::Pass, 0));
    assert_eq!(verdict.details["identical"], true);
    assert_eq!(verdict.details["calibrated"], false);
}

#[test]
fn clean_edits_pass_and_damage_fails() {
    for (kl, status, codes_expected) in [
        (1.4e-5, Status::Pass, vec![]),
        (0.002, Status::Pass, vec!["changed"]),
        (0.026, Status::Pass, vec!["changed"]),
        (0.079, Status::Fail, vec!["damaged", "damaged", "changed"]),
    ] {
        let verdict = judge(&Policy::default(), &shifted(&mut Pcg64::new(1), kl));
        assert_eq!(
            (verdict.status, codes(&verdict)),
            (status, codes_expected),
            "{kl}"
        );
        let mean = verdict.details["divergence"]["mean"].as_f64().unwrap();
        assert!((mean / kl - 1.0).abs() < 0.2, "{kl}: {mean}");
    }
    let verdict = judge(&Policy::default(), &shifted(&mut Pcg64::new(1), 0.079));
    assert_eq!(effects(&verdict), ["divergence", "other_top"]);
}

#[test]
fn the_upper_bound_decides() {
    // The same mean below the limit, scattered little and much.
    let mut subject = shifted(&mut Pcg64::new(2), 0.04);
    subject.divergence = vec![0.04; 2 * WINDOWS];
    let verdict = judge(&Policy::default(), &subject);
    assert_eq!(verdict.details["divergence"]["interval"][1], 0.04);
    assert_eq!(verdict.status, Status::Pass);
    for (index, divergence) in subject.divergence.iter_mut().enumerate() {
        *divergence = if index % 10 == 0 { 0.40 } else { 0.0 };
    }
    subject.tokens = vec![100.0; 2 * WINDOWS];
    let verdict = Step::Verdict(judge(&Policy::default(), &subject));
    let Step::Verdict(verdict) = verdict else {
        panic!()
    };
    assert!((verdict.details["divergence"]["mean"].as_f64().unwrap() - 0.04).abs() < 1e-12);
    assert!(effects(&verdict).contains(&"divergence"));
}

#[test]
fn means_weigh_scored_tokens_and_losses_real_ones() {
    let mut subject = shifted(&mut Pcg64::new(3), 0.01);
    subject.tokens[0] = 1001.0;
    let verdict = judge(&Policy::default(), &subject);
    let mean = |values: &[f64], weights: &[f64]| {
        let sum: f64 = values.iter().zip(weights).map(|(v, w)| v * w).sum();
        sum / weights.iter().sum::<f64>()
    };
    let scored: Vec<f64> = subject.tokens.iter().map(|t| t - 1.0).collect();
    let expected = mean(&subject.divergence, &scored);
    let got = verdict.details["divergence"]["mean"].as_f64().unwrap();
    assert!((got - expected).abs() < 1e-15);
    let differences: Vec<f64> = subject
        .loss
        .iter()
        .zip(&baseline().loss)
        .map(|(s, b)| s - b)
        .collect();
    let pooled = &verdict.details["loss_difference"]["pooled"];
    let expected = mean(&differences, &subject.tokens);
    assert!((pooled["mean"].as_f64().unwrap() - expected).abs() < 1e-15);
    assert!((pooled["perplexity_ratio"].as_f64().unwrap() - expected.exp()).abs() < 1e-15);
    let arms = &verdict.details["loss_difference"];
    let drift = verdict.details["drift"]["mean"].as_f64().unwrap();
    let between =
        arms["final"]["mean"].as_f64().unwrap() - arms["preview"]["mean"].as_f64().unwrap();
    assert!((drift - between).abs() < 1e-15);
}

#[test]
fn both_arms_pooled_know_more_than_either() {
    let verdict = judge(&Policy::default(), &shifted(&mut Pcg64::new(3), 0.01));
    let width = |arm: &str| {
        let of = &verdict.details["loss_difference"][arm]["interval"];
        of[1].as_f64().unwrap() - of[0].as_f64().unwrap()
    };
    assert!(width("pooled") < width("final") && width("pooled") < width("preview"));
}

#[test]
fn drift_counts_what_is_surely_there() {
    let mut subject = shifted(&mut Pcg64::new(4), 0.001);
    for loss in &mut subject.loss[WINDOWS..] {
        *loss += 0.06;
    }
    let verdict = judge(&Policy::default(), &subject);
    assert_eq!(effects(&verdict), ["drift"]);
    for (index, loss) in subject.loss.iter_mut().enumerate() {
        *loss += if index % 2 == 0 { 0.5 } else { -0.5 };
    }
    let verdict = judge(&Policy::default(), &subject);
    assert!(!effects(&verdict).contains(&"drift"));
}

#[test]
fn the_worst_window_and_the_worst_tokens() {
    let mut subject = shifted(&mut Pcg64::new(5), 0.005);
    subject.variation[17] = 0.5;
    let verdict = judge(&Policy::default(), &subject);
    assert_eq!(effects(&verdict), ["worst_window"]);
    assert_eq!(verdict.details["worst_window"]["id"], 17.0);
    subject.variation[17] = 0.1;
    subject.divergence[3] = 0.6;
    let verdict = judge(&Policy::default(), &subject);
    assert_eq!(effects(&verdict), ["divergence_p99"]);
}

#[test]
fn windows_that_are_not_numbers() {
    let mut subject = shifted(&mut Pcg64::new(6), 0.005);
    subject.loss[3] = f64::NAN;
    subject.divergence[50] = f64::INFINITY;
    let verdict = judge(&Policy::default(), &subject);
    assert_eq!(verdict.status, Status::Fail);
    assert!(codes(&verdict).contains(&"not_finite"));
    assert_eq!(
        verdict.details["windows"],
        json!({"used": 78, "not_finite": 2})
    );
    subject.loss = vec![f64::NAN; 2 * WINDOWS];
    let verdict = judge(&Policy::default(), &subject);
    assert_eq!(
        codes(&verdict),
        ["not_finite", "too_few_windows", "changed"]
    );
    assert_eq!(verdict.details["divergence"], Json::Null);
}

fn runs(rng: &mut Pcg64, count: usize) -> Vec<Table> {
    let noise = |_| {
        let mut rows = rows(&shifted(rng, 1e-5), "s");
        rows.push(row(
            "model",
            "calibration.kind",
            Value::Text("perturbation".to_owned()),
        ));
        Table::new(rows)
    };
    let noise: Vec<Table> = (0..count).map(noise).collect();
    [vec![table(&baseline())], noise].concat()
}

#[test]
fn rounding_noise_keeps_the_false_alarm_rate_and_more_is_found() {
    let (suites, mut alarms, mut found) = (300, 0, 0);
    for seed in 0..suites {
        let mut rng = Pcg64::new(seed);
        let runs = runs(&mut rng, 5);
        let policy = DistributionShift::calibrate(&Policy::default(), &runs).unwrap();
        let quiet = judge(&policy, &shifted(&mut rng, 1e-5));
        alarms += usize::from(quiet.details["changed"] == true);
        found += usize::from(judge(&policy, &shifted(&mut rng, 4e-5)).details["changed"] == true);
    }
    let rate = alarms as f64 / suites as f64;
    assert!(rate <= 0.08, "{rate}");
    assert!(found as f64 / suites as f64 > 0.9, "{found}");
}

#[test]
fn calibration_is_of_one_model() {
    let runs = runs(&mut Pcg64::new(9), 5);
    let policy = DistributionShift::calibrate(&Policy::default(), &runs).unwrap();
    let verdict = judge(&policy, &shifted(&mut Pcg64::new(10), 0.01));
    assert_eq!(verdict.details["calibrated"], true);
    assert_eq!(
        verdict.details["false_alarm_rate"]["leave_one_out"]["runs"],
        5
    );
    let other = Table::new(rows(&baseline(), "other"));
    for subject in [
        other.clone(),
        Table::new(rows(&shifted(&mut Pcg64::new(1), 0.01), "other")),
    ] {
        let error = DistributionShift::judge(&policy, &other, &subject)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("calibrated on a model of structure s"),
            "{error}"
        );
    }
    let error = DistributionShift::calibrate(&Policy::default(), &runs[..2])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("3 perturbation runs are needed to calibrate and 1"),
        "{error}"
    );
    assert_eq!(DistributionShift::calibrate(&policy, &[]).unwrap(), policy);
}

#[test]
fn broken_tables() {
    let subject = shifted(&mut Pcg64::new(7), 0.01);
    let without = |quantity: &str| {
        let kept = rows(&subject, "s")
            .into_iter()
            .filter(|row| row.quantity != quantity);
        refusal(&table(&baseline()), &Table::new(kept.collect()))
    };
    for quantity in [
        "window.tokens",
        "window.loss",
        "window.same_top",
        "window.tv",
        "kl.p99",
    ] {
        let error = without(quantity);
        assert!(error.contains(quantity), "{quantity}: {error}");
    }
    assert!(without("window.ids").contains("different windows"));
    let mut short = rows(&subject, "s");
    for row in &mut short {
        if row.quantity == "window.kl" {
            row.value = Value::Vector(vec![0.1; 3]);
        }
    }
    assert!(
        refusal(&table(&baseline()), &Table::new(short)).contains("has 3 values for 40 windows")
    );
    assert!(
        DistributionShift::judge(&Policy::default(), &Table::default(), &Table::default()).is_err()
    );
}

#[test]
fn predictions_that_cannot_be_compared_do_not_pass() {
    let subject = shifted(&mut Pcg64::new(7), 0.01);
    let kept = rows(&subject, "s")
        .into_iter()
        .filter(|row| row.quantity != "window.kl");
    let subject = Table::new(kept.collect());
    let step = DistributionShift::judge(&Policy::default(), &table(&baseline()), &subject);
    let Step::Verdict(verdict) = step.unwrap() else {
        panic!()
    };
    assert_eq!(verdict.status, Status::Fail);
    assert_eq!(codes(&verdict), ["not_comparable"]);
    assert_eq!(verdict.details["identical"], false);
}

#[test]
fn policies_are_checked() {
    for (text, reason) in [
        (r#"{"kl": 1}"#, "unknown field `kl`"),
        (
            r#"{"limits": {"kl": {"fail": 1}}}"#,
            "no effect of this guard",
        ),
        (r#"{"false_discovery_rate": 0}"#, "must be between 0 and 1"),
    ] {
        let error = bench::requests::<DistributionShift>(text, &ModelInfo::default()).unwrap_err();
        assert!(error.message().contains(reason), "{error}");
    }
    let requests = bench::requests::<DistributionShift>("", &ModelInfo::default()).unwrap();
    assert_eq!(requests.len(), 17);
    assert_eq!(bench::schema::<Policy>()["additionalProperties"], false);
    let read: Policy = json::from_str(r#"{"limits": {"divergence": {"fail": 0.001}}}"#).unwrap();
    assert_eq!(
        judge(&read, &shifted(&mut Pcg64::new(1), 0.002)).status,
        Status::Fail
    );
}
