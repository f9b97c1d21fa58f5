//! The real model on real text, and what the reference system said about it.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "every test file uses a part of it"
)]

use packhost_measure::tiers::Profile;
use packhost_measure::windows::{Selection, WindowPlan};
use serde_json::Value;
use std::path::PathBuf;

/// A file of the project's vectors of whole evaluations.
pub fn vectors(name: &str) -> Value {
    let path = format!(
        "{}/../../tests/vectors/evaluate/{name}",
        env!("CARGO_MANIFEST_DIR")
    );
    serde_json::from_str(&std::fs::read_to_string(&path).expect(&path)).unwrap()
}

pub fn shared() -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared");
    let folder = std::env::var_os("PACKHOST_SHARED").unwrap_or_else(|| beside.into());
    let folder = PathBuf::from(folder);
    if folder.join("models/wt2-mistral/model.safetensors").exists() {
        return Some(folder);
    }
    // Written past the test harness, which swallows what `eprintln!` says in a test that passes.
    let notice = format!(
        "\nSKIPPED: {} has no models/wt2-mistral; set PACKHOST_SHARED to check real losses\n\n",
        folder.display()
    );
    std::io::Write::write_all(&mut std::io::stderr(), notice.as_bytes()).unwrap();
    None
}

pub const PLAN: WindowPlan = WindowPlan {
    seq_len: 512,
    preview: 32,
    final_: 32,
    seed: 42,
    run: 0,
    selection: Selection::FileOrder,
    profile: Profile::Dev,
};
