//! Checkpoints: reading, changing and writing them, and running the networks they hold.
//!
//! - [`Checkpoint`] maps a folder of safetensors files and checks every header; [`Config`] reads `config.json`.
//! - [`Overlay`] is a subject: a baseline plus what changed. Both are [`Weights`], which is all that a forward pass needs.
//! - [`writer`] puts a subject on disk as an ordinary checkpoint, one tensor in memory at a time.
//! - [`Tokenizer`] turns text into token ids.
//! - [`network`] is the forward pass.
//!
//! This crate touches checkpoint folders and nothing else: no plugins, no measurement, no network connections.

mod checkpoint;
mod config;
pub mod digest;
mod error;
mod header;
pub mod names;
pub mod network;
mod overlay;
mod shard;
mod tokenizer;
mod weights;
pub mod writer;

pub use checkpoint::Checkpoint;
pub use config::{Architecture, Config};
pub use error::{Error, HeaderProblem, IndexProblem, Result};
pub use header::{Entry, Header};
pub use names::Role;
pub use overlay::{Cut, Overlay};
pub use shard::Shard;
pub use tokenizer::Tokenizer;
pub use weights::{TensorMeta, Tying, Weights};
