//! The product of two tensors.

use super::{Spread, Store, View, ViewMut, Weight, linear};
use crate::{DType, Error, Result, Tensor, cpu::Cpu};

/// `[m, k] x [k, n] -> [m, n]`, sums in f32, stored in the dtype of `lhs`.
///
/// # Errors
/// When a factor is no matrix, the inner axes differ or a dtype is not a float.
pub fn matmul_tensors(cpu: &Cpu, lhs: &Tensor, rhs: &Tensor) -> Result<Tensor> {
    let (&[m, k], &[inner, n]) = (lhs.shape(), rhs.shape()) else {
        return Err(Error::Shape {
            op: "matmul",
            lhs: lhs.shape().to_vec(),
            rhs: rhs.shape().to_vec(),
        });
    };
    if inner != k {
        return Err(Error::Shape {
            op: "matmul",
            lhs: lhs.shape().to_vec(),
            rhs: rhs.shape().to_vec(),
        });
    }
    for tensor in [lhs, rhs] {
        if !tensor.dtype().is_float() {
            return Err(Error::DType {
                op: "matmul",
                dtype: tensor.dtype(),
            });
        }
    }
    let a = lhs.to_f32();
    let b = rhs.to_f32();
    let mut transposed = vec![0.0f32; b.len()];
    for (column, out) in transposed.chunks_exact_mut(k.max(1)).enumerate() {
        for (row, out) in out.iter_mut().enumerate() {
            *out = b[row * n + column];
        }
    }
    let mut out = vec![0.0f32; m * n];
    if m > 0 && n > 0 && k > 0 {
        let weight = Weight::new(&Tensor::from_f32(DType::F32, [n, k], &transposed)?)?;
        let view = ViewMut::new(&mut out, n);
        cpu.install(|| {
            linear(
                View::dense(&a, m),
                &weight,
                &view,
                Store::Replace,
                Spread::Pool,
            )
        });
    }
    Tensor::from_f32(lhs.dtype(), [m, n], &out)
}
