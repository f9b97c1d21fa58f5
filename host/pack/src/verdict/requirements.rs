//! The requirements of a verdict: it is PASS exactly when none of them failed.

use std::collections::BTreeMap;

use super::{
    CORE_GUARDS, Category, FinalVerdict, INFORMATIONAL_SIGNAL_FRACTION, Record, Scenario,
    Strictness,
};

/// A requirement that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedRequirement {
    /// Stable id, such as `clean_all_pass`.
    pub id: &'static str,
    /// What made it fail, one line each.
    pub details: Vec<String>,
}

/// Scenarios that must have a report and have none, by model.
pub(super) fn missing(verdict: &FinalVerdict) -> BTreeMap<String, Vec<String>> {
    let mut missing = BTreeMap::new();
    for model in &verdict.models {
        let lacking: Vec<String> = verdict
            .scenarios
            .iter()
            .filter(|scenario| {
                scenario.category != Category::Other
                    && (scenario.gates() || scenario.primary_guard_required)
            })
            .filter(|scenario| {
                !verdict
                    .records_of(&scenario.id)
                    .any(|record| record.model == *model)
            })
            .map(|scenario| scenario.id.clone())
            .collect();
        if !lacking.is_empty() {
            missing.insert(model.clone(), lacking);
        }
    }
    missing
}

/// All failed requirements, in the order of the rules.
pub(super) fn failed(verdict: &FinalVerdict) -> Vec<FailedRequirement> {
    let evidence = if verdict.records.is_empty() {
        vec!["no model of the run has a report".to_owned()]
    } else {
        Vec::new()
    };
    let coverage = verdict
        .missing
        .iter()
        .map(|(model, lacking)| format!("model {model} has no report of {}", lacking.join(", ")))
        .collect();
    let checks: [(&'static str, Vec<String>); 10] = [
        ("evidence_present", evidence),
        ("scenario_coverage", coverage),
        (
            "clean_all_pass",
            offending(verdict, is(Category::Clean), |_, record| {
                !record.outcome.passed
            }),
        ),
        (
            "stress_required_fail",
            offending(verdict, is(Category::Stress), |_, record| {
                record.outcome.passed
            }),
        ),
        (
            "stress_expected_detectors",
            offending(verdict, is(Category::Stress), |scenario, record| {
                !scenario.any_of.is_empty() && !record.detectors_hit
            }),
        ),
        (
            "error_injection_detected",
            offending(verdict, is(Category::ErrorInjection), |_, record| {
                !record.detectors_hit
            }),
        ),
        ("scenario_primary_guard_signal", silent_guards(verdict)),
        (
            "scenario_expected_detectors",
            offending(
                verdict,
                |scenario| scenario.primary_guard_required,
                |scenario, record| scenario.has_detectors() && !record.detectors_hit,
            ),
        ),
        ("guard_primary_demonstrated", undemonstrated_guards(verdict)),
        (
            "informational_stress_min_signal_fraction",
            quiet_stress(verdict),
        ),
    ];
    checks
        .into_iter()
        .filter(|(_, details)| !details.is_empty())
        .map(|(id, details)| FailedRequirement { id, details })
        .collect()
}

/// Gating scenarios of a category.
fn is(category: Category) -> impl Fn(&Scenario) -> bool {
    move |scenario| scenario.category == category && scenario.gates()
}

/// Records of the chosen scenarios that break a rule, in words.
fn offending(
    verdict: &FinalVerdict,
    chosen: impl Fn(&Scenario) -> bool,
    breaks: impl Fn(&Scenario, &Record) -> bool,
) -> Vec<String> {
    let mut details = Vec::new();
    for scenario in verdict.scenarios.iter().filter(|scenario| chosen(scenario)) {
        for record in verdict
            .records_of(&scenario.id)
            .filter(|record| breaks(scenario, record))
        {
            let reasons = if record.outcome.reasons.is_empty() {
                "passed".to_owned()
            } else {
                record.outcome.reasons.join(", ")
            };
            details.push(format!(
                "{}/{} run {}: {reasons}",
                record.model, record.scenario, record.run
            ));
        }
    }
    details
}

/// The models on which every run of a scenario hit its primary guard.
fn models_hit<'v>(
    verdict: &'v FinalVerdict,
    scenario: &'v Scenario,
) -> impl Iterator<Item = &'v String> {
    verdict.models.iter().filter(|model| {
        let mut runs = verdict
            .records_of(&scenario.id)
            .filter(|record| record.model == **model)
            .peekable();
        runs.peek().is_some() && runs.all(|record| record.primary_guard_hit)
    })
}

fn required_with_records(verdict: &FinalVerdict) -> impl Iterator<Item = &Scenario> {
    verdict.scenarios.iter().filter(|scenario| {
        scenario.primary_guard_required && verdict.records_of(&scenario.id).next().is_some()
    })
}

fn silent_guards(verdict: &FinalVerdict) -> Vec<String> {
    required_with_records(verdict)
        .filter(|scenario| models_hit(verdict, scenario).next().is_none())
        .map(|scenario| {
            format!(
                "{}: {} saw it on no model in every run",
                scenario.id, scenario.primary_guard
            )
        })
        .collect()
}

fn undemonstrated_guards(verdict: &FinalVerdict) -> Vec<String> {
    CORE_GUARDS
        .iter()
        .filter(|guard| {
            let mut of_guard = required_with_records(verdict)
                .filter(|scenario| scenario.primary_guard == **guard)
                .peekable();
            of_guard.peek().is_some()
                && of_guard.all(|scenario| models_hit(verdict, scenario).next().is_none())
        })
        .map(|guard| {
            format!("{guard} is the primary guard of required scenarios and saw none of them")
        })
        .collect()
}

fn quiet_stress(verdict: &FinalVerdict) -> Vec<String> {
    let records: Vec<&Record> = informational_stress(verdict).collect();
    let signaled = records.iter().filter(|record| record.signaled()).count();
    if records.is_empty() || signaled as f64 / records.len() as f64 >= INFORMATIONAL_SIGNAL_FRACTION
    {
        return Vec::new();
    }
    vec![format!(
        "{signaled} of {} informational stress records signal, fewer than {INFORMATIONAL_SIGNAL_FRACTION} of them",
        records.len()
    )]
}

/// Records of informational stress scenarios.
pub(super) fn informational_stress(verdict: &FinalVerdict) -> impl Iterator<Item = &Record> {
    verdict
        .scenarios
        .iter()
        .filter(|scenario| {
            scenario.category == Category::Stress
                && scenario.strictness == Strictness::Informational
        })
        .flat_map(|scenario| verdict.records_of(&scenario.id))
}
