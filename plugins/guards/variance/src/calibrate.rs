//! Limits from what repeated runs of the unedited model recorded.

use packhost_sdk::json::Value as Json;
use packhost_sdk::stats::{quantile, summary::round_decimals};

use crate::policy::Policy;

/// Smallest calibrated effect.
const LEAST_EFFECT: f64 = 0.0009;

/// The policy with calibrated limits, from runs in the words of the guard's details (`policy`, `predictive_gate.delta_ci`,
/// `calibration.variance_change`, whichever are there). As in the reference, a limit of 0 counts as none, so that `min_gain`
/// takes the place of `min_rel_gain` where it is 0.
pub fn fit(policy: &Policy, runs: &[Json]) -> Policy {
    let mut fitted = policy.clone();
    let first = |keys: &[&str]| {
        let of_run = |run: &Json| {
            let mut stated = keys.iter().filter_map(|key| run["policy"][key].as_f64());
            stated.find(|value| *value > 0.0)
        };
        runs.iter().find_map(of_run)
    };
    let changes = runs
        .iter()
        .filter_map(|run| run["calibration"]["variance_change"].as_f64());
    let largest_change = changes.map(f64::abs).reduce(f64::max);
    let from_changes = largest_change.map(|change| round_decimals(change * 1.1 + 0.01, 3));
    if let Some(deadband) = first(&["deadband"]).or(from_changes) {
        fitted.deadband = deadband;
    }
    if let Some(gain) = first(&["min_gain", "min_rel_gain"]) {
        fitted.min_gain = gain;
    }
    let half_widths = runs.iter().filter_map(|run| {
        let ends = &run["predictive_gate"]["delta_ci"];
        let half = (ends[1].as_f64()? - ends[0].as_f64()?).abs() / 2.0;
        (half > 0.0 && half.is_finite()).then_some(half)
    });
    let half_widths: Vec<f64> = half_widths.collect();
    if !half_widths.is_empty() {
        let typical = quantile::linear(&quantile::sorted(&half_widths), 0.95);
        fitted.min_effect_lognll = round_decimals(typical, 4).max(LEAST_EFFECT);
    } else if let Some(effect) = first(&["min_effect_lognll"]) {
        fitted.min_effect_lognll = effect;
    }
    fitted.derivation = None;
    fitted
}
