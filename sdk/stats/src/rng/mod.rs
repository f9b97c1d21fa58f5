//! The random streams of the reference systems, reproduced exactly: NumPy's default generator ([`Pcg64`]), and the
//! Mersenne twister ([`Mt19937`]) as NumPy's legacy interface, Python's `random` and PyTorch on the CPU drive it.
//!
//! Window selection, bootstrap intervals and the fault injections are defined through these streams, so "the same seed"
//! means the same windows, replicates and damaged elements as in the reference.

mod mt19937;
mod pcg64;
mod torch;

pub use mt19937::{Mt19937, numpy_permutation, python_shuffle};
pub use pcg64::Pcg64;
pub use torch::{TorchNormal, torch_permutation};
