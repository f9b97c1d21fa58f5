//! The schema of a report: required fields and the types of known ones. Unknown top-level fields are free.

use serde_json::{Map, Value};

use super::{Faults, Kind};
use crate::json::get;

/// The id of this rule.
pub(super) const RULE: &str = "report.schema";

const KINDS: [&str; 7] = [
    "accuracy",
    "bleu",
    "f1",
    "ppl_causal",
    "ppl_mlm",
    "ppl_seq2seq",
    "rouge",
];

const VALIDATION_KEYS: [&str; 12] = [
    "guard_overhead_acceptable",
    "hysteresis_applied",
    "invariants_pass",
    "moe_identity_ok",
    "moe_observed",
    "preview_final_drift_acceptable",
    "primary_metric_acceptable",
    "primary_metric_tail_acceptable",
    "rmt_stable",
    "spectral_stable",
    "guard_warning_policy_acceptable",
    "guard_warnings_present",
];

pub(super) fn check(report: &Value, faults: &mut Faults) {
    let mut schema = Schema { faults };
    let Some(fields) = report.as_object() else {
        schema.fault("", "the report must be an object");
        return;
    };
    if get::text(report, &["schema_version"]) != Some("v1") {
        schema.fault("schema_version", "must be `v1`");
    }
    schema.filled_text(fields, "", "run_id");
    for key in ["artifacts", "plugins", "meta"] {
        schema.required_object(fields, "", key);
    }
    if let Some(dataset) = schema.required_object(fields, "", "dataset") {
        schema.dataset(dataset);
    }
    if let Some(metric) = schema.required_object(fields, "", "primary_metric") {
        schema.primary_metric(metric);
    }
    if let Some(plugins) = fields.get("plugins").and_then(Value::as_object) {
        for key in ["adapters", "edits", "guards"] {
            if plugins.get(key).is_some_and(|value| !value.is_array()) {
                schema.fault(&format!("plugins.{key}"), "must be an array");
            }
        }
    }
    schema.validation(fields);
    for key in [
        "provenance",
        "resolved_policy",
        "policy_provenance",
        "structure",
        "policy_digest",
        "system_overhead",
        "rmt",
        "confidence",
        "guard_warnings",
        "primary_metric_tail",
        "evaluation_realism",
    ] {
        if fields.get(key).is_some_and(|value| !value.is_object()) {
            schema.fault(key, "must be an object");
        }
    }
    if get::at(report, &["guard_warnings", "present"]).is_some_and(|present| !present.is_boolean())
    {
        schema.fault("guard_warnings.present", "must be true or false");
    }
    if let Some(rmt) = fields.get("rmt").and_then(Value::as_object) {
        for key in ["mode", "measurement_contract_hash"] {
            if rmt.get(key).is_some_and(|value| !value.is_string()) {
                schema.fault(&format!("rmt.{key}"), "must be a string");
            }
        }
    }
    if let Some(confidence) = fields.get("confidence").and_then(Value::as_object) {
        if !confidence
            .get("label")
            .and_then(Value::as_str)
            .is_some_and(|label| ["High", "Medium", "Low"].contains(&label))
        {
            schema.fault("confidence.label", "must be High, Medium or Low");
        }
        if !confidence.contains_key("basis") {
            schema.fault("confidence.basis", "is required");
        }
    }
}

struct Schema<'f> {
    faults: &'f mut Faults,
}

impl Schema<'_> {
    fn fault(&mut self, field: &str, what: &str) {
        let message = if field.is_empty() {
            format!("schema validation: {what}")
        } else {
            format!("schema validation: field `{field}` {what}")
        };
        self.faults.add(RULE, Kind::Schema, message);
    }

    fn filled_text(&mut self, fields: &Map<String, Value>, prefix: &str, key: &str) {
        if fields
            .get(key)
            .and_then(Value::as_str)
            .is_none_or(str::is_empty)
        {
            self.fault(&format!("{prefix}{key}"), "must be a non-empty string");
        }
    }

    fn required_object<'v>(
        &mut self,
        fields: &'v Map<String, Value>,
        prefix: &str,
        key: &str,
    ) -> Option<&'v Map<String, Value>> {
        let object = fields.get(key).and_then(Value::as_object);
        if object.is_none() {
            self.fault(&format!("{prefix}{key}"), "must be an object");
        }
        object
    }

    fn count(&mut self, fields: &Map<String, Value>, prefix: &str, key: &str) {
        if fields
            .get(key)
            .and_then(get::integer)
            .is_none_or(|count| count < 0.0)
        {
            self.fault(
                &format!("{prefix}{key}"),
                "must be an integer of at least 0",
            );
        }
    }

    fn dataset(&mut self, dataset: &Map<String, Value>) {
        if !dataset.get("provider").is_some_and(Value::is_string) {
            self.fault("dataset.provider", "must be a string");
        }
        self.count(dataset, "dataset.", "seq_len");
        if let Some(windows) = self.required_object(dataset, "dataset.", "windows") {
            self.count(windows, "dataset.windows.", "preview");
            self.count(windows, "dataset.windows.", "final");
            self.required_object(windows, "dataset.windows.", "stats");
            if windows
                .get("seed")
                .is_some_and(|seed| !seed.is_null() && get::integer(seed).is_none())
            {
                self.fault("dataset.windows.seed", "must be an integer or null");
            }
        }
        for key in ["hash", "tokenizer"] {
            if dataset.get(key).is_some_and(|value| !value.is_object()) {
                self.fault(&format!("dataset.{key}"), "must be an object");
            }
        }
    }

    fn primary_metric(&mut self, metric: &Map<String, Value>) {
        if !metric
            .get("kind")
            .and_then(Value::as_str)
            .is_some_and(|kind| KINDS.contains(&kind))
        {
            self.fault(
                "primary_metric.kind",
                &format!("must be one of {}", KINDS.join(", ")),
            );
        }
        for key in ["preview", "final", "ratio_vs_baseline", "reps", "ci_level"] {
            if metric.get(key).is_some_and(|value| !value.is_number()) {
                self.fault(&format!("primary_metric.{key}"), "must be a number");
            }
        }
        for key in ["unit", "direction", "aggregation_scope", "gating_basis"] {
            if metric.get(key).is_some_and(|value| !value.is_string()) {
                self.fault(&format!("primary_metric.{key}"), "must be a string");
            }
        }
        for key in ["paired", "estimated"] {
            if metric.get(key).is_some_and(|value| !value.is_boolean()) {
                self.fault(&format!("primary_metric.{key}"), "must be true or false");
            }
        }
        if let Some(source) = metric.get("counts_source")
            && !source
                .as_str()
                .is_some_and(|source| ["measured", "pseudo_config"].contains(&source))
        {
            self.fault(
                "primary_metric.counts_source",
                "must be `measured` or `pseudo_config`",
            );
        }
        for key in ["ci", "display_ci"] {
            if metric
                .get(key)
                .is_some_and(|value| super::pair(value).is_none())
            {
                self.fault(
                    &format!("primary_metric.{key}"),
                    "must be an array of exactly two numbers",
                );
            }
        }
    }

    fn validation(&mut self, fields: &Map<String, Value>) {
        let Some(validation) = fields.get("validation") else {
            return;
        };
        let Some(flags) = validation.as_object() else {
            self.fault("validation", "must be an object");
            return;
        };
        for (key, value) in flags {
            if !VALIDATION_KEYS.contains(&key.as_str()) {
                self.fault(&format!("validation.{key}"), "is not a known flag");
            } else if !value.is_boolean() {
                self.fault(&format!("validation.{key}"), "must be true or false");
            }
        }
    }
}
