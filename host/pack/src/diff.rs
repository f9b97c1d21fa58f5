//! What changed between two packs: verdict, scenarios, numbers, files.
//!
//! Both are pure data here; whether they are intact is [`crate::verify`]'s to say before.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::files::Files;
use crate::json::get;
use crate::layout;

/// Numbers of a report that are compared.
const NUMBERS: [(&str, &[&str]); 5] = [
    ("perplexity", &["primary_metric", "final"]),
    ("ratio", &["primary_metric", "ratio_vs_baseline"]),
    (
        "kl_mean",
        &["packhost", "divergence", "final", "kl", "mean"],
    ),
    ("spectral_caps", &["spectral", "caps_applied"]),
    ("edge_delta", &["rmt", "max_edge_delta"]),
];

/// Fields of a verdict's record that are compared.
const FIELDS: [&str; 6] = [
    "passed",
    "guard_flags",
    "detectors_hit",
    "primary_guard_hit",
    "invariants_status",
    "strictness",
];

/// One thing that is not the same; `Null` where it is not there.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// `verdict`, `scenario`, `number`, `setting` or `file`.
    pub kind: &'static str,
    /// Of what: a report, a scenario's run, a file.
    pub of: String,
    /// Which field; empty for the thing as a whole.
    pub field: String,
    /// In the first pack.
    pub before: Value,
    /// In the second pack.
    pub after: Value,
}

/// Everything that is not the same, in the order verdict, scenarios, numbers, settings, files.
///
/// # Errors
/// In words: a manifest, verdict or report cannot be read.
pub fn diff(before: &Files, after: &Files) -> Result<Vec<Change>, String> {
    let mut changes = Vec::new();
    let verdicts = [verdict(before)?, verdict(after)?];
    for field in ["verdict", "failed_requirements"] {
        let [before, after] = [&verdicts[0][field], &verdicts[1][field]];
        push(
            &mut changes,
            "verdict",
            "final verdict",
            field,
            before,
            after,
        );
    }
    let records = verdicts.each_ref().map(records);
    for key in keys(&records) {
        let [before, after] = records.each_ref().map(|records| records.get(key));
        match (before, after) {
            (Some(before), Some(after)) => {
                for field in FIELDS {
                    let (before, after) = (&before[field], &after[field]);
                    push(&mut changes, "scenario", key, field, before, after);
                }
            }
            (before, after) => {
                let there = |record: Option<&&Value>| json!(record.map(|_| "there"));
                push(
                    &mut changes,
                    "scenario",
                    key,
                    "",
                    &there(before),
                    &there(after),
                );
            }
        }
    }
    let reports: BTreeSet<&str> = before
        .names()
        .filter(|name| layout::is_report(name) && after.has(name))
        .collect();
    for name in reports {
        let (before, after) = (json_of(before, name)?, json_of(after, name)?);
        for (field, path) in NUMBERS {
            let of = |report| get::at(report, path).cloned().unwrap_or_default();
            push(
                &mut changes,
                "number",
                name,
                field,
                &of(&before),
                &of(&after),
            );
        }
    }
    let manifests = [manifest(before)?, manifest(after)?];
    for field in ["suite", "model_list", "evidence_level", "generated_at"] {
        let [before, after] = [&manifests[0][field], &manifests[1][field]];
        push(
            &mut changes,
            "setting",
            "manifest.json",
            field,
            before,
            after,
        );
    }
    let digests = [before.digests(), after.digests()];
    for name in keys(&[before.digests().clone(), after.digests().clone()]) {
        let [before, after] = digests.map(|digests| json!(digests.get(name)));
        push(&mut changes, "file", name, "", &before, &after);
    }
    Ok(changes)
}

fn push(
    changes: &mut Vec<Change>,
    kind: &'static str,
    of: &str,
    field: &str,
    before: &Value,
    after: &Value,
) {
    if before != after {
        changes.push(Change {
            kind,
            of: of.to_owned(),
            field: field.to_owned(),
            before: before.clone(),
            after: after.clone(),
        });
    }
}

fn keys<V>(maps: &[BTreeMap<String, V>; 2]) -> BTreeSet<&str> {
    let keys = maps.iter().flat_map(BTreeMap::keys);
    keys.map(String::as_str).collect()
}

/// A verdict's records by model, scenario and run.
fn records(verdict: &Value) -> BTreeMap<String, &Value> {
    let records = verdict["records"].as_array().into_iter().flatten();
    records
        .map(|record| {
            let text = |key: &str| record[key].as_str().unwrap_or_default();
            let key = format!(
                "{}/{} run {}",
                text("model"),
                text("name"),
                record["run_num"]
            );
            (key, record)
        })
        .collect()
}

fn manifest(files: &Files) -> Result<Value, String> {
    serde_json::from_slice(files.manifest()).map_err(|error| format!("`manifest.json`: {error}"))
}

fn verdict(files: &Files) -> Result<Value, String> {
    let manifest = manifest(files)?;
    let name = get::text(&manifest, &["subject", "path"]).unwrap_or(layout::V2_VERDICT);
    json_of(files, name)
}

fn json_of(files: &Files, name: &str) -> Result<Value, String> {
    serde_json::from_slice(&files.read(name)?).map_err(|error| format!("`{name}`: {error}"))
}

impl Change {
    /// As the answer of `pack diff --json` lists it.
    pub fn json(&self) -> Value {
        json!({"kind": self.kind, "of": self.of, "field": self.field, "before": self.before, "after": self.after})
    }

    /// In one line for people.
    pub fn line(&self) -> String {
        let field = match self.field.as_str() {
            "" => String::new(),
            field => format!(" {field}"),
        };
        let shown = |value: &Value| match value {
            Value::Null => "nothing".to_owned(),
            Value::String(text) if self.kind == "file" => text.chars().take(12).collect(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        format!(
            "{:<9} {}{field}: {} -> {}",
            self.kind,
            self.of,
            shown(&self.before),
            shown(&self.after)
        )
    }
}
