//! Tests of this crate against the reference fixtures, in one binary.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod fixtures;
mod reference_cases;
mod verdict_vectors;
