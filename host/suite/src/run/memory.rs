//! What tasks need in memory, estimated from sizes alone: checkpoint headers and configuration, nothing is loaded.

use packhost_model::{Checkpoint, TensorMeta};
use serde::Serialize;

use super::request::ModelRequest;
use crate::graph::{Task, TaskKind};
use crate::{Error, Result};

/// Scratch of threads, tables, reports: what does not grow with the model.
const OVERHEAD: u64 = 64 << 20;

/// Sizes of one model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Footprint {
    /// Weights; mapped from disk, so they count towards the page cache rather than the program.
    pub weight_bytes: u64,
    /// Kept of a baseline per seed: the final hidden states.
    pub reference_bytes: u64,
    /// A subject in which every tensor changed.
    pub overlay_bytes: u64,
    /// Hidden states and scratch of a forward pass.
    pub activation_bytes: u64,
}

impl Footprint {
    /// Reads headers and configuration of the model's checkpoint.
    ///
    /// # Errors
    /// The checkpoint is absent or broken.
    pub fn of(model: &ModelRequest) -> Result<Self> {
        if !model.dir.is_dir() {
            return Err(Error::ModelAbsent {
                model: model.id.clone(),
                path: model.dir.clone(),
            });
        }
        let checkpoint = Checkpoint::open(&model.dir)?;
        let weights: u64 = checkpoint.tensors().iter().map(TensorMeta::byte_len).sum();
        let hidden = checkpoint.config().hidden_size as u64;
        let windows = (model.size.preview + model.size.final_) as u64;
        let hidden_states = windows * model.size.seq_len as u64 * hidden * 4;
        Ok(Self {
            weight_bytes: weights,
            reference_bytes: hidden_states,
            overlay_bytes: weights,
            activation_bytes: 4 * model.size.seq_len.max(512) as u64 * hidden * 4 * 8,
        })
    }
}

/// Bytes that a task of a model with these sizes is planned to need beside what is resident.
pub fn task_bytes(footprint: &Footprint, task: &Task) -> u64 {
    OVERHEAD
        + match task.kind {
            // The perturbation changes every matrix.
            TaskKind::CalibrationRun { .. } => {
                footprint.reference_bytes + footprint.activation_bytes + footprint.overlay_bytes
            }
            TaskKind::BaselineReport { .. } => {
                footprint.reference_bytes + footprint.activation_bytes
            }
            TaskKind::Create { .. } => footprint.overlay_bytes,
            TaskKind::Evaluate { .. } => footprint.activation_bytes,
            _ => 0,
        }
}

/// Most bytes that one worker's task needs at once, with what stays resident: the baselines' references for `seeds` seeds
/// and one subject.
pub fn peak_bytes(footprint: &Footprint, seeds: u64) -> u64 {
    OVERHEAD
        + footprint.overlay_bytes
        + footprint.activation_bytes
        + seeds * footprint.reference_bytes
}
