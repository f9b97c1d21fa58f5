//! Rows about predictions: losses per window, and how far a subject's predictions are from its baseline's. All of them
//! come out of one forward pass.

use crate::activations::{is_activation, refuse_scale};
use crate::measure::{MeasureRequest, Measured, Request};
use crate::table::Table;
use crate::wanted::Wanted;
use crate::windows::Window;
use crate::{Error, Result};
use packhost_model::network::{Network, Reference, ScoreRequest, Scores};
use packhost_stats::quantile;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// Quantities of the windows' arms.
pub(crate) const OF_WINDOWS: [&str; 3] = ["window.ids", "window.loss", "window.tokens"];
/// Quantities of the divergence from a baseline.
pub(crate) const OF_DIVERGENCE: [&str; 5] =
    ["kl.mean", "kl.median", "kl.p99", "kl.max", "same_top.share"];

/// Quantities of the divergence from a baseline, window by window.
pub(crate) const PER_WINDOW: [&str; 3] = ["window.kl", "window.same_top", "window.tv"];

/// A wish for rows of the first windows.
pub(crate) struct First<'a> {
    pub(crate) wish: &'a Request,
    /// How many windows.
    pub(crate) count: usize,
    /// By what outputs of modules are multiplied; nothing in the metric's own pass.
    pub(crate) factors: BTreeMap<String, f32>,
}

/// Whether a quantity takes a forward pass, so that a model that cannot be run has no row of it.
#[must_use]
pub fn needs_predictions(quantity: &str) -> bool {
    OF_WINDOWS.contains(&quantity)
        || PER_WINDOW.contains(&quantity)
        || OF_DIVERGENCE.contains(&quantity)
        || is_activation(quantity)
}

/// One forward pass over all windows. A model that cannot be run is a finding, not an error.
pub(crate) fn measure(
    request: &MeasureRequest<'_>,
    wanted: &Wanted<'_>,
    measured: &mut Measured,
) -> Result<()> {
    let sequences = request.windows.sequences();
    let network = match Network::new(request.weights) {
        Ok(network) => network,
        Err(error) => {
            measured.structural_failure = Some(error.to_string());
            return Ok(());
        }
    };
    let modules = network.modules();
    let activations = &wanted.activations;
    let taps = activations.taps(request.windows, &modules, network.vocabulary());
    let hidden = request.baseline.and_then(|baseline| baseline.hidden);
    let per_window = |quantity| {
        let mut arms = ["preview", "final"].into_iter();
        arms.any(|arm| wanted.of_arms.contains(&(arm, quantity)))
    };
    let scores = network.score(&ScoreRequest {
        windows: &sequences,
        reference: comparable(request),
        start: hidden.filter(|_| activations.known(request, &modules)),
        keep: request.keep,
        cancel: request.cancel,
        taps: taps.as_ref(),
        variation: per_window("window.tv"),
    });
    let mut scores = match scores {
        Ok(scores) => scores,
        Err(packhost_model::Error::Cancelled) => return Err(Error::Cancelled),
        Err(error) => {
            measured.structural_failure = Some(error.to_string());
            return Ok(());
        }
    };
    let observed = scores.observed.take();
    measured.moments = activations.write(request, observed, &modules, &mut measured.table);
    let split = request.windows.preview.len();
    let arms = [
        ("preview", &request.windows.preview, 0..split),
        ("final", &request.windows.final_, split..sequences.len()),
    ];
    for (scope, arm, range) in arms {
        let losses = &scores.losses[range.clone()];
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
        if let Some(divergence) = scores.divergence.as_ref().filter(|_| of("window.kl")) {
            let means = divergence[range.clone()].iter().map(|d| mean(d)).collect();
            table.put_vector(scope, "window.kl", means);
        }
        if let Some(variation) = scores.variation.as_ref().filter(|_| of("window.tv")) {
            let means = variation[range.clone()].iter().map(|v| mean(v)).collect();
            table.put_vector(scope, "window.tv", means);
        }
        if let Some(same) = scores.same_top.as_ref().filter(|_| of("window.same_top")) {
            let share = |same: &Vec<bool>| {
                same.iter().filter(|same| **same).count() as f64 / same.len() as f64
            };
            let shares = same[range].iter().map(share).collect();
            table.put_vector(scope, "window.same_top", shares);
        }
    }
    first(request, wanted, &network, &scores, &mut measured.table)?;
    divergence(&scores, wanted, "final", split, &mut measured.table);
    divergence(&scores, wanted, "model", 0, &mut measured.table);
    measured.reference = scores.reference;
    measured.hidden = scores.hidden;
    Ok(())
}

/// Rows of the first windows: out of the pass that was made, or of a pass with scaled outputs, one per set of factors. That
/// one starts from hidden states that do not depend on the factors, where there are any.
fn first(
    request: &MeasureRequest<'_>,
    wanted: &Wanted<'_>,
    network: &Network,
    scores: &Scores,
    table: &mut Table,
) -> Result<()> {
    let sequences = request.windows.sequences();
    let ids: Vec<f64> = request.windows.all().map(|w| f64::from(w.id)).collect();
    let mut passes: BTreeMap<&str, Vec<Vec<f32>>> = BTreeMap::new();
    for First {
        wish,
        count,
        factors,
    } in &wanted.of_first
    {
        let count = (*count).min(sequences.len());
        let value = match wish.quantity.as_str() {
            "window.ids" => ids[..count].to_vec(),
            "window.tokens" => sequences[..count].iter().map(|w| w.len() as f64).collect(),
            _ if factors.is_empty() => scores.losses[..count].iter().map(|l| mean(l)).collect(),
            _ => {
                let losses = match passes.entry(&wish.params) {
                    Entry::Occupied(entry) => entry.into_mut(),
                    Entry::Vacant(entry) => {
                        let scaled = network.scaled(factors);
                        let scaled = scaled.map_err(|error| refuse_scale(wish, &error))?;
                        // As many windows as anyone wants of this pass.
                        let same = wanted
                            .of_first
                            .iter()
                            .filter(|f| f.wish.params == wish.params);
                        let most = same.map(|first| first.count).max().unwrap_or(count);
                        let hidden = request.baseline.and_then(|baseline| baseline.hidden);
                        let scaled = scaled.score(&ScoreRequest {
                            windows: &sequences[..most.min(sequences.len())],
                            start: scores.hidden.as_ref().or(hidden),
                            cancel: request.cancel,
                            ..ScoreRequest::default()
                        });
                        entry.insert(match scaled {
                            Err(packhost_model::Error::Cancelled) => return Err(Error::Cancelled),
                            scaled => scaled?.losses,
                        })
                    }
                };
                losses[..count].iter().map(|losses| mean(losses)).collect()
            }
        };
        table.put_vector(&wish.row_scope(&wish.scope), &wish.quantity, value);
    }
    Ok(())
}

/// The baseline's predictions, where the model predicts the same token ids: without them there is no divergence, but losses
/// there are.
fn comparable<'a>(request: &MeasureRequest<'a>) -> Option<&'a Reference> {
    let vocabulary = request.weights.output_head()?.shape.first().copied();
    let reference = request.baseline?.reference?;
    (vocabulary == Some(reference.vocabulary())).then_some(reference)
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
