//! End-to-end, conformance and fault tests over the whole program, in one binary: it is linked once.
//!
//! Each module is one concern. Tests start the real `packhost` with a clean environment in a folder of their own and compare
//! everything it prints, after the few things that may differ between machines (paths, times, digests) were replaced.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;
