//! The sixteen lanes on x86-64: one AVX-512 register, or two of AVX2.

use std::arch::x86_64::*;

use super::lanes::Lanes;

/// AVX-512 with the F, BW, DQ and VL parts.
pub(super) struct Avx512;

macro_rules! int {
    ($v:expr) => {
        _mm512_castps_si512($v)
    };
}

macro_rules! float {
    ($v:expr) => {
        _mm512_castsi512_ps($v)
    };
}

#[expect(
    clippy::undocumented_unsafe_blocks,
    reason = "each block relies on the contract of the trait and nothing else"
)]
impl Lanes for Avx512 {
    type V = __m512;
    type M = __mmask16;
    type W = [__m512d; 2];

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m512) {
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> __m512 {
        unsafe {
            float!(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(
                _mm256_loadu_si256(p.cast())
            )))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16x2(p: *mut u16, low: __m512, high: __m512) {
        unsafe { _mm512_storeu_si512(p.cast(), upper_halves(low, high)) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, v: __m512) {
        unsafe { _mm256_storeu_si256(p.cast(), halves(v)) }
    }
    #[inline(always)]
    unsafe fn stream_bf16x2(p: *mut u16, low: __m512, high: __m512) {
        unsafe { _mm512_stream_si512(p.cast(), upper_halves(low, high)) }
    }
    #[inline(always)]
    unsafe fn stream(p: *mut f32, v: __m512) {
        unsafe { _mm512_stream_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn stream_f16(p: *mut u16, v: __m512) {
        unsafe { _mm256_stream_si256(p.cast(), halves(v)) }
    }

    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sqrt(a: __m512) -> __m512 {
        unsafe { _mm512_sqrt_ps(a) }
    }
    #[inline(always)]
    unsafe fn lesser(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn greater(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn nearest(a: __m512) -> __m512 {
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    unsafe fn floor(a: __m512) -> __m512 {
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    unsafe fn ceil(a: __m512) -> __m512 {
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    unsafe fn trunc(a: __m512) -> __m512 {
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC }>(a) }
    }

    #[inline(always)]
    unsafe fn and(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_and_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn or(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_or_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn add_bits(a: __m512, b: __m512) -> __m512 {
        unsafe { float!(_mm512_add_epi32(int!(a), int!(b))) }
    }
    #[inline(always)]
    unsafe fn shift_left<const N: u32>(a: __m512) -> __m512 {
        unsafe { float!(_mm512_slli_epi32::<N>(int!(a))) }
    }
    #[inline(always)]
    unsafe fn shift_right<const N: u32>(a: __m512) -> __m512 {
        unsafe { float!(_mm512_srli_epi32::<N>(int!(a))) }
    }
    #[inline(always)]
    unsafe fn shift_right_signed<const N: u32>(a: __m512) -> __m512 {
        unsafe { float!(_mm512_srai_epi32::<N>(int!(a))) }
    }
    #[inline(always)]
    unsafe fn max_bits(a: __m512, b: __m512) -> __m512 {
        unsafe { float!(_mm512_max_epu32(int!(a), int!(b))) }
    }
    #[inline(always)]
    unsafe fn across_max_bits(a: __m512) -> u32 {
        unsafe { _mm512_reduce_max_epu32(int!(a)) }
    }

    #[inline(always)]
    unsafe fn lt(a: __m512, b: __m512) -> __mmask16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b) }
    }
    #[inline(always)]
    unsafe fn le(a: __m512, b: __m512) -> __mmask16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_LE_OQ>(a, b) }
    }
    #[inline(always)]
    unsafe fn eq(a: __m512, b: __m512) -> __mmask16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b) }
    }
    #[inline(always)]
    unsafe fn ne(a: __m512, b: __m512) -> __mmask16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(a, b) }
    }
    #[inline(always)]
    unsafe fn first(n: usize) -> __mmask16 {
        ((1u32 << n.min(16)) - 1) as __mmask16
    }
    #[inline(always)]
    unsafe fn choose(m: __mmask16, yes: __m512, no: __m512) -> __m512 {
        unsafe { _mm512_mask_blend_ps(m, no, yes) }
    }

    #[inline(always)]
    unsafe fn load_wide(p: *const f64) -> Self::W {
        unsafe { [_mm512_loadu_pd(p), _mm512_loadu_pd(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn store_wide(p: *mut f64, w: Self::W) {
        unsafe {
            _mm512_storeu_pd(p, w[0]);
            _mm512_storeu_pd(p.add(8), w[1]);
        }
    }
    #[inline(always)]
    unsafe fn add_wide(sums: Self::W, v: __m512) -> Self::W {
        unsafe {
            let [low, high] = widened(v);
            [_mm512_add_pd(sums[0], low), _mm512_add_pd(sums[1], high)]
        }
    }
    #[inline(always)]
    unsafe fn add_squares(sums: Self::W, v: __m512) -> Self::W {
        unsafe {
            let [low, high] = widened(v);
            [
                _mm512_fmadd_pd(low, low, sums[0]),
                _mm512_fmadd_pd(high, high, sums[1]),
            ]
        }
    }

    #[inline(always)]
    unsafe fn max_magnitude_16(p: *const u16, count: usize) -> u16 {
        unsafe {
            let sign = _mm512_set1_epi16(0x7fff);
            let mut largest = _mm512_setzero_si512();
            for i in 0..count {
                let halves = _mm512_loadu_si512(p.add(32 * i).cast());
                largest = _mm512_max_epu16(largest, _mm512_and_si512(halves, sign));
            }
            let half = _mm256_max_epu16(
                _mm512_castsi512_si256(largest),
                _mm512_extracti64x4_epi64::<1>(largest),
            );
            across_16(half)
        }
    }
}

/// The upper halves of thirty-two f32, NaN as the canonical one.
#[inline(always)]
unsafe fn upper_halves(low: __m512, high: __m512) -> __m512i {
    // SAFETY: the callers require AVX-512.
    unsafe {
        let low = _mm512_srli_epi32::<16>(int!(low));
        let high = _mm512_srli_epi32::<16>(int!(high));
        // Packing works within 128-bit parts; the permutation puts the parts in order.
        let order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
        let halves = _mm512_permutexvar_epi64(order, _mm512_packus_epi32(low, high));
        let magnitude = _mm512_and_si512(halves, _mm512_set1_epi16(0x7fff));
        let nan = _mm512_cmpgt_epu16_mask(magnitude, _mm512_set1_epi16(0x7f80));
        _mm512_mask_blend_epi16(nan, halves, _mm512_set1_epi16(0x7fc0))
    }
}

/// Sixteen f32 as f16, NaN as the canonical one.
#[inline(always)]
unsafe fn halves(v: __m512) -> __m256i {
    // SAFETY: the callers require AVX-512.
    unsafe {
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
        let halves = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v);
        _mm256_mask_blend_epi16(nan, halves, _mm256_set1_epi16(0x7e00))
    }
}

/// Sixteen f32 as f64.
#[inline(always)]
unsafe fn widened(v: __m512) -> [__m512d; 2] {
    // SAFETY: the callers require AVX-512.
    unsafe {
        [
            _mm512_cvtps_pd(_mm512_castps512_ps256(v)),
            _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(v)),
        ]
    }
}

/// Largest of sixteen u16: the processor has an instruction for the smallest of eight.
#[inline(always)]
unsafe fn across_16(half: __m256i) -> u16 {
    // SAFETY: the callers require AVX2.
    unsafe {
        let eight = _mm_max_epu16(
            _mm256_castsi256_si128(half),
            _mm256_extracti128_si256::<1>(half),
        );
        let flipped = _mm_xor_si128(eight, _mm_set1_epi16(-1));
        !(_mm_cvtsi128_si32(_mm_minpos_epu16(flipped)) as u16)
    }
}

/// AVX2 and F16C. Never FMA: a contracted product would round differently.
pub(super) struct Avx2;

type Two = [__m256; 2];

macro_rules! each {
    ($f:expr, $a:expr) => {{
        let a = $a;
        [$f(a[0]), $f(a[1])]
    }};
    ($f:expr, $a:expr, $b:expr) => {{
        let (a, b) = ($a, $b);
        [$f(a[0], b[0]), $f(a[1], b[1])]
    }};
}

macro_rules! int2 {
    ($v:expr) => {
        _mm256_castps_si256($v)
    };
}

macro_rules! float2 {
    ($v:expr) => {
        _mm256_castsi256_ps($v)
    };
}

/// The upper halves of sixteen f32, NaN as the canonical one.
#[inline(always)]
unsafe fn upper_halves_of_two(two: Two) -> __m256i {
    // SAFETY: the callers require AVX2.
    unsafe {
        let [a, b] = each!(|v| _mm256_srli_epi32::<16>(int2!(v)), two);
        let halves = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(a, b));
        let magnitude = _mm256_and_si256(halves, _mm256_set1_epi16(0x7fff));
        // Both sides are below 2^15, so the signed comparison is right.
        let nan = _mm256_cmpgt_epi16(magnitude, _mm256_set1_epi16(0x7f80));
        _mm256_blendv_epi8(halves, _mm256_set1_epi16(0x7fc0), nan)
    }
}

/// Eight f32 as f16.
#[inline(always)]
unsafe fn halves_of_eight(v: __m256) -> __m128i {
    // SAFETY: the callers require AVX2 and F16C.
    unsafe {
        // The canonical NaN of f32 becomes that of f16.
        let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(v, v);
        let v = _mm256_blendv_ps(v, _mm256_set1_ps(f32::from_bits(0x7fc0_0000)), nan);
        _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)
    }
}

/// Sixteen f32 as f64.
#[inline(always)]
unsafe fn quarters(v: Two) -> [__m256d; 4] {
    // SAFETY: the callers require AVX2.
    unsafe {
        [
            _mm256_cvtps_pd(_mm256_castps256_ps128(v[0])),
            _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(v[0])),
            _mm256_cvtps_pd(_mm256_castps256_ps128(v[1])),
            _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(v[1])),
        ]
    }
}

#[expect(
    clippy::undocumented_unsafe_blocks,
    reason = "each block relies on the contract of the trait and nothing else"
)]
impl Lanes for Avx2 {
    type V = Two;
    type M = Two;
    type W = [__m256d; 4];

    #[inline(always)]
    unsafe fn splat(x: f32) -> Two {
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Two {
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Two) {
        unsafe {
            _mm256_storeu_ps(p, v[0]);
            _mm256_storeu_ps(p.add(8), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Two {
        unsafe {
            [p, p.add(8)].map(|p| {
                float2!(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(
                    _mm_loadu_si128(p.cast())
                )))
            })
        }
    }
    #[inline(always)]
    unsafe fn store_bf16x2(p: *mut u16, low: Two, high: Two) {
        unsafe {
            for (i, two) in [low, high].into_iter().enumerate() {
                _mm256_storeu_si256(p.add(16 * i).cast(), upper_halves_of_two(two));
            }
        }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Two {
        unsafe { [p, p.add(8)].map(|p| _mm256_cvtph_ps(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, v: Two) {
        unsafe {
            for (i, v) in v.into_iter().enumerate() {
                _mm_storeu_si128(p.add(8 * i).cast(), halves_of_eight(v));
            }
        }
    }
    #[inline(always)]
    unsafe fn stream_bf16x2(p: *mut u16, low: Two, high: Two) {
        unsafe {
            for (i, two) in [low, high].into_iter().enumerate() {
                _mm256_stream_si256(p.add(16 * i).cast(), upper_halves_of_two(two));
            }
        }
    }
    #[inline(always)]
    unsafe fn stream(p: *mut f32, v: Two) {
        unsafe {
            _mm256_stream_ps(p, v[0]);
            _mm256_stream_ps(p.add(8), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn stream_f16(p: *mut u16, v: Two) {
        unsafe {
            for (i, v) in v.into_iter().enumerate() {
                _mm_stream_si128(p.add(8 * i).cast(), halves_of_eight(v));
            }
        }
    }

    #[inline(always)]
    unsafe fn add(a: Two, b: Two) -> Two {
        unsafe { each!(|a, b| _mm256_add_ps(a, b), a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: Two, b: Two) -> Two {
        unsafe { each!(|a, b| _mm256_sub_ps(a, b), a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: Two, b: Two) -> Two {
        unsafe { each!(|a, b| _mm256_mul_ps(a, b), a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: Two, b: Two) -> Two {
        unsafe { each!(|a, b| _mm256_div_ps(a, b), a, b) }
    }
    #[inline(always)]
    unsafe fn sqrt(a: Two) -> Two {
        unsafe { each!(|a| _mm256_sqrt_ps(a), a) }
    }
    #[inline(always)]
    unsafe fn lesser(a: Two, b: Two) -> Two {
        unsafe { each!(|a, b| _mm256_min_ps(a, b), a, b) }
    }
    #[inline(always)]
    unsafe fn greater(a: Two, b: Two) -> Two {
        unsafe { each!(|a, b| _mm256_max_ps(a, b), a, b) }
    }
    #[inline(always)]
    unsafe fn nearest(a: Two) -> Two {
        unsafe {
            each!(
                |a| _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a),
                a
            )
        }
    }
    #[inline(always)]
    unsafe fn floor(a: Two) -> Two {
        unsafe { each!(|a| _mm256_floor_ps(a), a) }
    }
    #[inline(always)]
    unsafe fn ceil(a: Two) -> Two {
        unsafe { each!(|a| _mm256_ceil_ps(a), a) }
    }
    #[inline(always)]
    unsafe fn trunc(a: Two) -> Two {
        unsafe {
            each!(
                |a| _mm256_round_ps::<{ _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC }>(a),
                a
            )
        }
    }

    #[inline(always)]
    unsafe fn and(a: Two, b: Two) -> Two {
        unsafe { each!(|a, b| _mm256_and_ps(a, b), a, b) }
    }
    #[inline(always)]
    unsafe fn or(a: Two, b: Two) -> Two {
        unsafe { each!(|a, b| _mm256_or_ps(a, b), a, b) }
    }
    #[inline(always)]
    unsafe fn add_bits(a: Two, b: Two) -> Two {
        unsafe { each!(|a, b| float2!(_mm256_add_epi32(int2!(a), int2!(b))), a, b) }
    }
    #[inline(always)]
    unsafe fn shift_left<const N: u32>(a: Two) -> Two {
        unsafe {
            each!(
                |a| float2!(_mm256_sll_epi32(int2!(a), _mm_cvtsi32_si128(N as i32))),
                a
            )
        }
    }
    #[inline(always)]
    unsafe fn shift_right<const N: u32>(a: Two) -> Two {
        unsafe {
            each!(
                |a| float2!(_mm256_srl_epi32(int2!(a), _mm_cvtsi32_si128(N as i32))),
                a
            )
        }
    }
    #[inline(always)]
    unsafe fn shift_right_signed<const N: u32>(a: Two) -> Two {
        unsafe {
            each!(
                |a| float2!(_mm256_sra_epi32(int2!(a), _mm_cvtsi32_si128(N as i32))),
                a
            )
        }
    }
    #[inline(always)]
    unsafe fn max_bits(a: Two, b: Two) -> Two {
        unsafe { each!(|a, b| float2!(_mm256_max_epu32(int2!(a), int2!(b))), a, b) }
    }
    #[inline(always)]
    unsafe fn across_max_bits(a: Two) -> u32 {
        unsafe {
            let eight = _mm256_max_epu32(int2!(a[0]), int2!(a[1]));
            let four = _mm_max_epu32(
                _mm256_castsi256_si128(eight),
                _mm256_extracti128_si256::<1>(eight),
            );
            let two = _mm_max_epu32(four, _mm_shuffle_epi32::<0b00_00_11_10>(four));
            let one = _mm_max_epu32(two, _mm_shuffle_epi32::<0b00_00_00_01>(two));
            _mm_cvtsi128_si32(one) as u32
        }
    }

    #[inline(always)]
    unsafe fn lt(a: Two, b: Two) -> Two {
        unsafe { each!(|a, b| _mm256_cmp_ps::<_CMP_LT_OQ>(a, b), a, b) }
    }
    #[inline(always)]
    unsafe fn le(a: Two, b: Two) -> Two {
        unsafe { each!(|a, b| _mm256_cmp_ps::<_CMP_LE_OQ>(a, b), a, b) }
    }
    #[inline(always)]
    unsafe fn eq(a: Two, b: Two) -> Two {
        unsafe { each!(|a, b| _mm256_cmp_ps::<_CMP_EQ_OQ>(a, b), a, b) }
    }
    #[inline(always)]
    unsafe fn ne(a: Two, b: Two) -> Two {
        unsafe { each!(|a, b| _mm256_cmp_ps::<_CMP_NEQ_UQ>(a, b), a, b) }
    }
    #[inline(always)]
    unsafe fn first(n: usize) -> Two {
        unsafe {
            let n = _mm256_set1_epi32(n as i32);
            [
                _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
                _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15),
            ]
            .map(|lane| float2!(_mm256_cmpgt_epi32(n, lane)))
        }
    }
    #[inline(always)]
    unsafe fn choose(m: Two, yes: Two, no: Two) -> Two {
        unsafe {
            [
                _mm256_blendv_ps(no[0], yes[0], m[0]),
                _mm256_blendv_ps(no[1], yes[1], m[1]),
            ]
        }
    }

    #[inline(always)]
    unsafe fn load_wide(p: *const f64) -> Self::W {
        unsafe { [0, 4, 8, 12].map(|at| _mm256_loadu_pd(p.add(at))) }
    }
    #[inline(always)]
    unsafe fn store_wide(p: *mut f64, w: Self::W) {
        unsafe {
            for (i, w) in w.into_iter().enumerate() {
                _mm256_storeu_pd(p.add(4 * i), w);
            }
        }
    }
    #[inline(always)]
    unsafe fn add_wide(sums: Self::W, v: Two) -> Self::W {
        unsafe {
            let [a, b, c, d] = quarters(v);
            [
                _mm256_add_pd(sums[0], a),
                _mm256_add_pd(sums[1], b),
                _mm256_add_pd(sums[2], c),
                _mm256_add_pd(sums[3], d),
            ]
        }
    }
    #[inline(always)]
    unsafe fn add_squares(sums: Self::W, v: Two) -> Self::W {
        unsafe {
            let [a, b, c, d] = quarters(v).map(|quarter| _mm256_mul_pd(quarter, quarter));
            [
                _mm256_add_pd(sums[0], a),
                _mm256_add_pd(sums[1], b),
                _mm256_add_pd(sums[2], c),
                _mm256_add_pd(sums[3], d),
            ]
        }
    }

    #[inline(always)]
    unsafe fn max_magnitude_16(p: *const u16, count: usize) -> u16 {
        unsafe {
            let sign = _mm256_set1_epi16(0x7fff);
            let mut largest = _mm256_setzero_si256();
            for i in 0..2 * count {
                let halves = _mm256_loadu_si256(p.add(16 * i).cast());
                largest = _mm256_max_epu16(largest, _mm256_and_si256(halves, sign));
            }
            across_16(largest)
        }
    }
}
