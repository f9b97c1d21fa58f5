//! What a run records about a subject beside its report: which tensors changed, who made it, and the files of its probes.
//!
//! Everything here is a pure function of what a pack holds, so that a replay makes the same files again.

use std::collections::BTreeSet;

use packhost_measure::canonical::to_line;
use packhost_measure::report::{EditIdentity, run_id};
use packhost_model::{Weights, digest};
use packhost_plugin::{Fact, TargetFacts};
use packhost_tensor::Tensor;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::paths;
use crate::scenarios::{Generation, Scenario};
use crate::subject::{PERTURBATION, Subject};

/// The format's name.
pub const SCHEMA: &str = "packhost-subject-v2";

/// The tensors in which a subject differs from the baseline, by name, and what it took to make them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Changes {
    pub schema: String,
    pub changed: Vec<ChangedTensor>,
    /// Of an edit: every tensor that its plan names, in plan order, those included that came back as they were.
    pub planned: Option<Vec<PlannedTensor>>,
    /// SHA-256 of the configuration in canonical JSON, where it is not the baseline's.
    pub config_sha256: Option<String>,
}

/// A changed tensor. Of one that was removed there is only the name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangedTensor {
    pub name: String,
    pub dtype: Option<String>,
    pub shape: Option<Vec<usize>>,
    pub layer: Option<u32>,
    /// SHA-256 of the elements as a checkpoint stores them, hexadecimal.
    pub sha256: Option<String>,
}

/// A tensor of a plan, and the numbers that its plugin found while changing it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedTensor {
    pub name: String,
    /// Names and values, in the plugin's order. Values are texts, because JSON has no NaN: the shortest that reads back as
    /// the same number.
    pub facts: Vec<(String, String)>,
}

impl PlannedTensor {
    fn of(target: &TargetFacts) -> Self {
        let fact = |fact: &Fact| (fact.name.clone(), format!("{:?}", fact.value));
        Self {
            name: target.tensor.clone(),
            facts: target.facts.iter().map(fact).collect(),
        }
    }

    /// As the plugin was told of it.
    ///
    /// # Errors
    /// In words: which value is no number in its one form.
    pub fn facts(&self) -> Result<TargetFacts, String> {
        let fact = |(name, text): &(String, String)| match text.parse::<f64>() {
            Ok(value) if format!("{value:?}") == *text => Ok(Fact {
                name: name.clone(),
                value,
            }),
            _ => Err(format!(
                "states `{text}` as `{name}` of `{}`, which is no number in its one form",
                self.name
            )),
        };
        Ok(TargetFacts {
            tensor: self.name.clone(),
            facts: self.facts.iter().map(fact).collect::<Result<_, _>>()?,
        })
    }
}

impl Changes {
    /// The changes of a subject. Hashes every changed tensor once, in parallel, while it is in memory.
    pub fn of(subject: &Subject) -> Self {
        let overlay = &subject.overlay;
        let changed: Vec<(&String, &Option<Tensor>)> = overlay.changed().iter().collect();
        let changed = changed.into_par_iter().map(|(name, tensor)| {
            let meta = overlay.meta(name);
            ChangedTensor {
                name: name.clone(),
                dtype: meta.map(|meta| meta.dtype.name().into()),
                shape: meta.map(|meta| meta.shape.clone()),
                layer: meta.and_then(|meta| meta.layer),
                sha256: tensor.as_ref().map(|tensor| digest::bytes(tensor.bytes())),
            }
        });
        let planned = subject.planned.as_ref();
        let config = || digest::bytes(to_line(overlay.config_json()).as_bytes());
        Self {
            schema: SCHEMA.into(),
            changed: changed.collect(),
            planned: planned.map(|planned| planned.iter().map(PlannedTensor::of).collect()),
            config_sha256: overlay.config_changed().then(config),
        }
    }

    /// As a value.
    pub fn json(&self) -> Value {
        json!(self)
    }

    /// How the subject came to be, as reports say it. `metadata` is what its plugin said.
    pub fn identity(&self, scenario: &Scenario, metadata: &Value) -> EditIdentity {
        let (name, spec) = match &scenario.generation {
            Generation::Edit { edit_spec, .. } => (
                edit_spec.split(':').next().unwrap_or_default(),
                edit_spec.as_str(),
            ),
            Generation::Error { error_type, .. } => (error_type.as_str(), error_type.as_str()),
            Generation::Perturbation { .. } => (PERTURBATION, PERTURBATION),
        };
        let layers: BTreeSet<u32> = self.changed.iter().filter_map(|c| c.layer).collect();
        let shapes = self.changed.iter().filter_map(|c| c.shape.as_ref());
        let elements = shapes.map(|shape| {
            let axes = shape.iter().map(|&axis| axis as u64);
            axes.fold(1, u64::saturating_mul)
        });
        EditIdentity {
            name: name.into(),
            spec: spec.into(),
            digest: run_id(&[&metadata.to_string()]),
            layers_modified: layers.len(),
            params_changed: elements.fold(0, u64::saturating_add),
        }
    }
}

/// How an unedited model compares with itself.
pub fn nothing() -> EditIdentity {
    EditIdentity {
        name: "noop".into(),
        ..EditIdentity::default()
    }
}

/// What a probe's file says beside the guard's answer.
#[derive(Debug, Clone, Copy)]
pub struct ProbeAbout<'a> {
    pub began: &'a str,
    pub model: &'a str,
    pub folder: &'a str,
    pub seed: u64,
    pub profile: &'a str,
    pub tier: &'a str,
}

impl ProbeAbout<'_> {
    /// A probe's file: the guard's answer, and what it is about.
    pub fn file(&self, report: &Value, answer: &Value) -> Value {
        let mut probe = answer.clone();
        let windows = report["packhost"]["windows"]["texts"]
            .as_object()
            .map_or(0, |arms| {
                let arms = arms.values().filter_map(Value::as_array);
                arms.map(Vec::len).sum::<usize>()
            });
        let about = json!({
            "timestamp_utc": self.began,
            "baseline_model": self.model,
            "subject_model": report["meta"]["model_id"],
            "baseline_report": paths::baseline_report(self.folder, self.seed),
            "profile": self.profile,
            "tier": self.tier,
            "calibration_windows_loaded": windows,
        });
        if let (Value::Object(probe), Value::Object(about)) = (&mut probe, about) {
            for (key, value) in about {
                probe.entry(key).or_insert(value);
            }
        }
        probe
    }
}
