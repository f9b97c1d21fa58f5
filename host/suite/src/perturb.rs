//! Harmless subjects: the baseline with rounding noise at the level of its stored dtype.
//!
//! Guards of our own ask what change is unremarkable for one model. A perturbation answers: every element of every float
//! matrix takes, with probability 1/8 each, the next larger or the next smaller magnitude that its dtype can store, which is
//! what rounding once more, at random, would do. Zeros stay zeros, and nothing becomes infinite.
//!
//! An element's fate depends on the seed, the tensor's name and its place alone.

use std::sync::Arc;

use packhost_model::{Checkpoint, Overlay, TensorMeta};
use packhost_tensor::{DType, Tensor};
use rayon::prelude::*;

use crate::Result;

/// Of 2^32 draws, those that step up; as many step down.
const SHARE: u32 = 1 << 29;

/// Elements per piece of parallel work.
const PIECE: usize = 1 << 16;

/// The baseline with noise drawn by `seed`.
///
/// # Errors
/// A tensor cannot be read.
pub fn perturb(base: &Arc<Checkpoint>, seed: u64) -> Result<Overlay> {
    let mut overlay = Overlay::new(Arc::clone(base));
    let matrices = base.tensors().iter().filter(|meta| noisy(meta));
    for meta in matrices {
        let tensor = base.tensor(&meta.name)?;
        overlay.put(&meta.name, with_noise(&tensor, key(seed, &meta.name))?)?;
    }
    Ok(overlay)
}

/// Whether a tensor gets noise: matrices of dtypes whose neighbours are neighbours in bits.
fn noisy(meta: &TensorMeta) -> bool {
    meta.shape.len() >= 2 && width(meta.dtype).is_some()
}

/// Bytes of an element, of the dtypes that can be stepped.
fn width(dtype: DType) -> Option<usize> {
    matches!(dtype, DType::BF16 | DType::F16 | DType::F32).then(|| dtype.size())
}

fn with_noise(tensor: &Tensor, key: u64) -> Result<Tensor> {
    let dtype = tensor.dtype();
    let Some(width) = width(dtype) else {
        return Ok(tensor.clone());
    };
    let mut bytes = tensor.bytes().to_vec();
    let pieces = bytes.par_chunks_mut(PIECE * width).enumerate();
    pieces.for_each(|(piece, bytes)| {
        for (index, element) in bytes.chunks_exact_mut(width).enumerate() {
            let draw = mix(key.wrapping_add((piece * PIECE + index) as u64)) as u32;
            let step = match draw {
                draw if draw < SHARE => 1,
                draw if draw < 2 * SHARE => -1,
                _ => continue,
            };
            shift(dtype, element, step);
        }
    });
    Ok(Tensor::new(dtype, tensor.shape().to_vec(), bytes.into())?)
}

/// Moves an element to the neighbour of larger (`step` 1) or smaller magnitude, where there is a finite one other than 0.
fn shift(dtype: DType, element: &mut [u8], step: i32) {
    // The magnitude's bits, in order of magnitude; the exponent of infinity and NaN is all ones.
    let infinity: u32 = match dtype {
        DType::BF16 => 0x7f80,
        DType::F16 => 0x7c00,
        _ => 0x7f80_0000,
    };
    let mut padded = [0u8; 4];
    padded[..element.len()].copy_from_slice(element);
    let bits = u32::from_le_bytes(padded);
    let sign = 1u32 << (8 * element.len() - 1);
    let magnitude = bits & (sign - 1);
    if magnitude == 0 || magnitude >= infinity {
        return;
    }
    let moved = magnitude.wrapping_add_signed(step);
    if moved == 0 || moved >= infinity {
        return;
    }
    let moved = (bits & sign | moved).to_le_bytes();
    let len = element.len();
    element.copy_from_slice(&moved[..len]);
}

/// Where a tensor's stream begins.
fn key(seed: u64, name: &str) -> u64 {
    name.bytes()
        .fold(mix(seed), |key, byte| mix(key ^ u64::from(byte)))
}

/// The finalizer of SplitMix64 on a Weyl sequence.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn elements_move_by_one_step_a_quarter_of_the_time() {
        let values: Vec<f32> = (0..4096).map(|i| (i as f32 - 2048.0) * 0.01).collect();
        for dtype in [DType::BF16, DType::F16, DType::F32] {
            let tensor = Tensor::from_f32(dtype, [64, 64], &values).unwrap();
            let (before, after) = (tensor.to_f32(), with_noise(&tensor, 7).unwrap().to_f32());
            let unit = match dtype {
                DType::BF16 => 2f32.powi(-7),
                DType::F16 => 2f32.powi(-10),
                _ => 2f32.powi(-23),
            };
            let mut moved = 0;
            for (before, after) in before.iter().zip(&after) {
                assert!((after - before).abs() <= before.abs() * unit);
                assert_eq!(*before == 0.0, *after == 0.0);
                moved += usize::from(before != after);
            }
            assert!((900..1150).contains(&moved), "{moved} of 4096");
        }
    }

    #[test]
    fn nothing_leaves_the_finite_numbers() {
        for (dtype, largest) in [
            (DType::BF16, vec![0x7f, 0x7f]),
            (DType::F16, vec![0xff, 0x7b]),
            (DType::F32, vec![0xff, 0xff, 0x7f, 0x7f]),
        ] {
            let mut element = largest.clone();
            shift(dtype, &mut element, 1);
            assert_eq!(element, largest);
            let mut smallest = vec![0; largest.len()];
            smallest[0] = 1;
            let before = smallest.clone();
            shift(dtype, &mut smallest, -1);
            assert_eq!(smallest, before);
        }
    }

    #[test]
    fn noise_is_a_function_of_seed_and_name() {
        assert_ne!(key(1, "a"), key(2, "a"));
        assert_ne!(key(1, "a"), key(1, "b"));
        assert_eq!(key(3, "a.weight"), key(3, "a.weight"));
    }
}
