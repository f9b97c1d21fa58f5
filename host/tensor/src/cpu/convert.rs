//! Copies with another shape or dtype.

use rayon::prelude::*;

use crate::{DType, Error, Result, Tensor, TensorMut, cast, cpu::Cpu};

/// Elements per piece of work.
const PIECE: usize = 1 << 14;

/// The elements row-major under another shape, cut or padded with zeros. Shares the bytes where none are cut or padded.
///
/// # Errors
/// When the shape has more bytes than the address space.
pub fn reshape(device: &Cpu, tensor: &Tensor, shape: &[usize]) -> Result<Tensor> {
    if shape
        .iter()
        .try_fold(1usize, |n, &axis| n.checked_mul(axis))
        == Some(tensor.len())
    {
        return tensor.with_shape(shape);
    }
    let mut result = TensorMut::zeros(tensor.dtype(), shape)?;
    let kept = result.bytes_mut().len().min(tensor.bytes().len());
    let piece = PIECE * tensor.dtype().size();
    device.install(|| {
        let source = tensor.bytes()[..kept].par_chunks(piece);
        result.bytes_mut()[..kept]
            .par_chunks_mut(piece)
            .zip(source)
            .for_each(|(to, from)| to.copy_from_slice(from));
    });
    Ok(result.freeze())
}

/// The elements of a tensor of any dtype as floats, rounded half to even. Between float dtypes kernels are quicker.
///
/// # Errors
/// When the new dtype is not a float.
pub fn from_integers(
    device: &Cpu,
    tensor: &Tensor,
    dtype: DType,
    saturate: bool,
) -> Result<Tensor> {
    if !dtype.is_float() {
        return Err(Error::DType {
            op: "convert",
            dtype,
        });
    }
    let mut result = TensorMut::for_overwriting(dtype, tensor.shape())?;
    let from = tensor.dtype();
    device.install(|| {
        let source = tensor.bytes().par_chunks(PIECE * from.size());
        result
            .bytes_mut()
            .par_chunks_mut(PIECE * dtype.size())
            .zip(source)
            .try_for_each_init(
                || vec![0.0; PIECE],
                |values, (target, source)| {
                    let values = &mut values[..target.len() / dtype.size()];
                    cast::decode(from, source, values);
                    cast::encode(dtype, saturate, values, target)
                },
            )
    })?;
    Ok(result.freeze())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Device;

    #[test]
    fn reshape_cuts_and_pads() {
        let device = Cpu::new(Some(2)).unwrap();
        let tensor = Tensor::from_f32(DType::BF16, [2, 2], &[1.0, 2.0, 3.0, 4.0]).unwrap();
        assert_eq!(
            reshape(&device, &tensor, &[3]).unwrap().to_f32(),
            [1.0, 2.0, 3.0]
        );
        assert_eq!(
            reshape(&device, &tensor, &[5]).unwrap().to_f32(),
            [1.0, 2.0, 3.0, 4.0, 0.0]
        );
        let same = reshape(&device, &tensor, &[4, 1]).unwrap();
        assert_eq!(
            (same.shape(), same.bytes().as_ptr()),
            (&[4, 1][..], tensor.bytes().as_ptr())
        );
    }

    #[test]
    fn convert_rounds_and_saturates_as_asked() {
        let device = Cpu::new(Some(2)).unwrap();
        let values: Vec<f32> = (0..40_000).map(|i| i as f32 * 3.7 - 70_000.0).collect();
        let tensor = Tensor::from_f32(DType::F32, [40_000], &values).unwrap();
        for (dtype, saturate) in [
            (DType::F8E4M3, true),
            (DType::F8E5M2, false),
            (DType::F16, true),
        ] {
            let expected: Vec<f32> = values
                .iter()
                .map(|&x| cast::through(dtype, saturate, x))
                .collect();
            let found = device.convert(&tensor, dtype, saturate).unwrap();
            assert_eq!(found.to_f32(), expected);
            assert_eq!(
                from_integers(&device, &tensor, dtype, saturate)
                    .unwrap()
                    .bytes(),
                found.bytes()
            );
        }
        let whole = Tensor::new(
            DType::I16,
            [2],
            bytes::Bytes::from_static(&[1, 0, 0xff, 0xff]),
        )
        .unwrap();
        assert_eq!(
            device.convert(&whole, DType::BF16, false).unwrap().to_f32(),
            [1.0, -1.0]
        );
        assert!(device.convert(&tensor, DType::I16, false).is_err());
        // Nothing is lost on the way through f32 where nothing is to be done.
        let precise = Tensor::new(DType::F64, [1], 0.1f64.to_le_bytes().to_vec().into()).unwrap();
        assert_eq!(
            device.convert(&precise, DType::F64, true).unwrap().bytes(),
            precise.bytes()
        );
    }
}
