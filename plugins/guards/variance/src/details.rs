//! What the report says, in the reference's words; figures of our own stand under `ours`.

use packhost_sdk::json::{Map, Value as Json, json};
use packhost_sdk::stats::bootstrap::Interval;
use packhost_sdk::stats::summary;

use crate::gate::{self, Answer};
use crate::policy::Policy;
use crate::proposal::{self, Proposal, Scales};
use crate::targets::{Place, Targets};
use crate::trial::{Trial, Windows};

/// How many proposals the probe names.
const TOP: usize = 6;

/// Proposals, their trial and the gates' answers.
pub struct Evaluation {
    /// The settings.
    pub policy: Policy,
    /// Proposals for the reference, on the windows of proposals.
    pub before: Proposal,
    /// Proposals that were tried.
    pub tried: Proposal,
    /// The windows of the trial.
    pub windows: Windows,
    /// What came of it; none when nothing was tried.
    pub trial: Option<Trial>,
}

impl Evaluation {
    /// Usable windows.
    pub fn coverage(&self) -> usize {
        let of_trial = self.trial.as_ref().map(|trial| trial.coverage);
        of_trial.unwrap_or_else(|| self.windows.usable())
    }

    /// Whether enough windows were usable.
    pub fn covered(&self) -> bool {
        self.coverage() >= self.policy.calibration.min_coverage.max(1)
    }

    /// Mean perplexity without and with the scales; equal where there are none.
    pub fn perplexities(&self) -> Option<(f64, f64)> {
        match &self.trial {
            Some(trial) => trial.perplexities,
            None if self.covered() => self.windows.mean_perplexity().map(|mean| (mean, mean)),
            None => None,
        }
    }

    fn ratio(&self) -> Option<Interval> {
        match &self.trial {
            Some(trial) => trial.ratio,
            None => self.perplexities().map(|_| Interval {
                low: 1.0,
                high: 1.0,
            }),
        }
    }

    /// The relative fall of mean perplexity.
    pub fn gain(&self) -> Option<f64> {
        match &self.trial {
            Some(trial) => trial.gain(),
            None => self.perplexities().map(|_| 0.0),
        }
    }

    /// The predictive gate.
    pub fn predictive(&self) -> Answer {
        if !self.covered() {
            return Answer::closed("insufficient_coverage");
        }
        match &self.trial {
            None => Answer::closed("no_scales"),
            Some(_) if !self.policy.predictive_gate => Answer::open("disabled"),
            Some(trial) => gate::predictive(
                trial.mean_delta,
                trial.delta,
                self.policy.min_effect_lognll,
                self.policy.predictive_one_sided,
            ),
        }
    }

    /// Whether the scales would stay.
    pub fn enable(&self) -> Answer {
        gate::enable(
            &self.policy,
            self.perplexities(),
            self.ratio(),
            self.predictive(),
        )
    }

    /// In the reference's words.
    pub fn status(&self) -> &'static str {
        match (&self.trial, self.covered()) {
            (_, false) => "insufficient",
            (None, true) => "no_scaling_required",
            (Some(_), true) => "complete",
        }
    }

    fn calibration(&self) -> Json {
        let calibration = &self.policy.calibration;
        let perplexities = self.perplexities();
        json!({
            "requested": calibration.windows,
            "coverage": self.coverage(),
            "min_coverage": calibration.min_coverage,
            "seed": self.policy.seed(),
            "status": self.status(),
            "tag": "post_edit",
            "ppl_no_ve": perplexities.map(|(no, _)| no),
            "ppl_with_ve": perplexities.map(|(_, yes)| yes),
            "ratio_ci": ends(self.ratio()),
        })
    }

    fn predictive_details(&self) -> Json {
        let answer = self.predictive();
        let delta = self.trial.as_ref().and_then(|trial| trial.delta);
        let gain = delta.map(|delta| Interval {
            low: -delta.high,
            high: -delta.low,
        });
        json!({
            "evaluated": self.covered(),
            "passed": answer.passed,
            "reason": answer.reason,
            "delta_ci": ends(delta),
            "gain_ci": ends(gain),
            "mean_delta": self.trial.as_ref().and_then(|trial| trial.mean_delta),
        })
    }
}

/// Both ends; nulls of no interval.
fn ends(interval: Option<Interval>) -> Json {
    match interval {
        Some(Interval { low, high }) => json!([low, high]),
        None => json!([null, null]),
    }
}

/// Scales under the reference's long names.
fn named(scales: &Scales) -> Json {
    let of = |(place, scale): (&Place, &f64)| (place.canonical(), json!(scale));
    Json::Object(scales.iter().map(of).collect())
}

/// Scales under the reference's short names.
fn short(scales: &Scales) -> Json {
    let of = |(place, scale): (&Place, &f64)| (place.short(), json!(scale));
    Json::Object(scales.iter().map(of).collect())
}

/// The guard's own evaluation.
pub fn of(evaluation: &Evaluation, targets: &Targets, monitor_only: bool) -> Json {
    let policy = &evaluation.policy;
    let enable = evaluation.enable();
    let enabled = enable.passed && !monitor_only;
    let perplexities = evaluation.perplexities();
    let names: Vec<String> = targets.keys().map(|place| place.canonical()).collect();
    let warning = (evaluation.status() != "complete").then(|| {
        json!({
            "kind": "variance_warning",
            "severity": "warning",
            "message": "no scales were tried on enough windows; the guard only reports",
            "details": {},
        })
    });
    json!({
        "passed": true,
        "decision": if warning.is_some() { "monitor" } else { "allow" },
        "supported": true,
        "policy": policy,
        "metrics": {
            "proposed_scales": evaluation.tried.filtered.len(),
            "target_modules": targets.len(),
            "target_module_names": names,
            "focus_modules": [],
            "tap": policy.tap.patterns(),
            "ve_enabled": enabled,
            "ab_gain": evaluation.gain(),
            "ab_windows_used": evaluation.coverage(),
            "ab_seed_used": policy.seed(),
            "monitor_only": monitor_only,
            "min_gain_threshold": policy.min_gain,
            "met_threshold": enabled,
            "gate_reason": enable.reason,
            "ppl_no_ve": perplexities.map(|(no, _)| no),
            "ppl_with_ve": perplexities.map(|(_, yes)| yes),
            "scope": policy.scope,
            "max_calib_used": policy.max_calib,
            "mode": policy.mode,
            "min_rel_gain": policy.min_rel_gain,
            "alpha": policy.alpha,
            "ratio_ci": ends(evaluation.ratio()),
            "raw_scales_pre_edit": named(&evaluation.before.raw),
            "raw_scales_post_edit": named(&evaluation.tried.raw),
            "proposed_scales_pre_edit": named(&evaluation.before.filtered),
            "proposed_scales_post_edit": named(&evaluation.tried.filtered),
        },
        "calibration": evaluation.calibration(),
        "predictive_gate": evaluation.predictive_details(),
        "ab_point_estimates": {
            "tag": "post_edit",
            "ppl_no_ve": perplexities.map(|(no, _)| no),
            "ppl_with_ve": perplexities.map(|(_, yes)| yes),
            "coverage": evaluation.coverage(),
        },
        "raw_scales": short(&evaluation.before.raw),
        "scale_filtering": {
            "raw_scales": evaluation.before.raw.len(),
            "filtered_scales": evaluation.before.filtered.len(),
            "min_abs_adjust": policy.min_abs_adjust,
            "max_scale_step": policy.max_scale_step,
            "topk_backstop": policy.topk_backstop,
            "backstop_used": evaluation.before.backstop_used,
        },
        "target_resolution": resolution(policy, targets),
        "diagnostics": warning.into_iter().collect::<Vec<_>>(),
        "violations": [],
    })
}

fn resolution(policy: &Policy, targets: &Targets) -> Json {
    let matched: Vec<String> = targets.keys().map(|place| place.canonical()).collect();
    let modules: Map<String, Json> = targets
        .iter()
        .map(|(place, target)| (place.canonical(), json!(target.modules)))
        .collect();
    json!({
        "scope": policy.scope,
        "tap": policy.tap.patterns(),
        "total_matched": targets.len(),
        "matched": matched,
        "modules": modules,
    })
}

/// The probe's evaluation, in the words of the reference's probe.
pub fn probe(evaluation: &Evaluation, targets: &Targets) -> Json {
    let proposed = evaluation.tried.filtered.len();
    // Without a trial nothing was compared; without scales the comparison is of the model with itself.
    let (perplexities, gain) = (evaluation.perplexities(), evaluation.gain());
    let reasons = gate::probe_reasons(proposed, perplexities, gain);
    let enable = evaluation.enable();
    let mut top: Vec<(&Place, &f64)> = evaluation.before.raw.iter().collect();
    top.sort_by(|a, b| (b.1 - 1.0).abs().total_cmp(&(a.1 - 1.0).abs()));
    let top = top.into_iter().take(TOP);
    let top: Vec<Json> = top
        .map(|(place, scale)| json!({"module": place.canonical(), "scale": scale}))
        .collect();
    let names: Vec<String> = targets.keys().map(|place| place.canonical()).collect();
    json!({
        "probe": "ve_probe_v1",
        "signal": reasons.is_empty(),
        "signal_reasons": reasons,
        "would_enable": enable.passed,
        "gate_reason": enable.reason,
        "proposed_scales": proposed,
        "proposed_scales_pre_edit": named(&evaluation.before.filtered),
        "top_scales_pre_edit": top,
        "ppl_no_ve": perplexities.map(|(no, _)| no),
        "ppl_with_ve": perplexities.map(|(_, yes)| yes),
        "abs_improvement": perplexities.map(|(no, yes)| no - yes),
        "ab_gain": gain,
        "ratio_ci": ends(evaluation.ratio()),
        "predictive_gate": evaluation.predictive_details(),
        "calibration": evaluation.calibration(),
        "calibration_windows_loaded": evaluation.windows.losses.len(),
        "target_module_names": names,
        "target_resolution": resolution(&evaluation.policy, targets),
        "prepare": {
            "ready": true,
            "target_modules": targets.len(),
            "proposed_scales": evaluation.before.filtered.len(),
            "backstop_used": evaluation.before.backstop_used,
        },
        "policy": evaluation.policy,
    })
}

/// Which blocks are tried in the subject and not in the unedited model.
pub fn movement(baseline: &Proposal, subject: &Proposal) -> Json {
    let new: Vec<String> = subject
        .filtered
        .keys()
        .filter(|place| !baseline.filtered.contains_key(place))
        .map(|place| place.canonical())
        .collect();
    json!({
        "baseline_proposed": named(&baseline.filtered),
        "subject_proposed": named(&subject.filtered),
        "relative_signal": !new.is_empty(),
        "new_modules": new,
    })
}

/// The scale that would bring each block of the subject back to the baseline's mean square on the same windows, and those
/// beyond the deadband. A change of one projection shows in its own block and hardly in earlier ones.
pub fn relative(policy: &Policy, baseline: &Targets, subject: &Targets) -> Json {
    let mut scales = Map::new();
    let mut beyond = Vec::new();
    for (place, now) in subject {
        let before = baseline.get(place);
        let typical = |squares: &[f64]| proposal::typical(squares).filter(|value| *value > 0.0);
        let before = before.and_then(|before| typical(&before.mean_squares));
        let Some((before, now)) = before.zip(typical(&now.mean_squares)) else {
            continue;
        };
        let scale = (before / now).sqrt();
        if summary::ln(scale).abs() > policy.deadband {
            beyond.push(place.canonical());
        }
        scales.insert(place.canonical(), json!(scale));
    }
    json!({"scales": scales, "deadband": policy.deadband, "beyond_deadband": beyond})
}
