//! What a run records about a subject beside its report: which tensors changed, who made it, and the files of its probes.
//!
//! Everything here is a pure function of what a pack holds, so that a replay makes the same files again.

use std::collections::BTreeSet;

use packhost_measure::report::{EditIdentity, run_id};
use packhost_model::Weights;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::paths;
use crate::scenarios::{Generation, Scenario};
use crate::subject::{PERTURBATION, Subject};

/// The tensors in which a subject differs from the baseline, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Changes {
    schema: String,
    changed: Vec<ChangedTensor>,
}

/// One of them. Of a tensor that was removed there is only the name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangedTensor {
    name: String,
    shape: Option<Vec<usize>>,
    layer: Option<u32>,
}

impl Changes {
    /// The changes of a subject.
    pub fn of(subject: &Subject) -> Self {
        let overlay = &subject.overlay;
        let changed = overlay.changed().keys().map(|name| {
            let meta = overlay.meta(name);
            ChangedTensor {
                name: name.clone(),
                shape: meta.map(|meta| meta.shape.clone()),
                layer: meta.and_then(|meta| meta.layer),
            }
        });
        Self {
            schema: "packhost-subject-v1".into(),
            changed: changed.collect(),
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
