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
