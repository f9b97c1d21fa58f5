//! Tensors, kernel programs and the devices that run them.
//!
//! This crate knows numbers and nothing else: no files, no models, no plugins. Its core (dtypes, tensors, programs and the
//! [`Device`] trait) has no back end and few dependencies, so that replaying a verdict can use the types without linking
//! matrix code; the feature `cpu` adds [`cpu::Cpu`].

mod buffer;
pub mod cast;
mod device;
mod dtype;
mod error;
pub mod program;
mod tensor;
mod weight_stats;

#[cfg(feature = "cpu")]
pub mod cpu;

pub use device::{Computed, Device};
pub use dtype::DType;
pub use error::{Error, Result};
pub use tensor::{Tensor, TensorMut};
pub use weight_stats::{
    LEADING, Leading, Norms, Power, Shift, Spread, Start, WeightStats, WeightWish,
};
