//! Subjects as overlays: what is shared, what is changed, where the forward pass first differs.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::Arc;

use common::{config, llama, write_single};
use packhost_model::{Checkpoint, Cut, Overlay, Tying, Weights};
use packhost_tensor::{DType, Tensor};
use serde_json::json;

fn base() -> (tempfile::TempDir, Arc<Checkpoint>) {
    let dir = tempfile::tempdir().unwrap();
    write_single(dir.path(), &config(4), &llama(4));
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    (dir, checkpoint)
}

fn zeros(dtype: DType, shape: &[usize]) -> Tensor {
    let bytes = shape.iter().product::<usize>() * dtype.size();
    Tensor::new(dtype, shape, vec![0; bytes].into()).unwrap()
}

#[test]
fn an_overlay_shares_what_it_does_not_change() {
    let (_dir, base) = base();
    let mut overlay = Overlay::new(Arc::clone(&base));
    assert_eq!(overlay.tensors(), base.tensors());
    assert_eq!(overlay.first_changed_layer(), Cut::Nothing);
    let (changed, same) = (
        "model.layers.2.mlp.up_proj.weight",
        "model.layers.2.mlp.down_proj.weight",
    );
    overlay.put(changed, zeros(DType::BF16, &[12, 8])).unwrap();
    assert_eq!(
        overlay.tensor(same).unwrap().bytes().as_ptr(),
        base.tensor(same).unwrap().bytes().as_ptr()
    );
    assert!(
        overlay
            .tensor(changed)
            .unwrap()
            .bytes()
            .iter()
            .all(|&byte| byte == 0)
    );
    assert!(
        base.tensor(changed)
            .unwrap()
            .bytes()
            .iter()
            .any(|&byte| byte != 0),
        "the baseline stays as it was"
    );
    assert_eq!(
        (overlay.changed().len(), overlay.byte_len()),
        (1, 12 * 8 * 2)
    );
    assert_eq!(
        overlay.tensors(),
        base.tensors(),
        "same names, shapes and dtypes"
    );
}

#[test]
fn tensors_outlive_their_checkpoint() {
    let (dir, base) = base();
    let tensor = base.tensor("model.norm.weight").unwrap();
    let expected = tensor.bytes().to_vec();
    base.release_all();
    drop(base);
    drop(dir);
    assert_eq!(tensor.bytes()[..], expected);
}

#[test]
fn reshaped_removed_and_added_tensors_show() {
    let (_dir, base) = base();
    let mut overlay = Overlay::new(Arc::clone(&base));
    overlay
        .put(
            "model.layers.1.mlp.up_proj.weight",
            zeros(DType::F32, &[3, 8]),
        )
        .unwrap();
    let meta = overlay.meta("model.layers.1.mlp.up_proj.weight").unwrap();
    assert_eq!(
        (meta.dtype, &meta.shape[..], meta.layer),
        (DType::F32, &[3, 8][..], Some(1))
    );

    overlay
        .remove("model.layers.3.self_attn.q_proj.weight")
        .unwrap();
    assert!(
        overlay
            .meta("model.layers.3.self_attn.q_proj.weight")
            .is_none()
    );
    assert!(
        overlay
            .tensor("model.layers.3.self_attn.q_proj.weight")
            .is_err()
    );
    assert!(
        overlay
            .remove("model.layers.3.self_attn.q_proj.weight")
            .is_err(),
        "it is gone already"
    );

    overlay
        .put(
            "model.layers.1.self_attn.q_proj.bias",
            zeros(DType::BF16, &[8]),
        )
        .unwrap();
    let names: Vec<_> = overlay
        .tensors()
        .iter()
        .map(|meta| meta.name.as_str())
        .collect();
    let at = names
        .iter()
        .position(|&name| name == "model.layers.1.self_attn.q_proj.bias")
        .unwrap();
    assert_eq!(names[at - 1], "model.layers.1.self_attn.q_proj.weight");
    overlay
        .remove("model.layers.1.self_attn.q_proj.bias")
        .unwrap();
    assert!(
        !overlay
            .changed()
            .contains_key("model.layers.1.self_attn.q_proj.bias"),
        "added and removed: no change"
    );
    overlay
        .put(
            "model.layers.3.self_attn.q_proj.weight",
            zeros(DType::BF16, &[8, 8]),
        )
        .unwrap();
    assert_eq!(
        overlay.tensors().len(),
        base.tensors().len(),
        "a removed tensor can come back"
    );
}

#[test]
fn the_cut_is_the_first_difference() {
    let (_dir, base) = base();
    let cut = |names: &[&str]| {
        let mut overlay = Overlay::new(Arc::clone(&base));
        for name in names {
            let shape = base
                .tensors()
                .iter()
                .find(|meta| meta.name == *name)
                .map_or(vec![1], |meta| meta.shape.clone());
            overlay.put(name, zeros(DType::BF16, &shape)).unwrap();
        }
        overlay.first_changed_layer()
    };
    assert_eq!(
        cut(&[
            "model.layers.3.mlp.up_proj.weight",
            "model.layers.1.input_layernorm.weight"
        ]),
        Cut::Layer(1)
    );
    assert_eq!(
        cut(&["model.layers.3.mlp.up_proj.weight", "lm_head.weight"]),
        Cut::Layer(3)
    );
    assert_eq!(
        cut(&["model.layers.2.self_attn.q_proj.bias"]),
        Cut::Layer(2)
    );
    assert_eq!(cut(&["lm_head.weight"]), Cut::Head);
    assert_eq!(cut(&["model.norm.weight"]), Cut::Head);
    assert_eq!(
        cut(&["model.embed_tokens.weight", "lm_head.weight"]),
        Cut::Embedding
    );
    assert_eq!(
        cut(&["model.layers.2.strange.weight"]),
        Cut::Embedding,
        "what is not known may matter anywhere"
    );
    let mut removed = Overlay::new(Arc::clone(&base));
    removed.remove("model.layers.2.mlp.up_proj.weight").unwrap();
    assert_eq!(removed.first_changed_layer(), Cut::Layer(2));
    assert!(
        Cut::Embedding < Cut::Layer(0) && Cut::Layer(9) < Cut::Head && Cut::Head < Cut::Nothing
    );
}

#[test]
fn a_changed_configuration_changes_everything_but_ties_only_the_head() {
    let (_dir, base) = base();
    let with = |key: &str, value: serde_json::Value| {
        let mut overlay = Overlay::new(Arc::clone(&base));
        let mut json = overlay.config_json().clone();
        json[key] = value;
        overlay.set_config(json).unwrap();
        overlay
    };
    assert_eq!(
        with("rope_theta", json!(5e5)).first_changed_layer(),
        Cut::Embedding
    );
    assert_eq!(
        with("num_hidden_layers", json!(3)).first_changed_layer(),
        Cut::Embedding
    );
    assert_eq!(
        with("transformers_version", json!("5")).first_changed_layer(),
        Cut::Nothing
    );
    assert!(with("transformers_version", json!("5")).config_changed());
    let mut tied = with("tie_word_embeddings", json!(true));
    assert_eq!(
        (tied.first_changed_layer(), tied.tying()),
        (Cut::Head, Tying::Tied)
    );
    assert_eq!(
        tied.output_head().unwrap().name,
        "model.embed_tokens.weight"
    );
    assert_eq!(
        tied.meta("lm_head.weight").unwrap().tied_to.as_deref(),
        Some("model.embed_tokens.weight")
    );
    tied.remove("lm_head.weight").unwrap();
    assert_eq!(
        (tied.first_changed_layer(), tied.tying()),
        (Cut::Head, Tying::Tied)
    );

    let mut overlay = Overlay::new(Arc::clone(&base));
    let before = overlay.config_json().clone();
    let mut wrong = before.clone();
    wrong["hidden_size"] = json!("wide");
    assert!(overlay.set_config(wrong).is_err());
    assert_eq!(
        (overlay.config_json(), overlay.config_changed()),
        (&before, false)
    );
}

#[test]
fn putting_the_embedding_in_the_heads_place_ties_by_bytes() {
    let (_dir, base) = base();
    let mut overlay = Overlay::new(Arc::clone(&base));
    assert_eq!(overlay.tying(), Tying::Untied);
    overlay
        .put(
            "lm_head.weight",
            base.tensor("model.embed_tokens.weight").unwrap(),
        )
        .unwrap();
    assert_eq!(overlay.tying(), Tying::Tied);
    overlay
        .put("model.embed_tokens.weight", zeros(DType::BF16, &[16, 8]))
        .unwrap();
    assert_eq!(overlay.tying(), Tying::Untied);
}
