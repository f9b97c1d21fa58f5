//! The policy: the tier's `rmt` section, and how to sample, compare, probe and calibrate.

use std::collections::BTreeMap;

use packhost_sdk::{Against, Failure, Result, glob};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How edge risks are judged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Accepted relative growth of a family that is not listed.
    pub epsilon_default: f64,
    /// Accepted relative growth by family.
    pub epsilon_by_family: BTreeMap<String, f64>,
    /// Of the older rule about weights, which is reported and decides nothing: growth above `(1 + deadband)·margin`.
    pub margin: f64,
    /// As `margin`.
    pub deadband: f64,
    /// Part of the reference's policies. No guard here changes weights, so it has no effect.
    pub correct: bool,
    /// As `correct`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub q: Option<f64>,
    /// Which windows are looked at.
    pub activation_sampling: Sampling,
    /// How edge risks are measured.
    pub estimator: Estimator,
    /// Without activations of the subject the guard fails, instead of having nothing to say.
    pub activation_required: bool,
    /// Only modules that fit one of these (`*` for anything); all when empty.
    pub module_include_patterns: Vec<String>,
    /// No module that fits one of these.
    pub module_exclude_patterns: Vec<String>,
    /// What the subject is held against.
    pub reference: Against,
    /// Whether baseline and subject are compared module by module on more windows.
    pub probe: bool,
    /// Windows of that comparison, evenly spaced.
    #[schemars(range(min = 1))]
    pub probe_windows: usize,
    /// Whether singular values of outputs that lie above `(1 + deadband)·margin` times the edge of noise are counted. It
    /// decides nothing and takes a whole spectrum per module and window, so it is left out unless asked for.
    pub count_outliers: bool,
    /// How a preset is derived; not part of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub derivation: Option<Derivation>,
}

/// Which windows are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Sampling {
    /// Of preview and final windows in this order.
    pub windows: Windows,
}

/// A choice of windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Windows {
    /// How many.
    #[schemars(range(min = 1))]
    pub count: usize,
    /// Which.
    pub indices_policy: Spacing,
}

/// Which windows of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Spacing {
    /// Evenly spaced, first and last included.
    EvenlySpaced,
    /// The first ones.
    First,
    /// The last ones.
    Last,
}

impl Windows {
    /// The host's name of the set.
    pub fn set(self) -> String {
        let spacing = match self.indices_policy {
            Spacing::EvenlySpaced => "even",
            Spacing::First => "first",
            Spacing::Last => "last",
        };
        format!("{spacing}{}", self.count)
    }
}

/// How edge risks are measured. The host measures in one way; another is refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Estimator {
    /// Power iteration.
    #[serde(rename = "type")]
    pub kind: String,
    /// Products with the matrix: 3.
    pub iters: u32,
    /// Start vector: equal entries.
    pub init: String,
}

/// How a preset is derived.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Derivation {
    /// Fewer calibration runs than this are refused.
    pub runs: Option<usize>,
    /// The quantile of runs that becomes the limit: 0.95 in the tier `conservative`, 0.9 elsewhere.
    pub quantile: f64,
}

/// The families of the reference's tables.
pub const FAMILIES: [&str; 4] = ["attn", "embed", "ffn", "other"];

impl Default for Policy {
    fn default() -> Self {
        Self {
            epsilon_default: 0.10,
            epsilon_by_family: FAMILIES.map(|family| (family.to_owned(), 0.10)).into(),
            margin: 1.5,
            deadband: 0.10,
            correct: true,
            q: None,
            activation_sampling: Sampling::default(),
            estimator: Estimator::default(),
            activation_required: false,
            module_include_patterns: Vec::new(),
            module_exclude_patterns: Vec::new(),
            reference: Against::default(),
            probe: false,
            probe_windows: 64,
            count_outliers: false,
            derivation: None,
        }
    }
}

impl Default for Windows {
    fn default() -> Self {
        Self {
            count: 8,
            indices_policy: Spacing::EvenlySpaced,
        }
    }
}

impl Default for Estimator {
    fn default() -> Self {
        Self {
            kind: "power_iter".to_owned(),
            iters: 3,
            init: "ones".to_owned(),
        }
    }
}

impl Default for Derivation {
    fn default() -> Self {
        Self {
            runs: None,
            quantile: 0.90,
        }
    }
}

impl Policy {
    /// Accepted relative growth of a family.
    pub fn epsilon(&self, family: &str) -> f64 {
        let stated = self.epsilon_by_family.get(family);
        stated.copied().unwrap_or(self.epsilon_default)
    }

    /// What the older rules call an outlier: a weight that grew by more, a singular value further above the edge of noise.
    pub fn outlying(&self) -> f64 {
        (1.0 + self.deadband) * self.margin
    }

    /// The host's name of the count of outlying singular values.
    pub fn outlier_count(&self) -> String {
        let thousandths = (1000.0 * self.outlying()).round();
        format!(
            "activation.outliers.{}.{thousandths}",
            self.activation_sampling.windows.set()
        )
    }

    /// The windows of the probe.
    pub fn probe_set(&self) -> String {
        Windows {
            count: self.probe_windows,
            indices_policy: Spacing::EvenlySpaced,
        }
        .set()
    }

    /// Whether the patterns let a module pass.
    pub fn admits(&self, module: &str) -> bool {
        let fits = |patterns: &[String]| patterns.iter().any(|pattern| glob(pattern, module));
        (self.module_include_patterns.is_empty() || fits(&self.module_include_patterns))
            && !fits(&self.module_exclude_patterns)
    }

    /// Refuse what no judgement could follow.
    pub fn check(&self) -> Result<()> {
        let by_family = self
            .epsilon_by_family
            .iter()
            .map(|(family, epsilon)| (format!("epsilon_by_family.{family}"), *epsilon));
        let numbers = by_family.chain([
            ("epsilon_default".to_owned(), self.epsilon_default),
            ("margin".to_owned(), self.margin),
            ("deadband".to_owned(), self.deadband),
        ]);
        for (field, value) in numbers {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Failure::invalid(format!(
                    "`{field}` is {value}, it must be a number from 0 on"
                )));
            }
        }
        for (field, count) in [
            (
                "activation_sampling.windows.count",
                self.activation_sampling.windows.count,
            ),
            ("probe_windows", self.probe_windows),
        ] {
            if count == 0 {
                return Err(Failure::invalid(format!(
                    "`{field}` is 0, at least one window must be looked at"
                )));
            }
        }
        if self.estimator != Estimator::default() {
            return Err(Failure::invalid(
                "`estimator` must be {type: power_iter, iters: 3, init: ones}: edge risks are measured in no other way",
            ));
        }
        let quantile = self
            .derivation
            .as_ref()
            .map(|derivation| derivation.quantile);
        if let Some(quantile) = quantile.filter(|quantile| !(0.0..=1.0).contains(quantile)) {
            return Err(Failure::invalid(format!(
                "`derivation.quantile` is {quantile}, it must be between 0 and 1"
            )));
        }
        Ok(())
    }
}
