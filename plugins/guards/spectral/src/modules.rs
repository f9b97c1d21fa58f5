//! What a table says about the weight matrices.

use std::collections::BTreeMap;

use packhost_sdk::{Failure, Result, Table, module_name};

use crate::family;
use crate::policy::Policy;

/// Guards divisions, as in the reference.
pub const TINY: f64 = 1e-12;

/// Figures of one weight matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures {
    /// Largest singular value; 0 where a weight is not finite.
    pub sigma: f64,
    /// Squared Frobenius norm; none when collapse is not looked for.
    pub frobenius_sq: Option<f64>,
    /// Smallest over median row or column norm, whichever is smaller; none when collapse is not looked for and where a weight
    /// is not finite.
    pub collapse: Option<f64>,
}

impl Figures {
    /// Squared Frobenius norm over the squared largest singular value.
    pub fn stable_rank(&self) -> Option<f64> {
        let squared = (self.sigma * self.sigma).max(TINY);
        self.frobenius_sq.map(|frobenius| frobenius / squared)
    }
}

/// Figures by module.
pub type Modules = BTreeMap<String, Figures>;

/// The modules in the policy's scope.
///
/// # Errors
/// There is none, a row is missing, or a figure is no number where it should be. A matrix with weights that are not finite
/// is no error: its sigma is 0 by definition, and finding it is another guard's work.
pub fn read(policy: &Policy, table: &Table, whose: &str) -> Result<Modules> {
    let quantity = policy.estimator.quantity();
    let sigmas = table.numbers(&quantity)?;
    let collapse = policy.degeneracy.enabled;
    let frobenius = table.numbers("weight.frobenius_sq")?;
    let rows = table.vectors("weight.row_norms")?;
    let columns = table.vectors("weight.column_norms")?;
    let mut modules = Modules::new();
    for (tensor, sigma) in sigmas {
        let Some(module) = module_name(tensor) else {
            continue;
        };
        if !family::in_scope(module, policy.scope) || !policy.admits(module) {
            continue;
        }
        if !(sigma.is_finite() && sigma >= 0.0) {
            return Err(bad(whose, &quantity, tensor, sigma));
        }
        let mut figures = Figures {
            sigma,
            frobenius_sq: None,
            collapse: None,
        };
        if collapse {
            let missing = |quantity| missing(whose, quantity, tensor);
            let squared = *frobenius
                .get(tensor)
                .ok_or_else(|| missing("weight.frobenius_sq"))?;
            let of = |name: &'static str, norms: &BTreeMap<&str, &[f64]>| {
                let norms = norms.get(tensor).ok_or_else(|| missing(name))?;
                least_over_median(norms).ok_or_else(|| {
                    Failure::failed(format!(
                        "{whose}: `{name}` of `{tensor}` must be [smallest, median, largest], found {norms:?}"
                    ))
                })
            };
            let row = of("weight.row_norms", &rows)?;
            let column = of("weight.column_norms", &columns)?;
            // Sigma is 0 where a weight is not finite; then these may be anything.
            figures.frobenius_sq = Some(match squared {
                squared if squared.is_finite() && squared >= 0.0 => squared,
                _ if sigma == 0.0 => 0.0,
                other => return Err(bad(whose, "weight.frobenius_sq", tensor, other)),
            });
            figures.collapse = match (row + column).is_finite() {
                _ if sigma == 0.0 => None,
                true => Some(row.min(column)),
                false => return Err(bad(whose, "the ratio of norms", tensor, row + column)),
            };
        }
        modules.insert(module.to_owned(), figures);
    }
    if modules.is_empty() {
        return Err(Failure::failed(format!(
            "{whose}: the table has no `{quantity}` of any module in scope; measure what the guard's plan asks for"
        )));
    }
    Ok(modules)
}

fn least_over_median(norms: &[f64]) -> Option<f64> {
    match norms {
        [least, median, _] => Some(least / median.max(TINY)),
        _ => None,
    }
}

fn missing(whose: &str, quantity: &str, tensor: &str) -> Failure {
    Failure::failed(format!(
        "{whose}: the table has no `{quantity}` of `{tensor}`; measure what the guard's plan asks for"
    ))
}

fn bad(whose: &str, quantity: &str, tensor: &str, value: f64) -> Failure {
    Failure::failed(format!(
        "{whose}: {quantity} of `{tensor}` is {value}, which no matrix has; measure it again"
    ))
}
