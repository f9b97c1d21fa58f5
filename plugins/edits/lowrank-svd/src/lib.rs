//! The best approximation of each matrix by one of rank `r`, written back dense: what factorising a layer loses.
//!
//! The reference draws its start vectors from an unseeded generator, so that the same edit differs from run to run. Here they
//! are a function of the scenario's seed and the tensor's name. Of a tensor with three axes (fused experts) each expert's
//! matrix is approximated by itself; flattened, rank 32 would keep everything of up to 32 experts.

use packhost_sdk::json::{Value, json};
use packhost_sdk::{
    About, DType, Edit, Edited, ModelInfo, Program, Result, Statistic, Target, TargetFacts, Tensor,
    export_edit, mean, params, round_to, scope::Scope,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Params {
    /// Rank to keep.
    #[schemars(range(min = 1))]
    rank: u32,
    /// Which tensors: `ffn`, `attn` or `all`, optionally with `@layer=K`, `@layers=N`, `@router`.
    scope: String,
    /// Start vectors are a function of this and the tensor's name.
    #[serde(default)]
    seed: u64,
}

/// What one tensor needs.
#[derive(Debug, Serialize, Deserialize)]
struct Task {
    rank: u32,
    seed: u64,
}

/// Name of the share of the norm that a tensor kept, among its facts.
const ENERGY: &str = "energy-retained";

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

/// Norm after by norm before, in the tensor's dtype; 1 for a tensor of zeros.
fn energy(dtype: DType, before: f32, after: f32) -> f32 {
    if before > 0.0 {
        round_to(dtype, after / before, false)
    } else {
        1.0
    }
}

/// Approximates every matrix of a stack by itself.
fn per_expert(tensor: &Tensor, shape: &[u64], rank: u32, seed: u64) -> Result<Tensor> {
    let (experts, matrix) = (shape[0], &shape[1..]);
    let flat = [matrix[0], matrix[1..].iter().product()];
    let size: u64 = flat.iter().product();
    let result = tensor.duplicate();
    // The right shape and dtype; the values are overwritten.
    let slot = tensor.reshape(&flat)?;
    for expert in 0..experts {
        slot.copy_from(0, tensor, expert * size, size)?;
        result.copy_from(
            expert * size,
            &slot.truncate_rank(rank, seed.wrapping_add(expert))?,
            0,
            size,
        )?;
    }
    Ok(result)
}

struct LowrankSvd;

impl Edit for LowrankSvd {
    const ABOUT: About = About {
        id: "lowrank-svd",
        version: env!("CARGO_PKG_VERSION"),
        title: "Best approximation of given rank, written back dense",
    };
    type Params = Params;
    type Task = Task;

    fn plan(params: &Params, model: &ModelInfo) -> Result<Vec<Target<Task>>> {
        let rank = params::at_least("rank", params.rank, 1)?;
        let names = params.scope.parse::<Scope>()?.select(model)?;
        let task = |name: &str| Task {
            rank,
            seed: seed_of(params.seed, name),
        };
        Ok(names
            .into_iter()
            .map(|tensor| Target {
                task: task(&tensor),
                tensor,
            })
            .collect())
    }

    fn apply(task: &Task, tensor: &Tensor) -> Result<Edited> {
        let rank = params::at_least("rank", task.rank, 1)?;
        let shape = tensor.shape();
        let approximation = match shape.len() {
            0..=2 => tensor.truncate_rank(rank, task.seed)?,
            _ => per_expert(tensor, &shape, rank, task.seed)?,
        };
        let [before, after] = norms(tensor, &approximation)?;
        let kept = energy(tensor.dtype(), before, after);
        Ok(Edited::new(approximation).fact(ENERGY, f64::from(kept)))
    }

    fn summarize(params: &Params, targets: &[TargetFacts]) -> Result<Value> {
        let scope: Scope = params.scope.parse()?;
        Ok(json!({
            "edit_type": "lowrank_svd",
            "scope": params.scope,
            "parameters": { "rank": params.rank },
            "storage_format": "dense_float_lowrank_approximated",
            "actual_storage_format": "dense_float_lowrank_approximated",
            "rank": params.rank,
            "modified_matrices": targets.len(),
            "avg_energy_retained": mean(targets, ENERGY),
            "base_scope": scope.base(),
            "layer_limit": scope.layer_limit(),
            "layer": scope.layer(),
        }))
    }
}

/// A seed for one tensor: FNV-1a over the name, started from the scenario's seed.
fn seed_of(seed: u64, name: &str) -> u64 {
    name.bytes()
        .fold(seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
}

export_edit!(LowrankSvd);

#[cfg(test)]
mod tests;
