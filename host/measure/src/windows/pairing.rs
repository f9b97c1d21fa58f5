//! Whether two evaluations may be compared window by window.

use std::collections::HashSet;

/// Nominal overlap of windows of `seq_len` tokens that start `stride` tokens apart, 0 to 1.
#[must_use]
pub fn overlap_fraction(seq_len: usize, stride: usize) -> f64 {
    if seq_len == 0 {
        return 0.0;
    }
    ((seq_len as f64 - stride as f64) / seq_len as f64).clamp(0.0, 1.0)
}

/// How well two evaluations' windows match.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pairing {
    /// Nominal overlap of neighbouring windows.
    pub overlap_fraction: f64,
    /// Share of windows that repeat another's tokens.
    pub duplicate_fraction: f64,
    /// Share of expected windows that were found on both sides.
    pub match_fraction: f64,
    /// Why the windows must not be compared; none when they may.
    pub reason: Option<&'static str>,
}

impl Pairing {
    /// Judge windows drawn with `seq_len` and `stride`; `matched` of `expected` windows were found on both sides.
    #[must_use]
    pub fn new(
        seq_len: usize,
        stride: usize,
        windows: &[&[u32]],
        matched: usize,
        expected: usize,
    ) -> Self {
        let distinct: HashSet<&[u32]> = windows.iter().copied().collect();
        let overlap_fraction = overlap_fraction(seq_len, stride);
        let duplicates = windows.len() - distinct.len();
        let duplicate_fraction = duplicates as f64 / windows.len().max(1) as f64;
        let match_fraction = matched as f64 / expected.max(1) as f64;
        let reason = if match_fraction < 0.999_999 {
            Some("unmatched_windows")
        } else if overlap_fraction > 1e-9 {
            Some("overlapping_windows")
        } else if duplicate_fraction > 0.0 {
            Some("duplicate_windows")
        } else {
            None
        };
        Self {
            overlap_fraction,
            duplicate_fraction,
            match_fraction,
            reason,
        }
    }
}
