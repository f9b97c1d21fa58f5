//! `packhost edit` and `packhost evaluate` on good input.

use std::fs;
use std::os::unix::fs::MetadataExt;

use insta::assert_snapshot;

use crate::support::{Bench, files, json, shard};

#[test]
fn an_edited_checkpoint_is_close_to_its_baseline() {
    let bench = Bench::new();
    bench.demo("model");
    assert_snapshot!(bench.says("edit model --spec quant_rtn:8:128:ffn --plugins [REPO]/plugins --out q8"), @r"
    exit: 0
    ----- stdout -----
    q8: 18 tensors edited, 1 shards written, 0 linked, 0 copied
    ");
    assert!(bench.leftovers(".").is_empty());

    // Everything that belongs to the model is there, unchanged but for the weights.
    for file in [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        let read = |folder: &str| fs::read(bench.path(folder).join(file)).unwrap();
        assert_eq!(read("q8"), read("model"), "{file}");
    }
    let metadata = json(&bench.path("q8/edit_metadata.json"));
    for (key, value) in [
        ("schema", "invarlock/evidence-pack-edit-metadata-v1"),
        ("artifact_class", "validation_subject_checkpoint"),
        ("edit_type", "quant_rtn"),
        ("edit_semantics", "external_subject_validation_edit"),
        ("storage_format", "float_dequantized"),
        ("actual_storage_format", "float_dequantized"),
        ("scope", "ffn"),
    ] {
        assert_eq!(metadata[key], value, "{key}: {metadata}");
    }
    for (key, value) in [
        ("deployable_as_hf_checkpoint", true),
        ("run_directory_contains_edit_artifacts", true),
        ("optimized_deployment_backend", false),
        ("packed_quantized_storage", false),
        ("runtime_memory_reduction", false),
        ("runtime_memory_reduction_expected", false),
    ] {
        assert_eq!(metadata[key], value, "{key}: {metadata}");
    }
    assert!(metadata.as_object().unwrap().contains_key("backend") && metadata["backend"].is_null());

    let output = bench
        .line(
            "evaluate --baseline model --subject q8 --dataset [REPO]/scenarios/demo/eval.jsonl --preview 8 --final 8 \
             --seq-len 64 --plugins [REPO]/plugins --out report",
        )
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", bench.render(&output));
    let report = json(&bench.path("report/evaluation.report.json"));
    let ratio = report["primary_metric"]["ratio_vs_baseline"]
        .as_f64()
        .unwrap();
    assert!((ratio - 1.0).abs() < 0.01, "{ratio}");
    assert_ne!(ratio, 1.0, "the edit did nothing");
}

#[test]
fn a_model_against_itself() {
    let bench = Bench::new();
    let line = "evaluate --baseline [REPO]/scenarios/demo/model --subject [REPO]/scenarios/demo/model --dataset \
                [REPO]/scenarios/demo/eval.jsonl --preview 4 --final 4 --seq-len 32 --plugins [REPO]/plugins --out report";
    let said = bench.says(line);
    assert!(
        said.starts_with("exit: 0\n") && said.contains("ratio 1.000000 [1.000000, 1.000000]"),
        "{said}"
    );
    assert!(
        said.contains("KL mean 0.000000, same top token 1.0000"),
        "{said}"
    );
}

#[test]
fn the_same_bytes_for_any_number_of_threads() {
    let bench = Bench::new();
    bench.tiny("model");
    for (out, threads) in [("a", 1), ("b", 2), ("c", 1)] {
        let line = format!(
            "edit model --spec lowrank_svd:8:ffn --plugins [REPO]/plugins --out {out} --threads {threads}"
        );
        let output = bench.line(&line).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", bench.render(&output));
    }
    let first = files(&bench.path("a"));
    let other = |name: &str| {
        let found = files(&bench.path(name));
        assert_eq!(
            found.keys().collect::<Vec<_>>(),
            first.keys().collect::<Vec<_>>()
        );
        let differ: Vec<String> = found
            .into_iter()
            .filter(|(file, bytes)| first[file] != *bytes)
            .map(|(file, _)| file)
            .collect();
        differ
    };
    assert_eq!(other("b"), Vec::<String>::new());
    assert_eq!(other("c"), Vec::<String>::new());
}

#[test]
fn untouched_shards_are_linked_as_asked() {
    let bench = Bench::new();
    let model = bench.tiny("model");
    // The second shard alone holds what the edit touches.
    shard(&model, "layers.1.mlp");
    let inode = |path: &str| fs::metadata(bench.path(path)).unwrap().ino();
    let [untouched, touched] =
        [1, 2].map(|number| format!("model-0000{number}-of-00002.safetensors"));
    for (how, same_file) in [("hardlink", true), ("copy", false), ("symlink", true)] {
        let line = format!(
            "edit model --spec quant_rtn:8:32:ffn@layer=1 --plugins [REPO]/plugins --out {how} --link {how}"
        );
        let output = bench.line(&line).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", bench.render(&output));
        assert_eq!(
            inode(&format!("{how}/{untouched}")) == inode(&format!("model/{untouched}")),
            same_file,
            "{how}"
        );
        assert_ne!(
            inode(&format!("{how}/{touched}")),
            inode(&format!("model/{touched}")),
            "{how}"
        );
        let read = |path: String| fs::read(bench.path(&path)).unwrap();
        assert_eq!(
            read(format!("{how}/{untouched}")),
            read(format!("model/{untouched}"))
        );
        assert_ne!(
            read(format!("{how}/{touched}")),
            read(format!("model/{touched}"))
        );
    }
}

#[test]
fn settings_choose_the_plugins() {
    let bench = Bench::new();
    bench.tiny("model");
    bench.plugin("edits/quant-rtn");
    fs::rename(bench.path("plugins"), bench.path("elsewhere")).unwrap();
    bench.write("packhost.toml", "plugins = \"nowhere\"\n");
    let output = bench
        .line("edit model --spec quant_rtn:8:32:ffn --out out")
        .env("PACKHOST_PLUGINS", "elsewhere")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", bench.render(&output));
}
