//! Rows about predictions: losses per window, and how far a subject's predictions are from its baseline's. All of them
//! come out of one forward pass.

use crate::measure::{MeasureRequest, Measured};
use crate::table::Table;
use crate::wanted::Wanted;
use crate::windows::Window;
use crate::{Error, Result};
use packhost_model::network::{Network, Reference, ScoreRequest, Scores};
use packhost_stats::quantile;

/// Quantities of the windows' arms.
pub(crate) const OF_WINDOWS: [&str; 3] = ["window.ids", "window.loss", "window.tokens"];
/// Quantities of the divergence from a baseline.
pub(crate) const OF_DIVERGENCE: [&str; 5] =
    ["kl.mean", "kl.median", "kl.p99", "kl.max", "same_top.share"];

/// Whether a quantity takes a forward pass, so that a model that cannot be run has no row of it.
#[must_use]
pub fn needs_predictions(quantity: &str) -> bool {
    OF_WINDOWS.contains(&quantity) || OF_DIVERGENCE.contains(&quantity)
}

/// One forward pass over all windows. A model that cannot be run is a finding, not an error.
pub(crate) fn measure(
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
