//! Quantiles of samples.

/// The quantile at `level` (0 to 1) of values **sorted ascending**, linearly interpolated between the two neighbours of
/// position `(n - 1)·level`. A level outside 0 to 1 is clamped; no values, or a NaN level, give NaN.
#[must_use]
pub fn linear(sorted: &[f64], level: f64) -> f64 {
    let Some((index, fraction)) = place(sorted.len(), level) else {
        return f64::NAN;
    };
    between(sorted[index], sorted.get(index + 1), fraction)
}

/// [`linear`] of values in any order, which it moves about: quicker than sorting where few quantiles are wanted.
#[must_use]
pub fn select(values: &mut [f64], level: f64) -> f64 {
    let Some((index, fraction)) = place(values.len(), level) else {
        return f64::NAN;
    };
    let (_, &mut low, above) = values.select_nth_unstable_by(index, f64::total_cmp);
    let high = above.iter().min_by(|a, b| a.total_cmp(b));
    between(low, high, fraction)
}

/// Index of the neighbour below position `(count - 1)·level`, and how far the position lies above it.
fn place(count: usize, level: f64) -> Option<(usize, f64)> {
    if count == 0 || level.is_nan() {
        return None;
    }
    let position = (count - 1) as f64 * level.clamp(0.0, 1.0);
    let below = libm::floor(position);
    Some((below as usize, position - below))
}

fn between(low: f64, high: Option<&f64>, fraction: f64) -> f64 {
    match high {
        Some(high) if fraction > 0.0 => low + (high - low) * fraction,
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
    use super::{linear, select, sorted};

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

    #[test]
    fn selection_agrees_with_sorting() {
        let mut generator = crate::rng::Pcg64::new(1);
        for count in [1, 2, 3, 10, 101] {
            // Few distinct values, so that there are ties.
            let mut values: Vec<f64> = (0..count).map(|_| f64::from(generator.below(40))).collect();
            let ordered = sorted(&values);
            for step in 0..=60 {
                let level = f64::from(step) / 60.0;
                assert_eq!(select(&mut values, level), linear(&ordered, level));
            }
        }
        assert!(select(&mut [], 0.5).is_nan() && select(&mut [1.0], f64::NAN).is_nan());
    }
}
