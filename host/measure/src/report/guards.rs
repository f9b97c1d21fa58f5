//! What guards said, in the reference's fields: the list `guards`, the blocks `invariants`, `spectral`, `rmt` and
//! `variance`, and the flags that follow from them.
//!
//! Details that a guard states in the reference's words go where that reads them; what the reference does not have
//! (`movement`, `ours`, the probes) and every guard of our own stand under `packhost.guards`.

use super::{CHAIN, Judged, ReportInputs, Status};
use crate::canonical::{sha256_hex, to_line};
use serde_json::{Map, Value, json};

/// Figures of the block `spectral`, from the guard's details or its metrics.
const SPECTRAL: [&str; 16] = [
    "bh_family_count",
    "caps_applied",
    "caps_applied_by_family",
    "caps_exceeded",
    "deadband",
    "diagnostics",
    "families",
    "family_caps",
    "family_z_quantiles",
    "max_caps",
    "measurement_contract",
    "multiple_testing",
    "multiple_testing_selection",
    "sigma_quantile",
    "summary",
    "top_z_scores",
];

/// Figures of the block `rmt`.
const RMT: [&str; 13] = [
    "edge_risk_by_family",
    "edge_risk_by_family_base",
    "epsilon_by_family",
    "epsilon_default",
    "epsilon_violations",
    "families",
    "max_edge_delta",
    "max_edge_ratio",
    "mean_edge_delta",
    "measurement_contract",
    "mode",
    "stable",
    "status",
];

/// Figures of the block `variance`.
const VARIANCE: [&str; 18] = [
    "alpha",
    "calibration",
    "diagnostics",
    "max_calib_used",
    "min_rel_gain",
    "mode",
    "monitor_only",
    "ppl_no_ve",
    "ppl_with_ve",
    "predictive_gate",
    "proposed_scales",
    "proposed_scales_pre_edit",
    "ratio_ci",
    "scope",
    "supported",
    "tap",
    "target_module_names",
    "target_modules",
];

/// Figures that the block has under another name than the guard's metrics.
const RENAMED: [(&str, &str, &str); 3] = [
    ("spectral", "families", "family_z_summary"),
    ("variance", "enabled", "ve_enabled"),
    ("variance", "gain", "ab_gain"),
];

/// Keys of the details that only `packhost.guards` shows.
const OWN: [&str; 5] = [
    "movement",
    "ours",
    "probe",
    "modules_missing",
    "modules_rejected",
];

/// The guards of the reference's chain that judged, in order. Invariants, which open the chain, close it as well: they are
/// a function of the same tables, so the second answer is the first.
pub(super) fn chain(inputs: &ReportInputs<'_>) -> Vec<&'static str> {
    let judged = |id: &&str| inputs.judged(id).is_some();
    let mut chain: Vec<&'static str> = CHAIN.into_iter().filter(judged).collect();
    if chain.len() > 1 && chain[0] == CHAIN[0] {
        chain.push(CHAIN[0]);
    }
    chain
}

/// The list of the chain's guards.
pub(super) fn list(inputs: &ReportInputs<'_>) -> Value {
    let judged = CHAIN.into_iter().filter_map(|id| inputs.judged(id));
    judged.map(entry).collect()
}

fn entry(judged: &Judged) -> Value {
    let details = &judged.details;
    let metrics = match judged.id.as_str() {
        "invariants" => details["summary"].clone(),
        "rmt" => block_of(judged, &RMT),
        _ => details["metrics"].clone(),
    };
    let mut entry = json!({
        "name": judged.id,
        "passed": passed(judged),
        "decision": decision(judged),
        "details": if details["details"].is_object() { details["details"].clone() } else { json!({}) },
        "diagnostics": list_of(&details["diagnostics"]),
        "metrics": metrics,
        "policy": judged.policy,
        "violations": violations(judged),
    });
    for key in ["final_z_scores", "module_family_map"] {
        if details[key].is_object() {
            entry[key] = details[key].clone();
        }
    }
    entry
}

fn list_of(value: &Value) -> Value {
    match value {
        Value::Array(_) => value.clone(),
        _ => json!([]),
    }
}

fn passed(judged: &Judged) -> bool {
    judged.details["passed"]
        .as_bool()
        .unwrap_or(judged.status != Status::Fail)
}

fn decision(judged: &Judged) -> &str {
    judged.details["decision"]
        .as_str()
        .unwrap_or(match judged.status {
            Status::Pass => "allow",
            Status::Warn => "monitor",
            Status::Fail => "block",
        })
}

fn violations(judged: &Judged) -> Value {
    match &judged.details["violations"] {
        Value::Array(list) => json!(list),
        _ => json!(judged.findings),
    }
}

pub(super) fn invariants(judged: &Judged) -> Value {
    let violations = violations(judged);
    let status = match judged.status {
        Status::Pass => "pass",
        Status::Warn => "warn",
        Status::Fail => "fail",
    };
    json!({
        "decision": decision(judged),
        "details": judged.details["details"],
        "diagnostics": [],
        "failures": violations,
        "passed": passed(judged),
        "policy": judged.policy,
        "pre": "pass",
        "post": status,
        "status": status,
        "summary": judged.details["summary"],
        "violations": violations,
    })
}

/// The keys that the guard's details or metrics have, in the block's spelling.
fn block_of(judged: &Judged, keys: &[&str]) -> Value {
    let details = &judged.details;
    let renamed = RENAMED.iter().filter(|(id, ..)| *id == judged.id);
    let renamed = renamed.map(|(_, key, from)| (*key, *from));
    let same = keys.iter().map(|key| (*key, *key));
    // A renamed figure stands last: it replaces what the guard calls by the block's name.
    let figures = same.chain(renamed).filter_map(|(key, from)| {
        let found = [&details[from], &details["metrics"][from]];
        let found = found.into_iter().find(|value| !value.is_null())?;
        Some((key.to_owned(), found.clone()))
    });
    Value::Object(figures.collect())
}

/// The block of a guard that may not have judged: its figures, else a plain statement.
pub(super) fn block(inputs: &ReportInputs<'_>, guard: &str) -> Value {
    let tier = inputs.policies.tier().name();
    let Some(judged) = inputs.judged(guard) else {
        return json!({"evaluated": false, "status": "not_evaluated", "enabled": false, "tier": tier});
    };
    let keys: &[&str] = match guard {
        "spectral" => &SPECTRAL,
        "rmt" => &RMT,
        _ => &VARIANCE,
    };
    let mut block = block_of(judged, keys);
    block["decision"] = json!(decision(judged));
    block["details"] = json!({});
    block["diagnostics"] = list_of(&block["diagnostics"]);
    block["evaluated"] = json!(true);
    block["passed"] = json!(passed(judged));
    block["policy"] = judged.policy.clone();
    block["tier"] = json!(tier);
    block["violations"] = violations(judged);
    if guard == "variance" {
        block["ab_test"] = json!({
            "point_estimates": judged.details["ab_point_estimates"],
            "seed": judged.details["metrics"]["ab_seed_used"],
            "windows_used": judged.details["metrics"]["ab_windows_used"],
        });
    }
    if let Some(contract) = contract(judged) {
        // Baseline and subject are measured by one host in one run, so both followed the same contract.
        let hash = contract_hash(contract);
        block["measurement_contract_hash"] = json!(hash);
        block["baseline_measurement_contract_hash"] = json!(hash);
        block["measurement_contract_match"] = json!(true);
    }
    block
}

/// How a guard's statistics were measured, where it says so.
fn contract(judged: &Judged) -> Option<&Value> {
    let details = &judged.details;
    let stated = [
        &details["measurement_contract"],
        &details["metrics"]["measurement_contract"],
    ];
    stated.into_iter().find(|contract| contract.is_object())
}

/// First 16 hexadecimal digits of SHA-256 of the contract's canonical text, as the reference hashes it.
fn contract_hash(contract: &Value) -> String {
    sha256_hex(spaced(contract).as_bytes())[..16].to_owned()
}

/// The canonical text with a space after commas and colons, over which the reference hashes contracts.
fn spaced(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let fields = map.iter().map(|(key, value)| {
                let key = to_line(&Value::String(key.clone()));
                format!("{}: {}", key.trim_end(), spaced(value))
            });
            format!("{{{}}}", fields.collect::<Vec<_>>().join(", "))
        }
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(spaced).collect();
            format!("[{}]", items.join(", "))
        }
        scalar => to_line(scalar).trim_end().to_owned(),
    }
}

/// The run's policies, each with the measurement contract of its guard where that judged.
pub(super) fn resolved_policy(inputs: &ReportInputs<'_>) -> Value {
    let mut sections = inputs.policies.sections().clone();
    for judged in inputs.guards {
        if let (Some(Value::Object(section)), Some(contract)) =
            (sections.get_mut(&judged.id), contract(judged))
        {
            section.insert("measurement_contract".into(), contract.clone());
        }
    }
    Value::Object(sections)
}

/// A guard's flag: what it states itself, else that it did not fail; true where it did not judge.
pub(super) fn stable(inputs: &ReportInputs<'_>, guard: &str) -> bool {
    let Some(judged) = inputs.judged(guard) else {
        return true;
    };
    judged.details["flags"][format!("{guard}_stable")]
        .as_bool()
        .unwrap_or(judged.status != Status::Fail)
}

/// A guard in our own words, an entry of `packhost.guards`: who judged, by which policy, what it asked for and found.
#[must_use]
pub fn own(judged: &Judged) -> Value {
    let parity = super::is_parity(&judged.id);
    let shown = |(key, _): &(&String, &Value)| !parity || OWN.contains(&key.as_str());
    let details: Map<String, Value> = judged
        .details
        .as_object()
        .into_iter()
        .flatten()
        .filter(shown)
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let asked = judged.asked.iter().map(|request| {
        json!({"quantity": request.quantity, "scope": request.scope, "params": request.params})
    });
    json!({
        "id": judged.id,
        "version": judged.version,
        "sha256": judged.digest,
        "status": judged.status,
        "findings": judged.findings,
        "policy": judged.policy,
        "asked": asked.collect::<Vec<_>>(),
        "details": details,
        "fuel": judged.fuel,
    })
}

/// Who found something, in one line for people: `fail: spectral, rmt; warn: variance`, or that all pass.
#[must_use]
pub fn statuses(report: &Value) -> String {
    let guards = report["packhost"]["guards"].as_array();
    let guards = guards.map_or(&[][..], Vec::as_slice);
    let with = |status: &str| {
        let of = guards.iter().filter(|guard| guard["status"] == status);
        let ids: Vec<&str> = of.filter_map(|guard| guard["id"].as_str()).collect();
        (!ids.is_empty()).then(|| format!("{status}: {}", ids.join(", ")))
    };
    let found: Vec<String> = ["fail", "warn"].into_iter().filter_map(with).collect();
    match found.is_empty() {
        true => format!("{} guards pass", guards.len()),
        false => found.join("; "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contracts_hash_as_in_the_references_reports() {
        let contract = json!({
            "activation_sampling": {"windows": {"count": 8, "indices_policy": "evenly_spaced"}},
            "estimator": {"init": "ones", "iters": 3, "type": "power_iter"},
            "kind": "activation_edge_risk",
        });
        assert_eq!(contract_hash(&contract), "7ca43124fc6a2823");
    }

    #[test]
    fn who_found_something_in_one_line() {
        let guard = |id: &str, status: &str| json!({"id": id, "status": status});
        let line = |guards: Vec<Value>| statuses(&json!({"packhost": {"guards": guards}}));
        assert_eq!(
            line(vec![guard("a", "pass"), guard("b", "pass")]),
            "2 guards pass"
        );
        assert_eq!(
            line(vec![
                guard("a", "warn"),
                guard("b", "fail"),
                guard("c", "fail")
            ]),
            "fail: b, c; warn: a"
        );
        assert_eq!(line(vec![]), "0 guards pass");
    }
}
