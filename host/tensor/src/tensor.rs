//! A tensor: dtype, shape and bytes that may be shared or borrowed from a mapped file.

use bytes::Bytes;

use crate::{DType, Error, Result, buffer::Buffer, cast};

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
            return Err(Error::Size {
                dtype,
                shape,
                expected,
                found: data.len(),
            });
        }
        Ok(Self { dtype, shape, data })
    }

    /// A tensor of zeros.
    ///
    /// # Errors
    /// When the shape has more bytes than the address space.
    pub fn zeros(dtype: DType, shape: impl Into<Vec<usize>>) -> Result<Self> {
        TensorMut::zeros(dtype, shape).map(TensorMut::freeze)
    }

    /// A tensor of `values`, each rounded half to even. What overflows becomes infinite, except in e4m3, which saturates to
    /// 448; NaN becomes the canonical one.
    ///
    /// # Errors
    /// When `dtype` is not a float or the shape does not hold `values.len()` elements.
    pub fn from_f32(dtype: DType, shape: impl Into<Vec<usize>>, values: &[f32]) -> Result<Self> {
        let shape = shape.into();
        let expected = byte_len(dtype, &shape)?;
        let found = values.len() * dtype.size();
        if expected != found {
            return Err(Error::Size {
                dtype,
                shape,
                expected,
                found,
            });
        }
        let mut data = Buffer::for_overwriting(expected);
        cast::encode(dtype, cast::saturates(dtype), values, data.as_mut())?;
        Ok(Self {
            dtype,
            shape,
            data: data.into_bytes(),
        })
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

    /// The same elements under another shape of the same element count. Nothing is copied.
    ///
    /// # Errors
    /// When the element counts differ.
    pub fn with_shape(&self, shape: impl Into<Vec<usize>>) -> Result<Self> {
        Self::new(self.dtype, shape, self.data.clone())
    }

    /// All elements as f32, row-major: narrower floats exactly, f64 and wide integers rounded to nearest.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.len()];
        cast::decode(self.dtype, &self.data, &mut values);
        values
    }

    /// Elements `offset..offset + values.len()` as f32, row-major.
    ///
    /// # Errors
    /// When the range ends beyond the tensor.
    pub fn read_f32(&self, offset: usize, values: &mut [f32]) -> Result<()> {
        let range = byte_range("read", self.dtype, self.len(), offset, values.len())?;
        cast::decode(self.dtype, &self.data[range], values);
        Ok(())
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({} {:?})", self.dtype, self.shape)
    }
}

/// A tensor under construction, owned by one writer. [`TensorMut::freeze`] makes it a [`Tensor`] without copying.
pub struct TensorMut {
    dtype: DType,
    shape: Vec<usize>,
    data: Buffer,
}

impl TensorMut {
    /// Zeros.
    ///
    /// # Errors
    /// When the shape has more bytes than the address space.
    pub fn zeros(dtype: DType, shape: impl Into<Vec<usize>>) -> Result<Self> {
        let shape = shape.into();
        let data = Buffer::zeroed(byte_len(dtype, &shape)?);
        Ok(Self { dtype, shape, data })
    }

    /// A copy of `tensor` to be written to.
    pub fn copy_of(tensor: &Tensor) -> Self {
        let mut data = Buffer::for_overwriting(tensor.data.len());
        data.as_mut().copy_from_slice(&tensor.data);
        Self {
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            data,
        }
    }

    /// A tensor whose elements the caller overwrites; until then they are whatever dropped tensors left.
    #[cfg(feature = "cpu")]
    pub(crate) fn for_overwriting(dtype: DType, shape: impl Into<Vec<usize>>) -> Result<Self> {
        let shape = shape.into();
        let data = Buffer::for_overwriting(byte_len(dtype, &shape)?);
        Ok(Self { dtype, shape, data })
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Axes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.data.len() / self.dtype.size()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements as stored. The start is aligned to 64 bytes.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.data.as_mut()
    }

    /// Elements from `offset` on as f32.
    ///
    /// # Errors
    /// When the range ends beyond the tensor.
    pub fn read_f32(&self, offset: usize, values: &mut [f32]) -> Result<()> {
        let range = byte_range("read", self.dtype, self.len(), offset, values.len())?;
        cast::decode(self.dtype, &self.data.as_ref()[range], values);
        Ok(())
    }

    /// Overwrites elements from `offset` on, each rounded as [`Tensor::from_f32`] rounds.
    ///
    /// # Errors
    /// When the range ends beyond the tensor or the dtype is not a float.
    pub fn write_f32(&mut self, offset: usize, values: &[f32]) -> Result<()> {
        let range = byte_range("write", self.dtype, self.len(), offset, values.len())?;
        cast::encode(
            self.dtype,
            cast::saturates(self.dtype),
            values,
            &mut self.data.as_mut()[range],
        )
    }

    /// The finished tensor.
    pub fn freeze(self) -> Tensor {
        Tensor {
            dtype: self.dtype,
            shape: self.shape,
            data: self.data.into_bytes(),
        }
    }
}

/// Bytes of a tensor, or an error when the product overflows.
pub(crate) fn byte_len(dtype: DType, shape: &[usize]) -> Result<usize> {
    shape
        .iter()
        .try_fold(dtype.size(), |product, &axis| product.checked_mul(axis))
        .filter(|&bytes| isize::try_from(bytes).is_ok())
        .ok_or_else(|| Error::TooLarge {
            shape: shape.to_vec(),
        })
}

/// Byte range of `count` elements from `offset` on in a tensor of `len` elements.
fn byte_range(
    op: &'static str,
    dtype: DType,
    len: usize,
    offset: usize,
    count: usize,
) -> Result<std::ops::Range<usize>> {
    match offset.checked_add(count) {
        Some(end) if end <= len => Ok(offset * dtype.size()..end * dtype.size()),
        _ => Err(Error::Argument {
            op,
            message: format!(
                "{count} elements from {offset} on are not inside a tensor of {len} elements"
            ),
        }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn values_survive_every_float_dtype() {
        let values = [0.0, -0.0, 1.5, -2.0, 0.25, f32::INFINITY];
        for dtype in [
            DType::F64,
            DType::F32,
            DType::F16,
            DType::BF16,
            DType::F8E5M2,
        ] {
            let tensor = Tensor::from_f32(dtype, [2, 3], &values).unwrap();
            assert_eq!(
                tensor.to_f32().map_bits(),
                values.to_vec().map_bits(),
                "{dtype}"
            );
        }
        let saturated = Tensor::from_f32(DType::F8E4M3, [6], &values).unwrap();
        assert_eq!(saturated.to_f32()[5], 448.0);
    }

    trait MapBits {
        fn map_bits(self) -> Vec<u32>;
    }
    impl MapBits for Vec<f32> {
        fn map_bits(self) -> Vec<u32> {
            self.into_iter().map(f32::to_bits).collect()
        }
    }

    #[test]
    fn ranges_are_checked() {
        let tensor = Tensor::zeros(DType::BF16, [3, 2]).unwrap();
        let mut two = [1.0; 2];
        assert!(tensor.read_f32(4, &mut two).is_ok());
        let error = tensor.read_f32(5, &mut two).unwrap_err();
        assert_eq!(
            error.to_string(),
            "read: 2 elements from 5 on are not inside a tensor of 6 elements"
        );
        assert!(tensor.read_f32(usize::MAX, &mut two).is_err());
    }

    #[test]
    fn writing_a_copy_leaves_the_original() {
        let tensor = Tensor::zeros(DType::BF16, [4]).unwrap();
        let mut copy = TensorMut::copy_of(&tensor);
        copy.write_f32(1, &[1.0, 2.0]).unwrap();
        assert!(copy.write_f32(3, &[1.0, 2.0]).is_err());
        assert_eq!(copy.freeze().to_f32(), [0.0, 1.0, 2.0, 0.0]);
        assert_eq!(tensor.to_f32(), [0.0; 4]);
    }

    #[test]
    fn wrong_sizes_are_named() {
        let error = Tensor::from_f32(DType::F32, [2, 2], &[1.0]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "F32 tensor of shape [2, 2] needs 16 bytes, found 4"
        );
        assert!(matches!(
            Tensor::zeros(DType::F32, [usize::MAX, 2]),
            Err(Error::TooLarge { .. })
        ));
        assert!(matches!(
            Tensor::from_f32(DType::I32, [1], &[1.0]),
            Err(Error::DType { .. })
        ));
    }
}
