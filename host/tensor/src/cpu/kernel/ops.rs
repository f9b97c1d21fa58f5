//! Vector versions of the operations whose meaning [`crate::program::scalar`] and [`crate::cast`] define.
//!
//! They rely on one property of every NaN inside the machine: the low sixteen bits of its payload are zero. Loads and
//! scalars make foreign NaNs canonical; bf16 ones have it by themselves; the processor makes new NaNs with an empty payload
//! and otherwise hands on an operand's. So rounding to bf16 needs no test for NaN: adding at most 0x8000 to the bits cannot
//! carry out of the lower half, and cutting that half off leaves the NaN as it was.
//!
//! # Safety
//! All functions inherit the contract of [`Lanes`].
#![expect(
    clippy::undocumented_unsafe_blocks,
    reason = "one contract, stated above"
)]

use super::lanes::Lanes;
use crate::program::scalar::{EXP2, INTEGER_SHIFT, LOG2, SQRT_HALF_BITS};

const SIGN: u32 = 0x8000_0000;
const MAGNITUDE: u32 = 0x7fff_ffff;
const NAN: u32 = 0x7fc0_0000;

#[inline(always)]
pub(super) unsafe fn abs<L: Lanes>(a: L::V) -> L::V {
    unsafe { L::and(a, L::bits(MAGNITUDE)) }
}

#[inline(always)]
pub(super) unsafe fn neg<L: Lanes>(a: L::V) -> L::V {
    // Adding the sign bit flips it; the carry falls off.
    unsafe { L::add_bits(a, L::bits(SIGN)) }
}

/// Every NaN becomes the canonical one.
#[inline(always)]
pub(super) unsafe fn canonical<L: Lanes>(a: L::V) -> L::V {
    unsafe { L::choose(L::eq(a, a), a, L::bits(NAN)) }
}

#[inline(always)]
pub(super) unsafe fn min<L: Lanes>(a: L::V, b: L::V) -> L::V {
    unsafe {
        // Both orders give the same bits but for two zeros (one order gives each, the union is -0) and for NaN.
        let lesser = L::or(L::lesser(a, b), L::lesser(b, a));
        either_nan::<L>(a, b, lesser)
    }
}

#[inline(always)]
pub(super) unsafe fn max<L: Lanes>(a: L::V, b: L::V) -> L::V {
    unsafe {
        let greater = L::and(L::greater(a, b), L::greater(b, a));
        either_nan::<L>(a, b, greater)
    }
}

/// `otherwise`, or the canonical NaN where `a` or `b` is NaN.
#[inline(always)]
unsafe fn either_nan<L: Lanes>(a: L::V, b: L::V, otherwise: L::V) -> L::V {
    unsafe {
        // The sum of two numbers of opposite sign may be a NaN of infinities, so each is compared with itself.
        let b = L::choose(L::eq(b, b), otherwise, L::bits(NAN));
        L::choose(L::eq(a, a), b, L::bits(NAN))
    }
}

/// `min` with an operand that is neither zero nor NaN: one instruction.
#[inline(always)]
pub(super) unsafe fn lower<L: Lanes>(a: L::V, limit: L::V) -> L::V {
    unsafe { L::lesser(limit, a) }
}

/// `max` with an operand that is neither zero nor NaN: one instruction.
#[inline(always)]
pub(super) unsafe fn raise<L: Lanes>(a: L::V, limit: L::V) -> L::V {
    unsafe { L::greater(limit, a) }
}

#[inline(always)]
pub(super) unsafe fn rsub<L: Lanes>(a: L::V, b: L::V) -> L::V {
    unsafe { L::sub(b, a) }
}

#[inline(always)]
pub(super) unsafe fn rdiv<L: Lanes>(a: L::V, b: L::V) -> L::V {
    unsafe { L::div(b, a) }
}

/// 1 where true, else 0.
#[inline(always)]
unsafe fn truth<L: Lanes>(m: L::M) -> L::V {
    unsafe { L::choose(m, L::splat(1.0), L::splat(0.0)) }
}

#[inline(always)]
pub(super) unsafe fn lt<L: Lanes>(a: L::V, b: L::V) -> L::V {
    unsafe { truth::<L>(L::lt(a, b)) }
}

#[inline(always)]
pub(super) unsafe fn gt<L: Lanes>(a: L::V, b: L::V) -> L::V {
    unsafe { truth::<L>(L::lt(b, a)) }
}

#[inline(always)]
pub(super) unsafe fn le<L: Lanes>(a: L::V, b: L::V) -> L::V {
    unsafe { truth::<L>(L::le(a, b)) }
}

#[inline(always)]
pub(super) unsafe fn ge<L: Lanes>(a: L::V, b: L::V) -> L::V {
    unsafe { truth::<L>(L::le(b, a)) }
}

#[inline(always)]
pub(super) unsafe fn eq<L: Lanes>(a: L::V, b: L::V) -> L::V {
    unsafe { truth::<L>(L::eq(a, b)) }
}

#[inline(always)]
pub(super) unsafe fn ne<L: Lanes>(a: L::V, b: L::V) -> L::V {
    unsafe { truth::<L>(L::ne(a, b)) }
}

#[inline(always)]
pub(super) unsafe fn is_finite<L: Lanes>(a: L::V) -> L::V {
    unsafe { truth::<L>(L::lt(abs::<L>(a), L::splat(f32::INFINITY))) }
}

/// `yes` where `condition` is not 0.
#[inline(always)]
pub(super) unsafe fn select<L: Lanes>(condition: L::V, yes: L::V, no: L::V) -> L::V {
    unsafe { L::choose(L::ne(condition, L::splat(0.0)), yes, no) }
}

#[inline(always)]
pub(super) unsafe fn copy_sign<L: Lanes>(a: L::V, b: L::V) -> L::V {
    unsafe {
        let sign = L::and(L::choose(L::eq(b, b), b, L::bits(0)), L::bits(SIGN));
        L::or(abs::<L>(a), sign)
    }
}

#[inline(always)]
pub(super) unsafe fn rcopy_sign<L: Lanes>(a: L::V, b: L::V) -> L::V {
    unsafe { copy_sign::<L>(b, a) }
}

/// To the nearest integer, halves away from zero: truncates after adding the largest number below one half, which carries
/// exactly the halves and more over to the next integer.
#[inline(always)]
pub(super) unsafe fn half_away<L: Lanes>(a: L::V) -> L::V {
    unsafe {
        let half = L::or(L::and(a, L::bits(SIGN)), L::splat(0.5f32.next_down()));
        L::trunc(L::add(a, half))
    }
}

/// Rounds to bf16; overflow to infinity.
#[inline(always)]
pub(super) unsafe fn to_bf16<L: Lanes>(a: L::V) -> L::V {
    unsafe { L::and(nearest_upper_half::<L>(a), L::bits(0xffff_0000)) }
}

/// Adds what makes the upper half of the bits the nearest bf16; the lower half is left as it falls.
#[inline(always)]
pub(super) unsafe fn nearest_upper_half<L: Lanes>(a: L::V) -> L::V {
    unsafe {
        let even = L::and(L::shift_right::<16>(a), L::bits(1));
        L::add_bits(L::add_bits(a, L::bits(0x7fff)), even)
    }
}

/// Rounds to bf16; nothing but NaN lies beyond the largest finite number.
#[inline(always)]
pub(super) unsafe fn to_bf16_saturating<L: Lanes>(a: L::V) -> L::V {
    unsafe {
        let largest = L::bits(0x7f7f_0000);
        let limited = lower::<L>(abs::<L>(a), largest);
        L::or(to_bf16::<L>(limited), L::and(a, L::bits(SIGN)))
    }
}

/// Rounds the magnitude of `a`, at most 2^17, to a format with `mantissa` explicit bits and smallest normal exponent
/// `smallest`, by adding and subtracting the power of two whose last place is the format's last place at that magnitude.
/// Returns the rounded magnitude.
#[inline(always)]
unsafe fn nearest_narrow<L: Lanes>(magnitude: L::V, mantissa: u32, smallest: i32) -> L::V {
    unsafe {
        let exponent = L::and(magnitude, L::bits(0x7f80_0000));
        let exponent = L::max_bits(exponent, L::bits(((smallest + 127) as u32) << 23));
        let shift = L::add_bits(exponent, L::bits((23 - mantissa) << 23));
        L::sub(L::add(magnitude, shift), shift)
    }
}

/// A cast to a format of at most 16 bits that is not bf16: limit, round, replace what overflowed, put the sign back.
/// `over` is what replaces magnitudes beyond `largest`.
#[inline(always)]
unsafe fn narrow<L: Lanes>(
    a: L::V,
    mantissa: u32,
    smallest: i32,
    largest: f32,
    over: Option<u32>,
) -> L::V {
    unsafe {
        // Without saturation the limit must round to more than the largest number, and twice that does.
        let limit = if over.is_some() {
            2.0 * largest
        } else {
            largest
        };
        let limited = lower::<L>(abs::<L>(a), L::splat(limit));
        let mut rounded = nearest_narrow::<L>(limited, mantissa, smallest);
        if let Some(over) = over {
            rounded = L::choose(L::lt(L::splat(largest), rounded), L::bits(over), rounded);
        }
        L::or(rounded, L::and(a, L::bits(SIGN)))
    }
}

#[inline(always)]
pub(super) unsafe fn to_f16<L: Lanes>(a: L::V) -> L::V {
    unsafe { narrow::<L>(a, 10, -14, 65504.0, Some(0x7f80_0000)) }
}

#[inline(always)]
pub(super) unsafe fn to_f16_saturating<L: Lanes>(a: L::V) -> L::V {
    unsafe { narrow::<L>(a, 10, -14, 65504.0, None) }
}

#[inline(always)]
pub(super) unsafe fn to_e4m3<L: Lanes>(a: L::V) -> L::V {
    unsafe { narrow::<L>(a, 3, -6, 448.0, Some(NAN)) }
}

#[inline(always)]
pub(super) unsafe fn to_e4m3_saturating<L: Lanes>(a: L::V) -> L::V {
    unsafe { narrow::<L>(a, 3, -6, 448.0, None) }
}

#[inline(always)]
pub(super) unsafe fn to_e5m2<L: Lanes>(a: L::V) -> L::V {
    unsafe { narrow::<L>(a, 2, -14, 57344.0, Some(0x7f80_0000)) }
}

#[inline(always)]
pub(super) unsafe fn to_e5m2_saturating<L: Lanes>(a: L::V) -> L::V {
    unsafe { narrow::<L>(a, 2, -14, 57344.0, None) }
}

/// See [`crate::program::scalar::exp2`].
#[inline(always)]
pub(super) unsafe fn exp2<L: Lanes>(a: L::V) -> L::V {
    unsafe {
        let x = lower::<L>(raise::<L>(a, L::splat(-151.0)), L::splat(129.0));
        let whole = L::nearest(x);
        let fraction = L::sub(x, whole);
        let mut polynomial = L::splat(0.0);
        for &c in EXP2.iter().rev() {
            polynomial = L::add(L::mul(polynomial, fraction), L::splat(c));
        }
        let mantissa = L::add(L::splat(1.0), L::mul(fraction, polynomial));
        let shift = INTEGER_SHIFT.to_bits();
        let whole = L::add_bits(
            L::add(whole, L::splat(INTEGER_SHIFT)),
            L::bits(shift.wrapping_neg()),
        );
        let first = L::shift_right_signed::<1>(whole);
        // whole - first = whole + !first + 1, and !first = -1 - first.
        let second = L::add_bits(whole, neg_bits::<L>(first));
        let power = |exponent| L::shift_left::<23>(L::add_bits(exponent, L::bits(127)));
        let result = L::mul(L::mul(mantissa, power(first)), power(second));
        L::choose(L::eq(a, a), result, L::bits(NAN))
    }
}

/// The negative of small signed integers (|n| < 2^22), by way of floats, because the lanes have no subtraction of bits.
#[inline(always)]
unsafe fn neg_bits<L: Lanes>(n: L::V) -> L::V {
    unsafe {
        let shift = INTEGER_SHIFT.to_bits();
        let value = L::sub(L::add_bits(n, L::bits(shift)), L::splat(INTEGER_SHIFT));
        let negative = L::sub(L::splat(INTEGER_SHIFT), value);
        L::add_bits(negative, L::bits(shift.wrapping_neg()))
    }
}

/// See [`crate::program::scalar::log2`].
#[inline(always)]
pub(super) unsafe fn log2<L: Lanes>(a: L::V) -> L::V {
    unsafe {
        let subnormal = L::lt(a, L::splat(f32::MIN_POSITIVE));
        let scaled = L::choose(subnormal, L::mul(a, L::splat(8_388_608.0)), a);
        let correction = L::choose(subnormal, L::splat(-23.0), L::splat(0.0));
        let offset = L::add_bits(scaled, L::bits(SQRT_HALF_BITS.wrapping_neg()));
        let exponent = L::add_bits(
            L::shift_right_signed::<23>(offset),
            L::bits(INTEGER_SHIFT.to_bits()),
        );
        let exponent = L::add(L::sub(exponent, L::splat(INTEGER_SHIFT)), correction);
        let mantissa = L::add_bits(L::and(offset, L::bits(0x7f_ffff)), L::bits(SQRT_HALF_BITS));
        let t = L::sub(mantissa, L::splat(1.0));
        let mut polynomial = L::splat(0.0);
        for &c in LOG2.iter().rev() {
            polynomial = L::add(L::mul(polynomial, t), L::splat(c));
        }
        let result = L::add(exponent, L::mul(t, polynomial));
        let result = L::choose(L::eq(a, L::splat(f32::INFINITY)), a, result);
        let result = L::choose(L::eq(a, L::splat(0.0)), L::splat(f32::NEG_INFINITY), result);
        // Negative or NaN.
        L::choose(L::le(L::splat(0.0), a), result, L::bits(NAN))
    }
}
