//! A subject: a baseline with some tensors changed, added or removed, and perhaps another configuration.
//!
//! Only what changes is held; everything else is the baseline's, shared and still on disk until touched.

use std::{collections::BTreeMap, sync::Arc};

use packhost_tensor::Tensor;
use serde_json::Value;

use crate::{
    checkpoint::{CONFIG_FILE, Checkpoint},
    config::Config,
    error::{Error, Result},
    names::Role,
    weights::{TensorMeta, Weights, find_ties},
};

/// The first point of the forward pass where a subject differs from its baseline. Everything before it can be taken from
/// the baseline's hidden states. Ordered from front to back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cut {
    /// From the start.
    Embedding,
    /// From the hidden states that enter this layer.
    Layer(u32),
    /// From the hidden states that leave the last layer, before the final norm.
    Head,
    /// Nowhere: the subject scores as its baseline does.
    Nothing,
}

/// A baseline with changes.
#[derive(Debug, Clone)]
pub struct Overlay {
    base: Arc<Checkpoint>,
    /// `None` marks a removed tensor.
    changed: BTreeMap<String, Option<Tensor>>,
    config: Config,
    config_json: Value,
    tensors: Vec<TensorMeta>,
}

impl Overlay {
    /// The baseline, unchanged so far.
    pub fn new(base: Arc<Checkpoint>) -> Self {
        Self {
            changed: BTreeMap::new(),
            config: base.config().clone(),
            config_json: base.config_json().clone(),
            tensors: base.tensors().to_vec(),
            base,
        }
    }

    /// The baseline.
    pub fn base(&self) -> &Arc<Checkpoint> {
        &self.base
    }

    /// Replaces the tensor called `name`, by one of any shape and dtype, or adds it.
    ///
    /// # Errors
    /// Never, unless the baseline's files are gone.
    pub fn put(&mut self, name: &str, tensor: Tensor) -> Result<()> {
        let meta = TensorMeta::new(name, tensor.dtype(), tensor.shape());
        let ties = matters_for_ties(&meta);
        match self.tensors.iter_mut().find(|known| known.name == name) {
            Some(known) => *known = meta,
            None => {
                let order = meta.order();
                let at = self.tensors.partition_point(|known| known.order() < order);
                self.tensors.insert(at, meta);
            }
        }
        self.changed.insert(name.into(), Some(tensor));
        if ties { self.find_ties() } else { Ok(()) }
    }

    /// Removes the tensor called `name`.
    ///
    /// # Errors
    /// When there is none.
    pub fn remove(&mut self, name: &str) -> Result<()> {
        let Some(at) = self.tensors.iter().position(|meta| meta.name == name) else {
            return Err(self.no_tensor(name));
        };
        let removed = self.tensors.remove(at);
        if self.base.locate(name).is_ok() {
            self.changed.insert(name.into(), None);
        } else {
            self.changed.remove(name);
        }
        if matters_for_ties(&removed) {
            self.find_ties()
        } else {
            Ok(())
        }
    }

    /// Replaces the configuration.
    ///
    /// # Errors
    /// When it is no object or a field is of the wrong kind; the overlay is then as before.
    pub fn set_config(&mut self, json: Value) -> Result<()> {
        self.config = Config::parse(&json, &self.base.dir().join(CONFIG_FILE))?;
        self.config_json = json;
        self.find_ties()
    }

    /// What differs from the baseline, by name; `None` is a removed tensor.
    pub fn changed(&self) -> &BTreeMap<String, Option<Tensor>> {
        &self.changed
    }

    /// Whether the configuration is not the baseline's.
    pub fn config_changed(&self) -> bool {
        self.config_json != *self.base.config_json()
    }

    /// Bytes that the changed tensors hold in memory.
    pub fn byte_len(&self) -> usize {
        self.changed
            .values()
            .flatten()
            .map(|tensor| tensor.bytes().len())
            .sum()
    }

    /// Where the forward pass first differs from the baseline's.
    pub fn first_changed_layer(&self) -> Cut {
        self.changed
            .keys()
            .map(|name| cut_of(name))
            .fold(self.config_cut(), Cut::min)
    }

    /// A changed configuration is taken to change everything, but for tying, which only changes the head.
    fn config_cut(&self) -> Cut {
        let base = self.base.config();
        if self.config == *base {
            return Cut::Nothing;
        }
        let mut same_ties = self.config.clone();
        same_ties.tie_word_embeddings = base.tie_word_embeddings;
        if same_ties == *base {
            Cut::Head
        } else {
            Cut::Embedding
        }
    }

    fn find_ties(&mut self) -> Result<()> {
        let mut tensors = std::mem::take(&mut self.tensors);
        let found = find_ties(&mut tensors, &self.config, |name| self.tensor(name));
        self.tensors = tensors;
        found
    }

    fn no_tensor(&self, name: &str) -> Error {
        Error::NoTensor {
            name: name.into(),
            path: self.base.dir().into(),
        }
    }
}

fn matters_for_ties(meta: &TensorMeta) -> bool {
    matches!(meta.role, Role::Embedding | Role::LmHead)
}

/// Where the tensor called `name` enters the forward pass. One that is not known may enter anywhere.
fn cut_of(name: &str) -> Cut {
    let place = crate::names::classify(name);
    match (place.role, place.layer) {
        (Role::LmHead, None) => Cut::Head,
        // Outside the layers the only norm is the final one.
        (Role::Norm, None) => Cut::Head,
        (Role::Other | Role::Embedding, _) | (_, None) => Cut::Embedding,
        (_, Some(layer)) => Cut::Layer(layer),
    }
}

impl Weights for Overlay {
    fn config(&self) -> &Config {
        &self.config
    }

    fn config_json(&self) -> &Value {
        &self.config_json
    }

    fn tensors(&self) -> &[TensorMeta] {
        &self.tensors
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        match self.changed.get(name) {
            Some(Some(tensor)) => Ok(tensor.clone()),
            Some(None) => Err(self.no_tensor(name)),
            None => self.base.tensor(name),
        }
    }
}
