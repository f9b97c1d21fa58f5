//! The last task: gathering what a run wrote and sealing it as an evidence pack.
//!
//! Beside the format's own files the pack holds, under `metadata/packhost/`, everything from which the verdict can be
//! derived again: the run's settings, the measurement tables, the presets, the baseline's reports, which tensors each subject
//! changed, the components of guards, edits and faults by digest, and the lock file. [`crate::replay`] reads them.

use std::collections::{BTreeMap, BTreeSet};

use packhost_measure::preset::to_yaml;
use packhost_pack::canonical::to_pretty;
use packhost_pack::keys::{self, SigningKey};
use packhost_pack::provenance::{Gpus, Runtime, SourceHints, environment, source_repo};
use packhost_pack::seal::{self, Entry, RunInfo, SealRequest};
use packhost_plugin::{Lock, PluginKind};
use packhost_tensor::cpu::matmul::uses_matrix_tiles;
use serde_json::Value;

use super::driver::Done;
use super::paths;
use super::record::RunRecord;
use super::work::Work;
use crate::Result;
use crate::graph::TaskKind;
use crate::page::PackPage;
use crate::scenarios::{Generation, Manifest};
use crate::spec::{Resolution, resolve};
use crate::toolbox::LOCK_FILE;

/// Seals the pack of a run.
pub fn seal(work: &Work<'_>) -> Result<Done> {
    let request = &work.request.pack;
    let out = request
        .dir
        .clone()
        .unwrap_or_else(|| work.dir.path("evidence_pack"));
    let key = signing_key(work)?;
    let verdict = work.judge()?;
    let table = serde_json::to_value(&work.request.manifest).unwrap_or_default();
    let models = work.models.iter().map(|model| seal::Model {
        id: model.request.id.clone(),
        revision: model.request.revision.clone().unwrap_or_default(),
    });
    let run = RunInfo {
        suite: work.request.suite.clone(),
        online: false,
        determinism: "strict".into(),
        repeats: 0,
        determinism_repeats: Value::Null,
        run_dir: ".".into(),
        scenario_ids: scenario_filter(&work.request.manifest),
        dataset_kind: work.request.dataset.kind.clone(),
        models: models.collect(),
    };
    let runtime = Runtime {
        image_ref: request.image_ref.clone(),
        image_digest: request.image_digest.clone(),
        generated_at: work.began.clone(),
        third_party_plugins: true,
        context: None,
    };
    let sealed = seal::seal(&SealRequest {
        out: &out,
        key: key.as_ref(),
        entries: entries(work)?,
        verdict: &verdict,
        scenarios: Some(&table),
        run: &run,
        source_repo: &source()?,
        environment: &machine(&work.began),
        runtime: Some(&runtime),
        generated_at: &work.began,
        profile: pack_profile(request.profile),
        assurance: request.assurance,
        readme: None,
        page: Some(&PackPage),
        require_pass: request.require_pass,
        release_review: false,
    })?;
    let signer = sealed.signer_fingerprint.as_deref().unwrap_or("nobody");
    let warnings: String = sealed
        .warnings
        .iter()
        .map(|warning| format!("; warning: {}", warning.message))
        .collect();
    let summary = format!(
        "sealed {} files in {}, signed by {signer}{warnings}",
        sealed.files,
        sealed.pack.display()
    );
    Ok(Done {
        summary,
        outputs: BTreeMap::new(),
    })
}

/// The machine, with what the last places of products depend on: whoever measures again holds rows to the bit where it is the
/// same.
fn machine(began: &str) -> Value {
    let mut machine = environment(began, &Gpus::default());
    machine["matrix_tiles"] = uses_matrix_tiles().into();
    machine
}

/// The reports are verified in the pack at the same profile that they were made with.
pub(crate) fn pack_profile(
    profile: packhost_measure::tiers::Profile,
) -> packhost_pack::report_rules::Profile {
    use packhost_measure::tiers::Profile as Made;
    use packhost_pack::report_rules::Profile as Verified;
    match profile {
        Made::Dev | Made::CiCpu => Verified::Dev,
        Made::Ci => Verified::Ci,
        Made::Release => Verified::Release,
    }
}

/// The key that was given, or a throw-away one: good for integrity, useless for origin. It is kept in the run directory,
/// so that a resumed run signs with the same one.
fn signing_key(work: &Work<'_>) -> Result<Option<SigningKey>> {
    let request = &work.request.pack;
    if !request.sign {
        return Ok(None);
    }
    let path = match &request.key {
        Some(path) => path.clone(),
        None => {
            let path = work.dir.path("state/throwaway.key.pem");
            if !path.is_file() {
                keys::generate(&path, None)?;
            }
            path
        }
    };
    Ok(Some(keys::load_signing(&path)?))
}

/// Scenario ids that a manifest was restricted to.
pub(crate) fn scenario_filter(manifest: &Manifest) -> Vec<String> {
    let filter = manifest.meta.get("scenario_ids_filter");
    filter
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(Into::into)
        .collect()
}

/// Where the program's source comes from, as packs record it. Asked before a run as well as after it: a folder from which no
/// pack can be sealed must not be found out about when the work is done.
pub fn source() -> Result<Value> {
    let folder = std::env::current_dir().unwrap_or_default();
    Ok(source_repo(&folder, &source_hints())?)
}

/// What the environment says about the source (`INVARLOCK_SOURCE_*`), where there is no checkout.
fn source_hints() -> SourceHints {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let overrides = ["commit", "uri", "branch", "describe", "dirty"]
        .into_iter()
        .filter_map(|key| {
            let value = variable(&format!("INVARLOCK_SOURCE_{}", key.to_uppercase()))?;
            Some((format!("source_{key}"), value))
        });
    SourceHints {
        marker: variable("INVARLOCK_SOURCE_REPO_MARKER").map(Into::into),
        overrides: overrides.collect(),
    }
}

/// Everything of the run that goes into the pack.
fn entries(work: &Work<'_>) -> Result<Vec<Entry>> {
    let record = to_pretty(&RunRecord::of(work).json());
    let mut entries = vec![Entry::bytes(paths::packed_record(), record)];
    entries.extend(changes(work));
    for task in &work.graph.tasks {
        let TaskKind::Evaluate { scenario, run, .. } = task.kind else {
            continue;
        };
        let (model, scenario) = (
            &work.models[task.model.unwrap_or_default()].request.folder,
            work.scenario(scenario),
        );
        let (from, to) = (
            paths::report_dir(model, scenario, run),
            paths::packed_report_dir(model, scenario, run),
        );
        let metadata = paths::metadata_name(scenario);
        let table = paths::subject_table(model, &scenario.id, run);
        let rounds = paths::rounds_table(model, &scenario.id, run);
        let files = [
            (
                format!("{from}/evaluation.report.json"),
                format!("{to}/evaluation.report.json"),
            ),
            (format!("{from}/{metadata}"), format!("{to}/{metadata}")),
            (table.clone(), paths::packed_table(&table)),
            (rounds.clone(), paths::packed_table(&rounds)),
        ];
        let probes =
            paths::PROBES.map(|(_, name)| (format!("{from}/{name}"), format!("{to}/{name}")));
        // A scenario that its tuned entry skips has none of them; probes and further rounds are of some only.
        entries.extend(
            files
                .into_iter()
                .chain(probes)
                .filter(|(from, _)| work.dir.path(from).is_file())
                .map(|(from, to)| Entry::file(to, work.dir.path(&from))),
        );
    }
    entries.extend(model_entries(work)?);
    entries.extend(plugin_entries(work)?);
    let tuned = "state/tuned_edit_params.json";
    if work.dir.path(tuned).is_file() {
        entries.push(Entry::file(paths::PACKED_TUNED, work.dir.path(tuned)));
    }
    Ok(entries)
}

/// Which tensors each subject changed.
fn changes(work: &Work<'_>) -> Vec<Entry> {
    let mut entries = Vec::new();
    for task in &work.graph.tasks {
        let TaskKind::Create { scenario } = task.kind else {
            continue;
        };
        let model = &work.model(task).request.folder;
        let path = paths::changes(model, work.scenario(scenario));
        if work.dir.path(&path).is_file() {
            entries.push(Entry::file(paths::packed(&path), work.dir.path(&path)));
        }
    }
    entries
}

/// Per model: profile, preset, and the baseline's tables and reports.
fn model_entries(work: &Work<'_>) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for (index, model) in work.models.iter().enumerate() {
        let folder = &model.request.folder;
        entries.push(Entry::file(
            paths::packed_profile(folder),
            work.dir.path(&paths::profile(folder)),
        ));
        if let Some(preset) = work.preset(model)? {
            let path = paths::preset(folder);
            let yaml = paths::packed(&paths::in_yaml(&path));
            entries.push(Entry::bytes(yaml, to_yaml(&preset)));
            entries.push(Entry::bytes(paths::packed(&path), to_pretty(&preset)));
        }
        let statistics = work.dir.path(&paths::calibration_statistics(folder));
        if statistics.is_file() {
            entries.push(Entry::file(paths::packed_statistics(folder), statistics));
        }
        let of_model = work
            .graph
            .tasks
            .iter()
            .filter(|task| task.model == Some(index));
        let mut seeds = BTreeSet::new();
        for task in of_model {
            match task.kind {
                TaskKind::CalibrationRun { seed, .. } => {
                    seeds.insert(seed);
                }
                TaskKind::BaselineReport { seed } => {
                    seeds.insert(seed);
                    let path = work.dir.path(&paths::baseline_report(folder, seed));
                    let to = paths::packed_baseline_report(folder, seed);
                    entries.push(Entry::file(to, path));
                }
                _ => {}
            }
        }
        for seed in seeds {
            let tables = [
                paths::baseline_table(folder, seed),
                paths::baseline_subject_table(folder, seed),
                paths::baseline_rounds_table(folder, seed),
                paths::perturbation_table(folder, seed),
            ];
            let written = tables.iter().filter(|path| work.dir.path(path).is_file());
            entries.extend(
                written.map(|path| Entry::file(paths::packed_table(path), work.dir.path(path))),
            );
        }
    }
    Ok(entries)
}

/// The components that judged and those that made subjects, by digest, and the lock of every installed plugin.
fn plugin_entries(work: &Work<'_>) -> Result<Vec<Entry>> {
    let registry = work.toolbox.registry();
    let lock = Lock::of(registry, LOCK_FILE).to_toml()?;
    let mut entries = vec![Entry::bytes(paths::packed(LOCK_FILE), lock)];
    let ids = work.guards.identities().into_iter().map(|guard| guard.id);
    let mut used: BTreeSet<String> = ids.collect();
    for (kind, named) in served(work) {
        used.insert(registry.serving(kind, &named)?.id().into());
    }
    for entry in used.iter().filter_map(|id| registry.get(id)) {
        let packed = paths::packed_component(entry.digest());
        entries.push(Entry::file(packed, entry.component()));
    }
    Ok(entries)
}

/// Types of the edits and faults that were applied to a model of the run.
fn served(work: &Work<'_>) -> Vec<(PluginKind, String)> {
    let mut types = Vec::new();
    for task in &work.graph.tasks {
        let TaskKind::Create { scenario } = task.kind else {
            continue;
        };
        let keys = work.model(task).request.keys();
        match &work.scenario(scenario).generation {
            Generation::Edit { edit_spec, version } => {
                let resolved = resolve(edit_spec, version, &work.request.tuned, &keys);
                if let Resolution::Selected(edit) = resolved {
                    types.push((PluginKind::Edit, edit.edit_type));
                }
            }
            Generation::Error { error_type, .. } => {
                types.push((PluginKind::Injection, error_type.clone()));
            }
            Generation::Perturbation { .. } => {}
        }
    }
    types
}
