//! What fault injections do alike, beside choosing targets ([`candidates`](crate::candidates)).

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::candidates::Candidates;
use crate::{Draft, Failure, Result, TensorInfo};

/// The settings of a damage that has none: an empty object.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoSettings {}

/// Whether a tensor is a weight with two or more axes.
pub fn is_weight(tensor: &TensorInfo) -> bool {
    tensor.is_matrix_like() && tensor.name.to_lowercase().contains("weight")
}

/// The failure of a damage that finds nothing to damage.
pub fn nothing(error_type: &str, wanted: &str) -> Failure {
    Failure::unsupported(format!(
        "{error_type}: this model has no {wanted}, nothing would be injected"
    ))
}

/// Multiplies one tensor: the f32 product, rounded once.
///
/// # Errors
/// What the host refused.
pub fn scale(draft: &Draft, name: &str, factor: f64) -> Result<()> {
    draft.put(name, draft.get(name)?.map(|k| k.input(0) * factor as f32)?)
}

/// Damage that multiplies every chosen tensor by one factor.
pub struct Scaling<'a> {
    /// The scenario's word for it.
    pub error_type: &'a str,
    /// The factor.
    pub factor: f64,
    /// Seed of the shuffle.
    pub seed: u64,
    /// Which family of tensors.
    pub family: &'a str,
    /// Most tensors, as the settings say it.
    pub most: usize,
}

impl Scaling<'_> {
    /// Multiplies the tensors that were `chosen` and returns the record of it.
    ///
    /// # Errors
    /// What the host refused.
    pub fn apply(&self, draft: &Draft, chosen: &Candidates) -> Result<Value> {
        for name in &chosen.names {
            scale(draft, name, self.factor)?;
        }
        Ok(json!({
            "error_type": self.error_type,
            "injected": true,
            "scale_factor": self.factor,
            "seed": self.seed,
            "target_family": self.family,
            "target_layers": chosen.layers,
            "max_params": self.most,
            "modified_count": chosen.names.len(),
            "modified_params": chosen.names.iter().take(20).collect::<Vec<_>>(),
            "total_layers": chosen.total_layers,
        }))
    }
}
