//! Limits that leave the unedited model's own outliers within the budget.
//!
//! Each run gives its z-scores; the budget of warnings is shared among families by their sizes, and a family's limit is the
//! score at its share, the largest over runs, plus a margin. Limits only ever loosen: the policy's own are kept where larger.

use std::collections::BTreeMap;

use packhost_sdk::json::Value as Json;
use packhost_sdk::stats::summary::round_decimals;
use packhost_sdk::{Failure, Result};

use crate::policy::{Cap, Derivation, Policy};

/// One calibration run, in the words of the guard's details.
pub struct Run {
    /// |z| by family, largest first.
    scores: BTreeMap<String, Vec<f64>>,
    /// Quantiles of |z| by family, for runs that state no scores.
    quantiles: BTreeMap<String, f64>,
    /// Limits that the run was judged with.
    caps: BTreeMap<String, f64>,
    /// The run's budget, where it states one.
    budget: Option<usize>,
    sigma_quantile: Option<f64>,
    deadband: Option<f64>,
}

impl Run {
    /// Reads `final_z_scores`, `module_family_map`, `family_z_quantiles`, `family_caps` and `policy`, whichever are there.
    ///
    /// # Errors
    /// A module with a score has no family, or a score is no number.
    pub fn read(details: &Json) -> Result<Self> {
        let mut scores: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        let families = &details["module_family_map"];
        for (module, score) in objects(&details["final_z_scores"]) {
            let family = families[module.as_str()].as_str().ok_or_else(|| {
                Failure::failed(format!(
                    "calibration record: `module_family_map` has no family for `{module}`"
                ))
            })?;
            let score = score.as_f64().ok_or_else(|| {
                Failure::failed(format!(
                    "calibration record: the z-score of `{module}` is {score}, it must be a number"
                ))
            })?;
            scores
                .entry(family.to_owned())
                .or_default()
                .push(score.abs());
        }
        for scores in scores.values_mut() {
            scores.sort_by(|a, b| b.total_cmp(a));
        }
        let metrics = &details["metrics"];
        let first = |key: &str| {
            [&details[key], &metrics[key]]
                .into_iter()
                .find(|value| value.is_object())
                .unwrap_or(&Json::Null)
        };
        let quantiles = objects(first("family_z_quantiles")).filter_map(|(family, of)| {
            let of = |key: &str| of[key].as_f64();
            let largest = [of("q99"), of("max")]
                .into_iter()
                .flatten()
                .reduce(f64::max);
            Some((family.clone(), largest?))
        });
        let policy = &details["policy"];
        let of_policy = objects(&policy["family_caps"]);
        let caps = of_policy
            .chain(objects(first("family_caps")))
            .filter_map(|(family, cap)| Some((family.clone(), cap["kappa"].as_f64()?)));
        let positive = |key: &str| {
            let stated = [&policy[key], &details["summary"][key], &metrics[key]];
            let mut stated = stated.into_iter().filter_map(Json::as_f64);
            stated.find(|value| *value > 0.0)
        };
        Ok(Self {
            scores,
            quantiles: quantiles.collect(),
            caps: caps.collect(),
            budget: positive("max_caps").map(|caps| caps as usize),
            sigma_quantile: positive("sigma_quantile"),
            deadband: positive("deadband"),
        })
    }

    /// The score at each family's share of the budget.
    fn candidates(&self, derivation: &Derivation) -> BTreeMap<&str, f64> {
        let counts: BTreeMap<&str, usize> = self
            .scores
            .iter()
            .map(|(family, scores)| (family.as_str(), scores.len()))
            .collect();
        let shares = allocate(&counts, self.budget.unwrap_or(derivation.budget));
        let mut candidates: BTreeMap<&str, f64> = self
            .scores
            .iter()
            .filter_map(|(family, scores)| {
                let share = shares.get(family.as_str()).copied().unwrap_or(0);
                let place = share.saturating_sub(1).min(scores.len().saturating_sub(1));
                Some((family.as_str(), *scores.get(place)?))
            })
            .collect();
        for (family, value) in &self.quantiles {
            candidates.entry(family).or_insert(*value);
        }
        candidates
    }
}

fn objects(value: &Json) -> impl Iterator<Item = (&String, &Json)> {
    value.as_object().into_iter().flatten()
}

/// Shares a budget among families by their sizes: rounded shares (ties to even), then one more each by descending share
/// or one less each by ascending share until they add up, no family twice. `counts` in order; ties keep it.
pub fn allocate<'a>(counts: &BTreeMap<&'a str, usize>, budget: usize) -> BTreeMap<&'a str, usize> {
    let total: usize = counts.values().sum();
    if total == 0 || budget == 0 {
        return counts.keys().map(|family| (*family, 0)).collect();
    }
    let share = |count: usize| budget as f64 * count as f64 / total as f64;
    let mut shares: Vec<(&str, f64, usize)> = counts
        .iter()
        .map(|(family, count)| {
            let share = share(*count);
            (*family, share, share.round_ties_even() as usize)
        })
        .collect();
    let given: usize = shares.iter().map(|(_, _, given)| given).sum();
    if given < budget {
        shares.sort_by(|a, b| b.1.total_cmp(&a.1));
        for (_, _, given) in shares.iter_mut().take(budget - given) {
            *given += 1;
        }
    } else {
        shares.sort_by(|a, b| a.1.total_cmp(&b.1));
        let can_give = shares.iter_mut().filter(|(_, _, given)| *given > 0);
        for (_, _, given) in can_give.take(given - budget) {
            *given -= 1;
        }
    }
    shares
        .into_iter()
        .map(|(family, _, given)| (family, given))
        .collect()
}

/// The budget of warnings of an edit type's preset.
pub fn edit_max_caps(base: usize, edit_type: &str) -> usize {
    let suggested = match edit_type {
        "quant_rtn" | "fp8_quant" => 15,
        "lowrank_svd" => 25,
        _ => 10,
    };
    base.max(suggested)
}

/// The policy with calibrated limits. What no run observed stays as it was.
pub fn fit(policy: &Policy, runs: &[Run]) -> Policy {
    let derivation = policy.derivation.clone().unwrap_or_default();
    let mut observed: BTreeMap<String, f64> = BTreeMap::new();
    let mut existing: BTreeMap<String, f64> = BTreeMap::new();
    for run in runs {
        for (family, score) in run.candidates(&derivation) {
            let largest = observed.entry(family.to_owned()).or_insert(score);
            *largest = largest.max(score);
        }
        existing.extend(run.caps.clone());
    }
    let mut fitted = policy.clone();
    for (family, kappa) in &existing {
        let cap = Cap {
            kappa: Some(*kappa),
        };
        fitted.family_caps.insert(family.clone(), cap);
    }
    for (family, score) in observed {
        let kappa = existing
            .get(&family)
            .map_or(score, |kappa| kappa.max(score));
        let kappa = Some(round_decimals(kappa + derivation.margin, 3));
        fitted.family_caps.insert(family, Cap { kappa });
    }
    let first = |of: &dyn Fn(&Run) -> Option<f64>| runs.iter().find_map(of);
    if let Some(quantile) = first(&|run| run.sigma_quantile) {
        fitted.sigma_quantile = quantile;
    }
    if let Some(deadband) = first(&|run| run.deadband) {
        fitted.deadband = deadband;
    }
    if let Some(budget) = runs.iter().find_map(|run| run.budget) {
        fitted.max_caps = budget;
    }
    if let Some(edit_type) = &derivation.edit_type {
        fitted.max_caps = derivation
            .edit_max_caps
            .unwrap_or_else(|| edit_max_caps(fitted.max_caps, edit_type));
    }
    fitted.derivation = None;
    fitted
}
