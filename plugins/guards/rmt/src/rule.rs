//! When growth is too much: of a family's largest value (the reference's gate), and of the module that grew most.

use std::collections::{BTreeMap, BTreeSet};

use packhost_sdk::json::{Value as Json, json};
use packhost_sdk::{Result, Table, module_name};

use crate::policy::{FAMILIES, Policy};
use crate::risks::{Risks, family};

/// How many modules a list of the largest names.
const TOP: usize = 25;

/// A family that grew too much.
#[derive(Debug, Clone, PartialEq)]
pub struct Violation {
    /// The family.
    pub family: &'static str,
    /// The module that decided, where one did.
    pub module: Option<String>,
    /// Before.
    pub base: f64,
    /// After.
    pub current: f64,
    /// Accepted relative growth.
    pub epsilon: f64,
}

impl Violation {
    pub fn allowed(&self) -> f64 {
        (1.0 + self.epsilon) * self.base
    }

    /// Relative growth.
    pub fn delta(&self) -> f64 {
        self.current / self.base - 1.0
    }

    pub fn details(&self) -> Json {
        let mut details = json!({
            "family": self.family,
            "edge_base": self.base,
            "edge_cur": self.current,
            "delta": self.delta(),
            "allowed": self.allowed(),
            "epsilon": self.epsilon,
        });
        if let Some(module) = &self.module {
            details["module"] = json!(module);
        }
        details
    }

    /// A sentence for people.
    pub fn message(&self) -> String {
        let what = match &self.module {
            Some(module) => format!("{module} (family {})", self.family),
            None => format!("family {}", self.family),
        };
        format!(
            "the edge risk of {what} rose from {:.6} to {:.6}, limit {:.6}",
            self.base,
            self.current,
            self.allowed()
        )
    }
}

/// A family's value before and after, and where it comes from.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Pair {
    pub base: f64,
    pub current: f64,
    pub module: Option<String>,
}

/// Values by family: every family of the reference's tables, and any other that has a value.
pub type Pairs = BTreeMap<&'static str, Pair>;

/// Every family's largest value. A family without a value has 0.
pub fn largest(base: &Risks, current: &Risks) -> Pairs {
    let (base, current) = (base.families(), current.families());
    let names: BTreeSet<&'static str> = FAMILIES
        .into_iter()
        .chain(base.keys().copied())
        .chain(current.keys().copied())
        .collect();
    let pair = |family| Pair {
        base: base.get(family).copied().unwrap_or(0.0),
        current: current.get(family).copied().unwrap_or(0.0),
        module: None,
    };
    names
        .into_iter()
        .map(|family| (family, pair(family)))
        .collect()
}

/// Every family's module of largest relative growth among those with a positive value before; of equal ones the first in
/// the order of their names' bytes.
pub fn most_grown(base: &Risks, current: &Risks) -> Pairs {
    let mut pairs: Pairs = FAMILIES.map(|family| (family, Pair::default())).into();
    let mut growth: BTreeMap<&'static str, f64> = BTreeMap::new();
    for (module, before, now) in both(base, current) {
        if before <= 0.0 {
            continue;
        }
        let family = family(module);
        let grown = (now - before) / before;
        if growth.get(family).is_none_or(|most| grown > *most) {
            growth.insert(family, grown);
            let pair = Pair {
                base: before,
                current: now,
                module: Some(module.to_owned()),
            };
            pairs.insert(family, pair);
        }
    }
    pairs
}

/// The families that grew by more than their epsilon. One that had no value cannot.
pub fn violations(policy: &Policy, pairs: &Pairs) -> Vec<Violation> {
    let of = |(family, pair): (&&'static str, &Pair)| Violation {
        family,
        module: pair.module.clone(),
        base: pair.base,
        current: pair.current,
        epsilon: policy.epsilon(family),
    };
    let grown =
        |violation: &Violation| violation.base > 0.0 && violation.current > violation.allowed();
    pairs.iter().map(of).filter(grown).collect()
}

/// The older rule about a weight's largest singular value: growth above `(1 + deadband)·margin`, and the growth.
pub fn outlier(policy: &Policy, sigma: f64, base: f64) -> (bool, f64) {
    let ratio = sigma / base;
    (ratio > policy.outlying(), ratio)
}

/// Weights that the older rule finds in the subject against the baseline. It decides nothing.
pub fn outliers(
    policy: &Policy,
    base: &BTreeMap<&str, f64>,
    current: &BTreeMap<&str, f64>,
) -> Json {
    let known = base.iter().filter(|(_, sigma)| **sigma > 0.0);
    let pairs = known.filter_map(|(tensor, base)| Some((*tensor, *base, *current.get(tensor)?)));
    let pairs = pairs
        .filter(|(tensor, ..)| module_name(tensor).is_some_and(|module| policy.admits(module)));
    let mut measured = 0;
    let mut found = Vec::new();
    for (tensor, base, sigma) in pairs {
        measured += 1;
        let (outlier, ratio) = outlier(policy, sigma, base);
        if outlier {
            found.push(json!({"module": module_name(tensor), "sigma_base": base, "sigma_cur": sigma, "ratio": ratio}));
        }
    }
    json!({
        "threshold": policy.outlying(),
        "weights": measured,
        "count": found.len(),
        "outliers": found,
    })
}

/// Singular values of outputs above the edge of noise, by module: the largest count of a window, of each model. Modules
/// without any are left out; a window that was not finite counts for nothing. It decides nothing.
pub fn output_outliers(policy: &Policy, baseline: &Table, subject: &Table) -> Result<Json> {
    let quantity = policy.outlier_count();
    let (before, now) = (baseline.vectors(&quantity)?, subject.vectors(&quantity)?);
    let most = |counts: Option<&&[f64]>| {
        let counts = counts.into_iter().flat_map(|counts| counts.iter().copied());
        counts.fold(0.0, f64::max)
    };
    let modules: BTreeSet<&str> = before.keys().chain(now.keys()).copied().collect();
    let counted = modules.iter().filter(|module| policy.admits(module));
    let found = counted.filter_map(|module| {
        let (base, current) = (most(before.get(module)), most(now.get(module)));
        let any = base > 0.0 || current > 0.0;
        any.then(|| {
            (
                (*module).to_owned(),
                json!({"base": base, "current": current}),
            )
        })
    });
    Ok(json!({
        "threshold": policy.outlying(),
        "modules": modules.len(),
        "outliers": found.collect::<BTreeMap<_, _>>(),
    }))
}

/// Values of the modules that both have.
pub fn both<'a>(base: &'a Risks, current: &'a Risks) -> impl Iterator<Item = (&'a str, f64, f64)> {
    base.modules.iter().filter_map(|(module, before)| {
        let now = current.modules.get(module)?;
        Some((module.as_str(), *before, *now))
    })
}

/// Both decisions about the baseline against the subject, in the words of the reference's probe.
pub fn probe(policy: &Policy, base: &Risks, current: &Risks) -> Json {
    let grown = most_grown(base, current);
    let found = violations(policy, &grown);
    let stable_guard = violations(policy, &largest(base, current)).is_empty();
    let of = |read: &dyn Fn(&Pair) -> f64| {
        let values: BTreeMap<&str, f64> = grown
            .iter()
            .map(|(family, pair)| (*family, read(pair)))
            .collect();
        json!(values)
    };
    let epsilons: BTreeMap<&str, f64> = grown
        .keys()
        .map(|family| (*family, policy.epsilon(family)))
        .collect();
    let listed: Vec<Json> = found.iter().map(Violation::details).collect();
    let missing: Vec<&String> = base
        .modules
        .keys()
        .filter(|module| !current.modules.contains_key(*module))
        .collect();
    json!({
        "probe": "rmt_cross_model_v2",
        "family_aggregation": "delta_max",
        "activation_windows": current.windows,
        "tokens": current.tokens,
        "passed": found.is_empty(),
        "action": if found.is_empty() { "continue" } else { "abort" },
        "stable": found.is_empty(),
        "stable_guard": stable_guard,
        "edge_risk_by_family_base": of(&|pair| pair.base),
        "edge_risk_by_family": of(&|pair| pair.current),
        "epsilon_by_family": epsilons,
        "epsilon_default": policy.epsilon_default,
        "epsilon_violations": listed,
        "violations": found.iter().map(Violation::message).collect::<Vec<_>>(),
        "edge_risk_by_module_count": current.modules.len(),
        "edge_risk_by_module_base_top": top(base),
        "edge_risk_by_module_top": top(current),
        "edge_risk_by_module_delta_top": top_growth(base, current),
        "modules_missing": missing,
        "modules_rejected": current.rejected,
    })
}

/// The modules of largest value; of equal ones the first by name.
fn top(risks: &Risks) -> Vec<Json> {
    let mut modules: Vec<(&String, f64)> = risks
        .modules
        .iter()
        .map(|(module, risk)| (module, *risk))
        .collect();
    modules.sort_by(|a, b| b.1.total_cmp(&a.1));
    let top = modules.into_iter().take(TOP);
    top.map(|(module, value)| json!({"module": module, "value": value}))
        .collect()
}

fn top_growth(base: &Risks, current: &Risks) -> Vec<Json> {
    let mut modules: Vec<(&str, f64, f64)> = both(base, current).collect();
    modules.sort_by(|a, b| (b.2 - b.1).total_cmp(&(a.2 - a.1)));
    let top = modules.into_iter().take(TOP);
    top.map(|(module, before, now)| {
        json!({
            "module": module,
            "base": before,
            "cur": now,
            "delta": now - before,
            "delta_frac": (before > 0.0).then(|| (now - before) / before),
        })
    })
    .collect()
}
