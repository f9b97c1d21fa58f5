//! What each task of a run does. Every result is written to the run directory before the task counts as done; whatever is
//! only in memory can be made again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::AtomicBool;

use packhost_measure::dataset::Dataset;
use packhost_measure::preset::{self, PresetInputs};
use packhost_measure::report::{EditIdentity, run_id};
use packhost_measure::table::Table;
use packhost_measure::tiers::{MetricOptions, Policies, PolicyInputs};
use packhost_measure::windows::{WindowPlan, Windows, select};
use packhost_model::writer::{WriteOptions, write_checkpoint};
use packhost_model::{TensorMeta, Weights};
use packhost_pack::canonical::to_pretty;
use packhost_pack::verdict::{self, FinalVerdict, JudgeOptions, RecordInput};
use serde_json::{Value, json};

use super::driver::{Done, Executor, Labels};
use super::memory::{Footprint, task_bytes};
use super::model::ModelState;
use super::request::RunRequest;
use super::{packing, paths};
use crate::evaluate::{Evaluation, Evaluator, MeasuredBaseline, SubjectInput};
use crate::graph::{Graph, Task, TaskKind};
use crate::guards::Guards;
use crate::rundir::RunDir;
use crate::scenarios::{Generation, Scenario};
use crate::spec::{Resolution, resolve};
use crate::subject::{PlannedEdit, Subject, inject};
use crate::toolbox::Toolbox;
use crate::{Error, Result};

/// Hidden states kept per baseline and seed, as a share of the memory budget.
const HIDDEN_SHARE: u64 = 8;

/// The run's executor.
pub struct Work<'a> {
    pub request: &'a RunRequest,
    pub graph: &'a Graph,
    pub dir: &'a RunDir,
    pub toolbox: &'a Toolbox,
    pub guards: Guards,
    pub dataset: Dataset,
    pub models: Vec<ModelState>,
    /// Sizes of the models, in the same order.
    pub footprints: Vec<Footprint>,
    /// When the run began, RFC 3339: the time in everything that it writes, so that a resumed run writes the same bytes.
    pub began: String,
    pub cancel: &'a AtomicBool,
}

impl Executor for Work<'_> {
    fn execute(&self, task: &Task) -> Result<Done> {
        match &task.kind {
            TaskKind::SetupBaseline => self.set_up(self.model(task)),
            TaskKind::CalibrationRun { run, seed } => self.calibrate(self.model(task), *run, *seed),
            TaskKind::BaselineReport { seed } => self.baseline_report(self.model(task), *seed),
            TaskKind::GeneratePreset => self.generate_preset(self.model(task)),
            TaskKind::Create { scenario } => self.create(self.model(task), *scenario),
            TaskKind::Evaluate {
                scenario,
                run,
                seed,
            } => self.evaluate(self.model(task), *scenario, *run, *seed),
            TaskKind::Cleanup { scenario } => {
                self.model(task).drop_subject(*scenario);
                Ok(Done::default())
            }
            TaskKind::Verdict => self.verdict(),
            TaskKind::Pack => packing::seal(self),
        }
    }

    fn bytes(&self, task: &Task) -> u64 {
        task.model
            .map_or(0, |index| task_bytes(&self.footprints[index], task))
    }

    fn labels(&self, task: &Task) -> Labels {
        let (scenario, run) = match &task.kind {
            TaskKind::Evaluate { scenario, run, .. } => (Some(*scenario), Some(*run)),
            TaskKind::Create { scenario } | TaskKind::Cleanup { scenario } => {
                (Some(*scenario), None)
            }
            TaskKind::CalibrationRun { run, .. } => (None, Some(*run)),
            _ => (None, None),
        };
        Labels {
            model: task
                .model
                .map(|index| self.models[index].request.id.clone()),
            scenario: scenario.map(|index| self.scenario(index).id.clone()),
            run,
        }
    }
}

impl Work<'_> {
    /// The model of a task that has one. Tasks of the whole run never ask.
    fn model(&self, task: &Task) -> &ModelState {
        &self.models[task.model.unwrap_or_default()]
    }

    pub fn scenario(&self, index: usize) -> &Scenario {
        &self.request.manifest.scenarios[index]
    }

    fn set_up(&self, model: &ModelState) -> Result<Done> {
        let opened = model.open()?;
        let checkpoint = &opened.checkpoint;
        let elements: u64 = checkpoint.tensors().iter().map(TensorMeta::len).sum();
        let profile = json!({
            "model_id": model.request.id,
            "revision": model.request.revision,
            "architecture": checkpoint.config().architecture_name,
            "parameters": elements,
            "tensors": checkpoint.tensors().len(),
            "shards": checkpoint.shard_digests()?,
            "tokenizer_sha256": opened.tokenizer.digest(),
        });
        let mut outputs = BTreeMap::new();
        let folder = &model.request.folder;
        self.put(
            &mut outputs,
            &paths::profile(folder),
            to_pretty(&profile).as_bytes(),
        )?;
        self.put(
            &mut outputs,
            &format!("{folder}/.model_id"),
            model.request.id.as_bytes(),
        )?;
        let dir = model.request.dir.display().to_string();
        self.dir
            .write(&format!("{folder}/.baseline_path"), dir.as_bytes())?;
        Ok(Done {
            summary: format!("{}: opened, {elements} parameters", model.request.id),
            outputs,
        })
    }

    fn calibrate(&self, model: &ModelState, run: u32, seed: u64) -> Result<Done> {
        self.with_baseline(model, seed, |baseline| {
            let drift = preset::drift_of(&baseline.table)?;
            let folder = &model.request.folder;
            let report = json!({
                "run": run, "seed": seed, "table": baseline.table.digest(), "preview_final_ratio": drift,
                "windows": {"preview": baseline.windows.preview.len(), "final": baseline.windows.final_.len()},
            });
            let mut outputs = BTreeMap::new();
            self.put(&mut outputs, &paths::baseline_table(folder, seed), baseline.table.to_json().as_bytes())?;
            self.put(&mut outputs, &paths::calibration(folder, run), to_pretty(&report).as_bytes())?;
            Ok(Done { summary: format!("calibration run {run}, seed {seed}: drift {drift:.4}"), outputs })
        })
    }

    fn baseline_report(&self, model: &ModelState, seed: u64) -> Result<Done> {
        self.with_baseline(model, seed, |baseline| {
            let mut outputs = BTreeMap::new();
            let path = paths::baseline_table(&model.request.folder, seed);
            self.put(&mut outputs, &path, baseline.table.to_json().as_bytes())?;
            Ok(Done {
                summary: format!("baseline measured, seed {seed}"),
                outputs,
            })
        })
    }

    fn generate_preset(&self, model: &ModelState) -> Result<Done> {
        let seeds = (0..u64::from(self.request.counts.calibration_runs))
            .map(|run| self.request.counts.seed + run);
        let runs: Vec<Table> = seeds
            .map(|seed| self.stored_table(model, seed))
            .collect::<Result<_>>()?;
        let policies = self.tier_policies()?;
        let metric = self.metric(self.request.counts.seed);
        let fitted = self.guards.calibrate(&policies, &metric, &runs)?;
        let (preset, statistics) = preset::derive(&PresetInputs {
            model_name: &model.request.folder,
            model_id: &model.request.id,
            policies: &policies,
            windows: &self.window_plan(model, self.request.counts.seed),
            provider: self.dataset.provider().name(),
            runs: &runs,
            guards: &self.guards.ids(),
            fitted: &fitted,
        })?;
        let mut outputs = BTreeMap::new();
        let folder = &model.request.folder;
        self.put(
            &mut outputs,
            &paths::preset(folder),
            to_pretty(&preset).as_bytes(),
        )?;
        self.put(
            &mut outputs,
            &paths::calibration_statistics(folder),
            to_pretty(&statistics).as_bytes(),
        )?;
        for edit_type in self.edit_types() {
            let variant = preset::for_edit(&preset, edit_type, self.request.tier, None);
            self.put(
                &mut outputs,
                &paths::preset_variant(folder, edit_type),
                to_pretty(&variant).as_bytes(),
            )?;
        }
        Ok(Done {
            summary: format!("preset derived from {} calibration runs", runs.len()),
            outputs,
        })
    }

    fn create(&self, model: &ModelState, scenario: usize) -> Result<Done> {
        let Some(subject) = self.make_subject(model, scenario)? else {
            return Ok(Done {
                summary: format!("{}: skipped by its tuned entry", self.scenario(scenario).id),
                ..Done::default()
            });
        };
        let subject = model.keep_subject(scenario, subject);
        if self.request.materialize {
            self.materialize(model, scenario, &subject)?;
        }
        let mut outputs = BTreeMap::new();
        let path = paths::metadata(&model.request.folder, self.scenario(scenario));
        self.put(&mut outputs, &path, to_pretty(&subject.metadata).as_bytes())?;
        Ok(Done {
            summary: String::new(),
            outputs,
        })
    }

    /// Makes the subject of a scenario; none when the tuned parameters skip it.
    fn make_subject(&self, model: &ModelState, scenario: usize) -> Result<Option<Subject>> {
        let base = &model.open()?.checkpoint;
        let keys = [model.request.id.as_str(), model.request.folder.as_str()];
        let scenario = self.scenario(scenario);
        let subject = match &scenario.generation {
            Generation::Edit { edit_spec, version } => {
                match resolve(edit_spec, version, &self.request.tuned, &keys) {
                    Resolution::Selected(edit) => {
                        PlannedEdit::new(self.toolbox, base, &edit)?.into_subject(base)?
                    }
                    Resolution::Skipped { .. } => return Ok(None),
                    Resolution::Refused { status, reason } => {
                        return Err(Error::EditSpec {
                            spec: edit_spec.clone(),
                            status,
                            reason,
                        });
                    }
                }
            }
            Generation::Error { error_type, .. } => inject(
                self.toolbox,
                base,
                error_type,
                &scenario.injection_env(&keys)?,
            )?,
        };
        Ok(Some(subject))
    }

    fn materialize(&self, model: &ModelState, scenario: usize, subject: &Subject) -> Result<()> {
        let name = match self.scenario(scenario).generation {
            Generation::Edit { .. } => "edit_metadata.json",
            Generation::Error { .. } => "error_metadata.json",
        };
        let options = WriteOptions {
            link: packhost_model::writer::LinkMode::Hardlink,
            replace: true,
            extra_files: BTreeMap::from([(
                name.to_string(),
                to_pretty(&subject.metadata).into_bytes(),
            )]),
        };
        let dir = self.dir.path(&paths::subject(
            &model.request.folder,
            self.scenario(scenario),
        ));
        if let Some(parent) = dir.parent() {
            std::fs::create_dir_all(parent).map_err(|error| Error::io("create", parent, error))?;
        }
        write_checkpoint(&subject.overlay, &dir, &options)?;
        Ok(())
    }

    fn evaluate(&self, model: &ModelState, index: usize, run: u32, seed: u64) -> Result<Done> {
        let scenario = self.scenario(index);
        // After a resume the subject is made again: its creation is recorded, but memory is gone.
        let subject = match model.subject(index) {
            Some(subject) => subject,
            None => match self.make_subject(model, index)? {
                Some(subject) => model.keep_subject(index, subject),
                None => return Ok(Done::default()),
            },
        };
        let policies = model.policies(|| self.calibrated_policies(model))?;
        let evaluation = self.with_baseline(model, seed, |baseline| {
            let input = SubjectInput {
                weights: &subject.overlay,
                base: &**subject.overlay.base(),
                identity: model.identity(&scenario.id, seed)?,
                edit: edit_identity(scenario, &subject),
                changed: subject
                    .overlay
                    .changed()
                    .keys()
                    .cloned()
                    .collect::<BTreeSet<_>>(),
            };
            self.evaluator()
                .subject(baseline, &input, policies, self.metric(seed))
        })?;
        self.store(model, scenario, run, &subject, &evaluation)
    }

    fn store(
        &self,
        model: &ModelState,
        scenario: &Scenario,
        run: u32,
        subject: &Subject,
        evaluation: &Evaluation,
    ) -> Result<Done> {
        let folder = &model.request.folder;
        let report_dir = paths::report_dir(folder, scenario, run);
        let mut outputs = BTreeMap::new();
        let metadata = match scenario.generation {
            Generation::Edit { .. } => "edit_metadata.json",
            Generation::Error { .. } => "error_metadata.json",
        };
        let put = |outputs: &mut _, name: &str, value: &Value| {
            self.put(
                outputs,
                &format!("{report_dir}/{name}"),
                to_pretty(value).as_bytes(),
            )
        };
        put(&mut outputs, "evaluation.report.json", &evaluation.report)?;
        put(&mut outputs, metadata, &subject.metadata)?;
        let table = evaluation.table.to_json();
        self.put(
            &mut outputs,
            &paths::subject_table(folder, &scenario.id, run),
            table.as_bytes(),
        )?;
        Ok(Done {
            summary: summary(scenario, run, &evaluation.report),
            outputs,
        })
    }

    fn verdict(&self) -> Result<Done> {
        let verdict = self.judge()?;
        let mut outputs = BTreeMap::new();
        for (name, bytes) in verdict::files(&verdict) {
            let file = Path::new(&name)
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or(&name);
            self.put(&mut outputs, &format!("reports/{file}"), &bytes)?;
        }
        let failed: Vec<_> = verdict
            .failed_requirements
            .iter()
            .map(|failed| failed.id)
            .collect();
        let why = if failed.is_empty() {
            String::new()
        } else {
            format!(" ({})", failed.join(", "))
        };
        Ok(Done {
            summary: format!("verdict {}{why}", verdict.word()),
            outputs,
        })
    }

    /// The verdict, from the reports in the run directory.
    pub fn judge(&self) -> Result<FinalVerdict> {
        let table = serde_json::to_value(&self.request.manifest).unwrap_or_default();
        let scenarios = verdict::scenarios(&table)?;
        let models: Vec<String> = self
            .models
            .iter()
            .map(|model| model.request.folder.clone())
            .collect();
        let reports = self.reports()?;
        let inputs: Vec<RecordInput<'_>> = reports
            .iter()
            .map(|report| RecordInput {
                model: &report.model,
                scenario: &report.scenario,
                run: report.run,
                path: &report.path,
                report: &report.value,
                baseline: None,
                rmt_probe: None,
                ve_probe: None,
            })
            .collect();
        let options = JudgeOptions {
            timestamp: &self.began,
            manifest_path: "state/scenarios.json",
        };
        Ok(verdict::judge_run(&scenarios, &models, &inputs, options)?)
    }

    /// Every evaluation report of the run, in task order.
    pub fn reports(&self) -> Result<Vec<StoredReport>> {
        let mut reports = Vec::new();
        for task in &self.graph.tasks {
            let TaskKind::Evaluate { scenario, run, .. } = task.kind else {
                continue;
            };
            let (model, scenario) = (self.model(task), self.scenario(scenario));
            let path = format!(
                "{}/evaluation.report.json",
                paths::report_dir(&model.request.folder, scenario, run)
            );
            // A scenario that its tuned entry skips has no report.
            let Ok(bytes) = self.dir.read(&path) else {
                continue;
            };
            let value = serde_json::from_slice(&bytes)
                .map_err(|error| Error::io("read", &self.dir.path(&path), error.into()))?;
            let model = model.request.folder.clone();
            reports.push(StoredReport {
                model,
                scenario: scenario.id.clone(),
                run,
                path,
                value,
            });
        }
        Ok(reports)
    }

    fn with_baseline<T>(
        &self,
        model: &ModelState,
        seed: u64,
        then: impl FnOnce(&MeasuredBaseline) -> Result<T>,
    ) -> Result<T> {
        let make = || {
            let opened = model.open()?;
            let windows = self.windows(model, seed)?;
            let requests =
                self.guards
                    .plan(&self.tier_policies()?, &self.metric(seed), &opened.info)?;
            self.evaluator().baseline(
                &*opened.checkpoint,
                model.identity("baseline", seed)?,
                windows,
                requests,
            )
        };
        model.with_baseline(seed, make, then)
    }

    fn windows(&self, model: &ModelState, seed: u64) -> Result<Windows> {
        Ok(select(
            self.dataset.texts(),
            &model.open()?.tokenizer,
            &self.window_plan(model, seed),
        )?)
    }

    fn window_plan(&self, model: &ModelState, seed: u64) -> WindowPlan {
        let size = model.request.size;
        WindowPlan {
            seq_len: size.seq_len,
            preview: size.preview,
            final_: size.final_,
            seed,
            run: 0,
            selection: self.request.selection,
            profile: self.request.pack.profile,
        }
    }

    fn evaluator(&self) -> Evaluator<'_> {
        let seeds = u64::from(self.request.counts.calibration_runs.max(1));
        Evaluator {
            toolbox: self.toolbox,
            guards: &self.guards,
            dataset: &self.dataset,
            timestamp: &self.began,
            hidden_bytes: self.request.memory / HIDDEN_SHARE / seeds,
            cancel: self.cancel,
        }
    }

    fn metric(&self, seed: u64) -> MetricOptions {
        MetricOptions {
            seed,
            replicates: self.request.replicates(),
            alpha: 0.05,
        }
    }

    fn tier_policies(&self) -> Result<Policies> {
        self.resolve_policies(None)
    }

    fn resolve_policies(&self, overrides: Option<&Value>) -> Result<Policies> {
        let inputs = PolicyInputs {
            tier: self.request.tier,
            profile: self.request.pack.profile,
            edit: None,
            overrides,
        };
        Ok(Policies::resolve(&inputs)?)
    }

    /// The tier's policies with the preset's overrides: the preset of this run, or the one that was given.
    fn calibrated_policies(&self, model: &ModelState) -> Result<Policies> {
        let Some(text) = self.preset_text(model)? else {
            return self.tier_policies();
        };
        let overrides = preset::overrides(&text)?;
        self.resolve_policies(Some(&overrides))
    }

    /// The preset's text: none when a run neither calibrates nor was given one.
    pub fn preset_text(&self, model: &ModelState) -> Result<Option<String>> {
        let name = paths::preset(&model.request.folder);
        let path = match &self.request.preset {
            Some(given) if given.is_dir() => {
                given.join(Path::new(&name).file_name().unwrap_or_default())
            }
            Some(given) => given.clone(),
            None if self.request.counts.calibration_runs == 0 => return Ok(None),
            None => self.dir.path(&name),
        };
        std::fs::read_to_string(&path)
            .map(Some)
            .map_err(|error| Error::io("read the preset", &path, error))
    }

    fn stored_table(&self, model: &ModelState, seed: u64) -> Result<Table> {
        let bytes = self
            .dir
            .read(&paths::baseline_table(&model.request.folder, seed))?;
        Ok(Table::parse(&String::from_utf8_lossy(&bytes))?)
    }

    /// Types of the edits in this run, for preset variants.
    fn edit_types(&self) -> BTreeSet<&str> {
        let of = |scenario: &'_ Scenario| match &scenario.generation {
            Generation::Edit { edit_spec, .. } => edit_spec.split(':').next().map(str::to_owned),
            Generation::Error { .. } => None,
        };
        let types: BTreeSet<String> = self
            .request
            .manifest
            .scenarios
            .iter()
            .filter_map(of)
            .collect();
        ["quant_rtn", "fp8_quant", "magnitude_prune", "lowrank_svd"]
            .into_iter()
            .filter(|t| types.contains(*t))
            .collect()
    }

    fn put(&self, outputs: &mut BTreeMap<String, String>, path: &str, bytes: &[u8]) -> Result<()> {
        let digest = self.dir.write(path, bytes)?;
        outputs.insert(path.into(), digest);
        Ok(())
    }
}

/// A report as it lies in the run directory.
pub struct StoredReport {
    pub model: String,
    pub scenario: String,
    pub run: u32,
    /// Relative to the run directory.
    pub path: String,
    pub value: Value,
}

fn edit_identity(scenario: &Scenario, subject: &Subject) -> EditIdentity {
    let changed = subject.overlay.changed();
    let layers: BTreeSet<_> = changed
        .keys()
        .filter_map(|name| subject.overlay.meta(name)?.layer)
        .collect();
    let params_changed = changed
        .keys()
        .filter_map(|name| subject.overlay.meta(name))
        .map(TensorMeta::len)
        .sum();
    let (name, spec) = match &scenario.generation {
        Generation::Edit { edit_spec, .. } => (
            edit_spec.split(':').next().unwrap_or_default(),
            edit_spec.as_str(),
        ),
        Generation::Error { error_type, .. } => (error_type.as_str(), error_type.as_str()),
    };
    EditIdentity {
        name: name.into(),
        spec: spec.into(),
        digest: run_id(&[&subject.metadata.to_string()]),
        layers_modified: layers.len(),
        params_changed,
    }
}

/// One line for people: scenario, ratio, and what the flags say.
fn summary(scenario: &Scenario, run: u32, report: &Value) -> String {
    let ratio = report["primary_metric"]["ratio_vs_baseline"].as_f64();
    let ratio = ratio.map_or("no ratio".into(), |ratio| format!("ratio {ratio:.4}"));
    let invariants = report["invariants"]["status"].as_str().unwrap_or("none");
    let metric = match report["validation"]["primary_metric_acceptable"].as_bool() {
        Some(true) => "acceptable",
        _ => "not acceptable",
    };
    format!(
        "{:<34} run {run}  {ratio:<18} metric {metric}, invariants {invariants}",
        scenario.id
    )
}
