//! The reference's acceptance rule, with the bound 1.02 that a better method than its own should keep.
#![allow(clippy::unwrap_used, reason = "tests")]

use packhost_sdk::bench::{self, Checkpoint};
use packhost_sdk::json::{Value, from_str, json};

use super::*;

const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../tests/vectors/edits");

fn task(rank: u64) -> String {
    json!({ "rank": rank, "seed": 7 }).to_string()
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2))
        .sum::<f64>()
        .sqrt()
}

#[test]
fn acceptance_rule_of_the_vectors() {
    let text = std::fs::read_to_string(format!("{VECTORS}/lowrank.json")).unwrap();
    let cases = from_str::<Value>(&text).unwrap()["cases"]
        .as_array()
        .unwrap()
        .clone();
    for case in &cases {
        let dtype = case["dtype"].as_str().unwrap();
        let vectors = Checkpoint::open(format!("{VECTORS}/lowrank_{dtype}.safetensors")).unwrap();
        let input = vectors.tensor(case["input"].as_str().unwrap()).unwrap();
        // The reference flattens a tensor with three axes; here that is a matrix like any other.
        let (rows, columns) = input.info().rows_columns();
        let matrix = input.reshape(&[rows, columns]).unwrap();
        let edited =
            bench::apply::<LowrankSvd>(&task(case["rank"].as_u64().unwrap()), &matrix).unwrap();
        let residual = distance(&bench::values(&matrix), &bench::values(&edited.tensor));
        let number = |key: &str| case[key].as_f64().unwrap();
        let slack = if dtype == "f32" { 1e-5 } else { 1.0 / 256.0 } * number("input_norm");
        assert!(
            residual <= 1.02 * number("optimal_residual") + slack,
            "{case}: {residual}"
        );
        // What an optimal approximation keeps, by Pythagoras; norms in bf16 have three digits.
        let (norm, optimal) = (number("input_norm"), number("optimal_residual"));
        let kept = if norm > 0.0 {
            (norm * norm - optimal * optimal).max(0.0).sqrt() / norm
        } else {
            1.0
        };
        let energy = edited.facts[0].1;
        assert!(
            (energy - kept).abs() <= 0.006,
            "{case}: {energy} instead of {kept}"
        );
    }
    assert_eq!(cases.len(), 60);
}

/// Decision of spec 4.4: every expert's own matrix is approximated. The reference flattens a fused tensor to `[experts, rest]`,
/// whose rank is at most the number of experts.
#[test]
fn fused_experts_are_approximated_one_by_one() {
    let vectors = Checkpoint::open(format!("{VECTORS}/lowrank_f32.safetensors")).unwrap();
    let cube = vectors.tensor("in.cube").unwrap();
    assert_eq!(cube.shape(), [4, 6, 5]);
    let fused = bench::apply::<LowrankSvd>(&task(2), cube).unwrap().tensor;
    for expert in 0..4 {
        let values = cube.read(expert * 30, 30).unwrap();
        let alone = bench::tensor("alone", DType::F32, &[6, 5], &values);
        let expected = bench::apply::<LowrankSvd>(&task(2), &alone).unwrap().tensor;
        assert_eq!(
            fused.read(expert * 30, 30).unwrap(),
            bench::values(&expected)
        );
        assert!(
            distance(&values, &bench::values(&expected)) > 0.1,
            "rank 2 of 5 loses something"
        );
    }
}

#[test]
fn plan_and_metadata() {
    let weight = |name: &str| bench::tensor(name, DType::F32, &[2, 2], &[3.0, 0.0, 0.0, 4.0]);
    let checkpoint = Checkpoint::of(vec![
        weight("model.layers.0.mlp.up_proj.weight"),
        weight("model.layers.1.mlp.up_proj.weight"),
    ]);
    let params = r#"{"rank": 1, "scope": "ffn@layer=1", "seed": 5}"#;
    let run = bench::edit::<LowrankSvd>(params, &checkpoint).unwrap();
    assert_eq!(run.tensors.len(), 1);
    assert_eq!(
        run.summary["avg_energy_retained"],
        json!(f64::from(4.0_f32 / 5.0))
    );
    assert_eq!(run.summary["base_scope"], json!("ffn"));
    assert_eq!(run.summary["layer"], json!(1));
    assert_eq!(run.summary["layer_limit"], Value::Null);
    assert_eq!(run.summary["modified_matrices"], json!(1));
    // The start depends on seed and name.
    assert_ne!(seed_of(0, "a"), seed_of(0, "b"));
    assert_ne!(seed_of(0, "a"), seed_of(1, "a"));
}

#[test]
fn rank_zero_is_refused() {
    let failure = bench::plan::<LowrankSvd>(
        r#"{"rank": 0, "scope": "ffn"}"#,
        &Checkpoint::of(vec![]).model(),
    );
    assert_eq!(
        failure.unwrap_err().to_string(),
        "invalid parameters: `rank` is 0, it must be at least 1"
    );
}
