//! Rows about single tensors: one pass over the weights.

use crate::measure::{MeasureRequest, check_cancelled};
use crate::table::Table;
use crate::wanted::Wanted;
use crate::{Error, Result};
use packhost_tensor::Summary;

/// Quantities of single tensors.
pub(crate) const OF_TENSORS: [&str; 3] = ["tensor.shape", "tensor.dtype", "tensor.non_finite"];

/// One pass over the weights; tensors that a subject left as they were keep the baseline's rows.
pub(crate) fn measure(
    request: &MeasureRequest<'_>,
    wanted: &Wanted<'_>,
    table: &mut Table,
) -> Result<()> {
    let weights = request.weights;
    for meta in weights.tensors() {
        let name = meta.name.as_str();
        let known = |quantity: &str| {
            let baseline = request.baseline.filter(|b| !b.changed.contains(name))?;
            baseline.table.get(name, quantity).cloned()
        };
        for &quantity in wanted.of_tensors.get(name).into_iter().flatten() {
            check_cancelled(request)?;
            if let Some(value) = known(quantity) {
                table.put(name, quantity, value);
                continue;
            }
            match quantity {
                "tensor.shape" => {
                    let axes = meta.shape.iter().map(|axis| *axis as f64).collect();
                    table.put_vector(name, quantity, axes);
                }
                "tensor.dtype" => table.put_text(name, quantity, meta.dtype.name()),
                _ if !meta.dtype.is_float() => table.put_number(name, quantity, 0.0),
                _ => {
                    let tensor = weights.tensor(name)?;
                    let count = request.device.summary(&tensor, Summary::NonFinite);
                    let count = count.map_err(packhost_model::Error::from)?;
                    table.put_number(name, quantity, count);
                }
            }
        }
        for wish in wanted.probes.get(name).into_iter().flatten() {
            check_cancelled(request)?;
            if let Some(value) = known(&wish.quantity) {
                table.put(name, &wish.quantity, value);
            } else if let Some(probe) = request.probe {
                let values =
                    probe(wish, meta, &weights.tensor(name)?).map_err(|reason| Error::Request {
                        guard: wish.guard.clone(),
                        quantity: wish.quantity.clone(),
                        scope: name.to_owned(),
                        reason: format!("and its probe failed: {reason}"),
                    })?;
                table.put_vector(name, &wish.quantity, values);
            }
        }
    }
    Ok(())
}
