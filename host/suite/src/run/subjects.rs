//! The tasks about one subject: making it and evaluating it.

use std::collections::{BTreeMap, BTreeSet};

use packhost_model::writer::{LinkMode, WriteOptions, write_checkpoint};
use packhost_pack::canonical::to_pretty;
use serde_json::Value;

use super::changes::{Changes, ProbeAbout};
use super::driver::Done;
use super::model::ModelState;
use super::paths;
use super::work::Work;
use crate::evaluate::{Evaluation, SubjectInput};
use crate::scenarios::{Generation, Scenario};
use crate::spec::{Resolution, resolve};
use crate::subject::{PlannedEdit, Subject, inject};
use crate::{Error, Result};

impl Work<'_> {
    pub(super) fn create(&self, model: &ModelState, scenario: usize) -> Result<Done> {
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
        let changes = Changes::of(&subject);
        let path = paths::changes(&model.request.folder, self.scenario(scenario));
        self.put(&mut outputs, &path, to_pretty(&changes.json()).as_bytes())?;
        Ok(Done {
            summary: String::new(),
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
            None => match self.make_subject(model, index)? {
                Some(subject) => model.keep_subject(index, subject),
                None => return Ok(Done::default()),
            },
        };
        let policies = self.policies_for(model, scenario)?;
        let evaluation = self.with_baseline(model, seed, |baseline| {
            let input = SubjectInput {
                weights: &subject.overlay,
                base: &**subject.overlay.base(),
                identity: model.identity(&scenario.id, seed)?,
                edit: Changes::of(&subject).identity(scenario, &subject.metadata),
                changed: subject
                    .overlay
                    .changed()
                    .keys()
                    .cloned()
                    .collect::<BTreeSet<_>>(),
                probes: scenario.probes(),
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

/// One line for people: scenario, ratio, and what the guards say.
fn summary(scenario: &Scenario, run: u32, report: &Value) -> String {
    let ratio = report["primary_metric"]["ratio_vs_baseline"].as_f64();
    let ratio = ratio.map_or("no ratio".into(), |ratio| format!("ratio {ratio:.4}"));
    let guards = packhost_measure::report::guard_statuses(report);
    format!("{:<34} run {run}  {ratio:<18} {guards}", scenario.id)
}
