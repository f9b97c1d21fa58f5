//! The tasks about the unedited model: opening it, measuring it, fitting the guards' policies to what was measured, and
//! judging it against itself.

use std::collections::{BTreeMap, BTreeSet};

use packhost_measure::preset::{self, PresetInputs};
use packhost_measure::report::EditIdentity;
use packhost_measure::table::Table;
use packhost_pack::canonical::to_pretty;
use serde_json::{Value, json};

use super::bound;
use super::changes::nothing;
use super::driver::Done;
use super::model::ModelState;
use super::paths;
use super::work::Work;
use crate::Result;
use crate::evaluate::{Evaluator, MeasuredBaseline, SubjectInput};
use crate::perturb::perturb;
use crate::scenarios::{Generation, Scenario};

/// Fewest perturbations that guards of our own fit to.
const FEWEST_PERTURBATIONS: u32 = 3;

/// Whether a run of so many calibration runs and these guards measures perturbations.
pub fn perturbs(calibration_runs: u32, guards: &[String]) -> bool {
    let ours = ["weight-shift", "distribution-shift", "activation-shift"];
    calibration_runs >= FEWEST_PERTURBATIONS && guards.iter().any(|id| ours.contains(&id.as_str()))
}

/// Measures a model with rounding noise on the windows of `seed`; the noise is drawn by it as well.
///
/// # Errors
/// The model cannot be opened, or measuring fails.
pub fn perturbation(
    evaluator: &Evaluator<'_>,
    model: &ModelState,
    baseline: &MeasuredBaseline,
    seed: u64,
) -> Result<Table> {
    let base = &model.open()?.checkpoint;
    let overlay = perturb(base, seed)?;
    let input = SubjectInput {
        weights: &overlay,
        base: &**base,
        identity: model.identity("perturbation", seed)?,
        edit: EditIdentity::default(),
        changed: overlay.changed().keys().cloned().collect(),
        changes: None,
        settings: Value::Null,
        probes: BTreeSet::new(),
    };
    let mut table = evaluator.measure_subject(baseline, &input)?;
    table.put_text("model", "calibration.kind", "perturbation");
    for quantity in [bound::MODEL, bound::WINDOWS] {
        bound::put(&mut table, quantity, bound::get(&baseline.table, quantity));
    }
    Ok(table)
}

impl Work<'_> {
    pub(super) fn set_up(&self, model: &ModelState) -> Result<Done> {
        let profile = model.facts()?;
        let elements = &profile["parameters"];
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

    pub(super) fn calibrate(&self, model: &ModelState, run: u32, seed: u64) -> Result<Done> {
        self.with_baseline(model, seed, |baseline| {
            let drift = preset::drift_of(&baseline.table)?;
            let folder = &model.request.folder;
            let report = json!({
                "run": run, "seed": seed, "table": baseline.table.digest(), "preview_final_ratio": drift,
                "windows": {"preview": baseline.windows.preview.len(), "final": baseline.windows.final_.len()},
            });
            let mut outputs = BTreeMap::new();
            self.put(&mut outputs, &paths::baseline_table(folder, seed), baseline.table.to_json().as_bytes())?;
            if self.perturbs() {
                let table = self.perturbation(model, baseline, seed)?;
                self.put(&mut outputs, &paths::perturbation_table(folder, seed), table.to_json().as_bytes())?;
            }
            self.put(&mut outputs, &paths::calibration(folder, run), to_pretty(&report).as_bytes())?;
            Ok(Done { summary: format!("calibration run {run}, seed {seed}: drift {drift:.4}"), outputs })
        })
    }

    /// Whether the run measures perturbations: they serve guards of our own, which fit nothing to fewer than three.
    fn perturbs(&self) -> bool {
        perturbs(self.request.counts.calibration_runs, &self.guards.ids())
    }

    /// Measures the baseline with rounding noise on the windows of `seed`; the noise is drawn by it as well.
    fn perturbation(
        &self,
        model: &ModelState,
        baseline: &MeasuredBaseline,
        seed: u64,
    ) -> Result<Table> {
        perturbation(&self.evaluator(), model, baseline, seed)
    }

    pub(super) fn generate_preset(&self, model: &ModelState) -> Result<Done> {
        let seeds = (0..u64::from(self.request.counts.calibration_runs))
            .map(|run| self.request.counts.seed + run);
        let folder = &model.request.folder;
        let runs: Vec<Table> = seeds
            .clone()
            .map(|seed| self.stored_table(&paths::baseline_table(folder, seed)))
            .collect::<Result<_>>()?;
        let perturbations: Vec<Table> = seeds
            .filter(|_| self.perturbs())
            .map(|seed| self.stored_table(&paths::perturbation_table(folder, seed)))
            .collect::<Result<_>>()?;
        let all: Vec<Table> = runs.iter().chain(&perturbations).cloned().collect();
        let policies = self.tier_policies()?;
        let metric = self.metric(self.request.counts.seed);
        let fitted = self
            .guards
            .calibrate(&policies, &metric, &all, perturbations.len())?;
        let (preset, statistics) = preset::derive(&PresetInputs {
            model_name: &model.request.folder,
            model_id: &model.request.id,
            model_sha256: &model.open()?.checkpoint.fingerprint_of(model.digests()?),
            policies: &policies,
            windows: &self.window_plan(model, self.request.counts.seed),
            provider: self.dataset.provider().name(),
            runs: &runs,
            perturbations: &perturbations,
            guards: &self.guards.ids(),
            fitted: &fitted,
        })?;
        let mut outputs = BTreeMap::new();
        self.put_preset(&mut outputs, &paths::preset(folder), &preset)?;
        self.put(
            &mut outputs,
            &paths::calibration_statistics(folder),
            to_pretty(&statistics).as_bytes(),
        )?;
        for edit_type in self.edit_types() {
            let variant = preset::for_edit(&preset, edit_type, self.request.tier, None);
            self.put_preset(
                &mut outputs,
                &paths::preset_variant(folder, edit_type),
                &variant,
            )?;
        }
        Ok(Done {
            summary: format!("preset derived from {} calibration runs", runs.len()),
            outputs,
        })
    }

    /// The report of the unedited model against itself, on the windows of `seed` and under the policies that judge its
    /// subjects. Detectors that look at movement compare a subject's report with this one.
    pub(super) fn baseline_report(&self, model: &ModelState, seed: u64) -> Result<Done> {
        let policies = model.policies(|| self.calibrated_policies(model))?;
        let checkpoint = &model.open()?.checkpoint;
        self.with_baseline(model, seed, |baseline| {
            let input = SubjectInput {
                weights: &**checkpoint,
                base: &**checkpoint,
                identity: model.identity("baseline", seed)?,
                edit: nothing(),
                changed: BTreeSet::new(),
                changes: None,
                settings: bound::settings_of(self)?,
                probes: self.every_probe(),
            };
            let evaluation =
                self.evaluator()
                    .subject(baseline, &input, policies, self.metric(seed))?;
            let folder = &model.request.folder;
            let mut outputs = BTreeMap::new();
            self.put(
                &mut outputs,
                &paths::baseline_report(folder, seed),
                to_pretty(&evaluation.report).as_bytes(),
            )?;
            self.put(
                &mut outputs,
                &paths::baseline_subject_table(folder, seed),
                evaluation.table.to_json().as_bytes(),
            )?;
            if !evaluation.rounds.is_empty() {
                self.put(
                    &mut outputs,
                    &paths::baseline_rounds_table(folder, seed),
                    evaluation.rounds.to_json().as_bytes(),
                )?;
            }
            if !self.request.counts.calibrates(seed) {
                self.put(
                    &mut outputs,
                    &paths::baseline_table(folder, seed),
                    baseline.table.to_json().as_bytes(),
                )?;
            }
            Ok(Done {
                summary: String::new(),
                outputs,
            })
        })
    }

    /// Writes a preset as JSON and as YAML.
    fn put_preset(
        &self,
        outputs: &mut BTreeMap<String, String>,
        path: &str,
        preset: &Value,
    ) -> Result<()> {
        self.put(outputs, path, to_pretty(preset).as_bytes())?;
        let yaml = preset::to_yaml(preset);
        self.put(outputs, &paths::in_yaml(path), yaml.as_bytes())
    }

    fn stored_table(&self, path: &str) -> Result<Table> {
        let bytes = self.dir.read(path)?;
        Ok(Table::parse(&String::from_utf8_lossy(&bytes))?)
    }

    /// Types of the edits in this run, for preset variants.
    fn edit_types(&self) -> BTreeSet<&str> {
        let of = |scenario: &'_ Scenario| match &scenario.generation {
            Generation::Edit { edit_spec, .. } => edit_spec.split(':').next().map(str::to_owned),
            Generation::Error { .. } | Generation::Perturbation { .. } => None,
        };
        let types: BTreeSet<String> = self
            .request
            .manifest
            .scenarios
            .iter()
            .filter_map(of)
            .collect();
        preset::EDIT_TYPES
            .into_iter()
            .filter(|t| types.contains(*t))
            .collect()
    }
}
