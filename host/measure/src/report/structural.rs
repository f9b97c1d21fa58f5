//! The report about a subject that could not be run at all: a missing tensor, a shape that fits no layer, a checkpoint
//! that cannot be read. The damage is certain, so every flag that it concerns is false.

use super::{ReportInputs, blocks, guards};
use crate::canonical::to_line;
use serde_json::{Value, json};

/// What went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StructuralFailure<'a> {
    /// Type of the fault, such as `shape_mismatch`, or `evaluation` where none was injected.
    pub kind: &'a str,
    /// Why the subject cannot be run.
    pub message: &'a str,
}

/// The structural-failure report. What the guards that could judge found stands under `invariants` and `packhost`.
#[must_use]
pub fn structural_failure(inputs: &ReportInputs<'_>, failure: &StructuralFailure<'_>) -> Value {
    let run_id = format!(
        "{}-structural-failure-{}",
        inputs.subject.run_id, failure.kind
    );
    let metric = json!({
        "kind": "ppl_causal",
        "unit": "ppl",
        "direction": "lower",
        "aggregation_scope": "token",
        "gating_basis": "upper",
        "paired": true,
        "invalid": true,
        "degraded": true,
        "degraded_reason": "structural_failure",
    });
    let marker = json!({
        "format": "evidence-pack-structural-failure-report-v1",
        "type": failure.kind,
        "message": failure.message,
        "baseline_model": inputs.baseline.model_id,
        "subject_model": inputs.subject.model_id,
        "source_run_id": inputs.subject.run_id,
    });
    let fault = json!({
        "check": "error_injection",
        "type": "evidence_pack_structural_failure",
        "severity": "fatal",
        "message": failure.message,
    });
    let mut invariants = match inputs.judged("invariants") {
        Some(judged) => guards::invariants(judged),
        None => json!({"details": {}, "policy": inputs.policies.section("invariants")}),
    };
    let mut failures = vec![fault];
    if let Some(found) = invariants["violations"].as_array() {
        failures.extend(found.iter().cloned());
    }
    invariants["failures"] = json!(failures);
    invariants["violations"] = json!(failures);
    invariants["status"] = json!("fail");
    invariants["post"] = json!("fail");
    invariants["passed"] = json!(false);
    invariants["decision"] = json!("block");
    let fatal = invariants["summary"]["fatal_violations"]
        .as_u64()
        .unwrap_or(0);
    invariants["summary"] = json!({
        "fatal_violations": fatal + 1,
        "warning_violations": invariants["summary"]["warning_violations"].as_u64().unwrap_or(0),
        "violations_found": failures.len(),
    });
    let mut meta = blocks::meta(inputs);
    meta["structural_failure"] = marker.clone();
    let own = blocks::own(inputs, &Value::Null);
    let not_run = json!({"status": "structural_failure", "evaluated": false});
    json!({
        "schema_version": "v1",
        "run_id": run_id,
        "_evidence_pack_structural_failure": marker,
        "artifacts": blocks::artifacts(inputs),
        "assurance": blocks::assurance(inputs),
        "auto": blocks::auto(inputs),
        "baseline_ref": blocks::baseline_ref(inputs, None),
        "context": blocks::context(inputs),
        "dataset": blocks::dataset(inputs, None),
        "edit": blocks::edit(inputs),
        "edit_name": inputs.edit.name,
        "guard_overhead": {"evaluated": true, "mode": "structural_failure"},
        "guards": guards::list(inputs),
        "invariants": invariants,
        "meta": meta,
        "packhost": {
            "schema": "packhost-report-v1",
            "structural_failure": failure.message,
            "guards": own["guards"],
            "tables": own["tables"],
        },
        "plugins": {},
        "policy_digest": blocks::policy_digest(inputs),
        "policy_provenance": blocks::policy_provenance(inputs),
        "primary_metric": metric,
        "provenance": blocks::provenance(inputs, None),
        "report_build": {"fallback_fields": [], "repaired_fields": [], "synthesized_fields": []},
        "resolved_policy": Value::Object(inputs.policies.sections().clone()),
        "rmt": not_run,
        "spectral": not_run,
        "structure": blocks::structure(inputs),
        "validation": {
            "guard_overhead_acceptable": true,
            "invariants_pass": false,
            "preview_final_drift_acceptable": false,
            "primary_metric_acceptable": false,
            "primary_metric_tail_acceptable": false,
            "rmt_stable": false,
            "spectral_stable": false,
        },
        "variance": not_run,
    })
}

/// A stable id of a run from what it compared: the first 16 hexadecimal digits of a SHA-256.
#[must_use]
pub fn run_id(parts: &[&str]) -> String {
    crate::canonical::sha256_hex(to_line(&json!(parts)).as_bytes())[..16].to_owned()
}
