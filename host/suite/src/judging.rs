//! From measurements to a report: the steps that an evaluation takes after measuring, and a replay takes again from stored
//! tables. One code serves both, so a replay cannot drift from what it checks.

use std::collections::{BTreeMap, BTreeSet};

use packhost_measure::report::{self, Judged, ReportInputs, StructuralFailure};
use packhost_measure::{Request, needs_predictions};
use packhost_plugin::ModelInfo;
use serde_json::Value;

use crate::Result;
use crate::guards::{Guards, Measurements, Plan};

/// What is asked for of a subject whose guards are probed as well.
pub struct Wanted {
    /// Everything, in order, each request once.
    pub all: Vec<Request>,
    /// What only the probes ask for.
    pub of_probes: Vec<Request>,
}

/// `planned` and what the probes of `plan` ask for.
///
/// # Errors
/// A guard declines its policy or the model.
pub fn wanted(
    guards: &Guards,
    plan: &Plan<'_>,
    model: &ModelInfo,
    planned: &[Request],
) -> Result<Wanted> {
    let mut of_probes = guards.plan_probes(plan, model)?;
    of_probes.retain(|request| !planned.contains(request));
    let mut all = planned.to_vec();
    all.extend(of_probes.iter().cloned());
    all.sort();
    all.dedup();
    Ok(Wanted { all, of_probes })
}

/// Lets the guards judge. Of a subject that cannot be run (`failure`) there are no predictions, so guards that look at them
/// have nothing to judge.
///
/// # Errors
/// As [`Guards::judge`].
pub fn verdicts(
    guards: &Guards,
    plan: &Plan<'_>,
    requests: &[Request],
    failure: Option<&str>,
    measurements: &mut dyn Measurements,
) -> Result<Vec<Judged>> {
    let may_judge = |guard: &str| {
        let needs =
            |request: &Request| request.guard == guard && needs_predictions(&request.quantity);
        failure.is_none() || !requests.iter().any(needs)
    };
    guards.judge(plan, requests, &may_judge, measurements)
}

/// The report: of a subject that cannot be run, one of structural failure. `settings` are the digests of the run's settings;
/// null outside a run.
///
/// # Errors
/// The metric did not judge.
pub fn report(inputs: &ReportInputs<'_>, failure: Option<&str>, settings: &Value) -> Result<Value> {
    let kind = &inputs.edit.name;
    let mut report = match failure {
        None => report::build(inputs)?,
        Some(message) => report::structural_failure(inputs, &StructuralFailure { kind, message }),
    };
    if !settings.is_null() {
        report["packhost"]["settings"] = settings.clone();
    }
    Ok(report)
}

/// Answers of the probes that were asked for, by guard.
pub fn probe_answers(judged: &[Judged], asked: &BTreeSet<String>) -> BTreeMap<String, Value> {
    let answer = |judged: &Judged| {
        let probe = &judged.details["probe"];
        let answered = asked.contains(&judged.id) && probe.is_object();
        answered.then(|| (judged.id.clone(), probe.clone()))
    };
    judged.iter().filter_map(answer).collect()
}
