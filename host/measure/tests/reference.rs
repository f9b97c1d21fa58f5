//! A real model on real text: windows, losses, perplexities and divergence of `models/wt2-mistral` and one edited copy
//! against figures of an independent library.
//!
//! Model and text are not part of the project. They are looked for in `../shared` beside it, or in the folder that
//! `PACKHOST_SHARED` names; where they are absent the test says so and checks only what is committed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{PLAN, shared, vectors};
use packhost_measure::dataset::Dataset;
use packhost_measure::table::Table;
use packhost_measure::windows::{Windows, select};
use packhost_measure::{Baseline, MeasureRequest, Measured, Request, measure};
use packhost_model::network::KeepPolicy;
use packhost_model::{Checkpoint, Overlay, Tokenizer};
use packhost_tensor::Tensor;
use packhost_tensor::cpu::Cpu;
use serde_json::Value;
use std::collections::BTreeSet;

fn requests() -> Vec<Request> {
    let request = |quantity: &str, scope: &str| Request {
        guard: "test".into(),
        quantity: quantity.into(),
        scope: scope.into(),
        params: "{}".into(),
    };
    let mut requests = Vec::new();
    for arm in ["preview", "final"] {
        for quantity in ["window.ids", "window.loss", "window.tokens"] {
            requests.push(request(quantity, arm));
        }
    }
    for quantity in ["kl.mean", "kl.median", "kl.p99", "kl.max", "same_top.share"] {
        requests.push(request(quantity, "model"));
    }
    for quantity in [
        "tensor.shape",
        "tensor.dtype",
        "tensor.non_finite",
        "vocabulary",
    ] {
        requests.push(request(quantity, "*"));
    }
    for quantity in [
        "sigma.ones.4",
        "frobenius_sq",
        "singular",
        "shift",
        "overlap",
    ] {
        requests.push(request(&format!("weight.{quantity}"), "*"));
    }
    for quantity in packhost_measure::structure::OF_MODEL {
        requests.push(request(quantity, "model"));
    }
    requests
}

fn losses_close(table: &Table, expected: &Value) {
    for arm in ["preview", "final"] {
        let got = table.vector(arm, "window.loss").unwrap();
        let expected = expected[arm].as_array().unwrap();
        assert_eq!(got.len(), expected.len());
        for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
            let expected = expected.as_f64().unwrap();
            assert!(
                (got - expected).abs() <= 2e-5,
                "{arm} {index}: {got} for {expected}"
            );
        }
    }
}

/// Sigma by four power iterations, the leading singular value within its bound, and the Frobenius norm.
fn weights_close(table: &Table, expected: &Value) {
    let expected = expected.as_object().unwrap();
    assert!(expected.len() >= 42);
    for (name, figures) in expected {
        let number = |quantity: &str| table.number(name, quantity).unwrap();
        relative(
            name,
            number("weight.sigma.ones.4"),
            &figures["power4_f32"],
            2e-6,
        );
        relative(
            name,
            number("weight.frobenius_sq").sqrt(),
            &figures["frobenius"],
            2e-6,
        );
        let leading = table.vector(name, "weight.singular").unwrap();
        let top = figures["svd_f64"].as_f64().unwrap();
        assert!(
            leading[0] <= top * (1.0 + 2e-6),
            "{name}: {leading:?} for {top}"
        );
        assert!(
            top - leading[0] <= leading[8] + 2e-6 * top,
            "{name}: {leading:?} for {top}"
        );
        // Eight steps come this near on flat spectra.
        relative(name, leading[0], &figures["svd_f64"], 0.03);
    }
}

fn perplexity(table: &Table, arm: &str) -> f64 {
    let vector = |quantity: &str| table.vector(arm, quantity).unwrap();
    packhost_stats::summary::perplexity(vector("window.loss"), vector("window.tokens"))
}

fn relative(what: &str, got: f64, expected: &Value, tolerance: f64) {
    let expected = expected.as_f64().unwrap();
    assert!(
        (got - expected).abs() <= tolerance * expected.abs(),
        "{what}: {got} for {expected}"
    );
}

#[test]
fn windows_losses_and_divergence() {
    let Some(shared) = shared() else { return };
    let folder = shared.join("models/wt2-mistral");
    let base = Checkpoint::open(&folder).unwrap();
    let tokenizer = Tokenizer::open(&folder).unwrap();
    let dataset = Dataset::open(&shared.join("data/wikitext2-windows.jsonl")).unwrap();
    let windows: Windows = select(dataset.texts(), &tokenizer, &PLAN).unwrap();

    let expected = vectors("windows.json");
    for (arm, key) in [(&windows.preview, "preview"), (&windows.final_, "final")] {
        let expected: Vec<Vec<u32>> = serde_json::from_value(expected[key].clone()).unwrap();
        let got: Vec<Vec<u32>> = arm.iter().map(|window| window.tokens.clone()).collect();
        assert!(got == expected, "{key}: other windows than the reference's");
    }

    let figures = vectors("float32.json");
    let device = Cpu::new(None).unwrap();
    let requests = requests();
    let keep = KeepPolicy {
        reference: true,
        hidden_bytes: 1 << 30,
    };
    let request = MeasureRequest {
        weights: &*base,
        device: &device,
        windows: &windows,
        requests: &requests,
        baseline: None,
        keep: Some(keep),
        probe: None,
        cancel: None,
    };
    let baseline: Measured = measure(&request).unwrap();
    assert_eq!(baseline.structural_failure, None);
    losses_close(&baseline.table, &figures["baseline"]["losses"]);
    weights_close(&baseline.table, &figures["baseline"]["sigma"]);
    for arm in ["preview", "final"] {
        let expected = &figures["baseline"]["perplexity"][arm];
        relative(arm, perplexity(&baseline.table, arm), expected, 1e-5);
    }

    // The subject `scale_l5_up_1.12`: one tensor times 1.12 in float32, rounded to bf16.
    let name = "model.layers.5.mlp.up_proj.weight";
    let before = base.tensor(name).unwrap();
    let values: Vec<f32> = before
        .to_f32()
        .iter()
        .map(|value| value * 1.12_f32)
        .collect();
    let mut overlay = Overlay::new(base.clone());
    let scaled = Tensor::from_f32(before.dtype(), before.shape(), &values).unwrap();
    overlay.put(name, scaled).unwrap();
    let changed: BTreeSet<String> = overlay.changed().keys().cloned().collect();
    let subject = |reference, hidden| {
        let baseline = Baseline {
            weights: &*base,
            table: &baseline.table,
            changed: &changed,
            reference,
            hidden,
            moments: None,
        };
        let request = MeasureRequest {
            weights: &overlay,
            baseline: Some(baseline),
            keep: None,
            ..request
        };
        measure(&request).unwrap()
    };
    let cached = subject(baseline.reference.as_ref(), baseline.hidden.as_ref());
    let full = subject(baseline.reference.as_ref(), None);
    assert_eq!(
        cached.table.to_json(),
        full.table.to_json(),
        "a cut changes nothing"
    );

    let expected = &figures["subjects"]["scale_l5_up_1.12"];
    losses_close(&full.table, &expected["losses"]);
    weights_close(&full.table, &expected["sigma"]);
    let shift = full.table.vector(name, "weight.shift").unwrap();
    let relative_change = (shift[0] / shift[1]).sqrt();
    assert!((relative_change - 0.12).abs() < 1e-3, "{relative_change}");
    let overlap = full.table.number(name, "weight.overlap").unwrap();
    assert!(overlap > 0.999, "{overlap}");
    let shifts = full
        .table
        .rows()
        .filter(|row| row.quantity == "weight.shift");
    assert_eq!(shifts.count(), 1, "only what changed is compared");
    let ratio = perplexity(&full.table, "final") / perplexity(&baseline.table, "final");
    let wanted = expected["ratio_final"].as_f64().unwrap();
    assert!((ratio - wanted).abs() <= 2e-6, "{ratio} for {wanted}");
    for key in ["mean", "median", "p99", "max"] {
        let got = full.table.number("model", &format!("kl.{key}")).unwrap();
        relative(key, got, &expected["kl"][key], 1e-3);
    }
    let share = full.table.number("model", "same_top.share").unwrap();
    relative("same top", share, &expected["same_top_share"], 1e-3);

    // Rows of unchanged tensors are the baseline's, the changed one was measured.
    assert_eq!(full.table.number(name, "tensor.non_finite"), Some(0.0));
    assert_eq!(
        full.table.number("model", "parameter.count"),
        Some(6_524_160.0)
    );
    assert_eq!(full.table.text("model", "tying"), Some("untied"));

    // A missing tensor: the weights are measured, the model cannot be run.
    let mut broken = Overlay::new(base.clone());
    broken.remove(name).unwrap();
    let request = MeasureRequest {
        weights: &broken,
        ..request
    };
    let measured = measure(&request).unwrap();
    let reason = measured.structural_failure.unwrap();
    assert!(reason.contains(name), "{reason}");
    assert!(measured.table.get(name, "tensor.shape").is_none());
    assert!(measured.table.get("final", "window.loss").is_none());

    // Unknown quantities are refused by name.
    let unknown = [Request {
        quantity: "loss.curvature".into(),
        ..requests[0].clone()
    }];
    let refused = MeasureRequest {
        requests: &unknown,
        ..request
    };
    let error = measure(&refused).unwrap_err().to_string();
    assert!(
        error.starts_with("guard test asks for quantity `loss.curvature` of `preview`"),
        "{error}"
    );
}

#[test]
fn committed_figures_are_whole() {
    let figures = vectors("float32.json");
    assert_eq!(figures["subjects"].as_object().unwrap().len(), 4);
    let windows = vectors("windows.json");
    for arm in ["preview", "final"] {
        assert_eq!(windows[arm].as_array().unwrap().len(), 32);
    }
}
