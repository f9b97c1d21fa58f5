//! Nulls of several statistics at many places, as a policy carries them.

use std::collections::BTreeMap;

use packhost_stats::null::{self, Place, Side};
use packhost_stats::testing::{Correction, threshold};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use crate::{Failure, Result, Table};

/// One statistic of a guard.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Statistic {
    /// Its name in policies and details.
    pub name: &'static str,
    /// Which way it strays when something changed.
    pub side: Side,
    /// The least spread that is believed: what the measurement resolves.
    pub resolution: f64,
}

/// What one run showed: by place, the value of every statistic in the guard's order; none where it does not exist there.
pub type Observed = BTreeMap<String, Vec<Option<f64>>>;

/// What calibration runs say is normal.
///
/// Within a place the smallest p-value of its statistics counts, multiplied by their number (Bonferroni: they depend on
/// each other). Over places Benjamini and Hochberg's rule holds the expected share of false findings at the nominal rate;
/// it does so under positive dependence, which modules downstream of each other have. Places that did not change count as
/// tests that found nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Nulls {
    /// Digest of the structure of the model that it holds for.
    pub structure: String,
    /// Perturbations that it was fitted to.
    pub runs: usize,
    /// The guard's statistics, in the order of the lists below.
    pub statistics: Vec<String>,
    /// Degrees of freedom per statistic; none where it was never seen.
    pub degrees: Vec<Option<f64>>,
    /// By place and statistic: centre and spread.
    pub places: BTreeMap<String, Vec<Option<[f64; 2]>>>,
    /// What rate of false findings to expect.
    pub false_alarms: FalseAlarms,
}

/// The rate of false findings: promised, and met when each calibration run is judged by the others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FalseAlarms {
    /// The false-discovery rate that is asked for.
    pub nominal: f64,
    /// Runs that were judged, leaving each out in turn.
    pub runs: usize,
    /// Runs in which anything was found.
    pub runs_with_findings: usize,
    /// Places judged, over all runs.
    pub places: usize,
    /// Places found, over all runs.
    pub findings: usize,
}

impl FalseAlarms {
    /// For the report.
    pub fn details(&self) -> Json {
        let share = |part: usize, whole: usize| (whole > 0).then(|| part as f64 / whole as f64);
        json!({
            "nominal_false_discovery_rate": self.nominal,
            "leave_one_out": {
                "runs": self.runs,
                "runs_with_findings": self.runs_with_findings,
                "rate_per_run": share(self.runs_with_findings, self.runs),
                "places": self.places,
                "findings": self.findings,
                "rate_per_place": share(self.findings, self.places),
            },
        })
    }
}

/// Which places differ from normal.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Significance {
    /// P-value by place.
    pub p_values: BTreeMap<String, f64>,
    /// Places with a p-value at or below this changed.
    pub threshold: Option<f64>,
    /// Places that the null does not know.
    pub unknown: Vec<String>,
}

impl Significance {
    /// Whether a place changed, by what is normal.
    pub fn changed(&self, place: &str) -> bool {
        match (self.p_values.get(place), self.threshold) {
            (Some(p), Some(limit)) => *p <= limit,
            _ => false,
        }
    }
}

impl Nulls {
    /// Fits nulls to what the perturbations showed, and counts what they would have been charged with, each judged by the
    /// others, at the false-discovery rate `q`.
    ///
    /// A statistic of a place enters when every run has it.
    ///
    /// # Errors
    /// When there are fewer than two runs, or they have no place in common.
    pub fn fit(
        structure: &str,
        statistics: &[Statistic],
        runs: &[Observed],
        q: f64,
    ) -> Result<Self> {
        let all: Vec<&Observed> = runs.iter().collect();
        let (degrees, places) = fit(statistics, &all)?;
        let mut nulls = Self {
            structure: structure.to_owned(),
            runs: runs.len(),
            statistics: statistics.iter().map(|s| s.name.to_owned()).collect(),
            degrees,
            places,
            false_alarms: FalseAlarms {
                nominal: q,
                runs: 0,
                runs_with_findings: 0,
                places: 0,
                findings: 0,
            },
        };
        if runs.len() < 3 {
            return Ok(nulls);
        }
        for (out, run) in runs.iter().enumerate() {
            let others: Vec<&Observed> = runs
                .iter()
                .enumerate()
                .filter_map(|(index, run)| (index != out).then_some(run))
                .collect();
            let (degrees, places) = fit(statistics, &others)?;
            let judged = significance(statistics, &degrees, &places, run, run.len(), q);
            let found = judged.p_values.keys().filter(|place| judged.changed(place));
            let found = found.count();
            let counts = &mut nulls.false_alarms;
            counts.runs += 1;
            counts.runs_with_findings += usize::from(found > 0);
            counts.places += judged.p_values.len();
            counts.findings += found;
        }
        Ok(nulls)
    }

    /// Refuses a null of another model or of other statistics.
    ///
    /// # Errors
    /// With what it was made for and what it met.
    pub fn check(&self, guard: &str, statistics: &[Statistic], baseline: &Table) -> Result<()> {
        let structure = baseline.text("model", "structure.digest")?;
        if structure != self.structure {
            return Err(Failure::invalid(format!(
                "guard {guard}: the preset was calibrated on a model of structure {}, this baseline's is {structure}; \
                 calibrate on this model or leave `calibration` out",
                self.structure
            )));
        }
        let same = self.statistics.len() == statistics.len()
            && self.degrees.len() == statistics.len()
            && self
                .statistics
                .iter()
                .zip(statistics)
                .all(|(a, b)| a == b.name)
            && self.places.values().all(|place| {
                place.len() == statistics.len()
                    && place
                        .iter()
                        .flatten()
                        .all(|[centre, spread]| centre.is_finite() && *spread > 0.0)
            });
        if same {
            Ok(())
        } else {
            Err(Failure::invalid(format!(
                "guard {guard}: `calibration` does not hold a centre and a spread for each of its statistics; calibrate again"
            )))
        }
    }

    /// Which places of `observed` differ from normal at the false-discovery rate `q`, among `tests` places (those observed
    /// and those that did not change).
    pub fn significance(
        &self,
        statistics: &[Statistic],
        observed: &Observed,
        tests: usize,
        q: f64,
    ) -> Significance {
        significance(statistics, &self.degrees, &self.places, observed, tests, q)
    }
}

type Fitted = (Vec<Option<f64>>, BTreeMap<String, Vec<Option<[f64; 2]>>>);

fn fit(statistics: &[Statistic], runs: &[&Observed]) -> Result<Fitted> {
    let first = runs
        .first()
        .filter(|_| runs.len() >= 2)
        .ok_or_else(|| Failure::failed("a null needs at least two perturbation runs".to_owned()))?;
    let mut places: BTreeMap<String, Vec<Option<[f64; 2]>>> = BTreeMap::new();
    let mut degrees = Vec::new();
    for (index, statistic) in statistics.iter().enumerate() {
        let (names, samples): (Vec<&String>, Vec<Vec<f64>>) = first
            .keys()
            .filter_map(|place| {
                let of = |run: &&Observed| run.get(place)?.get(index).copied().flatten();
                let values: Option<Vec<f64>> = runs
                    .iter()
                    .map(|run| of(run).filter(|value| value.is_finite()))
                    .collect();
                Some((place, values?))
            })
            .unzip();
        let fitted = null::fit(&samples, statistic.resolution);
        degrees.push(fitted.as_ref().map(|null| null.degrees));
        for (name, place) in names
            .into_iter()
            .zip(fitted.into_iter().flat_map(|n| n.places))
        {
            let row = places
                .entry(name.clone())
                .or_insert_with(|| vec![None; statistics.len()]);
            row[index] = Some([short(place.centre), short(place.spread)]);
        }
    }
    if places.is_empty() {
        return Err(Failure::failed(
            "the perturbation runs have no measured place in common".to_owned(),
        ));
    }
    Ok((degrees, places))
}

/// Seven digits are more than five runs can tell, and keep presets small.
fn short(value: f64) -> f64 {
    format!("{value:.6e}").parse().unwrap_or(value)
}

fn significance(
    statistics: &[Statistic],
    degrees: &[Option<f64>],
    places: &BTreeMap<String, Vec<Option<[f64; 2]>>>,
    observed: &Observed,
    tests: usize,
    q: f64,
) -> Significance {
    let mut result = Significance::default();
    for (name, values) in observed {
        let Some(nulls) = places.get(name) else {
            result.unknown.push(name.clone());
            continue;
        };
        let mut smallest = f64::INFINITY;
        let mut count = 0.0;
        for (index, statistic) in statistics.iter().enumerate() {
            let (Some(value), Some([centre, spread]), Some(degrees)) = (
                values.get(index).copied().flatten(),
                nulls.get(index).copied().flatten(),
                degrees.get(index).copied().flatten(),
            ) else {
                continue;
            };
            count += 1.0;
            // What is not a number is not normal.
            let p = Place { centre, spread }.p_value(value, degrees, statistic.side);
            smallest = smallest.min(if p.is_nan() { 0.0 } else { p });
        }
        if count > 0.0 {
            result
                .p_values
                .insert(name.clone(), (smallest * count).min(1.0));
        } else {
            result.unknown.push(name.clone());
        }
    }
    let p: Vec<f64> = result.p_values.values().copied().collect();
    result.threshold = threshold(Correction::BenjaminiHochberg, &p, q, tests);
    result
}
