//! Windows, losses and measurement tables: what a guard is told about a subject, and the report that follows.
//!
//! The way through this crate: a [`dataset::Dataset`] gives texts, [`windows::select`] makes windows of them, measuring
//! them ([`measure()`]) yields a [`table::Table`] per model, guards (elsewhere) judge two tables by the policies of
//! [`tiers`], and a [`report`] puts it all into one document. Repeated measurements of a baseline make a [`preset`].
//!
//! This crate runs models and reads data sets. It knows no plugin runtime and writes no files.

mod activations;
mod asked;
pub mod canonical;
pub mod dataset;
mod error;
pub mod measure;
mod predictions;
pub mod preset;
pub mod report;
pub mod sets;
pub mod structure;
pub mod table;
mod tensors;
pub mod tiers;
mod wanted;
mod weights;
pub mod windows;

pub use activations::FeatureMoments;
pub use asked::is_asked;
pub use error::{Error, Result};
pub use measure::{Baseline, MeasureRequest, Measured, Probe, Request, measure};
pub use predictions::needs_predictions;
pub use weights::TIED_HEAD;
