//! The policy: the tier's `metrics` section, and what the host adds to it.

use packhost_sdk::{Failure, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the primary metric is judged.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// The ratio gate.
    pub pm_ratio: Ratio,
    /// The tail gate.
    pub pm_tail: Tail,
    /// Limits of accuracy metrics. Part of every tier; perplexity does not use them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<Accuracy>,
    /// Accepted ratios, where not the tier's limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acceptance_range: Option<AcceptanceRange>,
    /// Accepted drift; 0.95 to 1.05 when absent or when not 0 < min < max.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drift_band: Option<Band>,
    /// Least counts of an evaluation; without them coverage is not known to be good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coverage: Option<Coverage>,
    /// How intervals are computed.
    pub bootstrap: Bootstrap,
}

/// The ratio gate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Ratio {
    /// Largest accepted ratio of subject to baseline perplexity.
    pub ratio_limit_base: f64,
    /// Added to the limit.
    pub hysteresis_ratio: f64,
    /// Least real tokens in both arms together.
    pub min_tokens: f64,
    /// Least share of the data set's tokens, where the table tells them (`window.tokens_available`).
    pub min_token_fraction: f64,
}

impl Default for Ratio {
    fn default() -> Self {
        Self {
            ratio_limit_base: 1.10,
            hysteresis_ratio: 0.002,
            min_tokens: 50_000.0,
            min_token_fraction: 0.01,
        }
    }
}

/// What a tail violation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TailMode {
    /// Nothing.
    Off,
    /// It is reported.
    Warn,
    /// It fails the metric.
    Fail,
}

impl TailMode {
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// The tail gate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tail {
    /// What a violation does.
    pub mode: TailMode,
    /// Least windows for a decision.
    pub min_windows: usize,
    /// The quantile of window-wise loss differences that is held against `quantile_max`.
    pub quantile: f64,
    /// Largest accepted quantile.
    pub quantile_max: f64,
    /// A difference above this belongs to the tail.
    pub epsilon: f64,
    /// Largest accepted share of windows in the tail; no limit when absent.
    pub mass_max: Option<f64>,
}

impl Default for Tail {
    fn default() -> Self {
        Self {
            mode: TailMode::Warn,
            min_windows: 50,
            quantile: 0.95,
            quantile_max: 0.20,
            epsilon: 1e-4,
            mass_max: None,
        }
    }
}

/// Limits of accuracy metrics.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Accuracy {
    /// Least difference from the baseline, in percentage points.
    pub delta_min_pp: f64,
    /// Least examples.
    pub min_examples: f64,
    /// Taken off the least difference.
    pub hysteresis_delta_pp: f64,
    /// Least share of the data set's examples.
    pub min_examples_fraction: f64,
}

/// Accepted ratios. A missing bound is 0.95 or 1.10 when the other is given.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AcceptanceRange {
    /// Least ratio.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// Largest ratio.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
}

impl AcceptanceRange {
    /// Both bounds; none when neither is given.
    pub fn bounds(&self) -> Option<(f64, f64)> {
        match (self.min, self.max) {
            (None, None) => None,
            (min, max) => Some((min.unwrap_or(0.95), max.unwrap_or(1.10))),
        }
    }
}

/// A closed band.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Band {
    /// Lower end.
    pub min: f64,
    /// Upper end.
    pub max: f64,
}

impl Band {
    /// The band without calibration.
    pub const DEFAULT: Self = Self {
        min: 0.95,
        max: 1.05,
    };

    /// Whether `0 < min < max`.
    pub fn is_valid(self) -> bool {
        0.0 < self.min && self.min < self.max && self.max.is_finite()
    }
}

/// Least counts of an evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Coverage {
    /// Windows of the preview arm.
    pub preview: usize,
    /// Windows of the final arm.
    #[serde(rename = "final")]
    pub final_: usize,
    /// Bootstrap replicates.
    pub replicates: usize,
}

/// How endpoints are read off the replicates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Bias-corrected and accelerated.
    Bca,
    /// Plain quantiles.
    Percentile,
}

/// How intervals are computed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Bootstrap {
    /// How endpoints are read off the replicates.
    pub method: Method,
    /// Number of resamples.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub replicates: usize,
    /// One minus the level.
    pub alpha: f64,
    /// Base seed; each interval adds its own offset.
    pub seed: u64,
}

impl Default for Bootstrap {
    fn default() -> Self {
        Self {
            method: Method::Bca,
            replicates: 1000,
            alpha: 0.05,
            seed: 0,
        }
    }
}

impl Policy {
    /// Refuse numbers that no judgement could follow.
    pub fn check(&self) -> Result<()> {
        let ratio = &self.pm_ratio;
        positive("pm_ratio.ratio_limit_base", ratio.ratio_limit_base)?;
        not_negative("pm_ratio.hysteresis_ratio", ratio.hysteresis_ratio)?;
        not_negative("pm_ratio.min_tokens", ratio.min_tokens)?;
        not_negative("pm_ratio.min_token_fraction", ratio.min_token_fraction)?;
        if !(0.0..=1.0).contains(&self.pm_tail.quantile) {
            return Err(wrong(
                "pm_tail.quantile",
                self.pm_tail.quantile,
                "between 0 and 1",
            ));
        }
        if let Some((min, max)) = self
            .acceptance_range
            .as_ref()
            .and_then(AcceptanceRange::bounds)
        {
            positive("acceptance_range.min", min)?;
            positive("acceptance_range.max", max)?;
            if max < min {
                return Err(wrong(
                    "acceptance_range.max",
                    max,
                    "at least acceptance_range.min",
                ));
            }
        }
        let alpha = self.bootstrap.alpha;
        if !(alpha > 0.0 && alpha < 1.0) {
            return Err(wrong("bootstrap.alpha", alpha, "between 0 and 1"));
        }
        let replicates = self.bootstrap.replicates;
        if !(1..=1_000_000).contains(&replicates) {
            return Err(wrong(
                "bootstrap.replicates",
                replicates as f64,
                "1 to 1000000",
            ));
        }
        Ok(())
    }
}

fn positive(name: &str, value: f64) -> Result<()> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(wrong(name, value, "above 0"))
}

fn not_negative(name: &str, value: f64) -> Result<()> {
    if value >= 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(wrong(name, value, "0 or more"))
}

fn wrong(name: &str, value: f64, wanted: &str) -> Failure {
    Failure::invalid(format!("policy: `{name}` must be {wanted}, not {value}"))
}
