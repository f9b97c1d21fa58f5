//! The figures: perplexities, the paired difference of log-losses and its intervals.

use crate::number;
use crate::policy::{Coverage, Method, Policy};
use packhost_sdk::json::{Value as Json, json};
use packhost_sdk::stats::bootstrap::{self, Interval, Options};
use packhost_sdk::stats::summary::{self, exp};
use packhost_sdk::{Failure, Result, Table, Value};
use std::collections::BTreeMap;

/// Offsets of the bootstrap seeds, as in the reference.
const SEED_PREVIEW: u64 = 7;
const SEED_FINAL: u64 = 13;
const SEED_ARMS: u64 = 97;
const SEED_PAIRED: u64 = 503;

/// One arm of one model.
struct Arm {
    ids: Vec<u64>,
    losses: Vec<f64>,
    tokens: Vec<f64>,
}

impl Arm {
    fn read(table: &Table, scope: &str, who: &str) -> Result<Self> {
        let ids = table.vector(scope, "window.ids")?;
        let arm = Self {
            ids: ids.iter().map(|id| *id as u64).collect(),
            losses: table.vector(scope, "window.loss")?.to_vec(),
            tokens: table.vector(scope, "window.tokens")?.to_vec(),
        };
        let (count, losses, tokens) = (arm.ids.len(), arm.losses.len(), arm.tokens.len());
        if count != losses || count != tokens {
            return Err(Failure::failed(format!(
                "{who}, {scope} arm: {count} window ids, {losses} losses and {tokens} token counts; they must be equally many"
            )));
        }
        if count == 0 {
            return Err(Failure::failed(format!(
                "{who}, {scope} arm: there are no windows"
            )));
        }
        Ok(arm)
    }

    fn log_loss(&self) -> f64 {
        summary::weighted_mean(&self.losses, &self.tokens)
    }

    fn total_tokens(&self) -> f64 {
        self.tokens.iter().sum()
    }
}

/// Perplexity of an arm of a table, for calibration.
pub fn perplexity_of(table: &Table, scope: &str) -> Result<f64> {
    let arm = Arm::read(table, scope, "calibration run")?;
    Ok(summary::perplexity(&arm.losses, &arm.tokens))
}

/// Windows matched between baseline and subject.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Matched {
    pub matched: usize,
    pub expected: usize,
}

impl Matched {
    fn new(baseline: &Arm, subject: &Arm) -> Self {
        let subject: std::collections::BTreeSet<u64> = subject.ids.iter().copied().collect();
        Self {
            matched: baseline
                .ids
                .iter()
                .filter(|id| subject.contains(id))
                .count(),
            expected: baseline.ids.len(),
        }
    }

    fn details(self) -> Json {
        json!({
            "matched": self.matched,
            "expected": self.expected,
            "reason": (self.matched < self.expected).then_some("unmatched_windows"),
        })
    }
}

/// Everything that the gates and the report need.
pub struct Evaluation {
    /// The subject's final perplexity over the baseline's.
    pub ratio: f64,
    /// The subject's final perplexity over its preview perplexity.
    pub drift: f64,
    /// Interval of the ratio.
    pub ratio_interval: Option<Interval>,
    /// Loss differences of matched final windows with finite losses.
    pub deltas: Vec<f64>,
    /// Their real tokens.
    pub weights: Vec<f64>,
    /// Real tokens of the preview and final arm.
    pub arm_tokens: (f64, f64),
    /// Tokens in the data set, where known.
    pub tokens_available: Option<f64>,
    /// Windows in both arms.
    pub windows: usize,
    /// Windows of the subject without a finite loss.
    pub skipped: usize,
    /// Whether there is no metric at all.
    pub invalid: bool,
    /// Why the metric is invalid or degraded.
    pub degraded_reason: Option<&'static str>,
    /// Whether windows and replicates reach the floor; none when no floor is set.
    pub coverage_ok: Option<bool>,
    details: Json,
}

impl Evaluation {
    pub fn new(policy: &Policy, baseline: &Table, subject: &Table) -> Result<Self> {
        let base = (
            Arm::read(baseline, "preview", "baseline")?,
            Arm::read(baseline, "final", "baseline")?,
        );
        let edited = (
            Arm::read(subject, "preview", "subject")?,
            Arm::read(subject, "final", "subject")?,
        );
        let paired = (
            Matched::new(&base.0, &edited.0),
            Matched::new(&base.1, &edited.1),
        );
        for (arm, matched) in [("preview", paired.0), ("final", paired.1)] {
            if matched.matched == 0 {
                return Err(Failure::failed(format!(
                    "{arm} arm: baseline and subject share no window; measure both on the same windows"
                )));
            }
        }
        let (preview, final_) = (edited.0.log_loss(), edited.1.log_loss());
        let (base_preview, base_final) = (base.0.log_loss(), base.1.log_loss());
        let perplexity = exp(final_);
        let ratio = perplexity / exp(base_final);
        let (deltas, weights) = paired_deltas(&base.1, &edited.1);
        let skipped = [&edited.0, &edited.1]
            .into_iter()
            .flat_map(|arm| &arm.losses)
            .filter(|loss| !loss.is_finite())
            .count();
        let matched = paired.0.matched + paired.1.matched;
        let expected = paired.0.expected + paired.1.expected;
        let (invalid, degraded_reason) = if !perplexity.is_finite() || !exp(preview).is_finite() {
            (true, Some("non_finite_pm"))
        } else if !(ratio.is_finite() && ratio > 0.0) {
            (true, Some("non_finite_baseline"))
        } else if matched < expected {
            (false, Some("unmatched_windows"))
        } else if skipped > 0 {
            (false, Some("non_finite_windows"))
        } else {
            (false, None)
        };
        let intervals = Intervals::new(policy, &edited, &deltas, &weights);
        let coverage = coverage(policy.coverage, &policy.bootstrap.replicates, &edited);
        let ratio_interval = intervals.paired.map(Interval::exp);
        let mut details = json!({
            "kind": "ppl_causal",
            "unit": "ppl",
            "direction": "lower",
            "aggregation_scope": "token",
            "analysis_basis": "mean_logloss",
            "gating_basis": "point",
            "paired": true,
            "supports_bootstrap": true,
            "invalid": invalid,
            "degraded": degraded_reason.is_some(),
            "degraded_reason": degraded_reason,
            "preview": number(exp(preview)),
            "final": number(perplexity),
            "analysis_point_preview": number(preview),
            "analysis_point_final": number(final_),
            "ratio_vs_baseline": number(ratio),
            "baseline": {
                "preview": number(exp(base_preview)),
                "final": number(exp(base_final)),
                "analysis_point_preview": number(base_preview),
                "analysis_point_final": number(base_final),
            },
            "delta_mean": number(summary::weighted_mean(&deltas, &weights)),
            "windows": {
                "preview": edited.0.ids.len(),
                "final": edited.1.ids.len(),
                "skipped_non_finite": skipped,
                "paired_preview": paired.0.details(),
                "paired_final": paired.1.details(),
                "match_fraction": matched as f64 / expected as f64,
            },
            "tokens": {"preview": edited.0.total_tokens(), "final": edited.1.total_tokens()},
            "bootstrap": {
                "method": intervals.method,
                "replicates": policy.bootstrap.replicates,
                "alpha": policy.bootstrap.alpha,
                "seed": policy.bootstrap.seed,
            },
            "paired_delta_summary": arm_difference(&edited),
            "ours": {
                "closed_form_interval": pair(
                    summary::closed_form_interval(&deltas, &weights, policy.bootstrap.alpha)
                ),
                "drift_ratio_vs_baseline": number(
                    exp(final_ - preview - (base_final - base_preview))
                ),
            },
        });
        if let Some(coverage) = &coverage {
            details["coverage"] = coverage.1.clone();
        }
        intervals.write(&mut details);
        Ok(Self {
            ratio,
            drift: perplexity / exp(preview),
            ratio_interval,
            deltas,
            weights,
            arm_tokens: (edited.0.total_tokens(), edited.1.total_tokens()),
            tokens_available: match subject.get("model", "window.tokens_available") {
                Some(Value::Number(tokens)) => Some(*tokens),
                _ => None,
            },
            windows: edited.0.ids.len() + edited.1.ids.len(),
            skipped,
            invalid,
            degraded_reason,
            coverage_ok: coverage.map(|coverage| coverage.0),
            details,
        })
    }

    /// Real tokens of both arms.
    pub fn tokens(&self) -> f64 {
        self.arm_tokens.0 + self.arm_tokens.1
    }

    /// The figures for the report.
    pub fn details(&self) -> Json {
        self.details.clone()
    }
}

/// Loss differences of the windows that both sides have, where both are finite, with the subject's token counts.
fn paired_deltas(baseline: &Arm, subject: &Arm) -> (Vec<f64>, Vec<f64>) {
    let known: BTreeMap<u64, f64> = baseline
        .ids
        .iter()
        .copied()
        .zip(baseline.losses.iter().copied())
        .collect();
    let subject = subject.ids.iter().zip(&subject.losses).zip(&subject.tokens);
    subject
        .filter_map(|((id, loss), tokens)| {
            let delta = loss - known.get(id)?;
            (delta.is_finite() && *tokens > 0.0).then_some((delta, *tokens))
        })
        .unzip()
}

/// The intervals of one evaluation; one that cannot be computed (too few finite losses) is absent.
struct Intervals {
    method: &'static str,
    paired: Option<Interval>,
    preview: Option<Interval>,
    final_: Option<Interval>,
    arms: Option<Interval>,
}

impl Intervals {
    fn new(policy: &Policy, edited: &(Arm, Arm), deltas: &[f64], weights: &[f64]) -> Self {
        let (method, name) = match policy.bootstrap.method {
            Method::Bca => (bootstrap::Method::Bca, "bca_paired_delta_log"),
            Method::Percentile => (bootstrap::Method::Percentile, "percentile_paired_delta_log"),
        };
        let interval = |samples: &[f64], weights: Option<&[f64]>, offset: u64| {
            let options = Options {
                method,
                replicates: policy.bootstrap.replicates,
                alpha: policy.bootstrap.alpha,
                seed: policy.bootstrap.seed.wrapping_add(offset),
            };
            // The policy is checked and weights are token counts, so what can fail is a lack of finite samples.
            bootstrap::mean(samples, weights, &options).ok()
        };
        let between: Option<Vec<f64>> =
            (edited.0.losses.len() == edited.1.losses.len()).then(|| {
                edited
                    .1
                    .losses
                    .iter()
                    .zip(&edited.0.losses)
                    .map(|(f, p)| f - p)
                    .collect()
            });
        Self {
            method: name,
            paired: interval(deltas, Some(weights), SEED_PAIRED),
            preview: interval(&edited.0.losses, None, SEED_PREVIEW),
            final_: interval(&edited.1.losses, None, SEED_FINAL),
            arms: between.and_then(|d| interval(&d, Some(&edited.0.tokens), SEED_ARMS)),
        }
    }

    fn write(&self, details: &mut Json) {
        details["ci"] = pair(self.paired);
        details["display_ci"] = pair(self.paired.map(Interval::exp));
        details["logloss_preview_ci"] = pair(self.preview);
        details["logloss_final_ci"] = pair(self.final_);
        details["logloss_delta_ci"] = pair(self.arms);
    }
}

fn pair(interval: Option<Interval>) -> Json {
    match interval {
        Some(i) if i.low.is_finite() && i.high.is_finite() => json!([i.low, i.high]),
        _ => Json::Null,
    }
}

/// Final minus preview losses of the subject, window by window in order: the arms hold different texts, so this says how
/// much texts vary.
fn arm_difference(edited: &(Arm, Arm)) -> Json {
    let mean = edited.1.log_loss() - edited.0.log_loss();
    let differences: Vec<f64> = edited
        .1
        .losses
        .iter()
        .zip(&edited.0.losses)
        .map(|(f, p)| f - p)
        .collect();
    let finite = differences.iter().all(|d| d.is_finite());
    let first = differences[0];
    let degenerate = differences
        .iter()
        .all(|d| (d - first).abs() <= 1e-8 + 1e-5 * first.abs());
    json!({
        "mean": number(mean),
        "mean_unweighted": number(summary::mean(&differences)),
        "mean_preview_weighted": number(
            summary::weighted_mean(&differences, &edited.0.tokens[..differences.len()])
        ),
        "std": number(summary::sample_std(&differences)),
        "min": number(differences.iter().copied().fold(f64::INFINITY, f64::min)),
        "max": number(differences.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
        "degenerate": !finite || degenerate,
        "degenerate_reason": if !finite {
            Some("non_finite_delta")
        } else if degenerate {
            Some("no_variation")
        } else {
            None
        },
    })
}

/// Whether the counts reach their floor, and the report's block about it.
fn coverage(
    floor: Option<Coverage>,
    replicates: &usize,
    edited: &(Arm, Arm),
) -> Option<(bool, Json)> {
    let floor = floor?;
    let (preview, final_) = (edited.0.ids.len(), edited.1.ids.len());
    let block = |used: usize, required: usize| json!({"used": used, "required": required, "ok": used >= required});
    let windows_ok = preview >= floor.preview && final_ >= floor.final_;
    Some((
        windows_ok,
        json!({
            "preview": block(preview, floor.preview),
            "final": block(final_, floor.final_),
            "replicates": block(*replicates, floor.replicates),
        }),
    ))
}
