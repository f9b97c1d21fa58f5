//! The reference cases bit for bit, and models without a target.
#![allow(clippy::unwrap_used, reason = "tests")]

use packhost_sdk::DType;
use packhost_sdk::bench::{self, Checkpoint, Tolerance};
use packhost_sdk::json::json;

use super::*;

#[path = "../../../tests-support/reference.rs"]
mod reference;

#[test]
fn reference_cases() {
    for dtype in ["f32", "bf16"] {
        reference::compare::<Collapse>(
            dtype,
            &["extreme_quant", "scale_explosion", "norm_collapse"],
            bench::EXACT,
        );
    }
}

/// The vectors' norms are sums in f32, whose order is that of one vector width of one library; ours are sums in f64. In bf16
/// the rounding hides the difference; in f32 a last place may remain.
#[test]
fn reference_rank_collapse() {
    reference::compare::<Collapse>("bf16", &["rank_collapse"], bench::EXACT);
    reference::compare::<Collapse>(
        "f32",
        &["rank_collapse"],
        Tolerance {
            ulps: 2,
            distance: 0.0,
        },
    );
}

#[test]
fn other_weights_where_there_is_no_attention() {
    let weight = |name: &str| bench::tensor(name, DType::F32, &[2, 2], &[1.0, 2.0, 3.0, 4.0]);
    let model = Checkpoint::of(vec![weight("net.0.weight"), weight("net.1.bias")]);
    let run = |error_type: &str| {
        bench::inject::<Collapse>(&json!({ "error_type": error_type }).to_string(), &model).unwrap()
    };
    assert_eq!(
        run("norm_collapse").record["targets"],
        json!(["net.0.weight"])
    );
    assert_eq!(
        run("scale_explosion").record["target_param"],
        json!("net.0.weight")
    );
    let collapsed = bench::values(
        run("rank_collapse").changed["net.0.weight"]
            .as_ref()
            .unwrap(),
    );
    // [1, 3] x [1, 2] scaled to the norm of [1, 2, 3, 4].
    let ratio = 30.0_f32.sqrt() / (50.0_f32.sqrt() + 1e-12);
    assert_eq!(collapsed, [ratio, 2.0 * ratio, 3.0 * ratio, 6.0 * ratio]);
}

#[test]
fn nothing_to_damage_is_a_failure() {
    let bare = Checkpoint::of(vec![bench::tensor(
        "model.norm.weight",
        DType::F32,
        &[2],
        &[1.0, 1.0],
    )]);
    for error_type in [
        "extreme_quant",
        "scale_explosion",
        "rank_collapse",
        "norm_collapse",
    ] {
        let failure =
            bench::inject::<Collapse>(&json!({ "error_type": error_type }).to_string(), &bare)
                .unwrap_err();
        assert!(
            failure.message().contains("nothing would be injected"),
            "{failure}"
        );
    }
}
