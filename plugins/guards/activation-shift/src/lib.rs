//! Activation shift: how far each module's output moved from the same module of the baseline, on the same windows, without
//! padding and without the first token.
//!
//! The parity guard `rmt` standardises an output as a whole, so a rescaled module looks as before, and it keeps the largest
//! of a family, which hides all others. `variance` compares with the constant 1. This guard compares module by module:
//!
//! | effect | what | marked beyond | damaged beyond |
//! |---|---|---|---|
//! | `alpha` | `|ln α|`, `α = √(v_base/v_subj)`, `v` the mean variance of features | 0.09 | 0.25 |
//! | `singular` | `|ln s_subj/s_base|` of the leading singular value of the centred outputs | 0.1 | 0.35 |
//! | `effective_rank` | `|ln|` of the ratio of effective ranks | 0.2 | 0.7 (half) |
//! | `mean_shift` | `‖µ_s − µ_b‖²` over the baseline's total variance | 0.05 | 0.5 |
//! | `feature_spread` | median over features of `|ln v_s/v_b|` | 0.2 | 1 |
//!
//! Why these: a projection scaled by 1.12 or 0.90 gives `|ln α|` 0.113 or 0.105 at its own output and exactly 0 before it, so
//! such a fault is marked; scaling by 1.4 (0.34) is damage. Rounding noise of relative size `r` adds about `r²/2` to `ln α`
//! (0.005 for four bits), far below. A change that multiplies what a module passes on by more than e^0.25 is of the size of
//! what normalisation layers remove between blocks of a deep model. Harm done is measured by `distribution-shift`;
//! this guard tells where it begins: `details.first_changed`.
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
    Limit, Limits, Nulls, Observed, Outcome, Policy, Runs, Side, Significance, Statistic, number,
    same_windows,
};
use packhost_sdk::stats::summary::exp;
use packhost_sdk::{
    About, Failure, Finding, Guard, ModelInfo, Request, Result, Status, Step, Table, Verdict,
    export_guard, scope::layer_of,
};
use std::collections::BTreeMap;

const ID: &str = "activation-shift";

/// Default limits; the module's text says why.
const LIMITS: [(&str, Limit); 5] = [
    ("alpha", Limit::new(Some(0.09), Some(0.25))),
    ("singular", Limit::new(Some(0.1), Some(0.35))),
    ("effective_rank", Limit::new(Some(0.2), Some(0.7))),
    ("mean_shift", Limit::new(Some(0.05), Some(0.5))),
    ("feature_spread", Limit::new(Some(0.2), Some(1.0))),
];

/// What the null is about, in the order of [`Change::statistics`]. Sizes enter as logarithms, which are closer to normal.
const STATISTICS: [Statistic; 5] = [
    statistic("log_alpha", Side::Both, 1e-6),
    statistic("log_singular", Side::Both, 1e-6),
    statistic("log_effective_rank", Side::Both, 1e-6),
    statistic("log_mean_shift", Side::Upper, 1e-2),
    statistic("log_feature_spread", Side::Upper, 1e-2),
];

const fn statistic(name: &'static str, side: Side, resolution: f64) -> Statistic {
    Statistic {
        name,
        side,
        resolution,
    }
}

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
        let mut changed: Vec<&str> = Vec::new();
        for (name, change) in &compared.changes {
            judge_change(name, change, &limits, &mut outcome);
            let is = match &significance {
                Some(known) if known.p_values.contains_key(*name) => known.changed(name),
                _ => change.beyond_deadband(),
            };
            if is {
                changed.push(name);
            }
        }
        if let Some(finding) = summary(&changed, &compared.changes, compared.modules) {
            outcome.push(Status::Pass, finding);
        }
        let details = json!({
            "calibrated": policy.calibration.is_some(),
            "calibration": policy.details(),
            "false_alarm_rate": policy.false_alarm_rate(),
            "limits": limits,
            "p_value_limit": significance.as_ref().and_then(|known| known.threshold),
            "not_in_calibration": significance.as_ref().map_or(0, |known| known.unknown.len()),
            "modules": compared.modules,
            "modules_different": compared.changes.len(),
            "modules_changed": changed.len(),
            "modules_beyond_deadband": compared.changes.values().filter(|c| c.beyond_deadband()).count(),
            "missing": compared.missing,
            "not_comparable": compared.incomparable,
            "first_changed": first(&changed),
            "most_changed": most(&compared.changes, significance.as_ref(), &changed),
        });
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
        let runs = Runs::sort(ID, runs, policy.runs)?;
        let mut fitted = policy.clone();
        if runs.perturbations.is_empty() {
            return Ok(fitted);
        }
        let seen = runs
            .perturbations
            .iter()
            .map(|(baseline, run)| Ok(observed(&modules::compare(baseline, run)?.changes)))
            .collect::<Result<Vec<Observed>>>()?;
        fitted.calibration = Some(
            Nulls::fit(
                &runs.structure,
                &STATISTICS,
                &seen,
                policy.false_discovery_rate,
            )
            .map_err(|failure| Failure::failed(format!("guard {ID}: {}", failure.message())))?,
        );
        Ok(fitted)
    }
}

export_guard!(ActivationShift);

type Changes<'a> = BTreeMap<&'a str, Change>;

fn observed(changes: &Changes<'_>) -> Observed {
    let rows = changes.iter();
    rows.map(|(name, change)| ((*name).to_owned(), change.statistics().to_vec()))
        .collect()
}

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

/// One finding for all modules that changed, naming the one whose variance moved most.
fn summary(changed: &[&str], changes: &Changes<'_>, modules: usize) -> Option<Finding> {
    let most = changed
        .iter()
        .max_by(|a, b| size(changes, a).total_cmp(&size(changes, b)))?;
    let message = format!(
        "{} of {modules} modules moved more than rounding explains, this one's variance most: |ln α| = {:.6}",
        changed.len(),
        size(changes, most)
    );
    Some(Finding {
        scope: (*most).to_owned(),
        code: "changed".to_owned(),
        message,
        value: Some(changed.len() as f64),
        limit: None,
    })
}

fn size(changes: &Changes<'_>, name: &str) -> f64 {
    let alpha = changes.get(name).and_then(|change| change.log_alpha);
    alpha.map_or(f64::INFINITY, f64::abs)
}

/// Most modules that the details list, those that moved most.
const LISTED: usize = 64;

fn most(changes: &Changes<'_>, significance: Option<&Significance>, changed: &[&str]) -> Json {
    let mut order: Vec<&str> = changes.keys().copied().collect();
    order.sort_by(|a, b| size(changes, b).total_cmp(&size(changes, a)));
    let rows = order.into_iter().take(LISTED).filter_map(|name| {
        let mut row = changes.get(name)?.details();
        row["module"] = json!(name);
        row["changed"] = json!(changed.contains(&name));
        row["p_value"] = significance
            .and_then(|known| known.p_values.get(name))
            .map_or(Json::Null, |p| number(*p));
        Some(row)
    });
    rows.collect()
}
