//! Further demands of the profiles ci and release: evidence, drift, the primary metric's limits, measurement contracts, and the report's own flags.

use serde_json::{Map, Value};

use super::{Facts, Faults, Kind, Profile, Recomputation};
use crate::canonical;
use crate::digest;
use crate::json::get;

/// Limits of a tier, used only where the report carries no policy.
struct Tier {
    ratio_limit: f64,
    min_tokens: f64,
    hysteresis_ratio: f64,
    delta_min_pp: f64,
    hysteresis_delta_pp: f64,
    min_examples: f64,
}

const BALANCED: Tier = Tier {
    ratio_limit: 1.10,
    min_tokens: 50_000.0,
    hysteresis_ratio: 0.002,
    delta_min_pp: -1.0,
    hysteresis_delta_pp: 0.1,
    min_examples: 200.0,
};
const CONSERVATIVE: Tier = Tier {
    ratio_limit: 1.05,
    min_tokens: 20_000.0,
    delta_min_pp: -0.5,
    ..BALANCED
};
const AGGRESSIVE: Tier = Tier {
    ratio_limit: 1.20,
    delta_min_pp: -2.0,
    ..BALANCED
};

pub(super) fn check(
    facts: &Facts<'_>,
    profile: Profile,
    recomputation: Option<&Recomputation>,
    faults: &mut Faults,
) {
    let tiny = facts.tiny_relax();
    evidence(facts, tiny, recomputation, faults);
    drift(facts, tiny, faults);
    gate(facts, tiny, faults);
    for guard in ["spectral", "rmt"] {
        contract(facts.report, guard, faults);
    }
    if profile == Profile::Release {
        flags(facts.report, faults);
    }
}

fn evidence(
    facts: &Facts<'_>,
    tiny: bool,
    recomputation: Option<&Recomputation>,
    faults: &mut Faults,
) {
    if !get::truthy(get::at(
        facts.report,
        &["provenance", "provider_digest", "ids_sha256"],
    )) {
        faults.add("report.evidence", Kind::Evidence, "provenance.provider_digest.ids_sha256 is required: it names the windows that were used");
    }
    if recomputation.is_none() && !tiny {
        faults.add(
            "report.evidence",
            Kind::Evidence,
            "the data for recomputing the primary metric is required: losses and token counts of the final windows, or the counts of a classification",
        );
    }
    if facts.is_perplexity() && facts.paired && facts.baseline.is_some() {
        for key in ["ci", "display_ci"] {
            if facts.pair(key).is_none() {
                faults.policy(
                    "report.interval",
                    format!("primary_metric.{key} is required as two numbers"),
                );
            }
        }
    }
}

fn drift(facts: &Facts<'_>, tiny: bool, faults: &mut Faults) {
    const RULE: &str = "report.drift";
    if tiny
        || get::truthy(facts.metric.get("invalid"))
        || !(facts.is_perplexity() || facts.is_accuracy())
    {
        return;
    }
    let (Some(preview), Some(last)) = (facts.preview, facts.last) else {
        faults.policy(
            RULE,
            "drift needs primary_metric.preview and primary_metric.final",
        );
        return;
    };
    if facts.is_accuracy() {
        let policy = get::at(facts.report, &["resolved_policy", "metrics", "accuracy"])
            .unwrap_or(&Value::Null);
        let limit = get::number(policy, &["preview_final_delta_pp_max"])
            .or_else(|| get::number(policy, &["hysteresis_delta_pp"]))
            .unwrap_or(0.1);
        if (last - preview).abs() > limit {
            faults.policy(
                RULE,
                format!(
                    "accuracy drifts by {} from preview to final, more than {limit}",
                    (last - preview).abs()
                ),
            );
        }
        return;
    }
    let (low, high) = facts
        .metric
        .get("drift_band")
        .and_then(range)
        .and_then(|(low, high)| low.zip(high))
        .unwrap_or((0.95, 1.05));
    let ratio = last / preview;
    if !(low..=high).contains(&ratio) {
        faults.policy(
            RULE,
            format!("drift final / preview is {ratio}, outside {low} to {high}"),
        );
    }
}

/// A range given as `{min, max}` or as a pair; either bound may be absent in the first form.
fn range(value: &Value) -> Option<(Option<f64>, Option<f64>)> {
    if let Some((low, high)) = super::pair(value) {
        return Some((Some(low), Some(high)));
    }
    let bounds = (get::number(value, &["min"]), get::number(value, &["max"]));
    (bounds != (None, None)).then_some(bounds)
}

fn gate(facts: &Facts<'_>, tiny: bool, faults: &mut Faults) {
    const RULE: &str = "report.primary_metric";
    let tier = match get::text(facts.report, &["auto", "tier"]) {
        _ if tiny => AGGRESSIVE,
        Some("conservative") => CONSERVATIVE,
        Some("aggressive") => AGGRESSIVE,
        _ => BALANCED,
    };
    let policy = get::at(facts.report, &["resolved_policy", "metrics"])
        .filter(|policy| policy.as_object().is_some_and(|fields| !fields.is_empty()));
    if facts.is_perplexity() {
        perplexity_gate(facts, policy, &tier, tiny, faults);
    } else if facts.is_accuracy() {
        // When the report carries a policy, only that counts: an absent accuracy block means these defaults.
        let limit = |key, default: f64, of_tier: f64| {
            policy.map_or(of_tier, |policy| {
                get::number(policy, &["accuracy", key]).unwrap_or(default)
            })
        };
        let least = limit("delta_min_pp", -1.0, tier.delta_min_pp)
            - limit("hysteresis_delta_pp", 0.0, tier.hysteresis_delta_pp).max(0.0);
        if facts.ratio.is_none_or(|delta| delta < least) {
            faults.policy(
                RULE,
                format!(
                    "the accuracy change must be a number of at least {least} percentage points"
                ),
            );
        }
        let examples = limit("min_examples", 200.0, tier.min_examples);
        if let Some(count) = facts.metric.get("n_final")
            && count.as_f64().is_none_or(|count| count < examples)
        {
            faults.policy(
                RULE,
                format!(
                    "primary_metric.n_final is {count}; at least {examples} examples are needed"
                ),
            );
        }
    } else {
        faults.policy(
            RULE,
            format!("no limit is defined for metrics of kind {}", facts.kind),
        );
    }
}

fn perplexity_gate(
    facts: &Facts<'_>,
    policy: Option<&Value>,
    tier: &Tier,
    tiny: bool,
    faults: &mut Faults,
) {
    const RULE: &str = "report.primary_metric";
    let of_policy = |key| policy.and_then(|policy| get::number(policy, &["pm_ratio", key]));
    let acceptance = get::at(
        facts.report,
        &["context", "primary_metric", "acceptance_range"],
    )
    .and_then(range)
    .or_else(|| get::at(facts.report, &["meta", "pm_acceptance_range"]).and_then(range))
    .map(|(_, high)| high.unwrap_or(1.10));
    let base = acceptance
        .or_else(|| of_policy("ratio_limit_base"))
        .unwrap_or(tier.ratio_limit);
    let hysteresis = if policy.is_some() {
        of_policy("hysteresis_ratio").unwrap_or(0.0)
    } else {
        tier.hysteresis_ratio
    };
    let limit = base + hysteresis.max(0.0);
    match facts.ratio {
        None => faults.policy(
            RULE,
            "primary_metric.ratio_vs_baseline must be a finite number",
        ),
        Some(ratio) if ratio > limit => {
            faults.policy(
                RULE,
                format!("the perplexity ratio {ratio} is above its limit {limit}"),
            );
        }
        Some(_) => {}
    }
    let tokens = get::number(facts.report, &["telemetry", "preview_total_tokens"])
        .zip(get::number(
            facts.report,
            &["telemetry", "final_total_tokens"],
        ))
        .map(|(preview, last)| preview + last);
    if let Some(tokens) = tokens.filter(|_| !tiny) {
        let floor = if policy.is_some() {
            of_policy("min_tokens").unwrap_or(0.0)
        } else {
            tier.min_tokens
        };
        let tolerance = if covered(facts.report) {
            of_policy("min_tokens_tolerance")
                .unwrap_or(0.02)
                .clamp(0.0, 1.0)
        } else {
            0.0
        };
        if tokens < floor * (1.0 - tolerance) {
            faults.policy(
                RULE,
                format!("{tokens} tokens were scored; at least {floor} are needed"),
            );
        }
    }
}

/// Whether the coverage of both window sets is declared sufficient.
fn covered(report: &Value) -> bool {
    ["preview", "final"].iter().all(|part| {
        let coverage = get::at(report, &["dataset", "windows", "stats", "coverage", part])
            .unwrap_or(&Value::Null);
        let enough = get::number(coverage, &["used"])
            .zip(get::number(coverage, &["required"]))
            .is_some_and(|(used, required)| used >= required);
        get::is_true(coverage, &["ok"]) || enough
    })
}

/// First 16 hex digits of the SHA-256 of a measurement contract in its one-line form.
pub(crate) fn contract_hash(contract: &Value) -> String {
    digest::hex(canonical::to_line(contract).as_bytes())[..16].to_owned()
}

fn contract(report: &Value, guard: &str, faults: &mut Faults) {
    const RULE: &str = "report.contract";
    let block = report.get(guard).unwrap_or(&Value::Null);
    if block.get("evaluated") == Some(&Value::Bool(false)) {
        return;
    }
    let filled = |value: &&Value| {
        value
            .as_object()
            .is_some_and(|fields: &Map<String, Value>| !fields.is_empty())
    };
    let Some(contract) = block.get("measurement_contract").filter(filled) else {
        faults.policy(
            RULE,
            format!("{guard}.measurement_contract is required as a non-empty object"),
        );
        return;
    };
    let hash = contract_hash(contract);
    match get::text(block, &["measurement_contract_hash"]) {
        None => faults.policy(
            RULE,
            format!("{guard}.measurement_contract_hash is required"),
        ),
        Some(claimed) if claimed != hash => {
            faults.mismatch(RULE, format!("contract hash mismatch: {guard}.measurement_contract_hash is {claimed}, the contract's is {hash}"));
        }
        Some(_) => {}
    }
    match get::at(report, &["resolved_policy", guard, "measurement_contract"]).filter(filled) {
        None => faults.policy(
            RULE,
            format!("resolved_policy.{guard}.measurement_contract is required"),
        ),
        Some(policy) if contract_hash(policy) != hash => {
            faults.policy(RULE, format!("resolved_policy.{guard}.measurement_contract is another than {guard}.measurement_contract"));
        }
        Some(_) => {}
    }
    if !get::is_true(block, &["measurement_contract_match"]) {
        faults.policy(
            RULE,
            format!("{guard}.measurement_contract_match must be true"),
        );
    }
}

fn flags(report: &Value, faults: &mut Faults) {
    const RULE: &str = "report.flags";
    let validation = report.get("validation").unwrap_or(&Value::Null);
    let mut required = vec![
        "primary_metric_acceptable",
        "preview_final_drift_acceptable",
        "invariants_pass",
        "spectral_stable",
        "rmt_stable",
    ];
    if validation.get("primary_metric_tail_acceptable").is_some()
        || report.get("primary_metric_tail").is_some()
    {
        required.push("primary_metric_tail_acceptable");
    }
    for flag in required {
        if !get::is_true(validation, &[flag]) {
            faults.policy(RULE, format!("validation.{flag} must be true"));
        }
    }
    let Some(overhead) =
        get::object(report, &["guard_overhead"]).filter(|fields| !fields.is_empty())
    else {
        faults.policy(RULE, "guard_overhead is required as a non-empty object");
        return;
    };
    let skipped = overhead.get("skipped") == Some(&Value::Bool(true))
        || overhead.get("mode").and_then(Value::as_str) == Some("skipped");
    if skipped {
        return;
    }
    if overhead.get("evaluated") != Some(&Value::Bool(true))
        || !overhead.get("overhead_ratio").is_some_and(Value::is_number)
    {
        faults.policy(
            RULE,
            "guard_overhead must be skipped, or evaluated with an overhead_ratio",
        );
    }
    if !get::is_true(validation, &["guard_overhead_acceptable"]) {
        faults.policy(RULE, "validation.guard_overhead_acceptable must be true");
    }
}
