//! Windows, losses and measurement tables: what a guard is told about a subject, and the report that follows.
//!
//! The way through this crate: a [`dataset::Dataset`] gives texts, [`windows::select`] makes windows of them, measuring
//! them yields a [`table::Table`] per model, guards (elsewhere) judge two tables by the policies of [`tiers`], and the
//! report puts it all into one document.
//!
//! This crate runs models and reads data sets. It knows no plugin runtime and writes no files.

pub mod canonical;
pub mod dataset;
mod error;
pub mod table;
pub mod tiers;
pub mod windows;

pub use error::{Error, Result};
