//! What the reports of a study's run say, guard by guard.
//!
//! A guard's answer counts as far as the unedited model on the same windows does not give it too: a finding that the
//! no-op shows is the model's own and says nothing about the change. That is the reference's movement rule, applied to
//! every guard alike, and to the two probes. What the reference's flags say without that rule is kept beside it.

use packhost_measure::report::is_parity;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use packhost_pack::verdict::outcome;
use serde::Serialize;
use serde_json::Value;

use super::file::{Part, Place, StudyFile};
use crate::run::{RunRequest, paths};
use crate::rundir::read_named;
use crate::scenarios::{Generation, Scenario};
use crate::{Error, Result};

/// How much a guard says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Nothing.
    #[default]
    Silent,
    /// Something changed, beyond what rounding explains.
    Changed,
    /// Worth a look: status warn, or a probe that signals.
    Marked,
    /// Damage: status fail.
    Damaged,
}

/// One guard's answer about one subject.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Answer {
    /// What it says that it does not say of the unedited model; none where it did not judge.
    pub level: Option<Level>,
    /// It found something, but the same as in the unedited model.
    pub stock: bool,
    /// Whether the reference's rules raise this guard's flag (probes included); none for guards of our own.
    pub flag: Option<bool>,
    /// Kinds of findings that are new.
    pub codes: BTreeSet<String>,
    /// The guard's probe signals, and not for the unedited model.
    pub probe: bool,
}

/// One evaluation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Judgement {
    pub run: u32,
    pub seed: u64,
    /// Perplexity ratio on the final windows.
    pub ratio: Option<f64>,
    /// Mean divergence per token, nats.
    pub kl: Option<f64>,
    /// Share of tokens whose likeliest successor is the baseline's.
    pub same_top: Option<f64>,
    /// By guard.
    pub guards: BTreeMap<String, Answer>,
}

/// A scenario with everything that was seen of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Observed {
    pub id: String,
    pub part: Part,
    /// The edit's specification or the fault's type.
    pub change: String,
    /// Positions of ladder and strength.
    pub step: Option<(usize, usize)>,
    /// Why there are no runs.
    pub inapplicable: Option<String>,
    pub runs: Vec<Judgement>,
}

impl Observed {
    /// The first run, which every scenario has on the same windows.
    pub fn first(&self) -> Option<&Judgement> {
        self.runs.first()
    }
}

/// Every scenario of a finished run, the no-op first.
///
/// # Errors
/// A report is absent or cannot be read.
pub fn all(file: &StudyFile, request: &RunRequest, guards: &[String]) -> Result<Vec<Observed>> {
    let folder = &request.models[0].folder;
    let read = |path: &str| read(&request.out.join(path));
    let counts = &request.counts;
    let most = request
        .manifest
        .scenarios
        .iter()
        .map(|s| counts.of(s))
        .max();
    let seeds = (0..most.unwrap_or(0)).map(|run| (run + 1, counts.seed + u64::from(run)));
    let mut baselines = BTreeMap::new();
    let mut unedited = Vec::new();
    for (run, seed) in seeds {
        let report = read(&paths::baseline_report(folder, seed))?;
        // Against nothing: all that is found is the model's own.
        unedited.push(judgement((run, seed), &report, None, guards));
        baselines.insert(seed, report);
    }
    let mut observed = vec![Observed {
        id: "noop".into(),
        part: Part::NoOp,
        change: "none".into(),
        step: None,
        inapplicable: None,
        runs: unedited,
    }];
    for (scenario, Place { part, step }) in file.scenarios() {
        let why = request.out.join(paths::inapplicable(folder, &scenario));
        let inapplicable = std::fs::read_to_string(why).ok();
        let mut runs = Vec::new();
        if inapplicable.is_none() {
            for run in 1..=counts.of(&scenario) {
                let seed = counts.seed + u64::from(run) - 1;
                let path = format!(
                    "{}/evaluation.report.json",
                    paths::report_dir(folder, &scenario, run)
                );
                runs.push(judgement(
                    (run, seed),
                    &read(&path)?,
                    baselines.get(&seed),
                    guards,
                ));
            }
        }
        observed.push(Observed {
            change: change(&scenario),
            id: scenario.id,
            part,
            step,
            inapplicable,
            runs,
        });
    }
    Ok(observed)
}

fn change(scenario: &Scenario) -> String {
    match &scenario.generation {
        Generation::Edit { edit_spec, .. } => edit_spec.clone(),
        Generation::Error { error_type, .. } => error_type.clone(),
        Generation::Perturbation { seed } => format!("rounding noise, seed {seed}"),
    }
}

fn read(path: &Path) -> Result<Value> {
    let text = read_named("read the report", path)?;
    serde_json::from_str(&text).map_err(|error| Error::io("read the report", path, error.into()))
}

/// What one report says, against that of the unedited model on the same windows; without one, all that is found is the
/// model's own.
pub fn judgement(
    (run, seed): (u32, u64),
    report: &Value,
    baseline: Option<&Value>,
    guards: &[String],
) -> Judgement {
    let divergence = &report["packhost"]["divergence"]["all_scored_tokens"];
    let probe = |guard: &str| entry(report, guard).and_then(probe);
    let flags = outcome(report, probe("rmt"), probe("variance")).flags;
    let answers = guards.iter().map(|guard| {
        let mut answer = answer(
            entry(report, guard),
            baseline.and_then(|base| entry(base, guard)),
        );
        if is_parity(guard) {
            let caps = report["spectral"]["caps_applied"].as_f64().unwrap_or(0.0);
            let flag = flags.get(&guard.replace('-', "_"));
            answer.flag = Some(flag || (guard == "spectral" && caps > 0.0));
        }
        (guard.clone(), answer)
    });
    Judgement {
        run,
        seed,
        ratio: report["primary_metric"]["ratio_vs_baseline"].as_f64(),
        kl: divergence["kl"]["mean"].as_f64(),
        same_top: divergence["same_top_share"].as_f64(),
        guards: answers.collect(),
    }
}

/// What a report says about a guard.
fn entry<'a>(report: &'a Value, guard: &str) -> Option<&'a Value> {
    let guards = report["packhost"]["guards"].as_array()?;
    guards.iter().find(|entry| entry["id"] == guard)
}

fn probe(entry: &Value) -> Option<&Value> {
    Some(&entry["details"]["probe"]).filter(|probe| !probe.is_null())
}

/// Whether a probe signals: the variance probe's own word, or instability of the RMT probe.
fn signals(entry: &Value) -> bool {
    probe(entry).is_some_and(|probe| probe["signal"] == true || probe["stable"] == false)
}

/// Findings by place and kind; those that only say that something changed are none.
fn findings(entry: &Value) -> BTreeSet<(String, String)> {
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    let all = entry["findings"].as_array().into_iter().flatten();
    all.map(|finding| (text(finding, "scope"), text(finding, "code")))
        .filter(|(_, code)| code != CHANGED)
        .collect()
}

const CHANGED: &str = "changed";

fn answer(entry: Option<&Value>, baseline: Option<&Value>) -> Answer {
    let Some(entry) = entry else {
        return Answer::default();
    };
    let status = |entry: &Value| match entry["status"].as_str() {
        Some("fail") => Level::Damaged,
        Some("warn") => Level::Marked,
        _ => Level::Silent,
    };
    let known = baseline.map(findings).unwrap_or_default();
    let new: Vec<_> = findings(entry).difference(&known).cloned().collect();
    let now = status(entry);
    let worse = baseline.is_some_and(|baseline| now > status(baseline));
    let probe = signals(entry) && baseline.is_some_and(|baseline| !signals(baseline));
    // Of the unedited model everything is stock.
    let counts = baseline.is_some() && (worse || !new.is_empty());
    let mut level = if counts { now } else { Level::Silent };
    let says_changed = entry["findings"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|f| f["code"] == CHANGED);
    if says_changed {
        level = level.max(Level::Changed);
    }
    if probe {
        level = level.max(Level::Marked);
    }
    Answer {
        level: Some(level),
        stock: now > Level::Silent && !counts,
        flag: None,
        codes: if counts {
            new.into_iter().map(|(_, code)| code).collect()
        } else {
            BTreeSet::new()
        },
        probe,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(status: &str, findings: &[(&str, &str)], probe: Value) -> Value {
        let findings: Vec<Value> = findings
            .iter()
            .map(|(scope, code)| json!({"scope": scope, "code": code}))
            .collect();
        json!({"id": "g", "status": status, "findings": findings, "details": {"probe": probe}})
    }

    fn level(now: &Value, before: &Value) -> (Option<Level>, bool) {
        let answer = answer(Some(now), Some(before));
        (answer.level, answer.stock)
    }

    #[test]
    fn what_the_unedited_model_shows_does_not_count() {
        let capped = said("warn", &[("layer.2", "cap")], Value::Null);
        assert_eq!(level(&capped, &capped), (Some(Level::Silent), true));
        let more = said(
            "warn",
            &[("layer.2", "cap"), ("layer.3", "cap")],
            Value::Null,
        );
        assert_eq!(level(&more, &capped), (Some(Level::Marked), false));
        let worse = said("fail", &[("layer.2", "cap")], Value::Null);
        assert_eq!(level(&worse, &capped), (Some(Level::Damaged), false));
    }

    #[test]
    fn a_change_is_less_than_a_mark_and_probes_mark() {
        let quiet = said("pass", &[], json!({"stable": true}));
        assert_eq!(level(&quiet, &quiet), (Some(Level::Silent), false));
        let changed = said("pass", &[("model", "changed")], Value::Null);
        assert_eq!(level(&changed, &quiet), (Some(Level::Changed), false));
        let unstable = said("pass", &[], json!({"stable": false}));
        assert_eq!(level(&unstable, &quiet), (Some(Level::Marked), false));
        assert_eq!(level(&unstable, &unstable), (Some(Level::Silent), false));
        let signal = said("pass", &[], json!({"signal": true}));
        assert!(answer(Some(&signal), Some(&quiet)).probe);
        assert_eq!(answer(None, Some(&quiet)).level, None);
    }
}
