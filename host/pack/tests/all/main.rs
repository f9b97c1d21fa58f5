//! Tests of this crate against the reference fixtures, in one binary.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod building;
mod fixtures;
mod hardening;
mod mutants;
mod policy;
mod reference_cases;
mod sealing;
mod second;
mod verdict_vectors;
