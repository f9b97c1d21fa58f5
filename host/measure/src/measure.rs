//! Measuring: one forward pass for everything that needs predictions, one pass over the weights for everything else.
//!
//! Guards ask for quantities; the union of their requests is measured once and written into one [`Table`].
//!
//! | quantity | scope | value |
//! |---|---|---|
//! | `window.ids`, `window.loss`, `window.tokens` | `preview`, `final` | vectors: window ids, mean loss per window (nats), real tokens |
//! | `kl.mean`, `kl.median`, `kl.p99`, `kl.max` | `final`; `model` for both arms | KL divergence of the subject's prediction from the baseline's per scored token (nats) |
//! | `same_top.share` | `final`; `model` | share of scored tokens where both predict the same token as likeliest |
//! | `window.ids`, `window.loss`, `window.tokens` | `first:K`: the first K windows, preview before final | the same, of a pass of its own where the parameters are `{"scale":{"MODULE":FACTOR}}`: the module's output is multiplied |
//! | `window.kl`, `window.same_top`, `window.tv` | `preview`, `final`; subjects | vectors: per window the mean KL divergence, share of equal likeliest tokens and mean total variation |
//! | `activation.outliers.SET.T` | each module | vector: how many singular values of the standardised output lie above T thousandths of the noise edge, per window of the set; costs a whole spectrum each |
//! | `activation.edge_risk.SET` | each module | vector: edge risk per window of the set, padding rows included; NaN where a number is not finite |
//! | `activation.mean_square.SET` | each module | vector: mean square per window of the set, padding rows included |
//! | `activation.tokens.SET` | `model` | vector: tokens per window of the set |
//! | `activation.moments` | each module | vector: mean over features of the squared feature mean, and of the feature variance |
//! | `activation.singular` | each module | vector: 8 leading singular values about the feature means over the root of the rows, then the effective rank; windows of even8 |
//! | `activation.shift` | each module; subjects | vector: squared move of the means over the baseline's total variance, median and largest absolute logarithm of the variance ratio over features, logarithm of the ratio of total variances |
//! | `tensor.shape`, `tensor.dtype`, `tensor.non_finite` | each tensor | axes, dtype, count of NaN and infinite values |
//! | `weight.*` | each weight | norms, singular values, change from the baseline: see the module `weights` |
//! | `vocabulary` | each embedding | rows |
//! | `parameter.count`, `tying`, `structure.digest`, `config.vocab_size`, `norm.names` | `model` | see [`crate::structure`] |
//! | `probe.GUARD.NAME` | each tensor asked for | the guard's own statistic |
//!
//! `SET` is `evenK`, `firstK` or `lastK` of the windows, preview before final ([`crate::sets`]). A *module* is a projection or
//! the embedding, named as its weight without `.weight`; its output has the bias added; the output projection is none. The
//! moments leave out padding and each window's first token; so do singular values and shift. Padding rows carry the window
//! on to the plan's length, as the reference runs it. An expert gives rows for the tokens that are routed to it alone.
//!
//! A request's scope for tensors and modules is a name with `*` for anything, `role:ROLE` or `layer:N`. Divergence rows are absent
//! where there is no baseline to diverge from. A row's scope is what was measured; where the request has parameters, they follow
//! after a space ([`Request::row_scope`]).

use crate::activations::FeatureMoments;
use crate::table::Table;
use crate::wanted::Wanted;
use crate::windows::Windows;
use crate::{Error, Result, predictions, structure, tensors};
use packhost_model::network::{HiddenCache, KeepPolicy, Reference};
use packhost_model::{TensorMeta, Weights};
use packhost_tensor::{Device, Tensor};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

/// One guard's wish.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Request {
    /// The guard's id.
    pub guard: String,
    /// What to measure.
    pub quantity: String,
    /// Of what.
    pub scope: String,
    /// Parameters of the quantity, JSON; empty or `{}` where it has none.
    pub params: String,
}

impl Request {
    /// Whether the request has parameters.
    #[must_use]
    pub fn has_params(&self) -> bool {
        !matches!(self.params.as_str(), "" | "{}")
    }

    /// The scope of the row about `scope`, one of those that the request names: with parameters `SCOPE PARAMS`, as they were
    /// given, so that a row names everything it depends on; without them `SCOPE`.
    #[must_use]
    pub fn row_scope(&self, scope: &str) -> String {
        if self.has_params() {
            format!("{scope} {}", self.params)
        } else {
            scope.to_owned()
        }
    }

    /// The error for a request that cannot be served.
    pub(crate) fn refuse(&self, reason: String) -> Error {
        Error::Request {
            guard: self.guard.clone(),
            quantity: self.quantity.clone(),
            scope: self.scope.clone(),
            reason,
        }
    }
}

/// What is known of the baseline when a subject of it is measured.
#[derive(Clone, Copy)]
pub struct Baseline<'a> {
    /// The baseline's weights: what rows about a tensor's change are measured against.
    pub weights: &'a dyn Weights,
    /// The baseline's table: rows of tensors that did not change are taken from it.
    pub table: &'a Table,
    /// Names of the tensors that the subject changed, added or removed.
    pub changed: &'a BTreeSet<String>,
    /// The baseline's predictions on the same windows; without them there is no divergence.
    pub reference: Option<&'a Reference>,
    /// The baseline's hidden states on the same windows, where kept.
    pub hidden: Option<&'a HiddenCache>,
    /// The moments of the baseline's modules on the same windows, where measured.
    pub moments: Option<&'a FeatureMoments>,
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
    /// Moments of the modules of which `activation.moments` or `activation.shift` was asked for.
    pub moments: FeatureMoments,
    /// Why the model could not be run at all. Rows about its weights are there, rows about windows are not: guards of
    /// structure can judge it, and the report says that it failed structurally.
    pub structural_failure: Option<String>,
}

/// Measure a model. Unknown quantities and scopes are refused before anything is computed.
pub fn measure(request: &MeasureRequest<'_>) -> Result<Measured> {
    let wanted = Wanted::new(request)?;
    let mut table = Table::new();
    structure::measure(request.weights, &wanted.of_model, &mut table);
    tensors::measure(request, &wanted, &mut table)?;
    let mut measured = Measured {
        table,
        reference: None,
        hidden: None,
        moments: FeatureMoments::new(),
        structural_failure: None,
    };
    if wanted.predictions || request.keep.is_some() {
        predictions::measure(request, &wanted, &mut measured)?;
    }
    Ok(measured)
}

/// Ends the measurement where it was cancelled.
pub(crate) fn check_cancelled(request: &MeasureRequest<'_>) -> Result<()> {
    let cancelled = request
        .cancel
        .is_some_and(|cancel| cancel.load(Ordering::Relaxed));
    if cancelled {
        Err(Error::Cancelled)
    } else {
        Ok(())
    }
}
