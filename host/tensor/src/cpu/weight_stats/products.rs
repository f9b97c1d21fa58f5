//! The inner loop of a sweep: a group of rows times one or two vectors, and its transpose times these products.
//!
//! Written over a vector register that is one AVX-512 register, two of AVX2 or an array; every one computes the same bits,
//! because each of its sixteen lanes is a sum of its own and the lanes are joined in one order.

use super::lanes::{CHUNK, GROUP};
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
}

/// What every processor can do.
struct Plain;

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
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Simd;
    use std::arch::x86_64::*;

    /// AVX-512 F and DQ.
    pub(super) struct Avx512;
    /// AVX2 and FMA.
    pub(super) struct Avx2;

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
    }
}

/// Elements of a group of rows.
pub(super) trait Element: Sized {
    /// Even and odd columns of a chunk.
    ///
    /// # Safety
    /// That of [`Simd`], and `chunk` must be valid.
    unsafe fn chunk<S: Simd>(chunk: *const [Self; CHUNK]) -> [S::V; 2];
}

/// bf16 as stored.
impl Element for [u8; 2] {
    #[inline(always)]
    unsafe fn chunk<S: Simd>(chunk: *const [Self; CHUNK]) -> [S::V; 2] {
        // SAFETY: a chunk has 64 bytes; the caller answers for the rest.
        unsafe { S::halves(chunk.cast()) }
    }
}

/// f32 in panel order.
impl Element for f32 {
    #[inline(always)]
    unsafe fn chunk<S: Simd>(chunk: *const [Self; CHUNK]) -> [S::V; 2] {
        let chunk = chunk.cast::<f32>();
        // SAFETY: a chunk has two times sixteen numbers; the caller answers for the rest.
        unsafe { [S::load(chunk), S::load(chunk.add(LANES))] }
    }
}

/// The loop.
///
/// # Safety
/// That of `S`; `rows` must have `GROUP * chunks` items, each `v` and `y` at least `chunks`.
#[inline(always)]
unsafe fn both_ways<S: Simd, E: Element, const T: usize>(
    rows: &[[E; CHUNK]],
    chunks: usize,
    v: [&[[f32; CHUNK]]; T],
    scale: [f32; T],
    y: &mut [&mut [[f32; CHUNK]]; T],
) -> [[f32; GROUP]; T] {
    let rows = rows.as_ptr();
    // SAFETY: `at` and `row` stay below `chunks` and `GROUP`, which the caller has checked; the rest is the caller's word.
    unsafe {
        let mut sums = [[[S::zero(); 2]; GROUP]; T];
        for at in 0..chunks {
            for row in 0..GROUP {
                let w = E::chunk::<S>(rows.add(row * chunks + at));
                for t in 0..T {
                    let v = v[t].as_ptr().add(at).cast::<f32>();
                    sums[t][row][0] = S::mul_add(w[0], S::load(v), sums[t][row][0]);
                    sums[t][row][1] = S::mul_add(w[1], S::load(v.add(LANES)), sums[t][row][1]);
                }
            }
        }
        let mut u = [[0.0; GROUP]; T];
        let mut back = [[S::zero(); GROUP]; T];
        for t in 0..T {
            for row in 0..GROUP {
                u[t][row] = S::total(S::add(sums[t][row][0], sums[t][row][1]));
                back[t][row] = S::splat(u[t][row] * scale[t]);
            }
        }
        for at in 0..chunks {
            let mut sums = [[S::zero(); 2]; T];
            for t in 0..T {
                let y = y[t].as_ptr().add(at).cast::<f32>();
                sums[t] = [S::load(y), S::load(y.add(LANES))];
            }
            for row in 0..GROUP {
                let w = E::chunk::<S>(rows.add(row * chunks + at));
                for t in 0..T {
                    sums[t][0] = S::mul_add(w[0], back[t][row], sums[t][0]);
                    sums[t][1] = S::mul_add(w[1], back[t][row], sums[t][1]);
                }
            }
            for t in 0..T {
                let y = y[t].as_mut_ptr().add(at).cast::<f32>();
                S::store(y, sums[t][0]);
                S::store(y.add(LANES), sums[t][1]);
            }
        }
        u
    }
}

/// Products of `GROUP` rows, of `chunks` chunks each, with the vectors `v`; to each `y` is added the rows' transpose times
/// `scale` times the products.
pub(super) fn multiply<E: Element, const T: usize>(
    rows: &[[E; CHUNK]],
    chunks: usize,
    v: [&[[f32; CHUNK]]; T],
    scale: [f32; T],
    y: &mut [&mut [[f32; CHUNK]]; T],
) -> [[f32; GROUP]; T] {
    assert_eq!(rows.len(), GROUP * chunks);
    assert!(v.iter().all(|v| v.len() == chunks) && y.iter().all(|y| y.len() == chunks));
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512dq,avx2,fma")]
        unsafe fn widest<E: Element, const T: usize>(
            rows: &[[E; CHUNK]],
            chunks: usize,
            v: [&[[f32; CHUNK]]; T],
            scale: [f32; T],
            y: &mut [&mut [[f32; CHUNK]]; T],
        ) -> [[f32; GROUP]; T] {
            // SAFETY: sizes are the caller's word, and this function has the features.
            unsafe { both_ways::<x86::Avx512, E, T>(rows, chunks, v, scale, y) }
        }
        #[target_feature(enable = "avx2,fma")]
        unsafe fn wide<E: Element, const T: usize>(
            rows: &[[E; CHUNK]],
            chunks: usize,
            v: [&[[f32; CHUNK]]; T],
            scale: [f32; T],
            y: &mut [&mut [[f32; CHUNK]]; T],
        ) -> [[f32; GROUP]; T] {
            // SAFETY: as above.
            unsafe { both_ways::<x86::Avx2, E, T>(rows, chunks, v, scale, y) }
        }
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
        {
            if std::arch::is_x86_feature_detected!("avx512f")
                && std::arch::is_x86_feature_detected!("avx512dq")
            {
                // SAFETY: the processor has the features, and the sizes were checked above.
                return unsafe { widest(rows, chunks, v, scale, y) };
            }
            // SAFETY: as above.
            return unsafe { wide(rows, chunks, v, scale, y) };
        }
    }
    // SAFETY: arrays need no features, and the sizes were checked above.
    unsafe { both_ways::<Plain, E, T>(rows, chunks, v, scale, y) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The loop on every level that this processor has.
    fn on_every_level<E: Element, const T: usize>(
        rows: &[[E; CHUNK]],
        v: [&[[f32; CHUNK]]; T],
    ) -> Vec<(Vec<u32>, Vec<u32>)> {
        let chunks = rows.len() / GROUP;
        let run = |level: usize| {
            let mut sums = vec![vec![[0.25f32; CHUNK]; chunks]; T];
            let mut parts = sums.iter_mut();
            let mut y: [&mut [[f32; CHUNK]]; T] =
                std::array::from_fn(|_| parts.next().map_or(&mut [][..], |y| &mut y[..]));
            let scale = [0.5; T];
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2<E: Element, const T: usize>(
                rows: &[[E; CHUNK]],
                chunks: usize,
                v: [&[[f32; CHUNK]]; T],
                scale: [f32; T],
                y: &mut [&mut [[f32; CHUNK]]; T],
            ) -> [[f32; GROUP]; T] {
                // SAFETY: the test's own sizes fit, and this function has the features.
                unsafe { both_ways::<x86::Avx2, E, T>(rows, chunks, v, scale, y) }
            }
            let u = match level {
                0 => multiply(rows, chunks, v, scale, &mut y),
                #[cfg(target_arch = "x86_64")]
                1 if std::arch::is_x86_feature_detected!("avx2")
                    && std::arch::is_x86_feature_detected!("fma") =>
                {
                    // SAFETY: the processor has the features, and the sizes fit.
                    unsafe { avx2(rows, chunks, v, scale, &mut y) }
                }
                // SAFETY: the sizes fit.
                _ => unsafe { both_ways::<Plain, E, T>(rows, chunks, v, scale, &mut y) },
            };
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect();
            let sums: Vec<f32> = sums.concat().concat();
            (bits(u.as_flattened()), bits(&sums))
        };
        (0..3).map(run).collect()
    }

    #[test]
    fn every_level_gives_the_same_bits() {
        let value = |index: usize| ((index * 7919 + 13) % 1009) as f32 / 300.0 - 1.5;
        let chunk = |at: usize| std::array::from_fn(|lane| value(at * CHUNK + lane));
        let wide: Vec<[f32; CHUNK]> = (0..GROUP * 5).map(chunk).collect();
        let narrow: Vec<[[u8; 2]; CHUNK]> = wide
            .iter()
            .map(|chunk| chunk.map(|value| ((value.to_bits() >> 16) as u16).to_le_bytes()))
            .collect();
        let vectors: Vec<[f32; CHUNK]> = (100..110).map(chunk).collect();
        let (a, b) = vectors.split_at(5);
        for results in [
            on_every_level(&wide, [a]),
            on_every_level(&narrow, [a]),
            on_every_level(&wide, [a, b]),
            on_every_level(&narrow, [a, b]),
        ] {
            assert!(results.iter().all(|result| *result == results[0]));
        }
    }
}
