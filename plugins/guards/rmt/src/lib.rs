//! RMT: is a module's output further from noise than it was?
//!
//! Of every embedding and block projection the host measures how the largest singular value of its standardised output
//! compares with the edge that random matrix theory gives pure noise (Marchenko and Pastur). A family fails when its largest
//! value grew by more than the accepted share. A pure rescaling of an output leaves the figure as it is: shapes change it.
//!
//! By default the reference is the subject itself, as in the reference system, so the gate holds unless the table lacks
//! what is needed; policy `reference: baseline` makes the real comparison. `details.movement` always compares baseline and
//! subject on the same windows, and with policy `probe` a second comparison on more windows decides by the module that grew
//! most, which a family's largest value can hide.
//!
//! The older rule about weights (a largest singular value that grew by more than a margin) is reported as
//! `details.weight_outliers`, baseline against subject, and decides nothing. Nor do counts of singular values of outputs
//! above the edge of noise (`details.activation_outliers`), which policy `count_outliers` asks for.
//!
//! Quantities: `activation.edge_risk.SET` (and `activation.outliers.SET.T`) of the modules with the roles of [`ROLES`], `activation.tokens.SET`, and of the same
//! modules' weights [`SIGMA`], which another guard asks for anyway.

mod calibrate;
mod policy;
mod risks;
mod rule;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use packhost_sdk::json::{Value as Json, json};
use packhost_sdk::{
    About, Against, Failure, Finding, Guard, ModelInfo, Request, Result, Status, Step, Table,
    Verdict, export_guard, records,
};
use policy::Policy;
use risks::Risks;
use rule::{Pairs, Violation};

/// Roles of the modules that are looked at. The output head is not, nor are norms without a mean (RMSNorm), which are the
/// only ones in the architectures that the host runs.
const ROLES: [&str; 9] = [
    "embedding",
    "attn-q",
    "attn-k",
    "attn-v",
    "attn-out",
    "ffn-gate",
    "ffn-up",
    "ffn-down",
    "router",
];

/// The largest singular value of a weight.
const SIGMA: &str = "weight.sigma.ones.4";

struct Rmt;

impl Guard for Rmt {
    const ABOUT: About = About {
        id: "rmt",
        version: env!("CARGO_PKG_VERSION"),
        title: "Edge risk of activations by module and family",
    };
    type Policy = Policy;

    fn plan(policy: &Policy, _model: &ModelInfo) -> Result<Vec<Request>> {
        policy.check()?;
        let mut sets = vec![policy.activation_sampling.windows.set()];
        if policy.probe {
            sets.push(policy.probe_set());
        }
        sets.dedup();
        let of_set = |set: &String| {
            let tokens = Request::new(&format!("activation.tokens.{set}"), "model");
            let quantity = format!("activation.edge_risk.{set}");
            let risks = ROLES.map(|role| Request::new(&quantity, &format!("role:{role}")));
            std::iter::once(tokens).chain(risks).collect::<Vec<_>>()
        };
        let of_roles =
            |quantity: &str| ROLES.map(|role| Request::new(quantity, &format!("role:{role}")));
        let outliers = policy
            .count_outliers
            .then(|| of_roles(&policy.outlier_count()));
        let requests = sets.iter().flat_map(of_set).chain(of_roles(SIGMA));
        Ok(requests.chain(outliers.into_iter().flatten()).collect())
    }

    fn judge(policy: &Policy, baseline: &Table, subject: &Table) -> Result<Step> {
        policy.check()?;
        let set = policy.activation_sampling.windows.set();
        let before = Risks::read(policy, baseline, &set, "baseline")?;
        let now = Risks::read(policy, subject, &set, "subject")?;
        let base = match policy.reference {
            Against::Subject => &now,
            Against::Baseline => &before,
        };
        // Rows that are not there are a defect of the table, unless the policy has a verdict for it. Outputs of which none
        // was finite are a defect of the model.
        let measured = !(base.modules.is_empty() || now.modules.is_empty());
        if (base.absent() || now.absent()) && !policy.activation_required {
            return Err(Failure::failed(format!(
                "the table has no `activation.edge_risk.{set}` of any module; measure what the guard's plan asks for"
            )));
        }
        let pairs = rule::largest(base, &now);
        let violations = rule::violations(policy, &pairs);
        let missing = missing(&before, &now);
        let judged = Judged {
            policy,
            before: &before,
            now: &now,
            pairs: &pairs,
            violations: &violations,
            measured,
        };
        let mut details = judged.details();
        details["modules_missing"] = json!(missing);
        let (base, current) = (baseline.numbers(SIGMA)?, subject.numbers(SIGMA)?);
        details["weight_outliers"] = rule::outliers(policy, &base, &current);
        if policy.count_outliers {
            details["activation_outliers"] = rule::output_outliers(policy, baseline, subject)?;
        }
        if policy.probe {
            let set = policy.probe_set();
            let before = Risks::read(policy, baseline, &set, "baseline")?;
            let now = Risks::read(policy, subject, &set, "subject")?;
            for (whose, risks) in [("baseline", &before), ("subject", &now)] {
                if risks.modules.is_empty() {
                    return Err(Failure::failed(format!(
                        "{whose}: the table has no `activation.edge_risk.{set}` of any module, which the probe compares; \
                         measure what the guard's plan asks for"
                    )));
                }
            }
            details["probe"] = rule::probe(policy, &before, &now);
        }
        let status = match (judged.passed(), missing.is_empty()) {
            (false, _) => Status::Fail,
            (true, false) => Status::Warn,
            (true, true) => Status::Pass,
        };
        let mut findings = judged.findings();
        findings.extend(missing.iter().map(|module| Finding {
            scope: (*module).to_owned(),
            code: "module_not_measured".to_owned(),
            message: format!("{module} has no edge risk in the subject: no output of it was finite, or it is gone"),
            value: None,
            limit: None,
        }));
        Ok(Step::Verdict(Verdict {
            status,
            findings,
            details,
        }))
    }

    /// Accepted growth by family. A run compares the unedited model with itself, so what it measures grows by nothing; the
    /// record of an earlier verdict (`record.rmt`) may tell otherwise.
    fn calibrate(policy: &Policy, runs: &[Table]) -> Result<Policy> {
        policy.check()?;
        let asked = policy
            .derivation
            .as_ref()
            .and_then(|derivation| derivation.runs);
        let set = policy.activation_sampling.windows.set();
        let runs = records("rmt", runs, asked, |run| {
            let risks = Risks::read(policy, run, &set, "calibration run")?;
            if risks.modules.is_empty() {
                return Err(Failure::failed(format!(
                    "calibration run: the table has no `activation.edge_risk.{set}` of any module; measure what the guard's \
                     plan asks for"
                )));
            }
            let families = risks.families();
            Ok(json!({
                "edge_risk_by_family_base": families,
                "edge_risk_by_family": families,
                "epsilon_by_family": policy.epsilon_by_family,
                "policy": policy,
            }))
        })?;
        let runs: Vec<_> = runs.iter().map(calibrate::Run::read).collect();
        let fitted = calibrate::fit(policy, &runs);
        fitted.check()?;
        Ok(fitted)
    }
}

export_guard!(Rmt);

/// Modules of the baseline that the subject has no value for.
fn missing<'a>(before: &'a Risks, now: &Risks) -> Vec<&'a str> {
    let known = before.modules.keys();
    known
        .filter(|module| !now.modules.contains_key(*module))
        .map(String::as_str)
        .collect()
}

/// A judgement, for report and findings.
struct Judged<'a> {
    policy: &'a Policy,
    before: &'a Risks,
    now: &'a Risks,
    pairs: &'a Pairs,
    violations: &'a [Violation],
    measured: bool,
}

/// Why the guard fails without activations.
const NO_ACTIVATIONS: &str = "activation_required";

impl Judged<'_> {
    fn passed(&self) -> bool {
        self.measured && self.violations.is_empty()
    }

    fn findings(&self) -> Vec<Finding> {
        let mut findings: Vec<Finding> = self
            .violations
            .iter()
            .map(|violation| Finding {
                scope: violation.family.to_owned(),
                code: "edge_risk_growth".to_owned(),
                message: violation.message(),
                value: Some(violation.current),
                limit: Some(violation.allowed()),
            })
            .collect();
        if !self.measured {
            findings.push(Finding {
                scope: "model".to_owned(),
                code: NO_ACTIVATIONS.to_owned(),
                message: if self.now.rejected.is_empty() {
                    "no activations were measured, and the policy demands them".to_owned()
                } else {
                    format!(
                        "no output of any of {} modules was finite",
                        self.now.rejected.len()
                    )
                },
                value: None,
                limit: None,
            });
        }
        findings
    }

    /// The report's figures, in the reference's words.
    fn details(&self) -> Json {
        let policy = self.policy;
        let by_family = |read: &dyn Fn(&'static str, &rule::Pair) -> f64| -> BTreeMap<&str, f64> {
            let pairs = self.pairs.iter();
            pairs
                .map(|(family, pair)| (*family, read(family, pair)))
                .collect()
        };
        let growths: Vec<(f64, f64)> = self
            .pairs
            .values()
            .filter(|pair| pair.base > 0.0)
            .map(|pair| (pair.current / pair.base, pair.current / pair.base - 1.0))
            .collect();
        let largest =
            |values: &dyn Fn(&(f64, f64)) -> f64| growths.iter().map(values).reduce(f64::max);
        let mean = growths.iter().map(|(_, delta)| delta).sum::<f64>() / growths.len() as f64;
        let violations: Vec<Json> = self.violations.iter().map(Violation::details).collect();
        json!({
            "passed": self.passed(),
            "decision": if self.passed() { "allow" } else { "block" },
            "reason": (!self.measured).then_some(NO_ACTIVATIONS),
            "policy": policy,
            "mode": "activation_edge_risk",
            "stable": self.passed(),
            "status": if self.passed() { "stable" } else { "unstable" },
            "flags": {"rmt_stable": self.passed()},
            "edge_risk_by_family_base": by_family(&|_, pair| pair.base),
            "edge_risk_by_family": by_family(&|_, pair| pair.current),
            "edge_risk_by_module": self.now.modules,
            "edge_risk_by_module_base": match policy.reference {
                Against::Subject => &self.now.modules,
                Against::Baseline => &self.before.modules,
            },
            "epsilon_by_family": by_family(&|family, _| policy.epsilon(family)),
            "epsilon_default": policy.epsilon_default,
            "epsilon_violations": violations,
            "families": self.families(),
            "max_edge_delta": largest(&|(_, delta)| *delta),
            "max_edge_ratio": largest(&|(ratio, _)| *ratio),
            "mean_edge_delta": (!growths.is_empty()).then_some(mean),
            "modules_checked": self.now.modules.len(),
            "modules_rejected": self.now.rejected,
            "windows_used": self.now.windows,
            "token_weight_total": self.now.tokens,
            "measurement_contract": {
                "kind": "activation_edge_risk",
                "estimator": policy.estimator,
                "activation_sampling": policy.activation_sampling,
            },
            "movement": self.movement(),
        })
    }

    fn families(&self) -> Json {
        let of = |(family, pair): (&&'static str, &rule::Pair)| {
            let epsilon = self.policy.epsilon(family);
            let known = |value: f64| (pair.base > 0.0).then_some(value);
            let details = json!({
                "edge_base": pair.base,
                "edge_cur": pair.current,
                "epsilon": epsilon,
                "allowed": known((1.0 + epsilon) * pair.base),
                "ratio": known(pair.current / pair.base),
                "delta": known(pair.current / pair.base - 1.0),
            });
            ((*family).to_owned(), details)
        };
        Json::Object(self.pairs.iter().map(of).collect())
    }

    /// Each model against itself is stable by construction, so by the suite's rule nothing moves; the comparison of the two
    /// on the same windows stands beside.
    fn movement(&self) -> Json {
        let stable =
            |risks: &Risks| rule::violations(self.policy, &rule::largest(risks, risks)).is_empty();
        let (before, now) = (stable(self.before), stable(self.now));
        json!({
            "baseline_stable": before,
            "subject_stable": now,
            "relative_signal": before && !now,
            "against_baseline": rule::probe(self.policy, self.before, self.now),
        })
    }
}
