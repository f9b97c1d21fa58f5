//! What a pack says about its run: every setting that the evidence depends on, so that a replay needs nothing else.

use packhost_plugin::{INTERFACE_VERSION, Limits};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::work::Work;
use crate::evaluate::ALPHA;
use crate::graph::Counts;
use crate::suites::EvaluationSize;
use crate::toolbox::PluginIdentity;

/// The form of a run's pack: what it holds, and so what a replay can derive. `run.json` states it, under the signature.
///
/// A new kind of file that every pack holds, or another text of one, is a new form; older ones are replayed as far as they
/// could be when they were made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// Without `report.html`.
    One = 1,
    /// With it.
    Two = 2,
}

impl Form {
    /// The form that this program writes.
    pub const CURRENT: Self = Self::Two;
    const ALL: [Self; 2] = [Self::One, Self::Two];

    /// As `run.json` names it.
    pub fn schema(self) -> &'static str {
        match self {
            Self::One => "packhost-run-v1",
            Self::Two => "packhost-run-v2",
        }
    }

    /// The form with this name.
    pub fn of_schema(schema: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|form| form.schema() == schema)
    }

    /// As `--require-form` and the output of a replay count it.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// Whether the pack holds `report.html`.
    pub fn has_page(self) -> bool {
        self >= Self::Two
    }

    /// What packs of later forms show and this one cannot, in words.
    pub fn lacks(self) -> Vec<&'static str> {
        match self {
            Self::One => vec!["it holds no page for people (report.html), so none was drawn again"],
            Self::Two => Vec::new(),
        }
    }
}

/// The engine that runs components. Fuel is the same on every machine, but not for every engine.
pub const ENGINE: &str = "wasmtime 48.0.8";

/// `metadata/packhost/run.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunRecord {
    pub schema: String,
    pub host_version: String,
    pub engine: String,
    /// Version of the plugin interface that the host served.
    pub interface: String,
    pub began: String,
    pub suite: String,
    pub tier: String,
    pub profile: String,
    pub assurance: String,
    pub selection: String,
    pub dataset: DatasetRecord,
    pub models: Vec<ModelRecord>,
    /// In the order in which they judged.
    pub guards: Vec<PluginIdentity>,
    pub counts: Counts,
    pub replicates: usize,
    pub alpha: f64,
    pub preset: PresetSource,
    /// What one plugin call could use. A replay allows what the verifier allows, not this.
    pub limits: Limits,
}

/// The data set of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetRecord {
    pub kind: String,
    pub provider: String,
    pub sha256: String,
}

/// A model of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRecord {
    pub id: String,
    pub folder: String,
    pub revision: Option<String>,
    pub size: EvaluationSize,
}

/// Where a run's presets come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PresetSource {
    /// From the run's own calibration, whose tables are in the pack.
    Derived,
    /// From outside.
    Given,
    /// There is none: the tier's policies judged.
    None,
}

impl RunRecord {
    /// The record of a run.
    pub fn of(work: &Work<'_>) -> Self {
        let request = work.request;
        let model = |model: &super::ModelRequest| ModelRecord {
            id: model.id.clone(),
            folder: model.folder.clone(),
            revision: model.revision.clone(),
            size: model.size,
        };
        Self {
            schema: Form::CURRENT.schema().into(),
            host_version: env!("CARGO_PKG_VERSION").into(),
            engine: ENGINE.into(),
            interface: INTERFACE_VERSION.to_string(),
            began: work.began.clone(),
            suite: request.suite.clone(),
            tier: request.tier.name().into(),
            profile: request.pack.profile.name().into(),
            assurance: request.pack.assurance.name().into(),
            selection: request.selection.name().into(),
            dataset: DatasetRecord {
                kind: request.dataset.kind.clone(),
                provider: work.dataset.provider().name().into(),
                sha256: work.dataset.digest().into(),
            },
            models: request.models.iter().map(model).collect(),
            guards: work.guards.identities(),
            counts: request.counts.clone(),
            replicates: request.replicates(),
            alpha: ALPHA,
            preset: match (&request.preset, request.counts.calibration_runs) {
                (Some(_), _) => PresetSource::Given,
                (None, 0) => PresetSource::None,
                (None, _) => PresetSource::Derived,
            },
            limits: work.toolbox.limits().clone(),
        }
    }

    /// As a value.
    pub fn json(&self) -> Value {
        json!(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_have_names_of_their_own() {
        for form in Form::ALL {
            assert_eq!(Form::of_schema(form.schema()), Some(form));
            assert_eq!(form.lacks().is_empty(), form == Form::CURRENT);
        }
        assert_eq!(Form::of_schema("packhost-run-v0"), None);
        assert_eq!(Form::ALL.last(), Some(&Form::CURRENT));
    }

    #[test]
    fn the_engine_is_the_one_that_is_built_in() {
        let manifest = include_str!("../../../../Cargo.toml");
        let (name, version) = ENGINE.split_once(' ').unwrap();
        let pinned = format!("\n{name} = {{ version = \"={version}\"");
        assert!(
            manifest.contains(&pinned),
            "Cargo.toml pins another {ENGINE}"
        );
    }
}
