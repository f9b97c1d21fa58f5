//! Presets: policies fitted to repeated measurements of one unedited model.
//!
//! Guards fit their own policies (`calibrate` of each component); this module gathers what they answer into the
//! reference's file and turns such a file back into policy overrides. The file is JSON or YAML ([`to_yaml`]).

mod yaml;

pub use yaml::to_yaml;

use crate::table::Table;
use crate::tiers::{Policies, Tier};
use crate::windows::WindowPlan;
use crate::{Error, Result};
use packhost_stats::{drift, summary};
use serde_json::{Map, Value, json};

/// What a preset is made of.
#[derive(Debug, Clone, Copy)]
pub struct PresetInputs<'a> {
    /// The model's short name.
    pub model_name: &'a str,
    /// The model's id or folder.
    pub model_id: &'a str,
    /// The digest of its weights, by which a preset is told from another model's.
    pub model_sha256: &'a str,
    /// The policies that the runs were made under.
    pub policies: &'a Policies,
    /// The plan of the first run's windows.
    pub windows: &'a WindowPlan,
    /// Name of the data set's provider.
    pub provider: &'a str,
    /// The runs' tables.
    pub runs: &'a [Table],
    /// Tables of harmless perturbations of the model, none where they were not measured.
    pub perturbations: &'a [Table],
    /// Order in which guards judge.
    pub guards: &'a [String],
    /// What each guard's `calibrate` answered: its id and the fitted policy.
    pub fitted: &'a [(String, Value)],
}

/// Final over preview perplexity of a run's table.
pub fn drift_of(run: &Table) -> Result<f64> {
    let arm = |scope: &str| {
        let losses = run.vector(scope, "window.loss");
        let tokens = run.vector(scope, "window.tokens");
        losses
            .zip(tokens)
            .map(|(losses, tokens)| summary::perplexity(losses, tokens))
            .ok_or_else(|| Error::Preset(format!("a calibration run has no {scope} losses")))
    };
    Ok(arm("final")? / arm("preview")?)
}

/// The preset and the intermediate figures (`calibration_stats.json`).
pub fn derive(inputs: &PresetInputs<'_>) -> Result<(Value, Value)> {
    let ratios = inputs
        .runs
        .iter()
        .map(drift_of)
        .collect::<Result<Vec<f64>>>()?;
    let drift = drift::summarize(&ratios).ok_or_else(|| {
        Error::Preset(format!(
            "no preset can be derived from {} calibration runs with drifts {ratios:?}; at least one finite drift is needed",
            ratios.len()
        ))
    })?;
    let band = json!([drift.band.0, drift.band.1]);
    let plan = inputs.windows;
    let mut guards = Map::new();
    guards.insert("order".into(), json!(inputs.guards));
    let mut metric = json!({});
    for (id, policy) in inputs.fitted {
        if id == "primary-metric" {
            // Runs that all drifted alike fit no band; the profile's stays.
            if let Some(band) = policy.get("drift_band").filter(|_| drift.usable()) {
                metric = json!({"drift_band": band});
            }
            continue;
        }
        let section = id.replace('-', "_");
        let fitted = match FITTED.iter().find(|(guard, _)| guard == id) {
            Some((_, keys)) => chosen(policy, keys),
            None => changed(policy, inputs.policies.section(&section)),
        };
        if fitted.as_object().is_some_and(|map| !map.is_empty()) {
            guards.insert(section, fitted);
        }
    }
    let preset = json!({
        "_calibration_meta": {
            "model_name": inputs.model_name,
            "num_runs": ratios.len(),
            "tier": inputs.policies.tier().name(),
            "drift_mean": drift.mean,
            "drift_std": drift.std,
            "drift_band_compatible": drift.compatible,
            "suggested_drift_band": band,
        },
        "model": {"id": inputs.model_id, "sha256": inputs.model_sha256},
        "dataset": {
            "provider": inputs.provider,
            "split": "validation",
            "seq_len": plan.seq_len,
            "stride": plan.seq_len,
            "preview_n": plan.preview,
            "final_n": plan.final_,
            "seed": plan.seed,
        },
        "guards": guards,
        "primary_metric": metric,
    });
    let stats = json!({
        "drift": {
            "final_over_preview": ratios,
            "mean": drift.mean,
            "std": drift.std,
            "min": drift.min,
            "max": drift.max,
            "suggested_band": band,
            "band_compatible": drift.compatible,
        },
        "runs": inputs.runs.iter().map(Table::digest).collect::<Vec<_>>(),
        "perturbations": inputs.perturbations.iter().map(Table::digest).collect::<Vec<_>>(),
        "policies": {
            "before": inputs.policies.sections(),
            "fitted": inputs.fitted.iter().cloned().collect::<Map<_, _>>(),
        },
    });
    Ok((preset, stats))
}

/// What a preset holds of the reference's guards, calibrated or not.
const FITTED: [(&str, &[&str]); 3] = [
    (
        "spectral",
        &["family_caps", "sigma_quantile", "deadband", "max_caps"],
    ),
    ("rmt", &["epsilon_by_family", "margin", "deadband"]),
    ("variance", &["deadband", "min_effect_lognll", "min_gain"]),
];

/// Those keys of a policy that it has. A threshold of 0 is left out, as the reference does.
fn chosen(fitted: &Value, keys: &[&str]) -> Value {
    let known = keys.iter().filter_map(|key| {
        let value = fitted.get(*key)?;
        let stated = !value.is_null() && value.as_f64() != Some(0.0);
        stated.then(|| ((*key).to_owned(), value.clone()))
    });
    Value::Object(known.collect())
}

/// The keys of a fitted policy that differ from the tier's.
fn changed(fitted: &Value, tier: &Value) -> Value {
    match (fitted, tier) {
        (Value::Object(fitted), Value::Object(tier)) => Value::Object(
            fitted
                .iter()
                .filter(|(key, value)| tier.get(*key) != Some(value))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
        ),
        _ => fitted.clone(),
    }
}

/// Types of edits that have a variant of the preset.
pub const EDIT_TYPES: [&str; 4] = ["quant_rtn", "fp8_quant", "magnitude_prune", "lowrank_svd"];

/// A preset from its text: JSON, where it begins with a brace, else YAML as [`to_yaml`] writes it.
///
/// # Errors
/// It is neither, or has a key that presets do not have.
pub fn parse(text: &str) -> Result<Value> {
    const KNOWN: [&str; 6] = [
        "_calibration_meta",
        "model",
        "dataset",
        "guards",
        "primary_metric",
        "assurance",
    ];
    let json = text.trim_start().starts_with(['{', '[']);
    let preset: Value = match json {
        true => serde_json::from_str(text)
            .map_err(|error| Error::Preset(format!("is not JSON: {error}")))?,
        false => yaml::from_yaml(text)?,
    };
    let object = preset
        .as_object()
        .ok_or_else(|| Error::Preset("is not a JSON object".into()))?;
    if let Some(unknown) = object.keys().find(|key| !KNOWN.contains(&key.as_str())) {
        return Err(Error::Preset(format!(
            "has the unknown key `{unknown}`; there are {}",
            KNOWN.join(", ")
        )));
    }
    Ok(preset)
}

/// Overrides for [`Policies::resolve`] from a preset.
///
/// # Errors
/// Its guards or its metric are no objects.
pub fn overrides(preset: &Value) -> Result<Value> {
    for key in ["guards", "primary_metric"] {
        let there = !preset[key].is_null();
        if there && !preset[key].is_object() {
            return Err(Error::Preset(format!("`{key}` is not an object")));
        }
    }
    let mut overrides = Map::new();
    if let Some(guards) = preset["guards"].as_object() {
        for (section, policy) in guards.iter().filter(|(section, _)| *section != "order") {
            overrides.insert(section.clone(), policy.clone());
        }
    }
    if let Some(metric) = preset["primary_metric"]
        .as_object()
        .filter(|m| !m.is_empty())
    {
        overrides.insert("primary_metric".into(), Value::Object(metric.clone()));
    }
    Ok(Value::Object(overrides))
}

/// The variant of a preset for one edit type: named in the meta block, and with room for the caps that such an edit needs.
/// `explicit` replaces the suggested number of caps.
#[must_use]
pub fn for_edit(preset: &Value, edit_type: &str, tier: Tier, explicit: Option<u64>) -> Value {
    let mut preset = preset.clone();
    // A preset from elsewhere may state anything here.
    if !preset["_calibration_meta"].is_object() {
        preset["_calibration_meta"] = json!({});
    }
    preset["_calibration_meta"]["edit_type"] = json!(edit_type);
    if preset["guards"]["spectral"].is_object() {
        let base = preset["guards"]["spectral"]["max_caps"].as_u64();
        let base = base.unwrap_or(match tier {
            Tier::Conservative => 3,
            Tier::Balanced => 5,
            Tier::Aggressive => 8,
        });
        let caps = explicit.unwrap_or_else(|| max_caps(edit_type, base));
        preset["guards"]["spectral"]["max_caps"] = json!(caps);
    }
    preset
}

/// Spectral caps that a preset variant allows an edit type, given the preset's own.
#[must_use]
pub fn max_caps(edit_type: &str, base: u64) -> u64 {
    base.max(match edit_type {
        "quant_rtn" | "fp8_quant" => 15,
        "lowrank_svd" => 25,
        _ => 10,
    })
}
