//! One model of a run: its checkpoint, loaded once, and what its tasks share.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use packhost_measure::report::{ModelIdentity, run_id};
use packhost_measure::table::Table;
use packhost_measure::tiers::Policies;
use packhost_model::{Checkpoint, TensorMeta, Tokenizer};
use packhost_plugin::ModelInfo;
use serde_json::{Map, Value, json};

use super::request::ModelRequest;
use crate::convert::model_info;
use crate::evaluate::MeasuredBaseline;
use crate::subject::Subject;
use crate::{Error, Result};

/// The opened model.
pub struct Opened {
    pub checkpoint: Arc<Checkpoint>,
    pub tokenizer: Tokenizer,
    pub info: ModelInfo,
}

/// A model and what its tasks share in memory. All of it can be made again: after a resume each part is remade when a task
/// first asks for it.
pub struct ModelState {
    pub request: ModelRequest,
    opened: Lazy<Opened>,
    baselines: Mutex<BTreeMap<u64, Arc<Lazy<MeasuredBaseline>>>>,
    subjects: Mutex<BTreeMap<usize, Arc<Subject>>>,
    policies: Lazy<Policies>,
    digests: Lazy<BTreeMap<String, String>>,
    /// Measurements that do not depend on windows.
    fixed: Lazy<Table>,
}

impl ModelState {
    pub fn new(request: ModelRequest) -> Self {
        Self {
            request,
            opened: Lazy::default(),
            baselines: Mutex::default(),
            subjects: Mutex::default(),
            policies: Lazy::default(),
            digests: Lazy::default(),
            fixed: Lazy::default(),
        }
    }

    /// The checkpoint and its tokenizer, opened when first asked for.
    ///
    /// # Errors
    /// The checkpoint is absent or broken, its architecture is not served, or it has no tokenizer.
    pub fn open(&self) -> Result<&Opened> {
        self.opened.get_or_try(|| {
            let dir = &self.request.dir;
            if !dir.is_dir() {
                return Err(Error::ModelAbsent {
                    model: self.request.id.clone(),
                    path: dir.clone(),
                });
            }
            let checkpoint = Checkpoint::open(dir)?;
            checkpoint.config().served()?;
            let tokenizer = Tokenizer::open(dir)?;
            let info = model_info(&*checkpoint);
            Ok(Opened {
                checkpoint,
                tokenizer,
                info,
            })
        })
    }

    /// SHA-256 of every tensor, by name: all weights are read once for it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn digests(&self) -> Result<&BTreeMap<String, String>> {
        self.digests
            .get_or_try(|| Ok(self.open()?.checkpoint.tensor_digests()?))
    }

    /// What a run records about the model before it measures: architecture, tokenizer, and every tensor with its digest.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn facts(&self) -> Result<Value> {
        let opened = self.open()?;
        let checkpoint = &opened.checkpoint;
        let digests = self.digests()?;
        let tensor = |meta: &TensorMeta| {
            let facts = json!({
                "dtype": meta.dtype.name(),
                "shape": meta.shape,
                "sha256": digests.get(&meta.name),
            });
            (meta.name.clone(), facts)
        };
        let tensors: Map<String, Value> = checkpoint.tensors().iter().map(tensor).collect();
        let elements: u64 = checkpoint.tensors().iter().map(TensorMeta::len).sum();
        Ok(json!({
            "model_id": self.request.id,
            "revision": self.request.revision,
            "architecture": checkpoint.config().architecture_name,
            "parameters": elements,
            "tensors": checkpoint.tensors().len(),
            "shards": checkpoint.shard_digests()?,
            "tokenizer_sha256": opened.tokenizer.digest(),
            "tokenizer_vocab_size": opened.tokenizer.vocab_size(),
            "network": opened.info,
            "weights": {"sha256": checkpoint.fingerprint_of(digests), "tensors": tensors},
        }))
    }

    /// Policies under which this model's subjects are judged.
    ///
    /// # Errors
    /// Whatever `make` says when it is called.
    pub fn policies(&self, make: impl FnOnce() -> Result<Policies>) -> Result<&Policies> {
        self.policies.get_or_try(make)
    }

    /// What is the same on any windows: weights and structure, measured once.
    ///
    /// # Errors
    /// Whatever `make` says when it is called.
    pub fn fixed(&self, make: impl FnOnce() -> Result<Table>) -> Result<&Table> {
        self.fixed.get_or_try(make)
    }

    /// Runs `then` with the baseline's measurements for `seed`, made by `make` when first asked for. Tasks that ask for one
    /// that is being made wait for it instead of making it twice.
    ///
    /// # Errors
    /// Whatever `make` or `then` says.
    pub fn with_baseline<T>(
        &self,
        seed: u64,
        make: impl FnOnce() -> Result<MeasuredBaseline>,
        then: impl FnOnce(&MeasuredBaseline) -> Result<T>,
    ) -> Result<T> {
        let slot = Arc::clone(lock(&self.baselines).entry(seed).or_default());
        then(slot.get_or_try(make)?)
    }

    /// The subject of `scenario`, if it is in memory.
    pub fn subject(&self, scenario: usize) -> Option<Arc<Subject>> {
        lock(&self.subjects).get(&scenario).cloned()
    }

    /// Keeps a subject for its evaluations.
    pub fn keep_subject(&self, scenario: usize, subject: Subject) -> Arc<Subject> {
        let subject = Arc::new(subject);
        lock(&self.subjects).insert(scenario, Arc::clone(&subject));
        subject
    }

    /// Drops a subject.
    pub fn drop_subject(&self, scenario: usize) {
        lock(&self.subjects).remove(&scenario);
    }

    /// Who this model is in a report. `what` tells runs of it apart.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn identity(&self, what: &str, seed: u64) -> Result<ModelIdentity> {
        let opened = self.open()?;
        Ok(Named {
            id: &self.request.id,
            revision: self.request.revision.as_deref(),
            family: &opened.checkpoint.config().architecture_name,
            tokenizer_digest: opened.tokenizer.digest(),
            vocab_size: opened.tokenizer.vocab_size(),
        }
        .identity(what, seed))
    }
}

/// What a model is known by in reports.
#[derive(Debug, Clone, Copy)]
pub struct Named<'a> {
    pub id: &'a str,
    pub revision: Option<&'a str>,
    pub family: &'a str,
    pub tokenizer_digest: &'a str,
    pub vocab_size: usize,
}

impl Named<'_> {
    /// Who the model is in a report on the windows of `seed`. `what` is `baseline`, or the scenario of a subject.
    pub fn identity(&self, what: &str, seed: u64) -> ModelIdentity {
        let model_id = if what == "baseline" {
            self.id.to_owned()
        } else {
            format!("{}#{what}", self.id)
        };
        ModelIdentity {
            run_id: run_id(&[self.id, what, &seed.to_string()]),
            model_id,
            revision: self.revision.unwrap_or_default().to_owned(),
            family: self.family.to_owned(),
            tokenizer_digest: self.tokenizer_digest.to_owned(),
            vocab_size: self.vocab_size,
        }
    }
}

/// Nobody panics while holding these locks without leaving whole values behind.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A value made when first asked for, by a function that may fail. (`OnceLock::get_or_try_init` is not stable yet.)
struct Lazy<T> {
    value: OnceLock<T>,
    /// Held while the value is made, so that it is made once.
    turn: Mutex<()>,
}

impl<T> Default for Lazy<T> {
    fn default() -> Self {
        Self {
            value: OnceLock::new(),
            turn: Mutex::new(()),
        }
    }
}

impl<T> Lazy<T> {
    fn get_or_try(&self, make: impl FnOnce() -> Result<T>) -> Result<&T> {
        if let Some(value) = self.value.get() {
            return Ok(value);
        }
        let _turn = lock(&self.turn);
        match self.value.get() {
            Some(value) => Ok(value),
            None => {
                let value = make()?;
                Ok(self.value.get_or_init(|| value))
            }
        }
    }
}
