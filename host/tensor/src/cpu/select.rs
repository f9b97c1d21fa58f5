//! The k-th smallest magnitude, exactly, by counting bit patterns.
//!
//! Without the sign bit, floats of one format order like their bits, NaN last. Formats of at most 16 bits need one pass over
//! the tensor and one counter per pattern; f32 needs two, upper 16 bits and then lower 15.

use rayon::prelude::*;

use crate::{DType, Error, Result, Tensor, cast, cpu::Cpu};

/// Counters of one pass.
type Counts = Vec<u64>;

/// The k-th smallest absolute value (k counts from 1). NaN sorts last and comes back as the canonical NaN.
///
/// # Errors
/// When `k` is not in `1..=len` or the dtype is not a float.
pub fn kth_magnitude(device: &Cpu, tensor: &Tensor, k: u64) -> Result<f32> {
    let op = "kth-magnitude";
    let (dtype, len) = (tensor.dtype(), tensor.len());
    if k == 0 || k > len as u64 {
        return Err(Error::Argument {
            op,
            message: format!("k is {k}, it must be from 1 to the element count, {len}"),
        });
    }
    let bytes = tensor.bytes();
    device.install(|| match dtype {
        DType::F8E4M3 | DType::F8E5M2 => {
            let counts = count::<1>(bytes, 128, |[byte]| Some(u32::from(byte & 0x7f)));
            Ok(one(dtype, &[rank(&counts, k).0 as u8]))
        }
        DType::BF16 | DType::F16 => {
            let counts = count_halves(bytes);
            Ok(one(dtype, &(rank(&counts, k).0 as u16).to_le_bytes()))
        }
        DType::F32 => Ok(two_passes::<4>(bytes, k, |four| {
            u32::from_le_bytes(four) & 0x7fff_ffff
        })),
        // Elements are read as f32, as everywhere.
        DType::F64 => Ok(two_passes::<8>(bytes, k, |eight| {
            (f64::from_le_bytes(eight) as f32).to_bits() & 0x7fff_ffff
        })),
        _ => Err(Error::DType { op, dtype }),
    })
}

/// One element as f32.
fn one(dtype: DType, bytes: &[u8]) -> f32 {
    let mut value = [0.0];
    cast::decode(dtype, bytes, &mut value);
    value[0]
}

fn two_passes<const N: usize>(
    bytes: &[u8],
    k: u64,
    magnitude: impl Fn([u8; N]) -> u32 + Sync + Send,
) -> f32 {
    let upper = count::<N>(bytes, 1 << 16, |element| Some(magnitude(element) >> 15));
    let (high, k) = rank(&upper, k);
    let lower = count::<N>(bytes, 1 << 15, |element| {
        let bits = magnitude(element);
        (bits >> 15 == high as u32).then_some(bits & 0x7fff)
    });
    let (low, _) = rank(&lower, k);
    cast::canonical(f32::from_bits((high << 15 | low) as u32))
}

/// The pattern of rank `k`, and the rank within that pattern.
fn rank(counts: &[u64], mut k: u64) -> (usize, u64) {
    for (pattern, &count) in counts.iter().enumerate() {
        if k <= count {
            return (pattern, k);
        }
        k -= count;
    }
    // The caller has checked that `k` is at most the sum of all counts.
    unreachable!("rank beyond the number of elements")
}

/// Patterns of a 16-bit float without its sign.
const HALVES: usize = 1 << 15;

/// How often each magnitude occurs among 16-bit floats: four at a time, in two tables, so that equal neighbours need not
/// wait for each other's store.
fn count_halves(bytes: &[u8]) -> Counts {
    let (elements, _) = bytes.as_chunks::<2>();
    in_pieces(elements, HALVES, |piece| {
        let mut tables = vec![[0u32; HALVES]; 2];
        let [even, odd] = &mut tables[..] else {
            return Counts::new();
        };
        let (fours, rest) = piece.as_chunks::<4>();
        for four in fours {
            let [a, b, c, d] = four.map(|half| usize::from(u16::from_le_bytes(half) & 0x7fff));
            even[a] += 1;
            odd[b] += 1;
            even[c] += 1;
            odd[d] += 1;
        }
        for &half in rest {
            even[usize::from(u16::from_le_bytes(half) & 0x7fff)] += 1;
        }
        even.iter()
            .zip(odd.iter())
            .map(|(&a, &b)| u64::from(a) + u64::from(b))
            .collect()
    })
}

/// How often each pattern occurs among `patterns` (a power of two); elements without one are left out.
fn count<const N: usize>(
    bytes: &[u8],
    patterns: usize,
    pattern: impl Fn([u8; N]) -> Option<u32> + Sync + Send,
) -> Counts {
    let (elements, _) = bytes.as_chunks::<N>();
    in_pieces(elements, patterns, |piece| {
        let mut counts = vec![0u32; patterns];
        for pattern in piece.iter().filter_map(|&element| pattern(element)) {
            counts[pattern as usize & (patterns - 1)] += 1;
        }
        counts.into_iter().map(u64::from).collect()
    })
}

/// The sum of the counters of all pieces. Whole numbers: the order of summation does not matter.
fn in_pieces<T: Sync>(
    elements: &[T],
    patterns: usize,
    count: impl Fn(&[T]) -> Counts + Sync + Send,
) -> Counts {
    // At least 2^20 elements per piece, because every piece clears and adds up its counters, and fewer than 2^32, the
    // limit of a counter.
    let piece = elements
        .len()
        .div_ceil(4 * rayon::current_num_threads())
        .clamp(1 << 20, 1 << 30);
    elements.par_chunks(piece).map(count).reduce(
        || vec![0; patterns],
        |mut sum, counts| {
            sum.iter_mut()
                .zip(counts)
                .for_each(|(sum, count)| *sum += count);
            sum
        },
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sorted(tensor: &Tensor) -> Vec<f32> {
        let mut all: Vec<f32> = tensor.to_f32().into_iter().map(f32::abs).collect();
        all.sort_by(f32::total_cmp);
        all
    }

    #[test]
    fn equals_sorting() {
        let values: Vec<f32> = (0..5000u32)
            .map(|i| f32::from_bits(i.wrapping_mul(2_654_435_761).rotate_left(7)))
            .chain([0.0, -0.0, f32::NAN, f32::NEG_INFINITY, 1e-45])
            .collect();
        let device = Cpu::new(Some(3)).unwrap();
        for dtype in [
            DType::F64,
            DType::F32,
            DType::F16,
            DType::BF16,
            DType::F8E4M3,
            DType::F8E5M2,
        ] {
            let tensor = Tensor::from_f32(dtype, [values.len()], &values).unwrap();
            let sorted = sorted(&tensor);
            for k in (1..=values.len()).step_by(13).chain([values.len()]) {
                let found = kth_magnitude(&device, &tensor, k as u64).unwrap();
                assert_eq!(
                    found.to_bits(),
                    cast::canonical(sorted[k - 1]).to_bits(),
                    "{dtype} {k}"
                );
            }
        }
    }

    #[test]
    fn refuses_what_has_no_answer() {
        let device = Cpu::new(Some(1)).unwrap();
        let tensor = Tensor::zeros(DType::BF16, [4]).unwrap();
        let message = kth_magnitude(&device, &tensor, 5).unwrap_err().to_string();
        assert_eq!(
            message,
            "kth-magnitude: k is 5, it must be from 1 to the element count, 4"
        );
        assert!(kth_magnitude(&device, &tensor, 0).is_err());
        let integers = Tensor::zeros(DType::I32, [4]).unwrap();
        assert!(kth_magnitude(&device, &integers, 1).is_err());
    }
}
