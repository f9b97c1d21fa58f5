//! A model's part of a pack again: its preset, its baseline's reports, and the reports of its subjects.

use std::collections::{BTreeMap, BTreeSet};

use packhost_measure::Request;
use packhost_measure::preset::{self, PresetInputs, to_yaml};
use packhost_measure::table::Table;
use packhost_measure::tiers::Policies;
use packhost_measure::windows::Windows;
use packhost_pack::canonical::to_pretty;
use packhost_pack::digest;
use rayon::prelude::*;
use serde_json::{Value, json};

use super::changes::Editors;
use super::difference::Findings;
use super::evaluation::{About, Evaluation, windows};
use super::evidence::{Evidence, ModelFacts, bound_to};
use crate::graph::{Graph, TaskKind};
use crate::presets;
use crate::run::baselines::perturbs;
use crate::run::bound;
use crate::run::changes::{Changes, ProbeAbout, nothing};
use crate::run::paths;
use crate::run::record::PresetSource;
use crate::scenarios::{Generation, Scenario};

/// What was derived of a model. Of a report that cannot be derived the stated one is kept, so that the steps behind it show
/// their own differences.
pub struct Derived {
    pub folder: String,
    /// Reports of the unedited model, by seed.
    pub baselines: BTreeMap<u64, Value>,
    pub subjects: Vec<Subject>,
    pub judgements: usize,
}

/// A subject's report, with its probes by guard.
pub struct Subject {
    pub scenario: String,
    pub run: u32,
    pub seed: u64,
    /// In the run directory.
    pub path: String,
    pub report: Value,
    pub probes: BTreeMap<String, Value>,
}

/// A baseline on the windows of one seed.
struct Baseline {
    table: Table,
    windows: Windows,
    requests: Vec<Request>,
}

/// An evaluation that a run of these settings has.
#[derive(Clone, Copy)]
struct Due<'a> {
    /// Of the scenario in the table.
    index: usize,
    scenario: &'a Scenario,
    run: u32,
    seed: u64,
}

/// Derives what a pack says about a model.
pub fn derive(
    evidence: &Evidence<'_>,
    model: &ModelFacts,
    editors: &mut Editors<'_>,
    findings: &mut Findings,
) -> Derived {
    let folder = &model.record.folder;
    let mut derived = Derived {
        folder: folder.clone(),
        baselines: BTreeMap::new(),
        subjects: Vec::new(),
        judgements: 0,
    };
    let preset = preset(evidence, model, findings);
    let calibrated = presets::judging(preset.as_ref(), evidence.tier, evidence.profile, None);
    let calibrated = match calibrated {
        Ok(policies) => policies,
        Err(error) => {
            let name = paths::packed(&paths::preset(folder));
            findings.fail("replay.preset", &name, error.sentence());
            return derived;
        }
    };
    let graph = Graph::generate(
        std::slice::from_ref(folder),
        &evidence.manifest.scenarios,
        &evidence.record.counts,
    );
    let mut baselines = BTreeMap::new();
    let mut due = Vec::new();
    for task in &graph.tasks {
        match task.kind {
            TaskKind::BaselineReport { seed } => {
                let baseline = baseline(evidence, model, seed, &calibrated, &mut derived, findings);
                if let Some(baseline) = baseline {
                    baselines.insert(seed, baseline);
                }
            }
            TaskKind::Evaluate {
                scenario,
                run,
                seed,
            } => due.push(Due {
                index: scenario,
                scenario: &evidence.manifest.scenarios[scenario],
                run,
                seed,
            }),
            _ => {}
        }
    }
    unexpected(evidence, folder, &due, findings);
    for (index, scenario) in evidence.manifest.scenarios.iter().enumerate() {
        let runs = due.iter().filter(|due| due.index == index);
        let dirs = runs.map(|due| paths::packed_report_dir(folder, scenario, due.run));
        let metadata = dirs.map(|dir| format!("{dir}/{}", paths::metadata_name(scenario)));
        let metadata: Vec<String> = metadata.filter(|name| evidence.files.has(name)).collect();
        if !metadata.is_empty() {
            editors.check(model, scenario, &metadata, findings);
        }
    }
    let one = |due: &Due<'_>| {
        let mut findings = Findings::default();
        let subject = subject(
            evidence,
            model,
            *due,
            baselines.get(&due.seed),
            preset.as_ref(),
            &mut findings,
        );
        (subject, findings)
    };
    let subjects: Vec<_> = due.par_iter().map(one).collect();
    for (subject, found) in subjects {
        findings.merge(found);
        if let Some((subject, judgements)) = subject {
            derived.judgements += judgements;
            derived.subjects.push(subject);
        }
    }
    derived
}

/// The preset: derived where the run calibrated, else as the pack states it.
fn preset(evidence: &Evidence<'_>, model: &ModelFacts, findings: &mut Findings) -> Option<Value> {
    let record = &evidence.record;
    if record.preset == PresetSource::None {
        return None;
    }
    let folder = &model.record.folder;
    let name = paths::packed(&paths::preset(folder));
    let read = evidence.files.read(&name).and_then(|bytes| {
        preset::parse(&String::from_utf8_lossy(&bytes)).map_err(|error| error.to_string())
    });
    let stated = read
        .map_err(|why| findings.fail("replay.preset", &name, why))
        .ok()?;
    if stated["model"]["sha256"].is_string() {
        let weights = json!(model.facts.weights.sha256);
        findings.value("replay.preset", &name, "/model/sha256", &weights, &stated);
    }
    let derived = match record.preset {
        PresetSource::Derived => calibrated(evidence, model, findings),
        _ => None,
    };
    let check = |_: &str| "replay.preset";
    let preset = derived.unwrap_or(stated);
    findings.file(evidence.files, &check, &name, to_pretty(&preset).as_bytes());
    let yaml = paths::packed(&paths::in_yaml(&paths::preset(folder)));
    findings.file(evidence.files, &check, &yaml, to_yaml(&preset).as_bytes());
    Some(preset)
}

/// The preset that follows from the calibration tables.
fn calibrated(
    evidence: &Evidence<'_>,
    model: &ModelFacts,
    findings: &mut Findings,
) -> Option<Value> {
    let record = &evidence.record;
    let folder = &model.record.folder;
    let first = record.counts.seed;
    let mut tables = |path: fn(&str, u64) -> String| {
        let seeds = first..first.saturating_add(u64::from(record.counts.calibration_runs));
        let named = seeds.map(|seed| paths::packed_table(&path(folder, seed)));
        named
            .map(|name| {
                evidence
                    .table_of(model, &name, findings)
                    .map(|table| (name, table))
            })
            .collect::<Option<Vec<_>>>()
    };
    let ids = evidence.guards.ids();
    let runs = tables(paths::baseline_table)?;
    let perturbations = match perturbs(record.counts.calibration_runs, &ids) {
        true => tables(paths::perturbation_table)?,
        false => Vec::new(),
    };
    for ((name, noisy), (_, run)) in perturbations.iter().zip(&runs) {
        let drawn = bound::get(run, bound::WINDOWS);
        bound_to(
            name,
            bound::get(noisy, bound::WINDOWS),
            &runs[0].0,
            drawn,
            findings,
        );
    }
    let name = paths::packed(&paths::preset(folder));
    let (names, all): (Vec<String>, Vec<Table>) =
        runs.iter().chain(&perturbations).cloned().unzip();
    let derive = || {
        let policies = presets::judging(None, evidence.tier, evidence.profile, None)?;
        let metric = evidence.metric(first);
        let guards = &evidence.guards;
        let fitted = guards.calibrate(&policies, &metric, &all, perturbations.len())?;
        let derived = preset::derive(&PresetInputs {
            model_name: folder,
            model_id: &model.record.id,
            model_sha256: &model.facts.weights.sha256,
            policies: &policies,
            windows: &evidence.window_plan(model, first),
            provider: &record.dataset.provider,
            runs: &all[..runs.len()],
            perturbations: &all[runs.len()..],
            guards: &ids,
            fitted: &fitted,
        })?;
        Ok::<_, crate::Error>(derived)
    };
    match derive() {
        Err(error) => {
            findings.fail("replay.preset", &name, error.sentence());
            None
        }
        Ok((preset, statistics)) => {
            let file = paths::packed_statistics(folder);
            let before = findings.differences.len();
            let check = |_: &str| "replay.preset";
            findings.file(
                evidence.files,
                &check,
                &file,
                to_pretty(&statistics).as_bytes(),
            );
            if findings.differences.len() == before {
                findings.derived.extend(names);
            } else if let Some(stated) = evidence.json(&file, findings) {
                let listed = ["runs", "perturbations"].map(|list| stated[list].as_array());
                let listed = listed.into_iter().flatten().flatten().map(Value::as_str);
                for ((table, of), named) in names.iter().zip(&all).zip(listed) {
                    let named = named.unwrap_or_default();
                    bound_to(table, &of.digest(), &file, named, findings);
                }
            }
            // As it is read back from its file.
            serde_json::from_str(&to_pretty(&preset)).ok()
        }
    }
}

/// The report of the unedited model on the windows of a seed.
fn baseline(
    evidence: &Evidence<'_>,
    model: &ModelFacts,
    seed: u64,
    policies: &Policies,
    derived: &mut Derived,
    findings: &mut Findings,
) -> Option<Baseline> {
    let folder = &model.record.folder;
    let name = paths::packed_baseline_report(folder, seed);
    let stated = evidence.json(&name, findings)?;
    let windows = windows(&stated, evidence.window_plan(model, seed))
        .map_err(|why| findings.fail("replay.report", &name, why))
        .ok()?;
    let table_name = paths::packed_table(&paths::baseline_table(folder, seed));
    let table = evidence.table_of(model, &table_name, findings)?;
    let drawn = bound::get(&table, bound::WINDOWS);
    bound_to(
        &name,
        &bound::windows(&windows),
        &table_name,
        drawn,
        findings,
    );
    let requests = presets::judging(None, evidence.tier, evidence.profile, None)
        .and_then(|tier| {
            let metric = evidence.metric(seed);
            evidence.guards.plan(&tier, &metric, &model.facts.network)
        })
        .map_err(|error| findings.fail("replay.guard", &name, error.sentence()))
        .ok()?;
    let evaluation = Evaluation {
        evidence,
        model,
        what: "baseline",
        seed,
        policies: policies.clone(),
        edit: nothing(),
        probes: BTreeSet::new(),
        windows: &windows,
        requests: &requests,
        baseline: &table,
        report: name,
        baseline_table: table_name,
        subject_table: paths::packed_table(&paths::baseline_subject_table(folder, seed)),
        rounds_table: paths::packed_table(&paths::baseline_rounds_table(folder, seed)),
        about: None,
    };
    let report = match evaluation.derive(&stated, findings) {
        Some(evaluated) => {
            derived.judgements += evaluated.judgements;
            evaluated.report
        }
        None => stated,
    };
    derived.baselines.insert(seed, report);
    Some(Baseline {
        table,
        windows,
        requests,
    })
}

/// Reports that no run of these settings has, and runs of a scenario that are missing while others are there.
fn unexpected(evidence: &Evidence<'_>, folder: &str, due: &[Due<'_>], findings: &mut Findings) {
    let file = |due: &Due<'_>| {
        let dir = paths::packed_report_dir(folder, due.scenario, due.run);
        format!("{dir}/evaluation.report.json")
    };
    let has = |due: &Due<'_>| evidence.files.has(&file(due));
    for one in due {
        let same = |other: &&Due<'_>| other.scenario.id == one.scenario.id;
        if !has(one) && due.iter().filter(same).any(has) {
            let why = "is missing, but other runs of the scenario are there";
            findings.fail("replay.missing", &file(one), why);
        }
    }
    let prefix = format!("reports/{folder}/");
    let expected: BTreeSet<String> = due.iter().map(file).collect();
    let found = evidence.files.names();
    for name in found.filter(|name| name.starts_with(&prefix)) {
        if packhost_pack::layout::is_report(name) && !expected.contains(name) {
            let why = "belongs to no run of these settings";
            findings.fail("replay.unexpected", name, why);
        }
    }
}

/// A subject's report; none where the scenario was skipped.
fn subject(
    evidence: &Evidence<'_>,
    model: &ModelFacts,
    due: Due<'_>,
    baseline: Option<&Baseline>,
    preset: Option<&Value>,
    findings: &mut Findings,
) -> Option<(Subject, usize)> {
    let Due {
        scenario,
        run,
        seed,
        ..
    } = due;
    let folder = &model.record.folder;
    let dir = paths::packed_report_dir(folder, scenario, run);
    let name = format!("{dir}/evaluation.report.json");
    if !evidence.files.has(&name) {
        return None;
    }
    let stated = evidence.json(&name, findings)?;
    let mut subject = Subject {
        scenario: scenario.id.clone(),
        run,
        seed,
        path: format!(
            "{}/evaluation.report.json",
            paths::report_dir(folder, scenario, run)
        ),
        report: stated.clone(),
        probes: BTreeMap::new(),
    };
    for (guard, file) in paths::PROBES {
        let file = format!("{dir}/{file}");
        if evidence.files.has(&file)
            && let Some(probe) = evidence.json(&file, findings)
        {
            subject.probes.insert(guard.to_owned(), probe);
        }
    }
    let Some(baseline) = baseline else {
        findings.fail(
            "replay.report",
            &name,
            "cannot be derived without its baseline",
        );
        return Some((subject, 0));
    };
    let Some(evaluation) = evaluation(evidence, model, due, baseline, preset, findings) else {
        return Some((subject, 0));
    };
    let Some(evaluated) = evaluation.derive(&stated, findings) else {
        return Some((subject, 0));
    };
    let about = ProbeAbout {
        began: &evidence.record.began,
        model: &model.record.id,
        folder,
        seed,
        profile: evidence.profile.name(),
        tier: evidence.tier.name(),
    };
    subject.probes.clear();
    for (guard, file) in paths::PROBES {
        let file = format!("{dir}/{file}");
        match evaluated.probes.get(guard) {
            Some(answer) => {
                let probe = about.file(&evaluated.report, answer);
                let bytes = to_pretty(&probe).into_bytes();
                findings.file(evidence.files, &|_| "replay.probe", &file, &bytes);
                subject.probes.insert(guard.to_owned(), probe);
            }
            None if evidence.files.has(&file) => {
                let why = "is an answer that the guard does not give";
                findings.fail("replay.probe", &file, why);
            }
            None => {}
        }
    }
    subject.report = evaluated.report;
    Some((subject, evaluated.judgements))
}

fn evaluation<'a>(
    evidence: &'a Evidence<'_>,
    model: &'a ModelFacts,
    Due {
        scenario,
        run,
        seed,
        ..
    }: Due<'a>,
    baseline: &'a Baseline,
    preset: Option<&Value>,
    findings: &mut Findings,
) -> Option<Evaluation<'a>> {
    let folder = &model.record.folder;
    let dir = paths::packed_report_dir(folder, scenario, run);
    let metadata = format!("{dir}/{}", paths::metadata_name(scenario));
    let said = evidence.json(&metadata, findings)?;
    let plugin = |key: &str| said["packhost_plugin"][key].as_str().unwrap_or_default();
    evidence.pinned(plugin("id"), plugin("version"), plugin("sha256"), findings);
    let name = paths::packed(&paths::changes(folder, scenario));
    let listed = evidence.json(&name, findings)?;
    let sha256 = evidence.files.read(&name).map(|bytes| digest::hex(&bytes));
    let sha256 = sha256.unwrap_or_default();
    let changes: Changes = serde_json::from_value(listed)
        .map_err(|error| findings.fail("replay.changes", &name, error.to_string()))
        .ok()?;
    let spec = match &scenario.generation {
        Generation::Edit { edit_spec, .. } => Some(edit_spec.as_str()),
        Generation::Error { .. } | Generation::Perturbation { .. } => None,
    };
    let report = format!("{dir}/evaluation.report.json");
    let policies = presets::judging(preset, evidence.tier, evidence.profile, spec)
        .map_err(|error| findings.fail("replay.preset", &report, error.sentence()))
        .ok()?;
    Some(Evaluation {
        evidence,
        model,
        what: &scenario.id,
        seed,
        policies,
        edit: changes.identity(scenario, &said),
        probes: scenario.probes(),
        windows: &baseline.windows,
        requests: &baseline.requests,
        baseline: &baseline.table,
        report,
        baseline_table: paths::packed_table(&paths::baseline_table(folder, seed)),
        subject_table: paths::packed_table(&paths::subject_table(folder, &scenario.id, run)),
        rounds_table: paths::packed_table(&paths::rounds_table(folder, &scenario.id, run)),
        about: Some(About {
            changes: name,
            changes_sha256: sha256,
            metadata,
        }),
    })
}
