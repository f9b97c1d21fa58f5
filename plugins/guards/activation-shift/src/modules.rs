//! Two models' activation rows, module by module.

use packhost_sdk::json::{Value as Json, json};
use packhost_sdk::screening::{number, same_bits};
use packhost_sdk::stats::summary::ln;
use packhost_sdk::{Failure, Result, Table, Value};
use std::collections::BTreeMap;

pub const QUANTITIES: [&str; 3] = [
    "activation.moments",
    "activation.singular",
    "activation.shift",
];

const MOMENTS: usize = 0;
const SINGULAR: usize = 1;
const SHIFT: usize = 2;

/// One module's rows, in the order of [`QUANTITIES`].
type Rows<'a> = BTreeMap<&'a str, [Option<&'a Value>; 3]>;

/// What differs between two tables.
pub struct Compared<'a> {
    /// Modules of the baseline.
    pub modules: usize,
    /// Those that the subject has no rows of.
    pub missing: Vec<&'a str>,
    /// Those that differ, but of which no shift was measured: they have another number of features, or the table is not
    /// whole.
    pub incomparable: Vec<&'a str>,
    /// Those whose output is not the baseline's to the last bit.
    pub changes: BTreeMap<&'a str, Change>,
}

fn rows(table: &Table) -> Rows<'_> {
    let mut modules = Rows::new();
    for row in table.rows() {
        if let Some(index) = QUANTITIES
            .iter()
            .position(|quantity| *quantity == row.quantity)
        {
            modules.entry(row.scope.as_str()).or_default()[index] = Some(&row.value);
        }
    }
    modules
}

/// Compares every module of the baseline.
pub fn compare<'a>(baseline: &'a Table, subject: &'a Table) -> Result<Compared<'a>> {
    let (before, now) = (rows(baseline), rows(subject));
    if before.is_empty() {
        return Err(Failure::failed(
            "measurement table of the baseline has no activation rows; measure what the guard's plan asks for",
        ));
    }
    let mut compared = Compared {
        modules: before.len(),
        missing: Vec::new(),
        incomparable: Vec::new(),
        changes: BTreeMap::new(),
    };
    for (name, was) in &before {
        let Some(is) = now.get(name).filter(|of| of[MOMENTS].is_some()) else {
            compared.missing.push(name);
            continue;
        };
        let same = [MOMENTS, SINGULAR]
            .iter()
            .all(|&index| match (was[index], is[index]) {
                (Some(a), Some(b)) => same_bits(a, b),
                (None, None) => true,
                _ => false,
            });
        if is[SHIFT].is_some() {
            let change = Change::read(name, was, is)?;
            // A module before the first changed one may be stated as not shifted at all.
            if !(same && change.nothing()) {
                compared.changes.insert(*name, change);
            }
        } else if !same {
            compared.incomparable.push(name);
        }
    }
    Ok(compared)
}

/// How one module's output moved.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Change {
    /// `½ ln(v_base/v_subj)`; none where the variance of both is 0.
    pub log_alpha: Option<f64>,
    /// Leading singular value, subject over baseline.
    pub log_singular: Option<f64>,
    /// Effective rank, subject over baseline.
    pub log_effective_rank: Option<f64>,
    pub mean_shift: f64,
    /// Median and maximum over features of `|ln v_s/v_b|`.
    pub feature_spread: f64,
    pub feature_extreme: f64,
    /// Features, or all of the output, lost their variance or gained one.
    pub dead: bool,
    pub not_finite: bool,
}

impl Change {
    fn read(name: &str, was: &[Option<&Value>; 3], is: &[Option<&Value>; 3]) -> Result<Self> {
        let vector = |rows: &[Option<&Value>; 3], index: usize, least: usize, who: &str| match rows
            [index]
        {
            Some(Value::Vector(values)) if values.len() >= least => Ok(values.clone()),
            _ => Err(Failure::failed(format!(
                "measurement table of the {who}: `{}` at `{name}` must be a vector of at least {least} numbers",
                QUANTITIES[index]
            ))),
        };
        let moments = (
            vector(was, MOMENTS, 2, "baseline")?,
            vector(is, MOMENTS, 2, "subject")?,
        );
        let shift = vector(is, SHIFT, 4, "subject")?;
        let mut change = Self {
            log_alpha: log_ratio(moments.0[1], moments.1[1]).map(|log| log / 2.0),
            mean_shift: shift[0],
            feature_spread: shift[1],
            feature_extreme: shift[2],
            ..Self::default()
        };
        let mut finite = moments
            .0
            .iter()
            .chain(&moments.1)
            .all(|value| value.is_finite());
        // Singular values are measured for outputs that are matrices; a baseline without them asks for none.
        if was[SINGULAR].is_some() {
            let before = vector(was, SINGULAR, 2, "baseline")?;
            let now = vector(is, SINGULAR, 2, "subject")?;
            finite &= before.iter().chain(&now).all(|value| value.is_finite());
            change.log_singular = log_ratio(now[0], before[0]);
            change.log_effective_rank = log_ratio(now[now.len() - 1], before[before.len() - 1]);
        }
        let infinite = |value: Option<f64>| value.is_some_and(f64::is_infinite);
        change.dead =
            shift[1].is_infinite() || shift[2].is_infinite() || infinite(change.log_alpha);
        change.not_finite = !finite || shift.iter().any(|value| value.is_nan());
        Ok(change)
    }

    /// The values of [`super::STATISTICS`].
    pub fn statistics(&self) -> [Option<f64>; 5] {
        // A size of nothing has no logarithm; far below any resolution stands for it.
        let size = |value: f64| {
            Some(if value.is_nan() {
                value
            } else {
                ln(value.max(1e-15))
            })
        };
        [
            self.log_alpha,
            self.log_singular,
            self.log_effective_rank,
            size(self.mean_shift),
            size(self.feature_spread),
        ]
    }

    /// Whether a change without a calibration counts as one.
    pub fn beyond_deadband(&self) -> bool {
        let beyond =
            |value: Option<f64>, deadband: f64| value.is_some_and(|value| value.abs() > deadband);
        self.not_finite
            || self.dead
            || beyond(self.log_alpha, 0.02)
            || beyond(self.log_singular, 0.02)
            || beyond(self.log_effective_rank, 0.05)
            || self.mean_shift > 0.01
            || self.feature_spread > 0.02
    }

    /// Whether nothing moved.
    fn nothing(&self) -> bool {
        self.mean_shift == 0.0 && self.feature_spread == 0.0 && self.feature_extreme == 0.0
    }

    pub fn details(&self) -> Json {
        let optional = |value: Option<f64>| value.map_or(Json::Null, number);
        json!({
            "alpha": optional(self.log_alpha.map(packhost_sdk::stats::summary::exp)),
            "log_alpha": optional(self.log_alpha),
            "log_singular": optional(self.log_singular),
            "log_effective_rank": optional(self.log_effective_rank),
            "mean_shift": number(self.mean_shift),
            "feature_spread": number(self.feature_spread),
            "feature_extreme": number(self.feature_extreme),
            "dead": self.dead,
            "not_finite": self.not_finite,
        })
    }
}

/// `ln(a/b)` of two values that are not negative; none when both are 0, infinite when one is. NaN for NaN.
fn log_ratio(a: f64, b: f64) -> Option<f64> {
    if a == 0.0 && b == 0.0 {
        None
    } else {
        Some(ln(a / b))
    }
}
