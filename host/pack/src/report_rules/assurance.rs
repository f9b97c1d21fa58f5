//! Strict assurance: the canonical guard chain ran, nothing was synthesised, no guard blocks, and the runtime is known.

use serde_json::Value;

use super::{Assurance, Faults, Provenance};
use crate::json::get;

/// The claim that strict assurance makes.
const CLAIM_SET: &str = "invarlock-weight-edit-regression-v1";
/// The guards that must have run, in this order.
const GUARD_CHAIN: [&str; 5] = ["invariants", "spectral", "rmt", "variance", "invariants"];

/// Whether strict assurance is in force for this report.
pub(super) fn in_force(report: &Value, mode: Assurance) -> bool {
    match mode {
        Assurance::Off => false,
        Assurance::Strict => true,
        Assurance::Report => own_mode(report) == "strict",
    }
}

fn own_mode(report: &Value) -> &str {
    first_text(
        report,
        &[&["assurance", "mode"], &["context", "assurance", "mode"]],
    )
    .unwrap_or("off")
}

/// The first of several places that holds a text.
fn first_text<'v>(report: &'v Value, places: &[&[&str]]) -> Option<&'v str> {
    places.iter().find_map(|place| get::text(report, place))
}

pub(super) fn check(report: &Value, mode: Assurance, provenance: &Provenance, faults: &mut Faults) {
    const RULE: &str = "report.assurance";
    let mut demand = |holds: bool, message: &str| {
        if !holds {
            faults.policy(RULE, format!("strict assurance: {message}"));
        }
    };
    if mode == Assurance::Strict {
        demand(
            own_mode(report) == "strict",
            "the report's own assurance mode must be strict",
        );
    }
    let block = report.get("assurance").unwrap_or(&Value::Null);
    demand(block.is_object(), "the block `assurance` is required");
    demand(
        get::text(block, &["claim_set"]) == Some(CLAIM_SET),
        "assurance.claim_set is another or absent",
    );
    demand(
        get::text(block, &["mode"]) == Some("strict"),
        "assurance.mode must be strict",
    );
    demand(
        verdict_holds(block),
        "assurance.verdict must be `pass`, or `pending_verifier` with no local verdict other than `pass`",
    );
    demand(
        get::is_true(block, &["canonical_guard_chain_enforced"]),
        "assurance.canonical_guard_chain_enforced must be true",
    );
    demand(
        !get::is_true(block, &["fallback_fields_used"]),
        "assurance.fallback_fields_used must not be true",
    );
    demand(
        !get::truthy(block.get("blocking_reasons")),
        "assurance.blocking_reasons must be empty",
    );
    let profile = first_text(
        report,
        &[&["assurance", "profile"], &["context", "profile"]],
    );
    demand(
        profile.is_some_and(|profile| ["ci", "release"].contains(&profile)),
        "the report's profile must be ci or release",
    );
    let tier = first_text(
        report,
        &[
            &["assurance", "tier"],
            &["auto", "tier"],
            &["context", "auto", "tier"],
            &["context", "tier"],
        ],
    );
    demand(
        tier.is_some_and(|tier| ["balanced", "conservative"].contains(&tier)),
        "the tier must be balanced or conservative",
    );
    demand(
        guard_chain(report) == GUARD_CHAIN,
        "the guards must have run as invariants, spectral, rmt, variance, invariants",
    );
    for key in ["synthesized_fields", "repaired_fields", "fallback_fields"] {
        let events = get::at(report, &["report_build", key]);
        demand(
            only_harmless(events),
            &format!("report_build.{key} must be empty"),
        );
    }
    demand(
        provenance.verified,
        "the runtime provenance must be verified",
    );
    for guard in ["spectral", "rmt", "variance", "invariants"] {
        if let Err(reason) = guard_holds(report.get(guard)) {
            demand(false, &format!("guard `{guard}` {reason}"));
        }
    }
}

fn verdict_holds(block: &Value) -> bool {
    match get::text(block, &["verdict"]) {
        Some("pass") => true,
        Some("pending_verifier") => match block.get("report_local_verdict") {
            None | Some(Value::Null) => true,
            Some(verdict) => verdict.as_str() == Some("pass"),
        },
        _ => false,
    }
}

/// The chain that was observed, from the first place that has one.
fn guard_chain(report: &Value) -> Vec<&str> {
    for place in [
        &["assurance", "guard_chain_observed"][..],
        &["context", "guard_chain_observed"],
        &["guards"],
        &["plugins", "guards"],
    ] {
        if let Some(items) = get::at(report, place).and_then(Value::as_array) {
            return items
                .iter()
                .filter_map(|item| item.as_str().or_else(|| item.get("name")?.as_str()))
                .collect();
        }
    }
    Vec::new()
}

/// Whether a list of build events is absent, empty, or says only that the displayed interval was computed from the interval.
fn only_harmless(events: Option<&Value>) -> bool {
    match events {
        None | Some(Value::Null) => true,
        Some(Value::Array(events)) => events.iter().all(|event| {
            get::text(event, &["field"]) == Some("primary_metric.display_ci")
                && get::text(event, &["reason"]) == Some("computed_from_primary_metric_ci")
        }),
        Some(_) => false,
    }
}

fn guard_holds(block: Option<&Value>) -> Result<(), &'static str> {
    let Some(fields) = block
        .and_then(Value::as_object)
        .filter(|fields| !fields.is_empty())
    else {
        return Err("has no result");
    };
    let is = |key: &str, value: bool| fields.get(key) == Some(&Value::Bool(value));
    if is("supported", false) && is("assurance_blocking", true) {
        return Err("is not supported for this model, which blocks assurance");
    }
    let status = fields
        .get("status")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if ["degraded", "monitor-only", "monitor_only"].contains(&status) {
        return Err("ran degraded or only as a monitor");
    }
    let given = |key: &str| fields.get(key).is_some_and(|value| !value.is_null());
    if !given("decision") && !given("passed") {
        let evident = ["ok", "pass", "passed"].contains(&status) || given("supported");
        return if evident {
            Ok(())
        } else {
            Err("says neither whether it passed nor what it decided")
        };
    }
    let blocks = match fields
        .get("decision")
        .filter(|decision| !decision.is_null())
    {
        Some(decision) => decision.as_str() == Some("block"),
        None => !get::truthy(fields.get("passed")),
    };
    if is("passed", false) || blocks {
        Err("blocks")
    } else {
        Ok(())
    }
}
