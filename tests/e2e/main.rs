//! End-to-end, conformance and fault tests over the whole program, in one binary: it is linked once.
//!
//! Each module is one concern. Tests start the real `packhost` with a clean environment in a folder of their own and compare
//! everything it prints, after the few things that may differ between machines (paths, times, digests) were replaced.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod bad_checkpoints;
mod bad_edits;
mod bad_guards;
mod bad_plugins;
mod bad_presets;
mod bad_text;
mod browser;
mod commands;
mod edit;
// The guests of the plugin host's own tests: text modules made into components.
#[allow(dead_code, reason = "this binary needs only some of the helpers")]
#[path = "../../host/plugin/tests/all/guest.rs"]
mod guest;
mod hermetic;
mod interrupted;
mod memory;
mod mutants;
mod packs;
mod page;
mod receipts;
mod recompute;
mod replay;
mod report;
mod run;
mod study;
mod support;
