//! Drift between two arms of texts on one unedited model, and the band that calibration runs allow it.

use crate::summary::{mean, round_decimals, sample_std};

/// What repeated runs of the unedited model say about drift (final over preview perplexity). All figures are rounded to
/// four decimals, as in the reference's presets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// Mean ratio.
    pub mean: f64,
    /// Standard deviation with `n - 1` degrees of freedom; 0 of a single run.
    pub std: f64,
    /// Smallest ratio.
    pub min: f64,
    /// Largest ratio.
    pub max: f64,
    /// Suggested band: three standard deviations around the mean; of a single run, 0.01 around it.
    pub band: (f64, f64),
    /// Whether the mean lies within 0.95 to 1.05, the band without calibration.
    pub compatible: bool,
}

impl Summary {
    /// Whether the band may replace another: `0 < low < high`.
    #[must_use]
    pub fn usable(&self) -> bool {
        0.0 < self.band.0 && self.band.0 < self.band.1
    }
}

/// Summarise the ratios of calibration runs. None when there is no run or a ratio is not finite.
#[must_use]
pub fn summarize(ratios: &[f64]) -> Option<Summary> {
    if ratios.is_empty() || ratios.iter().any(|ratio| !ratio.is_finite()) {
        return None;
    }
    let centre = mean(ratios);
    let (std, low, high) = match ratios {
        [ratio] => (0.0, (ratio - 0.01).max(1e-6), ratio + 0.01),
        _ => {
            let std = sample_std(ratios);
            (std, centre - 3.0 * std, centre + 3.0 * std)
        }
    };
    let rounded = |value| round_decimals(value, 4);
    let band = match ratios {
        [_] => (low, high),
        _ => (rounded(low), rounded(high)),
    };
    Some(Summary {
        mean: rounded(centre),
        std: rounded(std),
        min: rounded(ratios.iter().copied().fold(f64::INFINITY, f64::min)),
        max: rounded(ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
        band,
        compatible: (0.95..=1.05).contains(&centre),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::summarize;

    #[test]
    fn single_and_unusable_runs() {
        let one = summarize(&[1.0]).unwrap();
        assert_eq!(one.band, (0.99, 1.01));
        assert!(one.usable());
        assert!(summarize(&[0.005]).unwrap().band.0 == 1e-6);
        assert!(summarize(&[]).is_none());
        assert!(summarize(&[1.0, f64::INFINITY]).is_none());
        assert!(!summarize(&[1.0, 1.0]).unwrap().usable());
    }
}
