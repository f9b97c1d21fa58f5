//! Edge risks by module and family, from the rows of the windows.

use std::collections::BTreeMap;

use packhost_sdk::{Failure, Result, Table};

use crate::policy::Policy;

/// A family and the words of which a lower-case module name contains one; the first match wins.
const WORDS: [(&str, &[&str]); 3] = [
    ("attn", &["attn", "attention"]),
    (
        "ffn",
        &[
            "router",
            "routing",
            "gate",
            "gating",
            "dispatch",
            "switch",
            "expert",
            "moe",
            "mlp",
            "ffn",
            "c_fc",
            "feed_forward",
            "densereludense",
        ],
    ),
    ("embed", &["embed", "wte", "wpe"]),
];

/// The family of a module.
pub fn family(module: &str) -> &'static str {
    let name = module.to_lowercase();
    let found = WORDS
        .iter()
        .find(|(_, words)| words.iter().any(|word| name.contains(word)));
    found.map_or("other", |(family, _)| family)
}

/// What a table says about one set of windows.
#[derive(Debug, Default)]
pub struct Risks {
    /// Mean over windows, weighted by their tokens, of largest singular value over the edge of noise, by module.
    pub modules: BTreeMap<String, f64>,
    /// Modules of which no window could be measured: an output was not finite.
    pub rejected: Vec<String>,
    /// Tokens of the windows.
    pub tokens: f64,
    /// Windows.
    pub windows: usize,
}

impl Risks {
    /// The rows of the set of windows called `set`.
    ///
    /// # Errors
    /// Windows and rows disagree, or a value can be no edge risk.
    pub fn read(policy: &Policy, table: &Table, set: &str, whose: &str) -> Result<Self> {
        let quantity = format!("activation.edge_risk.{set}");
        let rows = table.vectors(&quantity)?;
        if rows.is_empty() {
            return Ok(Self::default());
        }
        let counted = format!("activation.tokens.{set}");
        let tokens = table.vector("model", &counted)?;
        if let Some(bad) = tokens
            .iter()
            .find(|count| !(count.is_finite() && **count >= 0.0))
        {
            return Err(Failure::failed(format!(
                "{whose}: `{counted}` at `model` holds {bad}, which counts no tokens"
            )));
        }
        let mut risks = Self {
            tokens: tokens.iter().sum(),
            windows: tokens.len(),
            ..Self::default()
        };
        for (module, values) in rows {
            if !policy.admits(module) {
                continue;
            }
            if values.len() != tokens.len() {
                return Err(Failure::failed(format!(
                    "{whose}: `{quantity}` at `{module}` has {} windows and `{counted}` has {}; measure both anew",
                    values.len(),
                    tokens.len()
                )));
            }
            // NaN marks a window whose output was not finite; an infinity or a negative value marks nothing.
            let possible = |risk: &&f64| risk.is_nan() || (risk.is_finite() && **risk >= 0.0);
            if let Some(bad) = values.iter().find(|risk| !possible(risk)) {
                return Err(Failure::failed(format!(
                    "{whose}: `{quantity}` at `{module}` holds {bad}, which is no edge risk"
                )));
            }
            let (mut sum, mut total) = (0.0, 0.0);
            for (risk, count) in values.iter().zip(tokens) {
                if risk.is_finite() {
                    let weight = count.max(1.0);
                    sum += risk * weight;
                    total += weight;
                }
            }
            if total > 0.0 {
                risks.modules.insert(module.to_owned(), sum / total);
            } else {
                risks.rejected.push(module.to_owned());
            }
        }
        Ok(risks)
    }

    /// Whether the table has no rows of these windows at all.
    pub fn absent(&self) -> bool {
        self.modules.is_empty() && self.rejected.is_empty()
    }

    /// The largest value of each family.
    pub fn families(&self) -> BTreeMap<&'static str, f64> {
        let mut families = BTreeMap::new();
        for (module, risk) in &self.modules {
            let largest: &mut f64 = families.entry(family(module)).or_insert(*risk);
            *largest = largest.max(*risk);
        }
        families
    }
}
