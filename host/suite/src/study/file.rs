//! The study file: which scenarios a study takes, and at which strengths. It becomes an ordinary scenario manifest.
//!
//! ```text
//! manifest, suite      the catalogue: all scenarios of a suite of a manifest beside the file
//! clean                parameters of the catalogue's clean edits, for whatever model
//! perturbation_seeds   rounding noise that calibration did not see (it uses the window seeds)
//! controls             edits that should cost nothing
//! ladders              faults and edits at several strengths, each on several places
//! runs                 how often; window seeds beyond those of calibration are new to the guards
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value, json};

use crate::rundir::parse_named;
use crate::scenarios::{Category, Generation, Manifest, Scenario, Strictness, check_ids};
use crate::spec::Tuned;
use crate::suites::Runs;
use crate::{Error, Result};

/// The file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StudyFile {
    pub schema: String,
    pub title: String,
    /// Manifest with the catalogue, relative to this file; none for a study of its own scenarios alone.
    #[serde(default)]
    pub manifest: Option<PathBuf>,
    /// Suite of that manifest.
    #[serde(default)]
    pub suite: String,
    /// Entries as in a file of tuned parameters, by edit type.
    #[serde(default)]
    pub clean: Map<String, Value>,
    #[serde(default)]
    pub perturbation_seeds: Vec<u64>,
    #[serde(default)]
    pub controls: Vec<Control>,
    #[serde(default)]
    pub ladders: Vec<Ladder>,
    #[serde(default)]
    pub runs: Runs,
    /// The catalogue, once it is loaded.
    #[serde(skip)]
    catalogue: Vec<Scenario>,
}

/// An edit that should cost nothing.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Control {
    pub id: String,
    pub edit_spec: String,
}

/// One change at several strengths.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ladder {
    pub id: String,
    pub title: String,
    /// What the strength is.
    pub strength: String,
    pub change: Change,
    /// From the weakest change to the strongest, whatever the numbers say (8 bits change less than 2).
    pub strengths: Vec<Number>,
    /// Settings of each repetition, such as layers and seeds; empty means once. Only faults have settings.
    #[serde(default)]
    pub repeats: Vec<Map<String, Value>>,
}

/// What changes.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Change {
    /// An edit; `{}` in its specification stands for the strength.
    Edit { edit_spec: String },
    /// A fault; the strength is the setting of that name.
    Error {
        error_type: String,
        setting: String,
        #[serde(default)]
        env: Map<String, Value>,
    },
}

/// What a scenario is in a study for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The model against itself.
    NoOp,
    Perturbation,
    Control,
    Clean,
    Stress,
    Fault,
    Ladder,
}

/// A scenario's place in the study.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    pub part: Part,
    /// Ladder and strength, as positions.
    pub step: Option<(usize, usize)>,
}

impl StudyFile {
    /// Schema id that this version reads.
    pub const SCHEMA: &'static str = "packhost_study_v1";

    /// Reads and checks the file and the manifest that it names.
    ///
    /// # Errors
    /// Unreadable file, JSON or schema faults; an id that is unsafe or appears twice; a ladder without strengths, with a
    /// specification that does not say where the strength goes, or with settings for an edit.
    pub fn load(path: &Path) -> Result<Self> {
        let fail = |message: String| Error::Study {
            path: path.into(),
            message,
        };
        let mut file: Self = parse_named("read the study", path, fail)?;
        if let Some(manifest) = &file.manifest {
            let manifest = Manifest::load(&path.with_file_name(manifest))?;
            file.catalogue = manifest.select(&file.suite, &[])?.scenarios;
        }
        file.check().map_err(fail)?;
        Ok(file)
    }

    fn check(&self) -> std::result::Result<(), String> {
        if self.schema != Self::SCHEMA {
            return Err(format!(
                "schema `{}` is not `{}`",
                self.schema,
                Self::SCHEMA
            ));
        }
        for ladder in &self.ladders {
            let id = &ladder.id;
            if ladder.strengths.is_empty() {
                return Err(format!("ladder `{id}` has no strengths"));
            }
            if let Change::Edit { edit_spec } = &ladder.change {
                if !edit_spec.contains("{}") {
                    return Err(format!(
                        "ladder `{id}`: `{{}}` in `edit_spec` says where the strength goes, and there is none"
                    ));
                }
                if !ladder.repeats.is_empty() {
                    return Err(format!(
                        "ladder `{id}`: an edit has no settings to repeat it with"
                    ));
                }
            }
        }
        let scenarios = self.scenarios();
        check_ids(scenarios.iter().map(|(scenario, _)| scenario.id.as_str()))?;
        match scenarios.is_empty() {
            true => Err("it has no scenario".into()),
            false => Ok(()),
        }
    }

    /// Every scenario with its place, in order: perturbations, controls, the catalogue, ladders.
    pub fn scenarios(&self) -> Vec<(Scenario, Place)> {
        let place = |part| Place { part, step: None };
        let noise = self.perturbation_seeds.iter().map(|&seed| {
            let id = format!("rounding_noise_{seed}");
            let generation = Generation::Perturbation { seed };
            (
                scenario(id, Category::Clean, generation),
                place(Part::Perturbation),
            )
        });
        let controls = self.controls.iter().map(|control| {
            let generation = Generation::Edit {
                edit_spec: control.edit_spec.clone(),
                version: String::new(),
            };
            let id = control.id.clone();
            (
                scenario(id, Category::Clean, generation),
                place(Part::Control),
            )
        });
        let catalogue = self.catalogue.iter().map(|scenario| {
            let part = match scenario.category {
                Category::Clean => Part::Clean,
                Category::Stress => Part::Stress,
                Category::ErrorInjection => Part::Fault,
            };
            (scenario.clone(), place(part))
        });
        let ladders = self.ladders.iter().enumerate();
        let ladders = ladders.flat_map(|(index, ladder)| ladder.scenarios(index));
        noise
            .chain(controls)
            .chain(catalogue)
            .chain(ladders)
            .collect()
    }

    /// The manifest of the study's run.
    pub fn to_manifest(&self) -> Manifest {
        let scenarios = self.scenarios().into_iter().map(|(scenario, _)| scenario);
        Manifest {
            schema: Manifest::SCHEMA.into(),
            schema_version: 1,
            meta: Map::from_iter([("title".to_owned(), json!(self.title))]),
            scenarios: scenarios.collect(),
        }
    }

    /// The parameters of clean edits, for the model called `id`.
    pub fn tuned(&self, id: &str) -> Tuned {
        Tuned::File(Map::from_iter([(
            "models".to_owned(),
            json!({id: self.clean}),
        )]))
    }
}

impl Ladder {
    fn scenarios(&self, index: usize) -> Vec<(Scenario, Place)> {
        let once = [Map::new()];
        let repeats = match self.repeats.as_slice() {
            [] => &once[..],
            repeats => repeats,
        };
        let mut scenarios = Vec::new();
        for (step, strength) in self.strengths.iter().enumerate() {
            for (number, settings) in repeats.iter().enumerate() {
                let (category, generation) = match &self.change {
                    Change::Edit { edit_spec } => {
                        let edit_spec = edit_spec.replace("{}", &strength.to_string());
                        let version = String::new();
                        (Category::Stress, Generation::Edit { edit_spec, version })
                    }
                    Change::Error {
                        error_type,
                        setting,
                        env,
                    } => {
                        let mut env = env.clone();
                        env.extend(settings.clone());
                        env.insert(setting.clone(), Value::Number(strength.clone()));
                        let generation = Generation::Error {
                            error_type: error_type.clone(),
                            env,
                            env_by_model: BTreeMap::new(),
                        };
                        (Category::ErrorInjection, generation)
                    }
                };
                let id = format!("{}.{strength}.{}", self.id, number + 1);
                let place = Place {
                    part: Part::Ladder,
                    step: Some((index, step)),
                };
                scenarios.push((scenario(id, category, generation), place));
            }
        }
        scenarios
    }
}

/// A scenario that asks for nothing.
fn scenario(id: String, category: Category, generation: Generation) -> Scenario {
    Scenario {
        id,
        suites: Vec::new(),
        category,
        failure_class: "study".into(),
        strictness: Strictness::Informational,
        intent: "study".into(),
        primary_guard: "primary_metric".into(),
        generation,
        requirements: None,
        artifact_class: None,
        deployable_as_hf_checkpoint: None,
        optimized_deployment_backend: None,
        contains_model_weights_in_pack: None,
        run_directory_contains_edit_artifacts: None,
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A small study: one perturbation, one control, a ladder of a fault and one of an edit.
    pub fn file() -> StudyFile {
        serde_json::from_value(json!({
            "schema": "packhost_study_v1", "title": "test", "perturbation_seeds": [7],
            "controls": [{"id": "eight", "edit_spec": "quant_rtn:8:128:ffn"}],
            "ladders": [
                {"id": "noise", "title": "Noise", "strength": "share", "strengths": [0.01, 0.3],
                 "change": {"kind": "error", "error_type": "relative_noise", "setting": "INVARLOCK_S", "env": {"INVARLOCK_A": 1}},
                 "repeats": [{"INVARLOCK_SEED": 1}, {"INVARLOCK_SEED": 2}]},
                {"id": "bits", "title": "Bits", "strength": "bits", "strengths": [8, 2],
                 "change": {"kind": "edit", "edit_spec": "quant_rtn:{}:32:ffn"}},
            ],
        }))
        .unwrap()
    }

    #[test]
    fn ladders_become_scenarios() {
        let file = file();
        file.check().unwrap();
        let scenarios = file.scenarios();
        let ids: Vec<&str> = scenarios.iter().map(|(s, _)| s.id.as_str()).collect();
        assert_eq!(
            ids,
            [
                "rounding_noise_7",
                "eight",
                "noise.0.01.1",
                "noise.0.01.2",
                "noise.0.3.1",
                "noise.0.3.2",
                "bits.8.1",
                "bits.2.1"
            ]
        );
        assert_eq!(scenarios[5].1.step, Some((0, 1)));
        let env = scenarios[5].0.injection_env(&[]).unwrap();
        assert_eq!(
            Value::Object(env),
            json!({"INVARLOCK_A": 1, "INVARLOCK_S": 0.3, "INVARLOCK_SEED": 2})
        );
        let Generation::Edit { edit_spec, .. } = &scenarios[7].0.generation else {
            panic!("an edit");
        };
        assert_eq!(edit_spec, "quant_rtn:2:32:ffn");
        // What a run stores says the same.
        assert!(file.to_manifest().render().contains("\"perturbation\""));
    }

    #[test]
    fn nonsense_is_refused() {
        let mut twice = file();
        twice.controls[0].id = "bits.8.1".into();
        assert!(twice.check().unwrap_err().contains("appears twice"));
        let mut nowhere = file();
        nowhere.ladders[1].change = Change::Edit {
            edit_spec: "quant_rtn:8".into(),
        };
        assert!(
            nowhere
                .check()
                .unwrap_err()
                .contains("where the strength goes")
        );
        let mut settings = file();
        settings.ladders[1].repeats = vec![Map::new()];
        assert!(settings.check().unwrap_err().contains("no settings"));
        let mut none = file();
        none.ladders[0].strengths.clear();
        assert!(none.check().unwrap_err().contains("no strengths"));
        let unknown = json!({"schema": "packhost_study_v1", "title": "t", "laders": []});
        assert!(serde_json::from_value::<StudyFile>(unknown).is_err());
    }
}
