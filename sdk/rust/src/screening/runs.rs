//! Calibration runs, told apart and paired.

use crate::{Failure, Result, Table, Value};

/// Calibration runs by kind.
///
/// A table says with the text row (`model`, `calibration.kind`) what it is: `repeat`, the baseline measured again on other
/// windows (also when the row is absent), or `perturbation`, a harmless subject measured against the baseline: its weights
/// with rounding noise at the level of the stored dtype.
#[derive(Debug, Clone)]
pub struct Runs<'a> {
    /// The baseline on several draws of windows.
    pub repeats: Vec<&'a Table>,
    /// Each perturbation, after the repeat on the same windows.
    pub perturbations: Vec<(&'a Table, &'a Table)>,
    /// Digest of the model's structure, the same in all runs; empty when there are none.
    pub structure: String,
}

/// Fewest perturbations that a null can be fitted to and be tried out on, leaving one out.
const FEWEST: usize = 3;

impl<'a> Runs<'a> {
    /// Sorts the runs for `guard`. When `asked` is none, there may be no perturbations at all (then there is nothing to fit
    /// to), but not one or two.
    ///
    /// # Errors
    /// Too few perturbations, a kind that is not known, runs of different models, a perturbation without the repeat on its
    /// windows.
    pub fn sort(guard: &str, runs: &'a [Table], asked: Option<usize>) -> Result<Self> {
        let mut sorted = Self {
            repeats: Vec::new(),
            perturbations: Vec::new(),
            structure: String::new(),
        };
        let mut perturbed = Vec::new();
        for (index, run) in runs.iter().enumerate() {
            let structure = run.text("model", "structure.digest")?;
            if index == 0 {
                structure.clone_into(&mut sorted.structure);
            } else if structure != sorted.structure {
                return Err(Failure::failed(format!(
                    "guard {guard}: calibration runs are of different models (structures {} and {structure}); calibrate each by itself",
                    sorted.structure
                )));
            }
            match run.get("model", "calibration.kind") {
                None => sorted.repeats.push(run),
                Some(Value::Text(kind)) if kind == "repeat" => sorted.repeats.push(run),
                Some(Value::Text(kind)) if kind == "perturbation" => perturbed.push(run),
                Some(other) => {
                    return Err(Failure::failed(format!(
                        "guard {guard}: run {} is of the unknown kind {other:?}; there are repeat and perturbation",
                        index + 1
                    )));
                }
            }
        }
        let least = asked.unwrap_or(if perturbed.is_empty() { 0 } else { FEWEST });
        if perturbed.len() < least {
            return Err(Failure::failed(format!(
                "guard {guard}: {least} perturbation runs are needed to calibrate and {} are there; measure the missing ones",
                perturbed.len()
            )));
        }
        for run in perturbed {
            let repeat = sorted
                .repeats
                .iter()
                .find(|repeat| same_windows(repeat, run));
            let repeat = repeat.ok_or_else(|| {
                Failure::failed(format!(
                    "guard {guard}: a perturbation run has no repeat on the same windows to be compared with"
                ))
            })?;
            sorted.perturbations.push((repeat, run));
        }
        Ok(sorted)
    }
}

/// Whether two tables were measured on the same windows: equal `window.ids` of both arms.
pub fn same_windows(a: &Table, b: &Table) -> bool {
    ["preview", "final"]
        .into_iter()
        .all(|arm| a.get(arm, "window.ids") == b.get(arm, "window.ids"))
}
