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
    ($bytes:literal, $of:expr) => {
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
                let mut words = [0; BLOCK];
                in_blocks(elements, most, within, |block, within| {
                    let words = &mut words[..block.len()];
                    for (word, &element) in words.iter_mut().zip(block) {
                        *word = <Self as Pattern<$bytes>>::of(element);
                    }
                    scan_words(level, words, bracket, within)
                })
            }
        }
    };
}

words!(4, u32::from_le_bytes);
// Elements are read as f32, as everywhere.
words!(8, |element| (f64::from_le_bytes(element) as f32).to_bits());

fn scan_words(level: Level, words: &[u32], bracket: Bracket<u32>, within: &mut Vec<u32>) -> Counts {
    match level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a device has a level only where the processor has it.
        Level::Avx512 => unsafe { x86::words_avx512(words, bracket, within) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx2 => unsafe { x86::words_avx2(words, bracket, within) },
        _ => {
            let mut counts = Counts::default();
            for &word in words {
                counts.take(word, bracket, within);
            }
            counts
        }
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

    use super::{Bracket, Counts, Pattern};

    /// Bytes ahead of the elements that are asked for.
    const AHEAD: usize = 4096;

    /// Turns counts of elements above or at the ends into those that are wanted.
    fn counts<P: Ord>(
        bracket: &Bracket<P>,
        len: usize,
        above_low: u64,
        at_low: u64,
        at_high: u64,
    ) -> Counts {
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

    /// # Safety
    /// The processor has the features.
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi2")]
    pub(super) unsafe fn halves_avx512(
        elements: &[[u8; 2]],
        bracket: Bracket<u16>,
        within: &mut Vec<u16>,
    ) -> Counts {
        const LANES: usize = 32;
        within.reserve(elements.len() + LANES);
        let low = _mm512_set1_epi16(bracket.low as i16);
        let high = _mm512_set1_epi16(bracket.high as i16);
        let sign = _mm512_set1_epi16(0x7fff);
        let (mut above, mut at_low, mut at_high, mut kept) = (0u64, 0u64, 0u64, within.len());
        let base = within.as_mut_ptr();
        for chunk in elements.chunks(LANES) {
            let lanes = u32::MAX >> (LANES - chunk.len());
            // SAFETY: the mask reads no more than the chunk; prefetching reads nothing. At most as many elements are kept as
            // were read, and for those and one vector more there is room.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(chunk.as_ptr().cast::<i8>().wrapping_add(AHEAD));
                let v = if chunk.len() == LANES {
                    _mm512_loadu_si512(chunk.as_ptr().cast())
                } else {
                    _mm512_maskz_loadu_epi16(lanes, chunk.as_ptr().cast())
                };
                let v = _mm512_and_si512(v, sign);
                let greater = _mm512_mask_cmpgt_epi16_mask(lanes, v, low);
                let inside = _mm512_mask_cmplt_epi16_mask(greater, v, high);
                above += u64::from(greater.count_ones());
                at_low += u64::from(_mm512_mask_cmpeq_epi16_mask(lanes, v, low).count_ones());
                at_high += u64::from(_mm512_mask_cmpeq_epi16_mask(lanes, v, high).count_ones());
                _mm512_storeu_si512(
                    base.add(kept).cast(),
                    _mm512_maskz_compress_epi16(inside, v),
                );
                kept += inside.count_ones() as usize;
            }
        }
        // SAFETY: so many have been written.
        unsafe { within.set_len(kept) };
        counts(&bracket, elements.len(), above, at_low, at_high)
    }

    /// # Safety
    /// The processor has the features.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn words_avx512(
        elements: &[u32],
        bracket: Bracket<u32>,
        within: &mut Vec<u32>,
    ) -> Counts {
        const LANES: usize = 16;
        within.reserve(elements.len() + LANES);
        let low = _mm512_set1_epi32(bracket.low as i32);
        let high = _mm512_set1_epi32(bracket.high as i32);
        let (mut above, mut at_low, mut at_high, mut kept) = (0u64, 0u64, 0u64, within.len());
        let base = within.as_mut_ptr();
        for chunk in elements.chunks(LANES) {
            let lanes = u16::MAX >> (LANES - chunk.len());
            // SAFETY: as above.
            unsafe {
                let v = _mm512_maskz_loadu_epi32(lanes, chunk.as_ptr().cast());
                let greater = _mm512_mask_cmpgt_epi32_mask(lanes, v, low);
                let inside = _mm512_mask_cmplt_epi32_mask(greater, v, high);
                above += u64::from(greater.count_ones());
                at_low += u64::from(_mm512_mask_cmpeq_epi32_mask(lanes, v, low).count_ones());
                at_high += u64::from(_mm512_mask_cmpeq_epi32_mask(lanes, v, high).count_ones());
                _mm512_storeu_si512(
                    base.add(kept).cast(),
                    _mm512_maskz_compress_epi32(inside, v),
                );
                kept += inside.count_ones() as usize;
            }
        }
        // SAFETY: so many have been written.
        unsafe { within.set_len(kept) };
        counts(&bracket, elements.len(), above, at_low, at_high)
    }

    /// # Safety
    /// The processor has the feature.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn halves_avx2(
        elements: &[[u8; 2]],
        bracket: Bracket<u16>,
        within: &mut Vec<u16>,
    ) -> Counts {
        let low = _mm256_set1_epi16(bracket.low as i16);
        let high = _mm256_set1_epi16(bracket.high as i16);
        let sign = _mm256_set1_epi16(0x7fff);
        let (mut above, mut at_low, mut at_high) = (0u32, 0u32, 0u32);
        let (chunks, rest) = elements.as_chunks::<16>();
        for chunk in chunks {
            // SAFETY: a chunk is thirty-two bytes; prefetching reads nothing.
            let v = unsafe {
                _mm_prefetch::<_MM_HINT_T0>(chunk.as_ptr().cast::<i8>().wrapping_add(AHEAD));
                _mm256_and_si256(_mm256_loadu_si256(chunk.as_ptr().cast()), sign)
            };
            // Two bits for each element.
            let bits = |mask| _mm256_movemask_epi8(mask) as u32;
            let greater = _mm256_cmpgt_epi16(v, low);
            above += bits(greater).count_ones() / 2;
            at_low += bits(_mm256_cmpeq_epi16(v, low)).count_ones() / 2;
            at_high += bits(_mm256_cmpeq_epi16(v, high)).count_ones() / 2;
            let mut inside = bits(_mm256_and_si256(greater, _mm256_cmpgt_epi16(high, v)));
            while inside != 0 {
                let at = inside.trailing_zeros() as usize / 2;
                within.push(u16::of(chunk[at]));
                inside &= !(3 << (2 * at));
            }
        }
        let [above, at_low, at_high] = [above, at_low, at_high].map(u64::from);
        let mut counts = counts(&bracket, 16 * chunks.len(), above, at_low, at_high);
        for &element in rest {
            counts.take(u16::of(element), bracket, within);
        }
        counts
    }

    /// # Safety
    /// The processor has the feature.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn words_avx2(
        elements: &[u32],
        bracket: Bracket<u32>,
        within: &mut Vec<u32>,
    ) -> Counts {
        let low = _mm256_set1_epi32(bracket.low as i32);
        let high = _mm256_set1_epi32(bracket.high as i32);
        let (mut above, mut at_low, mut at_high) = (0u32, 0u32, 0u32);
        let (chunks, rest) = elements.as_chunks::<8>();
        for chunk in chunks {
            // SAFETY: a chunk is thirty-two bytes.
            let v = unsafe { _mm256_loadu_si256(chunk.as_ptr().cast()) };
            let bits = |mask| _mm256_movemask_ps(_mm256_castsi256_ps(mask)) as u32;
            let greater = _mm256_cmpgt_epi32(v, low);
            above += bits(greater).count_ones();
            at_low += bits(_mm256_cmpeq_epi32(v, low)).count_ones();
            at_high += bits(_mm256_cmpeq_epi32(v, high)).count_ones();
            let mut inside = bits(_mm256_and_si256(greater, _mm256_cmpgt_epi32(high, v)));
            while inside != 0 {
                within.push(chunk[inside.trailing_zeros() as usize]);
                inside &= inside - 1;
            }
        }
        let [above, at_low, at_high] = [above, at_low, at_high].map(u64::from);
        let mut counts = counts(&bracket, 8 * chunks.len(), above, at_low, at_high);
        for &word in rest {
            counts.take(word, bracket, within);
        }
        counts
    }
}
