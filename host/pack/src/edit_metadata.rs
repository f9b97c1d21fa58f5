//! The scenario table of a pack, and whether the edit metadata beside each report agrees with it (section 12 of the format).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::json::{self, Fault, get};
use crate::layout;
use crate::paths::{Place, Root};

const METADATA_SCHEMA: &str = "invarlock/evidence-pack-edit-metadata-v1";
/// An edited checkpoint that exists to be validated.
pub(crate) const VALIDATION_SUBJECT: &str = "validation_subject_checkpoint";
/// An optimised checkpoint that is meant to be deployed.
pub(crate) const DEPLOYABLE_SUBJECT: &str = "deployable_optimized_subject";
/// A checkpoint with an injected fault.
pub(crate) const FAULT_FIXTURE: &str = "fault_injection_fixture";

/// Sidecars that a deployable subject needs, with their schemas.
const DEPLOYABLE_SIDECARS: [(&str, &str); 5] = [
    (
        "deployable_artifact_validation.json",
        "invarlock/deployable-artifact-validation-v1",
    ),
    ("backend_inventory.json", "invarlock/backend-inventory-v1"),
    (
        "memory_report.json",
        "invarlock/deployable-memory-report-v1",
    ),
    ("load_smoke.json", "invarlock/deployable-load-smoke-v1"),
    (
        "inference_smoke.json",
        "invarlock/deployable-inference-smoke-v1",
    ),
];

/// Families of edits that optional provenance may name.
const EDIT_FAMILIES: [&str; 14] = [
    "custom",
    "deployable_backend_quantization",
    "dynamic_adapter",
    "fault_injection",
    "fine_tune",
    "knowledge_edit",
    "lora_merge",
    "lowrank_approximation",
    "magnitude_prune",
    "noop",
    "pruning",
    "quantization",
    "quantization_dequantized",
    "self_edit",
];

/// The scenario table of a pack.
#[derive(Debug, Default)]
pub(crate) struct Table {
    scenarios: BTreeMap<String, Value>,
    /// Strictness by id.
    pub(crate) strictness: BTreeMap<String, String>,
    /// Why the table cannot be trusted to mean one thing, if so.
    pub(crate) fault: Option<String>,
}

impl Table {
    /// Reads the table. An absent file, or one that is no JSON, is an empty table; one that is ambiguous JSON is a fault.
    pub(crate) fn read(root: &Root) -> Self {
        let Place::File(path) = root.resolve(layout::SCENARIOS) else {
            return Self::default();
        };
        match json::read_bytes(&path, json::CONTROL_LIMIT)
            .and_then(|bytes| json::parse(&bytes))
            .and_then(json::Document::strict)
        {
            Ok(value) => Self::of(&value),
            Err(Fault::Syntax(_) | Fault::Encoding(_)) => Self::default(),
            Err(fault) => Self {
                fault: Some(format!("`{}` {fault}", layout::SCENARIOS)),
                ..Self::default()
            },
        }
    }

    /// The table in a parsed document.
    pub(crate) fn of(value: &Value) -> Self {
        let scenarios = value
            .get("scenarios")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|scenario| {
                Some((scenario.get("id")?.as_str()?.to_owned(), scenario.clone()))
            })
            .collect();
        Self {
            scenarios,
            strictness: layout::strictness_table(value),
            fault: None,
        }
    }
}

/// The artifact class of a scenario: given, or inferred from how its subject is made.
pub(crate) fn artifact_class(scenario: &Value) -> Option<&str> {
    get::text(scenario, &["artifact_class"])
        .filter(|class| !class.is_empty())
        .or_else(|| match get::text(scenario, &["generation", "kind"])? {
            "edit" => Some(VALIDATION_SUBJECT),
            "deployable_edit" => Some(DEPLOYABLE_SUBJECT),
            "error" => Some(FAULT_FIXTURE),
            _ => None,
        })
}

/// The edit type that a scenario's reports must name.
pub(crate) fn edit_type(scenario: &Value) -> Option<&str> {
    match get::text(scenario, &["generation", "edit_spec"]).filter(|spec| !spec.is_empty()) {
        Some(spec) => spec.split(':').next(),
        None => get::text(scenario, &["failure_class"])?.rsplit('.').next(),
    }
}

/// Disagreements between the table and the metadata beside the given reports.
pub(crate) fn faults(root: &Root, table: &Table, reports: &[String]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut reported = BTreeSet::new();
    for report in reports {
        let Some((id, scenario)) =
            layout::scenario_of(report).and_then(|id| table.scenarios.get_key_value(id))
        else {
            continue;
        };
        reported.insert(id.as_str());
        let Some(class) = artifact_class(scenario)
            .filter(|class| [VALIDATION_SUBJECT, DEPLOYABLE_SUBJECT].contains(class))
        else {
            continue;
        };
        let folder = report.strip_suffix(layout::REPORT).unwrap_or(report);
        for fault in report_faults(root, folder, scenario, class) {
            faults.push(format!("`{folder}`: {fault}"));
        }
    }
    for (id, scenario) in &table.scenarios {
        if artifact_class(scenario) == Some(DEPLOYABLE_SUBJECT) && !reported.contains(id.as_str()) {
            faults.push(format!("the deployable scenario `{id}` has no report"));
        }
    }
    faults
}

fn report_faults(root: &Root, folder: &str, scenario: &Value, class: &str) -> Vec<String> {
    let metadata = match sidecar(root, folder, layout::EDIT_METADATA) {
        Ok(metadata) => metadata,
        Err(fault) => return vec![fault],
    };
    let mut faults = Vec::new();
    let mut demand = |holds: bool, what: String| {
        if !holds {
            faults.push(what);
        }
    };
    let is = |key: &str, value: bool| metadata.get(key) == Some(&Value::Bool(value));
    demand(
        get::text(&metadata, &["schema"]) == Some(METADATA_SCHEMA),
        format!("edit_metadata.json: schema must be `{METADATA_SCHEMA}`"),
    );
    demand(
        get::text(&metadata, &["artifact_class"]) == Some(class),
        format!("edit_metadata.json: artifact_class must be the scenario's, `{class}`"),
    );
    let expected = edit_type(scenario);
    let found = get::text(&metadata, &["edit_type"]);
    demand(
        found.is_some() && found == expected,
        format!(
            "edit_metadata.json: edit_type is {}, the scenario's is {}",
            found.unwrap_or("absent"),
            expected.unwrap_or("unknown")
        ),
    );
    if class == VALIDATION_SUBJECT {
        demand(
            is("optimized_deployment_backend", false),
            "edit_metadata.json: optimized_deployment_backend must be false".to_owned(),
        );
        let packed_allowed = found != Some("quant_rtn");
        demand(
            packed_allowed || is("packed_quantized_storage", false),
            "edit_metadata.json: packed_quantized_storage must be false for quant_rtn".to_owned(),
        );
    } else {
        demand(
            is("optimized_deployment_backend", true),
            "edit_metadata.json: optimized_deployment_backend must be true".to_owned(),
        );
        demand(
            is("packed_quantized_storage", true),
            "edit_metadata.json: packed_quantized_storage must be true".to_owned(),
        );
    }
    faults.extend(optional_block_faults(&metadata));
    if class == DEPLOYABLE_SUBJECT {
        for (name, schema) in DEPLOYABLE_SIDECARS {
            match sidecar(root, folder, name) {
                Ok(value) => faults.extend(deployable_faults(name, schema, &value)),
                Err(fault) => faults.push(fault),
            }
        }
    }
    faults
}

fn deployable_faults(name: &str, schema: &str, value: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    let mut demand = |holds: bool, what: &str| {
        if !holds {
            faults.push(format!("{name}: {what}"));
        }
    };
    demand(
        get::text(value, &["schema"]) == Some(schema),
        &format!("schema must be `{schema}`"),
    );
    let inventory = name == "backend_inventory.json";
    let ok = value.get("ok");
    demand(
        ok == Some(&Value::Bool(true)) || (inventory && ok.is_none()),
        "ok must be true",
    );
    if inventory || name == "deployable_artifact_validation.json" {
        demand(
            get::is_true(value, &["load_smoke"]),
            "load_smoke must be true",
        );
        demand(
            get::is_true(value, &["inference_smoke"]),
            "inference_smoke must be true",
        );
    }
    if inventory {
        let count = value.get("quantized_module_count").and_then(get::integer);
        demand(
            count.is_some_and(|count| count >= 0.0),
            "quantized_module_count must be an integer of at least 0",
        );
        demand(
            value
                .get("quantized_module_types")
                .is_some_and(Value::is_array),
            "quantized_module_types must be an array",
        );
        demand(
            value.get("memory_footprint").is_some_and(Value::is_object),
            "memory_footprint must be an object",
        );
    }
    faults
}

/// Types of the optional blocks of newer writers.
fn optional_block_faults(metadata: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    for block in [
        "edit_provenance",
        "edit_impact",
        "edit_topology",
        "delta_privacy",
    ] {
        if metadata.get(block).is_some_and(|value| !value.is_object()) {
            faults.push(format!("edit_metadata.json: {block} must be an object"));
        }
    }
    let Some(provenance) = metadata
        .get("edit_provenance")
        .filter(|block| block.is_object())
    else {
        return faults;
    };
    let mut demand = |holds: bool, what: &str| {
        if !holds {
            faults.push(format!("edit_metadata.json: edit_provenance.{what}"));
        }
    };
    demand(
        get::text(provenance, &["edit_family"])
            .is_some_and(|family| EDIT_FAMILIES.contains(&family)),
        "edit_family is not a known family",
    );
    demand(
        get::text(provenance, &["edit_method"]).is_some_and(|method| !method.is_empty()),
        "edit_method must be a non-empty string",
    );
    demand(
        provenance
            .get("edit_count")
            .and_then(get::integer)
            .is_some_and(|count| count >= 1.0),
        "edit_count must be an integer of at least 1",
    );
    demand(
        provenance
            .get("dynamic_runtime_required")
            .is_none_or(Value::is_boolean),
        "dynamic_runtime_required must be true or false",
    );
    faults
}

fn sidecar(root: &Root, folder: &str, name: &str) -> Result<Value, String> {
    let Place::File(path) = root.resolve(&format!("{folder}{name}")) else {
        return Err(format!("{name} is missing"));
    };
    let value =
        json::read_strict(&path, json::CONTROL_LIMIT).map_err(|fault| format!("{name} {fault}"))?;
    if value.is_object() {
        Ok(value)
    } else {
        Err(format!("{name} must be a JSON object"))
    }
}
