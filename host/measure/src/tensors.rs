//! Rows about single tensors: one pass over the weights, several tensors at a time.
//!
//! Rows of what a subject left as it was are the baseline's. Everything else that is asked of a tensor is computed in one
//! call of the device, so that it is read once.

use crate::measure::{MeasureRequest, check_cancelled};
use crate::table::{Table, Value};
use crate::wanted::Wanted;
use crate::weights::{self, WeightQuantity};
use crate::{Error, Result};
use packhost_model::TensorMeta;
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// Quantities of single tensors.
pub(crate) const OF_TENSORS: [&str; 3] = ["tensor.shape", "tensor.dtype", NON_FINITE];

const NON_FINITE: &str = "tensor.non_finite";

/// What is to be computed of one tensor.
#[derive(Default)]
struct Job {
    non_finite: bool,
    weight: BTreeSet<WeightQuantity>,
}

/// Puts all wanted rows about tensors into `table`.
///
/// # Errors
/// A tensor cannot be read, a probe fails, or the measurement is cancelled.
pub(crate) fn measure(
    request: &MeasureRequest<'_>,
    wanted: &Wanted<'_>,
    table: &mut Table,
) -> Result<()> {
    let mut jobs: BTreeMap<&str, Job> = BTreeMap::new();
    for meta in request.weights.tensors() {
        let name = meta.name.as_str();
        for &quantity in wanted.of_tensors.get(name).into_iter().flatten() {
            if let Some(value) = known(request, name, quantity) {
                table.put(name, quantity, value);
            } else if let Some(value) = of_header(meta, quantity) {
                table.put(name, quantity, value);
            } else {
                jobs.entry(name).or_default().non_finite = true;
            }
        }
    }
    for (&name, quantities) in &wanted.of_weights {
        let unchanged = request
            .baseline
            .filter(|baseline| weights::unchanged(request.weights, baseline, name));
        for &quantity in quantities {
            if quantity.compares() && (unchanged.is_some() || request.baseline.is_none()) {
                continue;
            }
            let known = unchanged.and_then(|baseline| baseline.table.get(name, &quantity.name()));
            if let Some(value) = known {
                table.put(name, &quantity.name(), value.clone());
            } else {
                jobs.entry(name).or_default().weight.insert(quantity);
            }
        }
    }
    let jobs: Vec<(&str, Job)> = jobs.into_iter().collect();
    let rows: Vec<Vec<(String, Value)>> = jobs
        .par_iter()
        .map(|(name, job)| run(request, name, job))
        .collect::<Result<_>>()?;
    for ((name, _), rows) in jobs.iter().zip(rows) {
        for (quantity, value) in rows {
            table.put(name, &quantity, value);
        }
    }
    probes(request, wanted, table)
}

/// The baseline's row, of a tensor that is as in the baseline.
fn known(request: &MeasureRequest<'_>, name: &str, quantity: &str) -> Option<Value> {
    let baseline = request.baseline.filter(|b| !b.changed.contains(name))?;
    baseline.table.get(name, quantity).cloned()
}

/// What is known of a tensor without its elements.
fn of_header(meta: &TensorMeta, quantity: &str) -> Option<Value> {
    match quantity {
        "tensor.shape" => {
            let axes = meta.shape.iter().map(|axis| *axis as f64);
            Some(Value::Vector(axes.collect()))
        }
        "tensor.dtype" => Some(Value::Text(meta.dtype.name().to_owned())),
        _ if !meta.dtype.is_float() => Some(Value::Number(0.0)),
        _ => None,
    }
}

/// The rows of one tensor.
fn run(request: &MeasureRequest<'_>, name: &str, job: &Job) -> Result<Vec<(String, Value)>> {
    check_cancelled(request)?;
    let own = weights::resolve(request.weights, name).is_some_and(|meta| meta.name == name);
    let mut rows = Vec::new();
    if !job.weight.is_empty() {
        let (of_weight, non_finite) = weights::rows(request, name, &job.weight)?;
        rows.extend(of_weight);
        if job.non_finite && own {
            rows.push((NON_FINITE.to_owned(), Value::Number(non_finite as f64)));
            return Ok(rows);
        }
    }
    // A stored head that is tied: its weight's rows are the embedding's, its tensor's rows are its own.
    if job.non_finite {
        let tensor = request.weights.tensor(name)?;
        let stats = request.device.weight_stats(&tensor, &Default::default());
        let count = stats.map_err(packhost_model::Error::from)?.non_finite;
        rows.push((NON_FINITE.to_owned(), Value::Number(count as f64)));
    }
    Ok(rows)
}

/// The guards' own statistics.
fn probes(request: &MeasureRequest<'_>, wanted: &Wanted<'_>, table: &mut Table) -> Result<()> {
    for meta in request.weights.tensors() {
        let name = meta.name.as_str();
        for wish in wanted.probes.get(name).into_iter().flatten() {
            check_cancelled(request)?;
            if let Some(value) = known(request, name, &wish.quantity) {
                table.put(name, &wish.quantity, value);
            } else if let Some(probe) = request.probe {
                let values =
                    probe(wish, meta, &request.weights.tensor(name)?).map_err(|reason| {
                        Error::Request {
                            guard: wish.guard.clone(),
                            quantity: wish.quantity.clone(),
                            scope: name.to_owned(),
                            reason: format!("and its probe failed: {reason}"),
                        }
                    })?;
                table.put_vector(name, &wish.quantity, values);
            }
        }
    }
    Ok(())
}
