//! Verifying the reports inside a pack: one batch that must pass, and the expected failures, each of which must fail.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::digest;
use crate::json::{self, get};
use crate::report_rules::{self, Checked, Fault, Kind, Profile, Rules, RuntimeManifest};

/// The bytes of a report and of the runtime manifest beside it.
pub(crate) struct Source {
    /// How the output names it.
    pub(crate) id: String,
    /// Path below the pack's root.
    pub(crate) name: String,
    pub(crate) report: Vec<u8>,
    pub(crate) runtime: Option<Vec<u8>>,
}

/// A report that was checked. The report itself is not kept: a pack may hold many.
pub(crate) struct Examined {
    pub(crate) name: String,
    /// Faults, including that it is no JSON.
    pub(crate) faults: Vec<Fault>,
    unreadable: bool,
    /// Its entry of `results`, without the outcome, which is the batch's.
    result: Map<String, Value>,
}

/// How a batch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Ok,
    PolicyFail,
    Malformed,
}

impl Reason {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::PolicyFail => "policy_fail",
            Self::Malformed => "malformed",
        }
    }
}

/// The outcome of a batch.
pub(crate) struct Batch {
    pub(crate) reason: Reason,
    /// The payload of `verify-v1`.
    pub(crate) payload: Value,
}

/// The id of a report in a pack that the caller named `pack`.
pub(crate) fn id_in(pack: &Path, name: &str) -> String {
    pack.join(name).display().to_string()
}

/// Checks one report.
pub(crate) fn examine(source: Source, rules: Rules) -> Examined {
    let runtime = match source.runtime {
        None => RuntimeManifest::Missing,
        Some(bytes) => match json::parse(&bytes).and_then(json::Document::strict) {
            Ok(value) => RuntimeManifest::Found(value),
            Err(fault) => RuntimeManifest::Unreadable(fault.to_string()),
        },
    };
    let Source {
        id, name, report, ..
    } = source;
    match json::parse(&report).and_then(json::Document::strict) {
        Ok(value) => {
            let checked = report_rules::check(&value, &digest::hex(&report), &runtime, rules);
            let result = entry(&id, &value, Some(&checked));
            Examined {
                name,
                faults: checked.faults,
                unreadable: false,
                result,
            }
        }
        Err(fault) => {
            let faults = vec![Fault {
                rule: "report.json",
                kind: Kind::Schema,
                message: format!("the report {fault}"),
            }];
            Examined {
                name,
                faults,
                unreadable: true,
                result: entry(&id, &Value::Null, None),
            }
        }
    }
}

/// Ends a batch: what the faults of all its reports amount to.
pub(crate) fn conclude(reports: &[Examined], profile: Profile) -> Batch {
    let has = |kind| {
        reports
            .iter()
            .flat_map(|report| &report.faults)
            .any(|fault| fault.kind == kind)
    };
    let gated = profile != Profile::Dev;
    let (reason, code) = if reports.iter().any(|report| report.unreadable) {
        (Reason::Malformed, Some("E_GENERIC"))
    } else if has(Kind::Schema) {
        (Reason::Malformed, Some("E601"))
    } else if gated && has(Kind::Evidence) {
        (Reason::PolicyFail, Some("E004"))
    } else if gated && has(Kind::Mismatch) {
        (Reason::PolicyFail, Some("E602"))
    } else if reports.iter().any(|report| !report.faults.is_empty()) {
        (Reason::PolicyFail, None)
    } else {
        (Reason::Ok, None)
    };
    let ok = reason == Reason::Ok;
    // An aborted batch shows its first report only.
    let shown = if code.is_some() {
        reports.get(..1).unwrap_or_default()
    } else {
        reports
    };
    let results: Vec<Value> = shown
        .iter()
        .map(|report| {
            let mut result = report.result.clone();
            result.insert("ok".to_owned(), json!(ok));
            result.insert("reason".to_owned(), json!(reason.name()));
            Value::Object(result)
        })
        .collect();
    let mut payload = json!({
        "format_version": "verify-v1",
        "summary": {"ok": ok, "reason": reason.name()},
        "evaluation_report": {"count": reports.len()},
        "results": results,
    });
    if let Some(code) = code {
        payload["error"] = json!({
            "code": code,
            "category": if reason == Reason::Malformed { "schema" } else { "policy" },
            "recoverable": false,
            "context": {"faults": messages(reports)},
        });
    }
    Batch { reason, payload }
}

/// Every fault of a batch with the report's name in the pack and the rule's id.
pub(crate) fn messages(reports: &[Examined]) -> Vec<String> {
    reports
        .iter()
        .flat_map(|report| {
            report
                .faults
                .iter()
                .map(|fault| format!("{}: {} ({})", report.name, fault.message, fault.rule))
        })
        .collect()
}

fn entry(id: &str, report: &Value, checked: Option<&Checked>) -> Map<String, Value> {
    let at = |path: &[&str]| get::at(report, path).cloned().unwrap_or(Value::Null);
    let recompute = checked.and_then(|checked| checked.recomputation.as_ref()).map_or(Value::Null, |recomputation| {
        json!({"family": recomputation.family, "ok": recomputation.fault.is_none(), "reason": recomputation.fault})
    });
    let warnings =
        get::number(report, &["guard_warnings", "warning_count"]).map_or(0, |count| count as u64);
    let mut result = Map::new();
    let mut set = |key: &str, value: Value| {
        result.insert(key.to_owned(), value);
    };
    set("id", json!(id));
    set("schema_version", at(&["schema_version"]));
    set("kind", at(&["primary_metric", "kind"]));
    set(
        "ratio_vs_baseline",
        at(&["primary_metric", "ratio_vs_baseline"]),
    );
    set("ci", at(&["primary_metric", "display_ci"]));
    set("recompute", recompute);
    set(
        "guard_warnings_present",
        json!(get::is_true(report, &["guard_warnings", "present"])),
    );
    set("warning_count", json!(warnings));
    if let Some(checked) = checked {
        set(
            "verification",
            json!({"runtime_provenance": checked.provenance.json()}),
        );
    }
    result
}
