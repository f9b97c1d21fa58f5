//! Damage that random matrix theory sees: rows drawn towards one of them (`anisotropy`), scaled rows (`row_scale`), and norm
//! weights with multiplicative noise (`norm_noise`). In spite of the type's name every shipped scenario uses anisotropy of
//! feed-forward matrices.
//!
//! Tensors are chosen by family words and layers, shuffled with Python's generator and cut. Noise is PyTorch's CPU stream, one
//! generator over all tensors in the order of the shuffle; that stream is the definition, whatever device the host uses. Only
//! the chosen rows cross the sandbox.

mod rows;
mod settings;

use packhost_sdk::candidates::{
    ATTENTION, Candidates, EMBEDDING, FEED_FORWARD, QUERY_KEY_VALUE, Rule,
};
use packhost_sdk::json::{Value, json};
use packhost_sdk::rng::TorchNormal;
use packhost_sdk::{
    About, DType, Draft, Failure, Injection, ModelInfo, Result, Role, export_injection, round_to,
};
use schemars::JsonSchema;
use serde::Deserialize;

use settings::{Mode, Rows, Settings};

/// Parameters.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Params {
    /// Starts with `rmt_norm_noise`.
    #[schemars(regex(pattern = "^rmt_norm_noise"))]
    error_type: String,
    #[serde(default)]
    env: Settings,
}

/// Without a layer list: the last so many, for matrices and for norms.
const DEFAULT_LAYERS: usize = 8;
const DEFAULT_NORM_LAYERS: usize = 4;

struct Rmt;

impl Injection for Rmt {
    const ABOUT: About = About {
        id: "rmt-faults",
        version: env!("CARGO_PKG_VERSION"),
        title: "Rows made alike, scaled rows and noisy norms",
    };
    type Params = Params;

    fn inject(params: &Params, draft: &Draft) -> Result<Value> {
        let error_type = params.error_type.as_str();
        if !error_type.starts_with("rmt_norm_noise") {
            return Err(Failure::invalid(format!(
                "`error_type` is `{error_type}`, this plugin serves rmt_norm_noise*"
            )));
        }
        match params.env.mode()? {
            Mode::NormNoise => norm_noise(error_type, &params.env, draft),
            mode => damage_rows(error_type, &params.env, mode, draft),
        }
    }
}

/// The tensors whose rows are damaged.
fn targets(error_type: &str, rows: &Rows, model: &ModelInfo) -> Result<Candidates> {
    let skip_qkv = !rows.include_qkv && (rows.family == "attn" || rows.family == "both");
    let belongs = |name: &str| {
        let any = |words: &[&str]| words.iter().any(|word| name.contains(word));
        let of_family = match rows.family.as_str() {
            "attn" => any(&ATTENTION),
            "ffn" => any(&FEED_FORWARD),
            "embed" => any(&EMBEDDING),
            "all" => any(&ATTENTION) || any(&FEED_FORWARD) || any(&EMBEDDING),
            _ => any(&ATTENTION) || any(&FEED_FORWARD),
        };
        of_family && !(skip_qkv && any(&QUERY_KEY_VALUE))
    };
    let rule = Rule {
        family: &belongs,
        containing: &rows.containing,
        layers: &rows.layers,
        default_last: DEFAULT_LAYERS,
        outside_blocks: true,
    };
    rule.find(model)?
        .shuffled(rows.seed, rows.max_params)
        .or_refuse(error_type)
}

/// Anisotropy and row scaling.
fn damage_rows(error_type: &str, env: &Settings, mode: Mode, draft: &Draft) -> Result<Value> {
    let chosen_rows = env.rows(mode);
    let candidates = targets(error_type, &chosen_rows, &draft.model())?;
    let mut normals = TorchNormal::new(chosen_rows.seed);
    let mut modified = Vec::new();
    for name in &candidates.names {
        let tensor = draft.get(name)?;
        let (all, columns) = tensor.info().rows_columns();
        let least = if mode == Mode::Anisotropy { 2 } else { 1 };
        let count = rows::count(all, chosen_rows.frac, chosen_rows.max_rows, least);
        let indices = rows::choose(
            &tensor,
            name,
            &chosen_rows.selection,
            count,
            chosen_rows.seed,
        )?;
        let base: Vec<Vec<f32>> = indices
            .iter()
            .map(|&row| tensor.row(row))
            .collect::<Result<_>>()?;
        let damaged = match mode {
            Mode::Anisotropy => mix(&base, tensor.dtype(), env, &mut normals),
            _ => {
                let factor = env.row_factor() as f32;
                base.iter()
                    .map(|row| row.iter().map(|value| value * factor).collect())
                    .collect()
            }
        };
        if damaged
            .iter()
            .flatten()
            .any(|value: &f32| !value.is_finite())
        {
            continue;
        }
        let result = tensor.duplicate();
        for (&row, values) in indices.iter().zip(&damaged) {
            result.write(row * columns, values)?;
        }
        draft.put(name, result)?;
        modified.push(name);
    }
    if modified.is_empty() {
        return Err(Failure::unsupported(format!(
            "{error_type}: every damaged row would be non-finite, nothing was injected"
        )));
    }
    let mut record = json!({
        "error_type": error_type,
        "injected": true,
        "mode": if mode == Mode::Anisotropy { "anisotropy" } else { "row_scale" },
        "seed": chosen_rows.seed,
        "target_family": chosen_rows.family,
        "target_params": chosen_rows.containing,
        "target_layers": candidates.layers,
        "include_qkv": chosen_rows.include_qkv,
        "row_selection": chosen_rows.selection,
        "max_params": chosen_rows.max_params,
        "max_rows": chosen_rows.max_rows,
        "row_frac": chosen_rows.frac,
        "modified_count": modified.len(),
        "modified_params": modified.iter().take(20).collect::<Vec<_>>(),
        "total_layers": candidates.total_layers,
    });
    if mode == Mode::Anisotropy {
        record["blend"] = json!(env.blend());
        record["preserve_row_norms"] = json!(env.preserve_norms());
        record["jitter"] = json!(env.jitter());
    } else {
        record["factor"] = json!(env.row_factor());
    }
    Ok(record)
}

/// Rows drawn towards the first of them, each with its norm kept, plus a little noise. Every step is rounded to `dtype`.
fn mix(
    base: &[Vec<f32>],
    dtype: DType,
    env: &Settings,
    normals: &mut TorchNormal,
) -> Vec<Vec<f32>> {
    let rounded = |value: f32| round_to(dtype, value, false);
    let (blend, rest) = (env.blend() as f32, (1.0 - env.blend()) as f32);
    let first: Vec<f32> = base
        .first()
        .into_iter()
        .flatten()
        .map(|&value| rounded(value * blend))
        .collect();
    let mut mixed: Vec<Vec<f32>> = base
        .iter()
        .map(|row| {
            row.iter()
                .zip(&first)
                .map(|(&value, &first)| rounded(rounded(value * rest) + first))
                .collect()
        })
        .collect();
    if env.preserve_norms() {
        for (row, before) in mixed.iter_mut().zip(base) {
            let ratio = rounded(norm(before).max(1e-12) / norm(row).max(1e-12));
            for value in row {
                *value = rounded(*value * ratio);
            }
        }
    }
    let jitter = env.jitter();
    if jitter > 0.0 {
        let scale = (jitter * f64::from(deviation(base)).max(1e-6)) as f32;
        let noise = normals.draw(mixed.iter().map(Vec::len).sum());
        for (value, noise) in mixed.iter_mut().flatten().zip(noise) {
            *value = rounded(*value + rounded(rounded(noise) * scale));
        }
    }
    mixed
}

/// Euclidean norm of a row in f32: eight partial sums, then the rest, which is the reference library's order and gives its bits.
fn norm(row: &[f32]) -> f32 {
    let (blocks, rest) = row.as_chunks::<8>();
    let mut partial = [0.0_f32; 8];
    for block in blocks {
        for (sum, value) in partial.iter_mut().zip(block) {
            *sum += value * value;
        }
    }
    partial
        .iter()
        .copied()
        .chain(rest.iter().map(|value| value * value))
        .sum::<f32>()
        .sqrt()
}

/// Unbiased standard deviation of all elements, in f64.
fn deviation(rows: &[Vec<f32>]) -> f32 {
    let elements = || rows.iter().flatten().map(|&value| f64::from(value));
    let count = elements().count() as f64;
    let mean = elements().sum::<f64>() / count;
    (elements()
        .map(|value| (value - mean) * (value - mean))
        .sum::<f64>()
        / (count - 1.0))
        .sqrt() as f32
}

/// Norm weights times clamped noise around 1.
fn norm_noise(error_type: &str, env: &Settings, draft: &Draft) -> Result<Value> {
    let (scale, layers, most, seed, global, clamp) = env.norms();
    let mut model = draft.model();
    model
        .tensors
        .retain(|tensor| tensor.role == Role::Norm && tensor.name.ends_with(".weight"));
    // The rule looks at matrices; norms are vectors, so their names are looked at as if they were.
    for tensor in &mut model.tensors {
        tensor.shape.insert(0, 1);
    }
    let rule = Rule {
        family: &|_| true,
        containing: "",
        layers: &layers,
        default_last: DEFAULT_NORM_LAYERS,
        outside_blocks: global,
    };
    let chosen = rule
        .find(&model)?
        .shuffled(seed, most)
        .or_refuse(error_type)?;
    let mut normals = TorchNormal::new(seed);
    let (low, high) = ((1.0 - clamp) as f32, (1.0 + clamp) as f32);
    for name in &chosen.names {
        let weight = draft.get(name)?.duplicate();
        let dtype = weight.dtype();
        let values = weight.row_major()?;
        let noise = normals.draw(values.len());
        let factor = |noise: f32| {
            round_to(
                dtype,
                (1.0 + noise * scale as f32).max(low).min(high),
                false,
            )
        };
        let noisy: Vec<f32> = values
            .iter()
            .zip(noise)
            .map(|(&value, noise)| value * factor(noise))
            .collect();
        weight.write(0, &noisy)?;
        draft.put(name, weight)?;
    }
    let modules: Vec<&str> = chosen
        .names
        .iter()
        .filter_map(|name| name.strip_suffix(".weight"))
        .collect();
    Ok(json!({
        "error_type": error_type,
        "injected": true,
        "mode": "norm_noise",
        "noise_scale": scale,
        "mult_clamp": clamp,
        "seed": seed,
        "target_layers": chosen.layers,
        "modified_count": modules.len(),
        "modified_modules": modules,
        "total_layers": chosen.total_layers,
    }))
}

export_injection!(Rmt);

#[cfg(test)]
mod tests;
