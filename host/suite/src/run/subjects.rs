//! The tasks about one subject: making it and evaluating it.

use std::collections::{BTreeMap, BTreeSet};

use packhost_measure::report::{EditIdentity, run_id};
use packhost_model::writer::{LinkMode, WriteOptions, write_checkpoint};
use packhost_model::{TensorMeta, Weights};
use packhost_pack::canonical::to_pretty;
use serde_json::{Value, json};

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
                edit: edit_identity(scenario, &subject),
                changed: subject
                    .overlay
                    .changed()
                    .keys()
                    .cloned()
                    .collect::<BTreeSet<_>>(),
                probes: probes_of(scenario),
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
                let probe = self.probe_file(model, seed, &evaluation.report, answer);
                put(&mut outputs, name, &probe)?;
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

/// Guards whose probe a scenario's fault calls for.
fn probes_of(scenario: &Scenario) -> BTreeSet<String> {
    let Generation::Error { error_type, .. } = &scenario.generation else {
        return BTreeSet::new();
    };
    let kinds = [("rmt_norm_noise", "rmt"), ("ve_mlp_scale_skew", "variance")];
    kinds
        .into_iter()
        .filter(|(kind, _)| error_type.starts_with(kind))
        .map(|(_, guard)| guard.to_owned())
        .collect()
}

impl Work<'_> {
    /// A probe's file: the guard's answer, and what it is about.
    fn probe_file(&self, model: &ModelState, seed: u64, report: &Value, answer: &Value) -> Value {
        let mut probe = answer.clone();
        let windows = report["packhost"]["windows"]["texts"]
            .as_object()
            .map_or(0, |arms| {
                let arms = arms.values().filter_map(Value::as_array);
                arms.map(Vec::len).sum::<usize>()
            });
        let about = json!({
            "timestamp_utc": self.began,
            "baseline_model": model.request.id,
            "subject_model": report["meta"]["model_id"],
            "baseline_report": paths::baseline_report(&model.request.folder, seed),
            "profile": self.request.pack.profile.name(),
            "tier": self.request.tier.name(),
            "calibration_windows_loaded": windows,
        });
        if let (Value::Object(probe), Value::Object(about)) = (&mut probe, about) {
            for (key, value) in about {
                probe.entry(key).or_insert(value);
            }
        }
        probe
    }
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

/// One line for people: scenario, ratio, and what the guards say.
fn summary(scenario: &Scenario, run: u32, report: &Value) -> String {
    let ratio = report["primary_metric"]["ratio_vs_baseline"].as_f64();
    let ratio = ratio.map_or("no ratio".into(), |ratio| format!("ratio {ratio:.4}"));
    let guards = packhost_measure::report::guard_statuses(report);
    format!("{:<34} run {run}  {ratio:<18} {guards}", scenario.id)
}
