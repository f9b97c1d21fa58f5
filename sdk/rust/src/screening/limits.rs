//! Limits of effects.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Failure, Finding, Result, Status};

/// How large an effect may be. A bound that is absent does not act.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// Beyond this it is worth a look: finding `marked`, status warn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warn: Option<f64>,
    /// Beyond this it is damage: finding `damaged`, status fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fail: Option<f64>,
}

/// Limits by the name of the effect.
pub type Limits = BTreeMap<String, Limit>;

/// An effect that went beyond a bound.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judged {
    /// Warn or fail.
    pub status: Status,
    /// The bound that was passed.
    pub bound: f64,
}

impl Limit {
    /// Both bounds.
    pub const fn new(warn: Option<f64>, fail: Option<f64>) -> Self {
        Self { warn, fail }
    }

    /// What an effect of this size, larger being worse, amounts to; none within the bounds. NaN is beyond every bound.
    pub fn judge(&self, effect: f64) -> Option<Judged> {
        let beyond = |bound: Option<f64>, status| {
            let bound = bound?;
            (effect > bound || effect.is_nan()).then_some(Judged { status, bound })
        };
        beyond(self.fail, Status::Fail).or_else(|| beyond(self.warn, Status::Warn))
    }

    /// The policy's limits over the defaults, effect by effect.
    ///
    /// # Errors
    /// An effect that has no default, a bound that is no number from 0 on, or a warning beyond the failure.
    pub fn merge(defaults: &[(&str, Self)], policy: &Limits) -> Result<Limits> {
        let mut merged: Limits = defaults
            .iter()
            .map(|(name, limit)| ((*name).to_owned(), *limit))
            .collect();
        for (name, limit) in policy {
            let Some(slot) = merged.get_mut(name) else {
                let known: Vec<&str> = defaults.iter().map(|(name, _)| *name).collect();
                return Err(Failure::invalid(format!(
                    "`limits.{name}` is no effect of this guard; there are {}",
                    known.join(", ")
                )));
            };
            for bound in [limit.warn, limit.fail].into_iter().flatten() {
                if !(bound.is_finite() && bound >= 0.0) {
                    return Err(Failure::invalid(format!(
                        "`limits.{name}` is {bound}, it must be a number from 0 on"
                    )));
                }
            }
            if let (Some(warn), Some(fail)) = (limit.warn, limit.fail)
                && warn > fail
            {
                return Err(Failure::invalid(format!(
                    "`limits.{name}` warns beyond {warn} and fails beyond {fail}; the warning must come first"
                )));
            }
            *slot = *limit;
        }
        Ok(merged)
    }
}

impl Judged {
    /// The finding for it.
    pub fn finding(&self, scope: &str, effect: &str, value: f64, what: &str) -> Finding {
        let code = if self.status == Status::Fail {
            "damaged"
        } else {
            "marked"
        };
        Finding {
            scope: scope.to_owned(),
            code: code.to_owned(),
            message: format!("{effect}: {what}, limit {}", self.bound),
            value: value.is_finite().then_some(value),
            limit: Some(self.bound),
        }
    }
}
