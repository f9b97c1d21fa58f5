//! Forward kernels of language models, on slices of f32: normalisation, rotary embedding, attention, gating, routing and
//! the loss fused with the output projection.
//!
//! Nothing here knows a checkpoint or a configuration. Every kernel gives a row (a token, or a window for attention) the
//! same bits whatever else is in the batch and however many threads run.

pub mod attention;
pub mod elementwise;
pub(crate) mod lanes;
pub mod loss;
pub mod rotary;
pub mod router;
