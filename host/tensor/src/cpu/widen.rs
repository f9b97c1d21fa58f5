//! From stored numbers to f32, a row panel at a time.

use crate::{
    DType,
    cpu::network::lanes::{LANES, vectorized},
};

vectorized! {
    /// bf16 to f32, exact. `bytes` holds two little-endian bytes per number.
    fn bf16(bytes: &[u8], out: &mut [f32]) {
        let one = |pair: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*pair)) << 16);
        let (pairs, _) = bytes.as_chunks::<2>();
        // Whole vectors are spelled out: rows are short, and a loop unrolled further would leave most of them to its end.
        let (vectors, rest) = out.as_chunks_mut::<LANES>();
        let (stored, stored_rest) = pairs.split_at(vectors.len() * LANES);
        for (out, stored) in vectors.iter_mut().zip(stored.as_chunks::<LANES>().0) {
            for lane in 0..LANES {
                out[lane] = one(&stored[lane]);
            }
        }
        for (out, pair) in rest.iter_mut().zip(stored_rest) {
            *out = one(pair);
        }
    }

    /// f16 to f32, exact; a NaN keeps its payload. Exponent and mantissa are moved into place, which leaves a number that
    /// is too small by 2^112, subnormal numbers included; the largest exponent stands for infinity and NaN.
    fn f16(bytes: &[u8], out: &mut [f32]) {
        for (out, pair) in out.iter_mut().zip(bytes.chunks_exact(2)) {
            let stored = u32::from(u16::from_le_bytes([pair[0], pair[1]]));
            let moved = (stored & 0x7fff) << 13;
            let finite = (f32::from_bits(moved) * f32::from_bits(0x7780_0000)).to_bits();
            let special = moved | 0x7f80_0000;
            let magnitude = if stored & 0x7c00 == 0x7c00 { special } else { finite };
            *out = f32::from_bits(magnitude | ((stored & 0x8000) << 16));
        }
    }

    /// f32 to f32, from bytes of any alignment.
    fn f32s(bytes: &[u8], out: &mut [f32]) {
        for (out, quad) in out.iter_mut().zip(bytes.chunks_exact(4)) {
            *out = f32::from_le_bytes([quad[0], quad[1], quad[2], quad[3]]);
        }
    }
}

/// Whether [`widen`] serves `dtype`.
pub fn serves(dtype: DType) -> bool {
    matches!(dtype, DType::BF16 | DType::F16 | DType::F32)
}

/// Reads `out.len()` numbers of `dtype` from `bytes`. A dtype that [`serves`] refuses gives NaN.
pub fn widen(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    debug_assert!(bytes.len() >= out.len() * dtype.size());
    match dtype {
        DType::BF16 => bf16(bytes, out),
        DType::F16 => f16(bytes, out),
        DType::F32 => f32s(bytes, out),
        _ => out.fill(f32::NAN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_number_widens_as_the_half_crate_does() {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let mut out = vec![0.0; 1 << 16];
        widen(DType::F16, &bytes, &mut out);
        for (bits, value) in out.iter().enumerate() {
            let expected = half::f16::from_bits(bits as u16).to_f32();
            assert!(
                value.to_bits() == expected.to_bits() || (value.is_nan() && expected.is_nan()),
                "{bits:#x}"
            );
        }
        widen(DType::BF16, &bytes, &mut out);
        for (bits, value) in out.iter().enumerate() {
            assert_eq!(value.to_bits(), (bits as u32) << 16);
        }
    }
}
