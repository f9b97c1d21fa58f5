//! Quantiles of samples.

/// The quantile at `level` (0 to 1) of values **sorted ascending**, linearly interpolated between the two neighbours of
/// position `(n - 1)·level`. A level outside 0 to 1 is clamped; no values, or a NaN level, give NaN.
#[must_use]
pub fn linear(sorted: &[f64], level: f64) -> f64 {
    if sorted.is_empty() || level.is_nan() {
        return f64::NAN;
    }
    let position = (sorted.len() - 1) as f64 * level.clamp(0.0, 1.0);
    let below = libm::floor(position);
    let index = below as usize;
    let low = sorted[index];
    match sorted.get(index + 1) {
        Some(high) if position > below => low + (high - low) * (position - below),
        _ => low,
    }
}

/// A sorted copy, in the total order of IEEE 754 (NaN last).
#[must_use]
pub fn sorted(values: &[f64]) -> Vec<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values
}

#[cfg(test)]
mod tests {
    use super::{linear, sorted};

    #[test]
    fn interpolates() {
        let values = sorted(&[4.0, 1.0, 2.0]);
        assert_eq!(linear(&values, 0.0), 1.0);
        assert_eq!(linear(&values, 0.25), 1.5);
        assert_eq!(linear(&values, 0.75), 3.0);
        assert_eq!(linear(&values, 1.0), 4.0);
        assert_eq!(linear(&values, 7.0), 4.0);
        assert_eq!(linear(&[3.0], 0.3), 3.0);
        assert!(linear(&[], 0.5).is_nan());
    }
}
