//! Round-to-nearest integer quantisation, dequantised at once: what the weights of an integer-quantised model become.
//!
//! Every group of elements of a row shares one symmetric step `s = max(max|x| / qmax, 1e-10)`; an element becomes
//! `clamp(round_half_even(x / s), qmin, qmax) * s`, each step rounded to the tensor's dtype. There is no zero point. A
//! NaN poisons its group, an infinity turns it into NaN, and -0 stays -0.
//!
//! Of a tensor with three axes (fused experts) each expert's own rows are grouped, so that an expert gives the same numbers
//! whether it is stored alone or fused with others.

use packhost_sdk::json::{Value, json};
use packhost_sdk::{
    About, Edit, Edited, ModelInfo, Result, Span, Target, TargetFacts, Tensor, export_edit, params,
    scope::Scope,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Params {
    /// Bits per weight.
    #[schemars(range(min = 1, max = 16))]
    bits: u32,
    /// Elements of a row that share a step; 0 or less, or more than a row has: the whole row.
    group_size: i64,
    /// Which tensors: `ffn`, `attn` or `all`, optionally with `@layer=K`, `@layers=N`, `@router`.
    scope: String,
}

/// What one tensor needs.
#[derive(Debug, Serialize, Deserialize)]
struct Task {
    bits: u32,
    group_size: i64,
}

struct QuantRtn;

impl Edit for QuantRtn {
    const ABOUT: About = About {
        id: "quant-rtn",
        version: env!("CARGO_PKG_VERSION"),
        title: "Round-to-nearest integer quantisation, dequantised at once",
    };
    type Params = Params;
    type Task = Task;

    fn plan(params: &Params, model: &ModelInfo) -> Result<Vec<Target<Task>>> {
        let bits = params::within("bits", params.bits, 1..=16)?;
        let names = params.scope.parse::<Scope>()?.select(model)?;
        let task = || Task {
            bits,
            group_size: params.group_size,
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
        let bits = params::within("bits", task.bits, 1..=16)?;
        let half = (1_u32 << (bits - 1)) as f32;
        let (low, high) = (-half, (half - 1.0).max(1.0));

        let shape = tensor.shape();
        let columns = shape.last().copied().unwrap_or(1);
        let span = match u32::try_from(task.group_size) {
            Ok(size) if size > 0 && u64::from(size) < columns => Span::Group(size),
            _ => Span::Row,
        };
        let quantise = |tensor: &Tensor| {
            tensor.map(|k| {
                let x = k.input(0);
                let step = (x.reduce_absmax(span) / high).max(1e-10);
                (x / &step).round_half_even().clamp(low, high) * step
            })
        };
        if shape.len() > 2 {
            let rows: u64 = shape[..shape.len() - 1].iter().product();
            return quantise(&tensor.reshape(&[rows, columns])?)?
                .reshape(&shape)
                .map(Edited::new);
        }
        quantise(tensor).map(Edited::new)
    }

    fn summarize(params: &Params, targets: &[TargetFacts]) -> Result<Value> {
        Ok(json!({
            "edit_type": "quant_rtn",
            "scope": params.scope,
            "parameters": { "bits": params.bits, "group_size": params.group_size },
            "storage_format": "float_dequantized",
            "actual_storage_format": "float_dequantized",
            "quantization_mode": "rtn_dequantized_external_subject_simulation",
            "quantized_params": targets.len(),
        }))
    }
}

export_edit!(QuantRtn);

#[cfg(test)]
mod tests;
