//! Exact conversions between f32 and the smaller float formats, one element at a time.
//!
//! This is the definition that every device must meet bit for bit: round to nearest, ties to even, subnormals kept, the sign
//! of zero kept, every NaN stored as the positive canonical one. It is written with integers only; the vectorised versions
//! of the CPU back end are written with float arithmetic and are compared with it on every bit pattern.

use crate::{DType, Error, Result};

/// A binary float format no wider than 16 bits.
struct Format {
    /// Explicit mantissa bits.
    mantissa: u32,
    /// Exponent of the smallest normal number.
    smallest: i32,
    /// Bits without sign of the largest finite number.
    largest: u32,
    /// Bits without sign of what overflow gives: infinity, or NaN where the format has no infinity.
    overflow: u32,
    /// Canonical NaN.
    nan: u32,
    /// Position of the sign bit.
    sign: u32,
}

const BF16: Format = Format {
    mantissa: 7,
    smallest: -126,
    largest: 0x7f7f,
    overflow: 0x7f80,
    nan: 0x7fc0,
    sign: 15,
};
const F16: Format = Format {
    mantissa: 10,
    smallest: -14,
    largest: 0x7bff,
    overflow: 0x7c00,
    nan: 0x7e00,
    sign: 15,
};
const E4M3: Format = Format {
    mantissa: 3,
    smallest: -6,
    largest: 0x7e,
    overflow: 0x7f,
    nan: 0x7f,
    sign: 7,
};
const E5M2: Format = Format {
    mantissa: 2,
    smallest: -14,
    largest: 0x7b,
    overflow: 0x7c,
    nan: 0x7f,
    sign: 7,
};

impl Format {
    /// Bits of `x` in this format. With `saturate` whatever lies beyond the largest finite number, infinities included,
    /// becomes that number; otherwise it overflows.
    #[inline(always)]
    fn encode(&self, x: f32, saturate: bool) -> u32 {
        let bits = x.to_bits();
        let (sign, magnitude) = (bits >> 31 << self.sign, bits & 0x7fff_ffff);
        if magnitude > 0x7f80_0000 {
            return self.nan;
        }
        // The significand with its hidden bit, which an f32 subnormal lacks, and its exponent.
        let field = (magnitude >> 23) as i32;
        let exponent = field.max(1) - 127;
        let significand = u64::from(magnitude & 0x7f_ffff) | u64::from(field > 0) << 23;
        // Dropped bits: what the narrower mantissa lacks, and more below the smallest normal number.
        let below = (self.smallest - exponent).clamp(0, 32) as u32;
        let drop = 23 - self.mantissa + below;
        let half = (1u64 << drop) >> 1;
        let even = (significand >> drop) & 1;
        let kept = ((significand + half - u64::from(drop > 0) * (1 - even)) >> drop) as u32;
        // The hidden bit of `kept` adds one to the exponent field, and so does a carry out of rounding.
        let exponent_field = (exponent - self.smallest).max(0) as u32;
        let code = (exponent_field << self.mantissa) + kept;
        if magnitude < 0x7f80_0000 && code <= self.largest {
            sign | code
        } else if saturate {
            sign | self.largest
        } else if self.overflow == self.nan {
            self.nan
        } else {
            sign | self.overflow
        }
    }

    /// The number that `bits` stand for, exactly.
    #[inline(always)]
    fn decode(&self, bits: u32) -> f32 {
        let code = bits & ((1 << self.sign) - 1);
        let sign = bits >> self.sign << 31;
        if code > self.largest {
            let infinite = code == self.overflow && self.overflow != self.nan;
            return f32::from_bits(if infinite {
                sign | 0x7f80_0000
            } else {
                0x7fc0_0000
            });
        }
        let field = code >> self.mantissa;
        if field > 0 {
            // Rebias the exponent by adding to the whole code, mantissa included.
            let bias = (self.smallest + 126) as u32;
            return f32::from_bits(sign | ((code << (23 - self.mantissa)) + (bias << 23)));
        }
        // Subnormal: an integer times the step. Both factors are exact in f64, and so is the result in f32.
        let step = f64::from(self.smallest - self.mantissa as i32).exp2();
        let value = (f64::from(code) * step) as f32;
        f32::from_bits(sign | value.to_bits())
    }
}

/// The format of a narrow float dtype.
fn format(dtype: DType) -> Option<&'static Format> {
    match dtype {
        DType::BF16 => Some(&BF16),
        DType::F16 => Some(&F16),
        DType::F8E4M3 => Some(&E4M3),
        DType::F8E5M2 => Some(&E5M2),
        _ => None,
    }
}

/// What storing does with numbers that a dtype cannot hold, where no caller chose: e4m3, which has no infinity, saturates
/// to 448; every other float dtype overflows to infinity.
pub fn saturates(dtype: DType) -> bool {
    dtype == DType::F8E4M3
}

/// `x` rounded to `dtype` and widened again. Float dtypes at least as wide as f32 change nothing but make NaN canonical.
pub fn through(dtype: DType, saturate: bool, x: f32) -> f32 {
    match format(dtype) {
        Some(format) => format.decode(format.encode(x, saturate)),
        None => canonical(x),
    }
}

/// `x`, or the canonical NaN (`0x7fc00000`) where it is any NaN.
#[inline(always)]
pub fn canonical(x: f32) -> f32 {
    if x.is_nan() {
        f32::from_bits(0x7fc0_0000)
    } else {
        x
    }
}

/// The bf16 bits of `x`, overflow to infinity.
#[inline(always)]
pub fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if bits & 0x7fff_ffff > 0x7f80_0000 {
        return BF16.nan as u16;
    }
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// Stores `values` as `dtype`, little-endian, into `bytes`.
///
/// # Errors
/// When `dtype` is not a float or the lengths differ.
pub fn encode(dtype: DType, saturate: bool, values: &[f32], bytes: &mut [u8]) -> Result<()> {
    if bytes.len() != values.len() * dtype.size() {
        return Err(Error::Size {
            dtype,
            shape: vec![values.len()],
            expected: values.len() * dtype.size(),
            found: bytes.len(),
        });
    }
    match dtype {
        DType::F64 => fill(values, bytes, |x| f64::from(canonical(x)).to_le_bytes()),
        DType::F32 => fill(values, bytes, |x| canonical(x).to_le_bytes()),
        DType::BF16 if !saturate => fill(values, bytes, |x| to_bf16(x).to_le_bytes()),
        DType::BF16 => fill(values, bytes, |x| {
            (BF16.encode(x, true) as u16).to_le_bytes()
        }),
        DType::F16 => fill(values, bytes, |x| {
            (F16.encode(x, saturate) as u16).to_le_bytes()
        }),
        DType::F8E4M3 => fill(values, bytes, |x| [E4M3.encode(x, saturate) as u8]),
        DType::F8E5M2 => fill(values, bytes, |x| [E5M2.encode(x, saturate) as u8]),
        _ => return Err(Error::DType { op: "store", dtype }),
    }
    Ok(())
}

/// Reads elements of any dtype as f32: narrower floats exactly, f64 and wide integers rounded to nearest, booleans as 0 and
/// 1. `bytes` holds as many elements as `values`; surplus on either side is left alone.
pub fn decode(dtype: DType, bytes: &[u8], values: &mut [f32]) {
    match dtype {
        DType::F64 => drain(bytes, values, |b| f64::from_le_bytes(b) as f32),
        DType::F32 => drain(bytes, values, f32::from_le_bytes),
        DType::BF16 => drain(bytes, values, |b| {
            f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)
        }),
        DType::F16 => drain(bytes, values, |b| F16.decode(u16::from_le_bytes(b).into())),
        DType::F8E4M3 => drain(bytes, values, |[b]| E4M3.decode(b.into())),
        DType::F8E5M2 => drain(bytes, values, |[b]| E5M2.decode(b.into())),
        DType::I64 => drain(bytes, values, |b| i64::from_le_bytes(b) as f32),
        DType::I32 => drain(bytes, values, |b| i32::from_le_bytes(b) as f32),
        DType::I16 => drain(bytes, values, |b| i16::from_le_bytes(b).into()),
        DType::I8 => drain(bytes, values, |b| i8::from_le_bytes(b).into()),
        DType::U64 => drain(bytes, values, |b| u64::from_le_bytes(b) as f32),
        DType::U32 => drain(bytes, values, |b| u32::from_le_bytes(b) as f32),
        DType::U16 => drain(bytes, values, |b| u16::from_le_bytes(b).into()),
        DType::U8 => drain(bytes, values, |[b]| b.into()),
        DType::Bool => drain(bytes, values, |[b]| f32::from(b != 0)),
    }
}

#[inline(always)]
fn fill<const N: usize>(values: &[f32], bytes: &mut [u8], encode: impl Fn(f32) -> [u8; N]) {
    let (chunks, _) = bytes.as_chunks_mut::<N>();
    for (chunk, &value) in chunks.iter_mut().zip(values) {
        *chunk = encode(value);
    }
}

#[inline(always)]
fn drain<const N: usize>(bytes: &[u8], values: &mut [f32], decode: impl Fn([u8; N]) -> f32) {
    let (chunks, _) = bytes.as_chunks::<N>();
    for (value, &chunk) in values.iter_mut().zip(chunks) {
        *value = decode(chunk);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every finite number of a format, in ascending order of magnitude.
    fn magnitudes(format: &Format) -> Vec<f32> {
        (0..=format.largest)
            .map(|code| format.decode(code))
            .collect()
    }

    #[test]
    fn every_code_survives_a_round_trip() {
        for format in [&BF16, &F16, &E4M3, &E5M2] {
            for code in 0..2u32 << format.sign {
                let value = format.decode(code);
                let back = format.encode(value, false);
                if value.is_nan() {
                    assert_eq!(back, format.nan);
                } else {
                    assert_eq!(back, code, "{value}");
                }
            }
        }
    }

    #[test]
    fn magnitudes_ascend_and_midpoints_round_to_even() {
        for format in [&F16, &E4M3, &E5M2] {
            let all = magnitudes(format);
            for (code, pair) in all.windows(2).enumerate() {
                let (low, high) = (f64::from(pair[0]), f64::from(pair[1]));
                assert!(low < high);
                // Exact in f32: these formats leave at least twelve mantissa bits free.
                let middle = ((low + high) / 2.0) as f32;
                let even = (code as u32 + 1) & !1;
                assert_eq!(format.encode(middle, false), even);
                assert_eq!(format.encode(-middle, false), even | 1 << format.sign);
                assert_eq!(format.encode(middle.next_down(), false), code as u32);
                assert_eq!(format.encode(middle.next_up(), false), code as u32 + 1);
            }
        }
    }

    #[test]
    fn overflow_follows_the_format() {
        let at = |dtype, saturate, x| through(dtype, saturate, x);
        assert_eq!(at(DType::F8E4M3, true, 1e6), 448.0);
        assert_eq!(at(DType::F8E4M3, true, f32::NEG_INFINITY), -448.0);
        assert_eq!(at(DType::F8E4M3, false, 464.0), 448.0);
        assert!(at(DType::F8E4M3, false, 464.1).is_nan());
        assert!(at(DType::F8E4M3, false, f32::INFINITY).is_nan());
        assert_eq!(at(DType::F8E5M2, false, 61439.0), 57344.0);
        assert_eq!(at(DType::F8E5M2, false, 61440.0), f32::INFINITY);
        assert_eq!(at(DType::F8E5M2, true, f32::INFINITY), 57344.0);
        assert_eq!(at(DType::F16, false, -65520.0), f32::NEG_INFINITY);
        assert_eq!(at(DType::F16, false, 65519.0), 65504.0);
        assert_eq!(at(DType::BF16, false, f32::MAX), f32::INFINITY);
        assert_eq!(at(DType::BF16, true, f32::MAX), 3.3895314e38);
    }

    #[test]
    fn short_form_of_bf16_agrees() {
        for high in 0..=u16::MAX {
            for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let x = f32::from_bits(u32::from(high) << 16 | low);
                assert_eq!(u32::from(to_bf16(x)), BF16.encode(x, false), "{x}");
            }
        }
    }
}
