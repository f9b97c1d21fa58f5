//! What the subject shows that the unedited model does not.
//!
//! An unedited model may already have modules outside their family's limits (the first layer's queries and keys of large
//! models do). So a count of warnings says little; what is new against the baseline's own says something.

use std::collections::BTreeSet;

use packhost_sdk::json::{Value as Json, json};

use crate::outcome::{Kind, Outcome, Violation};

/// What counts in one model's judgement.
pub struct Counted<'a> {
    /// What its report calls `caps_applied`.
    pub caps: usize,
    /// Its counted violations.
    pub violations: &'a [Violation],
}

impl<'a> Counted<'a> {
    pub fn of(outcome: &'a Outcome) -> Self {
        Self {
            caps: outcome.reported_caps(),
            violations: &outcome.violations,
        }
    }

    /// Modules over their family's limit, with the family.
    fn keys(&self) -> BTreeSet<(&str, &str)> {
        let caps = self
            .violations
            .iter()
            .filter(|violation| violation.kind == Kind::FamilyZCap);
        caps.map(|violation| (violation.module.as_str(), violation.family))
            .collect()
    }
}

/// The subject's judgement of itself against the baseline's judgement of itself.
pub fn between(baseline: &Counted<'_>, subject: &Counted<'_>) -> Json {
    let (known, now) = (baseline.keys(), subject.keys());
    let new: Vec<Json> = now
        .difference(&known)
        .map(|(module, family)| json!({"module": module, "family": family}))
        .collect();
    let delta = subject.caps.saturating_sub(baseline.caps);
    json!({
        "baseline_caps_applied": baseline.caps,
        "subject_caps_applied": subject.caps,
        "new_caps_applied": new.len(),
        "delta_caps_applied": delta,
        "relative_signal": !new.is_empty() || delta > 0,
        "new_cap_modules": new,
    })
}
