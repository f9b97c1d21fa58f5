//! Tiers, profiles and the policies that follow from them.
//!
//! A *tier* says how strict guards are, a *profile* how much is measured. The policy of a run is merged from, in this
//! order: defaults, the tier, the profile, adjustments for the edit, overrides (a preset, or the user's). Objects merge
//! key by key, everything else is replaced. `tiers.json` beside this file holds the values.

use crate::{Error, Result};
use serde_json::{Map, Value, json};

/// The tables behind [`Policies::resolve`].
const TABLES: &str = include_str!("tiers.json");

/// How strict the guards are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tier {
    /// Small changes only.
    Conservative,
    /// The default.
    #[default]
    Balanced,
    /// Large changes pass.
    Aggressive,
}

impl Tier {
    /// Every tier.
    pub const ALL: [Self; 3] = [Self::Conservative, Self::Balanced, Self::Aggressive];

    /// The name in reports and configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Conservative => "conservative",
            Self::Balanced => "balanced",
            Self::Aggressive => "aggressive",
        }
    }

    /// The tier of that name.
    pub fn from_name(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|tier| tier.name() == name)
            .ok_or_else(|| {
                Error::Policy(format!(
                    "there is no tier `{name}`; use conservative, balanced or aggressive"
                ))
            })
    }

    /// Windows and replicates that an evaluation must reach.
    #[must_use]
    pub fn coverage(self) -> CoverageFloor {
        let (windows, replicates) = match self {
            Self::Conservative => (220, 1500),
            Self::Balanced => (180, 1200),
            Self::Aggressive => (140, 800),
        };
        CoverageFloor {
            preview: windows,
            final_: windows,
            replicates,
        }
    }
}

/// Least counts of an evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CoverageFloor {
    /// Windows of the preview arm.
    pub preview: usize,
    /// Windows of the final arm.
    pub final_: usize,
    /// Bootstrap replicates.
    pub replicates: usize,
}

impl CoverageFloor {
    /// An error in the profiles that demand coverage (ci and release); elsewhere too little is only reported.
    pub fn enforce(
        &self,
        tier: Tier,
        profile: Profile,
        preview: usize,
        final_: usize,
        replicates: usize,
    ) -> Result<()> {
        if !matches!(profile, Profile::Ci | Profile::Release) {
            return Ok(());
        }
        for (what, used, required) in [
            ("preview windows", preview, self.preview),
            ("final windows", final_, self.final_),
            ("bootstrap replicates", replicates, self.replicates),
        ] {
            if used < required {
                return Err(Error::Coverage {
                    what,
                    used,
                    required,
                    tier: tier.name().into(),
                    profile: profile.name(),
                });
            }
        }
        Ok(())
    }
}

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Profile {
    /// No demands; for trying things out.
    #[default]
    Dev,
    /// Continuous integration on a CPU.
    CiCpu,
    /// Continuous integration.
    Ci,
    /// What a published pack is made with.
    Release,
}

impl Profile {
    /// Every profile.
    pub const ALL: [Self; 4] = [Self::Dev, Self::CiCpu, Self::Ci, Self::Release];

    /// The name in reports and configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::CiCpu => "ci_cpu",
            Self::Ci => "ci",
            Self::Release => "release",
        }
    }

    /// The profile of that name.
    pub fn from_name(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|profile| profile.name() == name)
            .ok_or_else(|| {
                Error::Policy(format!(
                    "there is no profile `{name}`; use dev, ci_cpu, ci or release"
                ))
            })
    }

    /// Windows per arm, unless something else is asked for.
    #[must_use]
    pub fn windows(self) -> usize {
        match self {
            Self::Dev => 32,
            Self::CiCpu => 120,
            Self::Ci => 240,
            Self::Release => 400,
        }
    }

    /// Bootstrap replicates, unless something else is asked for.
    #[must_use]
    pub fn replicates(self) -> usize {
        match self {
            Self::Dev | Self::CiCpu => 1000,
            Self::Ci => 1200,
            Self::Release => 3200,
        }
    }

    /// Smallest and largest drift (final over preview perplexity of the subject), unless a preset says otherwise.
    #[must_use]
    pub fn drift_band(self) -> (f64, f64) {
        match self {
            Self::Ci => (0.95, 1.07),
            _ => (0.95, 1.05),
        }
    }

    /// The range of ratios that passes, where the profile rather than the tier sets it.
    #[must_use]
    pub fn acceptance_range(self) -> Option<(f64, f64)> {
        (self == Self::CiCpu).then_some((0.95, 1.15))
    }
}

/// What [`Policies::resolve`] merges.
#[derive(Debug, Clone, Copy, Default)]
pub struct PolicyInputs<'a> {
    /// How strict.
    pub tier: Tier,
    /// How much.
    pub profile: Profile,
    /// The edit's type, such as `quant_rtn`, where the edit itself adjusts policies.
    pub edit: Option<&'a str>,
    /// Explicit overrides in the shape of the result; a preset is one source of them.
    pub overrides: Option<&'a Value>,
}

/// The resolved policies: one object with a section per guard.
#[derive(Debug, Clone, PartialEq)]
pub struct Policies {
    tier: Tier,
    profile: Profile,
    sections: Map<String, Value>,
    overridden: Vec<String>,
}

/// What the primary metric's policy holds beside the tier's `metrics` section.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MetricOptions {
    /// Bootstrap seed; the reference uses the seed of the windows.
    pub seed: u64,
    /// Bootstrap replicates.
    pub replicates: usize,
    /// One minus the intervals' level.
    pub alpha: f64,
}

/// Keys of the section `primary_metric`, which no tier sets: the range of accepted ratios and the drift band.
const METRIC_KEYS: [&str; 2] = ["acceptance_range", "drift_band"];

impl Policies {
    /// Merge the policies of a run. Overrides may not name a section or key that does not exist.
    pub fn resolve(inputs: &PolicyInputs<'_>) -> Result<Self> {
        let tables: Value = serde_json::from_str(TABLES)
            .map_err(|error| Error::Policy(format!("built-in tables: {error}")))?;
        let mut sections = tables["defaults"].clone();
        merge(&mut sections, &tables["tiers"][inputs.tier.name()]);
        merge(&mut sections, &tables["profiles"][inputs.profile.name()]);
        if let Some(edit) = inputs.edit {
            merge(&mut sections, &tables["edits"][edit]);
        }
        let mut overridden = Vec::new();
        if let Some(overrides) = inputs.overrides {
            check_overrides(&sections, overrides)?;
            collect_paths(overrides, "", &mut overridden);
            merge(&mut sections, overrides);
        }
        let Value::Object(sections) = sections else {
            return Err(Error::Policy("built-in tables are not an object".into()));
        };
        Ok(Self {
            tier: inputs.tier,
            profile: inputs.profile,
            sections,
            overridden,
        })
    }

    /// The tier.
    #[must_use]
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// The profile.
    #[must_use]
    pub fn profile(&self) -> Profile {
        self.profile
    }

    /// The merged section, such as `spectral`; null when there is none.
    #[must_use]
    pub fn section(&self, name: &str) -> &Value {
        self.sections.get(name).unwrap_or(&Value::Null)
    }

    /// Every section.
    #[must_use]
    pub fn sections(&self) -> &Map<String, Value> {
        &self.sections
    }

    /// Dotted paths that overrides set, sorted.
    #[must_use]
    pub fn overridden(&self) -> &[String] {
        &self.overridden
    }

    /// First 16 hexadecimal digits of SHA-256 of the canonical text of all sections.
    #[must_use]
    pub fn digest(&self) -> String {
        let line = crate::canonical::to_line(&Value::Object(self.sections.clone()));
        crate::canonical::sha256_hex(line.as_bytes())[..16].to_owned()
    }

    /// The policy for the guard component of that id. The primary metric's holds the tier's `metrics`, the coverage floor,
    /// the range of accepted ratios and the drift band where known, and how to bootstrap; every other guard gets exactly its
    /// section, or an empty object. In profiles ci and release RMT demands activations.
    #[must_use]
    pub fn for_guard(&self, id: &str, options: &MetricOptions) -> Value {
        if id != "primary-metric" {
            let mut policy = match self.section(&id.replace('-', "_")) {
                Value::Null => json!({}),
                section => section.clone(),
            };
            if id == "rmt" && matches!(self.profile, Profile::Ci | Profile::Release) {
                policy["activation_required"] = json!(true);
            }
            return policy;
        }
        let mut policy = self.section("metrics").clone();
        let floor = self.tier.coverage();
        let (low, high) = self.profile.drift_band();
        merge(
            &mut policy,
            &json!({
                "coverage": {"preview": floor.preview, "final": floor.final_, "replicates": floor.replicates},
                "drift_band": {"min": low, "max": high},
                "bootstrap": {"method": "bca", "replicates": options.replicates, "alpha": options.alpha, "seed": options.seed},
            }),
        );
        if let Some((low, high)) = self.profile.acceptance_range() {
            merge(
                &mut policy,
                &json!({"acceptance_range": {"min": low, "max": high}}),
            );
        }
        // A range replaces a range: half of one and half of another would be nobody's intention.
        if let Some(Value::Object(explicit)) = self.sections.get("primary_metric")
            && let Value::Object(policy) = &mut policy
        {
            policy.extend(explicit.clone());
        }
        policy
    }
}

/// How a preset is derived: what a guard's policy holds beside its section while it calibrates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Calibration {
    /// Runs of the unedited model; a guard refuses fewer.
    pub runs: usize,
    /// Harmless perturbations among the tables, for guards of our own; none measured is fine with them.
    pub perturbations: usize,
}

impl Policies {
    /// The policy under which the guard of that id calibrates: that of [`Policies::for_guard`], how many runs it must be
    /// given, and for the reference's guards the tier's margins.
    #[must_use]
    pub fn for_calibration(
        &self,
        id: &str,
        options: &MetricOptions,
        calibration: Calibration,
    ) -> Value {
        let mut policy = self.for_guard(id, options);
        let (margin, quantile) = match self.tier {
            Tier::Conservative => (0.10, 0.95),
            Tier::Balanced | Tier::Aggressive => (0.05, 0.90),
        };
        let budget = match self.tier {
            Tier::Conservative => 3,
            Tier::Balanced => 5,
            Tier::Aggressive => 8,
        };
        let runs = calibration.runs;
        match id {
            "spectral" => {
                policy["derivation"] = json!({"runs": runs, "margin": margin, "budget": budget});
            }
            "rmt" => policy["derivation"] = json!({"runs": runs, "quantile": quantile}),
            "variance" => policy["derivation"] = json!({"runs": runs}),
            id if OURS.contains(&id.replace('-', "_").as_str())
                && calibration.perturbations > 0 =>
            {
                policy["runs"] = json!(calibration.perturbations);
            }
            _ => {}
        }
        policy
    }
}

/// Merge objects key by key; replace everything else.
fn merge(target: &mut Value, source: &Value) {
    match (target, source) {
        (_, Value::Null) => {}
        (Value::Object(target), Value::Object(source)) => {
            for (key, value) in source {
                match target.get_mut(key) {
                    Some(slot) if slot.is_object() && value.is_object() => merge(slot, value),
                    _ => {
                        target.insert(key.clone(), value.clone());
                    }
                }
            }
        }
        (target, source) => *target = source.clone(),
    }
}

/// Sections that no tier sets: policies of guards of our own, whose limits do not depend on the tier. These guards refuse
/// unknown keys themselves, and what a calibration adds is a section like any other.
const OURS: [&str; 3] = ["weight_shift", "distribution_shift", "activation_shift"];

/// What guards of the reference's chain can be told beyond the tier's sections: what they hold the subject against (`subject`
/// or `baseline`), and whether singular values of outputs are counted.
fn beyond_tiers(section: &str) -> &'static [&'static str] {
    match section {
        "rmt" => &["reference", "count_outliers"],
        "spectral" | "variance" => &["reference"],
        _ => &[],
    }
}

/// Refuse what would silently have no effect: unknown sections and keys. Families are free names.
fn check_overrides(sections: &Value, overrides: &Value) -> Result<()> {
    let Some(overrides) = overrides.as_object() else {
        return Err(Error::Policy("overrides must be an object".into()));
    };
    for (section, keys) in overrides {
        let Some(keys) = keys.as_object() else {
            return Err(Error::Policy(format!(
                "override `{section}` must be an object"
            )));
        };
        if OURS.contains(&section.as_str()) {
            continue;
        }
        let mut known: Vec<&str> = match sections[section].as_object() {
            Some(known) => known.keys().map(String::as_str).collect(),
            None if section == "primary_metric" => METRIC_KEYS.to_vec(),
            None => {
                return Err(Error::Policy(format!(
                    "override of unknown section `{section}`; there are metrics, primary_metric, invariants, spectral, rmt, variance, {}",
                    OURS.join(", ")
                )));
            }
        };
        known.extend(beyond_tiers(section));
        for (key, value) in keys {
            if !known.contains(&key.as_str()) {
                return Err(Error::Policy(format!(
                    "override of unknown key `{section}.{key}`; there are {}",
                    known.join(", ")
                )));
            }
            let inner = sections[section][key].as_object();
            let families = matches!(key.as_str(), "family_caps" | "epsilon_by_family");
            if let (Some(inner), Some(value), false) = (inner, value.as_object(), families) {
                if let Some(unknown) = value.keys().find(|name| !inner.contains_key(*name)) {
                    return Err(Error::Policy(format!(
                        "override of unknown key `{section}.{key}.{unknown}`"
                    )));
                }
            } else if inner.is_some() && !value.is_object() {
                return Err(Error::Policy(format!(
                    "override `{section}.{key}` must be an object"
                )));
            }
        }
    }
    Ok(())
}

fn collect_paths(value: &Value, prefix: &str, out: &mut Vec<String>) {
    match value.as_object() {
        Some(object) if !object.is_empty() => {
            let mut keys: Vec<&String> = object.keys().collect();
            keys.sort();
            for key in keys {
                let path = if prefix.is_empty() {
                    key.clone()
                } else {
                    format!("{prefix}.{key}")
                };
                collect_paths(&object[key], &path, out);
            }
        }
        _ => out.push(prefix.to_owned()),
    }
}
