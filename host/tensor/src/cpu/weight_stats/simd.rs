//! Sixteen lanes as the inner loops of a sweep need them: one AVX-512 register, two of AVX2, or an array.
//!
//! Every one computes the same bits, because each lane is a sum of its own and the lanes are joined in one order.

use crate::cpu::network::lanes::{LANES, Lanes, total};

/// Sixteen lanes of f32.
///
/// # Safety
/// All functions need the processor features of their implementation; pointers must be valid for sixteen numbers.
pub(super) trait Simd {
    type V: Copy;
    unsafe fn zero() -> Self::V;
    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    /// Lower and upper halves of sixteen 32-bit words, each half a bf16.
    unsafe fn halves(p: *const u8) -> [Self::V; 2];
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// The lanes' sum, as [`total`] takes it.
    unsafe fn total(v: Self::V) -> f32;
    /// How many lanes are zero.
    unsafe fn zeros(v: [Self::V; 2]) -> u32;
}

/// What every processor can do.
pub(super) struct Plain;

#[expect(
    clippy::undocumented_unsafe_blocks,
    reason = "each block relies on the contract of the trait and nothing else"
)]
impl Simd for Plain {
    type V = Lanes;
    #[inline(always)]
    unsafe fn zero() -> Lanes {
        [0.0; LANES]
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Lanes {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Lanes {
        unsafe { p.cast::<Lanes>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Lanes) {
        unsafe { p.cast::<Lanes>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn halves(p: *const u8) -> [Lanes; 2] {
        let words = unsafe { p.cast::<[[u8; 4]; LANES]>().read_unaligned() };
        let words = words.map(u32::from_le_bytes);
        [
            words.map(|word| f32::from_bits(word << 16)),
            words.map(|word| f32::from_bits(word & 0xffff_0000)),
        ]
    }
    #[inline(always)]
    unsafe fn mul_add(a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        std::array::from_fn(|lane| a[lane].mul_add(b[lane], c[lane]))
    }
    #[inline(always)]
    unsafe fn add(a: Lanes, b: Lanes) -> Lanes {
        std::array::from_fn(|lane| a[lane] + b[lane])
    }
    #[inline(always)]
    unsafe fn total(v: Lanes) -> f32 {
        total(v)
    }
    #[inline(always)]
    unsafe fn zeros(v: [Lanes; 2]) -> u32 {
        v.as_flattened().iter().map(|x| u32::from(*x == 0.0)).sum()
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use super::Simd;
    use std::arch::x86_64::*;

    /// AVX-512 F and DQ.
    pub(in crate::cpu::weight_stats) struct Avx512;
    /// AVX2 and FMA.
    pub(in crate::cpu::weight_stats) struct Avx2;

    #[expect(
        clippy::undocumented_unsafe_blocks,
        reason = "each block relies on the contract of the trait and nothing else"
    )]
    impl Simd for Avx512 {
        type V = __m512;
        #[inline(always)]
        unsafe fn zero() -> __m512 {
            unsafe { _mm512_setzero_ps() }
        }
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
        unsafe fn halves(p: *const u8) -> [__m512; 2] {
            unsafe {
                let words = _mm512_loadu_si512(p.cast());
                let upper = _mm512_and_si512(words, _mm512_set1_epi32(0xffff_0000_u32 as i32));
                [
                    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)),
                    _mm512_castsi512_ps(upper),
                ]
            }
        }
        #[inline(always)]
        unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn add(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn total(v: __m512) -> f32 {
            unsafe {
                total_256(_mm256_add_ps(
                    _mm512_castps512_ps256(v),
                    _mm512_extractf32x8_ps::<1>(v),
                ))
            }
        }
        #[inline(always)]
        unsafe fn zeros(v: [__m512; 2]) -> u32 {
            unsafe {
                let zero = _mm512_setzero_ps();
                let even = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(v[0], zero);
                let odd = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(v[1], zero);
                (u32::from(even) << 16 | u32::from(odd)).count_ones()
            }
        }
    }

    /// Sum of eight lanes, halves added until one is left.
    ///
    /// # Safety
    /// Needs AVX2.
    #[inline(always)]
    unsafe fn total_256(v: __m256) -> f32 {
        // SAFETY: the caller has AVX2.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[expect(
        clippy::undocumented_unsafe_blocks,
        reason = "each block relies on the contract of the trait and nothing else"
    )]
    impl Simd for Avx2 {
        type V = [__m256; 2];
        #[inline(always)]
        unsafe fn zero() -> Self::V {
            unsafe { [_mm256_setzero_ps(); 2] }
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self::V {
            unsafe { [_mm256_set1_ps(x); 2] }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self::V {
            unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: Self::V) {
            unsafe {
                _mm256_storeu_ps(p, v[0]);
                _mm256_storeu_ps(p.add(8), v[1]);
            }
        }
        #[inline(always)]
        unsafe fn halves(p: *const u8) -> [Self::V; 2] {
            unsafe {
                let words = [
                    _mm256_loadu_si256(p.cast()),
                    _mm256_loadu_si256(p.add(32).cast()),
                ];
                let mask = _mm256_set1_epi32(0xffff_0000_u32 as i32);
                let lower = |word| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(word));
                let upper = |word| _mm256_castsi256_ps(_mm256_and_si256(word, mask));
                [
                    [lower(words[0]), lower(words[1])],
                    [upper(words[0]), upper(words[1])],
                ]
            }
        }
        #[inline(always)]
        unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            unsafe {
                [
                    _mm256_fmadd_ps(a[0], b[0], c[0]),
                    _mm256_fmadd_ps(a[1], b[1], c[1]),
                ]
            }
        }
        #[inline(always)]
        unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
            unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn total(v: Self::V) -> f32 {
            unsafe { total_256(_mm256_add_ps(v[0], v[1])) }
        }
        #[inline(always)]
        unsafe fn zeros(v: [Self::V; 2]) -> u32 {
            let mut count = 0;
            for part in v.as_flattened() {
                unsafe {
                    let mask = _mm256_cmp_ps::<_CMP_EQ_OQ>(*part, _mm256_setzero_ps());
                    count += _mm256_movemask_ps(mask).count_ones();
                }
            }
            count
        }
    }
}
