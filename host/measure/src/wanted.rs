//! The union of what all guards ask for. Unknown quantities, scopes and parameters are refused here, before anything is
//! computed.

use crate::activations::{Activations, OF_MODULES, is_activation, scale_of};
use crate::measure::{MeasureRequest, Request};
use crate::predictions::{First, OF_DIVERGENCE, OF_WINDOWS, PER_WINDOW};
use crate::structure::{self, select_tensors};
use crate::tensors::OF_TENSORS;
use crate::weights::{self, WeightQuantity};
use crate::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};

/// The union of all requests.
#[derive(Default)]
pub(crate) struct Wanted<'a> {
    /// Whether anything needs the forward pass.
    pub(crate) predictions: bool,
    /// (scope, quantity) of windows and divergence.
    pub(crate) of_arms: BTreeSet<(&'a str, &'a str)>,
    /// Rows of the first windows.
    pub(crate) of_first: Vec<First<'a>>,
    /// What modules give.
    pub(crate) activations: Activations<'a>,
    /// Quantities of the model or of embeddings.
    pub(crate) of_model: BTreeSet<&'a str>,
    /// Per tensor the quantities asked for.
    pub(crate) of_tensors: BTreeMap<&'a str, BTreeSet<&'a str>>,
    /// Per weight, by the name that its rows have, the statistics asked for.
    pub(crate) of_weights: BTreeMap<&'a str, BTreeSet<WeightQuantity>>,
    /// Probes per tensor.
    pub(crate) probes: BTreeMap<&'a str, Vec<&'a Request>>,
}

impl<'a> Wanted<'a> {
    /// Sorts out what is asked for.
    ///
    /// # Errors
    /// A guard asks for what this host does not measure, or of what it cannot be measured.
    pub(crate) fn new(request: &MeasureRequest<'a>) -> Result<Self> {
        let mut wanted = Self::default();
        for wish in request.requests {
            wanted.add(request, wish)?;
        }
        Ok(wanted)
    }

    fn add(&mut self, request: &MeasureRequest<'a>, wish: &'a Request) -> Result<()> {
        let (quantity, scope) = (wish.quantity.as_str(), wish.scope.as_str());
        let scoped = |scopes: &[&str]| {
            if scopes.contains(&scope) {
                return Ok(());
            }
            Err(wish.refuse(format!("whose scope must be {}", scopes.join(" or "))))
        };
        if is_activation(quantity) {
            self.activations.add(request, wish)?;
            self.predictions |= !self.activations.is_empty();
        } else if OF_WINDOWS.contains(&quantity)
            && let Some(count) = scope.strip_prefix("first:")
        {
            let count = match count.parse() {
                Ok(count) if count > 0 => count,
                _ => {
                    let reason = "whose scope must be preview, final or first:K with a K from 1 on";
                    return Err(wish.refuse(reason.into()));
                }
            };
            let factors = scale_of(wish)?;
            self.of_first.push(First {
                wish,
                count,
                factors,
            });
            self.predictions = true;
            return Ok(());
        } else if OF_WINDOWS.contains(&quantity) {
            scoped(&["preview", "final", "first:K"])?;
            self.of_arms.insert((scope, quantity));
            self.predictions = true;
        } else if PER_WINDOW.contains(&quantity) {
            scoped(&["preview", "final"])?;
            self.of_arms.insert((scope, quantity));
            self.predictions = true;
        } else if OF_DIVERGENCE.contains(&quantity) {
            scoped(&["final", "model"])?;
            self.of_arms.insert((scope, quantity));
            self.predictions = true;
        } else if structure::OF_MODEL.contains(&quantity) {
            scoped(&["model"])?;
            self.of_model.insert(quantity);
        } else if quantity == structure::VOCABULARY {
            scoped(&["model", "*"])?;
            self.of_model.insert(quantity);
        } else if OF_TENSORS.contains(&quantity) {
            for name in self.select(request, wish)? {
                self.of_tensors.entry(name).or_default().insert(quantity);
            }
        } else if quantity.starts_with(weights::PREFIX) {
            let parsed = WeightQuantity::parse(quantity).map_err(|reason| wish.refuse(reason))?;
            let names =
                weights::select(request, scope, parsed).map_err(|reason| wish.refuse(reason))?;
            for name in names {
                self.of_weights.entry(name).or_default().insert(parsed);
            }
        } else if quantity.starts_with("probe.") {
            let own = format!("probe.{}.", wish.guard);
            if !quantity.starts_with(&own) || request.probe.is_none() {
                return Err(wish.refuse(format!(
                    "but only probes of its own, named `{own}NAME`, can be measured"
                )));
            }
            for name in self.select(request, wish)? {
                self.probes.entry(name).or_default().push(wish);
            }
        } else {
            return Err(unknown(wish));
        }
        // Of the quantities above none has parameters.
        if wish.has_params() {
            return Err(wish.refuse(format!(
                "which has no parameters, with `{}`; leave them out",
                wish.params
            )));
        }
        Ok(())
    }

    fn select(&self, request: &MeasureRequest<'a>, wish: &Request) -> Result<Vec<&'a str>> {
        select_tensors(request.weights, &wish.scope).map_err(|reason| wish.refuse(reason))
    }
}

fn unknown(wish: &Request) -> Error {
    let known: Vec<&str> = [
        &OF_WINDOWS[..],
        &PER_WINDOW,
        &OF_DIVERGENCE,
        &OF_MODULES,
        &OF_TENSORS,
        &weights::NAMES,
        &structure::OF_MODEL,
        &[structure::VOCABULARY],
    ]
    .concat();
    wish.refuse(format!(
        "which this host does not measure; it measures {}",
        known.join(", ")
    ))
}
