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
        reference::compare::<Spectral>(
            dtype,
            &[
                "spectral_moderate_scale",
                "spectral_moderate_scale_mlp",
                "guard_value_spectral_last_layer",
                "extra_spectral_defaults",
                "extra_spectral_pair_inverse",
            ],
            bench::EXACT,
        );
    }
}

fn refuse(error_type: &str, env: Value, checkpoint: &Checkpoint) -> String {
    let params = json!({ "error_type": error_type, "env": env }).to_string();
    bench::inject::<Spectral>(&params, checkpoint)
        .unwrap_err()
        .to_string()
}

/// The reference records `injected: false` and goes on with an unchanged model; here that is a failure.
#[test]
fn a_layer_out_of_range_is_a_failure() {
    let about = reference::about();
    let case = &about["cases"]["guard_value_layer_out_of_range"];
    assert_eq!(case["metadata"]["injected"], json!(false));
    let start = reference::start("bf16");
    let failure = refuse(
        case["error_type"].as_str().unwrap(),
        case["env"].clone(),
        &start,
    );
    assert!(failure.contains("nothing would be injected"), "{failure}");
}

#[test]
fn wrong_settings_are_refused() {
    let model = Checkpoint::of(vec![]);
    let wrong =
        |key: &str, value: Value| refuse("spectral_moderate_scale", json!({ key: value }), &model);
    assert!(
        wrong("INVARLOCK_SPECTRAL_SCALE_FACTOR", json!(0))
            .contains("is 0, it must be finite and neither 0 nor 1")
    );
    let unreadable = wrong("INVARLOCK_SPECTRAL_SCALE_FACTOR", json!("much"));
    assert!(
        unreadable.contains("`INVARLOCK_SPECTRAL_SCALE_FACTOR`: cannot read \"much\" as a number"),
        "{unreadable}"
    );
    let family = wrong("INVARLOCK_VE_SCALE_FACTOR", json!("0.9"));
    assert!(
        family.contains("unknown field `INVARLOCK_VE_SCALE_FACTOR`"),
        "{family}"
    );
    let layers = wrong("INVARLOCK_SPECTRAL_TARGET_LAYERS", json!("0-x"));
    assert!(layers.contains("layers `0-x`: `x` is no layer"), "{layers}");
    assert!(
        refuse("nan_injection", json!({}), &model)
            .contains("this plugin serves spectral_moderate_scale*")
    );
}
