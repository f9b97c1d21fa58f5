//! The reference cases bit for bit, and what is refused.
#![allow(clippy::unwrap_used, reason = "tests")]

use packhost_sdk::bench::{self, Checkpoint};
use packhost_sdk::json::{Value, json};

use super::*;

#[path = "../../../tests-support/reference.rs"]
mod reference;

#[test]
fn reference_cases() {
    for dtype in ["f32", "bf16"] {
        reference::compare::<Variance>(
            dtype,
            &["ve_mlp_scale_skew", "ve_mlp_scale_skew_up"],
            bench::EXACT,
        );
    }
}

fn refuse(error_type: &str, env: Value, checkpoint: &Checkpoint) -> String {
    let params = json!({ "error_type": error_type, "env": env }).to_string();
    bench::inject::<Variance>(&params, checkpoint)
        .unwrap_err()
        .to_string()
}

#[test]
fn experts_and_cut() {
    let weight = |name: &str| bench::tensor(name, packhost_sdk::DType::F32, &[1, 2], &[1.0, 2.0]);
    let model = Checkpoint::of(vec![
        weight("model.layers.0.block_sparse_moe.experts.0.w1.weight"),
        weight("model.layers.0.block_sparse_moe.experts.0.w2.weight"),
        weight("model.layers.0.block_sparse_moe.experts.1.w2.weight"),
    ]);
    let params = json!({ "error_type": "ve_mlp_scale_skew", "env": { "INVARLOCK_VE_MAX_PARAMS": 0, "INVARLOCK_VE_SCALE_FACTOR": 2 } });
    let run = bench::inject::<Variance>(&params.to_string(), &model).unwrap();
    assert_eq!(run.changed.len(), 2, "0 means all");
    let scaled = run.changed["model.layers.0.block_sparse_moe.experts.1.w2.weight"]
        .as_ref()
        .unwrap();
    assert_eq!(bench::values(scaled), [2.0, 4.0]);
    let without = refuse(
        "ve_mlp_scale_skew",
        json!({ "INVARLOCK_VE_INCLUDE_EXPERTS": "0" }),
        &model,
    );
    assert!(without.contains("nothing would be injected"), "{without}");
}

#[test]
fn wrong_settings_are_refused() {
    let start = reference::start("bf16");
    let wrong =
        |key: &str, value: Value| refuse("ve_mlp_scale_skew", json!({ key: value }), &start);
    assert!(
        wrong("INVARLOCK_VE_SCALE_FACTOR", json!("-1"))
            .contains("is -1, it must be finite, above 0 and not 1")
    );
    assert!(
        wrong("INVARLOCK_VE_TARGET_FAMILY", json!("attn")).contains("nothing would be injected")
    );
    assert!(wrong("INVARLOCK_VE_SEED", json!("-3")).contains("as a whole number from 0 on"));
}
