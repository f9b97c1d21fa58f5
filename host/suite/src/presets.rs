//! Presets as files: reading one, turning it into policies, and refusing one that was derived from another model.

use std::path::Path;

use packhost_measure::preset;
use packhost_measure::tiers::{Policies, PolicyInputs, Profile, Tier};
use packhost_model::Checkpoint;
use serde_json::Value;

use crate::{Error, Result};

const ADVICE: &str = "calibrate this model, or name its own preset";

/// The preset in a file.
///
/// # Errors
/// It cannot be read or is no preset.
pub fn read(path: &Path) -> Result<Value> {
    let text =
        std::fs::read_to_string(path).map_err(|error| Error::io("read the preset", path, error))?;
    preset::parse(&text).map_err(|error| refused(path, error.to_string()))
}

/// Policies of `inputs` with what the preset at `path` sets.
///
/// # Errors
/// The preset sets what no policy has.
pub fn policies(path: &Path, preset: &Value, inputs: &PolicyInputs<'_>) -> Result<Policies> {
    let resolve = |overrides: Value| {
        Policies::resolve(&PolicyInputs {
            overrides: Some(&overrides),
            ..*inputs
        })
    };
    let policies = preset::overrides(preset).and_then(resolve);
    policies.map_err(|error| refused(path, error.to_string()))
}

/// The policies that judge a run's subjects: the tier's with what the preset sets. An edit whose type has a variant of the
/// preset is judged by the variant; the baseline, faults and every other edit by the preset itself.
///
/// # Errors
/// The preset sets what no policy has.
pub fn judging(
    preset: Option<&Value>,
    tier: Tier,
    profile: Profile,
    edit_spec: Option<&str>,
) -> Result<Policies> {
    let edit_type = edit_spec.and_then(|spec| spec.split(':').next());
    let edit_type = preset::EDIT_TYPES
        .into_iter()
        .find(|known| Some(*known) == edit_type);
    let overrides = match (preset, edit_type) {
        (None, _) => None,
        (Some(preset), None) => Some(preset::overrides(preset)?),
        (Some(preset), Some(edit_type)) => {
            let variant = preset::for_edit(preset, edit_type, tier, None);
            Some(preset::overrides(&variant)?)
        }
    };
    Ok(Policies::resolve(&PolicyInputs {
        tier,
        profile,
        edit: None,
        overrides: overrides.as_ref(),
    })?)
}

/// Refuses a preset that states another name than the model's.
///
/// # Errors
/// It does.
pub fn check_name(path: &Path, preset: &Value, id: &str) -> Result<()> {
    match preset["model"]["id"].as_str() {
        Some(other) if other != id => Err(refused(
            path,
            format!("it was derived from the model `{other}`, this run is about `{id}`; {ADVICE}"),
        )),
        _ => Ok(()),
    }
}

/// Refuses a preset that states the digest of other weights. Presets that were not derived by this program state none.
///
/// # Errors
/// It does, or a tensor cannot be read.
pub fn check_weights(path: &Path, preset: &Value, checkpoint: &Checkpoint) -> Result<()> {
    let Some(stated) = preset["model"]["sha256"].as_str() else {
        return Ok(());
    };
    if checkpoint.fingerprint()? == stated {
        return Ok(());
    }
    let name = preset["model"]["id"]
        .as_str()
        .unwrap_or("one without a name");
    Err(refused(
        path,
        format!(
            "it was derived from other weights (`{name}`) than those in {}; {ADVICE}",
            checkpoint.dir().display()
        ),
    ))
}

fn refused(path: &Path, message: String) -> Error {
    Error::Preset {
        path: path.to_path_buf(),
        message,
    }
}
