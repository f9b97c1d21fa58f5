//! What the page is drawn from: verdict, settings, models and reports, as far as the pack holds them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use packhost_pack::files::Payload;
use packhost_pack::layout;
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::run::paths;
use crate::study::observe::{Judgement, judgement};

/// A pack's contents, as far as the page shows them. What is not there is null or empty.
pub struct Contents {
    /// The final verdict.
    pub verdict: Value,
    /// The run's settings.
    pub run: Value,
    /// The scenario table, by id.
    pub scenarios: BTreeMap<String, Value>,
    pub source: Value,
    pub environment: Value,
    /// How the reports verified.
    pub verification: Value,
    /// The guards in the order in which they judged.
    pub guards: Vec<String>,
    pub models: Vec<Model>,
    /// In the order of the verdict.
    pub subjects: Vec<Subject>,
}

/// A model of the run.
#[derive(Debug, Clone, Default)]
pub struct Model {
    pub id: String,
    pub folder: String,
    pub profile: Value,
    /// Layer and role of each tensor that has a layer.
    pub places: BTreeMap<String, Place>,
    /// Singular values of the unedited model's matrices.
    pub spectra: Spectra,
}

/// Where in a model a tensor lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub layer: usize,
    /// Such as `ffn-down`.
    pub role: String,
}

/// Of each matrix, by name: its singular values at nine places from the largest to the smallest.
pub type Spectra = BTreeMap<String, Vec<f64>>;

/// One report.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Folder of its model.
    pub model: String,
    pub scenario: String,
    pub run: u64,
    /// Whether the scenario was evaluated more than once.
    pub repeated: bool,
    /// The report's name in the pack.
    pub path: String,
    /// What the verdict says of it; null where it says nothing.
    pub record: Value,
    pub judged: Judgement,
    /// The report's blocks that are shown.
    pub metric: Value,
    pub guards: Value,
    pub z_scores: Value,
    pub ratio_limit: Option<f64>,
    pub spectra: Spectra,
}

impl Subject {
    /// How it is called: its scenario, with the run where there are several.
    pub fn label(&self) -> String {
        match self.repeated {
            true => format!("{}, run {}", self.scenario, self.run),
            false => self.scenario.clone(),
        }
    }

    /// `clean`, `stress`, `error_injection`, or empty.
    pub fn category(&self) -> &str {
        self.record["category"].as_str().unwrap_or_default()
    }
}

impl Contents {
    /// Reads them.
    pub fn read(pack: &dyn Payload) -> Self {
        let verdict = [layout::V2_VERDICT, layout::NATIVE_VERDICT]
            .into_iter()
            .map(|name| document(pack, name))
            .find(|verdict| !verdict.is_null())
            .unwrap_or_default();
        let run = document(pack, &paths::packed_record());
        let scenarios = document(pack, layout::SCENARIOS);
        let by_id =
            |scenario: &Value| Some((scenario["id"].as_str()?.to_owned(), scenario.clone()));
        let listed = run["models"].as_array().into_iter().flatten();
        let seed = run["counts"]["seed"].as_u64().unwrap_or(0);
        let models: Vec<Model> = listed.map(|model| Model::read(pack, model, seed)).collect();
        let mut guards: Vec<String> = ids(&run["guards"]);
        let records = records(&verdict);
        let mut reports: Vec<String> = pack
            .names()
            .into_iter()
            .filter(|name| layout::is_report(name))
            .map(str::to_owned)
            .collect();
        layout::sort_by_parts(&mut reports);
        reports.sort_by_key(|name| records.get(name).map_or(usize::MAX, |(place, _)| *place));
        let read: Vec<(Value, Spectra)> = reports
            .par_iter()
            .map(|name| {
                let report = document(pack, name);
                let spectra = records
                    .get(name)
                    .and_then(|(_, record)| subject_spectra(pack, record));
                (without_windows(report), spectra.unwrap_or_default())
            })
            .collect();
        if guards.is_empty() {
            let first = read
                .iter()
                .map(|(report, _)| ids(&report["packhost"]["guards"]));
            guards = first
                .into_iter()
                .find(|ids| !ids.is_empty())
                .unwrap_or_default();
        }
        let mut baselines = BTreeMap::new();
        let mut subjects: Vec<Subject> = reports
            .into_iter()
            .zip(read)
            .map(|(path, (report, spectra))| {
                let record = records.get(&path).map(|(_, record)| (*record).clone());
                let record = record.unwrap_or_default();
                let model = record["model"].as_str().unwrap_or_default().to_owned();
                let seed = report["packhost"]["windows"]["seed"].as_u64().unwrap_or(0);
                let baseline = baselines
                    .entry((model.clone(), seed))
                    .or_insert_with(|| baseline(pack, &model, seed, &guards));
                subject(path, model, record, &report, spectra, baseline, &guards)
            })
            .collect();
        let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
        let key = |subject: &Subject| (subject.model.clone(), subject.scenario.clone());
        for subject in &subjects {
            *counts.entry(key(subject)).or_default() += 1;
        }
        for subject in &mut subjects {
            subject.repeated = counts[&key(subject)] > 1;
        }
        Self {
            scenarios: scenarios["scenarios"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(by_id)
                .collect(),
            source: document(pack, "metadata/source_repo.json"),
            environment: document(pack, "metadata/environment.json"),
            verification: document(pack, "results/verification_summary.json"),
            verdict,
            run,
            guards,
            models,
            subjects,
        }
    }

    /// The subjects of each model, in the order of the run; one group where the pack names no models.
    pub fn by_model(&self) -> Vec<(Model, Vec<&Subject>)> {
        let mut groups: Vec<(Model, Vec<&Subject>)> = Vec::new();
        for model in &self.models {
            groups.push((model.clone(), Vec::new()));
        }
        for subject in &self.subjects {
            let place = groups
                .iter()
                .position(|(model, _)| model.folder == subject.model);
            match place {
                Some(place) => groups[place].1.push(subject),
                None => groups.push((
                    Model {
                        id: subject.model.clone(),
                        folder: subject.model.clone(),
                        ..Model::default()
                    },
                    vec![subject],
                )),
            }
        }
        groups.retain(|(_, subjects)| !subjects.is_empty());
        groups
    }
}

impl Model {
    fn read(pack: &dyn Payload, listed: &Value, seed: u64) -> Self {
        let folder = listed["folder"].as_str().unwrap_or_default().to_owned();
        let profile = document(pack, &paths::packed_profile(&folder));
        let tensors = profile["network"]["tensors"].as_array().into_iter();
        let place = |tensor: &Value| {
            let place = Place {
                layer: usize::try_from(tensor["layer"].as_u64()?).ok()?,
                role: tensor["role"].as_str()?.to_owned(),
            };
            Some((tensor["name"].as_str()?.to_owned(), place))
        };
        let table = paths::packed_table(&paths::baseline_subject_table(&folder, seed));
        Self {
            id: listed["id"].as_str().unwrap_or(&folder).to_owned(),
            places: tensors.flatten().filter_map(place).collect(),
            spectra: spectra(pack, &table).unwrap_or_default(),
            profile,
            folder,
        }
    }
}

/// A JSON file; null where it is not there or is none.
fn document(pack: &dyn Payload, name: &str) -> Value {
    let bytes = pack.read(name).ok();
    bytes
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default()
}

fn ids(list: &Value) -> Vec<String> {
    let listed = list.as_array().into_iter().flatten();
    listed
        .filter_map(|entry| entry["id"].as_str())
        .map(str::to_owned)
        .collect()
}

/// The verdict's records with their places, by the name of the report in the pack.
fn records(verdict: &Value) -> BTreeMap<String, (usize, &Value)> {
    let records = verdict["records"].as_array().into_iter().flatten();
    records
        .enumerate()
        .filter_map(|(place, record)| {
            let (model, rest) = record["path"].as_str()?.split_once("/reports/")?;
            Some((format!("reports/{model}/{rest}"), (place, record)))
        })
        .collect()
}

/// The windows are most of a report and are not shown.
fn without_windows(mut report: Value) -> Value {
    if let Some(fields) = report.as_object_mut() {
        fields.remove("evaluation_windows");
    }
    report
}

/// What the unedited model's report on the same windows says. Where the pack has none, as if its guards found nothing: then
/// everything that a subject's guards find counts.
fn baseline(pack: &dyn Payload, model: &str, seed: u64, guards: &[String]) -> Value {
    let report = document(pack, &paths::packed_baseline_report(model, seed));
    if !report.is_null() {
        return without_windows(report);
    }
    let silent = |id: &String| json!({"id": id, "status": "pass", "findings": []});
    json!({"packhost": {"guards": guards.iter().map(silent).collect::<Vec<_>>()}})
}

fn subject(
    path: String,
    model: String,
    record: Value,
    report: &Value,
    spectra: Spectra,
    baseline: &Value,
    guards: &[String],
) -> Subject {
    let seed = report["packhost"]["windows"]["seed"].as_u64().unwrap_or(0);
    let run = record["run_num"].as_u64().unwrap_or(1);
    let scenario = record["name"].as_str().map_or_else(
        || {
            let folders = path.strip_prefix("reports/").unwrap_or(&path);
            let end = folders.rfind('/').unwrap_or(folders.len());
            folders[..end].to_owned()
        },
        str::to_owned,
    );
    let number = u32::try_from(run).unwrap_or(u32::MAX);
    Subject {
        judged: judgement((number, seed), report, Some(baseline), guards),
        metric: report["primary_metric"].clone(),
        guards: report["packhost"]["guards"].clone(),
        z_scores: report["spectral"]["top_z_scores"].clone(),
        ratio_limit: report
            .pointer("/policies/metrics/pm_ratio/ratio_limit_base")
            .and_then(Value::as_f64),
        model,
        scenario,
        run,
        repeated: false,
        path,
        record,
        spectra,
    }
}

fn subject_spectra(pack: &dyn Payload, record: &Value) -> Option<Spectra> {
    let (model, scenario) = (record["model"].as_str()?, record["name"].as_str()?);
    let run = u32::try_from(record["run_num"].as_u64()?).ok()?;
    let table = paths::subject_table(model, scenario, run);
    spectra(pack, &paths::packed_table(&table))
}

/// A table's rows, as far as the page needs them: most are passed over without being kept.
#[derive(Deserialize)]
struct Rows<'a> {
    #[serde(borrow)]
    rows: Vec<TableRow<'a>>,
}

#[derive(Deserialize)]
struct TableRow<'a> {
    #[serde(borrow)]
    quantity: Cow<'a, str>,
    #[serde(borrow)]
    scope: Cow<'a, str>,
    vector: Option<Vec<Option<f64>>>,
}

/// The singular values that a table holds.
fn spectra(pack: &dyn Payload, table: &str) -> Option<Spectra> {
    let bytes = pack.read(table).ok()?;
    let rows: Rows<'_> = serde_json::from_slice(&bytes).ok()?;
    let shown = rows
        .rows
        .into_iter()
        .filter(|row| row.quantity == "weight.singular");
    let values = shown.filter_map(|row| {
        let values: Option<Vec<f64>> = row.vector?.into_iter().collect();
        Some((row.scope.into_owned(), values?))
    });
    Some(values.collect())
}
