//! Presets that cannot serve: refused before a run begins, with what is wrong and where.

use crate::run::{small, source};
use crate::support::Bench;

/// What a small run says that is given a preset of this text; it must not begin.
fn refused(name: &str, text: &str) -> String {
    let bench = Bench::new();
    source(&bench);
    bench.write(name, text);
    let said = bench.says(&format!("{} --preset {name}", small("run")));
    assert!(!bench.path("run").exists(), "{said}");
    said
}

#[test]
fn a_preset_of_another_model() {
    let said = refused("preset.json", r#"{"model": {"id": "other/model"}}"#);
    assert!(said.starts_with("exit: 4"), "{said}");
    assert!(
        said.contains("preset.json: it was derived from the model `other/model`, this run is about `packhost/demo`"),
        "{said}"
    );
}

#[test]
fn a_preset_that_sets_what_no_policy_has() {
    let said = refused("preset.yaml", "guards:\n  spectral:\n    max_cap: 5\n");
    assert!(said.starts_with("exit: 4"), "{said}");
    assert!(
        said.contains("override of unknown key `spectral.max_cap`"),
        "{said}"
    );
}

#[test]
fn a_text_that_is_no_preset() {
    let said = refused("preset.yaml", "- a list\n");
    assert!(said.starts_with("exit: 4"), "{said}");
    assert!(said.contains("line 1"), "{said}");
}

#[test]
fn a_preset_of_other_weights() {
    let preset = format!(
        r#"{{"model": {{"id": "packhost/demo", "sha256": "{}"}}}}"#,
        "0".repeat(64)
    );
    let said = refused("preset.json", &preset);
    assert!(said.starts_with("exit: 4"), "{said}");
    assert!(
        said.contains("it was derived from other weights (`packhost/demo`) than those in [REPO]/scenarios/demo/model"),
        "{said}"
    );
    // `evaluate` knows models by their folders alone, so only the weights can tell.
    let bench = Bench::new();
    bench.write("preset.json", &preset);
    let said = bench.says(
        "evaluate --baseline [REPO]/scenarios/demo/model --subject [REPO]/scenarios/demo/model --dataset \
         [REPO]/scenarios/demo/eval.jsonl --plugins [REPO]/plugins --preset preset.json --out report",
    );
    assert!(said.starts_with("exit: 4"), "{said}");
    assert!(said.contains("it was derived from other weights"), "{said}");
    assert!(!bench.path("report").exists());
}
