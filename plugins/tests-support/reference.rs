//! Runs the reference's fault cases against an injection; the tests of every folder of `errors/` include this file.
#![allow(clippy::unwrap_used, reason = "tests")]

use packhost_sdk::Injection;
use packhost_sdk::bench::{self, Checkpoint, Tolerance};
use packhost_sdk::json::{Value, from_str, json};

/// The folder of vectors.
pub const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../tests/vectors/edits");

/// What `faults.json` says.
pub fn about() -> Value {
    from_str(&std::fs::read_to_string(format!("{VECTORS}/faults.json")).unwrap()).unwrap()
}

/// A list of texts.
fn strings(list: &Value) -> Vec<String> {
    list.as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap().to_owned())
        .collect()
}

/// The model that every case starts from.
pub fn start(dtype: &str) -> Checkpoint {
    let about = about();
    let start = Checkpoint::open(format!("{VECTORS}/tiny_llama_{dtype}.safetensors")).unwrap();
    start
        .in_order(&strings(&about["order"]))
        .unwrap()
        .with_config(about["config"].clone())
}

/// Runs the cases of these names on a dtype and compares tensors (within `tolerance`), configuration
/// and record.
pub fn compare<T: Injection>(dtype: &str, names: &[&str], tolerance: Tolerance) {
    let about = about();
    let start = start(dtype);
    let expected = Checkpoint::open(format!("{VECTORS}/faults_{dtype}.safetensors")).unwrap();
    for name in names {
        let case = &about["cases"][name];
        let params = json!({ "error_type": case["error_type"], "env": case["env"] }).to_string();
        let run = bench::inject::<T>(&params, &start).unwrap();

        let (mut put, mut removed) = (strings(&case["changed"]), strings(&case["removed"]));
        put.sort();
        removed.sort();
        let names_of = |present: bool| -> Vec<String> {
            let changes = run
                .changed
                .iter()
                .filter(|change| change.1.is_some() == present);
            changes.map(|change| change.0.clone()).collect()
        };
        assert_eq!(
            (names_of(true), names_of(false)),
            (put, removed),
            "{dtype} {name}"
        );
        for (tensor, changed) in &run.changed {
            let Some(changed) = changed else { continue };
            let reference = expected.tensor(&format!("{name}/{tensor}")).unwrap();
            assert_eq!(
                bench::difference(changed, reference, tolerance),
                None,
                "{dtype} {name}/{tensor}"
            );
        }

        let mut config = about["config"].clone();
        for (key, value) in case["config_changes"].as_object().unwrap() {
            config[key] = value.clone();
        }
        assert_eq!(run.config, config, "{dtype} {name}");
        for (key, value) in case["metadata"].as_object().unwrap() {
            // `rows` is the vectors' own record of what the tensors above show.
            if key != "rows" {
                assert_eq!(run.record[key], *value, "{dtype} {name}: {key}");
            }
        }
    }
}
