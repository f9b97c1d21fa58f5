//! The reference cases bit for bit, other layouts of embeddings and heads, and models without a target.
#![allow(clippy::unwrap_used, reason = "tests")]

use packhost_sdk::DType;
use packhost_sdk::bench::{self, Checkpoint};
use packhost_sdk::json::{Value, json};

use super::*;

#[path = "../../../tests-support/reference.rs"]
mod reference;

#[test]
fn reference_cases() {
    for dtype in ["f32", "bf16"] {
        reference::compare::<Structural>(
            dtype,
            &[
                "nan_injection",
                "inf_injection",
                "shape_mismatch",
                "missing_tensors",
                "weight_tying_break",
            ],
            bench::EXACT,
        );
    }
}

fn tensor(name: &str, shape: &[u64]) -> packhost_sdk::Tensor {
    let values: Vec<f32> = (0..shape.iter().product::<u64>())
        .map(|index| index as f32)
        .collect();
    bench::tensor(name, DType::BF16, shape, &values)
}

fn inject(error_type: &str, checkpoint: &Checkpoint) -> Result<bench::InjectionRun> {
    bench::inject::<Structural>(&json!({ "error_type": error_type }).to_string(), checkpoint)
}

#[test]
fn a_tied_head_is_untied_into_a_copy() {
    let tied = Checkpoint::new(
        vec![tensor("model.embed_tokens.weight", &[4, 2])],
        json!({ "tie_word_embeddings": true }),
    );
    let run = inject("weight_tying_break", &tied).unwrap();
    assert_eq!(run.record["mode"], json!("untie"));
    assert_eq!(run.config, json!({ "tie_word_embeddings": false }));
    let head = run.changed["lm_head.weight"].as_ref().unwrap();
    assert_eq!(
        bench::difference(
            head,
            tied.tensor("model.embed_tokens.weight").unwrap(),
            bench::EXACT
        ),
        None
    );
}

#[test]
fn gpt2_layout() {
    let gpt2 = Checkpoint::new(
        vec![
            tensor("transformer.wte.weight", &[4, 2]),
            tensor("transformer.h.0.attn.c_attn.weight", &[2, 6]),
            tensor("transformer.h.1.attn.c_attn.weight", &[2, 6]),
        ],
        json!({ "vocab_size": 4, "n_layer": 2 }),
    );
    let missing = inject("missing_tensors", &gpt2).unwrap();
    assert_eq!(missing.record["arch"], json!("gpt2"));
    assert_eq!(missing.config, json!({ "vocab_size": 4, "n_layer": 1 }));
    let grown = inject("shape_mismatch", &gpt2).unwrap();
    assert_eq!(
        grown.record["overrides_keys"],
        json!(["transformer.wte.weight"])
    );
    let values = bench::values(grown.changed["transformer.wte.weight"].as_ref().unwrap());
    assert_eq!(
        (values.len(), &values[..8], &values[8..]),
        (
            24,
            &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0][..],
            &[0.0; 16][..]
        )
    );
    assert_eq!(
        inject("weight_tying_break", &gpt2).unwrap().record["target"],
        json!("gpt2")
    );
}

#[test]
fn lists_with_one_entry_per_layer_are_cut() {
    let model = Checkpoint::new(
        vec![
            tensor("model.layers.0.mlp.up_proj.weight", &[2, 2]),
            tensor("model.layers.1.mlp.up_proj.weight", &[2, 2]),
        ],
        json!({ "num_hidden_layers": 2, "layer_types": ["full_attention", "sliding_attention"], "eos_token_id": [1, 2] }),
    );
    let config = inject("missing_tensors", &model).unwrap().config;
    assert_eq!(
        config,
        json!({ "num_hidden_layers": 1, "layer_types": ["full_attention"], "eos_token_id": [1, 2] })
    );
}

#[test]
fn nothing_to_damage_is_a_failure() {
    let bare = Checkpoint::of(vec![tensor("model.layers.0.input_layernorm.weight", &[4])]);
    for error_type in [
        "nan_injection",
        "inf_injection",
        "shape_mismatch",
        "missing_tensors",
        "weight_tying_break",
    ] {
        let failure = inject(error_type, &bare).unwrap_err().to_string();
        assert!(
            failure.contains(error_type) && failure.contains("nothing would be injected"),
            "{failure}"
        );
    }
}

#[test]
fn settings_and_other_types_are_refused() {
    let refuse = |params: Value| {
        bench::inject::<Structural>(&params.to_string(), &Checkpoint::of(vec![]))
            .unwrap_err()
            .to_string()
    };
    assert!(
        refuse(json!({ "error_type": "nan_injection", "env": { "INVARLOCK_X": "1" } }))
            .contains("unknown field `INVARLOCK_X`")
    );
    assert!(
        refuse(json!({ "error_type": "rank_collapse" }))
            .contains("unknown variant `rank_collapse`")
    );
}
