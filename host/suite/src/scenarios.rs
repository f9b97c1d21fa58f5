//! The scenario manifest: which edits and faults a suite applies and what each must show.
//!
//! The schema is the reference's (`evidence_pack_scenarios_v1`); unknown keys are refused, so that a misspelt requirement
//! cannot silently stop being one. The requirements themselves (detectors) are read by the verdict in `packhost-pack`; here
//! they are carried as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::rundir::parse_named;
use crate::{Error, Result};

/// A manifest, in file order.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub schema: String,
    pub schema_version: u32,
    #[serde(rename = "_meta", default)]
    pub meta: Map<String, Value>,
    pub scenarios: Vec<Scenario>,
}

/// One scenario.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Unique; also the report folder's name.
    pub id: String,
    /// Suites that include it; empty means every suite.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub suites: Vec<String>,
    pub category: Category,
    pub failure_class: String,
    pub strictness: Strictness,
    pub intent: String,
    pub primary_guard: String,
    pub generation: Generation,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requirements: Option<Requirements>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_class: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployable_as_hf_checkpoint: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optimized_deployment_backend: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contains_model_weights_in_pack: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_directory_contains_edit_artifacts: Option<bool>,
}

/// What kind of change a scenario makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    Clean,
    Stress,
    ErrorInjection,
}

/// What the verdict asks of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Strictness {
    MustPass,
    MustFail,
    MustDetect,
    Informational,
}

/// How the subject is made.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Generation {
    /// An edit, by specification (`spec` module).
    Edit { edit_spec: String, version: String },
    /// A fault. `env` holds the injection's settings; `env_by_model` overlays them for one model.
    Error {
        error_type: String,
        #[serde(default, skip_serializing_if = "Map::is_empty")]
        env: Map<String, Value>,
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        env_by_model: BTreeMap<String, Map<String, Value>>,
    },
    /// Rounding noise drawn by `seed` ([`crate::perturb`]). No manifest asks for it; a study does.
    #[serde(skip_deserializing)]
    Perturbation { seed: u64 },
}

/// What must be seen for the scenario to count.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Requirements {
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub catastrophic_required: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub primary_guard_required: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub detectors_any_of: Vec<Value>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub detectors_all_of: Vec<Value>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub notes: String,
}

impl Scenario {
    /// Guards whose probe the scenario's fault calls for.
    pub fn probes(&self) -> BTreeSet<String> {
        let Generation::Error { error_type, .. } = &self.generation else {
            return BTreeSet::new();
        };
        let kinds = [("rmt_norm_noise", "rmt"), ("ve_mlp_scale_skew", "variance")];
        kinds
            .into_iter()
            .filter(|(kind, _)| error_type.starts_with(kind))
            .map(|(_, guard)| guard.to_owned())
            .collect()
    }
}

/// Refuses ids that cannot name folders or are not unique.
pub(crate) fn check_ids<'a>(ids: impl Iterator<Item = &'a str>) -> std::result::Result<(), String> {
    let mut seen = BTreeSet::new();
    for id in ids {
        if !is_folder_safe(id) {
            return Err(format!(
                "id `{id}` may hold only letters, digits, `_`, `-` and `.`"
            ));
        }
        if !seen.insert(id) {
            return Err(format!("id `{id}` appears twice"));
        }
    }
    Ok(())
}

impl Manifest {
    /// Schema id that this version reads.
    pub const SCHEMA: &'static str = "evidence_pack_scenarios_v1";

    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// Unreadable file, JSON or schema faults, duplicate or unsafe ids, no scenario at all.
    pub fn load(path: &Path) -> Result<Self> {
        let fail = |message: String| Error::Manifest {
            path: path.into(),
            message,
        };
        let manifest: Self = parse_named("read the scenario manifest", path, fail)?;
        manifest.check().map_err(fail)?;
        Ok(manifest)
    }

    fn check(&self) -> std::result::Result<(), String> {
        if self.schema != Self::SCHEMA || self.schema_version != 1 {
            return Err(format!(
                "schema `{}` version {} is not `{}` version 1",
                self.schema,
                self.schema_version,
                Self::SCHEMA
            ));
        }
        if self.scenarios.is_empty() {
            return Err("`scenarios` is empty".into());
        }
        let ids = self.scenarios.iter().map(|scenario| scenario.id.as_str());
        check_ids(ids).map_err(|problem| format!("scenario {problem}"))
    }

    /// The scenarios of a run: those named in `ids` whatever their suite, else those of `suite`. What was applied is
    /// recorded in `_meta`, so that the rendered manifest says how it came about.
    ///
    /// # Errors
    /// An id that the manifest does not have, or a suite that selects nothing.
    pub fn select(mut self, suite: &str, ids: &[String]) -> Result<Self> {
        if let Some(unknown) = ids
            .iter()
            .find(|id| !self.scenarios.iter().any(|s| s.id == **id))
        {
            return Err(Error::UnknownScenario {
                id: unknown.clone(),
                known: self.scenarios.iter().map(|s| s.id.clone()).collect(),
            });
        }
        self.scenarios.retain(|scenario| match ids {
            [] => scenario.suites.is_empty() || scenario.suites.iter().any(|name| name == suite),
            ids => ids.contains(&scenario.id),
        });
        if self.scenarios.is_empty() {
            return Err(Error::EmptySuite {
                suite: suite.into(),
            });
        }
        self.meta.insert("applied_suite".into(), suite.into());
        self.meta.insert("scenario_ids_filter".into(), ids.into());
        Ok(self)
    }

    /// The text stored in the run directory and in the pack: indented, keys sorted, final line feed.
    pub fn render(&self) -> String {
        let value = serde_json::to_value(self).unwrap_or(Value::Null);
        packhost_pack::canonical::to_pretty(&value)
    }
}

impl Scenario {
    /// The injection's settings for one model: `env`, overlaid with the model's own.
    ///
    /// # Errors
    /// A key that is not `INVARLOCK_` followed by capitals, digits and underscores, or a value that is no scalar.
    pub fn injection_env(&self, model_keys: &[&str]) -> Result<Map<String, Value>> {
        let Generation::Error {
            env, env_by_model, ..
        } = &self.generation
        else {
            return Ok(Map::new());
        };
        let mut merged = env.clone();
        if let Some(own) = model_keys.iter().find_map(|key| env_by_model.get(*key)) {
            merged.extend(own.clone());
        }
        for (key, value) in &merged {
            let name_fits = key.strip_prefix("INVARLOCK_").is_some_and(|rest| {
                !rest.is_empty()
                    && rest
                        .bytes()
                        .all(|b| matches!(b, b'A'..=b'Z' | b'0'..=b'9' | b'_'))
            });
            if !name_fits || value.is_array() || value.is_object() || value.is_null() {
                return Err(Error::ScenarioSetting {
                    scenario: self.id.clone(),
                    key: key.clone(),
                });
            }
        }
        Ok(merged)
    }

    /// Artifact class, given or implied by the generation (specification section 6).
    pub fn artifact_class(&self) -> &str {
        match (&self.artifact_class, &self.generation) {
            (Some(class), _) => class,
            (None, Generation::Edit { .. } | Generation::Perturbation { .. }) => {
                "validation_subject_checkpoint"
            }
            (None, Generation::Error { .. }) => "fault_injection_fixture",
        }
    }
}

/// Whether `name` can be a folder name on every file system without escaping its parent.
pub fn is_folder_safe(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

/// A model id as a folder name: ASCII lower case, `/` becomes `__`, space `_`, everything else outside letters, digits,
/// `_` and `-` is dropped (`mistralai/Mistral-7B-v0.1` gives `mistralai__mistral-7b-v01`).
pub fn model_folder(model_id: &str) -> String {
    let lower = model_id
        .to_ascii_lowercase()
        .replace('/', "__")
        .replace(' ', "_");
    lower
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(scenarios: &str) -> std::result::Result<Manifest, serde_json::Error> {
        serde_json::from_str(&format!(
            r#"{{"schema":"evidence_pack_scenarios_v1","schema_version":1,"scenarios":[{scenarios}]}}"#
        ))
    }

    const NAN: &str = r#"{"id":"nan_injection","suites":["subset"],"category":"error_injection","failure_class":"x",
        "strictness":"must_detect","intent":"fault_detection","primary_guard":"invariants",
        "generation":{"kind":"error","error_type":"nan_injection","env":{"INVARLOCK_A":1},
        "env_by_model":{"acme/one":{"INVARLOCK_A":"2"}}}}"#;

    #[test]
    fn model_folders_follow_the_reference() {
        assert_eq!(
            model_folder("mistralai/Mistral-7B-v0.1"),
            "mistralai__mistral-7b-v01"
        );
    }

    #[test]
    fn selection_is_by_suite_or_by_id() {
        let manifest = manifest(NAN).expect("valid");
        assert!(manifest.clone().select("full", &[]).is_err());
        assert_eq!(
            manifest
                .clone()
                .select("subset", &[])
                .expect("selects")
                .scenarios
                .len(),
            1
        );
        assert_eq!(
            manifest
                .clone()
                .select("full", &["nan_injection".into()])
                .expect("selects")
                .scenarios
                .len(),
            1
        );
        assert!(manifest.select("full", &["nope".into()]).is_err());
    }

    #[test]
    fn settings_overlay_by_model_and_are_checked() {
        let manifest = manifest(NAN).expect("valid");
        let scenario = &manifest.scenarios[0];
        assert_eq!(
            scenario.injection_env(&["acme/one"]).expect("fits")["INVARLOCK_A"],
            "2"
        );
        assert_eq!(
            scenario.injection_env(&["other"]).expect("fits")["INVARLOCK_A"],
            1
        );
        let mut bad = scenario.clone();
        if let Generation::Error { env, .. } = &mut bad.generation {
            env.insert("PATH".into(), "x".into());
        }
        assert!(bad.injection_env(&[]).is_err());
    }

    #[test]
    fn unknown_keys_are_refused() {
        assert!(manifest(&NAN.replace("\"intent\"", "\"intnet\"")).is_err());
    }

    #[test]
    fn ids_must_be_unique_and_safe() {
        let twice = manifest(&format!("{NAN},{NAN}")).expect("parses");
        assert!(twice.check().is_err());
        let unsafe_id =
            manifest(&NAN.replace("\"id\":\"nan_injection\"", "\"id\":\"../x\"")).expect("parses");
        assert!(unsafe_id.check().is_err());
    }
}
