//! The outcome of one report: which flags it raises, whether it passed, and why not.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::json::get;

/// Which guards a report raises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is a flag by the name of its guard")]
pub struct GuardFlags {
    pub invariants: bool,
    pub invariants_fail: bool,
    pub invariants_warn: bool,
    pub primary_metric: bool,
    pub spectral: bool,
    pub rmt: bool,
    pub variance: bool,
    pub drift: bool,
    pub overhead: bool,
}

impl GuardFlags {
    fn named(&self) -> [(&'static str, bool); 9] {
        [
            ("invariants", self.invariants),
            ("invariants_fail", self.invariants_fail),
            ("invariants_warn", self.invariants_warn),
            ("primary_metric", self.primary_metric),
            ("spectral", self.spectral),
            ("rmt", self.rmt),
            ("variance", self.variance),
            ("drift", self.drift),
            ("overhead", self.overhead),
        ]
    }

    /// The flag of a guard; false for any other name.
    pub fn get(&self, guard: &str) -> bool {
        self.named()
            .iter()
            .any(|(name, raised)| *name == guard && *raised)
    }

    /// Whether anything is raised.
    pub fn any(&self) -> bool {
        self.named().iter().any(|(_, raised)| *raised)
    }

    /// As the verdict shows them.
    pub fn json(&self) -> Value {
        json!(self.named().into_iter().collect::<BTreeMap<_, _>>())
    }
}

/// The outcome of one report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Whether nothing that counts failed.
    pub passed: bool,
    /// Why it did not pass, in a fixed order.
    pub reasons: Vec<&'static str>,
    /// What is raised; an invariants warning is raised without failing.
    pub flags: GuardFlags,
}

/// Judges a report and the probes beside it. A validation flag that is absent counts as false.
pub fn outcome(report: &Value, rmt_probe: Option<&Value>, ve_probe: Option<&Value>) -> Outcome {
    let holds = |flag: &str| get::at(report, &["validation", flag]).is_some_and(lenient_true);
    let status = get::text(report, &["invariants", "status"]).unwrap_or_default();
    let metric =
        |field: &str| get::at(report, &["primary_metric", field]).is_some_and(lenient_true);
    let degraded = metric("degraded") || metric("invalid");
    let overhead_failed = get::at(report, &["guard_overhead", "evaluated"])
        .is_some_and(lenient_true)
        && !holds("guard_overhead_acceptable");

    let failed = [
        ("primary_metric_degraded", degraded),
        ("invariants_fail", !holds("invariants_pass")),
        ("primary_metric_fail", !holds("primary_metric_acceptable")),
        ("spectral_fail", !holds("spectral_stable")),
        ("rmt_fail", !holds("rmt_stable")),
        ("drift_fail", !holds("preview_final_drift_acceptable")),
        ("overhead_fail", overhead_failed),
    ];
    let reasons: Vec<&'static str> = failed
        .iter()
        .filter(|(_, failed)| *failed)
        .map(|(reason, _)| *reason)
        .collect();

    let invariants_fail = !holds("invariants_pass") || ["fail", "error"].contains(&status);
    let invariants_warn = status == "warn";
    Outcome {
        passed: reasons.is_empty(),
        reasons,
        flags: GuardFlags {
            invariants: invariants_fail || invariants_warn,
            invariants_fail,
            invariants_warn,
            primary_metric: degraded || !holds("primary_metric_acceptable"),
            spectral: !holds("spectral_stable"),
            rmt: !holds("rmt_stable") || rmt_probe.is_some_and(rmt_unstable),
            variance: ve_probe.is_some_and(ve_signals),
            drift: !holds("preview_final_drift_acceptable"),
            overhead: overhead_failed,
        },
    }
}

/// Booleans are read leniently: true, a number other than 0, or one of the words 1, true, yes, on, pass.
pub(super) fn lenient_true(value: &Value) -> bool {
    match value {
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64().is_some_and(|number| number != 0.0),
        Value::String(text) => {
            ["1", "true", "yes", "on", "pass"].contains(&text.trim().to_lowercase().as_str())
        }
        _ => false,
    }
}

/// Whether an RMT probe says that the activations' edges moved.
pub(super) fn rmt_unstable(probe: &Value) -> bool {
    probe
        .get("stable")
        .is_some_and(|stable| !stable.is_null() && !lenient_true(stable))
}

/// Whether a variance probe shows anything.
pub(super) fn ve_signals(probe: &Value) -> bool {
    let above_zero = |field: &str| get::number(probe, &[field]).is_some_and(|number| number > 0.0);
    let is = |field: &str| probe.get(field).is_some_and(lenient_true);
    is("signal") || is("would_enable") || above_zero("proposed_scales") || above_zero("ab_gain")
}

/// `spectral.caps_applied`, 0 if absent.
pub(super) fn caps_applied(report: &Value) -> u64 {
    get::number(report, &["spectral", "caps_applied"]).map_or(0, |caps| caps.max(0.0) as u64)
}
