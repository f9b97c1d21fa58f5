//! Weights through an 8-bit float and back, without any scaling factor: what a naive FP8 cast does to a model.
//!
//! `e4m3` (and `e4m3fn`, `e4m3fnuz`) is 1-4-3 with largest value 448 and no infinity, saturating; `e5m2` (and `e5m2fn`,
//! `e5m2fnuz`) is 1-5-2 with infinity from 61440 on. Any other format name falls back to f16, as the reference does, and the
//! metadata says so. Rounding is half to even, subnormals and the sign of zero are kept, NaN stays NaN.

use packhost_sdk::json::{Value, json};
use packhost_sdk::{
    About, DType, Edit, Edited, ModelInfo, Result, Statistic, Target, TargetFacts, Tensor,
    export_edit, mean, round_to, scope::Scope,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Params {
    /// `e4m3` or `e5m2`, with or without `fn` or `fnuz`; anything else means f16.
    format: String,
    /// Which tensors: `ffn`, `attn` or `all`, optionally with `@layer=K`, `@layers=N`, `@router`.
    scope: String,
}

/// What one tensor needs.
#[derive(Debug, Serialize, Deserialize)]
struct Task {
    format: String,
}

/// The dtype that a format name means, and whether overflow saturates.
fn meaning(format: &str) -> (DType, bool) {
    match format {
        "e4m3" | "e4m3fn" | "e4m3fnuz" => (DType::F8E4M3, true),
        "e5m2" | "e5m2fn" | "e5m2fnuz" => (DType::F8E5M2, false),
        _ => (DType::F16, false),
    }
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
        if params.format.trim().is_empty() {
            return Err(packhost_sdk::Failure::invalid(
                "`format` is empty, use e4m3 or e5m2",
            ));
        }
        let names = params.scope.parse::<Scope>()?.select(model)?;
        let task = || Task {
            format: params.format.clone(),
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
        let (format, saturate) = meaning(&task.format);
        let dtype = tensor.dtype();
        let cast = tensor.map(|k| k.input(0).cast(format, saturate))?;
        // mean|new - old| / (mean|old| + 1e-10), every step in the tensor's dtype.
        let moved = tensor
            .zip(&cast, |k| (k.input(1) - k.input(0)).abs())?
            .summary(Statistic::Mean)?;
        let size = tensor.summary(Statistic::AbsSum)? / tensor.len().max(1) as f64;
        let rounded = |value: f64| round_to(dtype, value as f32, false);
        let error = rounded(f64::from(
            rounded(moved) / rounded(f64::from(rounded(size) + 1e-10)),
        ));
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
            "torch_fp8_dtype_available": meaning(&params.format).0 != DType::F16,
        }))
    }
}

export_edit!(Fp8);

#[cfg(test)]
mod tests;
