//! Rows about what modules give while windows run through them. They come out of the metric's own pass; nothing runs twice.
//!
//! A module before the layer that a subject's pass started from gives what it gave in the baseline, so its rows are the
//! baseline's; where the baseline's table lacks one, the pass starts at the front instead.

use crate::measure::{MeasureRequest, Request};
use crate::sets::WindowSet;
use crate::structure::{matches_glob, select_tensors};
use crate::table::{Table, Value};
use crate::windows::{Sample, Windows};
use crate::{Error, Result};
use packhost_model::network::{Findings, Moments, Observed, Padding, Tap, TapRequest};
use packhost_model::{Role, Weights};
use packhost_stats::quantile;
use std::collections::{BTreeMap, BTreeSet};

/// Names of quantities, `SET` standing for a set of windows.
pub(crate) const OF_MODULES: [&str; 7] = [
    "activation.edge_risk.SET",
    "activation.tokens.SET",
    "activation.mean_square.SET",
    "activation.outliers.SET.T",
    "activation.moments",
    "activation.singular",
    "activation.shift",
];

/// The windows that spectra are taken of.
const SPECTRUM: WindowSet = WindowSet {
    policy: Sample::EvenlySpaced,
    count: 8,
};

/// A quantity of a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Quantity {
    EdgeRisk(WindowSet),
    MeanSquare(WindowSet),
    /// With the threshold in thousandths of the noise edge.
    Outliers(WindowSet, u32),
    Moments,
    Singular,
    Shift,
}

/// Mean and variance of each feature of each module's output over all windows: what a subject's are compared with.
pub type FeatureMoments = BTreeMap<String, Moments>;

/// What is asked for.
#[derive(Default)]
pub(crate) struct Activations<'a> {
    /// Per module the quantities, with their names.
    of_modules: BTreeMap<&'a str, BTreeMap<Quantity, &'a str>>,
    /// Sets whose tokens are counted, by the quantity's name.
    tokens: BTreeMap<&'a str, WindowSet>,
}

/// Whether a quantity is about modules' outputs.
pub(crate) fn is_activation(quantity: &str) -> bool {
    quantity.starts_with("activation.")
}

impl<'a> Activations<'a> {
    /// Takes a wish of an `activation.` quantity.
    ///
    /// # Errors
    /// There is no such quantity, set or scope.
    pub(crate) fn add(&mut self, request: &MeasureRequest<'a>, wish: &'a Request) -> Result<()> {
        let name = wish.quantity.as_str();
        let refuse = |reason: String| wish.refuse(reason);
        let kind = name.trim_start_matches("activation.");
        let set = |set: &str| set.parse::<WindowSet>().map_err(refuse);
        let quantity = match kind.split_once('.') {
            None if kind == "moments" => Quantity::Moments,
            None if kind == "singular" => Quantity::Singular,
            None if kind == "shift" => Quantity::Shift,
            Some(("edge_risk", name)) => Quantity::EdgeRisk(set(name)?),
            Some(("mean_square", name)) => Quantity::MeanSquare(set(name)?),
            Some(("outliers", name)) => {
                let (of, threshold) = threshold(name).map_err(refuse)?;
                Quantity::Outliers(set(of)?, threshold)
            }
            Some(("tokens", of)) => {
                if wish.scope != "model" {
                    return Err(refuse("whose scope must be model".into()));
                }
                self.tokens.insert(name, set(of)?);
                return Ok(());
            }
            _ => {
                return Err(refuse(format!(
                    "which this host does not measure; of modules' outputs it measures {}",
                    OF_MODULES.join(", ")
                )));
            }
        };
        for module in modules(request.weights, &wish.scope).map_err(refuse)? {
            let quantities = self.of_modules.entry(module).or_default();
            quantities.insert(quantity, name);
        }
        Ok(())
    }

    /// Whether anything needs the pass.
    pub(crate) fn is_empty(&self) -> bool {
        self.of_modules.is_empty() && self.tokens.is_empty()
    }

    /// What the pass must look at, of the modules that it has; nothing where nothing is asked for.
    pub(crate) fn taps(
        &self,
        windows: &Windows,
        network: &[&str],
        vocabulary: usize,
    ) -> Option<TapRequest> {
        let count = windows.sequences().len();
        let mut request = TapRequest {
            padding: Some(Padding {
                // A token that was added for padding alone may have no embedding.
                token: if (windows.pad as usize) < vocabulary {
                    windows.pad
                } else {
                    0
                },
                rows: windows.plan.seq_len,
            }),
            ..TapRequest::default()
        };
        for &module in network {
            let Some(quantities) = self.of_modules.get(module) else {
                continue;
            };
            let mut tap = Tap::default();
            for quantity in quantities.keys() {
                match quantity {
                    Quantity::EdgeRisk(set) => tap.risk.extend(set.windows(count)),
                    Quantity::MeanSquare(set) => tap.mean_square.extend(set.windows(count)),
                    Quantity::Outliers(set, threshold) => {
                        let windows = tap.outliers.entry(*threshold).or_default();
                        windows.extend(set.windows(count));
                    }
                    Quantity::Moments | Quantity::Shift => tap.moments = true,
                    Quantity::Singular => tap.spectrum = true,
                }
            }
            if tap.spectrum {
                request.spectrum_windows = SPECTRUM.windows(count).into_iter().collect();
            }
            request.modules.insert(module.to_owned(), tap);
        }
        (!request.modules.is_empty()).then_some(request)
    }

    /// Whether the baseline has a row for everything that is asked for, so that a pass may start behind some modules.
    pub(crate) fn known(&self, request: &MeasureRequest<'_>, network: &[&str]) -> bool {
        let Some(baseline) = request.baseline else {
            return false;
        };
        network.iter().all(|module| {
            let quantities = self.of_modules.get(module).into_iter().flatten();
            quantities
                .into_iter()
                .all(|(quantity, name)| match quantity {
                    Quantity::Shift => baseline
                        .moments
                        .is_some_and(|moments| moments.contains_key(*module)),
                    _ => baseline.table.get(module, name).is_some(),
                })
        })
    }

    /// Writes the rows; gives the moments that a subject of this model may be compared with.
    pub(crate) fn write(
        &self,
        request: &MeasureRequest<'_>,
        observed: Option<Observed>,
        network: &[&str],
        table: &mut Table,
    ) -> FeatureMoments {
        let sequences = request.windows.sequences();
        for (name, set) in &self.tokens {
            let windows = set.windows(sequences.len());
            let tokens = windows.iter().map(|&w| sequences[w].len() as f64).collect();
            table.put_vector("model", name, tokens);
        }
        let observed = observed.unwrap_or_default().modules;
        for &module in network {
            for (quantity, name) in self.of_modules.get(module).into_iter().flatten() {
                let value = match observed.get(module) {
                    Some(found) => row(*quantity, found, sequences.len(), request, module),
                    None => unchanged(*quantity, name, request, module),
                };
                if let Some(value) = value {
                    table.put(module, name, value);
                }
            }
        }
        let moments = |(module, found): (String, Findings)| Some((module, found.moments?));
        observed.into_iter().filter_map(moments).collect()
    }
}

/// A set's name and the threshold, in thousandths, of `SET.T`.
fn threshold(name: &str) -> std::result::Result<(&str, u32), String> {
    let parsed = name
        .split_once('.')
        .and_then(|(set, threshold)| Some((set, threshold.parse().ok()?)));
    parsed.ok_or_else(|| {
        format!("but `{name}` is not SET.T, a set of windows and a threshold in thousandths of the noise edge such as even8.1650")
    })
}

/// The value of a row of a module that ran.
fn row(
    quantity: Quantity,
    found: &Findings,
    windows: usize,
    request: &MeasureRequest<'_>,
    module: &str,
) -> Option<Value> {
    let per_window = |set: WindowSet, value: &dyn Fn(usize) -> Option<f64>| {
        let windows = set.windows(windows).into_iter();
        windows
            .map(|window| value(window).unwrap_or(f64::NAN))
            .collect()
    };
    let of = |set: WindowSet, values: &BTreeMap<usize, f64>| {
        per_window(set, &|window| values.get(&window).copied())
    };
    Some(Value::Vector(match quantity {
        Quantity::EdgeRisk(set) => of(set, &found.risk),
        Quantity::MeanSquare(set) => of(set, &found.mean_square),
        Quantity::Outliers(set, threshold) => per_window(set, &|window| {
            found.outliers.get(&(threshold, window)).copied()
        }),
        Quantity::Moments => {
            let moments = found.moments.as_ref()?;
            let squares: Vec<f64> = moments.mean.iter().map(|mean| mean * mean).collect();
            vec![mean(&squares), mean(&moments.variance)]
        }
        Quantity::Singular => {
            let spectrum = found.spectrum?;
            let mut values = spectrum.leading.to_vec();
            values.push(spectrum.effective_rank);
            values
        }
        Quantity::Shift => {
            let base = request.baseline?.moments?.get(module)?;
            shift(base, found.moments.as_ref()?)?.to_vec()
        }
    }))
}

/// The value of a row of a module that gives what it gave in the baseline.
fn unchanged(
    quantity: Quantity,
    name: &str,
    request: &MeasureRequest<'_>,
    module: &str,
) -> Option<Value> {
    let baseline = request.baseline?;
    if quantity == Quantity::Shift {
        let base = baseline.moments?.get(module)?;
        return Some(Value::Vector(shift(base, base)?.to_vec()));
    }
    baseline.table.get(module, name).cloned()
}

/// How far a module's outputs moved: `||mean_s - mean_b||^2 / sum var_b`, the median and the largest `|ln(var_s / var_b)|`
/// over features, and `ln(sum var_s / sum var_b)`. A feature without variance in both has a logarithm of zero; one that lost
/// or gained it has an infinite one. Nothing where the two have other features.
fn shift(base: &Moments, subject: &Moments) -> Option<[f64; 4]> {
    if base.mean.len() != subject.mean.len() {
        return None;
    }
    let pairs = || base.variance.iter().zip(&subject.variance);
    let total = |moments: &Moments| moments.variance.iter().sum::<f64>();
    let ratio = |subject: f64, base: f64| match subject == base {
        true => 0.0,
        false => (subject / base).ln(),
    };
    let moved: f64 = base
        .mean
        .iter()
        .zip(&subject.mean)
        .map(|(base, subject)| (subject - base).powi(2))
        .sum();
    let logs: Vec<f64> = pairs().map(|(b, s)| ratio(*s, *b).abs()).collect();
    // A sort leaves NaN anywhere; one NaN makes both figures NaN.
    let undefined = logs.iter().any(|log| log.is_nan());
    let sorted = quantile::sorted(&logs);
    let (median, largest) = match undefined || sorted.is_empty() {
        true => (f64::NAN, f64::NAN),
        false => (quantile::linear(&sorted, 0.5), sorted[sorted.len() - 1]),
    };
    Some([
        if moved == 0.0 {
            0.0
        } else {
            moved / total(base)
        },
        median,
        largest,
        ratio(total(subject), total(base)),
    ])
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Names of the modules in a scope (a module is a projection or the embedding, named as its weight without `.weight`):
/// `role:ROLE`, `layer:N`, or a name in which `*` stands for anything.
fn modules<'a>(weights: &'a dyn Weights, scope: &str) -> std::result::Result<Vec<&'a str>, String> {
    let by_tensor = scope.starts_with("role:") || scope.starts_with("layer:");
    let tensors: BTreeSet<&str> = match by_tensor {
        true => select_tensors(weights, scope)?.into_iter().collect(),
        false => BTreeSet::new(),
    };
    let observable =
        |role: Role| !matches!(role, Role::LmHead | Role::Norm | Role::Bias | Role::Other);
    let all = weights
        .tensors()
        .iter()
        .filter(|meta| observable(meta.role));
    let named = all.filter_map(|meta| Some((meta, meta.name.strip_suffix(".weight")?)));
    let chosen = named.filter(|(meta, module)| match by_tensor {
        true => tensors.contains(meta.name.as_str()),
        false => matches_glob(scope, module),
    });
    Ok(chosen.map(|(_, module)| module).collect())
}

/// What a scaled pass multiplies: parameters `{"scale":{"MODULE":FACTOR}}`.
///
/// # Errors
/// The parameters are anything else.
pub(crate) fn scale_of(wish: &Request) -> Result<BTreeMap<String, f32>> {
    if !wish.has_params() {
        return Ok(BTreeMap::new());
    }
    parse_scale(&wish.params).map_err(|problem| {
        wish.refuse(format!(
            "with `{}`, but {problem}; its parameters look like {{\"scale\":{{\"model.layers.1.mlp.down_proj\":1.03}}}}",
            wish.params
        ))
    })
}

fn parse_scale(params: &str) -> std::result::Result<BTreeMap<String, f32>, String> {
    let parsed: BTreeMap<String, BTreeMap<String, f64>> =
        serde_json::from_str(params).map_err(|error| format!("that cannot be read: {error}"))?;
    if let Some(key) = parsed.keys().find(|key| *key != "scale") {
        return Err(format!("there is no parameter `{key}`"));
    }
    let factors = parsed.into_values().flatten();
    factors
        .map(|(module, factor)| {
            let small = factor as f32;
            match small.is_finite() {
                true => Ok((module, small)),
                false => Err(format!("{factor} for `{module}` is no finite factor")),
            }
        })
        .collect()
}

/// The error for modules that cannot be scaled.
pub(crate) fn refuse_scale(wish: &Request, error: &packhost_model::Error) -> Error {
    let problem = match error {
        packhost_model::Error::Score { problem } => problem.clone(),
        other => other.to_string(),
    };
    wish.refuse(format!("with `{}`, but {problem}", wish.params))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn moments(mean: &[f64], variance: &[f64]) -> Moments {
        Moments {
            rows: 10,
            mean: mean.into(),
            variance: variance.into(),
        }
    }

    #[test]
    fn shifts_follow_their_definition() {
        let base = moments(&[1.0, 2.0, 3.0], &[1.0, 2.0, 4.0]);
        assert_eq!(shift(&base, &base).unwrap(), [0.0; 4]);
        let subject = moments(&[1.0, 2.0, 4.0], &[1.0, 4.0, 1.0]);
        let [moved, median, largest, total] = shift(&base, &subject).unwrap();
        assert!((moved - 1.0 / 7.0).abs() < 1e-15);
        assert!((median - 2f64.ln()).abs() < 1e-15);
        assert!((largest - 4f64.ln()).abs() < 1e-15);
        assert!((total - (6f64 / 7.0).ln()).abs() < 1e-15);
        // Features without variance: in both, and in one.
        let still = moments(&[0.0; 3], &[0.0, 2.0, 4.0]);
        assert_eq!(shift(&still, &still).unwrap(), [0.0; 4]);
        assert_eq!(shift(&base, &still).unwrap()[2], f64::INFINITY);
        let broken = moments(&[f64::NAN; 3], &[f64::NAN, 2.0, 4.0]);
        let found = shift(&base, &broken).unwrap();
        assert!(found.iter().all(|value| value.is_nan()));
        assert_eq!(shift(&base, &moments(&[1.0], &[1.0])), None);
    }

    #[test]
    fn scales_are_strict() {
        let scale = parse_scale(r#"{"scale":{"a.b":1.5,"c":0}}"#).unwrap();
        assert_eq!(
            scale,
            [("a.b".to_owned(), 1.5), ("c".to_owned(), 0.0)].into()
        );
        for (params, problem) in [
            (r#"{"scales":{"a":1}}"#, "there is no parameter `scales`"),
            (r#"{"scale":{"a":"1"}}"#, "cannot be read"),
            (r#"{"scale":{"a":1e99}}"#, "no finite factor"),
            (r#"{"scale":[1]}"#, "cannot be read"),
            ("nonsense", "cannot be read"),
        ] {
            let error = parse_scale(params).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
    }
}
