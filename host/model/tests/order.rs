//! Module order, roles, layers and experts; ties.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Raw, bf16, config, llama, sharded_llama, vectors, write_single};
use packhost_model::{Checkpoint, Role, Tying, Weights};
use serde_json::{Value, json};

fn reference(file: &str) -> Value {
    serde_json::from_slice(&std::fs::read(vectors("edits").join(file)).unwrap()).unwrap()
}

/// The names of `names`, in the order that a checkpoint of them has.
fn ordered(names: &[&str]) -> Vec<String> {
    let mut tensors: Vec<Raw> = names.iter().map(|name| bf16(name, &[1])).collect();
    // Stored in an order of its own, so that nothing is right by accident.
    tensors.sort_by_key(|(name, ..)| name.bytes().rev().collect::<Vec<_>>());
    let dir = tempfile::tempdir().unwrap();
    write_single(dir.path(), &config(1), &tensors);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    checkpoint
        .tensors()
        .iter()
        .map(|meta| meta.name.clone())
        .collect()
}

#[test]
fn module_order_is_the_references() {
    let faults = reference("faults.json");
    let order: Vec<&str> = faults["order"]
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap())
        .collect();
    assert_eq!(order.len(), 57);
    assert_eq!(ordered(&order), order);
}

#[test]
fn module_order_of_every_family_is_the_references() {
    let scopes = reference("scopes.json");
    let mut compared = 0;
    for (family, tensors) in scopes["architectures"].as_object().unwrap() {
        let mut names: Vec<&str> = tensors
            .as_array()
            .unwrap()
            .iter()
            .map(|t| t["name"].as_str().unwrap())
            .collect();
        if family == "gpt-neox / falcon" {
            // Two families in one list: the last name is Falcon's first.
            assert_eq!(names.pop(), Some("transformer.word_embeddings.weight"));
        }
        assert_eq!(ordered(&names), names, "{family}");
        compared += names.len();
    }
    assert_eq!(compared, 50);
}

#[test]
fn biases_norms_and_experts_have_their_places() {
    let qwen = [
        "model.embed_tokens.weight",
        "model.layers.2.self_attn.q_proj.weight",
        "model.layers.2.self_attn.q_proj.bias",
        "model.layers.2.self_attn.k_proj.weight",
        "model.layers.2.self_attn.k_proj.bias",
        "model.layers.2.self_attn.v_proj.weight",
        "model.layers.2.self_attn.v_proj.bias",
        "model.layers.2.self_attn.o_proj.weight",
        "model.layers.2.self_attn.q_norm.weight",
        "model.layers.2.self_attn.k_norm.weight",
        "model.layers.2.mlp.gate_proj.weight",
        "model.layers.2.input_layernorm.weight",
        "model.layers.2.strange.weight",
        "model.layers.10.self_attn.q_proj.weight",
        "model.norm.weight",
        "lm_head.weight",
        "strange.2.weight",
        "strange.10.weight",
    ];
    assert_eq!(ordered(&qwen), qwen);
    let mixtral = [
        "model.layers.0.self_attn.o_proj.weight",
        "model.layers.0.block_sparse_moe.gate.weight",
        "model.layers.0.block_sparse_moe.experts.2.w1.weight",
        "model.layers.0.block_sparse_moe.experts.2.w2.weight",
        "model.layers.0.block_sparse_moe.experts.2.w3.weight",
        "model.layers.0.block_sparse_moe.experts.10.w1.weight",
        "model.layers.0.input_layernorm.weight",
    ];
    assert_eq!(ordered(&mixtral), mixtral);
}

#[test]
fn order_does_not_depend_on_shards() {
    let dir = tempfile::tempdir().unwrap();
    write_single(&dir.path().join("one"), &config(3), &llama(3));
    sharded_llama(&dir.path().join("three"), 3);
    let one = Checkpoint::open(&dir.path().join("one")).unwrap();
    let three = Checkpoint::open(&dir.path().join("three")).unwrap();
    assert_eq!(one.tensors(), three.tensors());
    assert_eq!(three.shards().len(), 3);
    for meta in one.tensors() {
        assert_eq!(
            one.tensor(&meta.name).unwrap().bytes(),
            three.tensor(&meta.name).unwrap().bytes()
        );
    }
    assert_eq!(
        one.tensor_digests().unwrap(),
        three.tensor_digests().unwrap()
    );
    assert_eq!(
        one.tensor("ghost").unwrap_err().to_string(),
        format!("find the tensor `ghost` in {}", one.dir().display())
    );
}

#[test]
fn names_tell_role_layer_and_expert() {
    let checkpoint = Checkpoint::open(&vectors("architectures/mixtral")).unwrap();
    let meta = |name: &str| {
        let meta = checkpoint.meta(name).expect(name);
        (meta.role, meta.layer, meta.expert)
    };
    assert_eq!(
        meta("model.embed_tokens.weight"),
        (Role::Embedding, None, None)
    );
    assert_eq!(meta("lm_head.weight"), (Role::LmHead, None, None));
    assert_eq!(meta("model.norm.weight"), (Role::Norm, None, None));
    assert_eq!(
        meta("model.layers.1.self_attn.k_proj.weight"),
        (Role::AttnK, Some(1), None)
    );
    assert_eq!(
        meta("model.layers.1.block_sparse_moe.gate.weight"),
        (Role::Router, Some(1), None)
    );
    let expert = |part: &str| {
        meta(&format!(
            "model.layers.1.block_sparse_moe.experts.3.{part}.weight"
        ))
    };
    assert_eq!(expert("w1"), (Role::FfnGate, Some(1), Some(3)));
    assert_eq!(expert("w2"), (Role::FfnDown, Some(1), Some(3)));
    assert_eq!(expert("w3"), (Role::FfnUp, Some(1), Some(3)));
    let biased = Checkpoint::open(&vectors("architectures/qwen2-tied")).unwrap();
    assert_eq!(
        biased
            .meta("model.layers.0.self_attn.q_proj.bias")
            .unwrap()
            .role,
        Role::Bias
    );
    assert_eq!(biased.tying(), Tying::Tied);
    assert_eq!(
        biased.output_head().unwrap().name,
        "model.embed_tokens.weight"
    );
}

#[test]
fn towers_come_first_and_have_no_role() {
    let names = [
        "model.vision_tower.encoder.layers.1.mlp.fc1.weight",
        "model.language_model.layers.0.mlp.up_proj.weight",
    ];
    let dir = tempfile::tempdir().unwrap();
    write_single(
        dir.path(),
        &config(1),
        &names.map(|name| bf16(name, &[2, 2])),
    );
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let roles: Vec<_> = checkpoint
        .tensors()
        .iter()
        .map(|meta| (meta.name.as_str(), meta.role))
        .collect();
    assert_eq!(roles, [(names[0], Role::Other), (names[1], Role::FfnUp)]);
}

#[test]
fn a_stored_head_is_tied_by_the_configuration_or_by_its_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let tying = |tie: bool, head: Option<Raw>| {
        let mut json = config(1);
        json["tie_word_embeddings"] = json!(tie);
        let mut tensors = vec![bf16("model.embed_tokens.weight", &[16, 8])];
        tensors.extend(head);
        write_single(dir.path(), &json, &tensors);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let tied_to = checkpoint
            .meta("lm_head.weight")
            .and_then(|meta| meta.tied_to.clone());
        (
            checkpoint.tying(),
            tied_to,
            checkpoint.output_head().map(|meta| meta.name.clone()),
        )
    };
    let embedding = || Some("model.embed_tokens.weight".to_owned());
    let head = || Some("lm_head.weight".to_owned());
    let other = bf16("lm_head.weight", &[16, 8]);
    let mut same = bf16("model.embed_tokens.weight", &[16, 8]);
    same.0 = "lm_head.weight".into();
    assert_eq!(
        tying(false, Some(other.clone())),
        (Tying::Untied, None, head())
    );
    assert_eq!(
        tying(true, Some(other)),
        (Tying::Tied, embedding(), embedding())
    );
    assert_eq!(tying(false, Some(same)), (Tying::Tied, embedding(), head()));
    assert_eq!(tying(true, None), (Tying::Tied, None, embedding()));
    assert_eq!(tying(false, None), (Tying::Absent, None, None));
}
