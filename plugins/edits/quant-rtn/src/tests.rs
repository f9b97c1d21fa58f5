//! Every reference vector, bit for bit, and what is refused.
#![allow(clippy::unwrap_used, reason = "tests")]

use packhost_sdk::bench::{self, Checkpoint};
use packhost_sdk::json::{Value, from_str, json};
use packhost_sdk::{DType, TargetFacts};

use super::*;

const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../tests/vectors/edits");

fn cases() -> Vec<Value> {
    let text = std::fs::read_to_string(format!("{VECTORS}/quant_rtn.json")).unwrap();
    from_str::<Value>(&text).unwrap()["cases"]
        .as_array()
        .unwrap()
        .clone()
}

fn task(bits: &Value, group_size: &Value) -> String {
    json!({ "bits": bits, "group_size": group_size }).to_string()
}

#[test]
fn all_reference_vectors() {
    let mut compared = 0;
    for dtype in ["f32", "bf16"] {
        let vectors = Checkpoint::open(format!("{VECTORS}/quant_rtn_{dtype}.safetensors")).unwrap();
        for case in cases() {
            let input = vectors.tensor(case["input"].as_str().unwrap()).unwrap();
            let expected = vectors.tensor(case["output"].as_str().unwrap()).unwrap();
            // The reference groups the flattened rows of a tensor with three axes; `cube_as_matrix` has those bits.
            let (rows, columns) = input.info().rows_columns();
            let flat = [rows, columns];
            let edited = bench::apply::<QuantRtn>(
                &task(&case["bits"], &case["group_size"]),
                &input.reshape(&flat).unwrap(),
            );
            let difference = bench::difference(
                &edited.unwrap().tensor,
                &expected.reshape(&flat).unwrap(),
                bench::EXACT,
            );
            assert_eq!(difference, None, "{dtype} {case}");
            compared += 1;
        }
    }
    assert_eq!(compared, 256);
}

/// Decision of spec 4.1: groups stay inside an expert's own rows, so that a fused expert equals a stored one. The vectors of
/// `cube` group over the flattened expert instead, which differs where a row is no multiple of the group.
#[test]
fn fused_experts_are_grouped_by_their_own_rows() {
    for dtype in ["f32", "bf16"] {
        let vectors = Checkpoint::open(format!("{VECTORS}/quant_rtn_{dtype}.safetensors")).unwrap();
        let cube = vectors.tensor("in.cube").unwrap();
        assert_eq!(cube.shape(), [2, 3, 40]);
        for group_size in [32, 64, -1] {
            let task = task(&json!(4), &json!(group_size));
            let fused = bench::apply::<QuantRtn>(&task, cube).unwrap().tensor;
            let alone = bench::apply::<QuantRtn>(&task, &cube.reshape(&[6, 40]).unwrap())
                .unwrap()
                .tensor;
            assert_eq!(
                bench::difference(&fused, &alone.reshape(&[2, 3, 40]).unwrap(), bench::EXACT),
                None
            );
            let name = if group_size < 0 {
                "out.cube.b4.gall".into()
            } else {
                format!("out.cube.b4.g{group_size}")
            };
            let reference = vectors.tensor(&name).unwrap();
            assert!(
                bench::difference(&fused, reference, bench::EXACT).is_some(),
                "the Decision should differ here"
            );
        }
    }
}

fn model() -> Checkpoint {
    let weight = |name: &str| {
        bench::tensor(
            name,
            DType::BF16,
            &[2, 4],
            &[1.0, -2.0, 0.3, 0.0, 7.0, 0.5, -1.5, 2.5],
        )
    };
    Checkpoint::of(vec![
        weight("model.layers.0.self_attn.q_proj.weight"),
        weight("model.layers.0.mlp.up_proj.weight"),
        weight("model.layers.1.mlp.up_proj.weight"),
    ])
}

#[test]
fn plan_and_metadata() {
    let run = bench::edit::<QuantRtn>(
        r#"{"bits": 4, "group_size": 128, "scope": "ffn@layer=1"}"#,
        &model(),
    )
    .unwrap();
    assert_eq!(
        run.tensors.keys().collect::<Vec<_>>(),
        ["model.layers.1.mlp.up_proj.weight"]
    );
    assert_eq!(
        run.summary,
        json!({
            "edit_type": "quant_rtn",
            "scope": "ffn@layer=1",
            "parameters": { "bits": 4, "group_size": 128 },
            "storage_format": "float_dequantized",
            "actual_storage_format": "float_dequantized",
            "quantization_mode": "rtn_dequantized_external_subject_simulation",
            "quantized_params": 1,
        })
    );
    assert_eq!(
        run.facts,
        [TargetFacts {
            tensor: "model.layers.1.mlp.up_proj.weight".into(),
            facts: vec![]
        }]
    );
}

#[test]
fn refusals_name_field_value_and_range() {
    let refuse = |params: &str| {
        bench::plan::<QuantRtn>(params, &model().model())
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        refuse(r#"{"bits": 0, "group_size": 32, "scope": "ffn"}"#),
        "invalid parameters: `bits` is 0, allowed are 1 to 16"
    );
    assert_eq!(
        refuse(r#"{"bits": 17, "group_size": 32, "scope": "ffn"}"#),
        "invalid parameters: `bits` is 17, allowed are 1 to 16"
    );
    assert!(
        refuse(r#"{"bits": 4, "group_size": 32, "scope": "fnn"}"#)
            .contains("there is no scope `fnn`")
    );
    assert!(
        refuse(r#"{"bits": 4, "group_size": 32, "scope": "ffn@layer=31"}"#)
            .contains("selects no tensor")
    );
    assert!(
        refuse(r#"{"bits": 4, "group_size": 32, "scope": "ffn", "zero_point": 1}"#)
            .contains("unknown field `zero_point`")
    );
}

#[test]
fn schema_holds_the_range() {
    let schema = bench::schema::<Params>();
    assert_eq!(schema["properties"]["bits"]["minimum"], json!(1));
    assert_eq!(schema["properties"]["bits"]["maximum"], json!(16));
    assert_eq!(schema["additionalProperties"], json!(false));
}
