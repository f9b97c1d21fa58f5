//! The suites: which models a run takes, on which text, how often. Read from `scenarios/suites.json`; every value can be
//! replaced by configuration, environment or flags before a run is planned.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use packhost_measure::tiers::Profile;
use packhost_measure::windows::{Selection, WindowPlan};
use serde::{Deserialize, Serialize};

use crate::rundir::parse_named;
use crate::{Error, Result};

/// The file.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SuiteFile {
    pub schema: String,
    /// Evaluation sizes by size class.
    pub size_classes: BTreeMap<String, EvaluationSize>,
    pub models: BTreeMap<String, Model>,
    pub suites: BTreeMap<String, Suite>,
}

/// How much text one evaluation takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationSize {
    /// Tokens per window at most.
    pub seq_len: usize,
    pub preview: usize,
    #[serde(rename = "final")]
    pub final_: usize,
}

impl EvaluationSize {
    /// Which windows `seed` draws: the same for a run and for who replays it.
    #[must_use]
    pub fn window_plan(self, seed: u64, selection: Selection, profile: Profile) -> WindowPlan {
        WindowPlan {
            seq_len: self.seq_len,
            preview: self.preview,
            final_: self.final_,
            seed,
            run: 0,
            selection,
            profile,
        }
    }
}

/// A model that suites name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// The commit that the suite pins; none where no stored evidence names one.
    #[serde(default)]
    pub revision: Option<String>,
    pub size_class: String,
    /// Where the checkpoint lies, relative to this file. None: beside the run, under `models/<folder>/baseline`, or where
    /// the user says.
    #[serde(default)]
    pub path: Option<PathBuf>,
}

/// One suite. Absent values are the program's defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    pub title: String,
    /// Model ids in slot order.
    pub models: Vec<String>,
    #[serde(default)]
    pub evaluation: Option<EvaluationSize>,
    #[serde(default)]
    pub dataset: Option<Dataset>,
    /// `file_order`, `stratified` or `shuffled`.
    #[serde(default)]
    pub selection: Option<String>,
    #[serde(default)]
    pub tier: Option<String>,
    #[serde(default)]
    pub runs: Runs,
    /// Manifest of this suite, relative to this file; else the manifest beside it.
    #[serde(default)]
    pub scenarios: Option<PathBuf>,
    /// Tuned parameters of this suite, relative to this file; else the ones beside it.
    #[serde(default)]
    pub tuned_edit_params: Option<PathBuf>,
}

/// The evaluation text.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Dataset {
    /// `local_jsonl` or `text`.
    pub kind: String,
    pub path: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_field: Option<String>,
}

impl Dataset {
    /// The kind of `local_jsonl`.
    const JSON_LINES: &str = "local_jsonl";

    /// What a file holds by its ending: JSON lines with the text in `text_field`, or plain text.
    #[must_use]
    pub fn of_file(path: PathBuf, text_field: String) -> Self {
        let ending = path.extension();
        let lines = ending.is_some_and(|ending| ending == "jsonl" || ending == "ndjson");
        Self {
            kind: if lines { Self::JSON_LINES } else { "text" }.into(),
            path,
            text_field: Some(text_field),
        }
    }

    /// How windows are drawn unless someone says otherwise: prepared lines as they stand, text by difficulty.
    #[must_use]
    pub fn usual_selection(&self) -> Selection {
        match self.kind == Self::JSON_LINES {
            true => Selection::FileOrder,
            false => Selection::Stratified,
        }
    }
}

/// How often things are done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Runs {
    #[serde(default)]
    pub calibration: Option<u32>,
    #[serde(default)]
    pub clean: Option<u32>,
    #[serde(default)]
    pub stress: Option<u32>,
    #[serde(default)]
    pub error: Option<u32>,
}

impl SuiteFile {
    /// Schema id that this version reads.
    pub const SCHEMA: &'static str = "packhost_suites_v1";

    /// Reads and checks the file.
    ///
    /// # Errors
    /// Unreadable file, JSON or schema faults, a suite that names an unknown model, a model with an unknown size class.
    pub fn load(path: &Path) -> Result<Self> {
        let fail = |message: String| Error::Suites {
            path: path.into(),
            message,
        };
        let mut file: Self = parse_named("read the suite file", path, fail)?;
        file.check().map_err(fail)?;
        file.resolve_paths(path.parent().unwrap_or(Path::new(".")));
        Ok(file)
    }

    /// The suite called `name`.
    ///
    /// # Errors
    /// When there is none.
    pub fn suite(&self, name: &str) -> Result<&Suite> {
        self.suites.get(name).ok_or_else(|| Error::UnknownSuite {
            name: name.into(),
            known: self.suites.keys().cloned().collect(),
        })
    }

    /// Size of an evaluation of `model`: the suite's own, else that of the model's size class.
    pub fn evaluation_size(&self, suite: &Suite, model: &str) -> Option<EvaluationSize> {
        let of_class = || {
            self.size_classes
                .get(&self.models.get(model)?.size_class)
                .copied()
        };
        suite.evaluation.or_else(of_class)
    }

    fn check(&self) -> std::result::Result<(), String> {
        if self.schema != Self::SCHEMA {
            return Err(format!(
                "schema `{}` is not `{}`",
                self.schema,
                Self::SCHEMA
            ));
        }
        for (id, model) in &self.models {
            if !self.size_classes.contains_key(&model.size_class) {
                return Err(format!(
                    "model `{id}` has the unknown size class `{}`",
                    model.size_class
                ));
            }
        }
        for (name, suite) in &self.suites {
            if let Some(unknown) = suite
                .models
                .iter()
                .find(|id| !self.models.contains_key(*id))
            {
                return Err(format!(
                    "suite `{name}` names the unknown model `{unknown}`"
                ));
            }
        }
        Ok(())
    }

    /// Makes the file's relative paths relative to the working directory.
    fn resolve_paths(&mut self, base: &Path) {
        for path in self
            .models
            .values_mut()
            .filter_map(|model| model.path.as_mut())
        {
            *path = base.join(&path);
        }
        for suite in self.suites.values_mut() {
            let dataset = suite.dataset.as_mut().map(|dataset| &mut dataset.path);
            for path in [
                dataset,
                suite.scenarios.as_mut(),
                suite.tuned_edit_params.as_mut(),
            ]
            .into_iter()
            .flatten()
            {
                *path = base.join(&path);
            }
        }
    }
}
