//! The policy that screening guards share, and how their verdicts come about.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::{Limit, Limits, Nulls, Observed, Significance, Statistic};
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

    /// Where limits come from and what rate of false findings they have, for the report.
    pub fn details(&self) -> Json {
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
    pub fn false_alarm_rate(&self) -> Json {
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

    /// The status, and the findings with the gravest first, otherwise in the order in which they came.
    pub fn finish(mut self) -> (Status, Vec<Finding>) {
        self.findings
            .sort_by_key(|(status, _)| std::cmp::Reverse(*status));
        let more = self.findings.len().saturating_sub(MOST_FINDINGS);
        let mut findings: Vec<Finding> = self
            .findings
            .into_iter()
            .take(MOST_FINDINGS)
            .map(|(_, finding)| finding)
            .collect();
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
        (self.status, findings)
    }
}
