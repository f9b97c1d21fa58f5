//! The gates that scales must pass, in the reference's order.

use packhost_sdk::stats::bootstrap::Interval;
use packhost_sdk::stats::summary;

use crate::policy::{Mode, Policy};

/// A gate's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Whether it is open.
    pub passed: bool,
    /// A stable word for why.
    pub reason: &'static str,
}

impl Answer {
    pub fn closed(reason: &'static str) -> Self {
        Self {
            passed: false,
            reason,
        }
    }

    pub fn open(reason: &'static str) -> Self {
        Self {
            passed: true,
            reason,
        }
    }
}

/// Whether the loss falls by at least `min_effect`, interval and mean, where negative differences are falls.
pub fn predictive(
    mean: Option<f64>,
    interval: Option<Interval>,
    min_effect: f64,
    one_sided: bool,
) -> Answer {
    let Some((mean, Interval { low, high })) = mean.zip(interval) else {
        return Answer::closed("ci_unavailable");
    };
    if !(low.is_finite() && high.is_finite()) {
        return Answer::closed("ci_unavailable");
    }
    let contains_zero = if one_sided {
        high >= 0.0
    } else {
        low <= 0.0 && high >= 0.0
    };
    if contains_zero {
        Answer::closed("ci_contains_zero")
    } else if low > 0.0 && low >= min_effect && mean >= min_effect {
        Answer::closed("regression_detected")
    } else if low > 0.0 || mean >= 0.0 {
        Answer::closed("mean_not_negative")
    } else if high > -min_effect || mean > -min_effect {
        Answer::closed("gain_below_threshold")
    } else {
        Answer::open("ci_gain_met")
    }
}

/// Whether the scales would stay: perplexities without and with them, the interval of their ratio, the predictive gate.
pub fn enable(
    policy: &Policy,
    perplexities: Option<(f64, f64)>,
    ratio: Option<Interval>,
    predictive: Answer,
) -> Answer {
    let Some((no, yes)) = perplexities else {
        return Answer::closed("no_ab_results");
    };
    if !(no > 0.0 && yes > 0.0 && no.is_finite() && yes.is_finite()) {
        return Answer::closed("invalid_ppl_values");
    }
    let gain = (no - yes) / no.max(1e-9);
    if gain < policy.min_rel_gain {
        return Answer::closed("below_min_rel_gain");
    }
    if summary::ln(no.max(1e-9)) - summary::ln(yes.max(1e-9)) < policy.min_effect_lognll {
        return Answer::closed("below_min_effect_lognll");
    }
    if policy.mode == Mode::Ci {
        let Some(Interval { low, high }) = ratio else {
            return Answer::closed("missing_ratio_ci");
        };
        if !(low > 0.0 && high > 0.0 && low.is_finite() && high.is_finite()) {
            return Answer::closed("invalid_ratio_ci");
        }
        let most = (1.0 - policy.min_rel_gain).min(summary::exp(-policy.min_effect_lognll));
        if high > most {
            return Answer::closed("ci_interval_too_high");
        }
    }
    if no - yes < policy.absolute_floor_ppl {
        return Answer::closed("below_absolute_floor");
    }
    if gain < policy.min_gain + policy.tie_breaker_deadband {
        return Answer::closed("below_threshold_with_deadband");
    }
    if policy.predictive_gate && !predictive.passed {
        return Answer::closed("predictive_gate_failed");
    }
    Answer::open("criteria_met")
}

/// Least fall of mean perplexity that the probe takes for a signal.
const MIN_FALL: f64 = 0.05;

/// Least relative fall.
const MIN_GAIN: f64 = 0.001;

/// Why a probe is no signal; nothing when it is one. A signal does not need the gates' consent.
pub fn probe_reasons(
    proposed: usize,
    perplexities: Option<(f64, f64)>,
    gain: Option<f64>,
) -> Vec<&'static str> {
    let mut reasons = Vec::new();
    if proposed < 1 {
        reasons.push("insufficient_scales");
    }
    match perplexities {
        None => reasons.push("missing_ppl"),
        Some((no, yes)) if no - yes >= MIN_FALL => {}
        Some(_) => reasons.push("abs_gain_below_threshold"),
    }
    match gain {
        None => reasons.push("missing_rel_gain"),
        Some(gain) if gain >= MIN_GAIN => {}
        Some(_) => reasons.push("rel_gain_below_threshold"),
    }
    reasons
}
