//! Statistics of weights: which quantities there are, which weights a scope names, and their rows.
//!
//! | quantity | of | value |
//! |---|---|---|
//! | `weight.sigma.START.N` | matrices | largest singular value by N power iterations from START: `ones`, `e0` or `hashed` |
//! | `weight.frobenius_sq` | matrices | sum of squares |
//! | `weight.row_norms`, `weight.column_norms` | matrices | smallest, median and largest Euclidean norm |
//! | `weight.singular` | matrices | the 8 largest singular values, and how far the first is from a true one at most |
//! | `weight.zeros` | all | elements equal to zero |
//! | `weight.shift` | all that a subject changed, of equal shape | squared distance from the baseline's, and the baseline's sum of squares |
//! | `weight.overlap` | matrices that a subject changed, of equal shape | mean squared cosine between the leading right singular vectors and the baseline's |
//!
//! Matrices are float tensors of two axes; a scope passes over other tensors that it names beside them. Formulas are those
//! of [`packhost_tensor::Power`], [`packhost_tensor::Norms`] and [`packhost_tensor::Leading`]. Of a matrix with elements
//! that are not finite, sigma is 0 and the singular values are NaN.
//!
//! **Tied heads.** The reference counts an output head that shares the embedding's values as a weight of its own. So its rows
//! stand under the name [`TIED_HEAD`], or under the name that the file has for it, and repeat the embedding's, whether or
//! not the file holds a tensor of that name.

use crate::measure::{Baseline, MeasureRequest};
use crate::structure::{matches_glob, role_name, select_tensors};
use crate::table::Value;
use crate::{Error, Result};
use packhost_model::{Role, TensorMeta, Weights};
use packhost_tensor::{Device, Leading, Power, Spread, Start, WeightStats, WeightWish};
use std::collections::BTreeSet;

/// How the quantities of weights begin.
pub(crate) const PREFIX: &str = "weight.";

/// All of them.
pub(crate) const NAMES: [&str; 8] = [
    "weight.sigma.START.N",
    "weight.frobenius_sq",
    "weight.row_norms",
    "weight.column_norms",
    "weight.singular",
    "weight.zeros",
    "weight.shift",
    "weight.overlap",
];

/// Scope of the rows about a head that the file does not hold because it is the embedding.
pub const TIED_HEAD: &str = "lm_head.weight";

/// Most iterations of `weight.sigma`.
const MAX_ITERATIONS: u32 = 100;

/// A statistic of one weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum WeightQuantity {
    Sigma(Power),
    FrobeniusSq,
    RowNorms,
    ColumnNorms,
    Singular,
    Zeros,
    Shift,
    Overlap,
}

impl WeightQuantity {
    /// Reads a quantity's name; the error ends a sentence about it.
    pub(crate) fn parse(quantity: &str) -> std::result::Result<Self, String> {
        let plain = [
            ("weight.frobenius_sq", Self::FrobeniusSq),
            ("weight.row_norms", Self::RowNorms),
            ("weight.column_norms", Self::ColumnNorms),
            ("weight.singular", Self::Singular),
            ("weight.zeros", Self::Zeros),
            ("weight.shift", Self::Shift),
            ("weight.overlap", Self::Overlap),
        ];
        if let Some((_, known)) = plain.iter().find(|(name, _)| *name == quantity) {
            return Ok(*known);
        }
        let Some(power) = quantity.strip_prefix("weight.sigma.") else {
            return Err(format!(
                "which is no statistic of a weight; they are {}",
                NAMES.join(", ")
            ));
        };
        let (start, iterations) = power.rsplit_once('.').unwrap_or((power, ""));
        let start = match start {
            "ones" => Start::Ones,
            "e0" => Start::First,
            "hashed" => Start::Hashed,
            _ => {
                return Err(format!(
                    "whose start must be `ones`, `e0` or `hashed`, not `{start}`"
                ));
            }
        };
        // One spelling of each number only: rows are found by their names.
        let count = iterations.parse::<u32>().ok();
        let iterations = count
            .filter(|count| (1..=MAX_ITERATIONS).contains(count) && count.to_string() == iterations)
            .ok_or_else(|| {
                format!("whose last part must be a count of iterations from 1 to {MAX_ITERATIONS}, not `{iterations}`")
            })?;
        Ok(Self::Sigma(Power { start, iterations }))
    }

    /// The quantity's name.
    pub(crate) fn name(self) -> String {
        let name = match self {
            Self::Sigma(Power { start, iterations }) => {
                let start = match start {
                    Start::Ones => "ones",
                    Start::First => "e0",
                    Start::Hashed => "hashed",
                };
                return format!("weight.sigma.{start}.{iterations}");
            }
            Self::FrobeniusSq => "weight.frobenius_sq",
            Self::RowNorms => "weight.row_norms",
            Self::ColumnNorms => "weight.column_norms",
            Self::Singular => "weight.singular",
            Self::Zeros => "weight.zeros",
            Self::Shift => "weight.shift",
            Self::Overlap => "weight.overlap",
        };
        name.to_owned()
    }

    /// Whether it compares a subject with its baseline.
    pub(crate) fn compares(self) -> bool {
        matches!(self, Self::Shift | Self::Overlap)
    }

    fn serves(self, meta: &TensorMeta) -> bool {
        let any_shape = matches!(self, Self::Zeros | Self::Shift);
        meta.dtype.is_float() && (any_shape || meta.shape.len() == 2)
    }
}

/// The tensor whose values the weight called `name` has: its own, or the embedding's where it is a tied head.
pub(crate) fn resolve<'a>(weights: &'a dyn Weights, name: &str) -> Option<&'a TensorMeta> {
    match weights.meta(name) {
        Some(meta) => match &meta.tied_to {
            Some(embedding) => weights.meta(embedding),
            None => Some(meta),
        },
        None if name == TIED_HEAD => head_in_embedding(weights),
        None => None,
    }
}

/// The embedding, where it serves as the head and no tensor stands for that.
fn head_in_embedding(weights: &dyn Weights) -> Option<&TensorMeta> {
    let stored = weights
        .tensors()
        .iter()
        .any(|meta| meta.role == Role::LmHead);
    let head = weights.output_head()?;
    (!stored && head.role == Role::Embedding).then_some(head)
}

/// Names of the weights in a scope that have the statistic. A baseline must have one, if the scope names anything of it;
/// a subject may have lost it.
pub(crate) fn select<'a>(
    request: &MeasureRequest<'a>,
    scope: &str,
    quantity: WeightQuantity,
) -> std::result::Result<Vec<&'a str>, String> {
    let weights = request.weights;
    let mut names = select_tensors(weights, scope)?;
    let head_named = match scope.strip_prefix("role:") {
        Some(role) => role == role_name(Role::LmHead),
        None => !scope.starts_with("layer:") && matches_glob(scope, TIED_HEAD),
    };
    if head_named && head_in_embedding(weights).is_some() {
        names.push(TIED_HEAD);
    }
    let serves = |name: &&str| resolve(weights, name).is_some_and(|meta| quantity.serves(meta));
    let served: Vec<&str> = names.iter().copied().filter(serves).collect();
    if let Some(first) = names
        .first()
        .filter(|_| served.is_empty() && request.baseline.is_none())
    {
        let shape = weights.meta(first).map(|meta| (meta.dtype, &meta.shape));
        let (dtype, shape) = shape.map_or_else(Default::default, |(dtype, shape)| {
            (dtype.name(), format!("{shape:?}"))
        });
        return Err(format!(
            "but it is a statistic of float matrices, and none is named there (`{first}` is {dtype} of shape {shape})"
        ));
    }
    Ok(served)
}

/// Whether a subject has the weight called `name` as its baseline has it.
pub(crate) fn unchanged(weights: &dyn Weights, baseline: &Baseline<'_>, name: &str) -> bool {
    let own = resolve(weights, name).map(|meta| meta.name.as_str());
    let base = resolve(baseline.weights, name).map(|meta| meta.name.as_str());
    own == base
        && !baseline.changed.contains(name)
        && !own.is_some_and(|own| baseline.changed.contains(own))
}

/// Rows of one weight, and, where `non_finite` asks for it, the count of its elements that are NaN or infinite.
///
/// # Errors
/// The tensor cannot be read or the device fails.
pub(crate) fn rows(
    request: &MeasureRequest<'_>,
    name: &str,
    quantities: &BTreeSet<WeightQuantity>,
) -> Result<(Vec<(String, Value)>, u64)> {
    let failed = |error| Error::from(packhost_model::Error::from(error));
    let Some(meta) = resolve(request.weights, name) else {
        return Ok((Vec::new(), 0));
    };
    let device: &dyn Device = request.device;
    let tensor = request.weights.tensor(&meta.name)?;
    let base = base_of(request, name, meta).filter(|_| quantities.iter().any(|q| q.compares()));
    let wish = wish(quantities, base.is_some());
    let stats = device.weight_stats(&tensor, &wish).map_err(failed)?;
    let mut rows = Vec::new();
    for &quantity in quantities {
        if !quantity.compares() {
            rows.extend(value(quantity, &stats, &wish).map(|value| (quantity.name(), value)));
            continue;
        }
        let Some((weights, base)) = &base else {
            continue;
        };
        let base = weights.tensor(&base.name)?;
        let value = match (quantity, &stats.leading) {
            (WeightQuantity::Overlap, Some(leading)) => {
                let wish = WeightWish {
                    leading: true,
                    ..WeightWish::default()
                };
                let base = device.weight_stats(&base, &wish).map_err(failed)?.leading;
                base.map(|base: Leading| Value::Number(leading.overlap(&base)))
            }
            _ => {
                let shift = device.shift(&tensor, &base).map_err(failed)?;
                Some(Value::Vector(vec![shift.distance_sq, shift.base_sq]))
            }
        };
        rows.extend(value.map(|value| (quantity.name(), value)));
    }
    Ok((rows, stats.non_finite))
}

/// The baseline's tensor that a changed weight can be compared with.
fn base_of<'a>(
    request: &MeasureRequest<'a>,
    name: &str,
    meta: &TensorMeta,
) -> Option<(&'a dyn Weights, &'a TensorMeta)> {
    let weights = request.baseline?.weights;
    let base = resolve(weights, name)?;
    (base.dtype.is_float() && base.shape == meta.shape).then_some((weights, base))
}

/// What the device is asked for.
fn wish(quantities: &BTreeSet<WeightQuantity>, comparable: bool) -> WeightWish {
    let mut wish = WeightWish::default();
    for quantity in quantities {
        match quantity {
            WeightQuantity::Sigma(power) => wish.powers.push(*power),
            WeightQuantity::FrobeniusSq
            | WeightQuantity::RowNorms
            | WeightQuantity::ColumnNorms => wish.norms = true,
            WeightQuantity::Singular => wish.leading = true,
            WeightQuantity::Overlap => wish.leading |= comparable,
            WeightQuantity::Zeros | WeightQuantity::Shift => {}
        }
    }
    wish
}

/// The value of a row that needs the weight alone.
fn value(quantity: WeightQuantity, stats: &WeightStats, wish: &WeightWish) -> Option<Value> {
    let spread = |spread: Spread| {
        let three = [spread.min, spread.median, spread.max];
        Value::Vector(three.into_iter().map(f64::from).collect())
    };
    Some(match quantity {
        WeightQuantity::Sigma(power) => {
            let at = wish.powers.iter().position(|known| *known == power)?;
            Value::Number(f64::from(*stats.sigmas.get(at)?))
        }
        WeightQuantity::FrobeniusSq => Value::Number(stats.norms?.frobenius_sq),
        WeightQuantity::RowNorms => spread(stats.norms?.rows),
        WeightQuantity::ColumnNorms => spread(stats.norms?.columns),
        WeightQuantity::Singular => {
            let leading = stats.leading.as_ref()?;
            let bound = std::iter::once(leading.bound);
            Value::Vector(leading.values.into_iter().chain(bound).collect())
        }
        WeightQuantity::Zeros => Value::Number(stats.zeros as f64),
        WeightQuantity::Shift | WeightQuantity::Overlap => return None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_read_and_written_alike() {
        for name in NAMES.into_iter().skip(1) {
            assert_eq!(WeightQuantity::parse(name).unwrap().name(), name);
        }
        for name in [
            "weight.sigma.ones.4",
            "weight.sigma.e0.1",
            "weight.sigma.hashed.100",
        ] {
            assert_eq!(WeightQuantity::parse(name).unwrap().name(), name);
        }
    }

    #[test]
    fn malformed_names_say_what_is_wrong() {
        for (name, reason) in [
            ("weight.sigma", "no statistic"),
            ("weight.rank", "no statistic"),
            ("weight.sigma.", "start must be"),
            ("weight.sigma.twos.4", "not `twos`"),
            ("weight.sigma.ones", "not ``"),
            ("weight.sigma.ones.", "not ``"),
            ("weight.sigma.ones.0", "not `0`"),
            ("weight.sigma.ones.101", "not `101`"),
            ("weight.sigma.ones.04", "not `04`"),
            ("weight.sigma.ones.+4", "not `+4`"),
            ("weight.sigma.ones.4.5", "not `ones.4`"),
        ] {
            let error = WeightQuantity::parse(name).unwrap_err();
            assert!(error.contains(reason), "{name}: {error}");
        }
    }
}
