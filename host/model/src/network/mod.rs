//! The forward pass: from a checkpoint's tensors to token losses.
//!
//! - [`Network`] takes what it needs from [`Weights`](crate::Weights) and checks every shape against the configuration.
//! - [`Network::score`] runs windows of tokens through it, in blocks of whole windows, and gives the loss of every token;
//!   beside a [`Reference`] also how far each prediction is from the baseline's.
//! - A [`HiddenCache`] holds a baseline's hidden states between layers, so that a subject is scored from its first changed
//!   layer on.
//! - [`TapRequest`] asks for statistics of modules' outputs, taken on the way.
//!
//! Arithmetic is f32; weights stay in their stored type. Every number that comes out depends on its own window and on the
//! weights alone: not on the other windows, their order, the block they share, the number of threads or the layer that the
//! pass started from. Weights with NaN or infinities give losses with NaN or infinities.

mod forward;
mod kept;
mod resolve;
mod score;
mod taps;

pub use kept::{HiddenCache, KeepPolicy, Reference};
pub use packhost_tensor::cpu::activation::Spectrum;
pub use resolve::Network;
pub use score::{ScoreRequest, Scores};
pub use taps::{Findings, Moments, Observed, Padding, Tap, TapRequest};
