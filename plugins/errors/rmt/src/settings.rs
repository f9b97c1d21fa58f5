//! Settings of scenarios: three groups, one per mode.

use packhost_sdk::params::{Setting, Switch};
use packhost_sdk::{Failure, Result};
use schemars::JsonSchema;
use serde::Deserialize;

/// Settings of a scenario. Those of the other modes are accepted and without effect, as in the reference.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// `anisotropy`, `row_scale` or `norm_noise`. Unset: `norm_noise` where a noise scale is given, else `anisotropy`.
    #[serde(rename = "INVARLOCK_RMT_PROBE_MODE")]
    pub mode: Setting<String>,

    /// Share of the first row in each chosen row, 0.05 to 1, default 0.75.
    #[serde(rename = "INVARLOCK_RMT_ANISO_BLEND")]
    pub aniso_blend: Option<Setting<f64>>,
    /// Share of the rows, 0.01 to 0.95, default 0.35.
    #[serde(rename = "INVARLOCK_RMT_ANISO_ROW_FRAC")]
    pub aniso_row_frac: Option<Setting<f64>>,
    /// Most rows of a tensor, default 256.
    #[serde(rename = "INVARLOCK_RMT_ANISO_MAX_ROWS")]
    pub aniso_max_rows: Option<Setting<u64>>,
    /// Most tensors, default 24.
    #[serde(rename = "INVARLOCK_RMT_ANISO_MAX_PARAMS")]
    pub aniso_max_params: Option<Setting<usize>>,
    /// `attn` (default), `ffn`, `embed`, `all`, or anything else for attention and feed-forward.
    #[serde(rename = "INVARLOCK_RMT_ANISO_TARGET_FAMILY")]
    pub aniso_family: Option<Setting<String>>,
    /// Words of which a name must contain one.
    #[serde(rename = "INVARLOCK_RMT_ANISO_TARGET_PARAMS")]
    pub aniso_params: Option<Setting<String>>,
    /// Layers: empty for the last 8, `all`, or `0-3,7`.
    #[serde(rename = "INVARLOCK_RMT_ANISO_TARGET_LAYERS")]
    pub aniso_layers: Option<Setting<String>>,
    /// Whether query, key and value projections count as attention, default yes.
    #[serde(rename = "INVARLOCK_RMT_ANISO_INCLUDE_QKV")]
    pub aniso_include_qkv: Option<Setting<Switch>>,
    /// Whether rows keep their norms, default yes.
    #[serde(rename = "INVARLOCK_RMT_ANISO_PRESERVE_ROW_NORMS")]
    pub aniso_preserve: Option<Setting<Switch>>,
    /// Noise in standard deviations of the chosen rows, default 0.01.
    #[serde(rename = "INVARLOCK_RMT_ANISO_JITTER")]
    pub aniso_jitter: Option<Setting<f64>>,
    /// `first` (default), `last`, `random`, `random_block` or `top_norm`.
    #[serde(rename = "INVARLOCK_RMT_ANISO_ROW_SELECTION")]
    pub aniso_rows: Option<Setting<String>>,
    /// Seed, default 42.
    #[serde(rename = "INVARLOCK_RMT_ANISO_SEED")]
    pub aniso_seed: Option<Setting<u64>>,

    /// Factor, 0.1 to 10, default 1.6.
    #[serde(rename = "INVARLOCK_RMT_ROW_SCALE_FACTOR")]
    pub scale_factor: Option<Setting<f64>>,
    /// Share of the rows, 0.01 to 0.95, default 0.10.
    #[serde(rename = "INVARLOCK_RMT_ROW_SCALE_ROW_FRAC")]
    pub scale_row_frac: Option<Setting<f64>>,
    /// Most rows of a tensor, default 2048.
    #[serde(rename = "INVARLOCK_RMT_ROW_SCALE_MAX_ROWS")]
    pub scale_max_rows: Option<Setting<u64>>,
    /// Most tensors, default 8.
    #[serde(rename = "INVARLOCK_RMT_ROW_SCALE_MAX_PARAMS")]
    pub scale_max_params: Option<Setting<usize>>,
    /// As with anisotropy, default `ffn`.
    #[serde(rename = "INVARLOCK_RMT_ROW_SCALE_TARGET_FAMILY")]
    pub scale_family: Option<Setting<String>>,
    /// Words of which a name must contain one.
    #[serde(rename = "INVARLOCK_RMT_ROW_SCALE_TARGET_PARAMS")]
    pub scale_params: Option<Setting<String>>,
    /// Layers: empty for the last 8, `all`, or `0-3,7`.
    #[serde(rename = "INVARLOCK_RMT_ROW_SCALE_TARGET_LAYERS")]
    pub scale_layers: Option<Setting<String>>,
    /// Whether query, key and value projections count as attention, default no.
    #[serde(rename = "INVARLOCK_RMT_ROW_SCALE_INCLUDE_QKV")]
    pub scale_include_qkv: Option<Setting<Switch>>,
    /// As with anisotropy.
    #[serde(rename = "INVARLOCK_RMT_ROW_SCALE_ROW_SELECTION")]
    pub scale_rows: Option<Setting<String>>,
    /// Seed, default 42.
    #[serde(rename = "INVARLOCK_RMT_ROW_SCALE_SEED")]
    pub scale_seed: Option<Setting<u64>>,

    /// Standard deviation of the norms' factors, default 0.05.
    #[serde(rename = "INVARLOCK_RMT_NORM_NOISE_SCALE")]
    pub norm_scale: Option<Setting<f64>>,
    /// Layers: empty for the last 4, `all`, or `0-3,7`.
    #[serde(rename = "INVARLOCK_RMT_NORM_TARGET_LAYERS")]
    pub norm_layers: Option<Setting<String>>,
    /// Most norms, default 32.
    #[serde(rename = "INVARLOCK_RMT_NORM_MAX_MODULES")]
    pub norm_max: Option<Setting<usize>>,
    /// Seed, default 42.
    #[serde(rename = "INVARLOCK_RMT_NORM_SEED")]
    pub norm_seed: Option<Setting<u64>>,
    /// Whether norms outside blocks count, default no.
    #[serde(rename = "INVARLOCK_RMT_NORM_INCLUDE_GLOBAL")]
    pub norm_global: Option<Setting<Switch>>,
    /// Factors stay within 1 - c and 1 + c, default 0.5.
    #[serde(rename = "INVARLOCK_RMT_NORM_MULT_CLAMP")]
    pub norm_clamp: Option<Setting<f64>>,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Rows drawn towards one of them.
    Anisotropy,
    /// Rows times a factor.
    RowScale,
    /// Norm weights times noise.
    NormNoise,
}

/// Settings that anisotropy and row scaling share, with defaults filled in and values brought into range.
pub struct Rows {
    pub frac: f64,
    pub max_rows: u64,
    pub max_params: usize,
    pub family: String,
    pub containing: String,
    pub layers: String,
    pub include_qkv: bool,
    pub selection: String,
    pub seed: u64,
}

/// A setting's value, or its default.
fn or<T: Clone>(setting: &Option<Setting<T>>, default: T) -> T {
    setting
        .as_ref()
        .map_or(default, |setting| setting.0.clone())
}

/// A text in lower case, without spaces around it.
fn word(setting: &Option<Setting<String>>, default: &str) -> String {
    let text = or(setting, default.to_owned()).trim().to_lowercase();
    if text.is_empty() {
        default.to_owned()
    } else {
        text
    }
}

impl Settings {
    /// The mode that the settings ask for.
    ///
    /// # Errors
    /// When there is no such mode.
    pub fn mode(&self) -> Result<Mode> {
        match self.mode.0.trim().to_lowercase().as_str() {
            "" if self.norm_scale.is_some() => Ok(Mode::NormNoise),
            "" | "anisotropy" => Ok(Mode::Anisotropy),
            "row_scale" => Ok(Mode::RowScale),
            "norm_noise" => Ok(Mode::NormNoise),
            other => Err(Failure::invalid(format!(
                "`INVARLOCK_RMT_PROBE_MODE` is `{other}`, use anisotropy, row_scale or norm_noise"
            ))),
        }
    }

    /// The rows that anisotropy or row scaling works on.
    pub fn rows(&self, mode: Mode) -> Rows {
        let clamped = |share: f64| share.clamp(0.01, 0.95);
        if mode == Mode::RowScale {
            Rows {
                frac: clamped(or(&self.scale_row_frac, 0.10)),
                max_rows: or(&self.scale_max_rows, 2048),
                max_params: or(&self.scale_max_params, 8),
                family: word(&self.scale_family, "ffn"),
                containing: or(&self.scale_params, String::new()),
                layers: or(&self.scale_layers, String::new()),
                include_qkv: or(&self.scale_include_qkv, Switch(false)).0,
                selection: word(&self.scale_rows, "first"),
                seed: or(&self.scale_seed, 42),
            }
        } else {
            Rows {
                frac: clamped(or(&self.aniso_row_frac, 0.35)),
                max_rows: or(&self.aniso_max_rows, 256),
                max_params: or(&self.aniso_max_params, 24),
                family: word(&self.aniso_family, "attn"),
                containing: or(&self.aniso_params, String::new()),
                layers: or(&self.aniso_layers, String::new()),
                include_qkv: or(&self.aniso_include_qkv, Switch(true)).0,
                selection: word(&self.aniso_rows, "first"),
                seed: or(&self.aniso_seed, 42),
            }
        }
    }

    /// Share of the first row, brought into range.
    pub fn blend(&self) -> f64 {
        or(&self.aniso_blend, 0.75).clamp(0.05, 1.0)
    }

    /// Whether rows keep their norms.
    pub fn preserve_norms(&self) -> bool {
        or(&self.aniso_preserve, Switch(true)).0
    }

    /// Noise in standard deviations.
    pub fn jitter(&self) -> f64 {
        or(&self.aniso_jitter, 0.01)
    }

    /// Factor of row scaling, brought into range.
    pub fn row_factor(&self) -> f64 {
        or(&self.scale_factor, 1.6).clamp(0.1, 10.0)
    }

    /// Settings of norm noise: scale, layers, most modules, seed, norms outside blocks, clamp.
    pub fn norms(&self) -> (f64, String, usize, u64, bool, f64) {
        (
            or(&self.norm_scale, 0.05),
            or(&self.norm_layers, String::new()),
            or(&self.norm_max, 32),
            or(&self.norm_seed, 42),
            or(&self.norm_global, Switch(false)).0,
            or(&self.norm_clamp, 0.5),
        )
    }
}
