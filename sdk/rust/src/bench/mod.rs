//! A native test bench: runs plugins on small tensors in memory, without a host.
//!
//! `cargo test` in a plugin's folder builds the plugin for this machine. Every call that would go to the host goes to a plain
//! scalar implementation here, with the same rounding to each dtype, so that results may be compared bit for bit with
//! what the host gives (sums, low-rank approximations and noise excepted, as the contract has it).
//!
//! ```
//! use packhost_sdk::{DType, bench};
//!
//! let tensor = bench::tensor("w", DType::BF16, &[1, 4], &[1.0, 2.0, 3.0, 4.0]);
//! let doubled = tensor.map(|k| k.input(0) * 2.0).unwrap();
//! assert_eq!(bench::values(&doubled), [2.0, 4.0, 6.0, 8.0]);
//! ```

mod checkpoint;
pub(crate) mod host;
mod interpret;
mod svd;

use std::collections::BTreeMap;

use serde_json::Value;

pub use checkpoint::Checkpoint;

use crate::plugin::{Edit, Guard, Injection, Request, Step, TargetFacts};
use crate::{DType, Draft, Failure, ModelInfo, Result, Table, Tensor, params, round_to};

/// A tensor of `values`, rounded to `dtype` half to even. Name, shape and values are up to the test.
///
/// # Panics
/// When `values` are not as many as `shape` says.
pub fn tensor(name: &str, dtype: DType, shape: &[u64], values: &[f32]) -> Tensor {
    assert_eq!(
        shape.iter().product::<u64>(),
        values.len() as u64,
        "tensor {name}: shape and values disagree"
    );
    let values = values
        .iter()
        .map(|&value| round_to(dtype, value, false))
        .collect();
    Tensor(host::Tensor::new(
        checkpoint::info(name, dtype, shape),
        values,
    ))
}

/// All elements of a tensor, row-major.
pub fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.0.values().as_ref().clone()
}

/// How far two elements may be apart and still count as equal.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// Units in the last place of the tensors' dtype.
    pub ulps: u32,
    /// Or this distance. A small sum of larger numbers has their errors.
    pub distance: f32,
}

/// Not at all.
pub const EXACT: Tolerance = Tolerance {
    ulps: 0,
    distance: 0.0,
};

/// The first element in which two tensors differ by more than the tolerance, as a sentence; `None` when there is none. Any
/// NaN equals any NaN, and the sign of zero counts.
pub fn difference(actual: &Tensor, expected: &Tensor, tolerance: Tolerance) -> Option<String> {
    let (left, right) = (actual.info(), expected.info());
    if (&left.shape, left.dtype) != (&right.shape, right.dtype) {
        return Some(format!(
            "{:?} {:?} instead of {:?} {:?}",
            left.dtype, left.shape, right.dtype, right.shape
        ));
    }
    let unit = match left.dtype {
        DType::BF16 => 1 << 16,
        DType::F16 => 1 << 13,
        _ => 1,
    };
    // Bit patterns as numbers in the order of the values, with -0 just below +0.
    let place = |value: f32| {
        let bits = i64::from(value.to_bits() & 0x7fff_ffff);
        if value.is_sign_negative() {
            -1 - bits
        } else {
            bits
        }
    };
    let near = |a: f32, b: f32| {
        let apart = (place(a) - place(b)).unsigned_abs();
        apart <= u64::from(tolerance.ulps) * unit || (a != b && (a - b).abs() <= tolerance.distance)
    };
    let (left, right) = (values(actual), values(expected));
    let wrong = left.iter().zip(&right).position(|(&a, &b)| {
        if a.is_nan() || b.is_nan() {
            a.is_nan() != b.is_nan()
        } else {
            !near(a, b)
        }
    });
    wrong.map(|index| {
        format!(
            "element {index} is {:e} instead of {:e}",
            left[index], right[index]
        )
    })
}

/// What an edit did to a checkpoint.
#[derive(Debug)]
pub struct EditRun {
    /// Changed tensors by name.
    pub tensors: BTreeMap<String, Tensor>,
    /// Facts in plan order.
    pub facts: Vec<TargetFacts>,
    /// The edit's own keys of the metadata.
    pub summary: Value,
}

/// Plans an edit: `(tensor, its parameters as JSON)`.
///
/// # Errors
/// What the edit refuses.
pub fn plan<T: Edit>(params: &str, model: &ModelInfo) -> Result<Vec<(String, String)>> {
    let targets = T::plan(&params::parse(params)?, model)?;
    targets
        .into_iter()
        .map(|target| Ok((target.tensor, params::write(&target.task)?)))
        .collect()
}

/// Applies an edit to one tensor with the task that is given as JSON.
///
/// # Errors
/// What the edit refuses, and a result of another shape or dtype.
pub fn apply<T: Edit>(task: &str, tensor: &Tensor) -> Result<crate::Edited> {
    let lent = Tensor(tensor.0.lend());
    let edited = T::apply(&params::parse(task)?, &lent)?;
    let (before, after) = (tensor.info(), edited.tensor.info());
    if (&before.shape, before.dtype) != (&after.shape, after.dtype) {
        return Err(Failure::failed(format!(
            "{}: the edit made {:?} {:?} of {:?} {:?}; shape and dtype must stay",
            before.name, after.dtype, after.shape, before.dtype, before.shape
        )));
    }
    Ok(edited)
}

/// Plans and applies an edit to a whole checkpoint and summarises it.
///
/// # Errors
/// What the edit refuses.
pub fn edit<T: Edit>(params: &str, checkpoint: &Checkpoint) -> Result<EditRun> {
    let mut run = EditRun {
        tensors: BTreeMap::new(),
        facts: Vec::new(),
        summary: Value::Null,
    };
    for (name, task) in plan::<T>(params, &checkpoint.model())? {
        let edited = apply::<T>(&task, checkpoint.tensor(&name)?)?;
        run.facts.push(TargetFacts {
            tensor: name.clone(),
            facts: edited.facts,
        });
        run.tensors.insert(name, edited.tensor);
    }
    run.summary = T::summarize(&params::parse(params)?, &run.facts)?;
    Ok(run)
}

/// What an injection did to a checkpoint.
#[derive(Debug)]
pub struct InjectionRun {
    /// The record that the injection returned.
    pub record: Value,
    /// Tensors that were put, and `None` for removed ones, by name.
    pub changed: BTreeMap<String, Option<Tensor>>,
    /// The configuration afterwards.
    pub config: Value,
}

/// Injects damage into a copy of `checkpoint`.
///
/// # Errors
/// What the injection refuses.
pub fn inject<T: Injection>(params: &str, checkpoint: &Checkpoint) -> Result<InjectionRun> {
    let draft = Draft(host::Draft::new(checkpoint));
    let record = T::inject(&params::parse(params)?, &draft)?;
    let (changed, config) = draft.0.into_changes();
    Ok(InjectionRun {
        record,
        changed,
        config,
    })
}

/// What a guard wants measured.
///
/// # Errors
/// What the guard refuses.
pub fn requests<T: Guard>(policy: &str, model: &ModelInfo) -> Result<Vec<Request>> {
    T::plan(&params::parse(policy)?, model)
}

/// What a guard makes of two tables.
///
/// # Errors
/// What the guard refuses.
pub fn judge<T: Guard>(policy: &str, baseline: &Table, subject: &Table) -> Result<Step> {
    T::judge(&params::parse(policy)?, baseline, subject)
}

/// The parameter schema that a component with these parameters gives in its descriptor.
pub fn schema<P: schemars::JsonSchema>() -> Value {
    schemars::schema_for!(P).to_value()
}
