//! Scaled outputs of feed-forward blocks, which skew the variance of the residual stream.

use packhost_sdk::candidates::Rule;
use packhost_sdk::faults::Scaling;
use packhost_sdk::json::Value;
use packhost_sdk::params::{Setting, Switch};
use packhost_sdk::{About, Draft, Failure, Injection, Result, export_injection};
use schemars::JsonSchema;
use serde::Deserialize;

/// Parameters.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Params {
    /// Starts with `ve_mlp_scale_skew`.
    #[schemars(regex(pattern = "^ve_mlp_scale_skew"))]
    error_type: String,
    #[serde(default)]
    env: Settings,
}

/// Settings of a scenario.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// Factor above 0, default 0.9.
    #[serde(rename = "INVARLOCK_VE_SCALE_FACTOR")]
    factor: Setting<f64>,
    /// Layers: empty for the last 4, `all`, or `0-3,7`.
    #[serde(rename = "INVARLOCK_VE_TARGET_LAYERS")]
    layers: Setting<String>,
    /// Most tensors, default 1; 0 for all.
    #[serde(rename = "INVARLOCK_VE_MAX_PARAMS")]
    most: Setting<usize>,
    /// Seed of the shuffle, default 42.
    #[serde(rename = "INVARLOCK_VE_SEED")]
    seed: Setting<u64>,
    /// `mlp` (default); with `attn` nothing is selected.
    #[serde(rename = "INVARLOCK_VE_TARGET_FAMILY")]
    family: Setting<String>,
    /// Whether experts' `w2` counts, default yes.
    #[serde(rename = "INVARLOCK_VE_INCLUDE_EXPERTS")]
    include_experts: Setting<Switch>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            factor: Setting(0.9),
            layers: Setting::default(),
            most: Setting(1),
            seed: Setting(42),
            family: Setting("mlp".into()),
            include_experts: Setting(Switch(true)),
        }
    }
}

/// Without a layer list: the last so many.
const DEFAULT_LAYERS: usize = 4;

struct Variance;

impl Injection for Variance {
    const ABOUT: About = About {
        id: "variance-faults",
        version: env!("CARGO_PKG_VERSION"),
        title: "Scaled outputs of feed-forward blocks",
    };
    type Params = Params;

    fn inject(params: &Params, draft: &Draft) -> Result<Value> {
        let (error_type, env) = (params.error_type.as_str(), &params.env);
        if !error_type.starts_with("ve_mlp_scale_skew") {
            return Err(Failure::invalid(format!(
                "`error_type` is `{error_type}`, this plugin serves ve_mlp_scale_skew*"
            )));
        }
        let factor = env.factor.0;
        if !factor.is_finite() || factor <= 0.0 || factor == 1.0 {
            return Err(Failure::invalid(format!(
                "`INVARLOCK_VE_SCALE_FACTOR` is {factor}, it must be finite, above 0 and not 1"
            )));
        }
        let family = env.family.0.trim().to_lowercase();
        let belongs = |name: &str| {
            let any = |words: &[&str]| words.iter().any(|word| name.contains(word));
            let expert = env.include_experts.0.0
                && name.contains("w2")
                && any(&["experts", "moe", "block_sparse_moe"]);
            family != "attn" && (any(&["down_proj", "c_proj", "fc2"]) || expert)
        };
        let rule = Rule {
            family: &belongs,
            containing: "",
            layers: &env.layers.0,
            default_last: DEFAULT_LAYERS,
            outside_blocks: false,
        };
        let most = if env.most.0 == 0 {
            usize::MAX
        } else {
            env.most.0
        };
        let chosen = rule
            .find(&draft.model())?
            .shuffled(env.seed.0, most)
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

export_injection!(Variance);

#[cfg(test)]
mod tests;
