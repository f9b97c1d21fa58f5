//! The policy: the tier's `variance` section, and how to compare, probe and calibrate.

use packhost_sdk::{Against, Failure, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How scales are proposed and tested.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Least gain, to which `tie_breaker_deadband` is added.
    pub min_gain: f64,
    /// Least gain.
    pub min_rel_gain: f64,
    /// Ten times the windows that proposals look at, of which there are at most 50.
    #[schemars(range(min = 10))]
    pub max_calib: usize,
    /// Which blocks.
    pub scope: Scope,
    /// Smallest and largest proposal; no bounds when absent.
    pub clamp: Option<(f64, f64)>,
    /// Proposals nearer to 1 than this are none.
    pub deadband: f64,
    /// Seed, where `calibration.seed` is absent.
    pub seed: u64,
    /// Whether the interval of the ratio decides beside its mean.
    pub mode: Mode,
    /// One minus the level of intervals.
    pub alpha: f64,
    /// Added to `min_gain`.
    pub tie_breaker_deadband: f64,
    /// Least effect on the logarithm of perplexity.
    pub min_effect_lognll: f64,
    /// The windows of the test.
    pub calibration: Calibration,
    /// Proposals nearer to 1 than this are not tried.
    pub min_abs_adjust: f64,
    /// Largest step that is tried; no limit when 0.
    pub max_scale_step: f64,
    /// Above 0: when nothing is left to try, the largest proposal may be.
    pub topk_backstop: usize,
    /// Most modules that are tried at once; no limit when 0.
    pub max_adjusted_modules: usize,
    /// Whether the predictive gate looks for improvement only.
    pub predictive_one_sided: bool,
    /// Names of the blocks' outputs that are looked at, in the reference's spelling.
    pub tap: Tap,
    /// Whether the interval of the loss difference must clear zero.
    pub predictive_gate: bool,
    /// Least fall of mean perplexity.
    pub absolute_floor_ppl: f64,
    /// What the subject is held against. Against itself there is nothing to equalise, so proposals are only reported.
    pub reference: Against,
    /// Whether the subject's proposals are tried with the probe's settings.
    pub probe: bool,
    /// How a preset is derived; not part of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub derivation: Option<Derivation>,
}

/// Which blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Output projections of feed-forward blocks.
    Ffn,
    /// Output projections of attention blocks that are called `attn`.
    Attn,
    /// Both.
    Both,
}

/// Which figure decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The mean and the interval of the ratio.
    Ci,
    /// The mean.
    Delta,
}

/// The windows of the test.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Calibration {
    /// How many of the first windows.
    #[schemars(range(min = 1))]
    pub windows: usize,
    /// Fewer usable ones than this decide nothing.
    pub min_coverage: usize,
    /// Seed of the intervals.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

/// One pattern or several; `*` stands for anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Tap {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl Tap {
    pub fn patterns(&self) -> &[String] {
        match self {
            Self::One(pattern) => std::slice::from_ref(pattern),
            Self::Many(patterns) => patterns,
        }
    }
}

/// How a preset is derived.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Derivation {
    /// Fewer calibration runs than this are refused.
    pub runs: Option<usize>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            min_gain: 0.0,
            min_rel_gain: 0.001,
            max_calib: 200,
            scope: Scope::Ffn,
            clamp: Some((0.85, 1.12)),
            deadband: 0.02,
            seed: 123,
            mode: Mode::Ci,
            alpha: 0.05,
            tie_breaker_deadband: 0.005,
            min_effect_lognll: 0.0,
            calibration: Calibration::default(),
            min_abs_adjust: 0.012,
            max_scale_step: 0.02,
            topk_backstop: 1,
            max_adjusted_modules: 0,
            predictive_one_sided: false,
            tap: Tap::One("transformer.h.*.mlp.c_proj".to_owned()),
            predictive_gate: true,
            absolute_floor_ppl: 0.05,
            reference: Against::default(),
            probe: false,
            derivation: None,
        }
    }
}

impl Default for Calibration {
    fn default() -> Self {
        Self {
            windows: 12,
            min_coverage: 10,
            seed: None,
        }
    }
}

impl Policy {
    /// Windows that proposals look at.
    pub fn proposal_windows(&self) -> usize {
        (self.max_calib / 10).clamp(1, 50)
    }

    /// Seed of the intervals.
    pub fn seed(&self) -> u64 {
        self.calibration.seed.unwrap_or(self.seed)
    }

    /// Whether proposals are only reported: against itself, a subject has changed nothing.
    pub fn monitor_only(&self) -> bool {
        self.reference == Against::Subject
    }

    /// The settings of the reference's probe: this policy with the windows of the bare guard, and with every proposal tried.
    pub fn of_probe(&self) -> Self {
        let calibration = Calibration {
            seed: Some(self.seed()),
            ..Calibration::default()
        };
        Self {
            calibration,
            max_calib: self.max_calib.max(120),
            max_adjusted_modules: 0,
            predictive_one_sided: false,
            reference: Against::Baseline,
            ..self.clone()
        }
    }

    /// Refuse numbers that no judgement could follow.
    pub fn check(&self) -> Result<()> {
        for (field, value) in [
            ("min_gain", self.min_gain),
            ("min_rel_gain", self.min_rel_gain),
            ("deadband", self.deadband),
            ("tie_breaker_deadband", self.tie_breaker_deadband),
            ("min_effect_lognll", self.min_effect_lognll),
            ("min_abs_adjust", self.min_abs_adjust),
            ("max_scale_step", self.max_scale_step),
            ("absolute_floor_ppl", self.absolute_floor_ppl),
        ] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(wrong(field, value, "a number from 0 on"));
            }
        }
        if !(self.alpha > 0.0 && self.alpha < 1.0) {
            return Err(wrong("alpha", self.alpha, "between 0 and 1"));
        }
        if let Some((low, high)) = self.clamp
            && !(low > 0.0 && low <= high && high.is_finite())
        {
            return Err(Failure::invalid(format!(
                "`clamp` is [{low}, {high}], it must be two positive numbers, the smaller first"
            )));
        }
        if self.max_calib < 10 {
            let windows = self.max_calib as f64;
            return Err(wrong(
                "max_calib",
                windows,
                "at least 10, which is one window",
            ));
        }
        if self.calibration.windows == 0 {
            return Err(wrong("calibration.windows", 0.0, "at least 1"));
        }
        if self.tap.patterns().is_empty() {
            return Err(Failure::invalid("`tap` names no pattern"));
        }
        Ok(())
    }
}

fn wrong(field: &str, value: f64, wanted: &str) -> Failure {
    Failure::invalid(format!("`{field}` is {value}, it must be {wanted}"))
}
