//! Checkpoints that are damaged: each is refused by file and tensor name before anything is written.

use std::fs;

use insta::assert_snapshot;
use serde_json::json;

use crate::support::{Bench, change_header, change_json, flip, shard};

const EDIT: &str = "edit model --spec quant_rtn:8:32:ffn --plugins [REPO]/plugins --out out";

/// Has `packhost edit` open the damaged folder `model`, and shows that nothing was written.
fn edit(bench: &Bench) -> String {
    let said = bench.says(EDIT);
    assert!(!bench.path("out").exists(), "{said}");
    assert!(bench.leftovers(".").is_empty(), "{said}");
    said
}

/// Measures against the damaged folder `model`. (A damaged subject is no error: its report says what is wrong with it.)
fn evaluate(bench: &Bench) -> String {
    let said = bench.says(
        "evaluate --baseline model --subject [REPO]/scenarios/demo/model --dataset [REPO]/scenarios/demo/eval.jsonl \
         --preview 4 --final 4 --seq-len 32 --plugins [REPO]/plugins --out report",
    );
    assert!(
        !bench.path("report/evaluation.report.json").exists(),
        "{said}"
    );
    said
}

#[test]
fn truncated_data() {
    let bench = Bench::new();
    let weights = bench.tiny("model").join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 1000]).unwrap();
    assert_snapshot!(edit(&bench), @r"
    exit: 4
    ----- stderr -----
    error: failed to read the header of model/model.safetensors: tensor `model.layers.1.self_attn.v_proj.weight` ends at byte 295424 of the data, the file has only 294552; it is truncated
    ");
}

#[test]
fn truncated_header_and_empty_file() {
    let bench = Bench::new();
    let weights = bench.tiny("model").join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..100]).unwrap();
    assert_snapshot!(edit(&bench), @r"
    exit: 4
    ----- stderr -----
    error: failed to read the header of model/model.safetensors: header length 2160 goes beyond the end of the file (100 bytes); it is truncated
    ");
    fs::write(&weights, []).unwrap();
    assert_snapshot!(edit(&bench), @r"
    exit: 4
    ----- stderr -----
    error: failed to read the header of model/model.safetensors: the file has 0 bytes, a header alone has at least 10; it is truncated or not a safetensors file
    ");
}

#[test]
fn flipped_bytes_of_the_header() {
    let bench = Bench::new();
    let weights = bench.tiny("model").join("model.safetensors");
    // The most significant byte of the header's length, then its first brace.
    flip(&weights, 7);
    assert_snapshot!(edit(&bench), @r"
    exit: 4
    ----- stderr -----
    error: failed to read the header of model/model.safetensors: header length 18374686479671625840 is above the limit of 100000000 bytes; this is not a safetensors file
    ");
    flip(&weights, 7);
    flip(&weights, 8);
    assert_snapshot!(edit(&bench), @r"
    exit: 4
    ----- stderr -----
    error: failed to read the header of model/model.safetensors: the header is not UTF-8 (first bad byte at 0)
    ");
}

#[test]
fn overlapping_tensors() {
    let bench = Bench::new();
    let model = bench.tiny("model");
    change_header(&model.join("model.safetensors"), |header| {
        header["model.norm.weight"]["data_offsets"] = json!([0, 128]);
    });
    assert_snapshot!(edit(&bench), @r"
    exit: 4
    ----- stderr -----
    error: failed to read the header of model/model.safetensors: tensors `model.norm.weight` and `lm_head.weight` overlap at byte 0
    ");
}

#[test]
fn unknown_dtype() {
    let bench = Bench::new();
    let model = bench.tiny("model");
    change_header(&model.join("model.safetensors"), |header| {
        header["model.norm.weight"]["dtype"] = "BF17".into();
    });
    assert_snapshot!(edit(&bench), @r"
    exit: 4
    ----- stderr -----
    error: failed to read the header of model/model.safetensors: tensor `model.norm.weight` has the unknown dtype `BF17`
    ");
}

#[test]
fn shape_that_does_not_fit_the_data() {
    let bench = Bench::new();
    let model = bench.tiny("model");
    change_header(&model.join("model.safetensors"), |header| {
        header["model.norm.weight"]["shape"] = json!([65]);
    });
    assert_snapshot!(edit(&bench), @r"
    exit: 4
    ----- stderr -----
    error: failed to read the header of model/model.safetensors: tensor `model.norm.weight` (BF16, shape [65]) needs 130 bytes, its offsets span 128
    ");
}

#[test]
fn shape_that_does_not_fit_the_configuration() {
    let bench = Bench::new();
    let model = bench.demo("model");
    change_json(&model.join("config.json"), |config| {
        config["intermediate_size"] = 385.into();
    });
    assert_snapshot!(evaluate(&bench), @r"
    exit: 4
    ----- stderr -----
    error: failed to run the baseline `model`: use the tensor `model.layers.0.mlp.gate_proj.weight`: the configuration asks for shape [385, 128], found [384, 128]
    ");
}

#[test]
fn a_damaged_subject_is_reported_not_refused() {
    let bench = Bench::new();
    change_json(&bench.demo("model").join("config.json"), |config| {
        config["intermediate_size"] = 385.into();
    });
    assert_snapshot!(bench.says("evaluate --baseline [REPO]/scenarios/demo/model --subject model --dataset [REPO]/scenarios/demo/eval.jsonl --preview 4 --final 4 --seq-len 32 --plugins [REPO]/plugins --out report"), @r"
    exit: 18
    ----- stdout -----
    report: report/evaluation.report.json
    ----- stderr -----
    error: the subject cannot be run: use the tensor `model.layers.0.mlp.gate_proj.weight`: the configuration asks for shape [385, 128], found [384, 128]; the report records a structural failure, so nothing was measured
    ");
}

#[test]
fn missing_tensor() {
    let bench = Bench::new();
    let model = bench.demo("model");
    shard(&model, "layers.3.mlp.up_proj");
    // The index forgets the second shard's only tensor.
    change_json(&model.join("model.safetensors.index.json"), |index| {
        let map = index["weight_map"].as_object_mut().unwrap();
        map.remove("model.layers.3.mlp.up_proj.weight");
    });
    assert_snapshot!(evaluate(&bench), @r"
    exit: 4
    ----- stderr -----
    error: failed to run the baseline `model`: use the tensor `model.layers.3.mlp.up_proj.weight`: it is missing; the configuration asks for shape [384, 128]
    ");
}

#[test]
fn missing_files() {
    let bench = Bench::new();
    assert_snapshot!(edit(&bench), @r"
    exit: 3
    ----- stderr -----
    error: failed to open the checkpoint model: there is no such folder
    ");
    let model = bench.tiny("model");
    fs::remove_file(model.join("model.safetensors")).unwrap();
    assert_snapshot!(edit(&bench), @r"
    exit: 4
    ----- stderr -----
    error: failed to open the checkpoint model: neither model.safetensors nor model.safetensors.index.json is there
    ");
    bench.tiny("model");
    fs::remove_file(model.join("config.json")).unwrap();
    assert_snapshot!(edit(&bench), @r"
    exit: 4
    ----- stderr -----
    error: failed to open the checkpoint model: config.json is missing; is this the folder of a checkpoint?
    ");
}

#[test]
fn configuration_that_is_no_json_or_lacks_a_field() {
    let bench = Bench::new();
    let config = bench.tiny("model").join("config.json");
    fs::write(&config, "{\"hidden_size\": 64,").unwrap();
    assert_snapshot!(edit(&bench), @r"
    exit: 4
    ----- stderr -----
    error: failed to read model/config.json: it is not JSON: EOF while parsing a value at line 1 column 19
    ");
    bench.demo("model");
    change_json(&config, |config| {
        config
            .as_object_mut()
            .unwrap()
            .remove("num_attention_heads");
    });
    assert_snapshot!(evaluate(&bench), @r"
    exit: 4
    ----- stderr -----
    error: failed to run a network of type LlamaForCausalLM: `num_attention_heads` is missing
    ");
}

#[test]
fn missing_tokenizer() {
    let bench = Bench::new();
    let model = bench.demo("model");
    fs::remove_file(model.join("tokenizer.json")).unwrap();
    let line = "evaluate --baseline model --subject model --dataset [REPO]/scenarios/demo/eval.jsonl --preview 4 --final 4 \
                --plugins [REPO]/plugins --out report";
    assert_snapshot!(bench.says(line), @r"
    exit: 4
    ----- stderr -----
    error: failed to read the tokenizer model/tokenizer.json: the file is missing; a slow tokenizer must be saved as tokenizer.json first, for example with AutoTokenizer.from_pretrained(..., use_fast=True).save_pretrained(...)
    ");
    fs::write(model.join("tokenizer.json"), "{}").unwrap();
    assert_snapshot!(bench.says(line), @r"
    exit: 4
    ----- stderr -----
    error: failed to read the tokenizer model/tokenizer.json: it is not a tokenizer: Model missing. at line 1 column 2
    ");
}

#[test]
fn missing_shard() {
    let bench = Bench::new();
    let model = bench.tiny("model");
    shard(&model, "layers.1");
    fs::remove_file(model.join("model-00002-of-00002.safetensors")).unwrap();
    assert_snapshot!(edit(&bench), @r"
    exit: 4
    ----- stderr -----
    error: failed to read the shard index model/model.safetensors.index.json: shard `model-00002-of-00002.safetensors` is missing, it should hold `model.layers.1.input_layernorm.weight`
    ");
}

#[test]
fn index_that_lies() {
    let bench = Bench::new();
    let model = bench.tiny("model");
    shard(&model, "layers.1");
    let index = model.join("model.safetensors.index.json");
    change_json(&index, |index| {
        index["weight_map"]["model.norm.weight"] = "model-00002-of-00002.safetensors".into();
    });
    assert_snapshot!(edit(&bench), @r"
    exit: 4
    ----- stderr -----
    error: failed to read the shard index model/model.safetensors.index.json: tensor `model.norm.weight` is not in shard `model-00002-of-00002.safetensors`
    ");
    change_json(&index, |index| {
        index["weight_map"]["model.norm.weight"] = "../secret.safetensors".into();
    });
    assert_snapshot!(edit(&bench), @r"
    exit: 4
    ----- stderr -----
    error: failed to read the shard index model/model.safetensors.index.json: `weight_map` places `model.norm.weight` in `../secret.safetensors`, which is not a plain path inside the checkpoint
    ");
    fs::write(&index, "[]").unwrap();
    assert_snapshot!(edit(&bench), @r"
    exit: 4
    ----- stderr -----
    error: failed to read the shard index model/model.safetensors.index.json: invalid length 0, expected struct Index with 2 elements at line 1 column 2
    ");
}
