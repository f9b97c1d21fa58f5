//! The executor of a run: which function does which task, and what those functions share. `baselines`, `subjects`, `verdict`
//! and `packing` hold the tasks themselves.
//!
//! Every result is written to the run directory before the task counts as done; whatever is only in memory can be made again.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use packhost_measure::dataset::Dataset;
use packhost_measure::tiers::{MetricOptions, Policies};
use packhost_measure::windows::{WindowPlan, Windows, select};

use super::bound;
use super::driver::{Done, Executor, Labels};
use super::memory::{Footprint, task_bytes};
use super::model::ModelState;
use super::packing;
use super::paths;
use super::request::RunRequest;
use crate::Result;
use crate::evaluate::{ALPHA, Evaluator, MeasuredBaseline};
use crate::graph::{Graph, Task, TaskKind};
use crate::guards::Guards;
use crate::presets;
use crate::rundir::{RunDir, hex_digest};
use crate::scenarios::{Generation, Scenario};
use crate::toolbox::Toolbox;

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
    pub(super) fn model(&self, task: &Task) -> &ModelState {
        &self.models[task.model.unwrap_or_default()]
    }

    pub(super) fn scenario(&self, index: usize) -> &Scenario {
        &self.request.manifest.scenarios[index]
    }

    pub(super) fn with_baseline<T>(
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
            let weights = &*opened.checkpoint;
            let evaluator = self.evaluator();
            let fixed = model.fixed(|| evaluator.fixed(weights, &windows, &requests))?;
            let identity = model.identity("baseline", seed)?;
            let facts = self.dir.read(&paths::profile(&model.request.folder))?;
            let drawn = bound::windows(&windows);
            let mut measured = evaluator.baseline(weights, identity, windows, requests, fixed)?;
            bound::put(&mut measured.table, bound::MODEL, &hex_digest(&facts));
            bound::put(&mut measured.table, bound::WINDOWS, &drawn);
            Ok(measured)
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

    pub(super) fn window_plan(&self, model: &ModelState, seed: u64) -> WindowPlan {
        model
            .request
            .size
            .window_plan(seed, self.request.selection, self.request.pack.profile)
    }

    pub(super) fn evaluator(&self) -> Evaluator<'_> {
        let seeds = u64::from(self.request.counts.calibration_runs.max(1));
        Evaluator {
            device: &self.toolbox.device,
            guards: &self.guards,
            dataset: self.dataset.identity(),
            timestamp: &self.began,
            hidden_bytes: self.request.memory / HIDDEN_SHARE / seeds,
            cancel: self.cancel,
        }
    }

    pub(super) fn metric(&self, seed: u64) -> MetricOptions {
        MetricOptions {
            seed,
            replicates: self.request.replicates(),
            alpha: ALPHA,
        }
    }

    /// The tier's policies, without any preset.
    pub(super) fn tier_policies(&self) -> Result<Policies> {
        presets::judging(None, self.request.tier, self.request.pack.profile, None)
    }

    /// The tier's policies with the preset's overrides: the preset of this run, or the one that was given.
    pub(super) fn calibrated_policies(&self, model: &ModelState) -> Result<Policies> {
        let preset = self.preset(model)?;
        let (tier, profile) = (self.request.tier, self.request.pack.profile);
        presets::judging(preset.as_ref(), tier, profile, None)
    }

    /// The policies that judge a scenario's subject.
    pub(super) fn policies_for(&self, model: &ModelState, scenario: &Scenario) -> Result<Policies> {
        let Generation::Edit { edit_spec, .. } = &scenario.generation else {
            let policies = model.policies(|| self.calibrated_policies(model))?;
            return Ok(policies.clone());
        };
        let preset = self.preset(model)?;
        let (tier, profile) = (self.request.tier, self.request.pack.profile);
        presets::judging(preset.as_ref(), tier, profile, Some(edit_spec))
    }

    /// Writes a file of the run and notes its digest among `outputs`.
    pub(super) fn put(
        &self,
        outputs: &mut BTreeMap<String, String>,
        path: &str,
        bytes: &[u8],
    ) -> Result<()> {
        let digest = self.dir.write(path, bytes)?;
        outputs.insert(path.into(), digest);
        Ok(())
    }
}
