//! Two models' weight rows, and what differs between them.

use packhost_sdk::json::{Value as Json, json};
use packhost_sdk::screening::{self, Change as _, log_size, number, same_bits};
use packhost_sdk::{Failure, Result, Table, Value};
use std::collections::BTreeMap;

/// The rows of one table by tensor.
struct Model<'a> {
    rows: BTreeMap<&'a str, BTreeMap<&'a str, &'a Value>>,
    tying: &'a str,
    who: &'static str,
}

impl<'a> Model<'a> {
    fn read(table: &'a Table, who: &'static str) -> Result<Self> {
        let mut rows: BTreeMap<&str, BTreeMap<&str, &Value>> = BTreeMap::new();
        let wanted = table
            .rows()
            .iter()
            .filter(|row| super::QUANTITIES.contains(&row.quantity.as_str()));
        for row in wanted {
            rows.entry(&row.scope)
                .or_default()
                .insert(&row.quantity, &row.value);
        }
        if !rows.values().any(|of| of.contains_key("tensor.shape")) {
            return Err(Failure::failed(format!(
                "measurement table of the {who} has no `tensor.shape` rows; measure what the guard's plan asks for"
            )));
        }
        Ok(Self {
            rows,
            tying: table.text("model", "tying")?,
            who,
        })
    }

    fn get(&self, tensor: &str, quantity: &str) -> Option<&'a Value> {
        self.rows.get(tensor)?.get(quantity).copied()
    }

    fn wrong(&self, tensor: &str, quantity: &str, wanted: &str) -> Failure {
        Failure::failed(format!(
            "measurement table of the {}: `{quantity}` at `{tensor}` must be {wanted}",
            self.who
        ))
    }

    fn number(&self, tensor: &str, quantity: &str) -> Result<f64> {
        match self.get(tensor, quantity) {
            Some(Value::Number(number)) => Ok(*number),
            _ => Err(self.wrong(tensor, quantity, "a number")),
        }
    }

    fn vector(&self, tensor: &str, quantity: &str, least: usize) -> Result<&'a [f64]> {
        match self.get(tensor, quantity) {
            Some(Value::Vector(vector)) if vector.len() >= least => Ok(vector),
            _ => {
                let wanted = format!("a vector of at least {least} numbers");
                Err(self.wrong(tensor, quantity, &wanted))
            }
        }
    }

    /// Axes by tensor.
    fn shapes(&self) -> Result<BTreeMap<&'a str, &'a [f64]>> {
        let tensors = self
            .rows
            .iter()
            .filter(|(_, of)| of.contains_key("tensor.shape"));
        tensors
            .map(|(name, _)| Ok((*name, self.vector(name, "tensor.shape", 0)?)))
            .collect()
    }

    fn dtype(&self, tensor: &str) -> Result<&'a str> {
        match self.get(tensor, "tensor.dtype") {
            Some(Value::Text(dtype)) => Ok(dtype),
            _ => Err(self.wrong(tensor, "tensor.dtype", "a text")),
        }
    }
}

/// Baseline and subject.
pub struct Models<'a> {
    before: Model<'a>,
    now: Model<'a>,
}

/// What changed about tensors as wholes.
pub struct Structure<'a> {
    pub missing: Vec<&'a str>,
    pub added: Vec<&'a str>,
    pub reshaped: Vec<(&'a str, &'a [f64], &'a [f64])>,
    pub dtypes: Vec<(&'a str, &'a str, &'a str)>,
    pub tying: Option<(&'a str, &'a str)>,
}

impl Structure<'_> {
    pub fn details(&self) -> Json {
        let shapes = self.reshaped.iter();
        let dtypes = self.dtypes.iter();
        json!({
            "missing": self.missing,
            "added": self.added,
            "reshaped": shapes.map(|(name, _, _)| name).collect::<Vec<_>>(),
            "dtype_changed": dtypes.map(|(name, _, _)| name).collect::<Vec<_>>(),
            "tying_changed": self.tying.is_some(),
        })
    }
}

impl<'a> Models<'a> {
    pub fn read(baseline: &'a Table, subject: &'a Table) -> Result<Self> {
        Ok(Self {
            before: Model::read(baseline, "baseline")?,
            now: Model::read(subject, "subject")?,
        })
    }

    /// Tensors of the baseline.
    pub fn tensors(&self) -> usize {
        let of = self.before.rows.values();
        of.filter(|of| of.contains_key("tensor.shape")).count()
    }

    pub fn structure(&self) -> Result<Structure<'a>> {
        let (before, now) = (self.before.shapes()?, self.now.shapes()?);
        let mut structure = Structure {
            missing: Vec::new(),
            added: now
                .keys()
                .copied()
                .filter(|name| !before.contains_key(name))
                .collect(),
            reshaped: Vec::new(),
            dtypes: Vec::new(),
            tying: (self.before.tying != self.now.tying)
                .then_some((self.before.tying, self.now.tying)),
        };
        for (name, was) in before {
            let Some(is) = now.get(name).copied() else {
                structure.missing.push(name);
                continue;
            };
            if was != is {
                structure.reshaped.push((name, was, is));
            }
            let dtypes = (self.before.dtype(name)?, self.now.dtype(name)?);
            if dtypes.0 != dtypes.1 {
                structure.dtypes.push((name, dtypes.0, dtypes.1));
            }
        }
        Ok(structure)
    }

    /// What moved, by tensor. Only tensors that the host found changed have a `weight.shift`; a tensor that has none
    /// but differs in another row is a table that was not measured whole.
    pub fn changes(&self) -> Result<BTreeMap<&'a str, Change>> {
        let mut changes = BTreeMap::new();
        let (before, now) = (self.before.shapes()?, self.now.shapes()?);
        for (name, shape) in now {
            if before.get(name) != Some(&shape) {
                continue;
            }
            if self.now.get(name, "weight.shift").is_some() {
                changes.insert(name, self.change(name, shape)?);
            } else if let Some(quantity) = self.differs(name) {
                return Err(Failure::failed(format!(
                    "measurement table of the subject: `{quantity}` at `{name}` differs from the baseline's, but there is no \
                     `weight.shift` row; measure the changed tensors again"
                )));
            }
        }
        Ok(changes)
    }

    /// A quantity of weights in which an unchanged tensor's rows differ.
    fn differs(&self, name: &str) -> Option<&'static str> {
        let weights = super::QUANTITIES
            .iter()
            .filter(|q| q.starts_with("weight."));
        weights.copied().find(|quantity| {
            let rows = (
                self.before.get(name, quantity),
                self.now.get(name, quantity),
            );
            matches!(rows, (Some(before), Some(now)) if !same_bits(before, now))
        })
    }

    fn change(&self, name: &str, shape: &[f64]) -> Result<Change> {
        let shift = self.now.vector(name, "weight.shift", 2)?;
        let (moved, norm) = (shift[0], shift[1]);
        let relative = if moved == 0.0 {
            0.0
        } else {
            (moved / norm).sqrt()
        };
        let elements: f64 = shape.iter().product();
        let zeros = |model: &Model<'_>| model.number(name, "weight.zeros");
        let sparsity = (zeros(&self.now)? - zeros(&self.before)?) / elements;
        let mut change = Change {
            relative,
            rounding: rounding(self.before.dtype(name)?),
            sparsity: Some(sparsity),
            ..Change::default()
        };
        if let Some(Value::Number(squares)) = self.now.get(name, "weight.frobenius_sq") {
            change.rescaling = rescaling(moved / norm, squares / norm);
        }
        if let [rows, columns] = shape {
            self.matrix(name, (*rows, *columns), &mut change)?;
        }
        // The reading of a NaN must not depend on which statistic it stands in.
        change.not_finite |= !relative.is_finite()
            || !sparsity.is_finite()
            || change.turn.is_some_and(f64::is_nan)
            || change
                .statistics()
                .iter()
                .flatten()
                .any(|value| value.is_nan());
        Ok(change)
    }

    fn matrix(&self, name: &str, (rows, columns): (f64, f64), change: &mut Change) -> Result<()> {
        let top = |model: &Model<'_>| -> Result<(f64, f64)> {
            let values = model.vector(name, "weight.singular", 2)?;
            Ok((values[0], values[values.len() - 1]))
        };
        let (before, now) = (top(&self.before)?, top(&self.now)?);
        let squares = (
            self.before.number(name, "weight.frobenius_sq")?,
            self.now.number(name, "weight.frobenius_sq")?,
        );
        let finite = [before.0, before.1, now.0, now.1, squares.0, squares.1];
        change.not_finite = finite.iter().any(|value| !value.is_finite());
        if before.0 > 0.0 && now.0 > 0.0 && !change.not_finite {
            let ratio = log(now.0 / before.0);
            // Each true value lies within its bound of the estimate, so the ratio's logarithm within this of ours.
            let slack = [before, now]
                .iter()
                .map(|(value, bound)| -log((1.0 - bound / value).max(0.0)))
                .sum::<f64>();
            change.log_sigma = Some(beyond(ratio, slack));
            let edge = 1.0 / rows.sqrt() + 1.0 / columns.sqrt();
            change.directionless = change.relative * squares.0.sqrt() / before.0 * edge;
            if squares.0 > 0.0 && squares.1 > 0.0 {
                let rank = log(squares.1 / squares.0) - 2.0 * ratio;
                change.log_stable_rank = Some(beyond(rank, 2.0 * slack));
            }
        } else if before.0 > 0.0 && now.0 == 0.0 {
            change.dead.push("whole tensor");
        }
        change.turn = Some(1.0 - self.now.number(name, "weight.overlap")?);
        for (quantity, what) in [
            ("weight.row_norms", "row"),
            ("weight.column_norms", "column"),
        ] {
            let least = |model: &Model<'_>| Ok(model.vector(name, quantity, 3)?[0]);
            // Norms of zero are measured as 1e-12.
            if least(&self.now)? <= 1e-12 && least(&self.before)? > 1e-12 {
                change.dead.push(what);
            }
        }
        Ok(())
    }
}

/// How one tensor moved.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Change {
    /// Norm of the difference over the baseline's norm.
    pub relative: f64,
    /// What rounding could do at most.
    pub rounding: f64,
    /// Logarithm of the factor by which the tensor as a whole was multiplied.
    pub rescaling: Option<f64>,
    pub log_sigma: Option<f64>,
    /// How far a change of this size without a direction could move `log_sigma`.
    pub directionless: f64,
    pub log_stable_rank: Option<f64>,
    pub turn: Option<f64>,
    pub sparsity: Option<f64>,
    /// `row`, `column`: at least one lost all its values.
    pub dead: Vec<&'static str>,
    pub not_finite: bool,
}

impl Change {
    /// How far the largest singular value moved beyond what a change without a direction could do.
    pub fn spike(&self) -> Option<f64> {
        Some(beyond(self.log_sigma?.abs(), self.directionless))
    }
}

impl screening::Change for Change {
    const PLACE: &'static str = "tensor";

    fn size(&self) -> f64 {
        self.relative
    }

    /// The values of [`super::STATISTICS`].
    fn statistics(&self) -> Vec<Option<f64>> {
        let size = |value: f64| log_size(value, 1e-12);
        vec![
            Some(size(self.relative)),
            self.log_sigma,
            self.log_stable_rank,
        ]
    }

    /// Whether no rounding to the baseline's dtype, of whatever kind, can have done this.
    fn beyond_rounding(&self) -> bool {
        self.not_finite || self.relative > self.rounding || !self.dead.is_empty()
    }

    fn how_far(&self) -> String {
        format!("this one most: {:.6} of its norm", self.relative)
    }

    fn details(&self) -> Json {
        let optional = |value: Option<f64>| value.map_or(Json::Null, number);
        json!({
            "relative_change": number(self.relative),
            "log_rescaling": optional(self.rescaling),
            "log_top_singular_value": optional(self.log_sigma),
            "log_top_singular_value_without_direction": number(self.directionless),
            "log_stable_rank": optional(self.log_stable_rank),
            "subspace_turn": optional(self.turn),
            "sparsity_rise": optional(self.sparsity),
            "dead": self.dead,
        })
    }
}

/// The part of `value` that is surely there when it is known to `slack`.
fn beyond(value: f64, slack: f64) -> f64 {
    let outside = (value.abs() - slack).max(0.0);
    if value < 0.0 { -outside } else { outside }
}

/// One unit in the last place, relative to the smallest number that has it: if no element moves by more than that,
/// the tensor's relative change is at most this.
fn rounding(dtype: &str) -> f64 {
    match dtype {
        "F64" => 2.0_f64.powi(-52),
        "F32" => 2.0_f64.powi(-23),
        "F16" => 2.0_f64.powi(-10),
        "BF16" => 2.0_f64.powi(-7),
        "F8_E4M3" => 2.0_f64.powi(-3),
        "F8_E5M2" => 2.0_f64.powi(-2),
        _ => 0.0,
    }
}

/// Logarithm of the factor that a change holds for the tensor as a whole, from the squared norms of the change and of the
/// changed tensor over that of the original; 0 where noise or leaving values out explains it. See the module's text.
/// None where the original is 0 or a norm is no number.
fn rescaling(moved: f64, now: f64) -> Option<f64> {
    if !(moved.is_finite() && now.is_finite()) {
        return None;
    }
    let along = (now - 1.0 - moved) / 2.0;
    if along > 0.0 {
        Some(log(1.0 + along))
    } else if along < -moved && moved < 1.0 {
        Some(log((1.0 + along).max(0.0) / (1.0 - moved)))
    } else {
        Some(0.0)
    }
}

fn log(value: f64) -> f64 {
    packhost_sdk::stats::summary::ln(value)
}
