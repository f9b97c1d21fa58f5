//! What a run is asked to do, and the plan that is stored in its directory: everything that its result depends on. A run is
//! resumed only with an equal plan; a difference is named.

use std::path::PathBuf;

use packhost_measure::tiers::{Profile, Tier};
use packhost_measure::windows::Selection;
use packhost_pack::report_rules::Assurance;
use serde_json::{Value, json};

use crate::graph::Counts;
use crate::rundir::hex_digest;
use crate::scenarios::Manifest;
use crate::spec::Tuned;
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
        json!({
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
            "runs": {
                "calibration": self.counts.calibration_runs,
                "clean": self.counts.clean_runs,
                "stress": self.counts.stress_runs,
                "error": self.counts.error_runs,
                "seed": self.counts.seed,
            },
            "bootstrap": self.replicates(),
            "preset": self.preset.as_ref().map(|path| path.display().to_string()),
            "materialize": self.materialize,
            "plugins": plugins,
        })
    }
}

/// The first key in which two plans differ, as an error that names it.
///
/// # Errors
/// When they differ.
pub fn same_plan(stored: &Value, now: &Value) -> Result<()> {
    let keys = |value: &Value| {
        value
            .as_object()
            .map(|map| map.keys().cloned().collect::<Vec<_>>())
            .unwrap_or_default()
    };
    for key in keys(now).into_iter().chain(keys(stored)) {
        if stored[&key] != now[&key] {
            let (stored, now) = (stored[&key].to_string(), now[&key].to_string());
            return Err(Error::PlanChanged { key, stored, now });
        }
    }
    Ok(())
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
}
