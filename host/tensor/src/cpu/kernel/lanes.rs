//! Sixteen f32 lanes: the operations that the kernel machine needs of a processor, and a portable version of them.
//!
//! Every level works on the same sixteen lanes (one register of AVX-512, two of AVX2), so that sums, which depend on how
//! elements are spread over lanes, have the same bits on all of them.

/// Lanes per vector.
pub(super) const LANES: usize = 16;

/// Vector operations of one instruction set.
///
/// # Safety
/// All functions require that the processor has the instruction set, and pointers valid for sixteen elements of the named
/// type (any alignment).
pub(super) trait Lanes {
    /// Sixteen f32, or their bits.
    type V: Copy;
    /// Sixteen truth values.
    type M: Copy;
    /// Sixteen f64, to add up f32 of the same lanes.
    type W: Copy;

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    /// Widens sixteen bf16.
    unsafe fn load_bf16(p: *const u16) -> Self::V;
    /// Stores the upper halves of thirty-two f32, NaN as the canonical one.
    unsafe fn store_bf16x2(p: *mut u16, low: Self::V, high: Self::V);
    /// As [`Lanes::store_bf16x2`] to a `p` aligned to 64 bytes, past the caches where the processor can.
    #[inline(always)]
    unsafe fn stream_bf16x2(p: *mut u16, low: Self::V, high: Self::V) {
        // SAFETY: the caller's contract.
        unsafe { Self::store_bf16x2(p, low, high) }
    }
    /// As [`Lanes::store`] to a `p` aligned to 64 bytes, past the caches where the processor can.
    #[inline(always)]
    unsafe fn stream(p: *mut f32, v: Self::V) {
        // SAFETY: the caller's contract.
        unsafe { Self::store(p, v) }
    }
    /// As [`Lanes::store_f16`] to a `p` aligned to 32 bytes, past the caches where the processor can.
    #[inline(always)]
    unsafe fn stream_f16(p: *mut u16, v: Self::V) {
        // SAFETY: the caller's contract.
        unsafe { Self::store_f16(p, v) }
    }
    /// Asks for the cache line at `p`, which need not be valid.
    unsafe fn prefetch(p: *const u8);
    /// Widens sixteen f16.
    unsafe fn load_f16(p: *const u16) -> Self::V;
    /// Stores sixteen f32 that f16 can hold, NaN as the canonical one.
    unsafe fn store_f16(p: *mut u16, v: Self::V);

    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sqrt(a: Self::V) -> Self::V;
    /// `if a < b { a } else { b }`: a NaN in either gives `b`.
    unsafe fn lesser(a: Self::V, b: Self::V) -> Self::V;
    /// `if a > b { a } else { b }`: a NaN in either gives `b`.
    unsafe fn greater(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn nearest(a: Self::V) -> Self::V;
    unsafe fn floor(a: Self::V) -> Self::V;
    unsafe fn ceil(a: Self::V) -> Self::V;
    unsafe fn trunc(a: Self::V) -> Self::V;

    unsafe fn and(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn or(a: Self::V, b: Self::V) -> Self::V;
    /// Wrapping addition of the bits as integers.
    unsafe fn add_bits(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn shift_left<const N: u32>(a: Self::V) -> Self::V;
    unsafe fn shift_right<const N: u32>(a: Self::V) -> Self::V;
    /// Shift of the bits as signed integers.
    unsafe fn shift_right_signed<const N: u32>(a: Self::V) -> Self::V;
    /// Larger of the bits as unsigned integers.
    unsafe fn max_bits(a: Self::V, b: Self::V) -> Self::V;
    /// Largest of the sixteen as unsigned integers.
    unsafe fn across_max_bits(a: Self::V) -> u32;

    unsafe fn lt(a: Self::V, b: Self::V) -> Self::M;
    unsafe fn le(a: Self::V, b: Self::V) -> Self::M;
    unsafe fn eq(a: Self::V, b: Self::V) -> Self::M;
    /// True where a NaN is involved.
    unsafe fn ne(a: Self::V, b: Self::V) -> Self::M;
    /// The first `n` lanes.
    unsafe fn first(n: usize) -> Self::M;
    unsafe fn choose(m: Self::M, yes: Self::V, no: Self::V) -> Self::V;

    unsafe fn load_wide(p: *const f64) -> Self::W;
    unsafe fn store_wide(p: *mut f64, w: Self::W);
    /// Adds each lane, widened.
    unsafe fn add_wide(sums: Self::W, v: Self::V) -> Self::W;
    /// Adds the square of each lane. Squares of f32 are exact in f64, so a fused addition gives the same.
    unsafe fn add_squares(sums: Self::W, v: Self::V) -> Self::W;

    /// Largest magnitude of `32 * count` bf16 or f16, as bits; NaN counts as largest.
    unsafe fn max_magnitude_16(p: *const u16, count: usize) -> u16;

    /// The bits as a vector.
    #[inline(always)]
    unsafe fn bits(x: u32) -> Self::V {
        // SAFETY: the caller's contract.
        unsafe { Self::splat(f32::from_bits(x)) }
    }
}

/// Plain arrays; the compiler makes of them what the target's baseline allows.
pub(super) struct Portable;

type Sixteen = [f32; LANES];

#[inline(always)]
fn map(a: Sixteen, f: impl Fn(f32) -> f32) -> Sixteen {
    std::array::from_fn(|i| f(a[i]))
}

#[inline(always)]
fn zip(a: Sixteen, b: Sixteen, f: impl Fn(f32, f32) -> f32) -> Sixteen {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[inline(always)]
fn map_bits(a: Sixteen, f: impl Fn(u32) -> u32) -> Sixteen {
    map(a, |x| f32::from_bits(f(x.to_bits())))
}

#[inline(always)]
fn zip_bits(a: Sixteen, b: Sixteen, f: impl Fn(u32, u32) -> u32) -> Sixteen {
    zip(a, b, |x, y| f32::from_bits(f(x.to_bits(), y.to_bits())))
}

#[inline(always)]
fn test(a: Sixteen, b: Sixteen, f: impl Fn(f32, f32) -> bool) -> [bool; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Lanes for Portable {
    type V = Sixteen;
    type M = [bool; LANES];
    type W = [f64; LANES];

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        // SAFETY: the caller's contract.
        unsafe { p.cast::<Sixteen>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        // SAFETY: the caller's contract.
        unsafe { p.cast::<Sixteen>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::V {
        // SAFETY: the caller's contract.
        let halves = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        halves.map(|half| f32::from_bits(u32::from(half) << 16))
    }
    #[inline(always)]
    unsafe fn store_bf16x2(p: *mut u16, low: Self::V, high: Self::V) {
        // Only the upper half counts: rounding leaves the lower as it falls.
        let narrow = |v: Sixteen| {
            v.map(|x| {
                let half = (x.to_bits() >> 16) as u16;
                if half & 0x7fff > 0x7f80 { 0x7fc0 } else { half }
            })
        };
        // SAFETY: the caller's contract: valid for thirty-two.
        unsafe {
            p.cast::<[u16; LANES]>().write_unaligned(narrow(low));
            p.add(LANES)
                .cast::<[u16; LANES]>()
                .write_unaligned(narrow(high));
        }
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::V {
        let mut values = [0.0; LANES];
        // SAFETY: the caller's contract; sixteen f16 are thirty-two bytes.
        let bytes = unsafe { std::slice::from_raw_parts(p.cast::<u8>(), 2 * LANES) };
        crate::cast::decode(crate::DType::F16, bytes, &mut values);
        values
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, v: Self::V) {
        // SAFETY: the caller's contract; sixteen f16 are thirty-two bytes.
        let bytes = unsafe { std::slice::from_raw_parts_mut(p.cast::<u8>(), 2 * LANES) };
        let stored = crate::cast::encode(crate::DType::F16, false, &v, bytes);
        debug_assert!(stored.is_ok());
    }

    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn sqrt(a: Self::V) -> Self::V {
        map(a, f32::sqrt)
    }
    #[inline(always)]
    unsafe fn lesser(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn greater(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn nearest(a: Self::V) -> Self::V {
        // Adding and subtracting 2^23 rounds to an integer, halves to even; larger numbers are integers already. Without
        // a rounding instruction in the baseline this is far quicker than a library call for each lane.
        map(a, |x| {
            let magnitude = x.abs();
            let rounded = (magnitude + 8_388_608.0) - 8_388_608.0;
            (if magnitude < 8_388_608.0 {
                rounded
            } else {
                magnitude
            })
            .copysign(x)
        })
    }
    #[inline(always)]
    unsafe fn floor(a: Self::V) -> Self::V {
        map(a, f32::floor)
    }
    #[inline(always)]
    unsafe fn ceil(a: Self::V) -> Self::V {
        map(a, f32::ceil)
    }
    #[inline(always)]
    unsafe fn trunc(a: Self::V) -> Self::V {
        map(a, f32::trunc)
    }

    #[inline(always)]
    unsafe fn and(a: Self::V, b: Self::V) -> Self::V {
        zip_bits(a, b, |a, b| a & b)
    }
    #[inline(always)]
    unsafe fn or(a: Self::V, b: Self::V) -> Self::V {
        zip_bits(a, b, |a, b| a | b)
    }
    #[inline(always)]
    unsafe fn add_bits(a: Self::V, b: Self::V) -> Self::V {
        zip_bits(a, b, u32::wrapping_add)
    }
    #[inline(always)]
    unsafe fn shift_left<const N: u32>(a: Self::V) -> Self::V {
        map_bits(a, |a| a << N)
    }
    #[inline(always)]
    unsafe fn shift_right<const N: u32>(a: Self::V) -> Self::V {
        map_bits(a, |a| a >> N)
    }
    #[inline(always)]
    unsafe fn shift_right_signed<const N: u32>(a: Self::V) -> Self::V {
        map_bits(a, |a| ((a as i32) >> N) as u32)
    }
    #[inline(always)]
    unsafe fn max_bits(a: Self::V, b: Self::V) -> Self::V {
        zip_bits(a, b, u32::max)
    }
    #[inline(always)]
    unsafe fn across_max_bits(a: Self::V) -> u32 {
        a.iter().fold(0, |largest, x| largest.max(x.to_bits()))
    }

    #[inline(always)]
    unsafe fn lt(a: Self::V, b: Self::V) -> Self::M {
        test(a, b, |a, b| a < b)
    }
    #[inline(always)]
    unsafe fn le(a: Self::V, b: Self::V) -> Self::M {
        test(a, b, |a, b| a <= b)
    }
    #[inline(always)]
    unsafe fn eq(a: Self::V, b: Self::V) -> Self::M {
        test(a, b, |a, b| a == b)
    }
    #[inline(always)]
    unsafe fn ne(a: Self::V, b: Self::V) -> Self::M {
        test(a, b, |a, b| a != b)
    }
    #[inline(always)]
    unsafe fn first(n: usize) -> Self::M {
        std::array::from_fn(|i| i < n)
    }
    #[inline(always)]
    unsafe fn choose(m: Self::M, yes: Self::V, no: Self::V) -> Self::V {
        std::array::from_fn(|i| if m[i] { yes[i] } else { no[i] })
    }

    #[inline(always)]
    unsafe fn load_wide(p: *const f64) -> Self::W {
        // SAFETY: the caller's contract.
        unsafe { p.cast::<Self::W>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_wide(p: *mut f64, w: Self::W) {
        // SAFETY: the caller's contract.
        unsafe { p.cast::<Self::W>().write_unaligned(w) }
    }
    #[inline(always)]
    unsafe fn add_wide(sums: Self::W, v: Self::V) -> Self::W {
        std::array::from_fn(|i| sums[i] + f64::from(v[i]))
    }
    #[inline(always)]
    unsafe fn add_squares(sums: Self::W, v: Self::V) -> Self::W {
        std::array::from_fn(|i| sums[i] + f64::from(v[i]) * f64::from(v[i]))
    }

    #[inline(always)]
    unsafe fn max_magnitude_16(p: *const u16, count: usize) -> u16 {
        let mut largest = [0u16; 32];
        for i in 0..count {
            // SAFETY: the caller's contract: valid for `32 * count`.
            let halves = unsafe { p.add(32 * i).cast::<[u16; 32]>().read_unaligned() };
            for (largest, half) in largest.iter_mut().zip(halves) {
                *largest = (*largest).max(half & 0x7fff);
            }
        }
        largest.into_iter().fold(0, u16::max)
    }
}
