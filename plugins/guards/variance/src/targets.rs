//! Blocks whose output could be scaled, and what the table says about their outputs.

use std::collections::BTreeMap;

use packhost_sdk::scope::layer_of;
use packhost_sdk::{Failure, Result, Table, glob};

use crate::policy::{Policy, Scope};

/// Which part of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Branch {
    /// Attention.
    Attn,
    /// Feed-forward.
    Mlp,
}

impl Branch {
    fn name(self) -> &'static str {
        match self {
            Self::Attn => "attn",
            Self::Mlp => "mlp",
        }
    }
}

/// One part of one block. The order is the model's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The block, counted from 0.
    pub block: u32,
    /// Which part.
    pub branch: Branch,
}

impl Place {
    /// The reference's short name.
    pub fn short(self) -> String {
        format!("block{}.{}", self.block, self.branch.name())
    }

    /// The reference's long name, which taps are matched with.
    pub fn canonical(self) -> String {
        format!("transformer.h.{}.{}.c_proj", self.block, self.branch.name())
    }
}

/// A part of a block with the mean squares of its output.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Target {
    /// The modules that a scale multiplies: one projection, or those of all experts.
    pub modules: Vec<String>,
    /// Mean square per window, the mean over experts where there are several; windows without a finite one are left out.
    pub mean_squares: Vec<f64>,
}

/// Targets in the model's order.
pub type Targets = BTreeMap<Place, Target>;

/// Names of the last projection of an attention or feed-forward block.
const ATTN_OUTPUTS: [&str; 2] = ["c_proj", "out_proj"];
const MLP_OUTPUTS: [&str; 5] = ["c_proj", "down_proj", "fc2", "wo", "w2"];

/// The place that a module's output is that of. As in the reference, attention counts only in blocks that call it `attn`.
pub fn place(module: &str) -> Option<Place> {
    let block = layer_of(module)?;
    let mut segments = module.rsplit('.');
    let last = segments.next()?;
    let within: Vec<&str> = segments.collect();
    let branch = if within.first() == Some(&"attn") {
        ATTN_OUTPUTS.contains(&last).then_some(Branch::Attn)?
    } else if within.iter().any(|segment| segment.contains("attn")) {
        return None;
    } else {
        MLP_OUTPUTS.contains(&last).then_some(Branch::Mlp)?
    };
    Some(Place { block, branch })
}

/// Whether the policy looks at a place.
pub fn wanted(policy: &Policy, place: Place) -> bool {
    let in_scope = match policy.scope {
        Scope::Both => true,
        Scope::Attn => place.branch == Branch::Attn,
        Scope::Ffn => place.branch == Branch::Mlp,
    };
    let name = place.canonical();
    in_scope && policy.tap.patterns().iter().any(|tap| glob(tap, &name))
}

/// The quantity of mean squares of the first `windows` windows.
pub fn quantity(windows: usize) -> String {
    format!("activation.mean_square.first{windows}")
}

/// The policy's targets with the mean squares of the first `windows` of the `measured` first windows.
///
/// # Errors
/// A mean square is negative or infinite, or experts of a block have different numbers of windows.
pub fn read(
    policy: &Policy,
    table: &Table,
    measured: usize,
    windows: usize,
    whose: &str,
) -> Result<Targets> {
    let quantity = quantity(measured);
    let mut experts: BTreeMap<Place, Vec<(&str, &[f64])>> = BTreeMap::new();
    for (module, values) in table.vectors(&quantity)? {
        if let Some(place) = place(module).filter(|place| wanted(policy, *place)) {
            let possible = |value: &&f64| value.is_nan() || (value.is_finite() && **value >= 0.0);
            if let Some(bad) = values.iter().find(|value| !possible(value)) {
                return Err(Failure::failed(format!(
                    "{whose}: `{quantity}` at `{module}` holds {bad}, which is no mean of squares"
                )));
            }
            let values = &values[..windows.min(values.len())];
            experts.entry(place).or_default().push((module, values));
        }
    }
    let combine = |(place, parts): (Place, Vec<(&str, &[f64])>)| {
        let count = parts.first().map_or(0, |(_, values)| values.len());
        if let Some((module, values)) = parts.iter().find(|(_, values)| values.len() != count) {
            return Err(Failure::failed(format!(
                "{whose}: `{quantity}` at `{module}` has {} windows, another part of its block {count}; measure both anew",
                values.len()
            )));
        }
        // An expert that no token of a window reached has no output there.
        let of_window = |window: usize| {
            let finite = parts.iter().map(|(_, values)| values[window]);
            let finite: Vec<f64> = finite.filter(|value| value.is_finite()).collect();
            (!finite.is_empty()).then(|| finite.iter().sum::<f64>() / finite.len() as f64)
        };
        let target = Target {
            modules: parts
                .iter()
                .map(|(module, _)| (*module).to_owned())
                .collect(),
            mean_squares: (0..count).filter_map(of_window).collect(),
        };
        Ok((place, target))
    };
    experts.into_iter().map(combine).collect()
}
