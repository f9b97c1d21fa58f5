//! The verdict over the reports of a run: outcome of each report, detectors, requirements, final verdict and summaries.
//!
//! Everything here is a pure function of report JSON, the scenario table and the parameters given, so that a verdict can be derived again from a pack.
//!
//! One deliberate deviation from the original: repeated runs of a scenario use different window seeds, so **all** runs count, not only the one with the
//! highest number. A clean scenario passes only if every run passes; a scenario that must fail or be detected counts as caught only if every run is.

mod detectors;
mod files;
mod outcome;
mod requirements;
mod scenario;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

pub use detectors::{Detector, Movement, spectral_movement};
pub use files::{analysis_files, files, verdict_text};
pub use outcome::{GuardFlags, Outcome, outcome};
pub use requirements::FailedRequirement;
pub use scenario::{Category, Scenario, Strictness, scenarios};

use crate::error::{Error, Result};
use crate::json::get;

/// The guards whose flags count as signals, in the order of the summaries.
pub const CORE_GUARDS: [&str; 5] = [
    "invariants",
    "spectral",
    "rmt",
    "variance",
    "primary_metric",
];

/// Least share of informational stress records that must signal.
pub const INFORMATIONAL_SIGNAL_FRACTION: f64 = 0.5;

/// One report of a run, with what lies beside it.
#[derive(Clone, Copy, Debug)]
pub struct RecordInput<'a> {
    /// Folder name of the model.
    pub model: &'a str,
    /// Id of the scenario.
    pub scenario: &'a str,
    /// Run number from 1; 0 for reports that are not repeated (error injections in the original layout).
    pub run: u32,
    /// Path of the report below the run directory, as the verdict shows it.
    pub path: &'a str,
    /// The report.
    pub report: &'a Value,
    /// The report of the unedited model on the same windows, for detectors that look at movement. Without it they never match.
    pub baseline: Option<&'a Value>,
    /// `rmt_probe.json`.
    pub rmt_probe: Option<&'a Value>,
    /// `ve_probe.json`.
    pub ve_probe: Option<&'a Value>,
}

/// Parameters of a verdict.
#[derive(Clone, Copy, Debug)]
pub struct JudgeOptions<'a> {
    /// Time stamp that the verdict carries.
    pub timestamp: &'a str,
    /// Path of the scenario table that the verdict names, such as `state/scenarios.json`.
    pub manifest_path: &'a str,
}

/// A report with its outcome.
#[derive(Clone, Debug)]
pub struct Record {
    /// Folder name of the model.
    pub model: String,
    /// Id of the scenario.
    pub scenario: String,
    /// Run number.
    pub run: u32,
    /// Path of the report below the run directory.
    pub path: String,
    /// Flags, reasons and whether the report passed.
    pub outcome: Outcome,
    /// Whether the scenario's detectors hit.
    pub detectors_hit: bool,
    /// Whether the scenario's primary guard saw the change.
    pub primary_guard_hit: bool,
    /// `invariants.status`.
    pub invariants_status: String,
    /// `spectral.caps_applied`.
    pub spectral_caps_applied: u64,
    /// `ve_probe.signal`.
    pub ve_signal: bool,
    rmt_probe: Option<Value>,
    ve_probe: Option<Value>,
}

impl Record {
    /// Whether a core guard is raised.
    pub fn any_core_flag(&self) -> bool {
        CORE_GUARDS
            .iter()
            .any(|guard| self.outcome.flags.get(guard))
    }

    /// Whether the record shows anything: detectors hit or a core guard raised.
    pub fn signaled(&self) -> bool {
        self.detectors_hit || self.any_core_flag()
    }
}

/// The verdict over a run.
#[derive(Clone, Debug)]
pub struct FinalVerdict {
    /// Whether no requirement failed.
    pub pass: bool,
    /// The scenarios, in the order of the table.
    pub scenarios: Vec<Scenario>,
    /// Models of the run, sorted.
    pub models: Vec<String>,
    /// All records, in the order of the scenarios, then by model and run.
    pub records: Vec<Record>,
    /// Requirements that failed, in the order of the rules.
    pub failed_requirements: Vec<FailedRequirement>,
    /// Scenarios that a model lacks although they gate, by model.
    pub missing: BTreeMap<String, Vec<String>>,
    timestamp: String,
    manifest_path: String,
}

impl FinalVerdict {
    /// `PASS` or `FAIL`.
    pub fn word(&self) -> &'static str {
        if self.pass { "PASS" } else { "FAIL" }
    }

    /// `final_verdict.json` as a value.
    pub fn json(&self) -> Value {
        files::final_verdict(self)
    }

    fn records_of(&self, scenario: &str) -> impl Iterator<Item = &Record> {
        self.records
            .iter()
            .filter(move |record| record.scenario == scenario)
    }
}

/// Judges a run.
///
/// `models` are the folder names of all models of the run, whether they have reports or not. Records of scenarios that the table does not hold, or whose
/// category the verdict does not know, are ignored, as calibration is.
///
/// # Errors
/// If two scenarios share an id, two records are the same run of a scenario on a model, or a record's model is not in `models`.
pub fn judge_run(
    scenarios: &[Scenario],
    models: &[String],
    inputs: &[RecordInput<'_>],
    options: JudgeOptions<'_>,
) -> Result<FinalVerdict> {
    let mut position = BTreeMap::new();
    for (index, scenario) in scenarios.iter().enumerate() {
        if position.insert(scenario.id.as_str(), index).is_some() {
            return Err(Error::Verdict(format!(
                "scenario `{}` is in the table twice; ids must be unique",
                scenario.id
            )));
        }
    }
    let models: BTreeSet<&str> = models.iter().map(String::as_str).collect();
    let mut seen = BTreeSet::new();
    let mut records: Vec<(usize, Record)> = Vec::new();
    for input in inputs {
        let Some(index) = position.get(input.scenario).copied() else {
            continue;
        };
        if scenarios[index].category == Category::Other {
            continue;
        }
        if !models.contains(input.model) {
            return Err(Error::Verdict(format!(
                "the record `{}` is of model `{}`, which is not part of the run",
                input.path, input.model
            )));
        }
        if !seen.insert((input.model, input.scenario, input.run)) {
            return Err(Error::Verdict(format!(
                "run {} of scenario `{}` on model `{}` is given twice",
                input.run, input.scenario, input.model
            )));
        }
        records.push((index, record(&scenarios[index], input)));
    }
    records.sort_by(|(a_index, a), (b_index, b)| {
        (a_index, &a.model, a.run).cmp(&(b_index, &b.model, b.run))
    });
    let mut verdict = FinalVerdict {
        pass: false,
        scenarios: scenarios.to_vec(),
        models: models.into_iter().map(str::to_owned).collect(),
        records: records.into_iter().map(|(_, record)| record).collect(),
        failed_requirements: Vec::new(),
        missing: BTreeMap::new(),
        timestamp: options.timestamp.to_owned(),
        manifest_path: options.manifest_path.to_owned(),
    };
    verdict.missing = requirements::missing(&verdict);
    verdict.failed_requirements = requirements::failed(&verdict);
    verdict.pass = verdict.failed_requirements.is_empty();
    Ok(verdict)
}

/// The outcome of one report under its scenario.
pub fn record(scenario: &Scenario, input: &RecordInput<'_>) -> Record {
    let outcome = outcome(input.report, input.rmt_probe, input.ve_probe);
    let detectors_hit = detectors::hit(&scenario.any_of, &scenario.all_of, input);
    let primary_guard_hit = detectors::primary_guard_hit(scenario, &outcome, input);
    Record {
        model: input.model.to_owned(),
        scenario: input.scenario.to_owned(),
        run: input.run,
        path: input.path.to_owned(),
        detectors_hit,
        primary_guard_hit,
        invariants_status: get::text(input.report, &["invariants", "status"])
            .unwrap_or_default()
            .to_owned(),
        spectral_caps_applied: outcome::caps_applied(input.report),
        ve_signal: input
            .ve_probe
            .is_some_and(|probe| get::truthy(probe.get("signal"))),
        rmt_probe: input.rmt_probe.cloned(),
        ve_probe: input.ve_probe.cloned(),
        outcome,
    }
}

impl Record {
    /// The record as `final_verdict.json` holds it.
    fn json(&self, scenario: &Scenario) -> Value {
        let mut value = json!({
            "any_core_guard_flag": self.any_core_flag(),
            "category": scenario.category.name(),
            "detectors": scenario.any_of.iter().map(|detector| detector.source().clone()).collect::<Vec<_>>(),
            "detectors_all_of": scenario.all_of.iter().map(|detector| detector.source().clone()).collect::<Vec<_>>(),
            "detectors_hit": self.detectors_hit,
            "failure_class": scenario.failure_class,
            "family": scenario.family(),
            "guard_flags": self.outcome.flags.json(),
            "intent": scenario.intent,
            "invariants_status": self.invariants_status,
            "model": self.model,
            "name": self.scenario,
            "passed": self.outcome.passed,
            "path": self.path,
            "primary_guard": scenario.primary_guard,
            "primary_guard_hit": self.primary_guard_hit,
            "primary_guard_required": scenario.primary_guard_required,
            "reasons": self.outcome.reasons,
            "run_num": self.run,
            "spectral_caps_applied": self.spectral_caps_applied,
            "strictness": scenario.strictness.name(),
        });
        for (key, probe) in [("rmt_probe", &self.rmt_probe), ("ve_probe", &self.ve_probe)] {
            if let Some(probe) = probe {
                value[key] = probe.clone();
            }
        }
        value
    }
}
