//! Variance: would scaling blocks' outputs make the model better? An edit that shrank or swelled an output can be told by
//! the fact that undoing it helps.
//!
//! Per decoder block the host measures the mean square of the last projection's output on the first windows. The guard
//! proposes scales that bring it to 1, draws them in to small steps, and tries them: the host repeats a few windows with the
//! outputs multiplied (no weight is written), and gates decide whether the loss fell enough.
//!
//! By default the reference is the subject itself, as in the reference system, so proposals are only reported. Policy
//! `reference: baseline` tries the subject's proposals; policy `probe` tries them with the reference probe's settings, whose
//! answer stands in `details.probe`. The guard never fails a model; it tells.
//!
//! Quantities: `activation.mean_square.firstK` of output projections, `window.loss` and `window.tokens` of both arms, and for
//! a trial `window.loss` of `first:K` with scales. Of a mixture of experts the block's figure is the mean over its experts'
//! last projections, and one scale multiplies them all.

mod calibrate;
mod details;
mod gate;
mod policy;
mod proposal;
mod targets;
#[cfg(test)]
mod tests;
mod trial;

use details::Evaluation;
use packhost_sdk::json::{Value as Json, json};
use packhost_sdk::{
    About, Failure, Finding, Guard, ModelInfo, Request, Result, Status, Step, Table, Verdict,
    export_guard, records,
};
use policy::{Policy, Scope};
use proposal::Proposal;
use targets::Targets;
use trial::{Trial, Windows};

struct Variance;

impl Guard for Variance {
    const ABOUT: About = About {
        id: "variance",
        version: env!("CARGO_PKG_VERSION"),
        title: "Variance of block outputs, and whether scaling them would help",
    };
    type Policy = Policy;

    fn plan(policy: &Policy, _model: &ModelInfo) -> Result<Vec<Request>> {
        policy.check()?;
        let quantity = targets::quantity(measured(policy));
        let roles: &[&str] = match policy.scope {
            Scope::Ffn => &["ffn-down"],
            Scope::Attn => &["attn-out"],
            Scope::Both => &["attn-out", "ffn-down"],
        };
        let squares = roles
            .iter()
            .map(|role| Request::new(&quantity, &format!("role:{role}")));
        let windows = ["preview", "final"].into_iter().flat_map(|arm| {
            ["window.loss", "window.tokens"].map(|quantity| Request::new(quantity, arm))
        });
        Ok(squares.chain(windows).collect())
    }

    fn judge(policy: &Policy, baseline: &Table, subject: &Table) -> Result<Step> {
        policy.check()?;
        let measured = measured(policy);
        for (whose, table) in [("baseline", baseline), ("subject", subject)] {
            present(table, measured, whose)?;
        }
        let read = |table, windows, whose| targets::read(policy, table, measured, windows, whose);
        let on_proposals = policy.proposal_windows();
        let before = read(baseline, on_proposals, "baseline")?;
        let now = read(subject, on_proposals, "subject")?;
        if now.is_empty() {
            return Ok(Step::Verdict(unsupported(policy)));
        }
        let mut more = Vec::new();
        let own = evaluate_own(policy, (&before, &now), subject, measured, &mut more)?;
        let probed = if policy.probe {
            evaluate_probe(&policy.of_probe(), subject, measured, &mut more)?
        } else {
            None
        };
        // Asking once for everything: the answers do not depend on each other.
        let (Some(own), true) = (own, more.is_empty()) else {
            more.dedup();
            return Ok(Step::Measure(more));
        };
        let mut details = details::of(&own, &now, policy.monitor_only());
        details["movement"] = details::movement(
            &proposal::propose(policy, &before),
            &proposal::propose(policy, &now),
        );
        details["ours"] = json!({"relative": details::relative(policy, &before, &now)});
        if let Some((evaluation, targets)) = &probed {
            details["probe"] = details::probe(evaluation, targets);
        }
        let findings = findings(&own, &now, policy.monitor_only(), &details);
        let status = if findings.is_empty() {
            Status::Pass
        } else {
            Status::Warn
        };
        Ok(Step::Verdict(Verdict {
            status,
            findings,
            details,
        }))
    }

    /// Limits from repeated runs. A run that tried nothing tells only its policy; the record of an earlier verdict
    /// (`record.variance`) may tell more.
    fn calibrate(policy: &Policy, runs: &[Table]) -> Result<Policy> {
        policy.check()?;
        let asked = policy
            .derivation
            .as_ref()
            .and_then(|derivation| derivation.runs);
        let runs = records("variance", runs, asked, |run| {
            present(run, measured(policy), "calibration run")?;
            Ok(json!({"policy": policy}))
        })?;
        let fitted = calibrate::fit(policy, &runs);
        fitted.check()?;
        Ok(fitted)
    }
}

export_guard!(Variance);

/// How many first windows' mean squares are measured: the most that anything looks at.
fn measured(policy: &Policy) -> usize {
    let of = |policy: &Policy| policy.proposal_windows().max(policy.calibration.windows);
    if policy.probe {
        of(policy).max(of(&policy.of_probe()))
    } else {
        of(policy)
    }
}

/// Refuses a table without the mean squares that the plan asks for.
fn present(table: &Table, measured: usize, whose: &str) -> Result<()> {
    let quantity = targets::quantity(measured);
    if table.of(&quantity).next().is_some() {
        return Ok(());
    }
    Err(Failure::failed(format!(
        "{whose}: the table has no `{quantity}` of any module; measure what the guard's plan asks for"
    )))
}

/// The evaluation by the policy itself; none while a trial is asked for.
fn evaluate_own(
    policy: &Policy,
    (before, now): (&Targets, &Targets),
    subject: &Table,
    measured: usize,
    more: &mut Vec<Request>,
) -> Result<Option<Evaluation>> {
    let windows = Windows::read(subject, policy.calibration.windows, "subject")?;
    if policy.monitor_only() {
        return Ok(Some(Evaluation {
            policy: policy.clone(),
            before: proposal::propose(policy, now),
            tried: Proposal::default(),
            windows,
            trial: None,
        }));
    }
    let on_trial = targets::read(
        policy,
        subject,
        measured,
        policy.calibration.windows,
        "subject",
    )?;
    let proposals = (
        proposal::propose(policy, before),
        proposal::propose(policy, &on_trial),
    );
    evaluate(policy, proposals, &on_trial, windows, subject, more)
}

/// The evaluation by the probe's settings: everything proposed for the subject on the windows of proposals is tried.
fn evaluate_probe(
    policy: &Policy,
    subject: &Table,
    measured: usize,
    more: &mut Vec<Request>,
) -> Result<Option<(Evaluation, Targets)>> {
    let windows = Windows::read(subject, policy.calibration.windows, "subject")?;
    let on_proposals = policy.proposal_windows();
    let targets = targets::read(policy, subject, measured, on_proposals, "subject")?;
    let proposal = proposal::propose(policy, &targets);
    let proposals = (proposal.clone(), proposal);
    let evaluation = evaluate(policy, proposals, &targets, windows, subject, more)?;
    Ok(evaluation.map(|evaluation| (evaluation, targets)))
}

/// Reads the trial of the second proposal from the table, or asks for it.
fn evaluate(
    policy: &Policy,
    (before, tried): (Proposal, Proposal),
    targets: &Targets,
    windows: Windows,
    subject: &Table,
    more: &mut Vec<Request>,
) -> Result<Option<Evaluation>> {
    let covered = windows.usable() >= policy.calibration.min_coverage.max(1);
    let mut trial = None;
    if covered && !tried.filtered.is_empty() {
        let request = trial::request(policy.calibration.windows, &tried.filtered, targets);
        trial = Trial::read(policy, subject, &request, &windows)?;
        if trial.is_none() {
            more.push(request);
            return Ok(None);
        }
    }
    Ok(Some(Evaluation {
        policy: policy.clone(),
        before,
        tried,
        windows,
        trial,
    }))
}

/// The verdict about a model without a block output that the policy looks at.
fn unsupported(policy: &Policy) -> Verdict {
    let message = "no output projection of the model is in scope and tapped; nothing can be scaled";
    Verdict {
        status: Status::Warn,
        findings: vec![Finding {
            scope: "model".to_owned(),
            code: "no_variance_targets".to_owned(),
            message: message.to_owned(),
            value: None,
            limit: None,
        }],
        details: json!({
            "passed": false,
            "decision": "monitor",
            "supported": false,
            "reason": "no_variance_targets",
            "policy": policy,
            "metrics": {},
            "movement": {"relative_signal": false, "new_modules": []},
        }),
    }
}

fn findings(
    own: &Evaluation,
    targets: &Targets,
    monitor_only: bool,
    details: &Json,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |scope: String, code: &str, message: String, value, limit| {
        findings.push(Finding {
            scope,
            code: code.to_owned(),
            message,
            value,
            limit,
        });
    };
    for target in targets
        .values()
        .filter(|target| target.mean_squares.is_empty())
    {
        let modules = target.modules.join(", ");
        let message = format!("no output of {modules} was finite");
        add(modules, "not_measured", message, None, None);
    }
    if !own.covered() {
        let (coverage, least) = (own.coverage(), own.policy.calibration.min_coverage);
        let message =
            format!("{coverage} of the windows have a finite loss, at least {least} are needed");
        let (coverage, least) = (coverage as f64, least as f64);
        add(
            "model".to_owned(),
            "insufficient_coverage",
            message,
            Some(coverage),
            Some(least),
        );
    }
    if own.enable().passed && !monitor_only {
        let message =
            "scaling block outputs makes the model better; the change left variance off".to_owned();
        add(
            "model".to_owned(),
            "scaling_helps",
            message,
            own.gain(),
            Some(own.policy.min_rel_gain),
        );
    }
    let probe = &details["probe"];
    if probe["signal"] == json!(true) {
        let message = "the probe's scales make the subject better".to_owned();
        add(
            "model".to_owned(),
            "ve_signal",
            message,
            probe["ab_gain"].as_f64(),
            None,
        );
    }
    findings
}
