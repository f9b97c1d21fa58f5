//! What the report says, in the reference's words; figures of our own stand under `ours`.

use std::collections::BTreeMap;

use packhost_sdk::json::{Map, Value as Json, json};
use packhost_sdk::stats::{quantile, summary};

use crate::family;
use crate::modules::Modules;
use crate::outcome::{Outcome, Reference};
use crate::policy::Policy;

/// How many modules a family's list of largest scores names.
const TOP: usize = 3;

/// What is told about.
pub struct Judged<'a> {
    pub policy: &'a Policy,
    pub before: &'a Modules,
    pub now: &'a Modules,
    pub reference: &'a Reference<'a>,
    pub outcome: &'a Outcome,
    pub movement: Json,
}

/// The details of a verdict.
pub fn of(judged: &Judged<'_>) -> Json {
    let Judged {
        policy,
        before,
        now,
        reference,
        outcome,
        movement,
    } = judged;
    let mut details = record(policy, outcome);
    let violations: Vec<Json> = outcome
        .violations
        .iter()
        .map(|violation| violation.details())
        .collect();
    let unmeasured = outcome.unmeasured.iter().map(|module| {
        json!({
            "kind": "degeneracy_unmeasured",
            "severity": "warning",
            "module": module,
            "message": format!("collapse of {module} could not be measured: it holds weights that are not finite"),
        })
    });
    let more = json!({
        "passed": outcome.passed(),
        "decision": outcome.decision(),
        "metrics": metrics(judged),
        "violations": violations,
        "diagnostics": unmeasured.collect::<Vec<_>>(),
        "summary": compared(judged),
        "flags": {"spectral_stable": outcome.stable(policy)},
        // The report's figures, in which fatal violations count as well.
        "caps_applied": outcome.reported_caps(),
        "caps_applied_by_family": by_family(judged),
        "bh_family_count": families(now).len(),
        "caps_exceeded": outcome.caps_exceeded,
        "target_sigma": reference.target_sigma,
        "family_stats": reference
            .families
            .iter()
            .map(|(family, of)| {
                let of = json!({"count": of.count, "mean": of.mean, "std": of.std, "min": of.min, "max": of.max});
                ((*family).to_owned(), of)
            })
            .collect::<Map<_, _>>(),
        "movement": movement,
        "ours": {"sigma_ratio": ratios(before, now)},
    });
    if let (Json::Object(details), Json::Object(more)) = (&mut details, more) {
        details.extend(more);
    }
    details
}

/// The part that calibration reads back.
pub fn record(policy: &Policy, outcome: &Outcome) -> Json {
    let families: Map<String, Json> = outcome
        .z
        .keys()
        .map(|module| (module.clone(), json!(family::of(module))))
        .collect();
    json!({
        "policy": policy,
        "final_z_scores": outcome.z,
        "module_family_map": families,
    })
}

fn metrics(judged: &Judged<'_>) -> Json {
    let Judged {
        policy,
        now,
        outcome,
        ..
    } = judged;
    let sigmas = sigmas(now);
    let selection = &outcome.selection;
    let violating = outcome.candidates + outcome.fatal;
    json!({
        "modules_checked": now.len(),
        "violations_found": outcome.violations.len(),
        "budgeted_violations": outcome.caps_applied,
        "candidate_budgeted_violations": outcome.candidates,
        "fatal_violations": outcome.fatal,
        "max_spectral_norm": largest(&sigmas),
        "mean_spectral_norm": summary::mean(&sigmas),
        "stability_score": 1.0 - (violating as f64 / now.len().max(1) as f64).min(1.0),
        "family_z_summary": z_summary(judged),
        "family_z_quantiles": z_quantiles(outcome),
        "top_z_scores": top_scores(outcome),
        "family_caps": policy.family_caps,
        "sigma_quantile": policy.sigma_quantile,
        "deadband": policy.deadband,
        "max_caps": policy.max_caps,
        "caps_applied": outcome.caps_applied,
        "caps_exceeded": outcome.caps_exceeded,
        "multiple_testing": policy.multiple_testing,
        "multiple_testing_selection": {
            "method": policy.multiple_testing.method,
            "alpha": policy.multiple_testing.alpha,
            "m": policy.multiple_testing.m.max(selection.p_values.len()),
            "families_tested": selection.p_values.keys().collect::<Vec<_>>(),
            "families_selected": selection.selected,
            "family_pvalues": selection.p_values,
            "family_max_abs_z": selection.max_abs_z,
            "family_violation_counts": selection.counts,
            "default_selected_without_pvalue": selection.untested,
        },
        "measurement_contract": {"estimator": policy.estimator, "degeneracy": policy.degeneracy},
    })
}

/// The subject's values beside the baseline's. The reference calls the ratio of the means a median; kept for its readers.
fn compared(judged: &Judged<'_>) -> Json {
    let (before, now) = (sigmas(judged.before), sigmas(judged.now));
    let (mean_before, mean_now) = (summary::mean(&before), summary::mean(&now));
    let ratio = |now: f64, before: f64| (before > 0.0).then(|| now / before);
    let violating = judged.outcome.candidates + judged.outcome.fatal;
    json!({
        "baseline_max_spectral_norm": largest(&before),
        "baseline_mean_spectral_norm": mean_before,
        "caps_exceeded": judged.outcome.caps_exceeded,
        "deadband": judged.policy.deadband,
        "max_caps": judged.policy.max_caps,
        "max_sigma_ratio": ratio(largest(&now), largest(&before)),
        "max_spectral_norm": largest(&now),
        "mean_spectral_norm": mean_now,
        "median_sigma_ratio": ratio(mean_now, mean_before),
        "modules_checked": judged.now.len(),
        "sigma_quantile": judged.policy.sigma_quantile,
        "stability_score": 1.0 - (violating as f64 / now.len().max(1) as f64).min(1.0),
        "status": if judged.outcome.reported_caps() == 0 { "stable" } else { "capped" },
    })
}

/// Scores by family, in the order of the modules' names.
fn families(modules: &Modules) -> BTreeMap<&'static str, Vec<&str>> {
    let mut families: BTreeMap<&'static str, Vec<&str>> = BTreeMap::new();
    for module in modules.keys() {
        families.entry(family::of(module)).or_default().push(module);
    }
    families
}

fn scores(outcome: &Outcome) -> BTreeMap<&'static str, Vec<(&str, f64)>> {
    let mut families: BTreeMap<&'static str, Vec<(&str, f64)>> = BTreeMap::new();
    for (module, z) in &outcome.z {
        let family = families.entry(family::of(module)).or_default();
        family.push((module, *z));
    }
    families
}

/// Signed scores: largest, mean, how many are above the limit. A negative outlier is a violation and does not show here.
fn z_summary(judged: &Judged<'_>) -> Json {
    let of = |(family, scores): (&'static str, Vec<(&str, f64)>)| {
        let values: Vec<f64> = scores.iter().map(|(_, z)| *z).collect();
        let kappa = judged.policy.kappa(family);
        let summary = json!({
            "max": largest(&values),
            "mean": summary::mean(&values),
            "count": values.len(),
            "violations": values.iter().filter(|z| **z > kappa).count(),
            "kappa": kappa,
        });
        (family.to_owned(), summary)
    };
    Json::Object(scores(judged.outcome).into_iter().map(of).collect())
}

fn z_quantiles(outcome: &Outcome) -> Json {
    let of = |(family, scores): (&'static str, Vec<(&str, f64)>)| {
        let values: Vec<f64> = scores.iter().map(|(_, z)| z.abs()).collect();
        let sorted = quantile::sorted(&values);
        let quantiles = json!({
            "q95": quantile::linear(&sorted, 0.95),
            "q99": quantile::linear(&sorted, 0.99),
            "max": largest(&values),
            "count": values.len(),
        });
        (family.to_owned(), quantiles)
    };
    Json::Object(scores(outcome).into_iter().map(of).collect())
}

/// The modules with the largest |z| of each family; the list gives |z|, as the reference does.
fn top_scores(outcome: &Outcome) -> Json {
    let of = |(family, mut scores): (&'static str, Vec<(&str, f64)>)| {
        scores.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
        let top = scores.iter().take(TOP);
        let top: Vec<Json> = top
            .map(|(module, z)| json!({"module": module, "z": z.abs(), "family": family}))
            .collect();
        (family.to_owned(), json!(top))
    };
    Json::Object(scores(outcome).into_iter().map(of).collect())
}

fn by_family(judged: &Judged<'_>) -> Json {
    let mut counts: BTreeMap<&str, usize> = families(judged.now)
        .into_keys()
        .map(|family| (family, 0))
        .collect();
    for violation in &judged.outcome.violations {
        *counts.entry(violation.family).or_insert(0) += 1;
    }
    json!(counts)
}

/// Subject over baseline by module: what the reference's summary only names.
fn ratios(before: &Modules, now: &Modules) -> Json {
    let mut ratios: Vec<(f64, &str)> = now
        .iter()
        .filter_map(|(module, now)| {
            let before = before.get(module).filter(|before| before.sigma > 0.0)?;
            Some((now.sigma / before.sigma, module.as_str()))
        })
        .collect();
    ratios.sort_by(|a, b| a.0.total_cmp(&b.0));
    let values: Vec<f64> = ratios.iter().map(|(ratio, _)| *ratio).collect();
    let end = |of: Option<&(f64, &str)>| {
        of.map(|(ratio, module)| json!({"module": module, "ratio": ratio}))
    };
    json!({
        "modules": values.len(),
        "median": (!values.is_empty()).then(|| quantile::linear(&values, 0.5)),
        "smallest": end(ratios.first()),
        "largest": end(ratios.last()),
    })
}

fn sigmas(modules: &Modules) -> Vec<f64> {
    modules.values().map(|figures| figures.sigma).collect()
}

fn largest(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}
