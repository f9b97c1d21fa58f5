//! Spectral: the largest singular value of every weight matrix, judged within its family of modules.
//!
//! A matrix whose value lies far from its family's mean is a counted warning; more of them than the budget, a value above
//! an absolute limit, and a matrix that lost rank or a row against the reference fail. Which warnings count is decided by a
//! test of families (Benjamini-Hochberg or Bonferroni over their smallest p-values).
//!
//! By default the reference is the subject itself, as in the reference system, so what gates is how unlike its peers a
//! matrix is; `details.movement` tells what is new against the unedited model, and policy `reference: baseline` makes the
//! real comparison. No weight is changed: a "cap" is a warning. A matrix that is usual among its peers after a change stays
//! unseen, whatever it was before; that is another guard's work.
//!
//! Quantities: `weight.sigma.START.N` and, where collapse is looked for, `weight.frobenius_sq`, `weight.row_norms` and
//! `weight.column_norms`, of every matrix called `*.weight` in scope. A module is a tensor's name without `.weight`. A tied
//! head counts as a module of its own, as in the reference: the host gives it rows that repeat the embedding's.

mod calibrate;
mod details;
mod family;
mod modules;
mod movement;
mod outcome;
mod policy;
#[cfg(test)]
mod tests;

use movement::Counted;
use outcome::{Outcome, Reference};
use packhost_sdk::{
    About, Against, Finding, Guard, ModelInfo, Request, Result, Status, Step, Table, Verdict,
    export_guard, module_name, records,
};
use policy::Policy;

struct Spectral;

impl Guard for Spectral {
    const ABOUT: About = About {
        id: "spectral",
        version: env!("CARGO_PKG_VERSION"),
        title: "Largest singular values of weights within their families",
    };
    type Policy = Policy;

    fn plan(policy: &Policy, model: &ModelInfo) -> Result<Vec<Request>> {
        policy.check()?;
        let mut quantities = vec![policy.estimator.quantity()];
        if policy.degeneracy.enabled {
            let norms = [
                "weight.frobenius_sq",
                "weight.row_norms",
                "weight.column_norms",
            ];
            quantities.extend(norms.map(str::to_owned));
        }
        let scopes: Vec<String> = if policy.takes_all() {
            vec!["*".to_owned()]
        } else {
            let matrices = model
                .tensors
                .iter()
                .filter(|tensor| tensor.shape.len() == 2 && tensor.dtype.is_float());
            let chosen = matrices.filter(|tensor| {
                module_name(&tensor.name).is_some_and(|module| {
                    family::in_scope(module, policy.scope) && policy.admits(module)
                })
            });
            chosen.map(|tensor| tensor.name.clone()).collect()
        };
        let of_scope = |scope: &String| {
            let requests = quantities
                .iter()
                .map(|quantity| Request::new(quantity, scope));
            requests.collect::<Vec<_>>()
        };
        Ok(scopes.iter().flat_map(of_scope).collect())
    }

    fn judge(policy: &Policy, baseline: &Table, subject: &Table) -> Result<Step> {
        policy.check()?;
        let before = modules::read(policy, baseline, "baseline")?;
        let now = modules::read(policy, subject, "subject")?;
        let before_itself = Reference::new(policy, &before);
        let now_itself = Reference::new(policy, &now);
        let of_itself = outcome::judge(policy, &now_itself, &now, &before);
        let stock = outcome::judge(policy, &before_itself, &before, &before);
        let moved = movement::between(&Counted::of(&stock), &Counted::of(&of_itself));
        let (reference, outcome) = match policy.reference {
            Against::Subject => (&now_itself, of_itself),
            Against::Baseline => (
                &before_itself,
                outcome::judge(policy, &before_itself, &now, &before),
            ),
        };
        let details = details::of(&details::Judged {
            policy,
            before: &before,
            now: &now,
            reference,
            outcome: &outcome,
            movement: moved,
        });
        Ok(Step::Verdict(Verdict {
            status: status(&outcome),
            findings: findings(&outcome),
            details,
        }))
    }

    /// Limits at which the unedited model's own outliers stay within the budget. Weights do not depend on a run's windows,
    /// so every run tells the same; a run may also be the record of an earlier verdict (`record.spectral`).
    fn calibrate(policy: &Policy, runs: &[Table]) -> Result<Policy> {
        policy.check()?;
        let asked = policy
            .derivation
            .as_ref()
            .and_then(|derivation| derivation.runs);
        let runs = records("spectral", runs, asked, |run| {
            let modules = modules::read(policy, run, "calibration run")?;
            let reference = Reference::new(policy, &modules);
            let outcome = outcome::judge(policy, &reference, &modules, &modules);
            Ok(details::record(policy, &outcome))
        })?;
        let runs = runs
            .iter()
            .map(calibrate::Run::read)
            .collect::<Result<Vec<_>>>()?;
        let fitted = calibrate::fit(policy, &runs);
        fitted.check()?;
        Ok(fitted)
    }
}

export_guard!(Spectral);

fn status(outcome: &Outcome) -> Status {
    match outcome.decision() {
        "block" => Status::Fail,
        "monitor" => Status::Warn,
        _ => Status::Pass,
    }
}

fn findings(outcome: &Outcome) -> Vec<Finding> {
    let finding = |violation: &outcome::Violation| Finding {
        scope: violation.module.clone(),
        code: violation.kind.name().to_owned(),
        message: violation.message(),
        value: Some(violation.value),
        limit: Some(violation.limit),
    };
    outcome.violations.iter().map(finding).collect()
}
