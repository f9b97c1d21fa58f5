//! What makes the small program small: nothing of tensors, models and plugins is in it; and that it verifies.

#![allow(clippy::expect_used)]

use std::path::Path;
use std::process::Command;

fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

#[test]
fn it_depends_on_no_tensor_model_or_plugin_code() {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "--edges", "normal"])
        .args(["--prefix", "none", "--package", "packhost-verify"])
        .current_dir(repository())
        .output()
        .expect("cargo runs");
    let tree = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(tree.contains("packhost-pack "), "{tree}");
    let unwanted = [
        "wasmtime",
        "wit-",
        "cranelift",
        "packhost-tensor",
        "packhost-model",
        "packhost-measure",
        "packhost-plugin",
        "packhost-suite",
        "faer",
        "tokenizers",
        "tokio",
    ];
    for line in tree.lines() {
        let found = unwanted.iter().find(|name| line.starts_with(**name));
        assert_eq!(found, None, "{line}");
    }
}

#[test]
fn it_verifies() {
    let packs = repository().join("tests/vectors/evidence-pack/packs");
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_packhost-verify"));
        let output = command.args(arguments).current_dir(&packs).output();
        let output = output.expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), said)
    };
    let (code, said) = run(&["good", "--strict"]);
    assert_eq!(code, Some(0));
    assert!(said.starts_with("verified: every byte is as signed by sha256:"));
    let (code, said) = run(&["good", "--json"]);
    let answer: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!((code, &answer["ok"]), (Some(0), &serde_json::json!(true)));
    let (code, _) = run(&["absent"]);
    assert_eq!(code, Some(3));
}
