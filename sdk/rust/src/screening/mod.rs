//! What guards that compare a subject with its baseline place by place have in common: limits of effects, empirical
//! nulls, and control of the false-discovery rate.
//!
//! Two questions are kept apart. *Is it there?* is answered against what the unedited model's own measurements do under
//! harmless perturbations ([`Nulls`]): a finding `changed`. *Does it matter?* is answered by the size of the effect
//! ([`Limits`]): a finding `marked` or `damaged`. A useful edit changes weights on purpose, so significance alone is never
//! an alarm.

mod limits;
mod nulls;
mod policy;
mod runs;
#[cfg(test)]
mod tests;

pub use limits::{Judged, Limit, Limits};
pub use nulls::{FalseAlarms, Nulls, Observed, Significance, Statistic};
pub use packhost_stats::null::Side;
pub use policy::{Outcome, Policy};
pub use runs::{Runs, same_windows};

/// A number as JSON; null where JSON has no word for it.
pub fn number(value: f64) -> serde_json::Value {
    serde_json::Number::from_f64(value).map_or(serde_json::Value::Null, serde_json::Value::Number)
}

/// Whether two measurements are the same to the last bit; NaN equals itself.
pub fn same_bits(a: &crate::Value, b: &crate::Value) -> bool {
    use crate::Value::{Number, Text, Vector};
    match (a, b) {
        (Number(a), Number(b)) => a.to_bits() == b.to_bits(),
        (Vector(a), Vector(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
        }
        (Text(a), Text(b)) => a == b,
        _ => false,
    }
}
