//! Detectors: conditions on a report by which a scenario says how it should be noticed.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::outcome::{self, Outcome, lenient_true};
use super::{RecordInput, Scenario};
use crate::json::get;

/// One condition of a scenario, checked when the table is read.
#[derive(Clone, Debug, PartialEq)]
pub struct Detector {
    kind: Kind,
    source: Value,
}

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    ValidationFlag {
        flag: String,
        expected: Value,
    },
    PrimaryMetric {
        field: String,
        expected: Value,
    },
    InvariantsStatus {
        allowed: Vec<String>,
    },
    Probe {
        which: Probe,
        field: String,
        wanted: Wanted,
    },
    SpectralCaps {
        min: f64,
    },
    Relative {
        guard: String,
        limits: Limits,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probe {
    Rmt,
    Variance,
}

#[derive(Clone, Debug, PartialEq)]
enum Wanted {
    Equal(Value),
    AtLeast(f64),
}

/// How much spectral movement is needed; with neither, any.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Limits {
    new_modules: Option<f64>,
    delta_count: Option<f64>,
}

impl Detector {
    /// Reads a detector of a scenario table.
    ///
    /// # Errors
    /// What is wrong with it, if its kind is unknown or a field is absent.
    pub fn from_json(value: &Value) -> Result<Self, String> {
        let kind = get::text(value, &["kind"]).ok_or("a detector has no `kind`")?;
        let text = |key: &str| {
            get::text(value, &[key])
                .map(str::to_owned)
                .ok_or_else(|| format!("a detector of kind `{kind}` needs `{key}`"))
        };
        let expected = || {
            value
                .get("expected")
                .cloned()
                .ok_or_else(|| format!("a detector of kind `{kind}` needs `expected`"))
        };
        let limits = Limits {
            new_modules: get::number(value, &["min_new_modules"]),
            delta_count: get::number(value, &["min_delta_count"]),
        };
        let kind = match kind {
            "validation_flag" => Kind::ValidationFlag {
                flag: text("flag")?,
                expected: expected()?,
            },
            "primary_metric" => Kind::PrimaryMetric {
                field: text("field")?,
                expected: expected()?,
            },
            "invariants_status" => {
                let allowed = value
                    .get("allowed")
                    .and_then(Value::as_array)
                    .ok_or("a detector of kind `invariants_status` needs `allowed`")?;
                Kind::InvariantsStatus {
                    allowed: allowed
                        .iter()
                        .filter_map(|status| Some(status.as_str()?.to_lowercase()))
                        .collect(),
                }
            }
            "rmt_probe" => Kind::Probe {
                which: Probe::Rmt,
                field: text("field")?,
                wanted: Wanted::Equal(expected()?),
            },
            "ve_probe" => {
                let wanted = match get::number(value, &["min"]) {
                    Some(min) => Wanted::AtLeast(min),
                    None => Wanted::Equal(expected()?),
                };
                Kind::Probe {
                    which: Probe::Variance,
                    field: text("field")?,
                    wanted,
                }
            }
            "spectral_caps_applied" => Kind::SpectralCaps {
                min: get::number(value, &["min"]).unwrap_or(1.0),
            },
            "spectral_caps_baseline_relative" => {
                let limits = if limits == Limits::default() {
                    Limits {
                        new_modules: Some(1.0),
                        delta_count: None,
                    }
                } else {
                    limits
                };
                Kind::Relative {
                    guard: "spectral".to_owned(),
                    limits,
                }
            }
            "guard_signal_baseline_relative" => {
                let guard = text("guard")?;
                if !super::CORE_GUARDS.contains(&guard.as_str()) {
                    return Err(format!(
                        "a detector names the guard `{guard}`, which is none of {}",
                        super::CORE_GUARDS.join(", ")
                    ));
                }
                Kind::Relative { guard, limits }
            }
            other => return Err(format!("detector kind `{other}` is unknown")),
        };
        Ok(Self {
            kind,
            source: value.clone(),
        })
    }

    /// The entry of the table that it was read from.
    pub fn source(&self) -> &Value {
        &self.source
    }

    /// Whether a report shows it. A flag or field that is absent never matches.
    pub fn matches(&self, input: &RecordInput<'_>) -> bool {
        match &self.kind {
            Kind::ValidationFlag { flag, expected } => {
                equal(get::at(input.report, &["validation", flag]), expected)
            }
            Kind::PrimaryMetric { field, expected } => {
                equal(get::at(input.report, &["primary_metric", field]), expected)
            }
            Kind::InvariantsStatus { allowed } => {
                get::text(input.report, &["invariants", "status"])
                    .is_some_and(|status| allowed.contains(&status.to_lowercase()))
            }
            Kind::Probe {
                which,
                field,
                wanted,
            } => {
                let probe = if *which == Probe::Rmt {
                    input.rmt_probe
                } else {
                    input.ve_probe
                };
                let found = probe.and_then(|probe| probe.get(field));
                match wanted {
                    Wanted::Equal(expected) => equal(found, expected),
                    Wanted::AtLeast(min) => found
                        .and_then(Value::as_f64)
                        .is_some_and(|number| number >= *min),
                }
            }
            Kind::SpectralCaps { min } => get::number(input.report, &["spectral", "caps_applied"])
                .is_some_and(|caps| caps >= *min),
            Kind::Relative { guard, limits } => relative_signal(guard, *limits, input),
        }
    }

    fn is_relative(&self) -> bool {
        matches!(self.kind, Kind::Relative { .. })
    }
}

/// Whether a scenario's detectors hit: one of `any_of` (if there are any) and all of `all_of`; false if both are empty.
pub(super) fn hit(any_of: &[Detector], all_of: &[Detector], input: &RecordInput<'_>) -> bool {
    if any_of.is_empty() && all_of.is_empty() {
        return false;
    }
    (any_of.is_empty() || any_of.iter().any(|detector| detector.matches(input)))
        && all_of.iter().all(|detector| detector.matches(input))
}

/// Whether the primary guard of a scenario saw the change.
///
/// Its flag, or what its probe or caps show. A scenario that declares a baseline-relative detector for that guard wants movement: then only movement counts,
/// because a baseline may show caps of its own.
pub(super) fn primary_guard_hit(
    scenario: &Scenario,
    outcome: &Outcome,
    input: &RecordInput<'_>,
) -> bool {
    let guard = scenario.primary_guard.as_str();
    let relative: Vec<&Detector> = scenario
        .any_of
        .iter()
        .chain(&scenario.all_of)
        .filter(|detector| {
            matches!(&detector.kind, Kind::Relative { guard: of, .. } if of == guard)
                && detector.is_relative()
        })
        .collect();
    if !relative.is_empty() {
        return relative.iter().any(|detector| detector.matches(input));
    }
    outcome.flags.get(guard) || (guard == "spectral" && outcome::caps_applied(input.report) > 0)
}

fn equal(found: Option<&Value>, expected: &Value) -> bool {
    match (found, expected) {
        (None, _) => false,
        (Some(found), Value::Bool(expected)) => {
            !found.is_null() && lenient_true(found) == *expected
        }
        (Some(found), expected) => {
            found == expected
                || found
                    .as_f64()
                    .zip(expected.as_f64())
                    .is_some_and(|(found, expected)| found == expected)
        }
    }
}

/// What changed in the spectral guard's corrections against the unedited model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Movement {
    /// Modules (name, family) that are capped now and were not before, sorted.
    pub new_modules: Vec<(String, String)>,
    /// By how much the number of caps rose; 0 if it fell.
    pub delta_caps: u64,
}

impl Movement {
    /// Whether anything moved.
    pub fn signal(&self) -> bool {
        !self.new_modules.is_empty() || self.delta_caps > 0
    }

    /// In the fields of the reference vectors.
    pub fn json(&self) -> Value {
        let modules: Vec<Value> = self
            .new_modules
            .iter()
            .map(|(module, family)| json!({"module": module, "family": family}))
            .collect();
        json!({
            "new_caps_applied": self.new_modules.len(),
            "delta_caps_applied": self.delta_caps,
            "new_cap_modules": modules,
            "relative_signal": self.signal(),
        })
    }
}

/// Compares the `spectral` blocks of a subject's and its baseline's report. Only violations of type `family_z_cap` have an identity that can be new.
pub fn spectral_movement(subject: &Value, baseline: &Value) -> Movement {
    let capped = |block: &Value| -> BTreeSet<(String, String)> {
        block
            .get("violations")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter(|violation| get::text(violation, &["type"]) == Some("family_z_cap"))
            .map(|violation| {
                let text = |key| get::text(violation, &[key]).unwrap_or_default().to_owned();
                (text("module"), text("family"))
            })
            .collect()
    };
    let caps = |block: &Value| {
        get::number(block, &["caps_applied"]).map_or(0, |caps| caps.max(0.0) as u64)
    };
    Movement {
        new_modules: capped(subject)
            .difference(&capped(baseline))
            .cloned()
            .collect(),
        delta_caps: caps(subject).saturating_sub(caps(baseline)),
    }
}

fn relative_signal(guard: &str, limits: Limits, input: &RecordInput<'_>) -> bool {
    let Some(baseline) = input.baseline else {
        return false;
    };
    if guard == "spectral" {
        let block = |report: &Value| report.get("spectral").cloned().unwrap_or(Value::Null);
        let movement = spectral_movement(&block(input.report), &block(baseline));
        if limits == Limits::default() {
            return movement.signal();
        }
        return limits
            .new_modules
            .is_none_or(|least| movement.new_modules.len() as f64 >= least)
            && limits
                .delta_count
                .is_none_or(|least| movement.delta_caps as f64 >= least);
    }
    // Probes belong to the subject; the baseline has none.
    let signals = |report: &Value, rmt_probe, ve_probe| {
        outcome::outcome(report, rmt_probe, ve_probe)
            .flags
            .get(guard)
    };
    signals(input.report, input.rmt_probe, input.ve_probe) && !signals(baseline, None, None)
}
