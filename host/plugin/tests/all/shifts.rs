//! The guards `weight-shift`, `distribution-shift` and `activation-shift` in the sandbox, on tables of a model with a hundred
//! modules: calibration, judgement, the same answer twice, and how much work it is.

use std::time::Instant;

use packhost_plugin::{GuardPlugin, Row, Status, Step, Value as Measured, Verdict};
use serde_json::Value;

use crate::components::{load, registry};

const MODULES: usize = 100;
const WINDOWS: usize = 200;

fn row(scope: &str, quantity: &str, value: Measured) -> Row {
    Row {
        scope: scope.into(),
        quantity: quantity.into(),
        value,
    }
}

/// Numbers in (-1, 1) that look like noise: the fraction of a multiple of the golden ratio.
fn noise(seed: usize, index: usize) -> f64 {
    let turn = 0.618_033_988_749_894_9 * (1 + index + 7919 * seed) as f64;
    2.0 * turn.fract() - 1.0
}

/// A whole table: the baseline (`seed` 0), or a subject with rounding noise drawn by `seed`; module 40 and its tensor are scaled.
fn table(seed: usize, scale: f64, kind: Option<&str>) -> Vec<Row> {
    let text = |text: &str| Measured::Text(text.into());
    let mut rows = vec![
        row("model", "structure.digest", text("s")),
        row("model", "tying", text("untied")),
    ];
    rows.extend(kind.map(|kind| row("model", "calibration.kind", text(kind))));
    let subject = seed > 0;
    for arm in ["preview", "final"] {
        let vector =
            |value: &dyn Fn(usize) -> f64| Measured::Vector((0..WINDOWS).map(value).collect());
        let loss =
            |i: usize| 2.0 + 0.3 * noise(0, i) + if subject { 1e-4 * noise(seed, i) } else { 0.0 };
        rows.push(row(arm, "window.ids", vector(&|i| i as f64)));
        rows.push(row(
            arm,
            "window.tokens",
            vector(&|i| 100.0 + (i % 9) as f64),
        ));
        rows.push(row(arm, "window.loss", vector(&loss)));
        if subject {
            rows.push(row(
                arm,
                "window.kl",
                vector(&|i| 1e-5 * (1.5 + noise(seed, i))),
            ));
            rows.push(row(
                arm,
                "window.same_top",
                vector(&|i| 0.998 + 0.001 * noise(seed, i)),
            ));
            rows.push(row(
                arm,
                "window.tv",
                vector(&|i| 0.003 + 0.001 * noise(seed, i)),
            ));
        }
    }
    if subject {
        for quantity in ["kl.mean", "kl.median", "kl.p99", "kl.max"] {
            rows.push(row("model", quantity, Measured::Number(2e-5)));
        }
    }
    for index in 0..MODULES {
        let factor = if index == 40 { scale } else { 1.0 };
        let wobble = |salt: usize| {
            if subject {
                1e-4 * noise(seed, 13 * index + salt)
            } else {
                0.0
            }
        };
        let module = format!("model.layers.{}.m{}", index / 4, index % 4);
        let tensor = format!("{module}.weight");
        let (sigma, squares) = (
            factor * 3.0 * (1.0 + wobble(1)),
            factor * factor * 50.0 * (1.0 + wobble(2)),
        );
        let mut add = |scope: &str, quantity: &str, value| rows.push(row(scope, quantity, value));
        add(&tensor, "tensor.shape", Measured::Vector(vec![64.0, 64.0]));
        add(&tensor, "tensor.dtype", text("BF16"));
        add(&tensor, "weight.zeros", Measured::Number(2.0));
        add(&tensor, "weight.frobenius_sq", Measured::Number(squares));
        add(
            &tensor,
            "weight.singular",
            Measured::Vector(vec![sigma, 1.0, 1e-7]),
        );
        add(
            &tensor,
            "weight.row_norms",
            Measured::Vector(vec![0.5, 1.0, 2.0]),
        );
        add(
            &tensor,
            "weight.column_norms",
            Measured::Vector(vec![0.5, 1.0, 2.0]),
        );
        let variance = factor * factor * (1.0 + wobble(3));
        add(
            &module,
            "activation.moments",
            Measured::Vector(vec![0.1, variance]),
        );
        let singular = vec![
            factor * 2.0 * (1.0 + wobble(4)),
            1.0,
            20.0 * (1.0 + wobble(5)),
        ];
        add(&module, "activation.singular", Measured::Vector(singular));
        if subject {
            let moved = (0.002 * (1.0 + 100.0 * wobble(6)) + (factor - 1.0).abs()).powi(2) * 50.0;
            add(&tensor, "weight.shift", Measured::Vector(vec![moved, 50.0]));
            add(
                &tensor,
                "weight.overlap",
                Measured::Number(0.9999 + 0.1 * wobble(7)),
            );
            let log = variance.ln();
            let shift = vec![
                1e-6 * (1.0 + 100.0 * wobble(8)),
                1e-3 + wobble(9).abs() + log.abs(),
                0.01,
                log,
            ];
            add(&module, "activation.shift", Measured::Vector(shift));
        }
    }
    rows
}

fn verdict(guard: &GuardPlugin, policy: &str, baseline: &[Row], subject: &[Row]) -> Verdict {
    match guard.judge(policy, baseline, subject).unwrap().value {
        Step::Verdict(verdict) => verdict,
        Step::Measure(requests) => panic!("{requests:?}"),
    }
}

#[test]
fn shifts_are_judged_against_a_calibrated_null() {
    let Some(registry) = registry() else { return };
    let baseline = table(0, 1.0, Some("repeat"));
    let perturbed: Vec<Vec<Row>> = (1..=5)
        .map(|seed| table(seed, 1.0, Some("perturbation")))
        .collect();
    let mut runs: Vec<&[Row]> = vec![&baseline];
    runs.extend(perturbed.iter().map(Vec::as_slice));
    let (quiet, scaled) = (table(9, 1.0, None), table(9, 1.12, None));
    for (id, expected) in [
        ("weight-shift", Status::Fail),
        ("distribution-shift", Status::Pass),
        ("activation-shift", Status::Warn),
    ] {
        let guard = load(&registry, id).guard().unwrap().clone();
        let policy = guard.calibrate("{}", &runs).unwrap().value;
        let fitted: Value = serde_json::from_str(&policy).unwrap();
        assert_eq!(fitted["calibration"]["runs"], 5, "{id}");

        let same = verdict(&guard, &policy, &baseline, &baseline);
        assert_eq!(
            (same.status, same.findings.len()),
            (Status::Pass, 0),
            "{id}"
        );
        let noise = verdict(&guard, &policy, &baseline, &quiet);
        assert_eq!(
            (noise.status, noise.findings.len()),
            (Status::Pass, 0),
            "{id}: {:?}",
            noise.findings
        );

        let began = Instant::now();
        let first = guard.judge(&policy, &baseline, &scaled).unwrap();
        println!(
            "{id}: {:.2} ms, {:?} fuel",
            1e3 * began.elapsed().as_secs_f64(),
            first.stats.fuel
        );
        let again = guard.judge(&policy, &baseline, &scaled).unwrap();
        assert_eq!(first.value, again.value, "{id}");
        assert_eq!(first.stats.fuel, again.stats.fuel, "{id}");
        let Step::Verdict(found) = first.value else {
            panic!("{id}")
        };
        assert_eq!(found.status, expected, "{id}: {:?}", found.findings);
        let details: Value = serde_json::from_str(&found.details).unwrap();
        assert_eq!(details["calibrated"], true, "{id}");
        assert_eq!(
            details["false_alarm_rate"]["nominal_false_discovery_rate"], 0.05,
            "{id}"
        );

        let error = guard
            .judge(r#"{"unknown": 1}"#, &baseline, &scaled)
            .unwrap_err()
            .to_string();
        assert!(error.contains("unknown field `unknown`"), "{id}: {error}");
        let uncalibrated = verdict(&guard, "{}", &baseline, &scaled);
        let details: Value = serde_json::from_str(&uncalibrated.details).unwrap();
        assert_eq!(details["calibrated"], false, "{id}");
    }
}
