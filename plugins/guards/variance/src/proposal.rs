//! Which scales would bring each block's mean square to 1, and which of them are worth a try.
//!
//! The 1 is the reference's, and arbitrary: outputs of real models are far from it, so most proposals lie at a bound for the
//! unedited model too. What changed against the baseline is told beside (`relative`).

use std::collections::BTreeMap;

use packhost_sdk::stats::quantile;

use crate::policy::Policy;
use crate::targets::{Place, Targets};

/// Scales in the model's order.
pub type Scales = BTreeMap<Place, f64>;

/// Groups of windows whose means are compared.
const GROUPS: usize = 8;

/// From so many windows on, the outermost ones are drawn in to the 2 % and 98 % quantiles.
const TRIMMED_FROM: usize = 10;

/// A robust mean square: the lower median of means over consecutive groups of windows. None of no windows.
pub fn typical(mean_squares: &[f64]) -> Option<f64> {
    let mut values = mean_squares.to_vec();
    if values.len() >= TRIMMED_FROM {
        let sorted = quantile::sorted(&values);
        let (low, high) = (
            quantile::linear(&sorted, 0.02),
            quantile::linear(&sorted, 0.98),
        );
        for value in &mut values {
            *value = value.clamp(low, high);
        }
    }
    let groups = values.len().min(GROUPS);
    let size = values.len().div_ceil(groups.max(1)).max(1);
    let means: Vec<f64> = values
        .chunks(size)
        .map(|group| group.iter().sum::<f64>() / group.len() as f64)
        .collect();
    let sorted = quantile::sorted(&means);
    sorted.get(sorted.len().checked_sub(1)? / 2).copied()
}

/// The scale that brings a mean square to 1.
pub fn unbounded(typical: f64) -> f64 {
    1.0 / typical.max(1e-9).sqrt()
}

/// The proposed scale within the bounds; none within `deadband` of 1.
pub fn raw_scale(mean_squares: &[f64], deadband: f64, clamp: Option<(f64, f64)>) -> Option<f64> {
    let scale = unbounded(typical(mean_squares)?);
    let scale = clamp.map_or(scale, |(low, high)| scale.clamp(low, high));
    ((scale - 1.0).abs() >= deadband).then_some(scale)
}

/// What is proposed, and what of it is tried.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Proposal {
    /// Every proposal.
    pub raw: Scales,
    /// Those that are tried, drawn in to the largest step.
    pub filtered: Scales,
    /// Whether the largest proposal is tried although none is large enough.
    pub backstop_used: bool,
}

/// Proposals of all targets.
pub fn propose(policy: &Policy, targets: &Targets) -> Proposal {
    let at = |deadband: f64| -> Scales {
        let scaled = targets.iter().filter_map(|(place, target)| {
            Some((
                *place,
                raw_scale(&target.mean_squares, deadband, policy.clamp)?,
            ))
        });
        scaled.collect()
    };
    let mut raw = at(policy.deadband);
    if raw.is_empty() && policy.deadband > 0.0 {
        raw = at((policy.deadband * 0.5).max(1e-4));
    }
    let (filtered, backstop_used) = filter(policy, &raw);
    Proposal {
        raw,
        filtered,
        backstop_used,
    }
}

/// Which proposals are tried.
fn filter(policy: &Policy, raw: &Scales) -> (Scales, bool) {
    let distance = |scale: f64| (scale - 1.0).abs();
    let step = |scale: f64| {
        if policy.max_scale_step > 0.0 {
            1.0 + (scale - 1.0).clamp(-policy.max_scale_step, policy.max_scale_step)
        } else {
            scale
        }
    };
    let large = raw
        .iter()
        .filter(|(_, scale)| distance(**scale) >= policy.min_abs_adjust);
    let mut tried: Vec<(Place, f64)> = large.map(|(place, scale)| (*place, step(*scale))).collect();
    let mut backstop_used = false;
    if tried.is_empty() && policy.topk_backstop > 0 {
        let half = policy.min_abs_adjust * 0.5;
        let mut least = (policy.deadband * 0.5).max(half);
        if policy.min_abs_adjust > 0.0 && least >= policy.min_abs_adjust {
            least = half;
        }
        // The first of the largest.
        let largest = raw.iter().reduce(|best, next| {
            if distance(*next.1) > distance(*best.1) {
                next
            } else {
                best
            }
        });
        if let Some((place, scale)) = largest.filter(|(_, scale)| distance(**scale) >= least) {
            tried.push((*place, step(*scale)));
            backstop_used = true;
        }
    }
    let most = policy.max_adjusted_modules;
    if most > 0 && tried.len() > most {
        // All enlarging ones first, then by distance; equal ones keep the model's order.
        let rank = |(place, scale): &(Place, f64)| {
            let proposed = raw.get(place).copied().map_or(0.0, distance);
            let enlarging = if *scale >= 1.0 { 2.0 } else { 0.0 };
            (proposed + enlarging, proposed, *scale)
        };
        tried.sort_by(|a, b| {
            let (a, b) = (rank(a), rank(b));
            b.0.total_cmp(&a.0)
                .then(b.1.total_cmp(&a.1))
                .then(b.2.total_cmp(&a.2))
        });
        tried.truncate(most);
    }
    (tried.into_iter().collect(), backstop_used)
}
