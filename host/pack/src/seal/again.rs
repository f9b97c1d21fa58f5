//! What sealing added to a pack, made again from the rest of it: a verifier's expectations, the results of verifying, runtime
//! manifests and summaries. What differs from the pack's own bytes does not follow from its evidence.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde_json::{Value, json};

use super::assembly::Assembly;
use super::expectations::{Expectations, packed_scenarios};
use super::{Model, REVISIONS, revisions};
use crate::canonical;
use crate::files::Files;
use crate::json as reader;
use crate::layout;
use crate::nested::{self, Source};
use crate::provenance::Runtime;
use crate::report_rules::{Assurance, Profile, Rules};
use crate::summaries;

/// What the pack was sealed with.
#[derive(Clone, Debug)]
pub struct Again<'a> {
    /// The scenario table of the run, as it was before packing.
    pub scenarios: &'a Value,
    /// The models in the order of the run.
    pub models: &'a [Model],
    /// Profile at which the reports were verified.
    pub profile: Profile,
    /// Assurance mode at which the reports were verified.
    pub assurance: Assurance,
}

/// The scenario table of a run from the packed one: scenarios get back the strictness that they had.
pub fn declared_scenarios(packed: &Value) -> Value {
    let mut declared = packed.clone();
    let scenarios = declared.get_mut("scenarios").and_then(Value::as_array_mut);
    for scenario in scenarios.into_iter().flatten() {
        let Some(fields) = scenario.as_object_mut() else {
            continue;
        };
        if let Some(strictness) = fields.remove("declared_strictness") {
            fields.insert("strictness".to_owned(), strictness);
        }
    }
    declared
}

/// The files that sealing added, by name. `verdict.json` and its summaries are the caller's: see [`crate::verdict::files`].
///
/// # Errors
/// In words: a file of the pack cannot be read.
pub fn again(files: &Files, with: &Again<'_>) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let mut made = BTreeMap::new();
    let mut reports: Vec<String> = files
        .names()
        .filter(|name| layout::is_report(name))
        .map(str::to_owned)
        .collect();
    layout::sort_by_parts(&mut reports);
    let rules = Rules {
        profile: with.profile,
        assurance: with.assurance,
        skip_provenance: false,
    };
    let runtime = runtime(files, &reports);
    let examined = reports
        .par_iter()
        .map(|name| {
            let beside = Assembly::beside(name, layout::RUNTIME_MANIFEST);
            let found = files
                .has(&beside)
                .then(|| files.read(&beside))
                .transpose()?;
            Ok(nested::examine(
                Source {
                    id: name.clone(),
                    name: name.clone(),
                    report: files.read(name)?,
                    runtime: found,
                },
                rules,
            ))
        })
        .collect::<Result<Vec<_>, String>>()?;
    let table = packed_scenarios(with.scenarios, &examined);
    let outcome = Expectations::of(&examined, Some(&table), with.profile, with.assurance);
    for report in &examined {
        let payload = nested::conclude(std::slice::from_ref(report), with.profile).payload;
        made.insert(
            Assembly::beside(&report.name, "verify.json"),
            canonical::pretty_file(&payload),
        );
        if let (Some(runtime), Some(digest)) = (&runtime, files.digests().get(&report.name)) {
            made.insert(
                Assembly::beside(&report.name, layout::RUNTIME_MANIFEST),
                canonical::pretty_file(&runtime.manifest_for(digest)),
            );
        }
    }
    let artifacts = summaries::edit_artifacts(&table, &edit_metadata(files, &reports)?);
    for (name, value) in [
        ("results/verification_summary.json", &outcome.summary),
        (layout::SCENARIOS, &table),
        ("results/analysis/edit_artifact_summary.json", &artifacts),
        (REVISIONS, &revisions(with.models)),
    ] {
        made.insert(name.to_owned(), canonical::pretty_file(value));
    }
    Ok(made)
}

/// The runtime that the first report's manifest names: all reports of a run share one.
fn runtime(files: &Files, reports: &[String]) -> Option<Runtime> {
    let name = Assembly::beside(reports.first()?, layout::RUNTIME_MANIFEST);
    let manifest = json_of(files, &name).ok()?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    Some(Runtime {
        image_ref: text(&manifest["runtime"]["image_ref"])?,
        image_digest: text(&manifest["runtime"]["image_digest"])?,
        generated_at: text(&manifest["generated_at_utc"])?,
        third_party_plugins: manifest["runtime"]["allow_third_party_plugins"] == json!(true),
        context: manifest.get("context").cloned(),
    })
}

fn edit_metadata(files: &Files, reports: &[String]) -> Result<BTreeMap<String, Value>, String> {
    let mut metadata = BTreeMap::new();
    for report in reports {
        let name = Assembly::beside(report, layout::EDIT_METADATA);
        let Some(id) = layout::scenario_of(report).filter(|_| files.has(&name)) else {
            continue;
        };
        if !metadata.contains_key(id) {
            metadata.insert(id.to_owned(), json_of(files, &name)?);
        }
    }
    Ok(metadata)
}

fn json_of(files: &Files, name: &str) -> Result<Value, String> {
    reader::parse(&files.read(name)?)
        .and_then(reader::Document::strict)
        .map_err(|fault| format!("`{name}` {fault}"))
}
