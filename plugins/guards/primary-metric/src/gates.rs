//! The gates: ratio, tokens, drift.

use crate::evaluation::Evaluation;
use crate::policy::{AcceptanceRange, Band, Policy};
use packhost_sdk::json::{Value as Json, json};

/// Share of the token floor that may be missing where the windows' coverage is good.
const TOKEN_TOLERANCE: f64 = 0.02;

/// What was decided, and against what.
#[derive(Debug, Clone, PartialEq)]
pub struct Flags {
    /// Ratio within its limits and token floor met.
    pub acceptable: bool,
    /// Drift within its band.
    pub drift_acceptable: bool,
    /// Whether the ratio passes only thanks to the hysteresis.
    pub hysteresis_applied: bool,
    /// Whether enough tokens were scored.
    pub tokens_acceptable: bool,
    /// Largest accepted ratio before hysteresis.
    pub limit: f64,
    /// Added to the limit.
    pub hysteresis: f64,
    /// Least accepted ratio, where one is configured.
    pub min: Option<f64>,
    /// Least tokens.
    pub token_floor: f64,
    /// Accepted drift.
    pub band: Band,
    /// Whether the whole interval of the ratio is within the limit. Not gated.
    pub ci_upper_within_limit: Option<bool>,
}

/// What the gates look at.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    pub ratio: f64,
    pub ratio_ci_upper: Option<f64>,
    pub drift: f64,
    pub tokens: f64,
    pub tokens_available: Option<f64>,
    pub coverage_ok: Option<bool>,
}

impl Flags {
    pub fn new(policy: &Policy, evaluation: &Evaluation) -> Self {
        Self::decide(
            policy,
            Measured {
                ratio: if evaluation.invalid {
                    f64::NAN
                } else {
                    evaluation.ratio
                },
                ratio_ci_upper: evaluation.ratio_interval.map(|interval| interval.high),
                drift: if evaluation.invalid {
                    f64::NAN
                } else {
                    evaluation.drift
                },
                tokens: evaluation.tokens(),
                tokens_available: evaluation.tokens_available,
                coverage_ok: evaluation.coverage_ok,
            },
        )
    }

    /// A ratio or drift that is not a number fails its gate.
    pub fn decide(policy: &Policy, measured: Measured) -> Self {
        let range = policy
            .acceptance_range
            .as_ref()
            .and_then(AcceptanceRange::bounds);
        let limit = range.map_or(policy.pm_ratio.ratio_limit_base, |range| range.1);
        // A lower bound that follows only from a configured upper one does not gate.
        let min = policy.acceptance_range.as_ref().and_then(|range| range.min);
        let hysteresis = policy.pm_ratio.hysteresis_ratio;
        let ratio = measured.ratio;
        let within = ratio <= limit + hysteresis && min.is_none_or(|min| ratio >= min);
        let share = measured.tokens_available.map_or(0.0, |tokens| {
            (tokens * policy.pm_ratio.min_token_fraction).ceil()
        });
        let token_floor = policy.pm_ratio.min_tokens.max(share);
        let relaxed = (token_floor * (1.0 - TOKEN_TOLERANCE)).floor();
        let tokens_acceptable = measured.tokens >= token_floor
            || (measured.coverage_ok == Some(true) && measured.tokens >= relaxed);
        let band = policy
            .drift_band
            .filter(|band| band.is_valid())
            .unwrap_or(Band::DEFAULT);
        Self {
            acceptable: within && tokens_acceptable,
            drift_acceptable: band.min <= measured.drift && measured.drift <= band.max,
            hysteresis_applied: limit < ratio && ratio <= limit + hysteresis,
            tokens_acceptable,
            limit,
            hysteresis,
            min,
            token_floor,
            band,
            ci_upper_within_limit: measured
                .ratio_ci_upper
                .map(|upper| upper <= limit + hysteresis),
        }
    }

    pub fn details(&self) -> Json {
        json!({
            "limit": self.limit,
            "hysteresis": self.hysteresis,
            "min": self.min,
            "hysteresis_applied": self.hysteresis_applied,
            "token_floor": self.token_floor,
            "tokens_acceptable": self.tokens_acceptable,
            "drift_band": {"min": self.band.min, "max": self.band.max},
            "ci_upper_within_limit": self.ci_upper_within_limit,
        })
    }
}
