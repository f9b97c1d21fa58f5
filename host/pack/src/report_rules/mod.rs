//! What one evaluation report must hold to be accepted: structure, consistency, the profile's gates, strict assurance and runtime provenance.
//!
//! Sections 10 and 11 of the format. Comparisons of numbers are in IEEE double; booleans are never numbers. All faults of a report are collected, each with
//! the stable id of its rule and a kind that decides how a batch of reports ends.

mod assurance;
mod checks;
mod profile;
mod runtime;
mod structure;

use serde_json::Value;

use crate::json::get;

pub use checks::Recomputation;
pub(crate) use runtime::is_timestamp;
#[cfg(test)]
pub(crate) use runtime::schema_faults as runtime_schema_faults;
pub use runtime::{Provenance, RuntimeManifest};

/// How much is demanded of a report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// Structure and consistency.
    #[default]
    Dev,
    /// And the evidence, drift, the primary metric's limits and the measurement contracts.
    Ci,
    /// And the report's own validation flags.
    Release,
}

impl Profile {
    /// By name. An unknown name behaves like `dev`, as in the reference verifier; callers that want better check the name before.
    pub fn named(name: &str) -> Self {
        match name {
            "ci" => Self::Ci,
            "release" => Self::Release,
            _ => Self::Dev,
        }
    }

    /// The name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Ci => "ci",
            Self::Release => "release",
        }
    }
}

/// When strict assurance is demanded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Assurance {
    /// Never.
    Off,
    /// When the report itself claims it.
    #[default]
    Report,
    /// Always, and the report must claim it.
    Strict,
}

impl Assurance {
    /// By name; nothing for any other word.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "off" => Some(Self::Off),
            "report" => Some(Self::Report),
            "strict" => Some(Self::Strict),
            _ => None,
        }
    }

    /// The name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Report => "report",
            Self::Strict => "strict",
        }
    }
}

/// What kind of fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The document violates its schema (`E601`).
    Schema,
    /// The profile demands evidence that is not there (`E004`).
    Evidence,
    /// Two numbers that must agree do not (`E602` in ci and release).
    Mismatch,
    /// Any other demand that is not met.
    Policy,
}

/// One demand that a report does not meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Stable id of the rule, such as `report.ratio`.
    pub rule: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// What was wrong and where.
    pub message: String,
}

/// Everything that checking one report showed.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    /// Unmet demands; empty if the report is accepted.
    pub faults: Vec<Fault>,
    /// The recomputation of the primary metric, where the report holds the data for it.
    pub recomputation: Option<Recomputation>,
    /// The state of the runtime manifest.
    pub provenance: Provenance,
}

/// Options of a check.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules {
    /// The profile.
    pub profile: Profile,
    /// The assurance mode.
    pub assurance: Assurance,
    /// Leave the runtime manifest unchecked (the caller's override for packs without provenance). Strict assurance then fails.
    pub skip_provenance: bool,
}

/// Checks a report against its runtime manifest. `digest` is the bare hex SHA-256 of the report's bytes.
pub fn check(report: &Value, digest: &str, runtime: &RuntimeManifest, rules: Rules) -> Checked {
    let mut faults = Faults::default();
    structure::check(report, &mut faults);
    let strict = assurance::in_force(report, rules.assurance);
    let provenance = runtime::check(report, digest, runtime, rules, strict, &mut faults);
    // A report of another shape is not interpreted any further.
    if faults
        .list
        .iter()
        .any(|fault| fault.kind == Kind::Schema && fault.rule == structure::RULE)
    {
        return Checked {
            faults: faults.list,
            recomputation: None,
            provenance,
        };
    }
    let facts = Facts::of(report);
    let recomputation = checks::check(&facts, &mut faults);
    if rules.profile != Profile::Dev {
        profile::check(&facts, rules.profile, recomputation.as_ref(), &mut faults);
    }
    if rules.assurance == Assurance::Strict || strict {
        assurance::check(report, rules.assurance, &provenance, &mut faults);
    }
    Checked {
        faults: faults.list,
        recomputation,
        provenance,
    }
}

/// Collects faults.
#[derive(Default)]
struct Faults {
    list: Vec<Fault>,
}

impl Faults {
    fn add(&mut self, rule: &'static str, kind: Kind, message: impl Into<String>) {
        self.list.push(Fault {
            rule,
            kind,
            message: message.into(),
        });
    }

    fn policy(&mut self, rule: &'static str, message: impl Into<String>) {
        self.add(rule, Kind::Policy, message);
    }

    fn mismatch(&mut self, rule: &'static str, message: impl Into<String>) {
        self.add(rule, Kind::Mismatch, message);
    }
}

/// What several rules need to know about a report.
struct Facts<'r> {
    report: &'r Value,
    /// `primary_metric`.
    metric: &'r Value,
    /// `primary_metric.kind`.
    kind: &'r str,
    /// `primary_metric.final`.
    last: Option<f64>,
    /// `primary_metric.preview`.
    preview: Option<f64>,
    /// `baseline_ref.primary_metric.final`.
    baseline: Option<f64>,
    /// `primary_metric.ratio_vs_baseline`.
    ratio: Option<f64>,
    /// Whether the windows are paired as they must be.
    paired: bool,
}

impl<'r> Facts<'r> {
    fn of(report: &'r Value) -> Self {
        let metric = report.get("primary_metric").unwrap_or(&Value::Null);
        Self {
            report,
            metric,
            kind: get::text(metric, &["kind"]).unwrap_or_default(),
            last: get::number(metric, &["final"]),
            preview: get::number(metric, &["preview"]),
            baseline: get::number(report, &["baseline_ref", "primary_metric", "final"]),
            ratio: get::number(metric, &["ratio_vs_baseline"]),
            paired: checks::pairing_faults(report).is_empty(),
        }
    }

    fn is_perplexity(&self) -> bool {
        self.kind.starts_with("ppl_")
    }

    fn is_accuracy(&self) -> bool {
        self.kind == "accuracy"
    }

    /// Whether the run was declared a tiny one, which relaxes the evidence that can be demanded.
    fn tiny_relax(&self) -> bool {
        let declared = [
            &["context", "run", "tiny_relax"][..],
            &["context", "eval", "tiny_relax"],
            &["auto", "tiny_relax"],
        ]
        .iter()
        .any(|path| get::truthy(get::at(self.report, path)));
        let flagged = match get::at(self.report, &["provenance", "flags"]) {
            Some(Value::Array(flags)) => {
                flags.iter().any(|flag| flag.as_str() == Some("tiny_relax"))
            }
            Some(Value::Object(flags)) => get::truthy(flags.get("tiny_relax")),
            _ => false,
        };
        declared || flagged
    }

    /// Both bounds of an interval below `primary_metric`.
    fn pair(&self, key: &str) -> Option<(f64, f64)> {
        pair(self.metric.get(key)?)
    }
}

/// An array of exactly two numbers.
fn pair(value: &Value) -> Option<(f64, f64)> {
    match value.as_array()?.as_slice() {
        [low, high] => Some((low.as_f64()?, high.as_f64()?)),
        _ => None,
    }
}
