//! Per-window rows of baseline and subject, and the estimates from them.

use packhost_sdk::json::{Map, Value as Json, json};
use packhost_sdk::screening::{number, same_bits, same_windows};
use packhost_sdk::stats::bootstrap::Interval;
use packhost_sdk::stats::summary;
use packhost_sdk::{Failure, Result, Table, Value};

pub const ARMS: [&str; 2] = ["preview", "final"];

pub const QUANTITIES: [&str; 6] = [
    "window.ids",
    "window.tokens",
    "window.loss",
    "window.kl",
    "window.same_top",
    "window.tv",
];

/// Quantiles over all scored tokens, measured by the host.
pub const TOKEN_QUANTITIES: [&str; 4] = ["kl.mean", "kl.median", "kl.p99", "kl.max"];

/// A mean over windows and its interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    pub mean: f64,
    pub interval: Interval,
}

/// `(value, weight)` per window.
type Weighted = Vec<(f64, f64)>;

impl Estimate {
    /// None of fewer than two windows: one has no interval.
    fn of(windows: &[(f64, f64)]) -> Option<Self> {
        if windows.len() < 2 {
            return None;
        }
        let (values, weights): (Vec<f64>, Vec<f64>) = windows.iter().copied().unzip();
        Some(Self {
            mean: summary::weighted_mean(&values, &weights),
            interval: summary::closed_form_interval(&values, &weights, super::ALPHA)?,
        })
    }

    /// The difference of two independent estimates: variances add.
    fn minus(self, other: Self) -> Self {
        let half = |e: Self| (e.interval.high - e.interval.low) / 2.0;
        let mean = self.mean - other.mean;
        let half = (half(self) * half(self) + half(other) * half(other)).sqrt();
        Self {
            mean,
            interval: Interval {
                low: mean - half,
                high: mean + half,
            },
        }
    }
}

/// How predictions moved.
#[derive(Debug, Clone)]
pub struct Shift {
    /// Windows of both arms.
    pub count: usize,
    /// Windows with a value that is not finite.
    pub not_finite: usize,
    pub divergence: Option<Estimate>,
    pub other_top: Option<Estimate>,
    pub variation: Option<Estimate>,
    /// Window id and mean total variation.
    pub worst: Option<(f64, f64)>,
    /// Loss differences.
    pub preview: Option<Estimate>,
    pub final_: Option<Estimate>,
    pub pooled: Option<Estimate>,
    pub drift: Option<Estimate>,
    /// [`TOKEN_QUANTITIES`] of both arms.
    pub per_token: [Option<f64>; 4],
}

/// One arm's vectors.
struct Arm<'a> {
    ids: &'a [f64],
    tokens: &'a [f64],
    before: &'a [f64],
    loss: &'a [f64],
    divergence: &'a [f64],
    same_top: &'a [f64],
    variation: &'a [f64],
}

impl<'a> Arm<'a> {
    fn read(arm: &str, baseline: &'a Table, subject: &'a Table) -> Result<Self> {
        let ids = subject.vector(arm, "window.ids")?;
        let of = |table: &'a Table, who: &str, quantity: &str| {
            let vector = table.vector(arm, quantity)?;
            if vector.len() == ids.len() {
                Ok(vector)
            } else {
                Err(Failure::failed(format!(
                    "measurement table of the {who}: `{quantity}` at `{arm}` has {} values for {} windows",
                    vector.len(),
                    ids.len()
                )))
            }
        };
        Ok(Self {
            ids,
            tokens: of(subject, "subject", "window.tokens")?,
            before: of(baseline, "baseline", "window.loss")?,
            loss: of(subject, "subject", "window.loss")?,
            divergence: of(subject, "subject", "window.kl")?,
            same_top: of(subject, "subject", "window.same_top")?,
            variation: of(subject, "subject", "window.tv")?,
        })
    }
}

/// What two tables say about predictions.
pub enum Reading {
    /// The subject is the baseline: no divergence rows, and the same losses to the last bit.
    Same,
    /// Losses differ, but there are no divergences of this arm: the models predict different vocabularies, or the table was
    /// not measured whole. Neither is known to be harmless.
    Incomparable(&'static str),
    /// The subject is another model.
    Moved(Box<Shift>),
}

impl Shift {
    /// Reads both tables.
    pub fn read(baseline: &Table, subject: &Table) -> Result<Reading> {
        if !same_windows(baseline, subject) {
            return Err(Failure::failed(
                "baseline and subject were measured on different windows; measure both on the same",
            ));
        }
        if let Some(reading) = without_divergence(baseline, subject)? {
            return Ok(reading);
        }
        let mut shift = Self {
            count: 0,
            not_finite: 0,
            divergence: None,
            other_top: None,
            variation: None,
            worst: None,
            preview: None,
            final_: None,
            pooled: None,
            drift: None,
            per_token: [None; 4],
        };
        let (mut divergence, mut other, mut variation) = (Vec::new(), Vec::new(), Vec::new());
        let mut losses: Vec<Weighted> = Vec::new();
        for name in ARMS {
            let arm = Arm::read(name, baseline, subject)?;
            let mut differences = Vec::new();
            for (index, id) in arm.ids.iter().enumerate() {
                shift.count += 1;
                let tokens = arm.tokens[index];
                let difference = arm.loss[index] - arm.before[index];
                let per_window = [
                    arm.divergence[index],
                    arm.same_top[index],
                    arm.variation[index],
                ];
                if tokens <= 1.0 {
                    // A window of one token scores nothing.
                    continue;
                }
                if !difference.is_finite() || per_window.iter().any(|value| !value.is_finite()) {
                    shift.not_finite += 1;
                    continue;
                }
                differences.push((difference, tokens));
                let scored = tokens - 1.0;
                divergence.push((per_window[0], scored));
                other.push((1.0 - per_window[1], scored));
                variation.push((per_window[2], scored));
                if shift.worst.is_none_or(|(_, worst)| per_window[2] > worst) {
                    shift.worst = Some((*id, per_window[2]));
                }
            }
            losses.push(differences);
        }
        if shift.count == 0 {
            return Err(Failure::failed("there are no windows to compare"));
        }
        shift.divergence = Estimate::of(&divergence);
        shift.other_top = Estimate::of(&other);
        shift.variation = Estimate::of(&variation);
        shift.preview = Estimate::of(&losses[0]);
        shift.final_ = Estimate::of(&losses[1]);
        shift.pooled = Estimate::of(&losses.concat());
        if let (Some(preview), Some(last)) = (shift.preview, shift.final_) {
            shift.drift = Some(last.minus(preview));
        }
        for (slot, quantity) in shift.per_token.iter_mut().zip(TOKEN_QUANTITIES) {
            let value = subject.number("model", quantity)?;
            *slot = value.is_finite().then_some(value);
        }
        Ok(Reading::Moved(Box::new(shift)))
    }

    pub fn per_token_details(&self) -> Json {
        let names = ["mean", "median", "p99", "max"];
        let values = names.into_iter().zip(self.per_token);
        let rows = values.map(|(name, value)| (name.to_owned(), value.map_or(Json::Null, number)));
        Json::Object(rows.collect::<Map<_, _>>())
    }

    pub fn worst_details(&self) -> Json {
        self.worst.map_or(
            Json::Null,
            |(id, worst)| json!({"id": number(id), "total_variation": number(worst)}),
        )
    }
}

/// The reading of a subject without divergence rows; none when it has them.
fn without_divergence(baseline: &Table, subject: &Table) -> Result<Option<Reading>> {
    if ARMS
        .iter()
        .any(|arm| subject.get(arm, "window.kl").is_some())
    {
        return Ok(None);
    }
    for arm in ARMS {
        let losses = |table: &Table| Ok(Value::Vector(table.vector(arm, "window.loss")?.to_vec()));
        if !same_bits(&losses(baseline)?, &losses(subject)?) {
            return Ok(Some(Reading::Incomparable(arm)));
        }
    }
    Ok(Some(Reading::Same))
}
