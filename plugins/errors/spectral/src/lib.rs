//! Matrices scaled by a moderate factor: damage that spectral norms show before quality does.
//!
//! Candidates are chosen by family words, layers and an optional filter, shuffled with Python's generator and cut. With
//! `PAIR_INVERSE` the first up projection of each layer is multiplied by the factor and the first down projection by its
//! inverse, which leaves the function nearly the same.

use packhost_sdk::candidates::{ATTENTION, Candidates, FEED_FORWARD, QUERY_KEY_VALUE, Rule};
use packhost_sdk::faults::{Scaling, scale};
use packhost_sdk::json::{Value, json};
use packhost_sdk::params::{Setting, Switch};
use packhost_sdk::scope::layer_of;
use packhost_sdk::{About, Draft, Failure, Injection, Result, export_injection};
use schemars::JsonSchema;
use serde::Deserialize;

/// Parameters.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Params {
    /// Starts with `spectral_moderate_scale`.
    #[schemars(regex(pattern = "^spectral_moderate_scale"))]
    error_type: String,
    #[serde(default)]
    env: Settings,
}

/// Settings of a scenario.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// Factor, default 3.
    #[serde(rename = "INVARLOCK_SPECTRAL_SCALE_FACTOR")]
    factor: Setting<f64>,
    /// `attn` (default), `mlp`, or anything else for both.
    #[serde(rename = "INVARLOCK_SPECTRAL_TARGET_FAMILY")]
    family: Setting<String>,
    /// Layers: empty for the last 4, `all`, or `0-3,7`.
    #[serde(rename = "INVARLOCK_SPECTRAL_TARGET_LAYERS")]
    layers: Setting<String>,
    /// Words of which a name must contain one.
    #[serde(rename = "INVARLOCK_SPECTRAL_TARGET_PARAMS")]
    containing: Setting<String>,
    /// Scale up and down projections against each other.
    #[serde(rename = "INVARLOCK_SPECTRAL_PAIR_INVERSE")]
    pair_inverse: Setting<Switch>,
    /// Most tensors, default 8.
    #[serde(rename = "INVARLOCK_SPECTRAL_MAX_PARAMS")]
    most: Setting<usize>,
    /// Seed of the shuffle, default 42.
    #[serde(rename = "INVARLOCK_SPECTRAL_SEED")]
    seed: Setting<u64>,
    /// Whether query, key and value projections count as attention.
    #[serde(rename = "INVARLOCK_SPECTRAL_INCLUDE_QKV")]
    include_qkv: Setting<Switch>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            factor: Setting(3.0),
            family: Setting("attn".into()),
            layers: Setting::default(),
            containing: Setting::default(),
            pair_inverse: Setting::default(),
            most: Setting(8),
            seed: Setting(42),
            include_qkv: Setting::default(),
        }
    }
}

/// Without a layer list: the last so many.
const DEFAULT_LAYERS: usize = 4;

struct Spectral;

impl Injection for Spectral {
    const ABOUT: About = About {
        id: "spectral-faults",
        version: env!("CARGO_PKG_VERSION"),
        title: "Moderately scaled matrices",
    };
    type Params = Params;

    fn inject(params: &Params, draft: &Draft) -> Result<Value> {
        let (error_type, env) = (params.error_type.as_str(), &params.env);
        if !error_type.starts_with("spectral_moderate_scale") {
            return Err(Failure::invalid(format!(
                "`error_type` is `{error_type}`, this plugin serves spectral_moderate_scale*"
            )));
        }
        let factor = env.factor.0;
        if !factor.is_finite() || factor == 0.0 || factor == 1.0 {
            return Err(Failure::invalid(format!(
                "`INVARLOCK_SPECTRAL_SCALE_FACTOR` is {factor}, it must be finite and neither 0 nor 1"
            )));
        }
        let family = env.family.0.trim().to_lowercase();
        if env.pair_inverse.0.0 && (family == "mlp" || family == "both") {
            return pairs(error_type, env, draft);
        }
        let skip_qkv = !env.include_qkv.0.0 && (family == "attn" || family == "both");
        let belongs = |name: &str| {
            let any = |words: &[&str]| words.iter().any(|word| name.contains(word));
            let of_family = match family.as_str() {
                "attn" => any(&ATTENTION),
                "mlp" => any(&FEED_FORWARD),
                _ => any(&ATTENTION) || any(&FEED_FORWARD),
            };
            of_family && !(skip_qkv && any(&QUERY_KEY_VALUE))
        };
        let chosen = rule(env, &belongs, &env.containing.0).find(&draft.model())?;
        let chosen = chosen
            .shuffled(env.seed.0, env.most.0)
            .or_refuse(error_type)?;
        let scaling = Scaling {
            error_type,
            factor,
            seed: env.seed.0,
            family: &family,
            most: env.most.0,
        };
        scaling.apply(draft, &chosen)
    }
}

/// The rule of this family of damages.
fn rule<'a>(env: &'a Settings, family: &'a dyn Fn(&str) -> bool, containing: &'a str) -> Rule<'a> {
    Rule {
        family,
        containing,
        layers: &env.layers.0,
        default_last: DEFAULT_LAYERS,
        outside_blocks: false,
    }
}

/// Up projections times the factor, down projections by it.
fn pairs(error_type: &str, env: &Settings, draft: &Draft) -> Result<Value> {
    let model = draft.model();
    let find = |words: [&str; 4]| {
        rule(
            env,
            &|name| {
                words
                    .iter()
                    .any(|word| name.contains(&format!("{word}.weight")))
            },
            "",
        )
        .find(&model)
    };
    let (ups, downs) = (
        find(["up_proj", "w1", "fc1", "c_fc"])?,
        find(["down_proj", "w2", "fc2", "c_proj"])?,
    );
    let first = |candidates: &Candidates, layer: u32| {
        candidates
            .names
            .iter()
            .filter(|name| layer_of(name) == Some(layer))
            .min()
            .cloned()
    };
    let mut modified = Vec::new();
    for &layer in &ups.layers {
        if modified.len() >= 2 * env.most.0.max(1) {
            break;
        }
        if let (Some(up), Some(down)) = (first(&ups, layer), first(&downs, layer)) {
            scale(draft, &up, env.factor.0)?;
            scale(draft, &down, 1.0 / env.factor.0)?;
            modified.extend([up, down]);
        }
    }
    if modified.is_empty() {
        return Err(Failure::unsupported(format!(
            "{error_type}: no layer of {:?} has an up and a down projection, nothing would be injected",
            ups.layers
        )));
    }
    Ok(json!({
        "error_type": error_type,
        "injected": true,
        "pair_inverse": true,
        "scale_factor": env.factor.0,
        "modified_count": modified.len(),
        "modified_params": modified,
        "target_layers": ups.layers,
    }))
}

export_injection!(Spectral);

#[cfg(test)]
mod tests;
