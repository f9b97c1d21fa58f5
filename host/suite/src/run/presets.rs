//! Presets that a run is given or has derived: which file is a model's, and refusing what cannot serve it.

use std::path::{Path, PathBuf};

use packhost_measure::tiers::PolicyInputs;
use packhost_model::Checkpoint;
use serde_json::Value;

use super::model::ModelState;
use super::paths;
use super::request::{ModelRequest, RunRequest};
use super::work::Work;
use crate::{Result, presets};

/// Refuses a given preset that cannot serve one of the run's models, before any work.
///
/// # Errors
/// It cannot be read, is no preset, sets what no policy has, or is another model's.
pub fn check_given(request: &RunRequest) -> Result<()> {
    let Some(given) = &request.preset else {
        return Ok(());
    };
    let inputs = PolicyInputs {
        tier: request.tier,
        profile: request.pack.profile,
        edit: None,
        overrides: None,
    };
    for model in &request.models {
        let path = file_for(given, model);
        let preset = presets::read(&path)?;
        presets::check_name(&path, &preset, &model.id)?;
        presets::policies(&path, &preset, &inputs)?;
        if model.dir.is_dir() {
            presets::check_weights(&path, &preset, &*Checkpoint::open(&model.dir)?)?;
        }
    }
    Ok(())
}

/// A model's preset among what was given: a file, or a folder that holds one per model, JSON before YAML.
fn file_for(given: &Path, model: &ModelRequest) -> PathBuf {
    if !given.is_dir() {
        return given.to_path_buf();
    }
    let name = paths::preset(&model.folder);
    let in_folder = |name: &str| given.join(Path::new(name).file_name().unwrap_or_default());
    let (json, yaml) = (in_folder(&name), in_folder(&paths::in_yaml(&name)));
    if !json.is_file() && yaml.is_file() {
        yaml
    } else {
        json
    }
}

impl Work<'_> {
    /// The preset: none when a run neither calibrates nor was given one.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn preset(&self, model: &ModelState) -> Result<Option<Value>> {
        let path = match &self.request.preset {
            Some(given) => file_for(given, &model.request),
            None if self.request.counts.calibration_runs == 0 => return Ok(None),
            None => self.dir.path(&paths::preset(&model.request.folder)),
        };
        presets::read(&path).map(Some)
    }
}
