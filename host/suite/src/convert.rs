//! Between the two worlds that only this crate knows: a model's facts in the plugins' terms, and an overlay as the draft
//! that an injection may damage.

use packhost_model::{Overlay, TensorMeta, Weights};
use packhost_plugin::{Draft, Failure, ModelInfo, Role, TensorInfo};
use packhost_tensor::Tensor;

/// Facts about a model, for plugins. A tied head that is stored is left out: it is visited once, under the embedding's name.
pub fn model_info(weights: &dyn Weights) -> ModelInfo {
    let config = weights.config();
    let tensors = weights
        .tensors()
        .iter()
        .filter(|meta| meta.tied_to.is_none())
        .map(tensor_info)
        .collect();
    ModelInfo {
        architecture: config.architecture_name.clone(),
        layers: narrow(config.num_hidden_layers),
        hidden_size: narrow(config.hidden_size),
        vocab_size: narrow(config.vocab_size),
        experts: narrow(config.num_local_experts),
        tensors,
    }
}

/// Facts about one tensor, for plugins.
pub fn tensor_info(meta: &TensorMeta) -> TensorInfo {
    TensorInfo {
        name: meta.name.clone(),
        shape: meta.shape.iter().map(|&axis| axis as u64).collect(),
        dtype: meta.dtype,
        role: role(meta.role),
        layer: meta.layer,
        expert: meta.expert,
        tied_to: meta.tied_to.clone(),
    }
}

fn role(role: packhost_model::Role) -> Role {
    use packhost_model::Role as Model;
    match role {
        Model::Embedding => Role::Embedding,
        Model::LmHead => Role::LmHead,
        Model::Norm => Role::Norm,
        Model::AttnQ => Role::AttnQ,
        Model::AttnK => Role::AttnK,
        Model::AttnV => Role::AttnV,
        Model::AttnOut => Role::AttnOut,
        Model::FfnGate => Role::FfnGate,
        Model::FfnUp => Role::FfnUp,
        Model::FfnDown => Role::FfnDown,
        Model::Router => Role::Router,
        Model::Bias => Role::Bias,
        Model::Other => Role::Other,
    }
}

/// Sizes of models fit 32 bits; one that does not is shown as the largest that does.
fn narrow(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

/// An overlay, as the draft that an injection may damage.
pub struct OverlayDraft<'a>(pub &'a mut Overlay);

impl OverlayDraft<'_> {
    fn failed(error: packhost_model::Error) -> Failure {
        Failure::Failed(error.to_string())
    }
}

impl Draft for OverlayDraft<'_> {
    fn model(&self) -> Result<ModelInfo, Failure> {
        Ok(model_info(&*self.0))
    }

    fn get(&self, name: &str) -> Result<(TensorInfo, Tensor), Failure> {
        let tensor = self.0.tensor(name).map_err(Self::failed)?;
        let meta = self
            .0
            .meta(name)
            .ok_or_else(|| Failure::Failed(format!("there is no tensor `{name}`")))?;
        Ok((tensor_info(meta), tensor))
    }

    fn put(&mut self, name: &str, tensor: Tensor) -> Result<(), Failure> {
        if name.is_empty() || name == "__metadata__" {
            return Err(Failure::InvalidParams(format!(
                "`{name}` cannot be the name of a tensor"
            )));
        }
        self.0.put(name, tensor).map_err(Self::failed)
    }

    fn remove(&mut self, name: &str) -> Result<(), Failure> {
        self.0.remove(name).map_err(Self::failed)
    }

    fn config(&self) -> String {
        self.0.config_json().to_string()
    }

    fn set_config(&mut self, config: &str) -> Result<(), Failure> {
        let json = serde_json::from_str(config)
            .map_err(|error| Failure::InvalidParams(error.to_string()))?;
        self.0.set_config(json).map_err(Self::failed)
    }
}
