//! The test of scales on windows: what the loss is with and without them, and whether the difference is worth having.

use packhost_sdk::json::{Map, json};
use packhost_sdk::stats::bootstrap::{self, Interval, Method, Options};
use packhost_sdk::stats::summary;
use packhost_sdk::{Failure, Request, Result, Table};

use crate::policy::Policy;
use crate::proposal::Scales;
use crate::targets::Targets;

/// Resamples of the intervals.
const REPLICATES: usize = 500;

/// Distance of the seed of the loss difference's interval from that of the ratio's.
const DELTA_SEED: u64 = 211;

/// Losses and tokens of the first windows of preview and final in this order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Windows {
    pub losses: Vec<f64>,
    pub tokens: Vec<f64>,
}

impl Windows {
    /// The first `count` windows.
    ///
    /// # Errors
    /// A row is missing, or losses and tokens differ in number.
    pub fn read(table: &Table, count: usize, whose: &str) -> Result<Self> {
        let mut windows = Self::default();
        for arm in ["preview", "final"] {
            let losses = table.vector(arm, "window.loss")?;
            let tokens = table.vector(arm, "window.tokens")?;
            if losses.len() != tokens.len() {
                return Err(Failure::failed(format!(
                    "{whose}: `window.loss` at `{arm}` has {} windows and `window.tokens` {}; measure both anew",
                    losses.len(),
                    tokens.len()
                )));
            }
            windows.losses.extend(losses);
            windows.tokens.extend(tokens);
        }
        windows.losses.truncate(count);
        windows.tokens.truncate(count);
        Ok(windows)
    }

    /// Mean perplexity of the windows that have one.
    pub fn mean_perplexity(&self) -> Option<f64> {
        let known = self.losses.iter().filter(|loss| loss.is_finite());
        let perplexities: Vec<f64> = known.map(|loss| summary::exp(*loss)).collect();
        let mean = summary::mean(&perplexities);
        mean.is_finite().then_some(mean)
    }

    /// How many have a finite loss.
    pub fn usable(&self) -> usize {
        self.losses.iter().filter(|loss| loss.is_finite()).count()
    }
}

/// Losses of the first `windows` windows while modules' outputs are multiplied by scales.
pub fn request(windows: usize, scales: &Scales, targets: &Targets) -> Request {
    let mut by_module = Map::new();
    for (place, scale) in scales {
        let modules = targets.get(place).map(|target| target.modules.as_slice());
        for module in modules.unwrap_or_default() {
            by_module.insert(module.clone(), json!(scale));
        }
    }
    Request::new("window.loss", &format!("first:{windows}"))
        .with_params(&json!({"scale": by_module}))
}

/// What the loss did under the scales.
#[derive(Debug, Clone, PartialEq)]
pub struct Trial {
    /// Usable windows.
    pub coverage: usize,
    /// Mean perplexity without and with the scales.
    pub perplexities: Option<(f64, f64)>,
    /// Interval of the mean ratio of perplexities.
    pub ratio: Option<Interval>,
    /// Mean loss difference, weighted by tokens.
    pub mean_delta: Option<f64>,
    /// Its interval.
    pub delta: Option<Interval>,
}

impl Trial {
    /// Reads the answer to [`request`]; none when it is not there yet.
    ///
    /// # Errors
    /// The answer has another number of windows.
    pub fn read(
        policy: &Policy,
        table: &Table,
        request: &Request,
        without: &Windows,
    ) -> Result<Option<Self>> {
        let scope = request.row_scope();
        if table.get(&scope, &request.quantity).is_none() {
            return Ok(None);
        }
        let with = table.vector(&scope, &request.quantity)?;
        if with.len() != without.losses.len() {
            return Err(Failure::failed(format!(
                "subject: `window.loss` at `{scope}` has {} windows instead of {}; measure it anew",
                with.len(),
                without.losses.len()
            )));
        }
        Ok(Some(Self::of(policy, without, with)))
    }

    /// Compares losses window by window; windows in which either is not finite are left out.
    pub fn of(policy: &Policy, without: &Windows, with: &[f64]) -> Self {
        let pairs = without.losses.iter().zip(with).zip(&without.tokens);
        let usable: Vec<(f64, f64, f64)> = pairs
            .map(|((without, with), tokens)| (*without, *with, *tokens))
            .filter(|(without, with, _)| without.is_finite() && with.is_finite())
            .collect();
        let coverage = usable.len();
        if coverage < policy.calibration.min_coverage.max(1) {
            return Self {
                coverage,
                perplexities: None,
                ratio: None,
                mean_delta: None,
                delta: None,
            };
        }
        let perplexity = |read: &dyn Fn(&(f64, f64, f64)) -> f64| -> Vec<f64> {
            usable.iter().map(|pair| summary::exp(read(pair))).collect()
        };
        let (no, yes) = (perplexity(&|pair| pair.0), perplexity(&|pair| pair.1));
        let ratios: Vec<f64> = yes.iter().zip(&no).map(|(yes, no)| yes / no).collect();
        let deltas: Vec<f64> = usable.iter().map(|pair| pair.1 - pair.0).collect();
        let tokens: Vec<f64> = usable.iter().map(|pair| pair.2).collect();
        let options = |method, seed| Options {
            method,
            replicates: REPLICATES,
            alpha: policy.alpha,
            seed,
        };
        let seed = policy.seed();
        let ratio = bootstrap::mean(&ratios, None, &options(Method::Percentile, seed));
        let bca = options(Method::Bca, seed.wrapping_add(DELTA_SEED));
        let delta = bootstrap::mean(&deltas, Some(&tokens), &bca);
        let mean_delta = summary::weighted_mean(&deltas, &tokens);
        Self {
            coverage,
            perplexities: Some((summary::mean(&no), summary::mean(&yes))),
            ratio: ratio.ok(),
            mean_delta: mean_delta.is_finite().then_some(mean_delta),
            delta: delta.ok(),
        }
    }

    /// The relative fall of mean perplexity.
    pub fn gain(&self) -> Option<f64> {
        let (no, yes) = self.perplexities?;
        let gain = (no - yes) / no.max(1e-9);
        gain.is_finite().then_some(gain)
    }
}
