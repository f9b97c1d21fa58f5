//! Token-weighted means, perplexity and the closed-form interval of a mean difference.

use crate::bootstrap::Interval;
use crate::normal;

/// The sum in NumPy's order: eight running sums over up to 128 values, halves of more. Where a bootstrap compares sums
/// of the same few values with each other, the order decides which of them are equal.
#[must_use]
pub fn sum(values: &[f64]) -> f64 {
    let count = values.len();
    if count < 8 {
        return values.iter().fold(0.0, |sum, v| sum + v);
    }
    if count > 128 {
        let half = count / 2 - count / 2 % 8;
        return sum(&values[..half]) + sum(&values[half..]);
    }
    let mut running = [0.0; 8];
    let mut blocks = values.chunks_exact(8);
    for block in &mut blocks {
        for (sum, value) in running.iter_mut().zip(block) {
            *sum += value;
        }
    }
    let [a, b, c, d, e, f, g, h] = running;
    let whole = ((a + b) + (c + d)) + ((e + f) + (g + h));
    blocks.remainder().iter().fold(whole, |sum, v| sum + v)
}

/// The exponential, from the same code on every target (the standard library's may differ between systems).
#[must_use]
pub fn exp(value: f64) -> f64 {
    libm::exp(value)
}

/// The natural logarithm, from the same code on every target.
#[must_use]
pub fn ln(value: f64) -> f64 {
    libm::log(value)
}

/// The plain mean; NaN of nothing.
#[must_use]
pub fn mean(values: &[f64]) -> f64 {
    sum(values) / values.len() as f64
}

/// The standard deviation with `n - 1` degrees of freedom; NaN of fewer than two values.
#[must_use]
pub fn sample_std(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return f64::NAN;
    }
    let centre = mean(values);
    let squares: f64 = values.iter().map(|v| (v - centre) * (v - centre)).sum();
    libm::sqrt(squares / (values.len() - 1) as f64)
}

/// The standard deviation with `n` degrees of freedom, of values that are the whole population; NaN of nothing.
#[must_use]
pub fn population_std(values: &[f64]) -> f64 {
    let centre = mean(values);
    let squares: Vec<f64> = values.iter().map(|v| (v - centre) * (v - centre)).collect();
    libm::sqrt(mean(&squares))
}

/// `Σ w·v / Σ w` over the entries with a finite value and a positive weight, in order. NaN when the lengths differ or no
/// entry is left.
#[must_use]
pub fn weighted_mean(values: &[f64], weights: &[f64]) -> f64 {
    if values.len() != weights.len() {
        return f64::NAN;
    }
    let (mut sum, mut total) = (0.0, 0.0);
    for (&value, &weight) in values.iter().zip(weights) {
        if value.is_finite() && weight > 0.0 {
            sum += value * weight;
            total += weight;
        }
    }
    if total > 0.0 { sum / total } else { f64::NAN }
}

/// Perplexity of per-window mean losses (natural logarithm) weighted by token counts: the exponential of
/// [`weighted_mean`]; infinite on overflow.
#[must_use]
pub fn perplexity(losses: &[f64], token_counts: &[f64]) -> f64 {
    exp(weighted_mean(losses, token_counts))
}

/// Interval of a token-weighted mean difference by the delta method:
/// `θ ± z·√(n/(n-1)·Σ(w(δ-θ))²) / Σw` with `θ = Σwδ/Σw` and `z` the normal quantile at `1 - alpha/2`.
///
/// As good as the bootstrap in coverage, without random numbers. One value gives a point. `None` when the lengths
/// differ, there is nothing, a value is not finite, or a weight is not positive.
#[must_use]
pub fn closed_form_interval(deltas: &[f64], weights: &[f64], alpha: f64) -> Option<Interval> {
    let usable = deltas.len() == weights.len()
        && !deltas.is_empty()
        && deltas.iter().all(|d| d.is_finite())
        && weights.iter().all(|w| w.is_finite() && *w > 0.0);
    if !usable {
        return None;
    }
    let centre = weighted_mean(deltas, weights);
    let count = deltas.len() as f64;
    if deltas.len() == 1 {
        return Some(Interval {
            low: centre,
            high: centre,
        });
    }
    let total: f64 = weights.iter().sum();
    let squares: f64 = deltas
        .iter()
        .zip(weights)
        .map(|(d, w)| {
            let deviation = w * (d - centre);
            deviation * deviation
        })
        .sum();
    let half =
        normal::quantile(1.0 - alpha / 2.0) * libm::sqrt(count / (count - 1.0) * squares) / total;
    Some(Interval {
        low: centre - half,
        high: centre + half,
    })
}

/// The value rounded to so many decimals, the decimal expansion being exact and ties going to even: what Python's
/// `round(value, decimals)` gives.
#[must_use]
pub fn round_decimals(value: f64, decimals: usize) -> f64 {
    format!("{value:.decimals$}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_form_by_hand() {
        // θ = (1·0.1 + 3·0.3)/4 = 0.25; deviations w(δ-θ): -0.15, 0.15; Σ² = 0.045; √(2·0.045) = 0.3; /4 = 0.075.
        let got = closed_form_interval(&[0.1, 0.3], &[1.0, 3.0], 0.05);
        let half = 0.075 * 1.959_963_984_540_054;
        let got = got.map(|i| (i.low, i.high)).unwrap_or_default();
        assert!((got.0 - (0.25 - half)).abs() < 1e-15);
        assert!((got.1 - (0.25 + half)).abs() < 1e-15);
        assert!(closed_form_interval(&[0.1], &[0.0], 0.05).is_none());
        assert!(closed_form_interval(&[f64::NAN], &[1.0], 0.05).is_none());
    }

    #[test]
    fn decimals_as_python() {
        assert_eq!(round_decimals(0.12345, 4), 0.1235); // exactly 0.123450000000000004174438572…
        assert_eq!(round_decimals(2.675, 2), 2.67);
        assert_eq!(round_decimals(0.5, 0), 0.0);
        assert!(round_decimals(f64::NAN, 3).is_nan());
    }

    #[test]
    fn spread() {
        assert_eq!(sample_std(&[1.0, 3.0]), std::f64::consts::SQRT_2);
        assert!(sample_std(&[1.0]).is_nan() && mean(&[]).is_nan());
        assert_eq!(population_std(&[1.0, 3.0]), 1.0);
        assert_eq!(population_std(&[5.0]), 0.0);
        assert!(population_std(&[]).is_nan());
    }
}
