//! What a verifier will expect of each report, and whether the reports are like that.

use serde_json::{Value, json};

use crate::error::Warning;
use crate::layout;
use crate::nested::Examined;
use crate::report_rules::{Assurance, Profile};

/// The table for the pack: what a verifier is to expect of each report, by what the reports show.
pub(super) fn packed_scenarios(scenarios: &Value, examined: &[Examined]) -> Value {
    let mut packed = scenarios.clone();
    for scenario in packed
        .get_mut("scenarios")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        let Some(id) = scenario
            .get("id")
            .and_then(Value::as_str)
            .map(str::to_owned)
        else {
            continue;
        };
        let (category, strictness) = (
            scenario.get("category").cloned(),
            scenario.get("strictness").cloned(),
        );
        let damaging = ["stress", "error_injection"]
            .map(|name| Some(json!(name)))
            .contains(&category);
        let mut reports = examined
            .iter()
            .filter(|report| layout::scenario_of(&report.name) == Some(&id))
            .peekable();
        if damaging
            && strictness != Some(json!("must_fail"))
            && reports.peek().is_some()
            && reports.all(|report| !report.faults.is_empty())
        {
            scenario["strictness"] = json!("must_fail");
            scenario["declared_strictness"] = strictness.unwrap_or(Value::Null);
        }
    }
    packed
}

/// Whether the reports verify as their scenarios demand.
pub(super) struct Expectations {
    /// The verification summary.
    pub(super) summary: Value,
    /// Reports that do not verify as they must.
    pub(super) warnings: Vec<Warning>,
}

impl Expectations {
    pub(super) fn of(
        examined: &[Examined],
        table: Option<&Value>,
        profile: Profile,
        assurance: Assurance,
    ) -> Self {
        let strictness = table.map(layout::strictness_table).unwrap_or_default();
        let (mut clean, mut errors, mut expected_failures, mut failed) = (0, 0, 0, 0);
        let mut warnings = Vec::new();
        for report in examined {
            let must_fail = layout::expects_failure(&report.name, &strictness);
            let injected = report.name.split('/').any(|part| part == "errors");
            match (must_fail, injected) {
                (false, _) => clean += 1,
                (true, true) => errors += 1,
                (true, false) => expected_failures += 1,
            }
            let fails = !report.faults.is_empty();
            if fails != must_fail {
                failed += 1;
                let (check_id, message) = if must_fail {
                    (
                        "reports.expected_failure_passed",
                        "belongs to a scenario that must fail, but verifies".to_owned(),
                    )
                } else {
                    let first = report
                        .faults
                        .first()
                        .map_or(String::new(), |fault| format!(": {}", fault.message));
                    ("reports.verify_failed", format!("does not verify{first}"))
                };
                warnings.push(Warning {
                    check_id,
                    message: format!("`{}` {message}", report.name),
                });
            }
        }
        if clean == 0 {
            warnings.push(Warning {
                check_id: "reports.none",
                message: "no report of the pack is expected to pass, so verifiers refuse it"
                    .to_owned(),
            });
        }
        let summary = json!({
            "clean_reports": clean,
            "error_injection_reports": errors,
            "expected_failure_reports": expected_failures,
            "failed_reports": failed,
            "policy_profile": profile.name(),
            "report_assurance": assurance.name(),
        });
        Self { summary, warnings }
    }
}
