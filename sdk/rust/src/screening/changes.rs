//! What a guard found different, place by place, and how its verdict tells of it.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use super::{Observed, Significance};
use crate::Finding;

/// How one place (a tensor, a module) differs from the baseline.
pub trait Change {
    /// What a place is, in the singular: `tensor`.
    const PLACE: &'static str;

    /// What places are ordered by; larger has changed more.
    fn size(&self) -> f64;

    /// What the null is about, in the order of the guard's statistics.
    fn statistics(&self) -> Vec<Option<f64>>;

    /// Whether it is more than rounding can explain, where no calibration tells.
    fn beyond_rounding(&self) -> bool;

    /// The words for the size, said of the place that changed most.
    fn how_far(&self) -> String;

    /// For the report.
    fn details(&self) -> Json;
}

/// Changes by the name of their place.
pub type Changes<'a, C> = BTreeMap<&'a str, C>;

/// The logarithm of a size, which is closer to normal; a size of nothing has none, and `least`, far below any resolution,
/// stands for it. NaN stays NaN.
pub fn log_size(size: f64, least: f64) -> f64 {
    if size.is_nan() {
        size
    } else {
        packhost_stats::summary::ln(size.max(least))
    }
}

/// Most places that details list, those that changed most.
const LISTED: usize = 64;

/// The changes as a null sees them.
pub fn observed<C: Change>(changes: &Changes<'_, C>) -> Observed {
    changes
        .iter()
        .map(|(name, change)| ((*name).to_owned(), change.statistics()))
        .collect()
}

/// The places that changed more than rounding explains: by the null where it knows the place, else by the bound that rounding
/// cannot pass.
pub fn changed<'a, C: Change>(
    changes: &Changes<'a, C>,
    significance: Option<&Significance>,
) -> Vec<&'a str> {
    let is_changed = |name: &str, change: &C| match significance {
        Some(known) if known.p_values.contains_key(name) => known.changed(name),
        _ => change.beyond_rounding(),
    };
    changes
        .iter()
        .filter(|(name, change)| is_changed(name, change))
        .map(|(name, _)| *name)
        .collect()
}

/// One finding for all `changed` places of `all`, naming the one that changed most; none when nothing did.
pub fn summary<C: Change>(
    changes: &Changes<'_, C>,
    changed: &[&str],
    all: usize,
) -> Option<Finding> {
    let (name, most) = changed
        .iter()
        .filter_map(|name| Some((*name, changes.get(name)?)))
        .max_by(|a, b| a.1.size().total_cmp(&b.1.size()))?;
    Some(Finding {
        scope: name.to_owned(),
        code: "changed".to_owned(),
        message: format!(
            "{} of {all} {}s moved more than rounding explains, {}",
            changed.len(),
            C::PLACE,
            most.how_far()
        ),
        value: Some(changed.len() as f64),
        limit: None,
    })
}

/// The details of the places that changed most.
pub fn most_changed<C: Change>(
    changes: &Changes<'_, C>,
    changed: &[&str],
    significance: Option<&Significance>,
) -> Json {
    let mut order: Vec<(&str, &C)> = changes
        .iter()
        .map(|(name, change)| (*name, change))
        .collect();
    order.sort_by(|a, b| b.1.size().total_cmp(&a.1.size()));
    let rows = order.into_iter().take(LISTED).map(|(name, change)| {
        let mut row = change.details();
        row[C::PLACE] = json!(name);
        row["changed"] = json!(changed.contains(&name));
        row["p_value"] = significance.map_or(Json::Null, |known| known.p_value(name));
        row
    });
    rows.collect()
}
