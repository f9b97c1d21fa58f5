//! Empirical nulls: how far a statistic strays at each of many places when nothing is wrong, from very few runs.
//!
//! A handful of calibration runs (five, say) stand against hundreds of places (modules, tensors). Two obvious ways fail:
//! - *Ranks.* The smallest p-value that a rank among `n` runs can give is `1/(n+1)`. Benjamini and Hochberg's rule needs
//!   `q/m` for a single true finding among `m` places: with `n = 5`, `m = 100` and `q = 0.05` that is 0.0005 against
//!   0.17, so nothing could ever be found. Pooling the ranks of all places (`1/(nm+1)`) would do, but only if all places
//!   strayed alike, and an embedding and a narrow projection do not.
//! - *A variance per place.* Four degrees of freedom make a variance off by a factor of three commonplace; among hundreds
//!   of places some spread comes out far too small, and that place cries wolf.
//!
//! So variances are *moderated*. A place keeps a centre of its own (the mean of its runs). Its variance `s²` with
//! `d = n - 1` degrees of freedom is taken as a draw around a true variance that itself is drawn from a scaled inverse
//! chi-square distribution with `d₀` degrees of freedom and scale `s₀²`; both are fitted to all places by the moments of
//! `ln s²`. The posterior variance `(d₀s₀² + ds²)/(d₀ + d)` gives a statistic that is exactly Student-distributed with
//! `d₀ + d` degrees of freedom under that model (Smyth 2004, Statistical Applications in Genetics and Molecular Biology
//! 3(1)). Where places differ wildly the variances scatter more, `d₀` comes out small and the tails get heavier by
//! themselves. The degrees of freedom are never counted higher than those of all residuals together, nor higher than 8,
//! against tails that are heavier than the model's. The tests below measure what rate of false alarms comes of it.
//!
//! A future draw at a place differs from its centre by the draw's own variance and the centre's: `s²(1 + 1/n)`.

use crate::student::{digamma, trigamma, trigamma_inverse, upper_tail};
use crate::summary::{mean, sample_std};

/// Which way a statistic strays when something is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Either way: a logarithm of a ratio.
    Both,
    /// Up only: a size of a change.
    Upper,
}

/// What is normal at one place.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Place {
    /// Mean over the calibration runs.
    pub centre: f64,
    /// Standard deviation of a future draw around the centre, the centre's own error included.
    pub spread: f64,
}

impl Place {
    /// How many spreads `value` lies from the centre.
    #[must_use]
    pub fn score(&self, value: f64) -> f64 {
        (value - self.centre) / self.spread
    }

    /// The chance of a value as far out as this one, when nothing is wrong. NaN of NaN.
    #[must_use]
    pub fn p_value(&self, value: f64, degrees: f64, side: Side) -> f64 {
        let score = self.score(value);
        match side {
            Side::Upper => upper_tail(score, degrees),
            Side::Both => 2.0 * upper_tail(score.abs(), degrees),
        }
    }
}

/// One statistic's null at every place.
#[derive(Debug, Clone, PartialEq)]
pub struct Null {
    /// In the order of the samples.
    pub places: Vec<Place>,
    /// Degrees of freedom of every place's score; at most 8.
    pub degrees: f64,
}

/// Fits the null to `samples`: for every place its values in the calibration runs. Spreads under `resolution`, what the
/// statistic can be measured to, are raised to it.
///
/// None when there is no place, a place has fewer than two values, places have unequally many, a value is not finite or
/// the resolution is not positive.
#[must_use]
pub fn fit(samples: &[Vec<f64>], resolution: f64) -> Option<Null> {
    let runs = samples.first()?.len();
    let usable = runs >= 2
        && resolution > 0.0
        && samples
            .iter()
            .all(|values| values.len() == runs && values.iter().all(|value| value.is_finite()));
    if !usable {
        return None;
    }
    let own = (runs - 1) as f64;
    let least = resolution * resolution;
    let variances: Vec<f64> = samples
        .iter()
        .map(|values| {
            let std = sample_std(values);
            (std * std).max(least)
        })
        .collect();
    let (prior, scale) = prior(&variances, own);
    let future = libm::sqrt(1.0 + 1.0 / runs as f64);
    let places: Vec<Place> = samples
        .iter()
        .zip(&variances)
        .map(|(values, variance)| {
            let moderated = if prior.is_infinite() {
                scale
            } else {
                (prior * scale + own * variance) / (prior + own)
            };
            Place {
                centre: mean(values),
                spread: libm::sqrt(moderated.max(least)) * future,
            }
        })
        .collect();
    let pooled = own * samples.len() as f64;
    Some(Null {
        places,
        degrees: (prior + own).min(pooled).min(MOST_DEGREES),
    })
}

/// Most degrees of freedom that a score is given, however many residuals there are. Real residuals have heavier tails than
/// the normal distribution's, by an amount that a few runs cannot tell. With 8 degrees the limit at `q/m = 0.0005` is 5.6
/// spreads instead of 3.5: cheap, as real changes are many spreads large.
const MOST_DEGREES: f64 = 8.0;

/// Fewest places whose variances say anything about how variances scatter.
const FEWEST_PLACES: usize = 3;

/// Degrees of freedom and scale of the distribution that the true variances come from, by the first two moments of the
/// logarithms of the `variances`, each of `own` degrees of freedom. No degrees when there are too few places; infinitely
/// many when the variances scatter no more than chance does.
fn prior(variances: &[f64], own: f64) -> (f64, f64) {
    if variances.len() < FEWEST_PLACES {
        return (0.0, 0.0);
    }
    let half = own / 2.0;
    let logs: Vec<f64> = variances
        .iter()
        .map(|variance| libm::log(*variance) - digamma(half) + libm::log(half))
        .collect();
    let centre = mean(&logs);
    let scatter = sample_std(&logs);
    let beyond_chance = scatter * scatter - trigamma(half);
    if beyond_chance > 0.0 {
        let degrees = 2.0 * trigamma_inverse(beyond_chance);
        let half = degrees / 2.0;
        (degrees, libm::exp(centre + digamma(half) - libm::log(half)))
    } else {
        // One variance for all: the pooled one, which chance does not bias.
        (f64::INFINITY, mean(variances))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::normal;
    use crate::rng::Pcg64;
    use crate::testing::{Correction, threshold};

    fn gauss(rng: &mut Pcg64) -> f64 {
        normal::quantile(rng.uniform().max(1e-300))
    }

    /// A chi-square draw over its degrees of freedom.
    fn chi_square(rng: &mut Pcg64, degrees: usize) -> f64 {
        let sum: f64 = (0..degrees).map(|_| gauss(rng).powi(2)).sum();
        sum / degrees as f64
    }

    /// Share of simulated suites with any rejection at q = 0.05 when nothing is wrong, and mean share of true changes of
    /// `effect` spreads that are found when five places change.
    fn suites(
        count: u64,
        places: usize,
        runs: usize,
        effect: f64,
        mut draw: impl FnMut(&mut Pcg64, f64) -> f64,
        mut spread: impl FnMut(&mut Pcg64) -> f64,
    ) -> (f64, f64, f64) {
        let (mut alarms, mut found, mut false_share) = (0.0, 0.0, 0.0);
        for seed in 0..count {
            let mut rng = Pcg64::new(seed);
            let truth: Vec<(f64, f64)> = (0..places)
                .map(|_| (3.0 * gauss(&mut rng), spread(&mut rng)))
                .collect();
            let samples: Vec<Vec<f64>> = truth
                .iter()
                .map(|(m, s)| (0..runs).map(|_| m + draw(&mut rng, *s)).collect())
                .collect();
            let null = fit(&samples, 1e-12).unwrap();
            let new: Vec<f64> = truth.iter().map(|(m, s)| m + draw(&mut rng, *s)).collect();
            let p = |new: &[f64]| -> Vec<f64> {
                let places = null.places.iter().zip(new);
                places
                    .map(|(place, value)| place.p_value(*value, null.degrees, Side::Both))
                    .collect()
            };
            let rejected = |p: &[f64]| -> Vec<bool> {
                let limit = threshold(Correction::BenjaminiHochberg, p, 0.05, 0).unwrap_or(-1.0);
                p.iter().map(|p| *p <= limit).collect()
            };
            alarms += f64::from(u8::from(rejected(&p(&new)).contains(&true)));
            let moved: Vec<f64> = new
                .iter()
                .zip(&truth)
                .enumerate()
                .map(|(index, (value, (_, s)))| {
                    if index < 5 {
                        value + effect * s
                    } else {
                        *value
                    }
                })
                .collect();
            let rejected = rejected(&p(&moved));
            let hits = rejected[..5].iter().filter(|hit| **hit).count() as f64;
            let misses = rejected[5..].iter().filter(|hit| **hit).count() as f64;
            found += hits / 5.0;
            false_share += misses / (hits + misses).max(1.0);
        }
        let count = count as f64;
        (alarms / count, found / count, false_share / count)
    }

    #[test]
    fn false_discoveries_stay_at_the_nominal_rate() {
        // 400 suites: the standard error of a rate of 0.05 is 0.011.
        let normal = |rng: &mut Pcg64, s: f64| s * gauss(rng);
        // One spread for all places.
        let (alarms, found, share) = suites(400, 100, 5, 8.0, normal, |_| 0.1);
        assert!(alarms <= 0.08 && share <= 0.08, "{alarms} {share}");
        assert!(found > 0.97, "{found}");
        // Spreads that differ as the model has it, and ones that differ otherwise (uniform over a factor of ten).
        for degrees in [4, 20] {
            let (alarms, found, share) = suites(400, 100, 5, 12.0, normal, |rng| {
                0.1 / chi_square(rng, degrees).sqrt()
            });
            assert!(
                alarms <= 0.08 && share <= 0.08,
                "{degrees}: {alarms} {share}"
            );
            assert!(found > 0.75, "{degrees}: {found}");
        }
        let (alarms, _, share) = suites(400, 100, 5, 12.0, normal, |rng| {
            0.01 * 10.0_f64.powf(rng.uniform())
        });
        assert!(alarms <= 0.08 && share <= 0.08, "{alarms} {share}");
    }

    #[test]
    fn heavy_tails_and_few_runs_stay_near_it() {
        // Student's t with five degrees of freedom.
        let heavy = |rng: &mut Pcg64, s: f64| s * gauss(rng) / chi_square(rng, 5).sqrt();
        let (alarms, _, share) = suites(300, 100, 5, 20.0, heavy, |_| 0.1);
        assert!(alarms <= 0.15 && share <= 0.10, "{alarms} {share}");
        let normal = |rng: &mut Pcg64, s: f64| s * gauss(rng);
        let (alarms, _, share) = suites(300, 44, 3, 20.0, normal, |_| 0.1);
        assert!(alarms <= 0.09 && share <= 0.09, "{alarms} {share}");
    }

    #[test]
    fn unmoderated_variances_would_cry_wolf_or_see_nothing() {
        // What the moderation is for: with 4 degrees of freedom per place alone, a change of 8 spreads is hardly ever found.
        let normal = |rng: &mut Pcg64, s: f64| s * gauss(rng);
        let mut single = 0.0;
        for seed in 0..100 {
            let mut rng = Pcg64::new(seed);
            let samples: Vec<Vec<f64>> = (0..100)
                .map(|_| (0..5).map(|_| normal(&mut rng, 0.1)).collect())
                .collect();
            let p: Vec<f64> = samples
                .iter()
                .map(|values| {
                    let place = Place {
                        centre: mean(values),
                        spread: sample_std(values) * 1.2_f64.sqrt(),
                    };
                    place.p_value(normal(&mut rng, 0.1) + 0.8, 4.0, Side::Both)
                })
                .collect();
            single += p[..5].iter().filter(|p| **p <= 0.0005).count() as f64 / 500.0;
        }
        let (_, moderated, _) = suites(100, 100, 5, 8.0, normal, |_| 0.1);
        assert!(single < 0.5 && moderated > 0.95, "{single} {moderated}");
    }

    #[test]
    fn one_place_is_a_plain_t_test() {
        let null = fit(&[vec![1.0, 2.0, 3.0]], 1e-9).unwrap();
        assert_eq!(null.degrees, 2.0);
        let place = null.places[0];
        assert_eq!(place.centre, 2.0);
        assert!((place.spread - (4.0_f64 / 3.0).sqrt()).abs() < 1e-15);
        let upper = place.p_value(4.0, 2.0, Side::Upper);
        assert!((place.p_value(0.0, 2.0, Side::Both) - 2.0 * upper).abs() < 1e-15);
        assert!(place.p_value(0.0, 2.0, Side::Upper) > 0.5);
        assert!(place.p_value(f64::NAN, 2.0, Side::Both).is_nan());
        assert_eq!(place.p_value(2.0, 2.0, Side::Both), 1.0);
    }

    #[test]
    fn runs_that_agree_fully_have_the_resolution_as_spread() {
        let null = fit(&vec![vec![0.5; 5]; 10], 1e-6).unwrap();
        let spread = 1e-6 * 1.2_f64.sqrt();
        assert!(
            null.places
                .iter()
                .all(|place| (place.spread / spread - 1.0).abs() < 1e-12)
        );
        assert_eq!(null.degrees, 8.0);
    }

    #[test]
    fn unusable_samples() {
        assert!(fit(&[], 1.0).is_none());
        assert!(fit(&[vec![1.0]], 1.0).is_none());
        assert!(fit(&[vec![1.0, 2.0], vec![1.0]], 1.0).is_none());
        assert!(fit(&[vec![1.0, f64::NAN]], 1.0).is_none());
        assert!(fit(&[vec![1.0, 2.0]], 0.0).is_none());
    }
}
