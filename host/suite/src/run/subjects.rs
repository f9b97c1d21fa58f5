//! The tasks about one subject: making it and evaluating it.

use std::collections::{BTreeMap, BTreeSet};

use packhost_model::writer::{LinkMode, WriteOptions, write_checkpoint};
use packhost_pack::canonical::to_pretty;
use serde_json::Value;

use super::bound;
use super::changes::{Changes, ProbeAbout};
use super::driver::Done;
use super::model::ModelState;
use super::paths;
use super::request::Mode;
use super::work::Work;
use crate::evaluate::{Evaluation, SubjectInput};
use crate::rundir::hex_digest;
use crate::scenarios::{Generation, Scenario};
use crate::spec::{Resolution, resolve};
use crate::subject::{PlannedEdit, Subject, inject, perturbed};
use crate::{Error, Result};

impl Work<'_> {
    pub(super) fn create(&self, model: &ModelState, scenario: usize) -> Result<Done> {
        let made = match self.make_subject(model, scenario) {
            Err(error) if self.request.mode == Mode::Study && error.is_inapplicable() => {
                return self.inapplicable(model, scenario, &error);
            }
            made => made?,
        };
        let Some(subject) = made else {
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
        let changes = Changes::of(&subject);
        let path = paths::changes(&model.request.folder, self.scenario(scenario));
        self.put(&mut outputs, &path, to_pretty(&changes.json()).as_bytes())?;
        Ok(Done {
            summary: String::new(),
            outputs,
        })
    }

    /// Notes why a scenario cannot be applied to this model.
    fn inapplicable(&self, model: &ModelState, scenario: usize, why: &Error) -> Result<Done> {
        let scenario = self.scenario(scenario);
        let path = paths::inapplicable(&model.request.folder, scenario);
        let why = why.sentence();
        let mut outputs = BTreeMap::new();
        self.put(&mut outputs, &path, why.as_bytes())?;
        Ok(Done {
            summary: format!("{}: not applicable: {why}", scenario.id),
            outputs,
        })
    }

    /// Makes the subject of a scenario; none when the tuned parameters skip it.
    fn make_subject(&self, model: &ModelState, scenario: usize) -> Result<Option<Subject>> {
        let base = &model.open()?.checkpoint;
        let keys = model.request.keys();
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
            Generation::Perturbation { seed } => perturbed(base, *seed)?,
        };
        Ok(Some(subject))
    }

    fn materialize(&self, model: &ModelState, scenario: usize, subject: &Subject) -> Result<()> {
        let name = paths::metadata_name(self.scenario(scenario));
        let options = WriteOptions {
            link: LinkMode::Hardlink,
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

    pub(super) fn evaluate(
        &self,
        model: &ModelState,
        index: usize,
        run: u32,
        seed: u64,
    ) -> Result<Done> {
        let scenario = self.scenario(index);
        // After a resume the subject is made again: its creation is recorded, but memory is gone.
        let subject = match model.subject(index) {
            Some(subject) => subject,
            None if self.is_inapplicable(model, scenario) => return Ok(Done::default()),
            None => match self.make_subject(model, index)? {
                Some(subject) => model.keep_subject(index, subject),
                None => return Ok(Done::default()),
            },
        };
        let policies = self.policies_for(model, scenario)?;
        let path = paths::changes(&model.request.folder, scenario);
        let listed = self.dir.read(&path)?;
        let changes: Changes = serde_json::from_slice(&listed)
            .map_err(|error| Error::io("read", &self.dir.path(&path), error.into()))?;
        let evaluation = self.with_baseline(model, seed, |baseline| {
            let input = SubjectInput {
                weights: &subject.overlay,
                base: &**subject.overlay.base(),
                identity: model.identity(&scenario.id, seed)?,
                edit: changes.identity(scenario, &subject.metadata),
                changed: subject
                    .overlay
                    .changed()
                    .keys()
                    .cloned()
                    .collect::<BTreeSet<_>>(),
                changes: Some(hex_digest(&listed)),
                settings: bound::settings_of(self)?,
                probes: match self.request.mode {
                    Mode::Study => self.every_probe(),
                    Mode::Full | Mode::CalibrateOnly => scenario.probes(),
                },
            };
            self.evaluator()
                .subject(baseline, &input, &policies, self.metric(seed))
        })?;
        self.store(model, scenario, (run, seed), &subject, &evaluation)
    }

    fn store(
        &self,
        model: &ModelState,
        scenario: &Scenario,
        (run, seed): (u32, u64),
        subject: &Subject,
        evaluation: &Evaluation,
    ) -> Result<Done> {
        let folder = &model.request.folder;
        let report_dir = paths::report_dir(folder, scenario, run);
        let mut outputs = BTreeMap::new();
        let metadata = paths::metadata_name(scenario);
        let put = |outputs: &mut _, name: &str, value: &Value| {
            self.put(
                outputs,
                &format!("{report_dir}/{name}"),
                to_pretty(value).as_bytes(),
            )
        };
        put(&mut outputs, "evaluation.report.json", &evaluation.report)?;
        put(&mut outputs, metadata, &subject.metadata)?;
        for (guard, name) in paths::PROBES {
            if let Some(answer) = evaluation.probes.get(guard) {
                let about = ProbeAbout {
                    began: &self.began,
                    model: &model.request.id,
                    folder,
                    seed,
                    profile: self.request.pack.profile.name(),
                    tier: self.request.tier.name(),
                };
                put(&mut outputs, name, &about.file(&evaluation.report, answer))?;
            }
        }
        let table = evaluation.table.to_json();
        self.put(
            &mut outputs,
            &paths::subject_table(folder, &scenario.id, run),
            table.as_bytes(),
        )?;
        if !evaluation.rounds.is_empty() {
            let path = paths::rounds_table(folder, &scenario.id, run);
            self.put(&mut outputs, &path, evaluation.rounds.to_json().as_bytes())?;
        }
        Ok(Done {
            summary: summary(scenario, run, &evaluation.report),
            outputs,
        })
    }
}

impl Work<'_> {
    /// Every guard's probe in a study, else none: what runs of the unedited model probe.
    pub(super) fn every_probe(&self) -> BTreeSet<String> {
        match self.request.mode {
            Mode::Study => paths::PROBES.map(|(guard, _)| guard.to_owned()).into(),
            Mode::Full | Mode::CalibrateOnly => BTreeSet::new(),
        }
    }

    fn is_inapplicable(&self, model: &ModelState, scenario: &Scenario) -> bool {
        let path = paths::inapplicable(&model.request.folder, scenario);
        self.request.mode == Mode::Study && self.dir.path(&path).is_file()
    }
}

/// One line for people: scenario, ratio, and what the guards say.
fn summary(scenario: &Scenario, run: u32, report: &Value) -> String {
    let ratio = report["primary_metric"]["ratio_vs_baseline"].as_f64();
    let ratio = ratio.map_or("no ratio".into(), |ratio| format!("ratio {ratio:.4}"));
    let guards = packhost_measure::report::guard_statuses(report);
    format!("{:<34} run {run}  {ratio:<18} {guards}", scenario.id)
}
