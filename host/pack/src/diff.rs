//! What changed between two packs: verdict, outcomes, guards, numbers, plugins, policies, environment, files.
//!
//! Both are pure data here; whether they are intact is [`crate::verify`]'s to say before.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::digest::is_hex;
use crate::files::Files;
use crate::json::get;
use crate::layout;
use crate::policy::LOCK;

/// Numbers of a report that are compared.
const NUMBERS: [(&str, &[&str]); 6] = [
    ("perplexity", &["primary_metric", "final"]),
    ("ratio", &["primary_metric", "ratio_vs_baseline"]),
    ("interval", &["primary_metric", "display_ci"]),
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

/// Where a run's pack holds presets, settings and the lock of its plugins.
const PRESETS: &str = "metadata/packhost/presets/";
const RUN: &str = "metadata/packhost/run.json";

/// One thing that is not the same; `Null` where it is not there.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// `verdict`, `scenario`, `guard`, `number`, `policy`, `plugin`, `setting`, `environment` or `file`.
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

/// Everything that is not the same, in the order verdict, scenarios, guards and numbers of each report, policies and
/// presets, plugins, settings, environment, files.
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
    let mut policies = Policies::default();
    for name in reports {
        let (before, after) = (json_of(before, name)?, json_of(after, name)?);
        guards(&mut changes, name, [&before, &after]);
        policies.report(name, [&before["policies"], &after["policies"]]);
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
    changes.extend(policies.changes());
    let both = [before, after];
    for name in keys(&both.map(|files| files.digests().clone())) {
        let preset = name.starts_with(PRESETS) && name.ends_with(".json");
        if preset && !name.contains("calibration_stats") {
            documents(&mut changes, "policy", both, name)?;
        }
    }
    let locks = [plugins(before)?, plugins(after)?];
    for id in keys(&locks) {
        for field in ["version", "sha256"] {
            let [before, after] = locks
                .each_ref()
                .map(|lock| lock.get(id).map(|pin| &pin[field]));
            let [before, after] = [before, after].map(|value| value.cloned().unwrap_or_default());
            push(&mut changes, "plugin", id, field, &before, &after);
        }
    }
    documents(&mut changes, "setting", both, RUN)?;
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
    for name in ["metadata/environment.json", "metadata/source_repo.json"] {
        documents(&mut changes, "environment", both, name)?;
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

/// What each guard said: status and how much it found.
fn guards(changes: &mut Vec<Change>, report: &str, both: [&Value; 2]) {
    let listed = both.map(|report| {
        let guards = get::at(report, &["packhost", "guards"]).and_then(Value::as_array);
        let guards = guards.into_iter().flatten();
        guards
            .filter_map(|guard| Some((guard["id"].as_str()?.to_owned(), guard)))
            .collect::<BTreeMap<_, _>>()
    });
    for id in keys(&listed) {
        let said = listed.each_ref().map(|guards| guards.get(id).copied());
        let [before, after] =
            said.map(|guard| guard.map_or(Value::Null, |guard| guard["status"].clone()));
        push(
            changes,
            "guard",
            report,
            &format!("{id} status"),
            &before,
            &after,
        );
        let [before, after] = said.map(|guard| {
            let findings = guard.and_then(|guard| guard["findings"].as_array());
            json!(findings.map(Vec::len))
        });
        push(
            changes,
            "guard",
            report,
            &format!("{id} findings"),
            &before,
            &after,
        );
    }
}

/// Changes of policies: a run's reports mostly share them, so each is told once.
#[derive(Default)]
struct Policies {
    /// By pointer and both values as text: the change, and how many reports have it.
    found: BTreeMap<(String, String), (Change, usize)>,
}

impl Policies {
    fn report(&mut self, report: &str, [before, after]: [&Value; 2]) {
        let mut changes = Vec::new();
        leaves(&mut changes, "policy", report, "", [before, after]);
        for change in changes {
            let key = (
                change.field.clone(),
                format!("{}\n{}", change.before, change.after),
            );
            self.found.entry(key).or_insert((change, 0)).1 += 1;
        }
    }

    fn changes(self) -> impl Iterator<Item = Change> {
        self.found.into_values().map(|(mut change, reports)| {
            if reports > 1 {
                change.of += &format!(" and {} more", reports - 1);
            }
            change
        })
    }
}

/// A JSON document that either pack may lack, value by value.
fn documents(
    changes: &mut Vec<Change>,
    kind: &'static str,
    both: [&Files; 2],
    name: &str,
) -> Result<(), String> {
    let read = |files: &Files| match files.has(name) {
        true => json_of(files, name),
        false => Ok(Value::Null),
    };
    let (before, after) = (read(both[0])?, read(both[1])?);
    leaves(changes, kind, name, "", [&before, &after]);
    Ok(())
}

/// The places at which two documents differ: objects are entered, arrays of one length too, all else is compared as it is.
fn leaves(changes: &mut Vec<Change>, kind: &'static str, of: &str, place: &str, both: [&Value; 2]) {
    match both {
        [Value::Object(before), Value::Object(after)] => {
            let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
            for name in names {
                let place = format!("{place}/{name}");
                let [before, after] = [before, after].map(|object| object.get(name));
                let none = &Value::Null;
                let both = [before.unwrap_or(none), after.unwrap_or(none)];
                leaves(changes, kind, of, &place, both);
            }
        }
        [Value::Array(before), Value::Array(after)] if before.len() == after.len() => {
            for (index, both) in before.iter().zip(after).enumerate() {
                leaves(
                    changes,
                    kind,
                    of,
                    &format!("{place}/{index}"),
                    [both.0, both.1],
                );
            }
        }
        [before, after] => push(changes, kind, of, place, before, after),
    }
}

/// What the lock file pins, by id; nothing where there is none.
fn plugins(files: &Files) -> Result<BTreeMap<String, Value>, String> {
    if !files.has(LOCK) {
        return Ok(BTreeMap::new());
    }
    let text = String::from_utf8_lossy(&files.read(LOCK)?).into_owned();
    let lock: Value = toml::from_str(&text).map_err(|error| format!("`{LOCK}`: {error}"))?;
    let pins = lock["plugin"].as_array().into_iter().flatten();
    Ok(pins
        .filter_map(|pin| Some((pin["id"].as_str()?.to_owned(), pin.clone())))
        .collect())
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

/// Long values are for `--json`.
fn shortened(text: &str) -> String {
    const MOST: usize = 100;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
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
            Value::String(text) if is_hex(text) => text.chars().take(12).collect(),
            Value::String(text) => shortened(text),
            other => shortened(&other.to_string()),
        };
        format!(
            "{:<11} {}{field}: {} -> {}",
            self.kind,
            self.of,
            shown(&self.before),
            shown(&self.after)
        )
    }
}
