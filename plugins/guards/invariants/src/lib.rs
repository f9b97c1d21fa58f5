//! Invariants: what no edit of weights may change.
//!
//! | found | severity |
//! |---|---|
//! | a NaN or infinity in the subject | fatal |
//! | a tensor missing, its shape changed, its dtype not one that weights are stored in | fatal |
//! | another number of vocabulary rows | fatal |
//! | a tensor added, another number of parameters, norms missing, tying changed, another structure | warning |
//!
//! The reference looks at module objects; this guard looks at tensor tables and is stricter: a missing tensor and a
//! changed shape are fatal there only when they break loading. Any fatal finding fails, else any warning warns. Weights
//! that are finite but wrong (scaled, zeroed) are for other guards.
//!
//! Quantities: `tensor.shape`, `tensor.dtype`, `tensor.non_finite` of every tensor; `vocabulary` of every embedding;
//! `parameter.count`, `tying`, `structure.digest`, `config.vocab_size`, `norm.names` of the model. A tensor is missing when
//! the baseline has a `tensor.shape` row for it and the subject has none.

#[cfg(test)]
mod tests;

use packhost_sdk::json::{Value as Json, json};
use packhost_sdk::{
    About, Finding, Guard, ModelInfo, Request, Result, Row, Status, Step, Table, Value, Verdict,
    export_guard,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What follows from a finding that is not fatal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum OnFail {
    /// Report and go on.
    #[default]
    Monitor,
    /// Stop.
    Block,
    /// Stop and undo.
    Rollback,
}

impl OnFail {
    fn name(self) -> &'static str {
        match self {
            Self::Monitor => "monitor",
            Self::Block => "block",
            Self::Rollback => "rollback",
        }
    }
}

/// How strict the guard is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Policy {
    /// Treat warnings as fatal.
    strict_mode: bool,
    /// The decision when something is found.
    on_fail: OnFail,
}

struct Invariants;

impl Guard for Invariants {
    const ABOUT: About = About {
        id: "invariants",
        version: env!("CARGO_PKG_VERSION"),
        title: "What no edit may change: tensors, shapes, vocabulary, finite values",
    };
    type Policy = Policy;

    fn plan(_policy: &Policy, _model: &ModelInfo) -> Result<Vec<Request>> {
        let of_tensors = [
            "tensor.shape",
            "tensor.dtype",
            "tensor.non_finite",
            "vocabulary",
        ];
        let of_model = [
            "parameter.count",
            "tying",
            "structure.digest",
            "config.vocab_size",
            "norm.names",
        ];
        let tensors = of_tensors.map(|quantity| Request::new(quantity, "*"));
        let model = of_model.map(|quantity| Request::new(quantity, "model"));
        Ok(tensors.into_iter().chain(model).collect())
    }

    fn judge(policy: &Policy, baseline: &Table, subject: &Table) -> Result<Step> {
        let (before, after) = (Captured::read(baseline)?, Captured::read(subject)?);
        let mut violations = compare(&before, &after);
        if policy.strict_mode {
            for violation in &mut violations {
                violation.fatal = true;
            }
        }
        let fatal = violations.iter().filter(|v| v.fatal).count();
        let warnings = violations.len() - fatal;
        let stops = policy.on_fail != OnFail::Monitor;
        let (passed, decision) = match (fatal, warnings) {
            (0, 0) => (true, "allow"),
            (0, _) => (!stops, policy.on_fail.name()),
            _ if stops => (false, policy.on_fail.name()),
            _ => (false, "block"),
        };
        let status = match (fatal, warnings) {
            (0, 0) => Status::Pass,
            (0, _) => Status::Warn,
            _ => Status::Fail,
        };
        let listed: Vec<Json> = violations.iter().map(Violation::details).collect();
        let details = json!({
            "passed": passed,
            "decision": decision,
            "details": {
                "baseline_checks": before.details(),
                "current_checks": after.details(),
            },
            "summary": {
                "checks_performed": CHECKS,
                "fatal_violations": fatal,
                "warning_violations": warnings,
                "violations_found": violations.len(),
            },
            "violations": listed,
            "policy": {"strict_mode": policy.strict_mode, "on_fail": policy.on_fail.name()},
        });
        let findings = violations
            .into_iter()
            .map(|violation| violation.finding)
            .collect();
        Ok(Step::Verdict(Verdict {
            status,
            findings,
            details,
        }))
    }
}

export_guard!(Invariants);

/// Kinds of comparison that [`compare`] makes.
const CHECKS: usize = 10;

/// Dtypes that weights are stored in.
const DTYPES: [&str; 14] = [
    "F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "I16", "I8", "U64", "U32",
    "U16", "U8",
];

/// What one model's table says.
struct Captured {
    shapes: BTreeMap<String, Vec<f64>>,
    dtypes: BTreeMap<String, String>,
    non_finite: BTreeMap<String, f64>,
    vocabulary: BTreeMap<String, f64>,
    config_vocabulary: f64,
    parameters: f64,
    tying: String,
    structure: String,
    norms: BTreeSet<String>,
}

impl Captured {
    fn read(table: &Table) -> Result<Self> {
        let norms = table.text("model", "norm.names")?;
        Ok(Self {
            shapes: collect(table, "tensor.shape", |row| match &row.value {
                Value::Vector(shape) => Some(shape.clone()),
                _ => None,
            }),
            dtypes: collect(table, "tensor.dtype", |row| match &row.value {
                Value::Text(dtype) => Some(dtype.clone()),
                _ => None,
            }),
            non_finite: collect(table, "tensor.non_finite", number),
            vocabulary: collect(table, "vocabulary", number),
            config_vocabulary: table.number("model", "config.vocab_size")?,
            parameters: table.number("model", "parameter.count")?,
            tying: table.text("model", "tying")?.to_owned(),
            structure: table.text("model", "structure.digest")?.to_owned(),
            norms: norms.lines().map(str::to_owned).collect(),
        })
    }

    /// The report's names for what was captured.
    fn details(&self) -> Json {
        json!({
            "config_vocab_size": self.config_vocabulary as u64,
            "embedding_vocab_sizes": self
                .vocabulary
                .iter()
                .map(|(name, rows)| (name.clone(), json!(*rows as u64)))
                .collect::<packhost_sdk::json::Map<_, _>>(),
            "layer_norm_paths": self.norms,
            "parameter_count": self.parameters as u64,
            "structure_hash": self.structure,
            "tensors": self.shapes.len(),
            "weight_tying": self.tying == "tied",
            "weight_tying_arches": {"embed_tokens": self.tying == "tied"},
        })
    }
}

fn collect<T>(
    table: &Table,
    quantity: &str,
    read: impl Fn(&Row) -> Option<T>,
) -> BTreeMap<String, T> {
    let rows = table.of(quantity);
    rows.filter_map(|row| Some((row.scope.clone(), read(row)?)))
        .collect()
}

fn number(row: &Row) -> Option<f64> {
    match &row.value {
        Value::Number(value) => Some(*value),
        _ => None,
    }
}

/// Something that changed.
struct Violation {
    /// The reference's name for the kind, where it has one.
    kind: &'static str,
    fatal: bool,
    finding: Finding,
}

impl Violation {
    fn new(kind: &'static str, fatal: bool, scope: &str, code: &str, message: String) -> Self {
        Self {
            kind,
            fatal,
            finding: Finding {
                scope: scope.to_owned(),
                code: code.to_owned(),
                message,
                value: None,
                limit: None,
            },
        }
    }

    fn figures(mut self, value: f64, limit: f64) -> Self {
        self.finding.value = Some(value);
        self.finding.limit = Some(limit);
        self
    }

    fn details(&self) -> Json {
        json!({
            "type": self.kind,
            "check": self.finding.code,
            "severity": if self.fatal { "fatal" } else { "warning" },
            "location": self.finding.scope,
            "message": self.finding.message,
        })
    }
}

/// Every difference between baseline and subject, fatal ones first within each tensor, the model's last.
fn compare(before: &Captured, after: &Captured) -> Vec<Violation> {
    let mut found = Vec::new();
    for (name, shape) in &before.shapes {
        match after.shapes.get(name) {
            None => {
                let message = format!("tensor {name} {} is missing", axes(shape));
                found.push(Violation::new(
                    "tensor_missing",
                    true,
                    name,
                    "tensor_missing",
                    message,
                ));
            }
            Some(now) if now != shape => {
                let message = format!(
                    "tensor {name} changed shape from {} to {}",
                    axes(shape),
                    axes(now)
                );
                found.push(Violation::new(
                    "shape_changed",
                    true,
                    name,
                    "tensor_shape",
                    message,
                ));
            }
            Some(_) => {}
        }
    }
    for (name, dtype) in &after.dtypes {
        if !DTYPES.contains(&dtype.as_str()) {
            let message = format!("tensor {name} is stored as {dtype}, which no weights are");
            found.push(Violation::new(
                "dtype_not_allowed",
                true,
                name,
                "tensor_dtype",
                message,
            ));
        }
    }
    for (name, count) in after.non_finite.iter().filter(|(_, count)| **count > 0.0) {
        let message = format!("tensor {name} holds {count} values that are NaN or infinite");
        let violation = Violation::new("non_finite_tensor", true, name, "non_finite", message);
        found.push(violation.figures(*count, 0.0));
    }
    found.extend(vocabulary(before, after));
    for name in after
        .shapes
        .keys()
        .filter(|name| !before.shapes.contains_key(*name))
    {
        let message = format!("tensor {name} is new");
        found.push(Violation::new(
            "invariant_violation",
            false,
            name,
            "extra_tensor",
            message,
        ));
    }
    let missing: Vec<&str> = before
        .norms
        .difference(&after.norms)
        .map(String::as_str)
        .collect();
    if !missing.is_empty() {
        let message = format!("norms are missing: {}", missing.join(", "));
        found.push(Violation::new(
            "layer_norm_missing",
            false,
            "model",
            "layer_norm_coverage",
            message,
        ));
    }
    if before.parameters != after.parameters {
        let message = format!(
            "{} parameters instead of {}",
            after.parameters, before.parameters
        );
        let violation = Violation::new(
            "invariant_violation",
            false,
            "model",
            "parameter_count",
            message,
        );
        found.push(violation.figures(after.parameters, before.parameters));
    }
    if before.tying != after.tying {
        let message = format!(
            "embedding and output head are {} instead of {}",
            after.tying, before.tying
        );
        found.push(Violation::new(
            "invariant_violation",
            false,
            "model",
            "weight_tying",
            message,
        ));
    }
    if before.structure != after.structure {
        let message = format!(
            "the structure's digest is {} instead of {}",
            after.structure, before.structure
        );
        found.push(Violation::new(
            "invariant_violation",
            false,
            "model",
            "structure_hash",
            message,
        ));
    }
    found
}

/// Another number of rows in an embedding, or in the configuration. An embedding under another name is fine when as many
/// embeddings of its size exist as before; its absence is a missing tensor anyway.
fn vocabulary(before: &Captured, after: &Captured) -> Vec<Violation> {
    let sizes = |captured: &Captured, rows: f64| {
        captured
            .vocabulary
            .values()
            .filter(|size| **size == rows)
            .count()
    };
    let mut found = Vec::new();
    for (name, &rows) in &before.vocabulary {
        let now = after.vocabulary.get(name).copied();
        let same = match now {
            Some(now) => now == rows,
            None => sizes(after, rows) == sizes(before, rows),
        };
        if !same {
            let what = now.map_or("gone".to_owned(), |now| format!("{now} rows"));
            let message = format!("the vocabulary of {name} is {what}, it had {rows} rows");
            let violation = Violation::new("tokenizer_mismatch", true, name, "vocabulary", message);
            found.push(violation.figures(now.unwrap_or(0.0), rows));
        }
    }
    if before.config_vocabulary != after.config_vocabulary {
        let (was, now) = (before.config_vocabulary, after.config_vocabulary);
        let message = format!("the configuration's vocabulary has {now} entries, it had {was}");
        let violation = Violation::new("tokenizer_mismatch", true, "model", "vocabulary", message);
        found.push(violation.figures(now, was));
    }
    found
}

fn axes(shape: &[f64]) -> String {
    let axes: Vec<String> = shape.iter().map(f64::to_string).collect();
    format!("[{}]", axes.join(", "))
}
