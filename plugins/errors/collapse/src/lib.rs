//! Coarse numerical damage, which no measurement of quality should miss: weights on four levels, one matrix a hundred times too
//! large, attention matrices of rank one, attention matrices of zeros.

use packhost_sdk::json::{Value, json};
use packhost_sdk::{
    About, Draft, Failure, Injection, Program, Result, Span, Statistic, Tensor, TensorInfo,
    export_injection, round_to,
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
    ExtremeQuant,
    ScaleExplosion,
    RankCollapse,
    NormCollapse,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NoSettings {}

/// Words of feed-forward weights, tried in this order; the empty one stands for any weight.
const FEED_FORWARD_FIRST: [&str; 7] = [
    "mlp",
    "ffn",
    "feed_forward",
    "block_sparse_moe.experts",
    "moe.experts",
    "experts",
    "",
];

/// What the names of attention weights contain.
const ATTENTION: [&str; 8] = [
    "q_proj.weight",
    "k_proj.weight",
    "v_proj.weight",
    "o_proj.weight",
    "c_attn.weight",
    "c_proj.weight",
    "out_proj.weight",
    "query_key_value.weight",
];

/// How many matrices lose their rank, respectively their norm.
const RANK_TARGETS: usize = 8;
const NORM_TARGETS: usize = 32;

struct Collapse;

impl Injection for Collapse {
    const ABOUT: About = About {
        id: "collapse-faults",
        version: env!("CARGO_PKG_VERSION"),
        title: "Coarse damage: extreme quantisation, scale explosion, rank and norm collapse",
    };
    type Params = Params;

    fn inject(params: &Params, draft: &Draft) -> Result<Value> {
        match params.error_type {
            ErrorType::ExtremeQuant => extreme_quant(draft),
            ErrorType::ScaleExplosion => scale_explosion(draft),
            ErrorType::RankCollapse => rank_collapse(draft),
            ErrorType::NormCollapse => norm_collapse(draft),
        }
    }
}

/// Whether a tensor is a weight with two or more axes.
fn is_weight(tensor: &TensorInfo) -> bool {
    tensor.is_matrix_like() && tensor.name.to_lowercase().contains("weight")
}

/// The failure of a damage that finds nothing to damage.
fn nothing(error_type: &str, wanted: &str) -> Failure {
    Failure::unsupported(format!(
        "{error_type}: this model has no {wanted}, nothing would be injected"
    ))
}

/// Every weight, embeddings and head included, on the levels -2, -1, 0 and 1 of a step for the whole tensor.
fn extreme_quant(draft: &Draft) -> Result<Value> {
    let mut count = 0;
    for tensor in draft
        .model()
        .tensors
        .iter()
        .filter(|tensor| is_weight(tensor))
    {
        let damaged = draft.get(&tensor.name)?.map(|k| {
            let x = k.input(0);
            let step = (x.reduce_absmax(Span::Whole) / 2.0).max(1e-10);
            (x / &step).round_half_even().clamp(-2.0, 1.0) * step
        })?;
        draft.put(&tensor.name, damaged)?;
        count += 1;
    }
    if count == 0 {
        return Err(nothing("extreme_quant", "weight matrix"));
    }
    Ok(json!({ "error_type": "extreme_quant", "injected": true, "quantized_params": count }))
}

/// One feed-forward weight times 100.
fn scale_explosion(draft: &Draft) -> Result<Value> {
    let model = draft.model();
    let first = |word: &&str| {
        let matches =
            |tensor: &&TensorInfo| is_weight(tensor) && tensor.name.to_lowercase().contains(*word);
        model.tensors.iter().find(matches)
    };
    let target = FEED_FORWARD_FIRST.iter().find_map(first);
    let name = &target
        .ok_or_else(|| nothing("scale_explosion", "weight matrix"))?
        .name;
    draft.put(name, draft.get(name)?.map(|k| k.input(0) * 100.0)?)?;
    Ok(
        json!({ "error_type": "scale_explosion", "injected": true, "target_param": name, "scale_factor": 100.0 }),
    )
}

/// The first `most` attention matrices, else the first `most` weight matrices, without those of fewer than four elements.
fn targets(draft: &Draft, most: usize) -> Vec<String> {
    let model = draft.model();
    let first = |wanted: &dyn Fn(&str) -> bool| -> Vec<&TensorInfo> {
        let matrices = model
            .tensors
            .iter()
            .filter(|tensor| tensor.shape.len() == 2);
        matrices
            .filter(|tensor| wanted(&tensor.name.to_lowercase()))
            .take(most)
            .collect()
    };
    let mut found = first(&|name| ATTENTION.iter().any(|word| name.contains(word)));
    if found.is_empty() {
        found = first(&|name| name.contains("weight"));
    }
    found
        .into_iter()
        .filter(|tensor| tensor.len() >= 4)
        .map(|tensor| tensor.name.clone())
        .collect()
}

/// The Frobenius norms of two tensors, rounded to the dtype of the first.
fn norms(a: &Tensor, b: &Tensor) -> Result<[f32; 2]> {
    let program = Program::new(|k| {
        k.measure(Statistic::SumOfSquares, k.input(0));
        k.measure(Statistic::SumOfSquares, k.input(1));
    })?;
    let squares = a.measure(&program, &[b], &[])?;
    let dtype = a.dtype();
    Ok(squares.map(|squares: f64| round_to(dtype, squares.sqrt() as f32, false)))
}

/// Attention matrices become the outer product of their first column and row, with their norm kept.
fn rank_collapse(draft: &Draft) -> Result<Value> {
    let names = targets(draft, RANK_TARGETS);
    if names.is_empty() {
        return Err(nothing("rank_collapse", "matrix"));
    }
    for name in &names {
        let tensor = draft.get(name)?;
        let dtype = tensor.dtype();
        let outer = tensor.outer_of_first()?;
        let [before, after] = norms(&tensor, &outer)?;
        let divisor = round_to(dtype, after + 1e-12, false);
        let ratio = round_to(dtype, before / divisor, false);
        draft.put(name, outer.map(|k| k.input(0) * ratio)?)?;
    }
    Ok(
        json!({ "error_type": "rank_collapse", "injected": true, "rank_collapsed_params": names.len(), "targets": names }),
    )
}

/// Attention matrices become zero.
fn norm_collapse(draft: &Draft) -> Result<Value> {
    let names = targets(draft, NORM_TARGETS);
    if names.is_empty() {
        return Err(nothing("norm_collapse", "matrix"));
    }
    for name in &names {
        draft.put(name, draft.get(name)?.map(|k| k.constant(0.0))?)?;
    }
    Ok(
        json!({ "error_type": "norm_collapse", "injected": true, "norm_collapsed_params": names.len(), "targets": names }),
    )
}

export_injection!(Collapse);

#[cfg(test)]
mod tests;
