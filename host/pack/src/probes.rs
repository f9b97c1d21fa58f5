//! What the two probes decide from their measurements: activation edges across models, and the gain of variance equalisation.

use std::collections::BTreeMap;

/// A module whose edge grew more than its family allows.
#[derive(Clone, Debug, PartialEq)]
pub struct EdgeViolation {
    /// Family of the module.
    pub family: String,
    /// Module name.
    pub module: String,
    /// Edge in the unedited model.
    pub edge_base: f64,
    /// Edge in the subject.
    pub edge_cur: f64,
    /// Relative growth: `cur / base - 1`.
    pub delta: f64,
    /// `(1 + epsilon) * base`.
    pub allowed: f64,
}

/// The decision of the RMT probe.
#[derive(Clone, Debug, PartialEq)]
pub struct RmtProbe {
    /// Whether no family has a violation by the rule of the largest growth.
    pub stable: bool,
    /// Whether no family's largest edge grew too much. Growth in a module below its family's largest stays hidden from this rule.
    pub stable_guard: bool,
    /// One entry per family that is not stable, sorted by family.
    pub violations: Vec<EdgeViolation>,
    /// By family: the edge, in the unedited model, of the module that grew most; 0 without modules.
    pub edge_base: BTreeMap<String, f64>,
    /// By family: the edge of the same module in the subject.
    pub edge_cur: BTreeMap<String, f64>,
}

/// Decides from edges by module. `epsilon` names the families and how much growth each allows; modules of other families, or measured on one side only, are
/// ignored. Growth is one-sided. Of modules that grew alike the first name in byte order counts.
pub fn rmt_probe(
    base: &BTreeMap<String, f64>,
    current: &BTreeMap<String, f64>,
    family: &BTreeMap<String, String>,
    epsilon: &BTreeMap<String, f64>,
) -> RmtProbe {
    let mut probe = RmtProbe {
        stable: true,
        stable_guard: true,
        violations: Vec::new(),
        edge_base: BTreeMap::new(),
        edge_cur: BTreeMap::new(),
    };
    for (name, epsilon) in epsilon {
        let modules = || {
            base.iter()
                .filter(|(module, _)| family.get(*module) == Some(name))
                .filter_map(|(module, base)| Some((module, *base, *current.get(module)?)))
        };
        let largest = |edges: &mut dyn Iterator<Item = f64>| edges.fold(0.0_f64, f64::max);
        let (largest_base, largest_cur) = (
            largest(&mut modules().map(|(_, base, _)| base)),
            largest(&mut modules().map(|(_, _, current)| current)),
        );
        probe.stable_guard &= largest_cur <= (1.0 + epsilon) * largest_base;
        let mut grown: Option<EdgeViolation> = None;
        for (module, edge_base, edge_cur) in modules() {
            let delta = if edge_base > 0.0 {
                edge_cur / edge_base - 1.0
            } else if edge_cur > 0.0 {
                f64::INFINITY
            } else {
                0.0
            };
            if grown.as_ref().is_none_or(|largest| delta > largest.delta) {
                let allowed = (1.0 + epsilon) * edge_base;
                grown = Some(EdgeViolation {
                    family: name.clone(),
                    module: module.clone(),
                    edge_base,
                    edge_cur,
                    delta,
                    allowed,
                });
            }
        }
        probe.edge_base.insert(
            name.clone(),
            grown.as_ref().map_or(0.0, |module| module.edge_base),
        );
        probe.edge_cur.insert(
            name.clone(),
            grown.as_ref().map_or(0.0, |module| module.edge_cur),
        );
        if let Some(violation) = grown.filter(|module| module.edge_cur > module.allowed) {
            probe.stable = false;
            probe.violations.push(violation);
        }
    }
    probe
}

/// What the variance probe measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VarianceMeasurement {
    /// Scales that the guard proposes.
    pub proposed_scales: u64,
    /// Perplexity without them.
    pub ppl_no_ve: Option<f64>,
    /// Perplexity with them.
    pub ppl_with_ve: Option<f64>,
    /// Relative gain.
    pub ab_gain: Option<f64>,
    /// Whether the guard would turn itself on.
    pub would_enable: bool,
}

/// How much gain makes a signal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VarianceLimits {
    /// Least number of scales.
    pub min_scales: u64,
    /// Least fall of the perplexity.
    pub min_absolute: f64,
    /// Least relative gain.
    pub min_relative: f64,
    /// Whether the guard must also want to turn itself on.
    pub require_enable: bool,
}

impl Default for VarianceLimits {
    /// One scale, 0.05 in perplexity, 0.001 relative, enabling not required.
    fn default() -> Self {
        Self {
            min_scales: 1,
            min_absolute: 0.05,
            min_relative: 0.001,
            require_enable: false,
        }
    }
}

/// Why the variance probe shows no signal, in a fixed order; empty if it shows one.
pub fn variance_signal_reasons(
    measured: &VarianceMeasurement,
    limits: &VarianceLimits,
) -> Vec<&'static str> {
    let mut reasons = Vec::new();
    if measured.proposed_scales < limits.min_scales {
        reasons.push("insufficient_scales");
    }
    match measured.ppl_no_ve.zip(measured.ppl_with_ve) {
        None => reasons.push("missing_ppl"),
        Some((without, with)) if without - with < limits.min_absolute => {
            reasons.push("abs_gain_below_threshold")
        }
        Some(_) => {}
    }
    match measured.ab_gain {
        None => reasons.push("missing_rel_gain"),
        Some(gain) if gain < limits.min_relative => reasons.push("rel_gain_below_threshold"),
        Some(_) => {}
    }
    if limits.require_enable && !measured.would_enable {
        reasons.push("ab_gate_rejected");
    }
    reasons
}
