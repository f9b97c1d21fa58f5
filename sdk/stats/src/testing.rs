//! P-values and the control of many tests at once.

/// Two-sided p-value of a standard normal score: `erfc(|z| / √2)`.
#[must_use]
pub fn two_sided(z: f64) -> f64 {
    libm::erfc(z.abs() * std::f64::consts::FRAC_1_SQRT_2)
}

/// How the level is shared among tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Correction {
    /// Benjamini and Hochberg's step-up rule: the expected share of false rejections is at most alpha.
    BenjaminiHochberg,
    /// Each test at `alpha / m`: the chance of any false rejection is at most alpha.
    Bonferroni,
}

/// The largest p-value that is rejected at level `alpha`, by the rule over `m` tests or as many as there are p-values if
/// those are more; none when nothing is. Everything at or below it is rejected. NaN is never rejected.
#[must_use]
pub fn threshold(correction: Correction, p_values: &[f64], alpha: f64, m: usize) -> Option<f64> {
    let tests = m.max(p_values.len()).max(1) as f64;
    let mut sorted: Vec<f64> = p_values.iter().copied().filter(|p| !p.is_nan()).collect();
    sorted.sort_by(f64::total_cmp);
    let limit = |rank: usize| match correction {
        Correction::BenjaminiHochberg => alpha * rank as f64 / tests,
        Correction::Bonferroni => alpha / tests,
    };
    let rejected = (1..=sorted.len())
        .rev()
        .find(|&rank| sorted[rank - 1] <= limit(rank))?;
    Some(limit(rejected))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p_values_by_hand() {
        assert_eq!(two_sided(0.0), 1.0);
        // Abramowitz and Stegun, table 26.2.
        assert!((two_sided(1.959_963_984_540_054) - 0.05).abs() < 1e-16);
        assert_eq!(two_sided(-2.5), two_sided(2.5));
        assert!(two_sided(f64::NAN).is_nan());
    }

    #[test]
    fn step_up_rejects_more_than_bonferroni() {
        let p = [0.001, 0.02, 0.04, 0.5];
        let step_up = threshold(Correction::BenjaminiHochberg, &p, 0.05, 4);
        assert_eq!(step_up, Some(0.05 * 2.0 / 4.0));
        assert_eq!(
            threshold(Correction::Bonferroni, &p, 0.05, 4),
            Some(0.05 / 4.0)
        );
    }

    #[test]
    fn a_later_rank_carries_earlier_ones_over_their_own_limits() {
        // 0.03 is above 0.05·1/3 and 0.031 below 0.05·2/3: both are rejected.
        let p = [0.03, 0.031, 0.9];
        let limit = threshold(Correction::BenjaminiHochberg, &p, 0.05, 0);
        assert!(limit.is_some_and(|limit| limit >= 0.031));
    }

    #[test]
    fn nothing_to_reject() {
        assert_eq!(threshold(Correction::Bonferroni, &[], 0.05, 4), None);
        assert_eq!(
            threshold(Correction::BenjaminiHochberg, &[0.9, f64::NAN], 0.05, 1),
            None
        );
    }
}
