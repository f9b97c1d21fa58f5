//! Vector loops: one source, compiled for each instruction set, chosen at run time; the same bits from all of them.
//!
//! A loop body is written over blocks of [`LANES`] numbers, with sums kept per lane and joined in a fixed order, so that
//! the compiler may use vectors of any width without changing a rounding. Fused multiply-add is always spelled out as
//! [`f32::mul_add`], which every level computes exactly (processors older than 2013 do so in software, slowly).

/// How many numbers a loop body handles at a time; the width of the widest vector register.
pub const LANES: usize = 16;

/// One value per lane.
pub type Lanes = [f32; LANES];

/// Defines functions whose body is compiled for AVX-512, for AVX2 with FMA, and for the plain target.
macro_rules! vectorized {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $out:ty)? $body:block)+) => {$(
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $out)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $out)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn widest($($arg: $ty),*) $(-> $out)? { body($($arg),*) }

                #[target_feature(enable = "avx2,fma")]
                fn wide($($arg: $ty),*) $(-> $out)? { body($($arg),*) }

                if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
                    if std::arch::is_x86_feature_detected!("avx512f")
                        && std::arch::is_x86_feature_detected!("avx512bw")
                        && std::arch::is_x86_feature_detected!("avx512dq")
                        && std::arch::is_x86_feature_detected!("avx512vl")
                    {
                        // SAFETY: the processor has every feature that the function is compiled for.
                        return unsafe { widest($($arg),*) };
                    }
                    // SAFETY: as above.
                    return unsafe { wide($($arg),*) };
                }
            }
            body($($arg),*)
        }
    )+};
}
pub(crate) use vectorized;

/// Sum of all lanes: halves are added until one is left.
#[inline(always)]
pub fn total(lanes: Lanes) -> f32 {
    let mut lanes = lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The larger number; `a` when they are unordered, so that a running maximum passes over NaN.
#[inline(always)]
pub fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// Largest number in `values`; NaN is passed over; negative infinity when there is none.
#[inline(always)]
pub fn largest(values: &[f32]) -> f32 {
    // Four vectors at a time hide the latency of the comparison.
    const WIDE: usize = 4 * LANES;
    let mut best = [f32::NEG_INFINITY; WIDE];
    let (blocks, rest) = values.as_chunks::<WIDE>();
    for block in blocks {
        for lane in 0..WIDE {
            best[lane] = larger(best[lane], block[lane]);
        }
    }
    let (blocks, rest) = rest.as_chunks::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            best[lane] = larger(best[lane], block[lane]);
        }
    }
    for (lane, &value) in best.iter_mut().zip(rest) {
        *lane = larger(*lane, value);
    }
    let mut width = WIDE / 2;
    while width > 0 {
        for lane in 0..width {
            best[lane] = larger(best[lane], best[lane + width]);
        }
        width /= 2;
    }
    best[0]
}

/// `values` from `at` as a full block, filled up with `fill` beyond the end.
#[inline(always)]
pub fn padded(values: &[f32], fill: f32) -> Lanes {
    let mut block = [fill; LANES];
    block[..values.len()].copy_from_slice(values);
    block
}

/// `e^x`, within 1.5 units in the last place; 0 where the result would be subnormal (processors take a hundred times as
/// long to make such a number, and in a softmax it stands for nothing), infinity from 127.5 ln 2 on, NaN for NaN.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2` (Cody and Waite: ln 2 in two parts), and `e^r = 1 + r + r^2 q(r)`, where `q`
/// has degree 4 and meets the exact quotient at the five Chebyshev nodes of that range: relative error 1.1e-8.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    /// Adding and subtracting it rounds to an integer; the integer then sits in the low bits of the sum.
    const SHIFT: f32 = 12_582_912.0; // 1.5 * 2^23
    const LN2_HIGH: f32 = 0.693_359_4; // 355/512, exact in f32
    const LN2_LOW: f32 = -2.121_944_4e-4;
    /// The logarithm of the smallest normal number, rounded up.
    const LOWEST: f32 = -87.336_54;
    /// `n` is at most 128, and an exponent that is too large by one stands for infinity.
    const HIGHEST: f32 = 89.0;
    let inside = x.clamp(LOWEST, HIGHEST);
    let shifted = inside.mul_add(std::f32::consts::LOG2_E, SHIFT);
    let n = shifted - SHIFT;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, inside));
    let mut p = 1.392_621_3e-3f32;
    p = p.mul_add(r, 8.363_203e-3);
    p = p.mul_add(r, 4.166_655_6e-2);
    p = p.mul_add(r, 1.666_657_6e-1);
    p = p.mul_add(r, 0.5);
    p = p.mul_add(r, 1.0);
    p = p.mul_add(r, 1.0);
    let result = p * power_of_two(shifted.to_bits().wrapping_sub(SHIFT.to_bits()));
    if x < LOWEST { 0.0 } else { result }
}

/// `2^n` for `-126 <= n <= 127`, infinity for 128; `n` in two's complement.
#[inline(always)]
fn power_of_two(n: u32) -> f32 {
    f32::from_bits(n.wrapping_add(127) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    vectorized! {
        fn exp_all(values: &mut [f32]) {
            for value in values.iter_mut() {
                *value = exp(*value);
            }
        }
    }

    fn ulps(a: f32, b: f64) -> f64 {
        let unit = f64::from(f32::from_bits((b as f32).to_bits() + 1)) - f64::from(b as f32);
        (f64::from(a) - b).abs() / unit
    }

    #[test]
    fn exp_is_accurate_and_equal_on_every_level() {
        let inputs: Vec<f32> = (-87_000..88_000).map(|i| i as f32 * 1e-3 + 1e-5).collect();
        let mut outputs = inputs.clone();
        exp_all(&mut outputs);
        let mut worst = 0.0f64;
        for (x, y) in inputs.iter().zip(&outputs) {
            worst = worst.max(ulps(*y, f64::from(*x).exp()));
            assert_eq!(y.to_bits(), exp(*x).to_bits(), "{x}");
        }
        assert!(worst < 1.5, "{worst}");
    }

    #[test]
    fn exp_at_the_edges() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(88.4), f32::INFINITY);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert_eq!(exp(1000.0), f32::INFINITY);
        assert!(exp(88.37).is_finite());
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(-87.5), 0.0);
        assert!(exp(-87.3) >= f32::MIN_POSITIVE);
        assert!(exp(-87.336_54) >= f32::MIN_POSITIVE);
    }

    #[test]
    fn largest_passes_over_nan() {
        for len in [0, 1, 15, 16, 17, 64, 200] {
            let mut values: Vec<f32> = (0..len).map(|i| ((i * 37) % 101) as f32).collect();
            let expected = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(largest(&values), expected);
            values.push(f32::NAN);
            assert_eq!(largest(&values), expected);
        }
    }
}
