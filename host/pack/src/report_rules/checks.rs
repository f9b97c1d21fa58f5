//! Demands at every profile: pairing, counts, the ratio, displayed intervals, the tokenizer, an enabled variance guard, lints, and recomputing the metric.

use serde_json::{Map, Value};

use super::{Facts, Faults};
use crate::json::get;

/// What recomputing the primary metric from the window losses gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Recomputation {
    /// `ppl`, `accuracy`, or the metric's kind.
    pub family: String,
    /// Why the claimed value is not the recomputed one, if it is not.
    pub fault: Option<String>,
}

pub(super) fn check(facts: &Facts<'_>, faults: &mut Faults) -> Option<Recomputation> {
    for fault in pairing_faults(facts.report) {
        faults.policy("report.pairing", fault);
    }
    counts(facts, faults);
    ratio(facts, faults);
    display_interval(facts, faults);
    tokenizer(facts, faults);
    variance(facts, faults);
    lints(facts, faults);
    types(facts.report, faults);
    recompute(facts, faults)
}

/// Types of fields that rules read and the schema leaves free. What could be read in two ways is not accepted in either.
fn types(report: &Value, faults: &mut Faults) {
    const RULE: &str = "report.types";
    let mut demand = |path: &[&str], what: &str, holds: fn(&Value) -> bool| {
        if get::at(report, path).is_some_and(|value| !holds(value)) {
            faults.policy(RULE, format!("{} must be {what}", path.join(".")));
        }
    };
    demand(&["baseline_ref"], "an object", |value| {
        value.is_object() || value.is_null()
    });
    demand(&["spectral", "caps_applied"], "a number", Value::is_number);
    demand(&["invariants", "status"], "a string", |value| {
        value.is_string() || value.is_null()
    });
    demand(
        &["resolved_policy", "metrics", "pm_ratio"],
        "an object",
        Value::is_object,
    );
    for key in [
        "ratio_limit_base",
        "hysteresis_ratio",
        "min_tokens",
        "min_tokens_tolerance",
    ] {
        demand(
            &["resolved_policy", "metrics", "pm_ratio", key],
            "a number",
            Value::is_number,
        );
    }
    for key in ["logloss", "token_counts"] {
        demand(
            &["evaluation_windows", "final", key],
            "an array of numbers",
            |value| {
                value
                    .as_array()
                    .is_none_or(|items| items.iter().all(Value::is_number))
            },
        );
    }
}

/// Why the windows of subject and baseline are not paired one to one.
pub(super) fn pairing_faults(report: &Value) -> Vec<String> {
    let stats = get::at(report, &["dataset", "windows", "stats"]).unwrap_or(&Value::Null);
    let mut faults = Vec::new();
    if let Some(reason) = stats
        .get("window_pairing_reason")
        .filter(|reason| !reason.is_null())
    {
        faults.push(format!(
            "the windows are not paired: window_pairing_reason is {reason}"
        ));
    }
    if stats
        .get("paired_windows")
        .and_then(get::integer)
        .is_none_or(|count| count <= 0.0)
    {
        faults.push("stats.paired_windows must be an integer above 0".to_owned());
    }
    if get::number(stats, &["window_match_fraction"]).is_none_or(|fraction| fraction < 0.999_999) {
        faults.push("stats.window_match_fraction must be at least 0.999999".to_owned());
    }
    if get::number(stats, &["window_overlap_fraction"]).is_none_or(|fraction| fraction > 1e-9) {
        faults.push("stats.window_overlap_fraction must be at most 1e-9".to_owned());
    }
    faults
}

fn counts(facts: &Facts<'_>, faults: &mut Faults) {
    let windows = get::at(facts.report, &["dataset", "windows"]).unwrap_or(&Value::Null);
    let preview = get::number(windows, &["preview"]);
    let claims = [
        (
            "stats.coverage.preview.used",
            get::number(windows, &["stats", "coverage", "preview", "used"]),
            "windows.preview",
            preview,
        ),
        (
            "stats.coverage.final.used",
            get::number(windows, &["stats", "coverage", "final", "used"]),
            "windows.final",
            get::number(windows, &["final"]),
        ),
        (
            "stats.paired_windows",
            get::number(windows, &["stats", "paired_windows"]),
            "windows.preview",
            preview,
        ),
    ];
    for (name, value, other_name, other) in claims {
        match value {
            None => faults.policy("report.counts", format!("{name} is required")),
            Some(value) if Some(value) != other => {
                faults.mismatch(
                    "report.counts",
                    format!(
                        "count mismatch: {name} is {value}, {other_name} is {}",
                        shown(other)
                    ),
                );
            }
            Some(_) => {}
        }
    }
}

/// Whether the metric is declared unusable. (Non-finite numbers cannot be written in JSON, so a declared one is an absent one here.)
fn declared_invalid(metric: &Value) -> bool {
    let reason = get::text(metric, &["degraded_reason"]).unwrap_or_default();
    get::truthy(metric.get("invalid"))
        || reason.starts_with("non_finite")
        || ["primary_metric_invalid", "evaluation_error"].contains(&reason)
}

fn ratio(facts: &Facts<'_>, faults: &mut Faults) {
    const RULE: &str = "report.ratio";
    if !facts.is_perplexity() {
        if facts.ratio.is_none() && !declared_invalid(facts.metric) {
            faults.policy(RULE, "primary_metric.ratio_vs_baseline must be a finite number, or the metric be declared invalid");
        }
        return;
    }
    let (Some(last), Some(baseline)) = (facts.last, facts.baseline) else {
        return;
    };
    if baseline <= 0.0 {
        faults.policy(
            RULE,
            format!("baseline_ref.primary_metric.final is {baseline}; a perplexity is above 0"),
        );
        return;
    }
    let expected = last / baseline;
    match facts.ratio {
        None => faults.policy(
            RULE,
            "primary_metric.ratio_vs_baseline must be a finite number",
        ),
        Some(ratio) if !close(ratio, expected, 1e-6) => {
            faults.mismatch(RULE, format!("ratio mismatch: primary_metric.ratio_vs_baseline is {ratio}, final / baseline is {expected}"));
        }
        Some(_) => {}
    }
}

/// Whether two numbers differ by at most `tolerance`; false where either is no number.
fn within(a: f64, b: f64, tolerance: f64) -> bool {
    (a - b).abs() <= tolerance
}

/// Equal within `tolerance`, relative to the larger or absolute.
fn close(a: f64, b: f64, tolerance: f64) -> bool {
    (a - b).abs() <= (tolerance * a.abs().max(b.abs())).max(tolerance)
}

fn display_interval(facts: &Facts<'_>, faults: &mut Faults) {
    if !facts.is_perplexity() || !facts.paired || facts.baseline.is_none() {
        return;
    }
    let (Some(logs), Some(display)) = (facts.pair("ci"), facts.pair("display_ci")) else {
        return;
    };
    for (bound, log, shown) in [("lower", logs.0, display.0), ("upper", logs.1, display.1)] {
        let expected = log.exp();
        // An exponential that overflows is no bound of a ratio.
        if expected.is_infinite() || !within(shown, expected, 5e-4 * expected.abs().max(1.0)) {
            faults.mismatch(
                "report.display_ci",
                format!("display_ci mismatch: the {bound} bound is {shown}, e^{log} is {expected}"),
            );
        }
    }
}

fn tokenizer(facts: &Facts<'_>, faults: &mut Faults) {
    let filled = |path: &[&str]| get::text(facts.report, path).filter(|text| !text.is_empty());
    let subject =
        filled(&["meta", "tokenizer_hash"]).or_else(|| filled(&["dataset", "tokenizer", "hash"]));
    let baseline = filled(&["baseline_ref", "tokenizer_hash"]);
    if let (Some(subject), Some(baseline)) = (subject, baseline)
        && subject != baseline
    {
        faults.mismatch(
            "report.tokenizer",
            format!("tokenizer mismatch: the subject's is {subject}, the baseline's {baseline}"),
        );
    }
}

fn variance(facts: &Facts<'_>, faults: &mut Faults) {
    const RULE: &str = "report.variance";
    let Some(block) = facts
        .report
        .get("variance")
        .filter(|block| get::truthy(block.get("enabled")))
    else {
        return;
    };
    let least = get::number(
        facts.report,
        &["resolved_policy", "variance", "min_effect_lognll"],
    )
    .unwrap_or(0.0)
    .max(0.0);
    let gate = block.get("predictive_gate").unwrap_or(&Value::Null);
    if !get::is_true(gate, &["passed"]) {
        faults.policy(
            RULE,
            "variance is enabled, but variance.predictive_gate.passed is not true",
        );
    }
    if !get::number(gate, &["mean_delta"]).is_some_and(|mean| mean < 0.0 && mean <= -least) {
        faults.policy(
            RULE,
            format!(
                "variance.predictive_gate.mean_delta must be negative and at most {}",
                -least
            ),
        );
    }
    let interval = gate
        .get("delta_ci")
        .or_else(|| gate.get("ci"))
        .and_then(super::pair);
    if !interval.is_some_and(|(low, high)| low <= high && high < 0.0 && high <= -least) {
        faults.policy(RULE, format!("variance.predictive_gate.delta_ci must be ordered with an upper bound that is negative and at most {}", -least));
    }
    let test = block.get("ab_test").unwrap_or(&Value::Null);
    let provenance = get::object(test, &["provenance"]);
    let seeded = |fields: Option<&Map<String, Value>>| {
        fields.is_some_and(|fields| {
            fields
                .iter()
                .any(|(key, value)| key.contains("seed") && !value.is_null())
        })
    };
    if !seeded(test.as_object()) && !seeded(provenance) {
        faults.policy(RULE, "variance.ab_test needs a seed");
    }
    if get::number(test, &["windows_used"]).is_none_or(|used| used <= 0.0) {
        faults.policy(RULE, "variance.ab_test.windows_used must be above 0");
    }
    if !provenance.is_some_and(|fields| {
        fields.values().any(names_windows) || fields.get("window_ids").is_some_and(filled_list)
    }) {
        faults.policy(RULE, "variance.ab_test.provenance must name its window_ids");
    }
}

/// Whether a non-empty list `window_ids` is somewhere inside. The reader bounds the depth.
fn names_windows(value: &Value) -> bool {
    match value {
        Value::Object(fields) => {
            fields.get("window_ids").is_some_and(filled_list) || fields.values().any(names_windows)
        }
        Value::Array(items) => items.iter().any(names_windows),
        _ => false,
    }
}

fn filled_list(value: &Value) -> bool {
    value.as_array().is_some_and(|items| !items.is_empty())
}

fn lints(facts: &Facts<'_>, faults: &mut Faults) {
    let Some(lints) =
        get::at(facts.report, &["meta", "model_profile", "cert_lints"]).and_then(Value::as_array)
    else {
        return;
    };
    for (index, lint) in lints.iter().enumerate() {
        if !lint_holds(facts.report, lint) {
            let message = get::text(lint, &["message"]).unwrap_or("no message");
            faults.policy(
                "report.lint",
                format!("meta.model_profile.cert_lints[{index}] does not hold: {message}"),
            );
        }
    }
}

fn lint_holds(report: &Value, lint: &Value) -> bool {
    let path: Vec<&str> = get::text(lint, &["path"])
        .unwrap_or_default()
        .split('.')
        .collect();
    let (Some(found), Some(wanted)) = (get::at(report, &path), lint.get("value")) else {
        return false;
    };
    let numbers = found.as_f64().zip(wanted.as_f64());
    match get::text(lint, &["type"]) {
        Some("equals") => found == wanted || numbers.is_some_and(|(found, wanted)| found == wanted),
        Some("gte") => numbers.is_some_and(|(found, wanted)| found >= wanted),
        Some("lte") => numbers.is_some_and(|(found, wanted)| found <= wanted),
        _ => false,
    }
}

fn recompute(facts: &Facts<'_>, faults: &mut Faults) -> Option<Recomputation> {
    const RULE: &str = "report.recompute";
    let (family, fault) = if facts.is_accuracy() {
        ("accuracy", recompute_accuracy(facts)?)
    } else {
        recompute_loss(facts)?
    };
    if let Some(fault) = &fault {
        faults.mismatch(RULE, format!("recomputation mismatch: {fault}"));
    }
    if !facts.is_accuracy()
        && let Some(ids) = get::at(facts.report, &["evaluation_windows", "final", "window_ids"])
            .and_then(Value::as_array)
    {
        let losses = get::at(facts.report, &["evaluation_windows", "final", "logloss"])
            .and_then(Value::as_array)
            .map_or(0, Vec::len);
        if ids.len() != losses {
            faults.policy(
                RULE,
                format!(
                    "evaluation_windows.final has {losses} losses but {} window ids",
                    ids.len()
                ),
            );
        }
        let distinct: std::collections::BTreeSet<String> =
            ids.iter().map(ToString::to_string).collect();
        if distinct.len() != ids.len() {
            faults.policy(RULE, "evaluation_windows.final.window_ids holds duplicates");
        }
    }
    Some(Recomputation {
        family: family.to_owned(),
        fault,
    })
}

/// Recomputes a metric that is the exponential of a mean loss. Nothing if the report does not hold the data.
fn recompute_loss<'r>(facts: &Facts<'r>) -> Option<(&'r str, Option<String>)> {
    let (losses, tokens) = window_data(facts.report)?;
    let total: f64 = tokens.iter().sum();
    let mean = losses
        .iter()
        .zip(&tokens)
        .map(|(loss, count)| loss * count)
        .sum::<f64>()
        / total;
    let family = if facts.is_perplexity() {
        "ppl"
    } else {
        facts.kind
    };
    let fault = if let Some(point) = get::number(facts.metric, &["analysis_point_final"]) {
        off(point, mean)
            .then(|| format!("analysis_point_final is {point}, the windows give {mean}"))
    } else {
        facts.last.and_then(|last| {
            off(last, mean.exp())
                .then(|| format!("final is {last}, the windows give {}", mean.exp()))
        })
    };
    Some((family, fault))
}

fn recompute_accuracy(facts: &Facts<'_>) -> Option<Option<String>> {
    let correct = get::number(facts.report, &["metrics", "classification", "n_correct"])?;
    let total = get::number(facts.report, &["metrics", "classification", "n_total"])
        .filter(|total| *total > 0.0)?;
    let accuracy = correct / total;
    Some(facts.last.and_then(|last| {
        off(last, accuracy).then(|| format!("final is {last}, the counts give {accuracy}"))
    }))
}

/// Not within 1e-9; a NaN is always off.
fn off(claimed: f64, computed: f64) -> bool {
    !within(claimed, computed, 1e-9)
}

/// Mean losses and token counts of the final windows, if both are there, of one length, and count something.
fn window_data(report: &Value) -> Option<(Vec<f64>, Vec<f64>)> {
    let numbers = |key| -> Option<Vec<f64>> {
        get::at(report, &["evaluation_windows", "final", key])?
            .as_array()?
            .iter()
            .map(Value::as_f64)
            .collect()
    };
    let (losses, tokens) = (numbers("logloss")?, numbers("token_counts")?);
    (losses.len() == tokens.len() && tokens.iter().sum::<f64>() > 0.0).then_some((losses, tokens))
}

fn shown(value: Option<f64>) -> String {
    value.map_or_else(|| "absent".to_owned(), |value| value.to_string())
}
