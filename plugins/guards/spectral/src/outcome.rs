//! The judgement: z-scores within families, limits, multiple testing, budget.

use std::collections::{BTreeMap, BTreeSet};

use packhost_sdk::json::{Value as Json, json};
use packhost_sdk::stats::{quantile, summary, testing};

use crate::family;
use crate::modules::{Modules, TINY};
use crate::policy::{Policy, Ratios};

/// Statistics of a family's singular values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Family {
    /// Modules.
    pub count: usize,
    /// Mean.
    pub mean: f64,
    /// Standard deviation with `count` degrees of freedom.
    pub std: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
}

/// What the subject is held against.
pub struct Reference<'a> {
    modules: &'a Modules,
    /// Statistics by family.
    pub families: BTreeMap<&'static str, Family>,
    /// Stands in for a module that the reference lacks.
    pub target_sigma: f64,
}

impl<'a> Reference<'a> {
    pub fn new(policy: &Policy, modules: &'a Modules) -> Self {
        let mut values: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
        for (module, figures) in modules {
            let family = values.entry(family::of(module)).or_default();
            family.push(figures.sigma);
        }
        let families = values
            .into_iter()
            .map(|(family, sigmas)| (family, statistics(&sigmas)))
            .collect();
        let all: Vec<f64> = modules.values().map(|figures| figures.sigma).collect();
        Self {
            modules,
            families,
            target_sigma: quantile::linear(&quantile::sorted(&all), policy.sigma_quantile),
        }
    }
}

fn statistics(sigmas: &[f64]) -> Family {
    Family {
        count: sigmas.len(),
        mean: summary::mean(sigmas),
        std: summary::population_std(sigmas),
        min: sigmas.iter().copied().fold(f64::INFINITY, f64::min),
        max: sigmas.iter().copied().fold(f64::NEG_INFINITY, f64::max),
    }
}

/// The score of a singular value within its family. A family without spread has none to measure in: there the relative
/// change from `reference` counts, in units of the deadband, and a change within the deadband is none.
pub fn z_score(sigma: f64, family: Option<&Family>, reference: f64, deadband: f64) -> f64 {
    if let Some(family) = family.filter(|family| family.std > 0.0) {
        return (sigma - family.mean) / family.std;
    }
    let reference = if reference > 0.0 { reference } else { 1.0 };
    let relative = sigma / reference - 1.0;
    if relative.abs() <= deadband {
        0.0
    } else if deadband > 0.0 {
        relative / deadband
    } else {
        relative
    }
}

/// What a violation is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// |z| above the family's limit.
    FamilyZCap,
    /// A singular value above the absolute limit.
    MaxSpectralNorm,
    /// The stable rank fell.
    StableRankDrop,
    /// A row or column vanished.
    NormCollapse,
    /// The baseline has the module and the subject does not.
    ModuleMissing,
}

impl Kind {
    /// The reference's name, where it has one.
    pub fn name(self) -> &'static str {
        match self {
            Self::FamilyZCap => "family_z_cap",
            Self::MaxSpectralNorm => "max_spectral_norm",
            Self::StableRankDrop => "degeneracy_stable_rank_drop",
            Self::NormCollapse => "degeneracy_norm_collapse",
            Self::ModuleMissing => "module_missing",
        }
    }
}

/// Something that exceeds a limit.
#[derive(Debug, Clone, PartialEq)]
pub struct Violation {
    /// What.
    pub kind: Kind,
    /// Where.
    pub module: String,
    /// The module's family.
    pub family: &'static str,
    /// Whether it fails the guard; otherwise it counts against the budget.
    pub fatal: bool,
    /// What was found and what was allowed.
    pub value: f64,
    /// What was allowed.
    pub limit: f64,
    /// The figures in the reference's words.
    pub figures: Json,
}

impl Violation {
    /// A sentence for people.
    pub fn message(&self) -> String {
        let Self {
            module,
            family,
            value,
            limit,
            ..
        } = self;
        match self.kind {
            Kind::FamilyZCap => format!(
                "the largest singular value of {module} has z {value:.3} within family {family}, limit {limit:.3}"
            ),
            Kind::MaxSpectralNorm => {
                format!("the largest singular value of {module} is {value:.4}, limit {limit}")
            }
            Kind::StableRankDrop => {
                format!(
                    "the stable rank of {module} fell to {value:.4} of what it was, limit {limit}"
                )
            }
            Kind::NormCollapse => format!(
                "the smallest row or column norm of {module} fell to {value:.4} of what it was, limit {limit}"
            ),
            Kind::ModuleMissing => format!("{module} was not measured in the subject"),
        }
    }

    /// For the report.
    pub fn details(&self) -> Json {
        let mut details = json!({
            "type": self.kind.name(),
            "severity": if self.fatal { "fatal" } else { "budgeted" },
            "module": self.module,
            "family": self.family,
            "message": self.message(),
        });
        if let (Json::Object(details), Json::Object(figures)) = (&mut details, &self.figures) {
            details.extend(figures.clone());
        }
        details
    }
}

/// How families were tested.
#[derive(Debug, Default)]
pub struct Selection {
    /// Smallest p-value of each family with a candidate.
    pub p_values: BTreeMap<&'static str, f64>,
    /// Largest |z| of each such family.
    pub max_abs_z: BTreeMap<&'static str, f64>,
    /// Candidates of each such family.
    pub counts: BTreeMap<&'static str, usize>,
    /// Rejected families.
    pub selected: BTreeSet<&'static str>,
    /// Candidates that count without a test, having no z.
    pub untested: usize,
}

/// The judgement of one model.
pub struct Outcome {
    /// Score of every module.
    pub z: BTreeMap<String, f64>,
    /// Violations that count: fatal ones first.
    pub violations: Vec<Violation>,
    /// Candidates for the budget, counted or not.
    pub candidates: usize,
    /// Fatal ones.
    pub fatal: usize,
    /// Candidates that count.
    pub caps_applied: usize,
    /// Whether they are more than the budget.
    pub caps_exceeded: bool,
    /// How they were chosen.
    pub selection: Selection,
    /// Modules whose collapse could not be measured.
    pub unmeasured: Vec<String>,
}

impl Outcome {
    pub fn passed(&self) -> bool {
        self.fatal == 0 && !self.caps_exceeded
    }

    pub fn decision(&self) -> &'static str {
        match (self.passed(), self.caps_applied) {
            (false, _) => "block",
            (true, 0) => "allow",
            (true, _) => "monitor",
        }
    }

    /// What reports call `caps_applied`: everything that counts, fatal violations included.
    pub fn reported_caps(&self) -> usize {
        self.violations.len()
    }

    /// The report's flag.
    pub fn stable(&self, policy: &Policy) -> bool {
        self.reported_caps() <= policy.max_caps && !self.caps_exceeded
    }
}

/// Judges `current` against the reference. `expected` are modules that must be there.
pub fn judge(
    policy: &Policy,
    reference: &Reference<'_>,
    current: &Modules,
    expected: &Modules,
) -> Outcome {
    let mut fatal = Vec::new();
    let mut candidates = Vec::new();
    let mut z = BTreeMap::new();
    let mut unmeasured = Vec::new();
    let mut add = |violation: Violation| {
        let list = if violation.fatal {
            &mut fatal
        } else {
            &mut candidates
        };
        list.push(violation);
    };
    for (module, now) in current {
        let family = family::of(module);
        let before = reference.modules.get(module);
        let reference_sigma = before.map_or(reference.target_sigma, |before| before.sigma);
        let score = z_score(
            now.sigma,
            reference.families.get(family),
            reference_sigma,
            policy.deadband,
        );
        z.insert(module.clone(), score);
        let violation = |kind, fatal, value, limit, figures| Violation {
            kind,
            module: module.clone(),
            family,
            fatal,
            value,
            limit,
            figures,
        };
        let kappa = policy.kappa(family);
        if score.abs() > kappa {
            let figures = json!({"z_score": score, "kappa": kappa, "sigma": now.sigma, "baseline_sigma": reference_sigma});
            add(violation(Kind::FamilyZCap, false, score, kappa, figures));
        }
        if let Some(limit) = policy.max_spectral_norm.filter(|limit| now.sigma > *limit) {
            let figures = json!({"current_sigma": now.sigma, "threshold": limit});
            add(violation(
                Kind::MaxSpectralNorm,
                true,
                now.sigma,
                limit,
                figures,
            ));
        }
        if !policy.degeneracy.enabled {
            continue;
        }
        if now.collapse.is_none() {
            unmeasured.push(module.clone());
        }
        let Some(before) = before else { continue };
        let Degenerate { rank, norms } = Degenerate::of(before, now);
        let limits = &policy.degeneracy;
        for (kind, name, figures, limits) in [
            (
                Kind::StableRankDrop,
                "stable_rank",
                rank,
                limits.stable_rank,
            ),
            (
                Kind::NormCollapse,
                "norm_collapse",
                norms,
                limits.norm_collapse,
            ),
        ] {
            if let Some((was, is)) = figures
                && let Some((is_fatal, ratio)) = below(is / was.max(TINY), limits)
            {
                let Ratios {
                    warn_ratio,
                    fatal_ratio,
                } = limits;
                let figures = json!({
                    (format!("{name}_base")): was,
                    (format!("{name}_cur")): is,
                    "ratio": ratio,
                    "warn_ratio": warn_ratio,
                    "fatal_ratio": fatal_ratio,
                });
                add(violation(kind, is_fatal, ratio, warn_ratio, figures));
            }
        }
    }
    for module in expected
        .keys()
        .filter(|module| !current.contains_key(*module))
    {
        add(Violation {
            kind: Kind::ModuleMissing,
            module: module.clone(),
            family: family::of(module),
            fatal: true,
            value: 0.0,
            limit: 1.0,
            figures: json!({}),
        });
    }
    let selection = select(policy, &candidates);
    let count = candidates.len();
    candidates.retain(|candidate| {
        candidate.kind != Kind::FamilyZCap || selection.selected.contains(candidate.family)
    });
    let (fatals, caps_applied) = (fatal.len(), candidates.len());
    fatal.append(&mut candidates);
    Outcome {
        z,
        violations: fatal,
        candidates: count,
        fatal: fatals,
        caps_applied,
        caps_exceeded: caps_applied > policy.max_caps,
        selection,
        unmeasured,
    }
}

/// A figure before and after.
type BeforeAfter = Option<(f64, f64)>;

/// The figures of collapse, where the reference's is positive and so can be a denominator.
struct Degenerate {
    rank: BeforeAfter,
    norms: BeforeAfter,
}

impl Degenerate {
    fn of(before: &crate::modules::Figures, now: &crate::modules::Figures) -> Self {
        let positive = |before: Option<f64>, now: Option<f64>| {
            before
                .filter(|value| value.is_finite() && *value > 0.0)
                .zip(now)
        };
        Self {
            rank: positive(before.stable_rank(), now.stable_rank()),
            norms: positive(before.collapse, now.collapse),
        }
    }
}

/// A ratio below the limits, and whether it is fatal.
fn below(ratio: f64, limits: Ratios) -> Option<(bool, f64)> {
    (ratio.is_finite() && ratio < limits.warn_ratio).then_some((ratio < limits.fatal_ratio, ratio))
}

/// Which families' candidates count. A family is tested by its smallest p-value; one that is rejected counts whole.
fn select(policy: &Policy, candidates: &[Violation]) -> Selection {
    let mut selection = Selection::default();
    for candidate in candidates {
        if candidate.kind != Kind::FamilyZCap {
            selection.untested += 1;
            continue;
        }
        let (family, score) = (candidate.family, candidate.value.abs());
        let p = testing::two_sided(score);
        let least = selection.p_values.entry(family).or_insert(p);
        *least = least.min(p);
        let largest = selection.max_abs_z.entry(family).or_insert(score);
        *largest = largest.max(score);
        *selection.counts.entry(family).or_insert(0) += 1;
    }
    let p_values: Vec<f64> = selection.p_values.values().copied().collect();
    let rule = &policy.multiple_testing;
    let limit = testing::threshold(rule.method.correction(), &p_values, rule.alpha, rule.m);
    if let Some(limit) = limit {
        let rejected = selection.p_values.iter().filter(|(_, p)| **p <= limit);
        selection.selected = rejected.map(|(family, _)| *family).collect();
    }
    selection
}
