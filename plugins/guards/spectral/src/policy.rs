//! The policy: the tier's `spectral` section, and how to compare and calibrate.

use std::collections::BTreeMap;

use packhost_sdk::stats::testing::Correction;
use packhost_sdk::{Against, Failure, Result, glob};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How singular values are judged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Which modules.
    pub scope: Scope,
    /// The quantile of all reference values that stands in for a module that the reference lacks.
    pub sigma_quantile: f64,
    /// In a family without spread: the relative change that counts as none, and the unit of larger ones.
    pub deadband: f64,
    /// Most counted warnings before the guard fails.
    pub max_caps: usize,
    /// A singular value above this is fatal.
    pub max_spectral_norm: Option<f64>,
    /// Largest accepted |z| by family; a family that is not listed has that of `other`.
    pub family_caps: BTreeMap<String, Cap>,
    /// How families are tested together.
    pub multiple_testing: MultipleTesting,
    /// How singular values are measured.
    pub estimator: Estimator,
    /// What counts as collapse of a matrix.
    pub degeneracy: Degeneracy,
    /// Part of the reference's policies. No guard here changes weights, so it has no effect.
    pub correction_enabled: bool,
    /// Part of the reference's policies. It concerns a phase that this guard does not have, so it has no effect.
    pub ignore_preview_inflation: bool,
    /// Only modules that fit one of these (`*` for anything); all when empty.
    pub module_include_patterns: Vec<String>,
    /// No module that fits one of these.
    pub module_exclude_patterns: Vec<String>,
    /// What the subject is held against.
    pub reference: Against,
    /// How a preset is derived; not part of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub derivation: Option<Derivation>,
}

/// Which modules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Scope {
    /// Every matrix, embeddings and head included.
    #[serde(rename = "all")]
    All,
    /// Attention.
    #[serde(rename = "attn")]
    Attn,
    /// Feed-forward blocks.
    #[serde(rename = "ffn")]
    Ffn,
    /// Feed-forward blocks and projections of either kind.
    #[serde(rename = "ffn+proj")]
    FfnProj,
}

/// A family's limit.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cap {
    /// Largest accepted |z|.
    pub kappa: Option<f64>,
}

/// How families are tested together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MultipleTesting {
    /// The rule.
    pub method: Method,
    /// The level.
    pub alpha: f64,
    /// Least number of tests that the level is shared among.
    pub m: usize,
}

/// The rule of multiple testing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Benjamini and Hochberg.
    Bh,
    /// Bonferroni.
    Bonferroni,
}

impl Method {
    pub fn correction(self) -> Correction {
        match self {
            Self::Bh => Correction::BenjaminiHochberg,
            Self::Bonferroni => Correction::Bonferroni,
        }
    }
}

/// How singular values are measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Estimator {
    /// Power iteration; there is no other.
    #[serde(rename = "type")]
    pub kind: EstimatorKind,
    /// Products with the matrix.
    #[schemars(range(min = 1, max = 1000))]
    pub iters: u32,
    /// The start vector.
    pub init: Start,
}

/// Kinds of estimators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EstimatorKind {
    /// Power iteration with a fixed number of products.
    PowerIter,
}

/// Start vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// Equal entries. Blind to a matrix whose rows sum to zero.
    Ones,
    /// The first unit vector.
    E0,
    /// Fixed pseudo-random entries.
    Hashed,
}

impl Estimator {
    /// The host's name of what is measured.
    pub fn quantity(&self) -> String {
        let start = match self.init {
            Start::Ones => "ones",
            Start::E0 => "e0",
            Start::Hashed => "hashed",
        };
        format!("weight.sigma.{start}.{}", self.iters)
    }
}

/// What counts as collapse of a matrix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Degeneracy {
    /// Whether collapse is looked for.
    pub enabled: bool,
    /// Stable rank (squared Frobenius norm over squared largest singular value) relative to the reference.
    pub stable_rank: Ratios,
    /// Smallest over median row or column norm, relative to the reference.
    pub norm_collapse: Ratios,
}

/// Limits of a ratio to the reference.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ratios {
    /// Below this the ratio is a counted warning.
    pub warn_ratio: f64,
    /// Below this it is fatal.
    pub fatal_ratio: f64,
}

/// How a preset is derived.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Derivation {
    /// Fewer calibration runs than this are refused.
    pub runs: Option<usize>,
    /// Added to every calibrated limit: 0.1 in the tier `conservative`, 0.05 elsewhere.
    pub margin: f64,
    /// The budget that is shared among families where no run states one: the tier's.
    pub budget: usize,
    /// The type of edit that the preset is for; it raises `max_caps` to what such edits need.
    pub edit_type: Option<String>,
    /// `max_caps` of that type's preset, instead of what is suggested for it.
    pub edit_max_caps: Option<usize>,
}

impl Default for Policy {
    fn default() -> Self {
        let cap = |family: &str, kappa| (family.to_owned(), Cap { kappa: Some(kappa) });
        Self {
            scope: Scope::All,
            sigma_quantile: 0.95,
            deadband: 0.10,
            max_caps: 5,
            max_spectral_norm: None,
            family_caps: [
                cap("ffn", 2.5),
                cap("attn", 2.8),
                cap("embed", 3.0),
                cap("other", 3.0),
            ]
            .into(),
            multiple_testing: MultipleTesting::default(),
            estimator: Estimator::default(),
            degeneracy: Degeneracy::default(),
            correction_enabled: true,
            ignore_preview_inflation: true,
            module_include_patterns: Vec::new(),
            module_exclude_patterns: Vec::new(),
            reference: Against::default(),
            derivation: None,
        }
    }
}

impl Default for MultipleTesting {
    fn default() -> Self {
        Self {
            method: Method::Bh,
            alpha: 0.05,
            m: 4,
        }
    }
}

impl Default for Estimator {
    fn default() -> Self {
        Self {
            kind: EstimatorKind::PowerIter,
            iters: 4,
            init: Start::Ones,
        }
    }
}

impl Default for Degeneracy {
    fn default() -> Self {
        Self {
            enabled: true,
            stable_rank: Ratios {
                warn_ratio: 0.5,
                fatal_ratio: 0.25,
            },
            norm_collapse: Ratios {
                warn_ratio: 0.25,
                fatal_ratio: 0.10,
            },
        }
    }
}

impl Default for Derivation {
    fn default() -> Self {
        Self {
            runs: None,
            margin: 0.05,
            budget: 5,
            edit_type: None,
            edit_max_caps: None,
        }
    }
}

/// The limit of |z| where no policy states one.
const KAPPA: f64 = 3.0;

impl Policy {
    /// The family's limit of |z|; else that of `other`; else 3.
    pub fn kappa(&self, family: &str) -> f64 {
        let of = |family: &str| {
            let cap = self.family_caps.get(family)?;
            cap.kappa.filter(|kappa| kappa.is_finite())
        };
        of(family).or_else(|| of("other")).unwrap_or(KAPPA)
    }

    /// Whether the patterns let a module pass.
    pub fn admits(&self, module: &str) -> bool {
        let fits = |patterns: &[String]| patterns.iter().any(|pattern| glob(pattern, module));
        (self.module_include_patterns.is_empty() || fits(&self.module_include_patterns))
            && !fits(&self.module_exclude_patterns)
    }

    /// Whether every matrix is looked at.
    pub fn takes_all(&self) -> bool {
        self.scope == Scope::All
            && self.module_include_patterns.is_empty()
            && self.module_exclude_patterns.is_empty()
    }

    /// Refuse numbers that no judgement could follow.
    pub fn check(&self) -> Result<()> {
        let share = |field, value| within(field, value, 0.0, 1.0);
        share("sigma_quantile", self.sigma_quantile)?;
        within("deadband", self.deadband, 0.0, f64::MAX)?;
        if let Some(norm) = self.max_spectral_norm {
            within("max_spectral_norm", norm, 0.0, f64::MAX)?;
        }
        for (family, cap) in &self.family_caps {
            if let Some(kappa) = cap.kappa {
                within(&format!("family_caps.{family}.kappa"), kappa, 0.0, f64::MAX)?;
            }
        }
        let alpha = self.multiple_testing.alpha;
        if alpha == 0.0 {
            return Err(wrong("multiple_testing.alpha", alpha, "above 0"));
        }
        share("multiple_testing.alpha", alpha)?;
        if !(1..=1000).contains(&self.estimator.iters) {
            let iters = f64::from(self.estimator.iters);
            return Err(wrong("estimator.iters", iters, "between 1 and 1000"));
        }
        for (name, ratios) in [
            ("stable_rank", self.degeneracy.stable_rank),
            ("norm_collapse", self.degeneracy.norm_collapse),
        ] {
            let field = format!("degeneracy.{name}.warn_ratio");
            within(&field, ratios.warn_ratio, 0.0, f64::MAX)?;
            let field = format!("degeneracy.{name}.fatal_ratio");
            within(&field, ratios.fatal_ratio, 0.0, ratios.warn_ratio)?;
        }
        if let Some(derivation) = &self.derivation {
            within("derivation.margin", derivation.margin, 0.0, f64::MAX)?;
        }
        Ok(())
    }
}

fn within(field: &str, value: f64, low: f64, high: f64) -> Result<()> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    let wanted = if high == f64::MAX {
        format!("a number from {low} on")
    } else {
        format!("between {low} and {high}")
    };
    Err(wrong(field, value, &wanted))
}

fn wrong(field: &str, value: f64, wanted: &str) -> Failure {
    Failure::invalid(format!("`{field}` is {value}, it must be {wanted}"))
}
