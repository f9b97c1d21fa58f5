//! Measuring: one forward pass for everything that needs predictions, one pass over the weights for everything else.
//!
//! Guards ask for quantities; the union of their requests is measured once and written into one [`Table`].
//!
//! | quantity | scope | value |
//! |---|---|---|
//! | `window.ids`, `window.loss`, `window.tokens` | `preview`, `final` | vectors: window ids, mean loss per window (nats), real tokens |
//! | `kl.mean`, `kl.median`, `kl.p99`, `kl.max` | `final`; `model` for both arms | KL divergence of the subject's prediction from the baseline's per scored token (nats) |
//! | `same_top.share` | `final`; `model` | share of scored tokens where both predict the same token as likeliest |
//! | `tensor.shape`, `tensor.dtype`, `tensor.non_finite` | each tensor | axes, dtype, count of NaN and infinite values |
//! | `vocabulary` | each embedding | rows |
//! | `parameter.count`, `tying`, `structure.digest`, `config.vocab_size`, `norm.names` | `model` | see [`crate::structure`] |
//! | `probe.GUARD.NAME` | each tensor asked for | the guard's own statistic |
//!
//! A request's scope for tensors is a name with `*` for anything, `role:ROLE` or `layer:N`. Divergence rows are absent
//! where there is no baseline to diverge from.

use crate::structure::{self, select_tensors};
use crate::table::Table;
use crate::windows::{Window, Windows};
use crate::{Error, Result};
use packhost_model::network::{HiddenCache, KeepPolicy, Network, Reference, ScoreRequest, Scores};
use packhost_model::{TensorMeta, Weights};
use packhost_stats::quantile;
use packhost_tensor::{Device, Summary, Tensor};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicBool;

/// One guard's wish.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Request {
    /// The guard's id.
    pub guard: String,
    /// What to measure.
    pub quantity: String,
    /// Of what.
    pub scope: String,
    /// Parameters of the quantity, JSON; no quantity of this host has any.
    pub params: String,
}

/// What is known of the baseline when a subject of it is measured.
#[derive(Clone, Copy)]
pub struct Baseline<'a> {
    /// The baseline's table: rows of tensors that did not change are taken from it.
    pub table: &'a Table,
    /// Names of the tensors that the subject changed, added or removed.
    pub changed: &'a BTreeSet<String>,
    /// The baseline's predictions on the same windows; without them there is no divergence.
    pub reference: Option<&'a Reference>,
    /// The baseline's hidden states on the same windows, where kept.
    pub hidden: Option<&'a HiddenCache>,
}

/// Runs a guard's own statistic on a tensor.
pub type Probe<'a> =
    dyn Fn(&Request, &TensorMeta, &Tensor) -> std::result::Result<Vec<f64>, String> + Sync + 'a;

/// What to measure of which model.
#[derive(Clone, Copy)]
pub struct MeasureRequest<'a> {
    /// The model.
    pub weights: &'a dyn Weights,
    /// Where passes over the weights run.
    pub device: &'a dyn Device,
    /// What predictions are scored on.
    pub windows: &'a Windows,
    /// What all guards ask for.
    pub requests: &'a [Request],
    /// The baseline, when the model is a subject of one.
    pub baseline: Option<Baseline<'a>>,
    /// What to keep of the pass for this model's subjects.
    pub keep: Option<KeepPolicy>,
    /// Runs `probe.*` requests.
    pub probe: Option<&'a Probe<'a>>,
    /// Ends the measurement with [`Error::Cancelled`] soon after it becomes true.
    pub cancel: Option<&'a AtomicBool>,
}

/// A model's measurements.
#[derive(Debug)]
pub struct Measured {
    /// The rows.
    pub table: Table,
    /// The predictions that were to be kept.
    pub reference: Option<Reference>,
    /// The hidden states that were to be kept.
    pub hidden: Option<HiddenCache>,
    /// Why the model could not be run at all. Rows about its weights are there, rows about windows are not: guards of
    /// structure can judge it, and the report says that it failed structurally.
    pub structural_failure: Option<String>,
}

/// Quantities of the windows' arms.
const OF_WINDOWS: [&str; 3] = ["window.ids", "window.loss", "window.tokens"];
/// Quantities of the divergence from a baseline.
const OF_DIVERGENCE: [&str; 5] = ["kl.mean", "kl.median", "kl.p99", "kl.max", "same_top.share"];
/// Quantities of single tensors.
const OF_TENSORS: [&str; 3] = ["tensor.shape", "tensor.dtype", "tensor.non_finite"];

/// Measure a model. Unknown quantities and scopes are refused before anything is computed.
pub fn measure(request: &MeasureRequest<'_>) -> Result<Measured> {
    let wanted = Wanted::new(request)?;
    let mut table = Table::new();
    structure::measure(request.weights, &wanted.of_model, &mut table);
    tensors(request, &wanted, &mut table)?;
    let mut measured = Measured {
        table,
        reference: None,
        hidden: None,
        structural_failure: None,
    };
    if wanted.predictions || request.keep.is_some() {
        predictions(request, &wanted, &mut measured)?;
    }
    Ok(measured)
}

/// The union of all requests.
#[derive(Default)]
struct Wanted<'a> {
    /// Whether anything needs the forward pass.
    predictions: bool,
    /// (scope, quantity) of windows and divergence.
    of_arms: BTreeSet<(&'a str, &'a str)>,
    /// Quantities of the model or of embeddings.
    of_model: BTreeSet<&'a str>,
    /// Per tensor the quantities asked for.
    of_tensors: BTreeMap<&'a str, BTreeSet<&'a str>>,
    /// Probes per tensor.
    probes: BTreeMap<&'a str, Vec<&'a Request>>,
}

impl<'a> Wanted<'a> {
    fn new(request: &MeasureRequest<'a>) -> Result<Self> {
        let mut wanted = Self::default();
        for wish in request.requests {
            let (quantity, scope) = (wish.quantity.as_str(), wish.scope.as_str());
            let refuse = |reason: String| Error::Request {
                guard: wish.guard.clone(),
                quantity: wish.quantity.clone(),
                scope: wish.scope.clone(),
                reason,
            };
            let scoped = |scopes: &[&str]| {
                if scopes.contains(&scope) {
                    return Ok(());
                }
                Err(refuse(format!(
                    "whose scope must be {}",
                    scopes.join(" or ")
                )))
            };
            if OF_WINDOWS.contains(&quantity) {
                scoped(&["preview", "final"])?;
                wanted.of_arms.insert((scope, quantity));
                wanted.predictions = true;
            } else if OF_DIVERGENCE.contains(&quantity) {
                scoped(&["final", "model"])?;
                wanted.of_arms.insert((scope, quantity));
                wanted.predictions = true;
            } else if structure::OF_MODEL.contains(&quantity) {
                scoped(&["model"])?;
                wanted.of_model.insert(quantity);
            } else if quantity == structure::VOCABULARY {
                scoped(&["model", "*"])?;
                wanted.of_model.insert(quantity);
            } else if OF_TENSORS.contains(&quantity) || quantity.starts_with("probe.") {
                let names = select_tensors(request.weights, scope).map_err(&refuse)?;
                if OF_TENSORS.contains(&quantity) {
                    for name in names {
                        wanted.of_tensors.entry(name).or_default().insert(quantity);
                    }
                } else {
                    let own = format!("probe.{}.", wish.guard);
                    if !quantity.starts_with(&own) || request.probe.is_none() {
                        return Err(refuse(format!(
                            "but only probes of its own, named `{own}NAME`, can be measured"
                        )));
                    }
                    for name in names {
                        wanted.probes.entry(name).or_default().push(wish);
                    }
                }
            } else {
                let known: Vec<&str> = [
                    &OF_WINDOWS[..],
                    &OF_DIVERGENCE,
                    &OF_TENSORS,
                    &structure::OF_MODEL,
                    &[structure::VOCABULARY],
                ]
                .concat();
                return Err(refuse(format!(
                    "which this host does not measure; it measures {}",
                    known.join(", ")
                )));
            }
        }
        Ok(wanted)
    }
}

/// One pass over the weights; tensors that a subject left as they were keep the baseline's rows.
fn tensors(request: &MeasureRequest<'_>, wanted: &Wanted<'_>, table: &mut Table) -> Result<()> {
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

/// One forward pass over all windows. A model that cannot be run is a finding, not an error.
fn predictions(
    request: &MeasureRequest<'_>,
    wanted: &Wanted<'_>,
    measured: &mut Measured,
) -> Result<()> {
    let sequences = request.windows.sequences();
    let scores = Network::new(request.weights).and_then(|network| {
        network.score(&ScoreRequest {
            windows: &sequences,
            reference: comparable(request),
            start: request.baseline.and_then(|baseline| baseline.hidden),
            keep: request.keep,
            cancel: request.cancel,
        })
    });
    let scores = match scores {
        Ok(scores) => scores,
        Err(packhost_model::Error::Cancelled) => return Err(Error::Cancelled),
        Err(error) => {
            measured.structural_failure = Some(error.to_string());
            return Ok(());
        }
    };
    let split = request.windows.preview.len();
    let arms = [
        ("preview", &request.windows.preview, 0..split),
        ("final", &request.windows.final_, split..sequences.len()),
    ];
    for (scope, arm, range) in arms {
        let losses = &scores.losses[range];
        let of = |quantity: &str| wanted.of_arms.contains(&(scope, quantity));
        let vector = |value: fn(&Window) -> f64| arm.iter().map(value).collect::<Vec<f64>>();
        let table = &mut measured.table;
        if of("window.ids") {
            table.put_vector(scope, "window.ids", vector(|window| f64::from(window.id)));
        }
        if of("window.tokens") {
            table.put_vector(
                scope,
                "window.tokens",
                vector(|window| window.tokens.len() as f64),
            );
        }
        if of("window.loss") {
            let means = losses.iter().map(|losses| mean(losses)).collect();
            table.put_vector(scope, "window.loss", means);
        }
    }
    divergence(&scores, wanted, "final", split, &mut measured.table);
    divergence(&scores, wanted, "model", 0, &mut measured.table);
    measured.reference = scores.reference;
    measured.hidden = scores.hidden;
    Ok(())
}

/// The baseline's predictions, where the model predicts the same token ids: without them there is no divergence, but losses
/// there are.
fn comparable<'a>(request: &MeasureRequest<'a>) -> Option<&'a Reference> {
    let vocabulary = request.weights.output_head()?.shape.first().copied();
    let reference = request.baseline?.reference?;
    (vocabulary == Some(reference.vocabulary())).then_some(reference)
}

/// Whether a quantity takes a forward pass, so that a model that cannot be run has no row of it.
#[must_use]
pub fn needs_predictions(quantity: &str) -> bool {
    OF_WINDOWS.contains(&quantity) || OF_DIVERGENCE.contains(&quantity)
}

/// The mean loss of a window: f64, in token order.
fn mean(losses: &[f32]) -> f64 {
    losses.iter().map(|loss| f64::from(*loss)).sum::<f64>() / losses.len() as f64
}

/// How far predictions are from the baseline's, over all windows from the given one on.
fn divergence(scores: &Scores, wanted: &Wanted<'_>, scope: &str, from: usize, table: &mut Table) {
    let of = |quantity: &str| wanted.of_arms.contains(&(scope, quantity));
    if let Some(divergence) = &scores.divergence {
        let values = divergence[from..].iter().flatten().map(|kl| f64::from(*kl));
        let values: Vec<f64> = values.collect();
        let sum: f64 = values.iter().sum();
        let sorted = quantile::sorted(&values);
        for (quantity, value) in [
            ("kl.mean", sum / values.len() as f64),
            ("kl.median", quantile::linear(&sorted, 0.5)),
            ("kl.p99", quantile::linear(&sorted, 0.99)),
            ("kl.max", quantile::linear(&sorted, 1.0)),
        ] {
            if of(quantity) {
                table.put_number(scope, quantity, value);
            }
        }
    }
    if let Some(same) = scores.same_top.as_ref().filter(|_| of("same_top.share")) {
        let (mut count, mut equal) = (0_u64, 0_u64);
        for same in same[from..].iter().flatten() {
            count += 1;
            equal += u64::from(*same);
        }
        table.put_number(scope, "same_top.share", equal as f64 / count as f64);
    }
}

fn check_cancelled(request: &MeasureRequest<'_>) -> Result<()> {
    let cancelled = request
        .cancel
        .is_some_and(|cancel| cancel.load(std::sync::atomic::Ordering::Relaxed));
    if cancelled {
        Err(Error::Cancelled)
    } else {
        Ok(())
    }
}
