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
        DType::BF16 => return to_bf16(value, saturate),
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

/// The same for bf16, the first half of an f32, where carrying into the exponent is right everywhere.
fn to_bf16(value: f32, saturate: bool) -> f32 {
    if value.is_nan() {
        return value;
    }
    let bits = value.to_bits();
    let rounded = f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000);
    if saturate && rounded.is_infinite() {
        return BF16_LARGEST.copysign(value);
    }
    rounded
}

/// (2 - 2^-7) * 2^127.
const BF16_LARGEST: f32 = f32::from_bits(0x7f7f_0000);

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

    /// Every bf16 number, what lies just off it and halfway to the next, against neighbours found by arithmetic in f64.
    #[test]
    fn bf16_is_the_nearest_half_to_even() {
        for high in 0..0x7f80_u32 {
            let (low, next) = (f32::from_bits(high << 16), f32::from_bits((high + 1) << 16));
            let even = if high % 2 == 0 { low } else { next };
            let halfway = f32::from_bits(high << 16 | 0x8000);
            let before = f32::from_bits(high << 16 | 0x7fff);
            let after = f32::from_bits(high << 16 | 0x8001);
            if next.is_finite() {
                let middle = (f64::from(low) + f64::from(next)) / 2.0;
                assert_eq!(f64::from(halfway), middle);
            }
            for sign in [1.0, -1.0] {
                for (value, nearest) in [(low, low), (before, low), (halfway, even), (after, next)]
                {
                    let found = round_to(DType::BF16, sign * value, false);
                    assert_eq!(found.to_bits(), (sign * nearest).to_bits(), "{value:e}");
                }
            }
        }
        assert_eq!(round_to(DType::BF16, f32::MAX, true), BF16_LARGEST);
        assert_eq!(
            round_to(DType::BF16, f32::NEG_INFINITY, true),
            -BF16_LARGEST
        );
        assert_eq!(round_to(DType::BF16, f32::MAX, false), f32::INFINITY);
        assert!(round_to(DType::BF16, f32::NAN, true).is_nan());
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
