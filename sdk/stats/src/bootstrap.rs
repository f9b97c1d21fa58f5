//! Bootstrap intervals of a mean: percentile and bias-corrected accelerated (BCa).
//!
//! The replicates come from NumPy's default generator in NumPy's order, so an interval is a function of its samples,
//! weights, number of replicates, level and seed, and equals the reference's to rounding.

use crate::resample::Resampler;
use crate::rng::Pcg64;
use crate::{normal, quantile, summary};
use std::fmt;

/// How the endpoints are read off the replicates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Quantiles at levels corrected for bias and acceleration.
    Bca,
    /// Quantiles at `alpha/2` and `1 - alpha/2`.
    Percentile,
}

/// What decides an interval besides the samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// How endpoints are chosen.
    pub method: Method,
    /// Number of resamples, at least 1.
    pub replicates: usize,
    /// One minus the level: 0.05 for a 95 % interval; strictly between 0 and 1.
    pub alpha: f64,
    /// Seed of the resampling stream.
    pub seed: u64,
}

/// A closed interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Interval {
    fn point(value: f64) -> Self {
        Self {
            low: value,
            high: value,
        }
    }

    /// Both ends through the exponential: the interval of a ratio from the interval of a log difference.
    #[must_use]
    pub fn exp(self) -> Self {
        Self {
            low: libm::exp(self.low),
            high: libm::exp(self.high),
        }
    }
}

/// Why an interval cannot be computed.
#[derive(Debug, Clone, PartialEq)]
pub enum Error {
    /// Two lists that belong together have these different lengths.
    Lengths(usize, usize),
    /// There is no sample.
    Empty,
    /// The sample or weight at this position is NaN or infinite.
    NotFinite(usize),
    /// The weight at this position is negative.
    NegativeWeight(usize),
    /// All weights are zero.
    NoWeight,
    /// `alpha` is outside (0, 1).
    Alpha(f64),
    /// No replicates were asked for.
    NoReplicates,
    /// A given index lies beyond the samples.
    Index(usize),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lengths(a, b) => write!(f, "paired lists have different lengths: {a} and {b}"),
            Self::Empty => write!(f, "no samples to resample"),
            Self::NotFinite(at) => write!(f, "the value at position {at} is not a finite number"),
            Self::NegativeWeight(at) => write!(f, "the weight at position {at} is negative"),
            Self::NoWeight => write!(f, "the weights sum to zero"),
            Self::Alpha(alpha) => write!(f, "alpha must lie between 0 and 1, not {alpha}"),
            Self::NoReplicates => write!(f, "a bootstrap needs at least one replicate"),
            Self::Index(index) => write!(f, "resampling index {index} is beyond the samples"),
        }
    }
}

impl std::error::Error for Error {}

/// Interval of the mean of `subject - baseline` over paired windows (log-losses, so the exponential of the interval is
/// one of the perplexity ratio). `weights` are the windows' token counts.
pub fn paired_delta(
    subject: &[f64],
    baseline: &[f64],
    weights: Option<&[f64]>,
    options: &Options,
) -> Result<Interval, Error> {
    if subject.len() != baseline.len() {
        return Err(Error::Lengths(subject.len(), baseline.len()));
    }
    let deltas: Vec<f64> = subject.iter().zip(baseline).map(|(s, b)| s - b).collect();
    mean(&deltas, weights, options)
}

/// [`mean`] by the BCa method.
pub fn bca(
    samples: &[f64],
    weights: Option<&[f64]>,
    replicates: usize,
    alpha: f64,
    seed: u64,
) -> Result<Interval, Error> {
    let method = Method::Bca;
    mean(
        samples,
        weights,
        &Options {
            method,
            replicates,
            alpha,
            seed,
        },
    )
}

/// [`mean`] by the percentile method.
pub fn percentile(
    samples: &[f64],
    weights: Option<&[f64]>,
    replicates: usize,
    alpha: f64,
    seed: u64,
) -> Result<Interval, Error> {
    let method = Method::Percentile;
    mean(
        samples,
        weights,
        &Options {
            method,
            replicates,
            alpha,
            seed,
        },
    )
}

/// Interval of a mean. Samples that are all equal, or a single one, give a point. With unequal weights a resample draws
/// indices in proportion to them and the statistic is the plain mean of what was drawn.
pub fn mean(
    samples: &[f64],
    weights: Option<&[f64]>,
    options: &Options,
) -> Result<Interval, Error> {
    let weights = match prepare(samples, weights, options.alpha)? {
        Prepared::Point(value) => return Ok(Interval::point(value)),
        Prepared::Weights(weights) => weights,
    };
    if options.replicates == 0 {
        return Err(Error::NoReplicates);
    }
    let mut generator = Pcg64::new(options.seed);
    let mut resampler = Resampler::new(samples, weights.as_deref());
    let mut statistics: Vec<f64> = (0..options.replicates)
        .map(|_| resampler.mean(&mut generator))
        .collect();
    Ok(match options.method {
        Method::Percentile => percentile_ends(&mut statistics, options.alpha),
        Method::Bca => bca_ends(samples, weights.as_deref(), &mut statistics, options.alpha),
    })
}

/// The BCa interval from given resamples (one list of sample indices each) instead of a random stream.
pub fn bca_from_indices(
    samples: &[f64],
    weights: Option<&[f64]>,
    resamples: &[Vec<usize>],
    alpha: f64,
) -> Result<Interval, Error> {
    let weights = match prepare(samples, weights, alpha)? {
        Prepared::Point(value) => return Ok(Interval::point(value)),
        Prepared::Weights(weights) => weights,
    };
    if resamples.is_empty() {
        return Err(Error::NoReplicates);
    }
    let mut statistics = Vec::with_capacity(resamples.len());
    for indices in resamples {
        if let Some(&bad) = indices.iter().find(|&&index| index >= samples.len()) {
            return Err(Error::Index(bad));
        }
        let drawn: Vec<f64> = indices.iter().map(|&index| samples[index]).collect();
        statistics.push(summary::mean(&drawn));
    }
    Ok(bca_ends(
        samples,
        weights.as_deref(),
        &mut statistics,
        alpha,
    ))
}

/// What is left of the input after the degenerate cases.
enum Prepared {
    Point(f64),
    /// Weights scaled to sum to one; none when they are all equal.
    Weights(Option<Vec<f64>>),
}

fn prepare(samples: &[f64], weights: Option<&[f64]>, alpha: f64) -> Result<Prepared, Error> {
    if !(alpha > 0.0 && alpha < 1.0) {
        return Err(Error::Alpha(alpha));
    }
    if let Some(at) = samples.iter().position(|s| !s.is_finite()) {
        return Err(Error::NotFinite(at));
    }
    if let Some(weights) = weights {
        if weights.len() != samples.len() {
            return Err(Error::Lengths(samples.len(), weights.len()));
        }
        if let Some(at) = weights.iter().position(|w| !w.is_finite()) {
            return Err(Error::NotFinite(at));
        }
        if let Some(at) = weights.iter().position(|w| *w < 0.0) {
            return Err(Error::NegativeWeight(at));
        }
        if weights.iter().sum::<f64>() <= 0.0 && !weights.is_empty() {
            return Err(Error::NoWeight);
        }
    }
    if samples.is_empty() {
        return Err(Error::Empty);
    }
    if samples.len() == 1 {
        return Ok(Prepared::Point(samples[0]));
    }
    if all_close(samples) {
        return Ok(Prepared::Point(summary::mean(samples)));
    }
    let weights = weights
        .filter(|weights| !all_close(weights))
        .map(|weights| {
            let total: f64 = weights.iter().sum();
            weights.iter().map(|w| w / total).collect()
        });
    Ok(Prepared::Weights(weights))
}

/// Every value equals the first within the reference's tolerance.
fn all_close(values: &[f64]) -> bool {
    let first = values[0];
    let tolerance = 1e-8 + 1e-5 * first.abs();
    values.iter().all(|v| (v - first).abs() <= tolerance)
}

fn percentile_ends(statistics: &mut [f64], alpha: f64) -> Interval {
    Interval {
        low: quantile::select(statistics, alpha / 2.0),
        high: quantile::select(statistics, 1.0 - alpha / 2.0),
    }
}

/// BCa endpoints: bias from the share of replicates below the estimate, acceleration from the jackknife.
fn bca_ends(
    samples: &[f64],
    weights: Option<&[f64]>,
    statistics: &mut [f64],
    alpha: f64,
) -> Interval {
    let count = samples.len() as f64;
    let sum = summary::sum(samples);
    let (estimate, jackknife): (f64, Vec<f64>) = match weights {
        None => (
            sum / count,
            samples.iter().map(|s| (sum - s) / (count - 1.0)).collect(),
        ),
        Some(weights) => {
            let total = summary::sum(weights);
            let products: Vec<f64> = samples.iter().zip(weights).map(|(s, w)| s * w).collect();
            let product = summary::sum(&products);
            let left_out = samples.iter().zip(weights);
            (
                product / total,
                left_out
                    .map(|(s, w)| (product - w * s) / (total - w))
                    .collect(),
            )
        }
    };
    let below = statistics.iter().filter(|s| **s < estimate).count();
    let below = below as f64 / statistics.len() as f64;
    let bias = normal::quantile(below.clamp(1e-6, 1.0 - 1e-6));
    let centre = summary::mean(&jackknife);
    let (mut squares, mut cubes) = (0.0, 0.0);
    for value in &jackknife {
        let deviation = centre - value;
        squares += deviation * deviation;
        cubes += deviation * deviation * deviation;
    }
    let denominator = 6.0 * squares * libm::sqrt(squares);
    if denominator == 0.0 || !denominator.is_finite() {
        return percentile_ends(statistics, alpha);
    }
    let acceleration = cubes / denominator;
    let mut end = |level: f64| {
        let shifted = bias + normal::quantile(level);
        let scale = (1.0 - acceleration * shifted).max(1e-12);
        quantile::select(statistics, normal::cdf(bias + shifted / scale))
    };
    Interval {
        low: end(alpha / 2.0),
        high: end(1.0 - alpha / 2.0),
    }
}
