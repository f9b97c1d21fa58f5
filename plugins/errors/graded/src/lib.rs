//! Damage whose strength is a number, so that a study can ask how much of it a guard needs.
//!
//! | type | what | strength |
//! |---|---|---|
//! | `relative_noise` | normal noise on every element of the chosen matrices | norm of the noise over the norm of the matrix (Frobenius) |
//! | `head_fade` | the columns of an attention output projection that belong to one head, times `1 - strength` | 1 removes the head |
//!
//! Matrices are chosen by words and layers, shuffled with Python's generator and cut. Noise is the host's, a function of
//! seed and element, and its norm is meant in expectation: over n elements it is met to about `1/√(2n)`. The sums
//! are rounded to the matrix's dtype, so noise below its resolution is partly lost.

use packhost_sdk::candidates::{ATTENTION, Candidates, FEED_FORWARD, Rule};
use packhost_sdk::json::{Value, json};
use packhost_sdk::params::{self, Setting};
use packhost_sdk::{
    About, Draft, Failure, Injection, Program, Result, Statistic, export_injection,
};
use schemars::JsonSchema;
use serde::Deserialize;

/// Parameters.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Params {
    /// Which damage.
    error_type: ErrorType,
    #[serde(default)]
    env: Settings,
}

/// The damage that this component does.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum ErrorType {
    RelativeNoise,
    HeadFade,
}

/// Settings of a scenario.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// How strong: above 0; for `relative_noise` at most 100, for `head_fade` at most 1. Default 1.
    #[serde(rename = "INVARLOCK_GRADED_STRENGTH")]
    strength: Setting<f64>,
    /// Words of which a name must contain one. A head fades in `o_proj` or `out_proj` alone.
    #[serde(rename = "INVARLOCK_GRADED_TARGET_PARAMS")]
    containing: Setting<String>,
    /// Layers: `all` (default), empty for the last, or `0-3,7`.
    #[serde(rename = "INVARLOCK_GRADED_TARGET_LAYERS")]
    layers: Setting<String>,
    /// Most tensors, default 1.
    #[serde(rename = "INVARLOCK_GRADED_MAX_PARAMS")]
    most: Setting<usize>,
    /// Seed of the shuffle and of the noise, default 42. A head that fades is the one of that number, counted round.
    #[serde(rename = "INVARLOCK_GRADED_SEED")]
    seed: Setting<u64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            strength: Setting(1.0),
            containing: Setting::default(),
            layers: Setting("all".into()),
            most: Setting(1),
            seed: Setting(42),
        }
    }
}

/// Attention output projections whose columns are the heads' outputs side by side.
const HEADS_SIDE_BY_SIDE: [&str; 2] = ["o_proj", "out_proj"];

/// Names of the number of heads in configurations.
const HEADS: [&str; 3] = ["num_attention_heads", "n_head", "num_heads"];

struct Graded;

impl Injection for Graded {
    const ABOUT: About = About {
        id: "graded-faults",
        version: env!("CARGO_PKG_VERSION"),
        title: "Damage of a stated strength: relative noise, a fading attention head",
    };
    type Params = Params;

    fn inject(params: &Params, draft: &Draft) -> Result<Value> {
        let env = &params.env;
        match params.error_type {
            ErrorType::RelativeNoise => relative_noise(env, draft),
            ErrorType::HeadFade => head_fade(env, draft),
        }
    }
}

/// The strength, if it is above 0 and at most `most`.
fn strength(env: &Settings, most: f64) -> Result<f64> {
    let strength = env.strength.0;
    if strength == 0.0 {
        return Err(Failure::invalid(
            "`INVARLOCK_GRADED_STRENGTH` is 0, nothing would be injected",
        ));
    }
    params::within("INVARLOCK_GRADED_STRENGTH", strength, 0.0..=most)
}

fn choose(
    error_type: &str,
    env: &Settings,
    draft: &Draft,
    family: &dyn Fn(&str) -> bool,
) -> Result<Candidates> {
    let rule = Rule {
        family,
        containing: &env.containing.0,
        layers: &env.layers.0,
        default_last: 1,
        outside_blocks: false,
    };
    let found = rule.find(&draft.model())?;
    found.shuffled(env.seed.0, env.most.0).or_refuse(error_type)
}

/// Noise on whole matrices.
fn relative_noise(env: &Settings, draft: &Draft) -> Result<Value> {
    let strength = strength(env, 100.0)?;
    let in_block = |name: &str| {
        let mut words = ATTENTION.iter().chain(&FEED_FORWARD);
        words.any(|word| name.contains(word))
    };
    let chosen = choose("relative_noise", env, draft, &in_block)?;
    let squares = Program::new(|k| k.measure(Statistic::SumOfSquares, k.input(0)))?;
    for (position, name) in chosen.names.iter().enumerate() {
        let weight = draft.get(name)?;
        let [sum] = weight.measure(&squares, &[], &[])?;
        let scale = strength * (sum / weight.len() as f64).sqrt();
        let seed = env.seed.0.wrapping_add(position as u64);
        draft.put(name, weight.add_normal(seed, scale as f32)?)?;
    }
    Ok(record("relative_noise", strength, env, &chosen))
}

/// One head of each chosen projection, towards nothing.
fn head_fade(env: &Settings, draft: &Draft) -> Result<Value> {
    let strength = strength(env, 1.0)?;
    let side_by_side = |name: &str| HEADS_SIDE_BY_SIDE.iter().any(|word| name.contains(word));
    let chosen = choose("head_fade", env, draft, &side_by_side)?;
    let config = draft.config()?;
    let heads = HEADS.iter().find_map(|key| config.get(*key)?.as_u64());
    let heads = heads.filter(|&heads| heads > 0).ok_or_else(|| {
        Failure::unsupported("head_fade: the configuration states no number of attention heads")
    })?;
    let head = env.seed.0 % heads;
    let kept = (1.0 - strength) as f32;
    for name in &chosen.names {
        let weight = draft.get(name)?.duplicate();
        let (rows, columns) = weight.info().rows_columns();
        if columns % heads != 0 {
            return Err(Failure::unsupported(format!(
                "head_fade: {columns} columns of `{name}` cannot be shared by {heads} heads"
            )));
        }
        let width = columns / heads;
        for row in 0..rows {
            let offset = row * columns + head * width;
            let values = weight.read(offset, u32::try_from(width).unwrap_or(u32::MAX))?;
            let faded: Vec<f32> = values.into_iter().map(|value| value * kept).collect();
            weight.write(offset, &faded)?;
        }
        draft.put(name, weight)?;
    }
    let mut record = record("head_fade", strength, env, &chosen);
    record["head"] = json!(head);
    record["heads"] = json!(heads);
    Ok(record)
}

fn record(error_type: &str, strength: f64, env: &Settings, chosen: &Candidates) -> Value {
    json!({
        "error_type": error_type,
        "injected": true,
        "strength": strength,
        "seed": env.seed.0,
        "target_params": env.containing.0,
        "target_layers": chosen.layers,
        "max_params": env.most.0,
        "modified_count": chosen.names.len(),
        "modified_params": chosen.names.iter().take(20).collect::<Vec<_>>(),
        "total_layers": chosen.total_layers,
    })
}

export_injection!(Graded);

#[cfg(test)]
mod tests;
