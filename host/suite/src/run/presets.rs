//! Presets that a run is given or has derived: finding, reading and refusing them.

use std::path::{Path, PathBuf};

use packhost_measure::preset;
use packhost_measure::tiers::{Policies, PolicyInputs};
use serde_json::Value;

use super::model::ModelState;
use super::paths;
use super::request::{ModelRequest, RunRequest};
use super::work::Work;
use crate::{Error, Result};

/// Refuses a given preset that cannot serve one of the run's models, before any work.
///
/// # Errors
/// It cannot be read, is no preset, sets what no policy has, or is another model's.
pub fn check_given(request: &RunRequest) -> Result<()> {
    let Some(given) = &request.preset else {
        return Ok(());
    };
    for model in &request.models {
        let path = file_for(given, model);
        let preset = read(&path, model)?;
        let overrides = preset::overrides(&preset);
        let resolve = |overrides: Value| {
            Policies::resolve(&PolicyInputs {
                tier: request.tier,
                profile: request.pack.profile,
                edit: None,
                overrides: Some(&overrides),
            })
        };
        overrides.and_then(resolve).map_err(|error| Error::Preset {
            path: path.clone(),
            message: error.to_string(),
        })?;
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

fn read(path: &Path, model: &ModelRequest) -> Result<Value> {
    let text =
        std::fs::read_to_string(path).map_err(|error| Error::io("read the preset", path, error))?;
    let refused = |message: String| Error::Preset {
        path: path.to_path_buf(),
        message,
    };
    let preset = preset::parse(&text).map_err(|error| refused(error.to_string()))?;
    match preset["model"]["id"].as_str() {
        Some(other) if other != model.id => Err(refused(format!(
            "it was derived from the model `{other}`, this run is about `{}`; calibrate this model, or name its own preset",
            model.id
        ))),
        _ => Ok(preset),
    }
}

impl Work<'_> {
    /// The preset: none when a run neither calibrates nor was given one.
    ///
    /// # Errors
    /// It cannot be read, or it is another model's.
    pub fn preset(&self, model: &ModelState) -> Result<Option<Value>> {
        let path = match &self.request.preset {
            Some(given) => file_for(given, &model.request),
            None if self.request.counts.calibration_runs == 0 => return Ok(None),
            None => self.dir.path(&paths::preset(&model.request.folder)),
        };
        read(&path, &model.request).map(Some)
    }
}
