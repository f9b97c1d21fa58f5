//! Summaries that sealing adds to a run: which kinds of subjects the evidence is about.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::edit_metadata::{
    DEPLOYABLE_SUBJECT, FAULT_FIXTURE, VALIDATION_SUBJECT, artifact_class, edit_type,
};
use crate::json::get;

/// `results/analysis/edit_artifact_summary.json`. `metadata` is the edit metadata found in the pack, by scenario id.
pub(crate) fn edit_artifacts(scenarios: &Value, metadata: &BTreeMap<String, Value>) -> Value {
    let mut by_scenario = Map::new();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut backends: Vec<&str> = Vec::new();
    for scenario in scenarios
        .get("scenarios")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let (Some(id), Some(class)) = (get::text(scenario, &["id"]), artifact_class(scenario))
        else {
            continue;
        };
        *counts.entry(class).or_default() += 1;
        let mut entry = json!({
            "artifact_class": class,
            "category": scenario.get("category"),
            "failure_class": scenario.get("failure_class"),
            "generation_kind": get::at(scenario, &["generation", "kind"]),
        });
        if class != FAULT_FIXTURE {
            entry["edit_type"] = json!(edit_type(scenario));
            entry["metadata_present"] = json!(metadata.contains_key(id));
            if let Some(metadata) = metadata.get(id) {
                for key in [
                    "optimized_deployment_backend",
                    "packed_quantized_storage",
                    "runtime_memory_reduction",
                    "storage_format",
                ] {
                    if let Some(value) = metadata.get(key) {
                        entry[key] = value.clone();
                    }
                }
            }
        }
        if class == DEPLOYABLE_SUBJECT
            && let Some(backend) = get::text(scenario, &["generation", "backend"])
            && !backends.contains(&backend)
        {
            backends.push(backend);
        }
        by_scenario.insert(id.to_owned(), entry);
    }
    backends.sort_unstable();
    let has = |class: &str| counts.contains_key(class);
    let deployable = counts.get(DEPLOYABLE_SUBJECT).copied().unwrap_or(0);
    json!({
        "schema": "invarlock/evidence-pack-edit-artifact-summary-v1",
        "counts": counts,
        "evidence_lanes": {
            "validation_subjects": has(VALIDATION_SUBJECT),
            "deployable_subjects": has(DEPLOYABLE_SUBJECT),
            "fault_injection": has(FAULT_FIXTURE),
        },
        // A pack is sealed with a deployable subject only if its sidecars say that both smoke tests passed.
        "deployable_subjects": {
            "count": deployable,
            "backends": backends,
            "all_reload_smokes_passed": deployable > 0,
            "all_inference_smokes_passed": deployable > 0,
        },
        "by_scenario": by_scenario,
    })
}
