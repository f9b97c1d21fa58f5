//! The reference cases, bit for bit where no normals are involved, row choices, and what is refused.
#![allow(clippy::unwrap_used, reason = "tests")]

use packhost_sdk::bench::{self, Checkpoint, Tolerance};
use packhost_sdk::json::{Value, json};

use super::*;

#[path = "../../../tests-support/reference.rs"]
mod reference;

/// Normals may be off by 2 units in the last place, which for noise of a thousandth is 2^-32. In bf16 that is one unit of the
/// result at most; in f32 a small sum of a larger element and its noise has more units in the same error.
#[test]
fn reference_cases_with_normals() {
    let names = [
        "rmt_norm_noise",
        "rmt_norm_noise_strong",
        "extra_rmt_defaults",
        "extra_rmt_norm_noise_mode",
    ];
    reference::compare::<Rmt>(
        "bf16",
        &names,
        Tolerance {
            ulps: 1,
            distance: 0.0,
        },
    );
    reference::compare::<Rmt>(
        "f32",
        &names,
        Tolerance {
            ulps: 2,
            distance: 2.0_f32.powi(-32),
        },
    );
}

#[test]
fn reference_cases_without_normals() {
    for dtype in ["f32", "bf16"] {
        reference::compare::<Rmt>(dtype, &["extra_rmt_row_scale_mode"], bench::EXACT);
    }
}

fn refuse(error_type: &str, env: Value, checkpoint: &Checkpoint) -> String {
    let params = json!({ "error_type": error_type, "env": env }).to_string();
    bench::inject::<Rmt>(&params, checkpoint)
        .unwrap_err()
        .to_string()
}

#[test]
fn row_choices() {
    let rows: Vec<f32> = [1.0, 9.0, 3.0, 9.0, 5.0]
        .iter()
        .flat_map(|&value: &f32| [value, 0.0])
        .collect();
    let tensor = bench::tensor("w", DType::BF16, &[5, 2], &rows);
    let choose = |selection: &str| rows::choose(&tensor, "w", selection, 2, 42).unwrap();
    assert_eq!(choose("first"), [0, 1]);
    assert_eq!(choose("tail"), [3, 4]);
    assert_eq!(choose("top_norm"), [1, 3]);
    assert_eq!(choose("no such choice"), [0, 1]);
    let block = choose("random_block");
    assert_eq!(block[1], block[0] + 1);
    assert_eq!(rows::count(5, 0.5, 100, 2), 2, "half to even");
    assert_eq!(rows::count(7, 0.5, 100, 2), 4, "half to even");
    assert_eq!(rows::count(100, 0.5, 10, 2), 10);
    assert_eq!(rows::count(1, 0.5, 10, 2), 1, "no more than there are");
}

#[test]
fn non_finite_rows_are_left_alone() {
    let weight = bench::tensor(
        "model.layers.0.mlp.up_proj.weight",
        DType::F32,
        &[2, 1],
        &[f32::NAN, 1.0],
    );
    let failure = refuse(
        "rmt_norm_noise",
        json!({ "INVARLOCK_RMT_ANISO_TARGET_FAMILY": "ffn" }),
        &Checkpoint::of(vec![weight]),
    );
    assert!(
        failure.contains("non-finite, nothing was injected"),
        "{failure}"
    );
}

#[test]
fn wrong_settings_are_refused() {
    let model = Checkpoint::of(vec![]);
    let wrong = |key: &str, value: Value| {
        refuse(
            "rmt_norm_noise_l31_ffn_up_b030",
            json!({ key: value }),
            &model,
        )
    };
    assert!(
        wrong("INVARLOCK_RMT_PROBE_MODE", json!("isotropy"))
            .contains("`isotropy`, use anisotropy, row_scale or norm_noise")
    );
    assert!(wrong("INVARLOCK_RMT_BLEND", json!(1)).contains("unknown field `INVARLOCK_RMT_BLEND`"));
    assert!(
        wrong("INVARLOCK_RMT_ANISO_MAX_ROWS", json!(-1)).contains("as a whole number from 0 on")
    );
    assert!(wrong("INVARLOCK_RMT_ANISO_SEED", json!(1)).contains("nothing would be injected"));
}
