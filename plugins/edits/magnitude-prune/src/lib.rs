//! Unstructured zeros by magnitude, with a threshold for each tensor.
//!
//! Of n elements, `k = trunc(n * sparsity)`. With `k = 0` nothing changes; otherwise `t` is the k-th smallest magnitude (NaN
//! counts as largest) and an element becomes `x * (|x| >= t)`. So the k-th element and all ties with it survive, a pruned
//! negative becomes -0, NaN stays NaN and infinities survive.

use packhost_sdk::json::{Value, json};
use packhost_sdk::{
    About, Edit, Edited, ModelInfo, Program, Result, Statistic, Target, TargetFacts, Tensor,
    export_edit, params, scope::Scope, total,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Params {
    /// Share of the elements to become zero.
    #[schemars(range(min = 0.0, max = 1.0))]
    sparsity: f64,
    /// Which tensors: `ffn`, `attn` or `all`, optionally with `@layer=K`, `@layers=N`, `@router`.
    scope: String,
}

/// What one tensor needs.
#[derive(Debug, Serialize, Deserialize)]
struct Task {
    sparsity: f64,
}

/// Names of facts: elements that are zero afterwards, and elements.
const ZEROS: &str = "zeros";
const ELEMENTS: &str = "elements";

struct MagnitudePrune;

impl Edit for MagnitudePrune {
    const ABOUT: About = About {
        id: "magnitude-prune",
        version: env!("CARGO_PKG_VERSION"),
        title: "Unstructured zeros by magnitude, per tensor",
    };
    type Params = Params;
    type Task = Task;

    fn plan(params: &Params, model: &ModelInfo) -> Result<Vec<Target<Task>>> {
        let sparsity = params::within("sparsity", params.sparsity, 0.0..=1.0)?;
        let names = params.scope.parse::<Scope>()?.select(model)?;
        Ok(names
            .into_iter()
            .map(|tensor| Target {
                tensor,
                task: Task { sparsity },
            })
            .collect())
    }

    fn apply(task: &Task, tensor: &Tensor) -> Result<Edited> {
        let sparsity = params::within("sparsity", task.sparsity, 0.0..=1.0)?;
        let len = tensor.len();
        // The product in f64, cut: 100 * 0.29 gives 28, as in the reference.
        let k = (len as f64 * sparsity) as u64;
        let (pruned, [zeros]) = if k == 0 {
            let program = Program::new(|k| k.measure(Statistic::Sum, k.input(0).equals(0.0)))?;
            (tensor.duplicate(), tensor.measure(&program, &[], &[])?)
        } else {
            let threshold = tensor.kth_magnitude(k)?;
            // A product with 0 or 1 needs no rounding.
            let program = Program::new(|k| {
                let pruned = k.input(0) * k.input(0).abs().at_least(k.scalar(0));
                k.measure(Statistic::Sum, pruned.equals(0.0));
                pruned
            })?;
            tensor.compute(&program, &[], &[threshold])?.split()?
        };
        Ok(Edited::new(pruned)
            .fact(ZEROS, zeros)
            .fact(ELEMENTS, len as f64))
    }

    fn summarize(params: &Params, targets: &[TargetFacts]) -> Result<Value> {
        let ((zeros, _), (elements, _)) = (total(targets, ZEROS), total(targets, ELEMENTS));
        Ok(json!({
            "edit_type": "magnitude_prune",
            "scope": params.scope,
            "parameters": { "target_sparsity": params.sparsity },
            "storage_format": "dense_float_with_zeros",
            "actual_storage_format": "dense_float_with_zeros",
            "target_sparsity": params.sparsity,
            "actual_sparsity": if elements > 0.0 { zeros / elements } else { 0.0 },
            "pruned_params": targets.len(),
        }))
    }
}

export_edit!(MagnitudePrune);

#[cfg(test)]
mod tests;
