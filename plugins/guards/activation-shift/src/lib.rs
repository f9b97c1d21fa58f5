//! Activation shift: how far each module's output moved from the same module of the baseline, on the same windows, without
//! padding and without the first token.
//!
//! The parity guard `rmt` standardises an output as a whole, so a rescaled module looks as before, and it keeps the largest
//! of a family, which hides all others. `variance` compares with the constant 1. This guard compares module by module:
//!
//! | effect | what | marked beyond | damaged beyond |
//! |---|---|---|---|
//! | `alpha` | `|ln α|`, `α = √(v_base/v_subj)`, `v` the mean variance of features | 0.09 | 1 |
//! | `singular` | `|ln s_subj/s_base|` of the leading singular value of the centred outputs | 0.1 | 1 |
//! | `effective_rank` | `|ln|` of the ratio of effective ranks | 0.2 | 1 |
//! | `mean_shift` | `‖µ_s − µ_b‖²` over the baseline's total variance | 0.05 | 0.25 |
//! | `feature_spread` | median over features of `|ln v_s/v_b|` | 0.2 | 2 |
//!
//! Why these: a projection scaled by 1.12 or 0.90 gives `|ln α|` 0.113 or 0.105 at its own output and exactly 0 before it, so
//! such a fault is marked. Damage cannot begin there: in the demo, whose channels differ by powers of two, the clean
//! edits reach 0.02 (8-bit floats, pruning a tenth), 0.38 (4 bits) and 0.69 (one layer truncated to rank 32) at the module
//! that moved most, with shifts of means up to 0.02 and feature spreads up to 1.3, and cost next to nothing. Pruning half of
//! all weights reaches 1.02 (spread 2.1), a collapsed rank 1.7, truncation everywhere 2.2, a scale explosion 4.7 (shift of
//! means 778). Between them, faults of moderate size (a block scaled by 1.5, 0.41) look like clean edits to any one
//! module's statistics and are marked. Harm done is measured by `distribution-shift`; this guard tells where it begins:
//! `details.first_changed`.
//!
//! A finding `changed` (status pass) counts the modules that moved more than rounding noise moves them: by a null fitted to
//! perturbations of this model, or, without one, beyond the deadband (0.02 in logarithms, the reference's for α; a
//! twentieth for ranks, a hundredth for shifts of means). Modules downstream of a change move with it: the tests are
//! positively dependent, under which the false-discovery rate still holds.
//!
//! Not seen: what these windows do not exercise, and changes within the spread of features that keep means and variances.
//!
//! Quantities: `activation.moments`, `activation.singular`, `activation.shift` of every module; `window.ids`,
//! `structure.digest`. A module without `activation.shift` must be the baseline's to the last bit; else it cannot be compared,
//! which is a failure of its own.

mod modules;
#[cfg(test)]
mod tests;

use modules::Change;
use packhost_sdk::json::{Value as Json, json};
use packhost_sdk::screening::{
    self, Change as _, Limit, Limits, Outcome, Policy, Side, Statistic, observed, same_windows,
};
use packhost_sdk::stats::summary::exp;
use packhost_sdk::{
    About, Failure, Guard, ModelInfo, Request, Result, Status, Step, Table, Verdict, export_guard,
    scope::layer_of,
};

const ID: &str = "activation-shift";

/// Default limits; the module's text says why.
const LIMITS: [(&str, Limit); 5] = [
    ("alpha", Limit::new(Some(0.09), Some(1.0))),
    ("singular", Limit::new(Some(0.1), Some(1.0))),
    ("effective_rank", Limit::new(Some(0.2), Some(1.0))),
    ("mean_shift", Limit::new(Some(0.05), Some(0.25))),
    ("feature_spread", Limit::new(Some(0.2), Some(2.0))),
];

/// What the null is about, in the order of [`Change::statistics`]. Sizes enter as logarithms, which are closer to normal.
const STATISTICS: [Statistic; 5] = [
    Statistic::new("log_alpha", Side::Both, 1e-6),
    Statistic::new("log_singular", Side::Both, 1e-6),
    Statistic::new("log_effective_rank", Side::Both, 1e-6),
    Statistic::new("log_mean_shift", Side::Upper, 1e-2),
    Statistic::new("log_feature_spread", Side::Upper, 1e-2),
];

struct ActivationShift;

impl Guard for ActivationShift {
    const ABOUT: About = About {
        id: ID,
        version: env!("CARGO_PKG_VERSION"),
        title: "How far each module's activations moved from the baseline",
    };
    type Policy = Policy;

    fn plan(policy: &Policy, _model: &ModelInfo) -> Result<Vec<Request>> {
        policy.check(&LIMITS)?;
        let modules = modules::QUANTITIES.map(|quantity| Request::new(quantity, "*"));
        let windows = ["preview", "final"].map(|arm| Request::new("window.ids", arm));
        let model = [Request::new("structure.digest", "model")];
        Ok(modules.into_iter().chain(windows).chain(model).collect())
    }

    fn judge(policy: &Policy, baseline: &Table, subject: &Table) -> Result<Step> {
        let limits = policy.check(&LIMITS)?;
        if !same_windows(baseline, subject) {
            return Err(Failure::failed(
                "baseline and subject were measured on different windows; measure both on the same",
            ));
        }
        let compared = modules::compare(baseline, subject)?;
        let observed = observed(&compared.changes);
        let significance =
            policy.significance(ID, &STATISTICS, baseline, &observed, compared.modules)?;
        let mut outcome = Outcome::default();
        for name in &compared.missing {
            outcome.note(
                Status::Fail,
                name,
                "missing",
                "the module has no output in the subject".to_owned(),
            );
        }
        for name in &compared.incomparable {
            let message = "the output differs from the baseline's, but no shift could be measured: it has other features, or \
                           the table is not whole";
            outcome.note(Status::Fail, name, "not_comparable", message.to_owned());
        }
        for (name, change) in &compared.changes {
            judge_change(name, change, &limits, &mut outcome);
        }
        let significance = significance.as_ref();
        let changes = &compared.changes;
        let changed = screening::changed(changes, significance);
        if let Some(finding) = screening::summary(changes, &changed, compared.modules) {
            outcome.push(Status::Pass, finding);
        }
        let beyond_deadband = changes.values().filter(|c| c.beyond_rounding()).count();
        let mut details = policy.details(&limits, significance);
        details["not_in_calibration"] = json!(significance.map_or(0, |known| known.unknown.len()));
        details["modules"] = json!(compared.modules);
        details["modules_different"] = json!(changes.len());
        details["modules_changed"] = json!(changed.len());
        details["modules_beyond_deadband"] = json!(beyond_deadband);
        details["missing"] = json!(compared.missing);
        details["not_comparable"] = json!(compared.incomparable);
        details["first_changed"] = first(&changed);
        details["most_changed"] = screening::most_changed(changes, &changed, significance);
        let (status, findings) = outcome.finish();
        Ok(Step::Verdict(Verdict {
            status,
            findings,
            details,
        }))
    }

    /// What rounding noise at the level of the stored dtype does to this model's activations.
    fn calibrate(policy: &Policy, runs: &[Table]) -> Result<Policy> {
        policy.check(&LIMITS)?;
        policy.calibrated(ID, &STATISTICS, runs, |baseline, run| {
            Ok(observed(&modules::compare(baseline, run)?.changes))
        })
    }
}

export_guard!(ActivationShift);

fn judge_change(name: &str, change: &Change, limits: &Limits, outcome: &mut Outcome) {
    if change.not_finite {
        let message = "the module's output is not finite in the baseline or the subject".to_owned();
        outcome.note(Status::Fail, name, "not_finite", message);
        return;
    }
    if change.dead {
        let message = "a feature that varied is constant now, or the other way round".to_owned();
        outcome.note(Status::Warn, name, "dead", message);
    }
    let mut logarithm = |effect: &str, value: Option<f64>, what: &str| {
        if let Some(value) = value {
            let message = format!("{what} is {:.4}", exp(value));
            outcome.effect(limits, name, effect, value.abs(), &message);
        }
    };
    logarithm(
        "alpha",
        change.log_alpha,
        "the baseline's over the subject's standard deviation",
    );
    logarithm(
        "singular",
        change.log_singular,
        "the subject's over the baseline's leading singular value",
    );
    logarithm(
        "effective_rank",
        change.log_effective_rank,
        "the subject's over the baseline's effective rank",
    );
    let message = format!("means moved by {:.6} of the variance", change.mean_shift);
    outcome.effect(limits, name, "mean_shift", change.mean_shift, &message);
    let message = format!(
        "the median feature's variance moved by a factor of {:.4}",
        exp(change.feature_spread)
    );
    outcome.effect(
        limits,
        name,
        "feature_spread",
        change.feature_spread,
        &message,
    );
}

/// Order of modules: blocks by number; what has none (embedding, last norm, head) by name, after them, the embedding before.
fn place(name: &str) -> (u32, &str) {
    let outside = if name.contains("embed") { 0 } else { u32::MAX };
    (
        layer_of(name).map_or(outside, |layer| layer.saturating_add(1)),
        name,
    )
}

/// The block where change begins, and its modules.
fn first(changed: &[&str]) -> Json {
    let Some(least) = changed.iter().map(|name| place(name).0).min() else {
        return Json::Null;
    };
    let modules: Vec<&&str> = changed
        .iter()
        .filter(|name| place(name).0 == least)
        .collect();
    json!({"layer": layer_of(modules[0]), "modules": modules})
}
