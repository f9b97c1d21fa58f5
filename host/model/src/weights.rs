//! What a baseline and a subject have in common: named tensors in module order, and a configuration.

use packhost_tensor::{DType, Tensor};
use serde_json::Value;

use crate::{
    config::Config,
    error::Result,
    names::{Order, Role, classify},
};

/// One stored tensor, without its elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorMeta {
    /// Full name, such as `model.layers.0.mlp.up_proj.weight`.
    pub name: String,
    /// Axes, outermost first; a linear layer's weight is `[out, in]`.
    pub shape: Vec<usize>,
    /// Element type as stored.
    pub dtype: DType,
    /// What it does in the network, by its name.
    pub role: Role,
    /// Decoder layer, counted from 0.
    pub layer: Option<u32>,
    /// Expert within the layer, where experts are stored one by one.
    pub expert: Option<u32>,
    /// For an output head that is stored but shares the embedding's values: the embedding's name. So it is when the
    /// configuration ties the two, and when they are the same bytes.
    pub tied_to: Option<String>,
}

impl TensorMeta {
    pub(crate) fn new(name: &str, dtype: DType, shape: &[usize]) -> Self {
        let place = classify(name);
        Self {
            name: name.into(),
            shape: shape.into(),
            dtype,
            role: place.role,
            layer: place.layer,
            expert: place.expert,
            tied_to: None,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> u64 {
        self.shape.iter().map(|&axis| axis as u64).product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the elements.
    pub fn byte_len(&self) -> u64 {
        self.len() * self.dtype.size() as u64
    }

    /// Sort key of module order. Unique by its second part.
    pub(crate) fn order(&self) -> (Order, String) {
        (classify(&self.name).order, self.name.clone())
    }
}

/// How the output head relates to the embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tying {
    /// The head is the embedding: it is not stored and the configuration ties it, or it is stored and shares its values.
    Tied,
    /// The head is stored and has values of its own.
    Untied,
    /// There is no head, and nothing says that the embedding serves.
    Absent,
}

impl Tying {
    /// Name in measurement tables: `tied`, `untied`, `absent`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tied => "tied",
            Self::Untied => "untied",
            Self::Absent => "absent",
        }
    }
}

/// A model's weights: a [`Checkpoint`](crate::Checkpoint), or an [`Overlay`](crate::Overlay) on one.
pub trait Weights: Send + Sync {
    /// The configuration, parsed.
    fn config(&self) -> &Config;

    /// The configuration as JSON.
    fn config_json(&self) -> &Value;

    /// Every stored tensor, in module order. A head that is not stored because it is tied does not appear.
    fn tensors(&self) -> &[TensorMeta];

    /// The elements of the tensor called `name`. Cheap: nothing is read or copied yet.
    ///
    /// # Errors
    /// When there is no such tensor.
    fn tensor(&self, name: &str) -> Result<Tensor>;

    /// Facts about the tensor called `name`.
    fn meta(&self, name: &str) -> Option<&TensorMeta> {
        self.tensors().iter().find(|meta| meta.name == name)
    }

    /// The token embedding.
    fn embedding(&self) -> Option<&TensorMeta> {
        self.tensors()
            .iter()
            .find(|meta| meta.role == Role::Embedding)
    }

    /// The tensor that turns hidden states into logits: the embedding when the configuration ties it, else the stored head.
    fn output_head(&self) -> Option<&TensorMeta> {
        if self.config().tie_word_embeddings && self.embedding().is_some() {
            self.embedding()
        } else {
            stored_head(self.tensors())
        }
    }

    /// How the head relates to the embedding.
    fn tying(&self) -> Tying {
        match stored_head(self.tensors()) {
            Some(head) if head.tied_to.is_some() => Tying::Tied,
            Some(_) => Tying::Untied,
            None if self.config().tie_word_embeddings && self.embedding().is_some() => Tying::Tied,
            None => Tying::Absent,
        }
    }
}

/// The head as a tensor of its own.
pub(crate) fn stored_head(tensors: &[TensorMeta]) -> Option<&TensorMeta> {
    tensors.iter().find(|meta| meta.role == Role::LmHead)
}

/// Sorts `tensors` into module order.
pub(crate) fn sort(tensors: &mut [TensorMeta]) {
    tensors.sort_by_cached_key(TensorMeta::order);
}

/// Fills in [`TensorMeta::tied_to`]. `tensor` gives elements; it is asked for head and embedding only when their shapes
/// agree and the configuration does not settle it, and comparing ends at the first difference.
pub(crate) fn find_ties(
    tensors: &mut [TensorMeta],
    config: &Config,
    tensor: impl Fn(&str) -> Result<Tensor>,
) -> Result<()> {
    let embedding = tensors
        .iter()
        .find(|meta| meta.role == Role::Embedding)
        .cloned();
    let Some(head) = tensors.iter_mut().find(|meta| meta.role == Role::LmHead) else {
        return Ok(());
    };
    let tied = match &embedding {
        None => false,
        Some(embedding) if config.tie_word_embeddings => embedding.name != head.name,
        Some(embedding) if embedding.shape == head.shape && embedding.dtype == head.dtype => {
            tensor(&embedding.name)?.bytes() == tensor(&head.name)?.bytes()
        }
        Some(_) => false,
    };
    head.tied_to = embedding.filter(|_| tied).map(|embedding| embedding.name);
    Ok(())
}
