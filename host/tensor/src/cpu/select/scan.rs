//! The pass over all elements: counts what lies below a bracket and at its ends, and keeps what lies within.

use crate::cpu::Level;

/// Elements between two looks at how much has been kept.
pub(super) const BLOCK: usize = 4096;

/// Two magnitudes between which one is sought. Both may occur any number of times; they are counted, never kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bracket<P> {
    pub low: P,
    pub high: P,
}

/// How many elements lie below the bracket, and at its ends; of equal ends only the low one counts.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub below: u64,
    pub at_low: u64,
    pub at_high: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: Self) {
        self.below += other.below;
        self.at_low += other.at_low;
        self.at_high += other.at_high;
    }
}

/// The bits of a float of `N` bytes without its sign, as a number.
pub(super) trait Pattern<const N: usize>: Copy + Ord + Send + Sync + Into<u32> {
    const LEAST: Self;
    /// No less than any NaN.
    const MOST: Self;
    /// How many upper halves there are, and how many lower halves.
    const UPPER: usize;
    const LOWER: usize;

    fn of(element: [u8; N]) -> Self;
    fn upper(self) -> usize;
    fn lower(self) -> usize;
    /// The pattern with these bits, of which it has no more.
    fn from_bits(bits: u32) -> Self;
    /// How many are not above `limit`.
    fn at_most(patterns: &[Self], limit: Self) -> u64;

    /// Counts, and appends what lies within to `within`; none as soon as that is more than `most`.
    fn scan(
        level: Level,
        elements: &[[u8; N]],
        bracket: Bracket<Self>,
        most: usize,
        within: &mut Vec<Self>,
    ) -> Option<Counts>;
}

impl Pattern<2> for u16 {
    const LEAST: Self = 0;
    const MOST: Self = 0x7fff;
    const UPPER: usize = 1 << 15;
    const LOWER: usize = 1;

    #[inline(always)]
    fn of(element: [u8; 2]) -> Self {
        u16::from_le_bytes(element) & Self::MOST
    }
    #[inline(always)]
    fn upper(self) -> usize {
        self.into()
    }
    #[inline(always)]
    fn lower(self) -> usize {
        0
    }
    fn from_bits(bits: u32) -> Self {
        bits as u16
    }
    fn at_most(patterns: &[Self], limit: Self) -> u64 {
        // Counters as narrow as the patterns, so that the compiler counts a vector at a time.
        let counts = patterns.chunks(usize::from(u16::MAX)).map(|chunk| {
            let count: u16 = chunk.iter().map(|&p| u16::from(p <= limit)).sum();
            u64::from(count)
        });
        counts.sum()
    }

    fn scan(
        level: Level,
        elements: &[[u8; 2]],
        bracket: Bracket<u16>,
        most: usize,
        within: &mut Vec<u16>,
    ) -> Option<Counts> {
        in_blocks(elements, most, within, |block, within| match level {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a device has a level only where the processor has it; the rest has just been checked.
            Level::Avx512 if is_x86_feature_detected!("avx512vbmi2") => unsafe {
                x86::halves_avx512(block, bracket, within)
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Level::Avx512 | Level::Avx2 => unsafe { x86::halves_avx2(block, bracket, within) },
            _ => one_by_one(block, bracket, within),
        })
    }
}

/// What the upper half of a magnitude of 31 bits is shifted by.
const HALF: u32 = 15;

macro_rules! words {
    ($bytes:literal, $of:expr, $scan:expr) => {
        impl Pattern<$bytes> for u32 {
            const LEAST: Self = 0;
            const MOST: Self = 0x7fff_ffff;
            const UPPER: usize = 1 << 16;
            const LOWER: usize = 1 << HALF;

            #[inline(always)]
            fn of(element: [u8; $bytes]) -> Self {
                $of(element) & 0x7fff_ffff
            }
            #[inline(always)]
            fn upper(self) -> usize {
                (self >> HALF) as usize
            }
            #[inline(always)]
            fn lower(self) -> usize {
                (self & ((1 << HALF) - 1)) as usize
            }
            fn from_bits(bits: u32) -> Self {
                bits
            }
            fn at_most(patterns: &[Self], limit: Self) -> u64 {
                // A piece has far fewer than 2^32.
                let count: u32 = patterns.iter().map(|&p| u32::from(p <= limit)).sum();
                u64::from(count)
            }

            fn scan(
                level: Level,
                elements: &[[u8; $bytes]],
                bracket: Bracket<u32>,
                most: usize,
                within: &mut Vec<u32>,
            ) -> Option<Counts> {
                in_blocks(elements, most, within, |block, within| {
                    $scan(level, block, bracket, within)
                })
            }
        }
    };
}

words!(4, u32::from_le_bytes, scan_words);
// Elements are read as f32, as everywhere.
words!(
    8,
    |element| (f64::from_le_bytes(element) as f32).to_bits(),
    |level, block: &[[u8; 8]], bracket, within| {
        let mut narrow = [[0; 4]; BLOCK];
        let narrow = &mut narrow[..block.len()];
        for (to, &from) in narrow.iter_mut().zip(block) {
            *to = (f64::from_le_bytes(from) as f32).to_le_bytes();
        }
        scan_words(level, narrow, bracket, within)
    }
);

fn scan_words(
    level: Level,
    words: &[[u8; 4]],
    bracket: Bracket<u32>,
    within: &mut Vec<u32>,
) -> Counts {
    match level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a device has a level only where the processor has it.
        Level::Avx512 => unsafe { x86::words_avx512(words, bracket, within) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx2 => unsafe { x86::words_avx2(words, bracket, within) },
        _ => one_by_one(words, bracket, within),
    }
}

/// Scans block by block, and stops where more than `most` elements have been kept.
#[inline(always)]
fn in_blocks<T, P>(
    elements: &[T],
    most: usize,
    within: &mut Vec<P>,
    mut scan: impl FnMut(&[T], &mut Vec<P>) -> Counts,
) -> Option<Counts> {
    let mut counts = Counts::default();
    for block in elements.chunks(BLOCK) {
        counts.add(scan(block, within));
        if within.len() > most {
            return None;
        }
    }
    Some(counts)
}

impl Counts {
    /// One element.
    #[inline(always)]
    fn take<P: Copy + Ord>(&mut self, pattern: P, bracket: Bracket<P>, within: &mut Vec<P>) {
        let Bracket { low, high } = bracket;
        self.below += u64::from(pattern < low);
        self.at_low += u64::from(pattern == low);
        self.at_high += u64::from(pattern == high && low < high);
        if low < pattern && pattern < high {
            within.push(pattern);
        }
    }
}

fn one_by_one<P: Pattern<N>, const N: usize>(
    elements: &[[u8; N]],
    bracket: Bracket<P>,
    within: &mut Vec<P>,
) -> Counts {
    let mut counts = Counts::default();
    for &element in elements {
        counts.take(P::of(element), bracket, within);
    }
    counts
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! The same, many elements at a time. Magnitudes are positive as signed integers too, so signed comparisons do.

    use std::arch::x86_64::*;

    use super::{BLOCK, Bracket, Counts, Pattern, one_by_one};

    /// Bytes ahead of the elements that are asked for. The processor's own guesses end with a page of 4 KiB.
    const AHEAD: usize = 8192;

    /// Asks for the elements that come soon.
    #[inline(always)]
    fn prefetch<T>(chunk: &T) {
        let ahead = std::ptr::from_ref(chunk).cast::<i8>().wrapping_add(AHEAD);
        // SAFETY: reads nothing, so the address need not be valid; every x86-64 has the instruction.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead) }
    }

    /// The counts of `len` elements from how many are above or at the ends.
    fn counts<P: Ord>(
        bracket: &Bracket<P>,
        len: usize,
        above_low: u32,
        at_low: u32,
        at_high: u32,
    ) -> Counts {
        let [above_low, at_low, at_high] = [above_low, at_low, at_high].map(u64::from);
        Counts {
            below: len as u64 - above_low - at_low,
            at_low,
            at_high: if bracket.low < bracket.high {
                at_high
            } else {
                0
            },
        }
    }

    /// The scan of whole vectors, then of what is left. Each lane counts for itself, which a block does not overflow.
    macro_rules! avx512 {
        (
            $name:ident, $features:literal, $pattern:ty, $bytes:literal, $lanes:literal,
            $set:ident, $greater:ident, $within:ident, $equal:ident, $count:ident, $compress:ident, $sum:expr
        ) => {
            /// # Safety
            /// The processor has the features.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $name(
                elements: &[[u8; $bytes]],
                bracket: Bracket<$pattern>,
                within: &mut Vec<$pattern>,
            ) -> Counts {
                debug_assert!(elements.len() <= BLOCK);
                let low = $set(bracket.low as _);
                let high = $set(bracket.high as _);
                let magnitude = $set(<$pattern as Pattern<$bytes>>::MOST as _);
                let one = $set(1);
                let zero = _mm512_setzero_si512();
                let (mut above, mut at_low, mut at_high) = (zero, zero, zero);
                within.reserve(elements.len() + $lanes);
                let mut kept = within.len();
                let base = within.as_mut_ptr();
                let (chunks, rest) = elements.as_chunks::<$lanes>();
                for chunk in chunks {
                    prefetch(chunk);
                    // SAFETY: a chunk is one vector.
                    let v = unsafe { _mm512_loadu_si512(chunk.as_ptr().cast()) };
                    let v = _mm512_and_si512(v, magnitude);
                    let greater = $greater(v, low);
                    let inside = $within(greater, v, high);
                    above = $count(above, greater, above, one);
                    at_low = $count(at_low, $equal(v, low), at_low, one);
                    at_high = $count(at_high, $equal(v, high), at_high, one);
                    // SAFETY: no more have been kept than were read before, and beyond those there is room for a vector.
                    unsafe { _mm512_storeu_si512(base.add(kept).cast(), $compress(inside, v)) };
                    kept += inside.count_ones() as usize;
                }
                // SAFETY: so many have been written.
                unsafe { within.set_len(kept) };
                let [above, at_low, at_high] = [above, at_low, at_high].map($sum);
                let mut counts = counts(&bracket, $lanes * chunks.len(), above, at_low, at_high);
                counts.add(one_by_one(rest, bracket, within));
                counts
            }
        };
    }

    avx512!(
        halves_avx512,
        "avx512f,avx512bw,avx512vbmi2",
        u16,
        2,
        32,
        _mm512_set1_epi16,
        _mm512_cmpgt_epi16_mask,
        _mm512_mask_cmplt_epi16_mask,
        _mm512_cmpeq_epi16_mask,
        _mm512_mask_add_epi16,
        _mm512_maskz_compress_epi16,
        |v| {
            let even = _mm512_and_si512(v, _mm512_set1_epi32(0xffff));
            let both = _mm512_add_epi32(even, _mm512_srli_epi32::<16>(v));
            _mm512_reduce_add_epi32(both) as u32
        }
    );
    avx512!(
        words_avx512,
        "avx512f",
        u32,
        4,
        16,
        _mm512_set1_epi32,
        _mm512_cmpgt_epi32_mask,
        _mm512_mask_cmplt_epi32_mask,
        _mm512_cmpeq_epi32_mask,
        _mm512_mask_add_epi32,
        _mm512_maskz_compress_epi32,
        |v| _mm512_reduce_add_epi32(v) as u32
    );

    /// The same with AVX2, which cannot compress: elements within are few, so they are taken one by one.
    macro_rules! avx2 {
        (
            $name:ident, $pattern:ty, $bytes:literal, $lanes:literal,
            $set:ident, $greater:ident, $equal:ident, $less:ident, $bits:expr, $bits_each:literal
        ) => {
            /// # Safety
            /// The processor has the feature.
            #[target_feature(enable = "avx2")]
            pub(super) unsafe fn $name(
                elements: &[[u8; $bytes]],
                bracket: Bracket<$pattern>,
                within: &mut Vec<$pattern>,
            ) -> Counts {
                let low = $set(bracket.low as _);
                let high = $set(bracket.high as _);
                let magnitude = $set(<$pattern as Pattern<$bytes>>::MOST as _);
                let zero = _mm256_setzero_si256();
                let (mut above, mut at_low, mut at_high) = (zero, zero, zero);
                let bits = $bits;
                let (chunks, rest) = elements.as_chunks::<$lanes>();
                for chunk in chunks {
                    prefetch(chunk);
                    // SAFETY: a chunk is one vector.
                    let v = unsafe { _mm256_loadu_si256(chunk.as_ptr().cast()) };
                    let v = _mm256_and_si256(v, magnitude);
                    let greater = $greater(v, low);
                    // True is minus one.
                    above = $less(above, greater);
                    at_low = $less(at_low, $equal(v, low));
                    at_high = $less(at_high, $equal(v, high));
                    let mut inside = bits(_mm256_and_si256(greater, $greater(high, v)));
                    while inside != 0 {
                        let at = inside.trailing_zeros() / $bits_each;
                        within.push(<$pattern as Pattern<$bytes>>::of(chunk[at as usize]));
                        inside &= !(((1 << $bits_each) - 1) << ($bits_each * at));
                    }
                }
                let [above, at_low, at_high] = [above, at_low, at_high].map(|v| {
                    let mut lanes: [$pattern; $lanes] = [0; $lanes];
                    // SAFETY: the array is one vector.
                    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), v) };
                    lanes.into_iter().map(u32::from).sum()
                });
                let mut counts = counts(&bracket, $lanes * chunks.len(), above, at_low, at_high);
                counts.add(one_by_one(rest, bracket, within));
                counts
            }
        };
    }

    avx2!(
        halves_avx2,
        u16,
        2,
        16,
        _mm256_set1_epi16,
        _mm256_cmpgt_epi16,
        _mm256_cmpeq_epi16,
        _mm256_sub_epi16,
        |mask| _mm256_movemask_epi8(mask) as u32,
        2
    );
    avx2!(
        words_avx2,
        u32,
        4,
        8,
        _mm256_set1_epi32,
        _mm256_cmpgt_epi32,
        _mm256_cmpeq_epi32,
        _mm256_sub_epi32,
        |mask| _mm256_movemask_ps(_mm256_castsi256_ps(mask)) as u32,
        1
    );
}
