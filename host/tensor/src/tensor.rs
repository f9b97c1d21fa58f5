//! A tensor: dtype, shape and bytes that may be shared or borrowed from a mapped file.

use bytes::Bytes;

use crate::{DType, Error, Result};

/// An immutable, row-major tensor. Cloning shares the bytes.
#[derive(Clone)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    data: Bytes,
}

impl Tensor {
    /// A tensor over `data`, which holds `shape`'s elements in little-endian, row-major order.
    ///
    /// # Errors
    /// When the byte count is not what dtype and shape ask for.
    pub fn new(dtype: DType, shape: impl Into<Vec<usize>>, data: Bytes) -> Result<Self> {
        let shape = shape.into();
        let expected = byte_len(dtype, &shape)?;
        if expected != data.len() {
            return Err(Error::Size { dtype, shape, expected, found: data.len() });
        }
        Ok(Self { dtype, shape, data })
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Axes, outermost first. Empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.data.len() / self.dtype.size()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// The elements as stored: little-endian, row-major. No alignment is promised beyond one byte.
    pub fn bytes(&self) -> &Bytes {
        &self.data
    }

    /// `(rows, columns)`: the first axis, and all others flattened. A scalar is `(1, 1)`, a vector `(n, 1)`.
    pub fn rows_columns(&self) -> (usize, usize) {
        match self.shape.split_first() {
            None => (1, 1),
            Some((&rows, rest)) => (rows, rest.iter().product()),
        }
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({} {:?})", self.dtype, self.shape)
    }
}

/// Bytes of a tensor, or an error when the product overflows.
fn byte_len(dtype: DType, shape: &[usize]) -> Result<usize> {
    shape
        .iter()
        .try_fold(dtype.size(), |product, &axis| product.checked_mul(axis))
        .ok_or_else(|| Error::TooLarge { shape: shape.to_vec() })
}
