//! Accepted growth from what repeated runs of the unedited model show.

use std::collections::BTreeMap;

use packhost_sdk::json::Value as Json;
use packhost_sdk::stats::{quantile, summary::round_decimals};

use crate::policy::Policy;

/// One calibration run, in the words of the guard's details.
pub struct Run {
    /// Relative growth by family, 0 where it shrank.
    growth: BTreeMap<String, f64>,
    /// Limits that the run was judged with.
    epsilons: BTreeMap<String, f64>,
    margin: Option<f64>,
    deadband: Option<f64>,
}

impl Run {
    /// Reads `edge_risk_by_family_base`, `edge_risk_by_family`, `epsilon_by_family` and `policy`, whichever are there.
    pub fn read(details: &Json) -> Self {
        let metrics = &details["metrics"];
        let numbers = |key: &str| -> BTreeMap<String, f64> {
            let stated = [&details[key], &metrics[key]];
            let stated = stated.into_iter().find_map(Json::as_object);
            let entries = stated.into_iter().flatten();
            entries
                .filter_map(|(family, value)| Some((family.clone(), value.as_f64()?)))
                .collect()
        };
        let base = numbers("edge_risk_by_family_base");
        let growth = numbers("edge_risk_by_family")
            .into_iter()
            .filter_map(|(family, now)| {
                let before = *base.get(&family).filter(|before| **before > 0.0)?;
                Some((family, ((now - before) / before).max(0.0)))
            });
        let positive = |key: &str| {
            let stated = details["policy"][key].as_f64();
            stated.filter(|value| *value > 0.0)
        };
        Self {
            growth: growth.collect(),
            epsilons: numbers("epsilon_by_family"),
            margin: positive("margin"),
            deadband: positive("deadband"),
        }
    }
}

/// The policy with calibrated limits: of each family the largest of its own, the quantile of the runs' limits and the
/// quantile of their growths. Limits of 0 are no limits and stay as they were.
pub fn fit(policy: &Policy, runs: &[Run]) -> Policy {
    let level = policy.derivation.clone().unwrap_or_default().quantile;
    let mut fitted = policy.clone();
    let of_runs = |of: &dyn Fn(&Run) -> &BTreeMap<String, f64>| {
        let mut families: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for run in runs {
            for (family, value) in of(run) {
                families.entry(family.clone()).or_default().push(*value);
            }
        }
        families
            .into_iter()
            .map(|(family, values)| (family, quantile::linear(&quantile::sorted(&values), level)))
            .collect::<Vec<_>>()
    };
    let observed = of_runs(&|run| &run.epsilons)
        .into_iter()
        .chain(of_runs(&|run| &run.growth));
    for (family, value) in observed {
        let epsilon = fitted.epsilon(&family).max(value);
        if epsilon > 0.0 {
            let epsilon = round_decimals(epsilon, 6);
            fitted.epsilon_by_family.insert(family, epsilon);
        }
    }
    if let Some(margin) = runs.iter().find_map(|run| run.margin) {
        fitted.margin = margin;
    }
    if let Some(deadband) = runs.iter().find_map(|run| run.deadband) {
        fitted.deadband = deadband;
    }
    fitted.derivation = None;
    fitted
}
