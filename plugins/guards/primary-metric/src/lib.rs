//! The primary metric: did the change raise the model's perplexity on the same windows by more than the tier allows?
//!
//! Decides from three kinds of rows per arm (`preview`, `final`): `window.ids`, `window.loss` (mean natural-log loss per
//! window) and `window.tokens` (real tokens per window). The final arm decides, the preview arm only enters drift. The
//! baseline's and the subject's windows must be the same ones.
//!
//! Gated: the ratio of final perplexities (with hysteresis, and a token floor), drift of the subject between its arms,
//! and the tail of window losses where the policy says so. Everything else in `details` is for the report; figures of our
//! own (closed-form interval, divergence) stand under `ours`.

mod evaluation;
mod gates;
mod policy;
mod tail;
#[cfg(test)]
mod tests;

use evaluation::Evaluation;
use packhost_sdk::json::{Value as Json, json};
use packhost_sdk::stats::drift;
use packhost_sdk::{
    About, Failure, Finding, Guard, ModelInfo, Request, Result, Status, Step, Table, Value,
    Verdict, export_guard,
};
use policy::{Band, Policy, TailMode};

struct PrimaryMetric;

impl Guard for PrimaryMetric {
    const ABOUT: About = About {
        id: "primary-metric",
        version: env!("CARGO_PKG_VERSION"),
        title: "Perplexity against the baseline on paired windows",
    };
    type Policy = Policy;

    fn plan(policy: &Policy, _model: &ModelInfo) -> Result<Vec<Request>> {
        policy.check()?;
        let arms = ["preview", "final"];
        let quantities = ["window.ids", "window.loss", "window.tokens"];
        let mut requests: Vec<Request> = arms
            .into_iter()
            .flat_map(|arm| quantities.map(|quantity| Request::new(quantity, arm)))
            .collect();
        let scopes = ["final", "model"];
        requests.extend(
            scopes
                .into_iter()
                .flat_map(|scope| DIVERGENCE.map(|quantity| Request::new(quantity, scope))),
        );
        Ok(requests)
    }

    fn judge(policy: &Policy, baseline: &Table, subject: &Table) -> Result<Step> {
        policy.check()?;
        let evaluation = Evaluation::new(policy, baseline, subject)?;
        let flags = gates::Flags::new(policy, &evaluation);
        let tail = tail::evaluate(&policy.pm_tail, &evaluation.deltas, &evaluation.weights);
        let findings = findings(policy, &evaluation, &flags, &tail);
        let tail_fails = policy.pm_tail.mode == TailMode::Fail && !tail.passed;
        let failed = !flags.acceptable || !flags.drift_acceptable || tail_fails;
        let status = if failed || evaluation.degraded_reason.is_some() {
            Status::Fail
        } else if findings.is_empty() {
            Status::Pass
        } else {
            Status::Warn
        };
        let mut details = evaluation.details();
        details["acceptance"] = flags.details();
        details["tail"] = tail.details(&policy.pm_tail);
        details["flags"] = json!({
            "primary_metric_acceptable": flags.acceptable,
            "preview_final_drift_acceptable": flags.drift_acceptable,
            "primary_metric_tail_acceptable": !tail_fails,
            "hysteresis_applied": flags.hysteresis_applied,
        });
        details["ours"]["divergence"] = divergence(subject);
        Ok(Step::Verdict(Verdict {
            status,
            findings,
            details,
        }))
    }

    /// The drift band that repeated runs of the unedited model suggest; the rest of the policy stays.
    fn calibrate(policy: &Policy, runs: &[Table]) -> Result<Policy> {
        policy.check()?;
        let ratios = runs
            .iter()
            .map(|run| {
                let arm = |arm| evaluation::perplexity_of(run, arm);
                Ok(arm("final")? / arm("preview")?)
            })
            .collect::<Result<Vec<f64>>>()?;
        let summary = drift::summarize(&ratios).ok_or_else(|| {
            Failure::failed(format!(
                "calibration needs at least one run with finite perplexities, got drifts {ratios:?}"
            ))
        })?;
        let mut policy = policy.clone();
        if summary.usable() {
            let (min, max) = summary.band;
            policy.drift_band = Some(Band { min, max });
        }
        Ok(policy)
    }
}

export_guard!(PrimaryMetric);

/// Figures about every scored token, of the final arm and of both (`model`), reported beside the metric and not gated.
const DIVERGENCE: [&str; 5] = ["kl.mean", "kl.median", "kl.p99", "kl.max", "same_top.share"];

/// The divergence figures that the subject's table has; a baseline judged against itself has none.
fn divergence(subject: &Table) -> Json {
    let of = |scope: &str| {
        let rows = DIVERGENCE
            .iter()
            .filter_map(|quantity| match subject.get(scope, quantity) {
                Some(Value::Number(value)) => Some(((*quantity).to_owned(), number(*value))),
                _ => None,
            });
        Json::Object(rows.collect())
    };
    json!({"final": of("final"), "all_scored_tokens": of("model")})
}

/// JSON has no word for NaN and infinities: they become null, and `degraded_reason` says why.
fn number(value: f64) -> Json {
    if value.is_finite() {
        json!(value)
    } else {
        Json::Null
    }
}

fn findings(
    policy: &Policy,
    evaluation: &Evaluation,
    flags: &gates::Flags,
    tail: &tail::Tail,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |scope: &str, code: &str, message: String, value: f64, limit: f64| {
        findings.push(Finding {
            scope: scope.to_owned(),
            code: code.to_owned(),
            message,
            value: value.is_finite().then_some(value),
            limit: limit.is_finite().then_some(limit),
        });
    };
    if let Some(reason) = evaluation.degraded_reason {
        let message = format!(
            "the metric is {}: {} of {} windows of the subject have no finite loss",
            if evaluation.invalid {
                "invalid"
            } else {
                "degraded"
            },
            evaluation.skipped,
            evaluation.windows
        );
        add("final", reason, message, evaluation.skipped as f64, 0.0);
    }
    let (ratio, limit) = (evaluation.ratio, flags.limit + flags.hysteresis);
    if ratio > limit {
        let message = format!("perplexity rose to {ratio:.6} of the baseline's, limit {limit}");
        add("final", "ratio_over_limit", message, ratio, limit);
    }
    if let Some(min) = flags.min.filter(|min| ratio < *min) {
        let message =
            format!("perplexity fell to {ratio:.6} of the baseline's, least accepted {min}");
        add("final", "ratio_under_minimum", message, ratio, min);
    }
    if !flags.tokens_acceptable {
        let (tokens, floor) = (evaluation.tokens(), flags.token_floor);
        let message = format!("{tokens} tokens were scored, the tier demands {floor}");
        add("model", "token_floor", message, tokens, floor);
    }
    if !flags.drift_acceptable && evaluation.drift.is_finite() {
        let band = flags.band;
        let drift = evaluation.drift;
        let message = format!(
            "final over preview perplexity is {drift:.6}, outside [{}, {}]",
            band.min, band.max
        );
        let limit = if drift < band.min { band.min } else { band.max };
        add("model", "drift", message, drift, limit);
    }
    if policy.pm_tail.mode != TailMode::Off {
        for violation in &tail.violations {
            let message = format!(
                "{}: {:.6} exceeds {}",
                violation.code, violation.observed, violation.threshold
            );
            add(
                "final",
                violation.code,
                message,
                violation.observed,
                violation.threshold,
            );
        }
    }
    findings
}
