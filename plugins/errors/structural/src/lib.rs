//! Structural damage, which a check of the checkpoint's structure must catch: one non-finite element, a vocabulary of another
//! size, a missing decoder block, a head that is tied or untied against the configuration's word.
//!
//! Each touches as few tensors as the damage needs; the host shares the rest with the baseline.

use packhost_sdk::faults::{NoSettings, is_weight, nothing};
use packhost_sdk::json::{Value, json};
use packhost_sdk::scope::layer_of;
use packhost_sdk::{
    About, Draft, Injection, ModelInfo, Result, Role, TensorInfo, export_injection,
};
use schemars::JsonSchema;
use serde::Deserialize;

/// Parameters.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Params {
    /// Which damage.
    error_type: ErrorType,
    /// There are no settings.
    #[serde(default, rename = "env")]
    _env: NoSettings,
}

/// The damage that this component does.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum ErrorType {
    NanInjection,
    InfInjection,
    ShapeMismatch,
    MissingTensors,
    WeightTyingBreak,
}

/// Rows by which `shape_mismatch` lengthens the vocabulary.
const NEW_ROWS: u64 = 8;

/// Endings of an input embedding's name, the likeliest first.
const EMBEDDINGS: [&str; 3] = [
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
];

struct Structural;

impl Injection for Structural {
    const ABOUT: About = About {
        id: "structural-faults",
        version: env!("CARGO_PKG_VERSION"),
        title: "Structural damage: non-finite values, shapes, missing tensors, tying",
    };
    type Params = Params;

    fn inject(params: &Params, draft: &Draft) -> Result<Value> {
        match params.error_type {
            ErrorType::NanInjection => nan_injection(draft),
            ErrorType::InfInjection => inf_injection(draft),
            ErrorType::ShapeMismatch => shape_mismatch(draft),
            ErrorType::MissingTensors => missing_tensors(draft),
            ErrorType::WeightTyingBreak => weight_tying_break(draft),
        }
    }
}

/// Overwrites element [0, 0] of a tensor.
fn overwrite_first(draft: &Draft, name: &str, value: f32) -> Result<()> {
    let tensor = draft.get(name)?.duplicate();
    tensor.write(0, &[value])?;
    draft.put(name, tensor)
}

/// One NaN in the first weight of block 0.
fn nan_injection(draft: &Draft) -> Result<Value> {
    let model = draft.model();
    let target = model
        .tensors
        .iter()
        .find(|tensor| is_weight(tensor) && layer_of(&tensor.name) == Some(0));
    let name = &target
        .ok_or_else(|| nothing("nan_injection", "weight in block 0"))?
        .name;
    overwrite_first(draft, name, f32::NAN)?;
    Ok(
        json!({ "error_type": "nan_injection", "injected": true, "target_param": name, "target_block": 0 }),
    )
}

/// One infinity in the first attention weight.
fn inf_injection(draft: &Draft) -> Result<Value> {
    let model = draft.model();
    let target = model
        .tensors
        .iter()
        .find(|tensor| is_weight(tensor) && tensor.name.to_lowercase().contains("attn"));
    let name = &target
        .ok_or_else(|| nothing("inf_injection", "attention weight"))?
        .name;
    overwrite_first(draft, name, f32::INFINITY)?;
    Ok(json!({ "error_type": "inf_injection", "injected": true, "target_param": name }))
}

/// The input embedding.
fn embedding(model: &ModelInfo) -> Option<&TensorInfo> {
    EMBEDDINGS.iter().find_map(|ending| {
        model
            .tensors
            .iter()
            .find(|tensor| tensor.name.ends_with(ending))
    })
}

/// The head, unless it shares the embedding's storage.
fn own_head(model: &ModelInfo) -> Option<&TensorInfo> {
    model
        .tensors
        .iter()
        .find(|tensor| tensor.role == Role::LmHead && tensor.tied_to.is_none())
}

/// Eight rows of zeros more in the embedding and, if it has its own, the head.
fn shape_mismatch(draft: &Draft) -> Result<Value> {
    let model = draft.model();
    let embedding =
        embedding(&model).ok_or_else(|| nothing("shape_mismatch", "input embedding"))?;
    let old = embedding.shape.first().copied().unwrap_or(0);
    let head = own_head(&model).filter(|head| head.shape.len() == 2 && head.shape[0] == old);
    let mut keys = Vec::new();
    for tensor in std::iter::once(embedding).chain(head) {
        let mut shape = tensor.shape.clone();
        shape[0] += NEW_ROWS;
        draft.put(&tensor.name, draft.get(&tensor.name)?.reshape(&shape)?)?;
        keys.push(tensor.name.clone());
    }
    keys.sort();
    let mut config = draft.config()?;
    config.insert("vocab_size".into(), json!(old + NEW_ROWS));
    draft.set_config(config)?;
    Ok(json!({
        "error_type": "shape_mismatch",
        "injected": true,
        "mode": "overlay_safetensors",
        "old_vocab_size": old,
        "new_vocab_size": old + NEW_ROWS,
        "delta": NEW_ROWS,
        "overrides_keys": keys,
    }))
}

/// The last decoder block goes, and the configuration says so.
fn missing_tensors(draft: &Draft) -> Result<Value> {
    let model = draft.model();
    let last = model
        .tensors
        .iter()
        .filter_map(|tensor| layer_of(&tensor.name))
        .max();
    let last = last
        .filter(|last| *last > 0)
        .ok_or_else(|| nothing("missing_tensors", "second decoder block"))?;
    let (before, after) = (last + 1, last);
    let doomed = model
        .tensors
        .iter()
        .filter(|tensor| layer_of(&tensor.name) == Some(last));
    let names: Vec<&str> = doomed.map(|tensor| tensor.name.as_str()).collect();
    let architecture = match names.first() {
        Some(name) if name.contains("language_model") => "language_model_layers",
        Some(name) if name.contains(".layers.") => "model_layers",
        _ => "gpt2",
    };
    for name in &names {
        draft.remove(name)?;
    }
    let mut config = draft.config()?;
    for (key, value) in &mut config {
        match value {
            Value::Number(_)
                if ["num_hidden_layers", "n_layer", "num_layers"].contains(&key.as_str()) =>
            {
                *value = json!(after)
            }
            // One entry per layer, such as Qwen2's layer_types.
            Value::Array(entries) if key.contains("layer") && entries.len() == before as usize => {
                entries.truncate(after as usize);
            }
            _ => {}
        }
    }
    draft.set_config(config)?;
    Ok(json!({
        "error_type": "missing_tensors",
        "injected": true,
        "arch": architecture,
        "dropped_layers": 1,
        "layers_before": before,
        "layers_after": after,
    }))
}

/// A tied head becomes its own copy; a head of its own becomes the embedding.
fn weight_tying_break(draft: &Draft) -> Result<Value> {
    let model = draft.model();
    let embedding =
        embedding(&model).ok_or_else(|| nothing("weight_tying_break", "input embedding"))?;
    let mut config = draft.config()?;
    let mode = match own_head(&model) {
        Some(head) => {
            draft.remove(&head.name)?;
            "tie"
        }
        None => {
            draft.put("lm_head.weight", draft.get(&embedding.name)?.duplicate())?;
            "untie"
        }
    };
    config.insert("tie_word_embeddings".into(), json!(mode == "tie"));
    draft.set_config(config)?;
    let target = if embedding.name.ends_with("wte.weight") {
        "gpt2"
    } else {
        "embed_tokens"
    };
    Ok(
        json!({ "error_type": "weight_tying_break", "injected": true, "mode": mode, "target": target }),
    )
}

export_injection!(Structural);

#[cfg(test)]
mod tests;
