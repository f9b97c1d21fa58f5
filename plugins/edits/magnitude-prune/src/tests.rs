//! Every reference vector, bit for bit, with its zero counts.
#![allow(clippy::unwrap_used, reason = "tests")]

use packhost_sdk::DType;
use packhost_sdk::bench::{self, Checkpoint};
use packhost_sdk::json::{Value, from_str, json};

use super::*;

const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../tests/vectors/edits");

#[test]
fn all_reference_vectors() {
    let text = std::fs::read_to_string(format!("{VECTORS}/prune.json")).unwrap();
    let cases = from_str::<Value>(&text).unwrap()["cases"]
        .as_array()
        .unwrap()
        .clone();
    assert_eq!(cases.len(), 126);
    for case in cases {
        let dtype = case["dtype"].as_str().unwrap();
        let vectors = Checkpoint::open(format!("{VECTORS}/prune_{dtype}.safetensors")).unwrap();
        let task = json!({ "sparsity": case["sparsity"] }).to_string();
        let input = vectors.tensor(case["input"].as_str().unwrap()).unwrap();
        let edited = bench::apply::<MagnitudePrune>(&task, input).unwrap();
        let expected = vectors.tensor(case["output"].as_str().unwrap()).unwrap();
        assert_eq!(
            bench::difference(&edited.tensor, expected, bench::EXACT),
            None,
            "{case}"
        );
        assert_eq!(
            edited.facts[0],
            (ZEROS.to_owned(), case["zeros_out"].as_f64().unwrap()),
            "{case}"
        );
    }
}

#[test]
fn actual_sparsity_is_over_all_elements() {
    let weight = |name: &str, values: &[f32]| {
        bench::tensor(name, DType::F32, &[1, values.len() as u64], values)
    };
    let checkpoint = Checkpoint::of(vec![
        weight("model.layers.0.mlp.up_proj.weight", &[1.0, 2.0, 3.0, 4.0]),
        weight("model.layers.0.mlp.down_proj.weight", &[1.0, 1.0]),
    ]);
    let run = bench::edit::<MagnitudePrune>(r#"{"sparsity": 0.75, "scope": "all"}"#, &checkpoint)
        .unwrap();
    // k is 3 and 1: the third-smallest survives, and so do ties.
    assert_eq!(
        bench::values(&run.tensors["model.layers.0.mlp.up_proj.weight"]),
        [0.0, 0.0, 3.0, 4.0]
    );
    assert_eq!(run.summary["actual_sparsity"], json!(2.0 / 6.0));
    assert_eq!(
        run.summary["parameters"],
        json!({ "target_sparsity": 0.75 })
    );
    assert_eq!(run.summary["pruned_params"], json!(2));
}

#[test]
fn sparsity_out_of_range_is_refused() {
    let model = Checkpoint::of(vec![]).model();
    let refuse = |params: &str| {
        bench::plan::<MagnitudePrune>(params, &model)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        refuse(r#"{"sparsity": 7, "scope": "ffn"}"#),
        "invalid parameters: `sparsity` is 7, allowed are 0 to 1"
    );
    assert_eq!(
        refuse(r#"{"sparsity": -0.5, "scope": "ffn"}"#),
        "invalid parameters: `sparsity` is -0.5, allowed are 0 to 1"
    );
}
