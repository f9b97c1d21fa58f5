//! The tail gate: did a few windows get much worse although the mean did not?

use crate::policy::{Tail as Policy, TailMode};
use packhost_sdk::json::{Map, Value as Json, json};
use packhost_sdk::stats::{quantile, summary};

/// One limit that was exceeded.
#[derive(Debug, Clone, PartialEq)]
pub struct Violation {
    pub code: &'static str,
    pub observed: f64,
    pub threshold: f64,
}

/// The tail of window-wise loss differences.
#[derive(Debug, Clone, PartialEq)]
pub struct Tail {
    /// Whether there were enough windows to decide.
    pub evaluated: bool,
    /// No violation, or not evaluated.
    pub passed: bool,
    pub violations: Vec<Violation>,
    stats: Map<String, Json>,
}

/// Quantiles of the differences, and the share above epsilon (by windows and by tokens).
pub fn evaluate(policy: &Policy, deltas: &[f64], weights: &[f64]) -> Tail {
    let sorted = quantile::sorted(deltas);
    let in_tail: Vec<f64> = deltas
        .iter()
        .map(|d| f64::from(u8::from(*d > policy.epsilon)))
        .collect();
    let mass = summary::mean(&in_tail);
    let mut stats = Map::new();
    stats.insert("n".into(), json!(deltas.len()));
    stats.insert("epsilon".into(), json!(policy.epsilon));
    if let Some(max) = sorted.last() {
        stats.insert("max".into(), json!(max));
        stats.insert("tail_mass".into(), json!(mass));
        for (name, level) in [("q50", 0.5), ("q90", 0.9), ("q95", 0.95), ("q99", 0.99)] {
            stats.insert(name.into(), json!(quantile::linear(&sorted, level)));
        }
        if weights.len() == deltas.len() {
            let weighted = summary::weighted_mean(&in_tail, weights);
            stats.insert("tail_mass_weighted".into(), json!(weighted));
            stats.insert("tail_mass_weighted_by".into(), json!("weights"));
        }
    }
    let evaluated =
        policy.mode != TailMode::Off && !deltas.is_empty() && deltas.len() >= policy.min_windows;
    let mut violations = Vec::new();
    if evaluated {
        let observed = quantile::linear(&sorted, policy.quantile);
        if observed > policy.quantile_max {
            violations.push(Violation {
                code: "quantile_max_exceeded",
                observed,
                threshold: policy.quantile_max,
            });
        }
        if let Some(threshold) = policy.mass_max.filter(|max| mass > *max) {
            violations.push(Violation {
                code: "tail_mass_exceeded",
                observed: mass,
                threshold,
            });
        }
    }
    Tail {
        evaluated,
        passed: violations.is_empty(),
        violations,
        stats,
    }
}

impl Tail {
    /// The report's block `primary_metric_tail`.
    pub fn details(&self, policy: &Policy) -> Json {
        let violations: Vec<Json> = self
            .violations
            .iter()
            .map(|v| {
                let mut block = json!({
                    "type": v.code, "observed": v.observed, "threshold": v.threshold,
                });
                let (key, value) = match v.code {
                    "quantile_max_exceeded" => ("quantile", policy.quantile),
                    _ => ("epsilon", policy.epsilon),
                };
                block[key] = json!(value);
                block
            })
            .collect();
        json!({
            "mode": policy.mode.name(),
            "evaluated": self.evaluated,
            "passed": self.passed,
            "warned": policy.mode == TailMode::Warn && !self.passed,
            "violations": violations,
            "policy": {
                "mode": policy.mode.name(),
                "min_windows": policy.min_windows,
                "quantile": policy.quantile,
                "quantile_max": policy.quantile_max,
                "epsilon": policy.epsilon,
                "mass_max": policy.mass_max,
            },
            "stats": self.stats,
            "source": "paired_baseline.final",
        })
    }
}
