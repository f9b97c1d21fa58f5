//! What a run is asked to do, and the plan that is stored in its directory: everything that its result depends on. A run is
//! resumed only with an equal plan; a difference is named.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use packhost_measure::tiers::{Profile, Tier};
use packhost_measure::windows::Selection;
use packhost_pack::report_rules::Assurance;
use packhost_plugin::{PluginKind, Registry};
use serde_json::{Value, json};

use crate::graph::Counts;
use crate::rundir::hex_digest;
use crate::scenarios::{Generation, Manifest, Scenario};
use crate::spec::{Resolution, Tuned, resolve};
use crate::suites::{Dataset, EvaluationSize};
use crate::toolbox::PluginIdentity;
use crate::{Error, Result};

/// A model of a run.
#[derive(Debug, Clone)]
pub struct ModelRequest {
    pub id: String,
    /// Its name as a folder.
    pub folder: String,
    pub revision: Option<String>,
    /// Where its checkpoint lies.
    pub dir: PathBuf,
    pub size: EvaluationSize,
}

/// How far a run goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Everything.
    Full,
    /// Until all presets exist. A later run in the same directory goes on.
    CalibrateOnly,
    /// Every evaluation with every probe, but neither verdict nor pack. What a scenario cannot be applied to is noted, no
    /// failure.
    Study,
}

/// The pack that a run leaves.
#[derive(Debug, Clone)]
pub struct PackRequest {
    /// Where; `None` is `evidence_pack` in the run directory.
    pub dir: Option<PathBuf>,
    /// Key that signs; `None` with `sign` makes a throw-away key.
    pub key: Option<PathBuf>,
    pub sign: bool,
    pub profile: Profile,
    pub assurance: Assurance,
    pub require_pass: bool,
    /// Reference and digest of the program, for runtime manifests.
    pub image_ref: String,
    pub image_digest: String,
}

/// Everything that a run is given.
#[derive(Debug, Clone)]
pub struct RunRequest {
    pub out: PathBuf,
    pub resume: bool,
    pub mode: Mode,
    pub suite: String,
    pub models: Vec<ModelRequest>,
    pub manifest: Manifest,
    pub tuned: Tuned,
    pub dataset: Dataset,
    pub selection: Selection,
    pub tier: Tier,
    /// Guard ids in order; empty means every installed one.
    pub guards: Vec<String>,
    pub counts: Counts,
    /// Bootstrap replicates; `None` is the larger of 2000 and the tier's floor.
    pub bootstrap: Option<usize>,
    /// Preset file or folder to use instead of calibrating.
    pub preset: Option<PathBuf>,
    pub materialize: bool,
    pub workers: usize,
    /// Bytes that running tasks may plan for.
    pub memory: u64,
    pub pack: PackRequest,
}

/// Fewest bootstrap replicates, whatever the tier says.
const REPLICATES: usize = 2000;

impl RunRequest {
    /// Refuses what cannot be told apart on disk, and what a profile that demands coverage would not accept later.
    ///
    /// # Errors
    /// Two models with one folder name; too few windows or replicates for the tier in profile ci or release.
    pub fn check(&self) -> Result<()> {
        for model in &self.models {
            let (preview, final_) = (model.size.preview, model.size.final_);
            let floor = self.tier.coverage();
            floor.enforce(
                self.tier,
                self.pack.profile,
                preview,
                final_,
                self.replicates(),
            )?;
        }
        for (index, first) in self.models.iter().enumerate() {
            if let Some(second) = self.models[index + 1..]
                .iter()
                .find(|other| other.folder == first.folder)
            {
                return Err(Error::ModelCollision {
                    first: first.id.clone(),
                    second: second.id.clone(),
                    folder: first.folder.clone(),
                });
            }
        }
        Ok(())
    }

    /// Refuses scenarios that cannot be made: a specification without sense, or no plugin that serves it. Only manifests
    /// are read.
    ///
    /// # Errors
    /// [`Error::Scenario`] for the first such scenario that the run would evaluate.
    pub fn check_scenarios(&self, registry: &Registry) -> Result<()> {
        for scenario in &self.manifest.scenarios {
            if self.counts.of(scenario) == 0 {
                continue;
            }
            for model in &self.models {
                check_scenario(scenario, model, &self.tuned, registry).map_err(|why| {
                    Error::Scenario {
                        scenario: scenario.id.clone(),
                        why: Box::new(why),
                    }
                })?;
            }
        }
        Ok(())
    }

    /// Bootstrap replicates of this run.
    pub fn replicates(&self) -> usize {
        self.bootstrap
            .unwrap_or(REPLICATES)
            .max(self.tier.coverage().replicates)
    }

    /// The stored plan: sorted JSON without times and without what only this machine cares about.
    pub fn plan(&self, plugins: &[PluginIdentity], dataset_digest: &str) -> Value {
        let tuned = match &self.tuned {
            Tuned::File(file) => hex_digest(Value::Object(file.clone()).to_string().as_bytes()),
            Tuned::Absent | Tuned::Unusable => String::new(),
        };
        let model = |model: &ModelRequest| json!({"id": model.id, "revision": model.revision, "size": model.size});
        let mut plan = json!({
            "schema": "packhost-run-plan-v1",
            "host_version": env!("CARGO_PKG_VERSION"),
            "suite": self.suite,
            "models": self.models.iter().map(model).collect::<Vec<_>>(),
            "scenarios": hex_digest(self.manifest.render().as_bytes()),
            "tuned_edit_params": tuned,
            "dataset": {"kind": self.dataset.kind, "sha256": dataset_digest},
            "selection": self.selection.name(),
            "tier": self.tier.name(),
            "guards": self.guards,
            "calibration_runs": self.counts.calibration_runs,
            "clean_runs": self.counts.clean_runs,
            "stress_runs": self.counts.stress_runs,
            "error_runs": self.counts.error_runs,
            "seed": self.counts.seed,
            "bootstrap": self.replicates(),
            "preset": self.preset.as_ref().map(|path| path.display().to_string()),
            "materialize": self.materialize,
            "plugins": plugins,
        });
        if self.mode == Mode::Study {
            plan["study"] = true.into();
        }
        plan
    }
}

impl ModelRequest {
    /// Names under which files of settings may know this model.
    pub fn keys(&self) -> [&str; 2] {
        [&self.id, &self.folder]
    }
}

fn check_scenario(
    scenario: &Scenario,
    model: &ModelRequest,
    tuned: &Tuned,
    registry: &Registry,
) -> Result<()> {
    match &scenario.generation {
        Generation::Edit { edit_spec, version } => {
            match resolve(edit_spec, version, tuned, &model.keys()) {
                Resolution::Selected(edit) => {
                    registry.serving(PluginKind::Edit, &edit.edit_type)?;
                }
                Resolution::Skipped { .. } => {}
                Resolution::Refused { status, reason } => {
                    return Err(Error::EditSpec {
                        spec: edit_spec.clone(),
                        status,
                        reason,
                    });
                }
            }
        }
        Generation::Error { error_type, .. } => {
            registry.serving(PluginKind::Injection, error_type)?;
            scenario.injection_env(&model.keys())?;
        }
        Generation::Perturbation { .. } => {}
    }
    Ok(())
}

/// The first setting in which two plans differ, as an error that names it and both values.
///
/// # Errors
/// When they differ.
pub fn same_plan(stored: &Value, now: &Value) -> Result<()> {
    match difference(String::new(), stored, now) {
        None => Ok(()),
        Some((key, stored, now)) => Err(Error::PlanChanged { key, stored, now }),
    }
}

/// Path of the first difference within `stored` and `now`, and the text of both sides. Lists of things with ids are compared
/// by id.
fn difference(path: String, stored: &Value, now: &Value) -> Option<(String, String, String)> {
    if stored == now {
        return None;
    }
    if let (Some(stored), Some(now)) = (fields(stored), fields(now)) {
        let keys: BTreeSet<_> = stored.keys().chain(now.keys()).collect();
        let inner = keys.into_iter().find_map(|key| {
            let path = match path.as_str() {
                "" => key.clone(),
                path => format!("{path}.{key}"),
            };
            let of =
                |map: &BTreeMap<String, &Value>| map.get(key).map_or(Value::Null, |v| (*v).clone());
            difference(path, &of(&stored), &of(&now))
        });
        // None: the same things in another order.
        if inner.is_some() {
            return inner;
        }
    }
    let text = |value: &Value| match value {
        Value::Null => "absent".into(),
        Value::Object(_) => "present".into(),
        value => value.to_string(),
    };
    Some((path, text(stored), text(now)))
}

/// The parts of a value by name: an object's fields, or a list's elements by their ids.
fn fields(value: &Value) -> Option<BTreeMap<String, &Value>> {
    match value {
        Value::Object(map) => Some(
            map.iter()
                .map(|(key, value)| (key.clone(), value))
                .collect(),
        ),
        Value::Array(items) if !items.is_empty() => items
            .iter()
            .map(|item| Some((item.get("id")?.as_str()?.to_string(), item)))
            .collect(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_plan_is_named_by_its_key() {
        let plan = json!({"suite": "demo", "tier": "balanced"});
        assert!(same_plan(&plan, &plan).is_ok());
        let other = json!({"suite": "demo", "tier": "aggressive"});
        assert!(
            matches!(same_plan(&plan, &other), Err(Error::PlanChanged { key, .. }) if key == "tier")
        );
        assert!(same_plan(&plan, &json!({"suite": "demo"})).is_err());
    }

    #[test]
    fn a_difference_is_named_down_to_its_setting() {
        let said = |stored: Value, now: Value| {
            difference(String::new(), &stored, &now)
                .map(|(key, stored, now)| format!("{key}: {stored} -> {now}"))
        };
        let plugin = |id: &str, sha: &str| json!({"id": id, "sha256": sha});
        let one = json!({"plugins": [plugin("a", "1"), plugin("b", "2")]});
        assert_eq!(said(one.clone(), one.clone()), None);
        assert_eq!(
            said(
                one.clone(),
                json!({"plugins": [plugin("a", "1"), plugin("b", "3")]})
            )
            .as_deref(),
            Some("plugins.b.sha256: \"2\" -> \"3\"")
        );
        assert_eq!(
            said(one.clone(), json!({"plugins": [plugin("b", "2")]})).as_deref(),
            Some("plugins.a: present -> absent")
        );
        let order = json!({"plugins": [plugin("b", "2"), plugin("a", "1")]});
        assert!(said(one, order).is_some());
        assert_eq!(
            said(json!({"seed": 42}), json!({"seed": 7})).as_deref(),
            Some("seed: 42 -> 7")
        );
    }
}
