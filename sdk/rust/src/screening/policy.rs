//! The policy that screening guards share, and how their verdicts come about.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::{Limit, Limits, Nulls, Observed, Runs, Significance, Statistic};
use crate::{Failure, Finding, Result, Status, Table};

/// How a screening guard judges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// The expected share of false findings among findings `changed`, with a calibration.
    #[serde(skip_serializing_if = "is_default_rate")]
    pub false_discovery_rate: f64,
    /// Limits of effects, over the guard's defaults; an effect that is named here has only the bounds that are written.
    #[serde(skip_serializing_if = "Limits::is_empty")]
    pub limits: Limits,
    /// Perturbation runs that a calibration must have; at least three when there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runs: Option<usize>,
    /// What is normal for one model; made by `calibrate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Nulls>,
}

/// The usual rate.
const DEFAULT_RATE: f64 = 0.05;

/// A policy is written without what it need not say, so that an uncalibrated one leaves no trace in a preset.
fn is_default_rate(rate: &f64) -> bool {
    *rate == DEFAULT_RATE
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            false_discovery_rate: DEFAULT_RATE,
            limits: Limits::new(),
            runs: None,
            calibration: None,
        }
    }
}

impl Policy {
    /// The limits that hold, when the policy is in order.
    ///
    /// # Errors
    /// With the field that is out of range.
    pub fn check(&self, defaults: &[(&str, Limit)]) -> Result<Limits> {
        let q = self.false_discovery_rate;
        if !(q > 0.0 && q < 1.0) {
            return Err(Failure::invalid(format!(
                "`false_discovery_rate` is {q}, it must be between 0 and 1"
            )));
        }
        if self.runs.is_some_and(|runs| runs < 3) {
            return Err(Failure::invalid(
                "`runs` must be at least 3: two fit a null and one tries it out",
            ));
        }
        Limit::merge(defaults, &self.limits)
    }

    /// Which places changed, by the calibration; none without one.
    ///
    /// # Errors
    /// When the calibration is for another model or other statistics.
    pub fn significance(
        &self,
        guard: &str,
        statistics: &[Statistic],
        baseline: &Table,
        observed: &Observed,
        tests: usize,
    ) -> Result<Option<Significance>> {
        let Some(nulls) = &self.calibration else {
            return Ok(None);
        };
        nulls.check(guard, statistics, baseline)?;
        let q = self.false_discovery_rate;
        Ok(Some(nulls.significance(statistics, observed, tests, q)))
    }

    /// This policy with a null fitted to what `observe` sees in each perturbation of `runs` against its repeat; as it is
    /// where there are no perturbations.
    ///
    /// # Errors
    /// When the runs are not in order (see [`Runs::sort`]), `observe` fails, or the perturbations show nothing to fit to.
    pub fn calibrated(
        &self,
        guard: &str,
        statistics: &[Statistic],
        runs: &[Table],
        observe: impl Fn(&Table, &Table) -> Result<Observed>,
    ) -> Result<Self> {
        let runs = Runs::sort(guard, runs, self.runs)?;
        let mut fitted = self.clone();
        if runs.perturbations.is_empty() {
            return Ok(fitted);
        }
        let seen = runs
            .perturbations
            .iter()
            .map(|(baseline, run)| observe(baseline, run))
            .collect::<Result<Vec<Observed>>>()?;
        let nulls = Nulls::fit(
            &runs.structure,
            statistics,
            &seen,
            self.false_discovery_rate,
        );
        fitted.calibration =
            Some(nulls.map_err(|failure| {
                Failure::failed(format!("guard {guard}: {}", failure.message()))
            })?);
        Ok(fitted)
    }

    /// The part of a verdict's details that every screening guard has: limits, where they come from and what rate of false
    /// findings they have.
    pub fn details(&self, limits: &Limits, significance: Option<&Significance>) -> Json {
        json!({
            "calibrated": self.calibration.is_some(),
            "calibration": self.origin(),
            "false_alarm_rate": self.false_alarm_rate(),
            "limits": limits,
            "p_value_limit": significance.and_then(|known| known.threshold),
        })
    }

    /// What the null was fitted to.
    fn origin(&self) -> Json {
        match &self.calibration {
            Some(nulls) => json!({
                "runs": nulls.runs,
                "structure": nulls.structure,
                "statistics": nulls.statistics,
                "places": nulls.places.len(),
            }),
            None => Json::Null,
        }
    }

    /// The rate of false findings; null without a calibration, because then it is not known.
    fn false_alarm_rate(&self) -> Json {
        let rate = self
            .calibration
            .as_ref()
            .map(|nulls| nulls.false_alarms.details());
        rate.unwrap_or(Json::Null)
    }
}

/// Findings as they come, the gravest deciding.
#[derive(Debug)]
pub struct Outcome {
    status: Status,
    findings: Vec<(Status, Finding)>,
}

impl Default for Outcome {
    fn default() -> Self {
        Self {
            status: Status::Pass,
            findings: Vec::new(),
        }
    }
}

/// Most findings that a verdict lists; more are counted in one.
const MOST_FINDINGS: usize = 40;

impl Outcome {
    /// Judges one effect by its limit; `what` tells a person what was measured.
    pub fn effect(&mut self, limits: &Limits, scope: &str, effect: &str, size: f64, what: &str) {
        let judged = limits.get(effect).and_then(|limit| limit.judge(size));
        if let Some(judged) = judged {
            let finding = judged.finding(scope, effect, size, what);
            self.push(judged.status, finding);
        }
    }

    /// A finding without a limit.
    pub fn note(&mut self, status: Status, scope: &str, code: &str, message: String) {
        let finding = Finding {
            scope: scope.to_owned(),
            code: code.to_owned(),
            message,
            value: None,
            limit: None,
        };
        self.push(status, finding);
    }

    /// A finding.
    pub fn push(&mut self, status: Status, finding: Finding) {
        self.status = self.status.max(status);
        self.findings.push((status, finding));
    }

    /// The status, and the findings with the gravest first, otherwise in the order in which they came. Many of them are cut
    /// short; what was merely noted (status pass) is always kept.
    pub fn finish(self) -> (Status, Vec<Finding>) {
        let (noted, mut grave): (Vec<_>, Vec<_>) = self
            .findings
            .into_iter()
            .partition(|(status, _)| *status == Status::Pass);
        grave.sort_by_key(|(status, _)| std::cmp::Reverse(*status));
        let more = grave.len().saturating_sub(MOST_FINDINGS);
        grave.truncate(MOST_FINDINGS);
        let mut findings: Vec<Finding> = grave.into_iter().map(|(_, finding)| finding).collect();
        if more > 0 {
            findings.push(Finding {
                scope: "model".to_owned(),
                code: "more".to_owned(),
                message: format!(
                    "{more} further findings, none graver; the details list the places"
                ),
                value: Some(more as f64),
                limit: None,
            });
        }
        findings.extend(noted.into_iter().map(|(_, finding)| finding));
        (self.status, findings)
    }
}
