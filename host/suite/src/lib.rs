//! Scenarios, task graph, run directory and executors: how a suite becomes a run.
//!
//! The pure parts (`spec`, `scenarios`, `suites`, `graph`, `select`) describe and choose; `rundir` and `journal` remember;
//! `run` carries out. This crate is the only one that knows both plugins and models: it lends a checkpoint's tensors to a
//! plugin and turns what comes back into an overlay. It prints nothing; what happens is told through [`events`].

#![cfg_attr(
    test,
    allow(clippy::expect_used, clippy::unwrap_used, reason = "a test may panic")
)]
#![expect(
    missing_docs,
    reason = "every module, type and function is documented; plain fields are named for what they hold"
)]

pub mod compare;
mod convert;
pub mod evaluate;
pub mod events;
pub mod graph;
pub mod guards;
pub mod journal;
mod judging;
pub mod page;
pub mod perturb;
mod presets;
pub mod replay;
pub mod run;
pub mod rundir;
pub mod scenarios;
pub mod select;
pub mod spec;
pub mod study;
pub mod subject;
pub mod suites;
pub mod toolbox;

mod error;

pub use error::{Error, Result};
