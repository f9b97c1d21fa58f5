//! The parity guards as components in the sandbox, against the reference's vectors.
//!
//! Tables hold what the host would measure; what the components expose of their reckoning stands in their details. Vectors of
//! inner functions whose inputs no table can state (a gate with a given interval) are held by the plugins' own tests.

use std::collections::BTreeMap;

use packhost_plugin::{GuardPlugin, Request, Row, Status, Step, Value as Measured, Verdict};
use serde_json::{Value as Json, json};

use crate::components::{load, registry, root};

mod rmt;
mod spectral;
mod variance;

#[path = "../../../../../plugins/tests-support/toy.rs"]
mod toy;

fn vectors(name: &str) -> Json {
    let path = root().join(format!("tests/vectors/guards/{name}.json"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The vectors of one function, of which there is at least one.
fn of<'a>(file: &'a Json, function: &str) -> Vec<&'a Json> {
    let all = file["vectors"].as_array().unwrap().iter();
    let found: Vec<&Json> = all.filter(|vector| vector["fn"] == function).collect();
    assert!(!found.is_empty(), "no vectors of {function}");
    found
}

/// The component, or none where components are not built.
fn guard(id: &str) -> Option<GuardPlugin> {
    let registry = registry()?;
    Some(load(&registry, id).guard().unwrap().clone())
}

fn row(scope: &str, quantity: &str, value: Measured) -> Row {
    Row {
        scope: scope.to_owned(),
        quantity: quantity.to_owned(),
        value,
    }
}

fn step(guard: &GuardPlugin, policy: &Json, baseline: &[Row], subject: &[Row]) -> Step {
    match guard.judge(&policy.to_string(), baseline, subject) {
        Ok(called) => called.value,
        Err(error) => panic!("{error}"),
    }
}

fn judge(guard: &GuardPlugin, policy: &Json, baseline: &[Row], subject: &[Row]) -> (Verdict, Json) {
    match step(guard, policy, baseline, subject) {
        Step::Verdict(verdict) => {
            let details = serde_json::from_str(&verdict.details).unwrap();
            (verdict, details)
        }
        Step::Measure(more) => panic!("asked for {more:?}"),
    }
}

fn refusal(guard: &GuardPlugin, policy: &Json, baseline: &[Row], subject: &[Row]) -> String {
    match guard.judge(&policy.to_string(), baseline, subject) {
        Ok(called) => panic!("answered {:?}", called.value),
        Err(error) => error.to_string(),
    }
}

/// What a component makes of its policy on these runs.
fn calibrate(guard: &GuardPlugin, policy: &Json, runs: &[Vec<Row>]) -> Json {
    let runs: Vec<&[Row]> = runs.iter().map(Vec::as_slice).collect();
    let fitted = guard.calibrate(&policy.to_string(), &runs);
    serde_json::from_str(&fitted.unwrap_or_else(|error| panic!("{error}")).value).unwrap()
}

/// A calibration run that is the record of an earlier verdict.
fn recorded(guard: &str, record: &Json) -> Vec<Row> {
    let quantity = format!("record.{guard}");
    vec![row("model", &quantity, Measured::Text(record.to_string()))]
}

fn near(what: &str, got: &Json, expected: &Json, tolerance: f64) {
    let number = |value: &Json| value.as_f64().unwrap_or_else(|| panic!("{what}: {value}"));
    let (got, expected) = (number(got), number(expected));
    assert!(
        (got - expected).abs() <= tolerance,
        "{what}: {got} for {expected}"
    );
}

fn numbers(value: &Json) -> Vec<f64> {
    let items = value.as_array().unwrap().iter();
    items.map(|item| item.as_f64().unwrap()).collect()
}

fn sigmas<'a>(modules: impl IntoIterator<Item = (&'a str, f64)>) -> Vec<Row> {
    let rows = modules.into_iter().map(|(module, sigma)| {
        let tensor = format!("{module}.weight");
        row(&tensor, "weight.sigma.ones.4", Measured::Number(sigma))
    });
    rows.collect()
}

/// Blocks with these mean squares per window, and windows of loss 3 in both arms.
fn blocks(mean_squares: &[Vec<f64>]) -> Vec<Row> {
    let mut rows: Vec<Row> = mean_squares
        .iter()
        .enumerate()
        .map(|(block, squares)| {
            let module = format!("model.layers.{block}.mlp.down_proj");
            row(
                &module,
                "activation.mean_square.first20",
                Measured::Vector(squares.clone()),
            )
        })
        .collect();
    for arm in ["preview", "final"] {
        rows.push(row(arm, "window.loss", Measured::Vector(vec![3.0; 16])));
        rows.push(row(arm, "window.tokens", Measured::Vector(vec![10.0; 16])));
    }
    rows
}

#[test]
fn bad_input_is_refused_through_the_sandbox() {
    for (id, quantity) in [
        ("spectral", "weight.sigma.ones.4"),
        ("rmt", "activation.edge_risk.even8"),
        ("variance", "activation.mean_square.first20"),
    ] {
        let Some(guard) = guard(id) else {
            return;
        };
        let unknown = refusal(&guard, &json!({"no_such_key": 1}), &[], &[]);
        assert!(unknown.contains("unknown field `no_such_key`"), "{unknown}");
        let wrong = refusal(&guard, &json!({"reference": "mother"}), &[], &[]);
        assert!(wrong.contains("unknown variant `mother`"), "{wrong}");
        let missing = refusal(&guard, &json!({}), &[], &[]);
        assert!(
            missing.contains(&format!("no `{quantity}` of any module")),
            "{missing}"
        );
        let policy = json!({"derivation": {"runs": 5}}).to_string();
        let few = guard
            .calibrate(&policy, &[&[], &[]])
            .unwrap_err()
            .to_string();
        assert!(
            few.contains("5 calibration runs were asked for and 2 are there"),
            "{few}"
        );
    }
    let Some(spectral) = guard("spectral") else {
        return;
    };
    let policy = json!({"degeneracy": {"enabled": false}});
    let good = sigmas([("lm_head", 1.0)]);
    let nan = refusal(&spectral, &policy, &good, &sigmas([("lm_head", f64::NAN)]));
    assert!(nan.contains("`lm_head.weight` is NaN"), "{nan}");
}

/// What follows the measurements: all three on a model of about a hundred modules, with time to spare for a slow machine.
#[test]
fn judging_takes_no_time() {
    let (Some(spectral), Some(rmt), Some(variance)) =
        (guard("spectral"), guard("rmt"), guard("variance"))
    else {
        return;
    };
    let parts = [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ];
    let mut table = blocks(&vec![vec![0.5; 20]; 16]);
    for set in ["even8", "even64"] {
        let windows = if set == "even8" { 8 } else { 64 };
        table.push(row(
            "model",
            &format!("activation.tokens.{set}"),
            Measured::Vector(vec![100.0; windows]),
        ));
    }
    for (layer, part) in (0..16).flat_map(|layer| parts.map(|part| (layer, part))) {
        let module = format!("model.layers.{layer}.{part}");
        let tensor = format!("{module}.weight");
        table.push(row(
            &tensor,
            "weight.sigma.ones.4",
            Measured::Number(2.0 + 0.01 * f64::from(layer)),
        ));
        table.push(row(&tensor, "weight.frobenius_sq", Measured::Number(40.0)));
        for norms in ["weight.row_norms", "weight.column_norms"] {
            table.push(row(&tensor, norms, Measured::Vector(vec![1.0, 2.0, 3.0])));
        }
        for (set, windows) in [("even8", 8), ("even64", 64)] {
            table.push(row(
                &module,
                &format!("activation.edge_risk.{set}"),
                Measured::Vector(vec![3.0; windows]),
            ));
        }
    }
    let all = || {
        judge(&spectral, &json!({}), &table, &table);
        judge(&rmt, &json!({"probe": true}), &table, &table);
        judge(&variance, &json!({}), &table, &table);
    };
    all();
    let least = (0..5)
        .map(|_| {
            let start = std::time::Instant::now();
            all();
            start.elapsed()
        })
        .min()
        .unwrap();
    println!("all guards: {least:?}");
    assert!(least.as_millis() < 50, "all guards took {least:?}");
}
