//! The verdict and its summaries as the files of a pack: indented JSON with sorted keys.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::requirements::informational_stress;
use super::{CORE_GUARDS, Category, FinalVerdict, INFORMATIONAL_SIGNAL_FRACTION, Record, Scenario};
use crate::canonical;

/// The files of a verdict in layout v2, as paths below the pack's root and their bytes.
pub fn files(verdict: &FinalVerdict) -> Vec<(String, Vec<u8>)> {
    let mut files = vec![
        (
            "results/verdicts/final_verdict.json".to_owned(),
            canonical::pretty_file(&verdict.json()),
        ),
        (
            "results/verdicts/final_verdict.txt".to_owned(),
            verdict_text(verdict).into_bytes(),
        ),
    ];
    files.extend(
        analysis_files(verdict)
            .into_iter()
            .map(|(name, bytes)| (format!("results/analysis/{name}"), bytes)),
    );
    files
}

/// The four summaries, by file name.
pub fn analysis_files(verdict: &FinalVerdict) -> Vec<(String, Vec<u8>)> {
    [
        ("category_summary.json", category_summary(verdict)),
        ("guard_signal_summary.json", guard_signal_summary(verdict)),
        (
            "guard_intervention_summary.json",
            guard_intervention_summary(verdict),
        ),
        (
            "scenario_signal_summary.json",
            scenario_signal_summary(verdict),
        ),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), canonical::pretty_file(&value)))
    .collect()
}

/// The verdict for people: the word, then each failed requirement with what made it fail.
pub fn verdict_text(verdict: &FinalVerdict) -> String {
    let mut text = format!("Verdict: {}\n", verdict.word());
    for failed in &verdict.failed_requirements {
        text.push_str(&format!("\n{}\n", failed.id));
        for detail in &failed.details {
            text.push_str(&format!("  {detail}\n"));
        }
    }
    text
}

pub(super) fn final_verdict(verdict: &FinalVerdict) -> Value {
    let records: Vec<Value> = with_scenarios(verdict)
        .map(|(scenario, record)| record.json(scenario))
        .collect();
    let mut value = json!({
        "verdict": verdict.word(),
        "manifest": {"path": verdict.manifest_path, "schema": "evidence_pack_scenarios_v1", "schema_version": 1},
        "criteria": {
            "clean_all_pass": true,
            "stress_required_fail": true,
            "error_injection_detected": true,
            "primary_guard_signal_required": true,
            "informational_stress_min_signal_fraction": INFORMATIONAL_SIGNAL_FRACTION,
        },
        "counts": counts(verdict),
        "core_guard_order": CORE_GUARDS,
        "category_summary": category_summary(verdict),
        "guard_signal_summary": guard_signal_summary(verdict),
        "guard_intervention_summary": guard_intervention_summary(verdict),
        "scenario_signal_summary": scenario_signal_summary(verdict),
        "records": records,
        "missing": {"by_model": verdict.missing},
        "failed_requirements": verdict.failed_requirements.iter().map(|failed| failed.id).collect::<Vec<_>>(),
        "timestamp": verdict.timestamp,
    });
    if !verdict.failed_requirements.is_empty() {
        let details: BTreeMap<&str, &Vec<String>> = verdict
            .failed_requirements
            .iter()
            .map(|failed| (failed.id, &failed.details))
            .collect();
        value["failed_requirement_details"] = json!(details);
    }
    value
}

fn with_scenarios(verdict: &FinalVerdict) -> impl Iterator<Item = (&Scenario, &Record)> {
    verdict.scenarios.iter().flat_map(|scenario| {
        verdict
            .records_of(&scenario.id)
            .map(move |record| (scenario, record))
    })
}

/// Records of a category.
fn of(verdict: &FinalVerdict, category: Category) -> Vec<&Record> {
    with_scenarios(verdict)
        .filter(|(scenario, _)| scenario.category == category)
        .map(|(_, record)| record)
        .collect()
}

fn count(records: &[&Record], holds: impl Fn(&Record) -> bool) -> usize {
    records.iter().filter(|record| holds(record)).count()
}

/// Counts of records; a repeated run is a record of its own. Catastrophic edits are counted as pairs of scenario and model, failed if every run failed.
fn counts(verdict: &FinalVerdict) -> Value {
    let clean = of(verdict, Category::Clean);
    let stress = of(verdict, Category::Stress);
    let errors = of(verdict, Category::ErrorInjection);
    let informational: Vec<&Record> = informational_stress(verdict).collect();
    let required: Vec<&Scenario> = verdict
        .scenarios
        .iter()
        .filter(|scenario| scenario.primary_guard_required)
        .collect();
    let required_records: Vec<&Record> = required
        .iter()
        .flat_map(|scenario| verdict.records_of(&scenario.id))
        .collect();
    let scenarios_hit = required
        .iter()
        .filter(|scenario| {
            verdict
                .records_of(&scenario.id)
                .any(|record| record.primary_guard_hit)
        })
        .count();

    let (mut catastrophic_total, mut catastrophic_present, mut catastrophic_fail) = (0, 0, 0);
    for scenario in verdict
        .scenarios
        .iter()
        .filter(|scenario| scenario.catastrophic_required)
    {
        for model in &verdict.models {
            let runs: Vec<&Record> = verdict
                .records_of(&scenario.id)
                .filter(|record| record.model == *model)
                .collect();
            catastrophic_total += 1;
            catastrophic_present += usize::from(!runs.is_empty());
            catastrophic_fail +=
                usize::from(!runs.is_empty() && runs.iter().all(|record| !record.outcome.passed));
        }
    }
    json!({
        "models_total": verdict.models.len(),
        "records_total": verdict.records.len(),
        "clean_total": clean.len(),
        "clean_pass": count(&clean, |record| record.outcome.passed),
        "stress_total": stress.len(),
        "stress_fail": count(&stress, |record| !record.outcome.passed),
        "catastrophic_required_total": catastrophic_total,
        "catastrophic_required_present": catastrophic_present,
        "catastrophic_required_fail": catastrophic_fail,
        "error_injection_total": errors.len(),
        "error_injection_detected": count(&errors, |record| record.detectors_hit),
        "informational_stress_total": informational.len(),
        "informational_stress_fail": count(&informational, |record| !record.outcome.passed),
        "informational_stress_signaled": count(&informational, Record::signaled),
        "primary_guard_required_scenarios": required.len(),
        "primary_guard_required_records": required_records.len(),
        "primary_guard_required_hits": count(&required_records, |record| record.primary_guard_hit),
        "primary_guard_required_scenarios_hit": scenarios_hit,
    })
}

fn category_summary(verdict: &FinalVerdict) -> Value {
    let mut summary = Map::new();
    for category in [Category::Clean, Category::Stress, Category::ErrorInjection] {
        let records = of(verdict, category);
        let declared = verdict
            .scenarios
            .iter()
            .filter(|scenario| scenario.category == category)
            .count();
        summary.insert(
            category.name().to_owned(),
            json!({
                "scenarios": declared,
                "reports": records.len(),
                "primary_metric_fail": count(&records, |record| record.outcome.flags.primary_metric),
                "invariants_fail": count(&records, |record| record.outcome.flags.invariants_fail),
                "invariants_warn": count(&records, |record| record.outcome.flags.invariants_warn),
                "any_flag": count(&records, |record| record.outcome.flags.any()),
            }),
        );
    }
    Value::Object(summary)
}

fn guard_signal_summary(verdict: &FinalVerdict) -> Value {
    signals(
        verdict,
        &CORE_GUARDS.map(|guard| {
            (
                guard,
                Box::new(move |record: &Record| record.outcome.flags.get(guard)) as Signal,
            )
        }),
    )
}

fn guard_intervention_summary(verdict: &FinalVerdict) -> Value {
    signals(
        verdict,
        &[
            (
                "spectral_caps",
                Box::new(|record: &Record| record.spectral_caps_applied > 0) as Signal,
            ),
            ("ve_signal", Box::new(|record: &Record| record.ve_signal)),
        ],
    )
}

type Signal = Box<dyn Fn(&Record) -> bool>;

/// How many records each signal marks, and in how many it is the only one of its set.
fn signals(verdict: &FinalVerdict, set: &[(&str, Signal)]) -> Value {
    let mut signals = Map::new();
    for (name, signal) in set {
        let flagged: Vec<&Record> = verdict
            .records
            .iter()
            .filter(|record| signal(record))
            .collect();
        let unique = flagged
            .iter()
            .filter(|record| set.iter().filter(|(_, other)| other(record)).count() == 1)
            .count();
        signals.insert(
            (*name).to_owned(),
            json!({"flagged": flagged.len(), "unique": unique}),
        );
    }
    json!({"records_total": verdict.records.len(), "signals": signals})
}

fn scenario_signal_summary(verdict: &FinalVerdict) -> Value {
    let mut scenarios: Vec<&Scenario> = verdict.scenarios.iter().collect();
    scenarios.sort_by(|a, b| (a.category, &a.id).cmp(&(b.category, &b.id)));
    scenarios
        .into_iter()
        .map(|scenario| {
            let records: Vec<&Record> = verdict.records_of(&scenario.id).collect();
            json!({
                "id": scenario.id,
                "category": scenario.category.name(),
                "strictness": scenario.strictness.name(),
                "intent": scenario.intent,
                "primary_guard": scenario.primary_guard,
                "primary_guard_required": scenario.primary_guard_required,
                "reports": records.len(),
                "passed": count(&records, |record| record.outcome.passed),
                "failed": count(&records, |record| !record.outcome.passed),
                "detector_hits": count(&records, |record| record.detectors_hit),
                "signaled": count(&records, Record::signaled),
                "primary_guard_hits": count(&records, |record| record.primary_guard_hit),
            })
        })
        .collect()
}
