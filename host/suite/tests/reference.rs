//! Whole evaluations of a real model on real text against the reference system's reports of the same: its flags and caps,
//! and within the tolerances that its arithmetic allows (bf16, ours is f32) its ratio, singular values and edge risks.
//!
//! The model is not in the repository. `PACKHOST_SHARED` names the folder that holds `models/wt2-mistral` and
//! `data/wikitext2-windows.jsonl`; without it, and without components, the test says so and passes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use packhost_model::writer::{WriteOptions, write_checkpoint};
use packhost_model::{Checkpoint, Overlay};
use packhost_plugin::{CacheDir, EngineOptions, Limits};
use packhost_suite::compare::{CompareRequest, compare};
use packhost_suite::spec::{Resolution, Tuned, resolve};
use packhost_suite::subject::PlannedEdit;
use packhost_suite::suites::Dataset;
use packhost_suite::toolbox::Toolbox;
use packhost_tensor::Tensor;
use serde_json::Value;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn skipped(why: &str) {
    // Written past the test harness, which swallows what `eprintln!` says in a test that passes.
    let notice = format!("\nSKIPPED, {why}\n\n");
    std::io::stderr().write_all(notice.as_bytes()).unwrap();
}

fn shared() -> Option<PathBuf> {
    let folder = std::env::var_os("PACKHOST_SHARED").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| repository().join("../shared"));
    let there = folder.join("models/wt2-mistral/model.safetensors").exists();
    if !there {
        skipped("PACKHOST_SHARED names no folder with models/wt2-mistral");
    }
    there.then_some(folder)
}

fn toolbox() -> Option<Toolbox> {
    let options = EngineOptions {
        limits: Limits::default(),
        cache: CacheDir::At(repository().join("target/test-plugin-cache")),
    };
    match Toolbox::open(&repository().join("plugins"), false, options, Some(2)) {
        Ok(toolbox) => Some(toolbox),
        Err(error) => {
            let required = std::env::var("PACKHOST_COMPONENTS").as_deref() == Ok("require");
            assert!(!required, "{error}");
            skipped(&format!("components are not built: {error}"));
            None
        }
    }
}

/// The subject of one of the reports; without an edit it is one projection times 1.12.
fn subject(toolbox: &Toolbox, base: &std::sync::Arc<Checkpoint>, edit: Option<&str>) -> Overlay {
    let Some(edit) = edit else {
        let name = "model.layers.5.mlp.up_proj.weight";
        let tensor = base.tensor(name).unwrap();
        let scaled: Vec<f32> = tensor.to_f32().iter().map(|value| value * 1.12).collect();
        let scaled = Tensor::from_f32(tensor.dtype(), tensor.shape().to_vec(), &scaled).unwrap();
        let mut overlay = Overlay::new(std::sync::Arc::clone(base));
        overlay.put(name, scaled).unwrap();
        return overlay;
    };
    let Resolution::Selected(edit) = resolve(edit, "stress", &Tuned::Absent, &[]) else {
        panic!("{edit} is not resolved");
    };
    let planned = PlannedEdit::new(toolbox, base, &edit).unwrap();
    planned.into_subject(base).unwrap().overlay
}

fn close(what: &str, got: &Value, expected: &Value, tolerance: f64) {
    let (got, expected) = (got.as_f64().expect(what), expected.as_f64().expect(what));
    let error = (got - expected).abs() / expected.abs().max(1e-9);
    assert!(
        error <= tolerance,
        "{what}: {got} instead of {expected}, {error:.2e} off"
    );
}

#[test]
fn the_references_own_evaluations() {
    let (Some(shared), Some(toolbox)) = (shared(), toolbox()) else {
        return;
    };
    let path = repository().join("tests/vectors/evaluate/guards.json");
    let vectors: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let tolerance = |key: &str| vectors["tolerance"][key].as_f64().unwrap();
    let model = shared.join("models/wt2-mistral");
    let base = Checkpoint::open(&model).unwrap();
    for (name, expected) in vectors["runs"].as_object().unwrap() {
        let dir = tempfile::tempdir().unwrap();
        let overlay = subject(&toolbox, &base, expected["edit"].as_str());
        let changed = dir.path().join("subject");
        write_checkpoint(&overlay, &changed, &WriteOptions::default()).unwrap();
        let text = shared.join("data/wikitext2-windows.jsonl");
        let dataset = Dataset::of_file(text, "text".into());
        let out = dir.path().join("out");
        let request = CompareRequest::new(model.clone(), changed, dataset, out);
        let time = "2026-01-01T00:00:00Z";
        let report = compare(&request, &toolbox, time, &AtomicBool::new(false))
            .unwrap()
            .report;
        close(
            name,
            &report["primary_metric"]["ratio_vs_baseline"],
            &expected["ratio_vs_baseline"],
            tolerance("ratio"),
        );
        for (flag, value) in expected["validation"].as_object().unwrap() {
            assert_eq!(&report["validation"][flag], value, "{name}: {flag}");
        }
        let (spectral, of_reference) = (&report["spectral"], &expected["spectral"]);
        for key in [
            "caps_applied",
            "caps_applied_by_family",
            "caps_exceeded",
            "bh_family_count",
            "measurement_contract_hash",
        ] {
            assert_eq!(spectral[key], of_reference[key], "{name}: spectral.{key}");
        }
        for key in ["max_spectral_norm", "mean_spectral_norm"] {
            let sigma = tolerance("sigma_relative");
            close(key, &spectral["summary"][key], &of_reference[key], sigma);
        }
        assert_eq!(
            spectral["summary"]["modules_checked"],
            of_reference["modules_checked"]
        );
        let (rmt, of_reference) = (&report["rmt"], &expected["rmt"]);
        assert_eq!(rmt["status"], of_reference["status"], "{name}");
        assert_eq!(
            rmt["measurement_contract_hash"],
            of_reference["measurement_contract_hash"]
        );
        for (family, risk) in of_reference["edge_risk_by_family"].as_object().unwrap() {
            let got = &rmt["edge_risk_by_family"][family];
            close(family, got, risk, tolerance("edge_risk_relative"));
        }
        let (variance, of_reference) = (&report["variance"], &expected["variance"]);
        assert_eq!(variance["proposed_scales"], of_reference["proposed_scales"]);
        assert_eq!(
            variance["target_module_names"],
            of_reference["target_module_names"]
        );
        close(
            "ppl_no_ve",
            &variance["ppl_no_ve"],
            &of_reference["ppl_no_ve"],
            tolerance("ratio"),
        );
    }
}
