//! Weight shift: how far each tensor moved from the same tensor of the baseline.
//!
//! The parity guard `spectral` holds a matrix against its peers in other layers; a tensor that is usual among its peers
//! after a change stays unseen there. This guard holds it against itself:
//!
//! | effect | what | marked beyond | damaged beyond |
//! |---|---|---|---|
//! | `relative_change` | `‖W_s − W_b‖_F / ‖W_b‖_F` | 0.25 | 1 |
//! | `rescaling` | how far the tensor as a whole was made longer or shorter: `ln(1 + γ)`, below | 0.015 | 0.09 |
//! | `top_singular_value` | `|ln σ_s/σ_b|`, as far as it is more than the estimates' error and a change without a direction | 0.015 | 0.1 |
//! | `stable_rank` | `|ln r_s/r_b|` with `r = ‖W‖_F²/σ²`, as far as it lies outside the error bounds | 0.35 | 2.77 (a factor of 16) |
//! | `subspace_turn` | one less the overlap of the leading right subspaces | 0.25 | 0.75 |
//! | `sparsity` | rise of the share of zeros | 0.3 | 0.9 |
//!
//! Why these: rounding is noise without a direction, so it neither rescales a tensor nor moves its leading singular values
//! much. Of the change `E = W_s − W_b` the part along the tensor itself, `γ = ⟨E, W_b⟩/‖W_b‖²`, says by which factor `1 + γ`
//! the tensor as a whole was multiplied (least squares); it follows from the norms of both tensors and of the change, so
//! it has no error of estimation. Noise that is independent of the tensor has `γ = 0`; edits that leave something out
//! (pruned elements, truncated directions, all but the means of groups) have `γ = −ρ²`, with `ρ` the relative change. So
//! only what lies outside `[−ρ², 0]` counts, as `ln(1 + γ)` above and `ln((1 − ρ²)/(1 + γ))` below: `ln(1 + d)` for a tensor
//! times `1 + d` and one times `1 − d` alike. On the reference's model 4 and 8 bits, 8-bit floats, pruning up to half and
//! truncation to rank 32 reach at most 0.0017; in the demo, whose norms sit in few large channels, 8-bit floats reach 0.0036
//! in feed-forward matrices and 0.018 everywhere, all other edits 0.0014. A tensor times 1.02 has 0.0198, one times 1.12
//! or 0.88 has 0.113.
//!
//! The spectral norm of an `m` by `n` matrix of independent noise is about `(√m + √n)/√(mn)` of its Frobenius norm (the edge of
//! the singular values of random matrices), so a change of size `ρ` that has no direction moves `ln σ` by at most about
//! `ρ·√r·(1/√m + 1/√n)`, with `r` the stable rank. That much is taken off `top_singular_value`. Nothing of the edits above is
//! left then but 0.014 of 8-bit floats in the demo (0.028 before) and 0.0001 of pruning half on the reference's model (0.077
//! before); a rank-one spike keeps nearly all of its effect, as its norm is small. Four bits in groups change a tensor by about a
//! tenth of its norm; beyond the norm itself nothing is left of it. A truncation to rank 32 lowers the stable rank of a
//! wide matrix by up to ten times and is a clean edit in the catalogue. Random noise of a hundredth of the norm is neither
//! more nor less harmful than rounding of that size, and no weight statistic tells them apart: it is `changed`, and
//! `distribution-shift` tells what it costs.
//!
//! A finding `changed` (status pass) says that tensors moved more than rounding of the stored dtype explains: by a null
//! fitted to perturbations of this model, or, without one, by more than one unit in the last place of every element
//! could do (relative change over 2^-7 for BF16); that bound cannot be passed by rounding at all. Dead rows or columns (one
//! head zeroed), another dtype, other tying, tensors added are marked; tensors missing or of another shape are damage.
//!
//! Not seen: rescalings that leave the function as it was (they are reported as what they are), and damage in a
//! direction that weighs little in the norm but much in the function.
//!
//! Quantities: `weight.shift` and `weight.overlap` of changed tensors; `weight.singular`, `weight.frobenius_sq`,
//! `weight.zeros`, `weight.row_norms`, `weight.column_norms`; `tensor.shape`, `tensor.dtype`, `tying`, `structure.digest`.
//! A tensor without `weight.shift` is unchanged and costs nothing.

mod tensors;
#[cfg(test)]
mod tests;

use packhost_sdk::json::json;
use packhost_sdk::screening::{self, Limit, Limits, Outcome, Policy, Side, Statistic, observed};
use packhost_sdk::{
    About, Guard, ModelInfo, Request, Result, Status, Step, Table, Verdict, export_guard,
};
use tensors::{Change, Models, Structure};

const ID: &str = "weight-shift";

const QUANTITIES: [&str; 9] = [
    "tensor.shape",
    "tensor.dtype",
    "weight.shift",
    "weight.overlap",
    "weight.singular",
    "weight.frobenius_sq",
    "weight.zeros",
    "weight.row_norms",
    "weight.column_norms",
];

/// Default limits; the module's text says why.
const LIMITS: [(&str, Limit); 6] = [
    ("relative_change", Limit::new(Some(0.25), Some(1.0))),
    ("rescaling", Limit::new(Some(0.015), Some(0.09))),
    ("top_singular_value", Limit::new(Some(0.015), Some(0.1))),
    ("stable_rank", Limit::new(Some(0.35), Some(2.77))),
    ("subspace_turn", Limit::new(Some(0.25), Some(0.75))),
    ("sparsity", Limit::new(Some(0.3), Some(0.9))),
];

/// What the null is about, in the order of [`Change::statistics`]. Sizes enter as logarithms, which are closer to normal.
///
/// The turn of the leading subspace is an effect but no statistic of the null: where two singular values lie close, rounding
/// alone turns the subspace by anything between nothing and everything, which no five runs tell (with it, 9 of 40 fresh
/// perturbations of the reference's model were found changed, each by it). Nothing is lost: by Wedin's theorem a
/// subspace turns by no more than the relative change over the gap, and the relative change is tested.
const STATISTICS: [Statistic; 3] = [
    Statistic::new("log_relative_change", Side::Upper, 1e-3),
    Statistic::new("log_top_singular_value", Side::Both, 1e-5),
    Statistic::new("log_stable_rank", Side::Both, 1e-5),
];

struct WeightShift;

impl Guard for WeightShift {
    const ABOUT: About = About {
        id: ID,
        version: env!("CARGO_PKG_VERSION"),
        title: "How far each weight tensor moved from the baseline",
    };
    type Policy = Policy;

    fn plan(policy: &Policy, _model: &ModelInfo) -> Result<Vec<Request>> {
        policy.check(&LIMITS)?;
        let tensors = QUANTITIES.map(|quantity| Request::new(quantity, "*"));
        let model = ["tying", "structure.digest"].map(|quantity| Request::new(quantity, "model"));
        Ok(tensors.into_iter().chain(model).collect())
    }

    fn judge(policy: &Policy, baseline: &Table, subject: &Table) -> Result<Step> {
        let limits = policy.check(&LIMITS)?;
        let models = Models::read(baseline, subject)?;
        let changes = models.changes()?;
        let observed = observed(&changes);
        let tests = models.tensors();
        let significance = policy.significance(ID, &STATISTICS, baseline, &observed, tests)?;
        let mut outcome = Outcome::default();
        let structure = models.structure()?;
        judge_structure(&structure, &mut outcome);
        for (name, change) in &changes {
            judge_change(name, change, &limits, &mut outcome);
        }
        let significance = significance.as_ref();
        let changed = screening::changed(&changes, significance);
        if let Some(finding) = screening::summary(&changes, &changed, tests) {
            outcome.push(Status::Pass, finding);
        }
        let mut details = policy.details(&limits, significance);
        details["not_in_calibration"] = json!(significance.map_or(0, |known| known.unknown.len()));
        details["tensors"] = json!(tests);
        details["tensors_different"] = json!(changes.len());
        details["tensors_changed"] = json!(changed.len());
        details["most_changed"] = screening::most_changed(&changes, &changed, significance);
        details["structure"] = structure.details();
        let (status, findings) = outcome.finish();
        Ok(Step::Verdict(Verdict {
            status,
            findings,
            details,
        }))
    }

    /// What rounding noise at the level of the stored dtype does to this model's tensors.
    fn calibrate(policy: &Policy, runs: &[Table]) -> Result<Policy> {
        policy.check(&LIMITS)?;
        policy.calibrated(ID, &STATISTICS, runs, |baseline, run| {
            Ok(observed(&Models::read(baseline, run)?.changes()?))
        })
    }
}

export_guard!(WeightShift);

fn judge_structure(structure: &Structure<'_>, outcome: &mut Outcome) {
    for (name, before, now) in &structure.reshaped {
        let message = format!("the shape is {now:?}, it was {before:?}");
        outcome.note(Status::Fail, name, "shape", message);
    }
    for name in &structure.missing {
        outcome.note(
            Status::Fail,
            name,
            "missing",
            "the tensor is gone".to_owned(),
        );
    }
    for name in &structure.added {
        outcome.note(Status::Warn, name, "added", "the tensor is new".to_owned());
    }
    for (name, before, now) in &structure.dtypes {
        let message = format!("stored as {now}, it was {before}");
        outcome.note(Status::Warn, name, "dtype", message);
    }
    if let Some((before, now)) = structure.tying {
        let message = format!("embedding and output head are {now}, they were {before}");
        outcome.note(Status::Warn, "model", "tying", message);
    }
}

fn judge_change(name: &str, change: &Change, limits: &Limits, outcome: &mut Outcome) {
    if change.not_finite {
        let message = "a statistic of the changed tensor is NaN or infinite".to_owned();
        outcome.note(Status::Fail, name, "not_finite", message);
    }
    let mut effect = |effect: &str, size: Option<f64>, what: &dyn Fn(f64) -> String| {
        if let Some(size) = size {
            outcome.effect(limits, name, effect, size, &what(size));
        }
    };
    effect("relative_change", Some(change.relative), &|size| {
        format!("the tensor moved by {size:.4} of its norm")
    });
    effect("rescaling", change.rescaling.map(f64::abs), &|_| {
        let factor = packhost_sdk::stats::summary::exp(change.rescaling.unwrap_or(0.0));
        format!("the tensor as a whole was multiplied by {factor:.4}, beside what else changed")
    });
    effect("top_singular_value", change.spike(), &|_| {
        let factor = packhost_sdk::stats::summary::exp(change.log_sigma.unwrap_or(0.0));
        format!(
            "the largest singular value moved by a factor of {factor:.4}, more than noise of that size could"
        )
    });
    effect("stable_rank", change.log_stable_rank.map(f64::abs), &|_| {
        let factor = packhost_sdk::stats::summary::exp(change.log_stable_rank.unwrap_or(0.0));
        format!("the stable rank moved by a factor of {factor:.4}")
    });
    effect("subspace_turn", change.turn, &|size| {
        format!("{size:.4} of the leading subspace is new")
    });
    effect("sparsity", change.sparsity, &|size| {
        format!("the share of zeros rose by {size:.4}")
    });
    for what in &change.dead {
        let message = format!("a {what} became zero");
        outcome.note(Status::Warn, name, "dead", message);
    }
}
