//! Weights through an 8-bit float and back, without any scaling factor: what a naive FP8 cast does to a model.
//!
//! `e4m3` (and `e4m3fn`, `e4m3fnuz`) is 1-4-3 with largest value 448 and no infinity, saturating; `e5m2` (and `e5m2fn`,
//! `e5m2fnuz`) is 1-5-2 with infinity from 61440 on. Rounding is half to even, subnormals and the sign of zero are kept, NaN
//! stays NaN.
//!
//! The reference takes any other name for f16. Here that path has the one name `f16`, so that a slip of the pen is refused
//! instead of being run as an edit that hardly edits.

use packhost_sdk::json::{Value, json};
use packhost_sdk::{
    About, DType, Edit, Edited, ModelInfo, Program, Result, Statistic, Target, TargetFacts, Tensor,
    export_edit, mean, round_to, scope::Scope,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Params {
    /// `e4m3` or `e5m2`, with or without `fn` or `fnuz`; or `f16`, what the reference does without an 8-bit type.
    format: Format,
    /// Which tensors: `ffn`, `attn` or `all`, optionally with `@layer=K`, `@layers=N`, `@router`.
    scope: String,
}

/// The names of formats. Several mean the same; the metadata keeps the one that was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Format {
    E4m3,
    E4m3fn,
    E4m3fnuz,
    E5m2,
    E5m2fn,
    E5m2fnuz,
    F16,
}

impl Format {
    /// The dtype that the name means, and whether overflow saturates.
    fn meaning(self) -> (DType, bool) {
        match self {
            Self::E4m3 | Self::E4m3fn | Self::E4m3fnuz => (DType::F8E4M3, true),
            Self::E5m2 | Self::E5m2fn | Self::E5m2fnuz => (DType::F8E5M2, false),
            Self::F16 => (DType::F16, false),
        }
    }
}

/// What one tensor needs.
#[derive(Debug, Serialize, Deserialize)]
struct Task {
    format: Format,
}

/// Name of the mean relative error of one tensor among its facts.
const ERROR: &str = "relative-error";

struct Fp8;

impl Edit for Fp8 {
    const ABOUT: About = About {
        id: "fp8",
        version: env!("CARGO_PKG_VERSION"),
        title: "Weights through an 8-bit float and back",
    };
    type Params = Params;
    type Task = Task;

    fn plan(params: &Params, model: &ModelInfo) -> Result<Vec<Target<Task>>> {
        let names = params.scope.parse::<Scope>()?.select(model)?;
        let task = || Task {
            format: params.format,
        };
        Ok(names
            .into_iter()
            .map(|tensor| Target {
                tensor,
                task: task(),
            })
            .collect())
    }

    fn apply(task: &Task, tensor: &Tensor) -> Result<Edited> {
        let (format, saturate) = task.format.meaning();
        let dtype = tensor.dtype();
        let program = Program::rounded(dtype, |k| {
            let (old, new) = (k.input(0), k.input(0).cast(format, saturate));
            k.measure(Statistic::Sum, (&new - &old).abs());
            k.measure(Statistic::Sum, old.abs());
            new
        })?;
        let (cast, sums) = tensor.compute(&program, &[], &[])?.split()?;
        // mean|new - old| / (mean|old| + 1e-10), every step in the tensor's dtype.
        let rounded = |value: f64| round_to(dtype, value as f32, false);
        let [moved, size] = sums.map(|sum: f64| rounded(sum / tensor.len().max(1) as f64));
        let error = rounded(f64::from(moved / rounded(f64::from(size + 1e-10))));
        Ok(Edited::new(cast).fact(ERROR, f64::from(error)))
    }

    fn summarize(params: &Params, targets: &[TargetFacts]) -> Result<Value> {
        Ok(json!({
            "edit_type": "fp8_quant",
            "scope": params.scope,
            "parameters": { "format": params.format },
            "storage_format": "float_dequantized",
            "actual_storage_format": "float_dequantized",
            "quantization_mode": "fp8_dequantized_external_subject_simulation",
            "format": params.format,
            "quantized_tensors": targets.len(),
            "avg_relative_error": mean(targets, ERROR),
            "torch_fp8_dtype_available": params.format.meaning().0 != DType::F16,
        }))
    }
}

export_edit!(Fp8);

#[cfg(test)]
mod tests;
