//! Rounding of an f32 to the numbers of a narrower dtype: half to even, subnormals kept.

use crate::DType;

/// A binary format: fraction bits, smallest normal exponent, largest number, and whether it has infinities.
struct Format {
    fraction: i32,
    least_exponent: i32,
    largest: f64,
    infinity: bool,
}

/// `value` as a number of `dtype`. Where it overflows, the result is the largest number with `saturate` (infinities
/// included for the 8-bit dtypes), else infinity, or NaN where the dtype has no infinity. f32 and wider dtypes, and
/// integers, return it unchanged.
pub fn round_to(dtype: DType, value: f32, saturate: bool) -> f32 {
    let format = match dtype {
        DType::F16 => Format {
            fraction: 10,
            least_exponent: -14,
            largest: 65504.0,
            infinity: true,
        },
        DType::BF16 => Format {
            fraction: 7,
            least_exponent: -126,
            largest: BF16_LARGEST,
            infinity: true,
        },
        DType::F8E4M3 => Format {
            fraction: 3,
            least_exponent: -6,
            largest: 448.0,
            infinity: false,
        },
        DType::F8E5M2 => Format {
            fraction: 2,
            least_exponent: -14,
            largest: 57344.0,
            infinity: true,
        },
        _ => return value,
    };
    if value.is_nan() || value == 0.0 {
        return value;
    }
    let magnitude = f64::from(value).abs();
    let rounded = if magnitude.is_infinite() {
        magnitude
    } else {
        // Exact in f64: the quotient by a power of two, the rounding and the product.
        let exponent = exponent(magnitude).max(format.least_exponent);
        let unit = power_of_two(exponent - format.fraction);
        (magnitude / unit).round_ties_even() * unit
    };
    let result = if rounded <= format.largest {
        rounded
    } else if saturate {
        format.largest
    } else if format.infinity {
        f64::INFINITY
    } else {
        f64::NAN
    };
    result.copysign(f64::from(value)) as f32
}

/// (2 - 2^-7) * 2^127.
const BF16_LARGEST: f64 = 3.389_531_389_251_535_5e38;

/// `floor(log2(value))` of a positive, normal f64.
fn exponent(value: f64) -> i32 {
    ((value.to_bits() >> 52) & 0x7ff) as i32 - 1023
}

/// 2^exponent, for exponents of normal f64 numbers.
fn power_of_two(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_equals_the_bit_trick() {
        for step in 0..200_000_u32 {
            let value = f32::from_bits(step.wrapping_mul(0x9E37_79B9));
            if value.is_nan() {
                continue;
            }
            let bits = value.to_bits();
            let expected = f32::from_bits((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff_0000);
            assert_eq!(
                round_to(DType::BF16, value, false).to_bits(),
                expected.to_bits(),
                "{value:e}"
            );
        }
        assert_eq!(round_to(DType::BF16, f32::MAX, true), BF16_LARGEST as f32);
        assert_eq!(round_to(DType::BF16, f32::MAX, false), f32::INFINITY);
    }

    #[test]
    fn eight_bit_edges() {
        assert_eq!(round_to(DType::F8E4M3, f32::INFINITY, true), 448.0);
        assert_eq!(round_to(DType::F8E4M3, 464.0, true), 448.0);
        assert!(round_to(DType::F8E4M3, 465.0, false).is_nan());
        assert_eq!(round_to(DType::F8E5M2, 61439.0, false), 57344.0);
        assert_eq!(round_to(DType::F8E5M2, 61440.0, false), f32::INFINITY);
        assert_eq!(
            round_to(DType::F8E4M3, -0.0009, false).to_bits(),
            (-0.0_f32).to_bits()
        );
        assert_eq!(round_to(DType::F8E4M3, 0.001, false), 0.001_953_125);
        assert_eq!(round_to(DType::F16, 65519.0, false), 65504.0);
        assert_eq!(round_to(DType::F16, 65520.0, false), f32::INFINITY);
    }
}
