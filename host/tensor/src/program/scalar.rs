//! What each operation does to one element. Devices vectorise these; their results must have the same bits.

use super::{Comparison, Rounding};

/// The smaller operand; a NaN wins, -0 is below +0.
pub fn min(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() {
        return f32::NAN;
    }
    match a.total_cmp(&b) {
        std::cmp::Ordering::Greater => b,
        _ => a,
    }
}

/// The larger operand; a NaN wins, -0 is below +0.
pub fn max(a: f32, b: f32) -> f32 {
    -min(-a, -b)
}

/// `x` rounded to an integer; the sign of zero is kept.
pub fn round(rounding: Rounding, x: f32) -> f32 {
    match rounding {
        Rounding::HalfEven => x.round_ties_even(),
        Rounding::HalfAway => x.round(),
        Rounding::Floor => x.floor(),
        Rounding::Ceil => x.ceil(),
        Rounding::Trunc => x.trunc(),
    }
}

/// 1 where the comparison holds, else 0.
pub fn compare(comparison: Comparison, a: f32, b: f32) -> f32 {
    let holds = match comparison {
        Comparison::Lt => a < b,
        Comparison::Le => a <= b,
        Comparison::Eq => a == b,
        Comparison::Ne => a != b,
    };
    if holds { 1.0 } else { 0.0 }
}

/// Magnitude of `a`, sign of `b`; a NaN counts as positive, because the sign of a NaN depends on the machine.
pub fn copy_sign(a: f32, b: f32) -> f32 {
    if b.is_nan() { a.abs() } else { a.copysign(b) }
}

/// Coefficients of `(2^f - 1) / f` on [-0.5, 0.5], lowest power first: interpolation at Chebyshev nodes, error below 1 ulp.
pub const EXP2: [f32; 6] = [
    f32::from_bits(0x3f31_7218),
    f32::from_bits(0x3e75_fdf0),
    f32::from_bits(0x3d63_57b6),
    f32::from_bits(0x3c1d_952a),
    f32::from_bits(0x3aaf_8448),
    f32::from_bits(0x3922_09c5),
];

/// Coefficients of `log2(1 + t) / t` on [sqrt(1/2) - 1, sqrt(2) - 1], lowest power first: interpolation at Chebyshev nodes,
/// error below 1 ulp.
pub const LOG2: [f32; 10] = [
    f32::from_bits(0x3fb8_aa3b),
    f32::from_bits(0xbf38_aa38),
    f32::from_bits(0x3ef6_3855),
    f32::from_bits(0xbeb8_ad38),
    f32::from_bits(0x3e93_bd29),
    f32::from_bits(0xbe75_5bd5),
    f32::from_bits(0x3e51_c634),
    f32::from_bits(0xbe43_fb51),
    f32::from_bits(0x3e3d_31d0),
    f32::from_bits(0xbddc_27db),
];

/// 1.5 * 2^23: added to a small integer-valued float it shows the integer in the low bits of the sum.
pub const INTEGER_SHIFT: f32 = 12_582_912.0;

/// Bits of sqrt(1/2), the lower end of the interval to which [`log2`] reduces its argument.
pub const SQRT_HALF_BITS: u32 = 0x3f35_04f3;

/// 2 to the power of `x`, within 2 ulp, by a polynomial of additions and multiplications in this very order.
pub fn exp2(x: f32) -> f32 {
    if x.is_nan() {
        return f32::NAN;
    }
    let x = x.clamp(-151.0, 129.0);
    let whole = x.round_ties_even();
    let fraction = x - whole;
    let polynomial = EXP2.iter().rev().fold(0.0, |sum, &c| sum * fraction + c);
    let mantissa = 1.0 + fraction * polynomial;
    // Two factors, because 2^whole alone need not be a normal number. The first product is exact.
    let whole = ((whole + INTEGER_SHIFT).to_bits() as i32) - INTEGER_SHIFT.to_bits() as i32;
    let first = whole >> 1;
    mantissa * power_of_two(first) * power_of_two(whole - first)
}

/// 2^exponent for an exponent of a normal number.
fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) << 23) as u32)
}

/// Logarithm to base 2, within 2 ulp, by a polynomial of additions and multiplications in this very order. Zero gives
/// -infinity, negative numbers NaN.
pub fn log2(x: f32) -> f32 {
    if x.is_nan() || x < 0.0 {
        return f32::NAN;
    }
    if x == 0.0 || x == f32::INFINITY {
        return if x == 0.0 { f32::NEG_INFINITY } else { x };
    }
    let subnormal = x < f32::MIN_POSITIVE;
    let (scaled, correction) = if subnormal {
        (x * 8_388_608.0, -23.0)
    } else {
        (x, 0.0)
    };
    let offset = (scaled.to_bits() as i32).wrapping_sub(SQRT_HALF_BITS as i32);
    let exponent = (offset >> 23) as f32 + correction;
    let t = f32::from_bits(((offset & 0x7f_ffff) as u32) + SQRT_HALF_BITS) - 1.0;
    let polynomial = LOG2.iter().rev().fold(0.0, |sum, &c| sum * t + c);
    exponent + t * polynomial
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance of `found` from `exact` in units of the last place of `exact`.
    fn ulps(found: f32, exact: f64) -> f64 {
        let nearest = exact as f32;
        let unit = f64::from(nearest.abs().next_up()) - f64::from(nearest.abs());
        ((f64::from(found) - exact) / unit).abs()
    }

    #[test]
    fn exp2_is_close_everywhere() {
        for step in -160_000..140_000 {
            let x = step as f32 * 0.001;
            let exact = f64::from(x).exp2();
            if exact >= 2f64.powi(128) {
                assert_eq!(exp2(x), f32::INFINITY);
            } else {
                assert!(ulps(exp2(x), exact) <= 2.0, "{x}");
            }
        }
        for whole in -149..128 {
            assert_eq!(exp2(whole as f32), f64::from(whole).exp2() as f32);
        }
        assert_eq!(
            (exp2(f32::INFINITY), exp2(f32::NEG_INFINITY)),
            (f32::INFINITY, 0.0)
        );
        assert!(exp2(f32::NAN).is_nan());
    }

    #[test]
    fn log2_is_close_everywhere() {
        for bits in (1..0x7f80_0000u32).step_by(9973) {
            let x = f32::from_bits(bits);
            assert!(ulps(log2(x), f64::from(x).log2()) <= 2.0, "{x:e}");
        }
        assert_eq!(
            (log2(1.0), log2(0.0), log2(-0.0)),
            (0.0, f32::NEG_INFINITY, f32::NEG_INFINITY)
        );
        assert_eq!(log2(f32::INFINITY), f32::INFINITY);
        assert!(log2(-1.0).is_nan() && log2(f32::NAN).is_nan());
    }

    #[test]
    fn min_and_max_order_zeros_and_propagate_nan() {
        assert!(min(0.0, -0.0).is_sign_negative() && min(-0.0, 0.0).is_sign_negative());
        assert!(max(0.0, -0.0).is_sign_positive() && max(-0.0, 0.0).is_sign_positive());
        assert!(min(f32::NAN, 1.0).is_nan() && max(1.0, f32::NAN).is_nan());
        assert_eq!((min(2.0, -3.0), max(2.0, -3.0)), (-3.0, 2.0));
    }
}
