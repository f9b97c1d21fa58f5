//! The k-th smallest magnitude, exactly.
//!
//! Without the sign bit, floats of one format order like their bits, NaN last. A sample brackets the one that is sought; one
//! pass then counts what lies below the bracket and keeps the few elements within. Where the sample misled, or nearly all
//! elements lie within, the bit patterns are counted instead: upper half first, then lower half. Both ways are exact, so
//! the answer depends neither on the sample nor on the number of threads.

use rayon::prelude::*;

use crate::{
    DType, Error, Result, Tensor, cast,
    cpu::{Cpu, Level},
};

mod scan;

use scan::{Bracket, Counts, Pattern};

/// Tensors up to this many elements are sorted out without a sample.
const SMALL: usize = 1 << 15;
/// The sample: so many runs of neighbours, each about a cache line, so that it costs little to read.
const RUNS: usize = 2048;
/// Elements of a run.
const RUN: usize = 32;
/// Share of the sample between its guess and each end of the bracket: more than five standard deviations.
const MARGIN: usize = 96;
/// Elements per piece of parallel work.
const PIECE: usize = 1 << 18;
/// Elements within the bracket are at most this share of a piece, else the sample has misled.
const MOST_WITHIN: usize = 8;
/// The k-th smallest absolute value (k counts from 1). NaN sorts last and comes back as the canonical NaN.
///
/// # Errors
/// When `k` is not in `1..=len` or the dtype is not a float.
pub fn kth_magnitude(device: &Cpu, tensor: &Tensor, k: u64) -> Result<f32> {
    let op = "kth-magnitude";
    let (dtype, len) = (tensor.dtype(), tensor.len());
    if k == 0 || k > len as u64 {
        return Err(Error::Argument {
            op,
            message: format!("k is {k}, it must be from 1 to the element count, {len}"),
        });
    }
    let bytes = tensor.bytes();
    let level = device.level();
    device.install(|| match dtype {
        DType::F8E4M3 | DType::F8E5M2 => {
            let pattern = |&[byte]: &[u8; 1]| Some(usize::from(byte & 0x7f));
            let counts = count(bytes.as_chunks::<1>().0, 128, pattern);
            Ok(one(dtype, &[rank(&counts, k).0 as u8]))
        }
        DType::BF16 | DType::F16 => {
            let pattern: u16 = select(level, bytes.as_chunks::<2>().0, k);
            Ok(one(dtype, &pattern.to_le_bytes()))
        }
        DType::F32 => {
            let pattern: u32 = select(level, bytes.as_chunks::<4>().0, k);
            Ok(one(dtype, &pattern.to_le_bytes()))
        }
        // Elements are read as f32, as everywhere.
        DType::F64 => {
            let pattern: u32 = select(level, bytes.as_chunks::<8>().0, k);
            Ok(one(DType::F32, &pattern.to_le_bytes()))
        }
        _ => Err(Error::DType { op, dtype }),
    })
}

/// One element as f32.
fn one(dtype: DType, bytes: &[u8]) -> f32 {
    let mut value = [0.0];
    cast::decode(dtype, bytes, &mut value);
    cast::canonical(value[0])
}

/// The pattern of rank `k`.
fn select<P: Pattern<N>, const N: usize>(level: Level, elements: &[[u8; N]], k: u64) -> P {
    if elements.len() <= SMALL {
        let mut all: Vec<P> = elements.iter().map(|&element| P::of(element)).collect();
        // The caller has checked that `k` is from 1 to the length.
        return *all.select_nth_unstable(k as usize - 1).1;
    }
    let bracket = Bracket::<P>::from_sample(elements, k);
    within(level, elements, bracket, k).unwrap_or_else(|| by_counting(elements, k))
}

impl<P: Copy> Bracket<P> {
    /// Where a sample, the same for every call, expects the element of rank `k`.
    fn from_sample<const N: usize>(elements: &[[u8; N]], k: u64) -> Self
    where
        P: Pattern<N>,
    {
        let stride = elements.len() / RUNS;
        let runs = (0..RUNS).map(|run| {
            // A run anywhere in its stretch, so that no column of a matrix is favoured: the step of SplitMix64, which
            // spreads well enough.
            let scattered = (run as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
            let start = run * stride + scattered as usize % stride;
            &elements[start..(start + RUN).min(elements.len())]
        });
        let sample: Vec<P> = runs.flatten().map(|&element| P::of(element)).collect();
        let mut counts = vec![0u32; P::UPPER];
        sample.iter().for_each(|p| counts[p.upper()] += 1);
        // The sample's pattern of rank `rank` (from 1): by its upper half, then among those that share it.
        let of_rank = |rank: usize| {
            let (upper, rank) = self::rank(&counts, rank as u64);
            let same = sample.iter().copied().filter(|p| p.upper() == upper);
            let mut same: Vec<P> = same.collect();
            *same.select_nth_unstable(rank as usize - 1).1
        };
        let guess = (sample.len() as f64 * (k as f64 / elements.len() as f64)) as usize;
        let margin = sample.len() / MARGIN;
        let (low, high) = (guess.saturating_sub(margin), guess + margin);
        Self {
            low: if low == 0 { P::LEAST } else { of_rank(low) },
            high: if high > sample.len() {
                P::MOST
            } else {
                of_rank(high)
            },
        }
    }
}

/// The pattern of rank `k`, if it lies in the bracket and few others do.
fn within<P: Pattern<N>, const N: usize>(
    level: Level,
    elements: &[[u8; N]],
    bracket: Bracket<P>,
    k: u64,
) -> Option<P> {
    let pieces = elements.par_chunks(PIECE).map(|piece| {
        let most = piece.len() / MOST_WITHIN + scan::BLOCK;
        let mut within = Vec::new();
        let counts = P::scan(level, piece, bracket, most, &mut within)?;
        Some((counts, within))
    });
    let pieces: Vec<(Counts, Vec<P>)> = pieces.collect::<Option<_>>()?;
    let total = |of: fn(&Counts) -> u64| pieces.iter().map(|(counts, _)| of(counts)).sum::<u64>();
    let mut k = k.checked_sub(total(|counts| counts.below))?;
    if k == 0 {
        return None;
    }
    let at_low = total(|counts| counts.at_low);
    if k <= at_low {
        return Some(bracket.low);
    }
    k -= at_low;
    let inside: u64 = pieces.iter().map(|(_, within)| within.len() as u64).sum();
    if k > inside {
        let at_high = total(|counts| counts.at_high);
        return (k - inside <= at_high).then_some(bracket.high);
    }
    // The smallest pattern that at least `k` do not exceed.
    let at_most = |limit: P| -> u64 {
        let counts = pieces.par_iter();
        counts.map(|(_, within)| P::at_most(within, limit)).sum()
    };
    let (mut least, mut most) = (bracket.low.into(), bracket.high.into());
    while least < most {
        let middle = least + (most - least) / 2;
        if at_most(P::from_bits(middle)) >= k {
            most = middle;
        } else {
            least = middle + 1;
        }
    }
    Some(P::from_bits(least))
}

/// The pattern of rank `k`, by counting the upper halves of all patterns, then the lower halves that go with the right one.
fn by_counting<P: Pattern<N>, const N: usize>(elements: &[[u8; N]], k: u64) -> P {
    let uppers = count(elements, P::UPPER, |&element| Some(P::of(element).upper()));
    let (upper, k) = rank(&uppers, k);
    if P::LOWER == 1 {
        return P::from_bits(upper as u32);
    }
    let lowers = count(elements, P::LOWER, |&element| {
        let pattern = P::of(element);
        (pattern.upper() == upper).then(|| pattern.lower())
    });
    P::from_bits((upper * P::LOWER + rank(&lowers, k).0) as u32)
}

/// The index of rank `k` (from 1), and the rank within that index.
fn rank<C: Copy + Into<u64>>(counts: &[C], mut k: u64) -> (usize, u64) {
    for (pattern, &count) in counts.iter().enumerate() {
        let count = count.into();
        if k <= count {
            return (pattern, k);
        }
        k -= count;
    }
    // The caller has checked that `k` is at most the sum of all counts.
    unreachable!("rank beyond the number of elements")
}

/// How often each index below `indices` (a power of two) occurs; elements without one are left out. Two tables take
/// turns, so that equal neighbours need not wait for each other's store.
fn count<T: Sync>(
    elements: &[T],
    indices: usize,
    index: impl Fn(&T) -> Option<usize> + Sync + Send,
) -> Vec<u64> {
    // At least 2^20 elements per piece, because every piece clears and adds up its counters, and fewer than 2^32, the
    // limit of a counter.
    let piece = elements
        .len()
        .div_ceil(4 * rayon::current_num_threads())
        .clamp(1 << 20, 1 << 30);
    let pieces = elements.par_chunks(piece).map(|piece| {
        let (mut even, mut odd) = (vec![0u32; indices], vec![0u32; indices]);
        let (pairs, rest) = piece.as_chunks::<2>();
        for [a, b] in pairs {
            if let Some(at) = index(a) {
                even[at & (indices - 1)] += 1;
            }
            if let Some(at) = index(b) {
                odd[at & (indices - 1)] += 1;
            }
        }
        for at in rest.iter().filter_map(&index) {
            even[at & (indices - 1)] += 1;
        }
        let both = even.into_iter().zip(odd);
        both.map(|(a, b)| u64::from(a) + u64::from(b)).collect()
    });
    // Whole numbers: the order of summation does not matter.
    pieces.reduce(
        || vec![0; indices],
        |mut sum: Vec<u64>, other| {
            sum.iter_mut().zip(other).for_each(|(a, b)| *a += b);
            sum
        },
    )
}

#[cfg(test)]
mod tests;
