//! Every reference vector, bit for bit: all bf16 patterns, every f32 boundary, ordinary weights.
#![allow(clippy::unwrap_used, reason = "tests")]

use packhost_sdk::bench::{self, Checkpoint};
use packhost_sdk::json::json;

use super::*;

const VECTORS: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../../tests/vectors/edits/fp8.safetensors"
);

fn apply(format: &str, tensor: &Tensor) -> Edited {
    bench::apply::<Fp8>(&json!({ "format": format }).to_string(), tensor).unwrap()
}

#[test]
fn every_bf16_pattern() {
    let vectors = Checkpoint::open(VECTORS).unwrap();
    let patterns: Vec<f32> = (0..=u16::MAX)
        .map(|bits| f32::from_bits(u32::from(bits) << 16))
        .collect();
    let all = bench::tensor("all", DType::BF16, &[65536], &patterns);
    for (format, name) in [("e4m3fn", "e4m3"), ("e5m2fnuz", "e5m2")] {
        let expected = vectors.tensor(&format!("bf16_all.{name}.out")).unwrap();
        assert_eq!(
            bench::difference(&apply(format, &all).tensor, expected, bench::EXACT),
            None,
            "{format}"
        );
    }
}

#[test]
fn f32_edges_and_weights() {
    let vectors = Checkpoint::open(VECTORS).unwrap();
    let mut cases = vec![];
    for name in ["e4m3", "e5m2"] {
        cases.push((
            name,
            "in.f32_edges".to_owned(),
            format!("f32_edges.{name}.out"),
        ));
        for dtype in ["f32", "bf16"] {
            cases.push((
                name,
                format!("in.weights_{dtype}"),
                format!("weights_{dtype}.{name}.out"),
            ));
        }
    }
    for dtype in ["f32", "bf16"] {
        cases.push((
            "f16",
            format!("in.weights_{dtype}"),
            format!("weights_{dtype}.fallback_f16.out"),
        ));
    }
    for (format, input, output) in cases {
        let edited = apply(format, vectors.tensor(&input).unwrap());
        assert_eq!(
            bench::difference(
                &edited.tensor,
                vectors.tensor(&output).unwrap(),
                bench::EXACT
            ),
            None,
            "{output}"
        );
    }
}

#[test]
fn relative_error_and_metadata() {
    let weight = bench::tensor(
        "model.layers.0.mlp.up_proj.weight",
        DType::F32,
        &[1, 4],
        &[1.0, 1.1, -3.0, 0.0],
    );
    let params = r#"{"format": "e5m2", "scope": "ffn"}"#;
    let run = bench::edit::<Fp8>(params, &Checkpoint::of(vec![weight])).unwrap();
    // 1.1 becomes 1.0, the others stay: 0.025 / 1.275.
    let error = run.summary["avg_relative_error"].as_f64().unwrap();
    assert!((error - 0.025 / 1.275).abs() < 1e-7, "{error}");
    assert_eq!(run.summary["torch_fp8_dtype_available"], json!(true));
    assert_eq!(run.summary["quantized_tensors"], json!(1));
    assert_eq!(run.summary["parameters"], json!({ "format": "e5m2" }));
    let fallback = bench::edit::<Fp8>(
        r#"{"format": "f16", "scope": "ffn"}"#,
        &Checkpoint::of(vec![bench::tensor(
            "model.layers.0.mlp.up_proj.weight",
            DType::F32,
            &[1, 1],
            &[1.0],
        )]),
    );
    assert_eq!(
        fallback.unwrap().summary["torch_fp8_dtype_available"],
        json!(false)
    );
}

#[test]
fn unknown_formats_are_refused() {
    let model = Checkpoint::of(vec![]).model();
    for format in ["", "e6m1", "E5M2", "fp8"] {
        let params = json!({ "format": format, "scope": "ffn" }).to_string();
        let failure = bench::plan::<Fp8>(&params, &model).unwrap_err().to_string();
        assert!(
            failure.starts_with(&format!(
                "invalid parameters: `format`: unknown variant `{format}`, expected one of `e4m3`"
            )),
            "{failure}"
        );
    }
}
