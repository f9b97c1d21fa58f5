//! Random streams and statistics that the host and the guard components share.
//!
//! There is one implementation of every figure that decides something: the host's reports and a guard's judgement, run
//! in WebAssembly years later by an auditor, must agree bit for bit. So everything here is plain arithmetic in a fixed
//! order, transcendental functions come from `libm` (the same code on every target), and nothing touches files, clocks
//! or threads.

pub mod bootstrap;
pub mod drift;
pub mod normal;
pub mod null;
pub mod quantile;
pub mod rng;
pub mod student;
pub mod summary;
pub mod testing;
