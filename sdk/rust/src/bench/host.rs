//! Stand-ins for the host's resources.

use std::cell::{Ref, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use serde_json::Value;

use super::{checkpoint, interpret, svd};
use crate::ops::{MAX_OPS, Op};
use crate::{DType, Failure, ModelInfo, Result, TensorInfo, round_to};

/// A kernel program.
#[derive(Debug)]
pub struct Program {
    ops: Vec<Op>,
}

impl Program {
    pub fn compile(ops: &[Op]) -> Result<Self> {
        if ops.is_empty() || ops.len() > MAX_OPS {
            return Err(Failure::failed(format!(
                "kernel program: {} operations, allowed are 1 to {MAX_OPS}",
                ops.len()
            )));
        }
        interpret::check(ops)?;
        Ok(Self { ops: ops.to_vec() })
    }
}

/// A tensor whose elements are numbers of its dtype, held as f32.
#[derive(Debug)]
pub struct Tensor {
    info: TensorInfo,
    values: RefCell<Rc<Vec<f32>>>,
    lent: bool,
}

impl Tensor {
    pub fn new(info: TensorInfo, values: Vec<f32>) -> Self {
        Self {
            info,
            values: RefCell::new(Rc::new(values)),
            lent: false,
        }
    }

    /// The same tensor, refusing to be written.
    pub fn lend(&self) -> Tensor {
        Tensor {
            info: self.info.clone(),
            values: RefCell::new(self.values().clone()),
            lent: true,
        }
    }

    pub fn values(&self) -> Ref<'_, Rc<Vec<f32>>> {
        self.values.borrow()
    }

    /// A nameless result, rounded to its dtype.
    fn result(&self, dtype: DType, shape: &[u64], values: impl IntoIterator<Item = f32>) -> Tensor {
        let values = values
            .into_iter()
            .map(|value| round_to(dtype, value, false))
            .collect();
        Tensor::new(checkpoint::info("", dtype, shape), values)
    }

    pub fn info(&self) -> TensorInfo {
        self.info.clone()
    }

    pub fn compute(
        &self,
        program: &Program,
        others: &[&Tensor],
        scalars: &[f32],
    ) -> Result<(Tensor, Vec<f64>)> {
        let (values, measures) = self.run(program, others, scalars)?;
        let values = values.ok_or_else(|| {
            Failure::failed(
                "compute: the program leaves no value to store; it can only be measured",
            )
        })?;
        let tensor = self.result(self.info.dtype, &self.info.shape, values);
        Ok((tensor, measures))
    }

    pub fn measure(
        &self,
        program: &Program,
        others: &[&Tensor],
        scalars: &[f32],
    ) -> Result<Vec<f64>> {
        Ok(self.run(program, others, scalars)?.1)
    }

    /// The value that the program leaves, if it does, and its measures.
    fn run(
        &self,
        program: &Program,
        others: &[&Tensor],
        scalars: &[f32],
    ) -> Result<(Option<Vec<f32>>, Vec<f64>)> {
        let mut inputs = vec![self.values().clone()];
        for other in others {
            if other.info.shape != self.info.shape {
                return Err(Failure::failed(format!(
                    "compute: shapes do not fit, {:?} and {:?}",
                    self.info.shape, other.info.shape
                )));
            }
            inputs.push(other.values().clone());
        }
        interpret::run(&program.ops, &self.info.shape, &inputs, scalars)
    }

    pub fn kth_magnitude(&self, k: u64) -> Result<f32> {
        let mut magnitudes: Vec<f32> = self.values().iter().map(|value| value.abs()).collect();
        magnitudes.sort_by(|a, b| a.is_nan().cmp(&b.is_nan()).then(a.total_cmp(b)));
        let index = usize::try_from(k).ok().and_then(|k| k.checked_sub(1));
        index
            .and_then(|index| magnitudes.get(index).copied())
            .ok_or_else(|| {
                Failure::failed(format!(
                    "kth-magnitude: k is {k}, allowed are 1 to {}",
                    magnitudes.len()
                ))
            })
    }

    pub fn truncate_rank(&self, rank: u32, _seed: u64) -> Result<Tensor> {
        let (rows, columns) = self.matrix("truncate-rank")?;
        let values = svd::truncate(&self.values(), rows, columns, rank as usize);
        Ok(self.result(self.info.dtype, &self.info.shape, values))
    }

    pub fn matmul(&self, other: &Tensor) -> Result<Tensor> {
        let ((m, k), (k2, n)) = (self.matrix("matmul")?, other.matrix("matmul")?);
        if k != k2 {
            return Err(Failure::failed(format!(
                "matmul: shapes do not fit, {:?} and {:?}",
                self.info.shape, other.info.shape
            )));
        }
        let (a, b) = (self.values(), other.values());
        let element = |index: usize| {
            (0..k).fold(0.0_f32, |sum, at| {
                sum + a[index / n * k + at] * b[at * n + index % n]
            })
        };
        Ok(self.result(
            self.info.dtype,
            &[m as u64, n as u64],
            (0..m * n).map(element),
        ))
    }

    pub fn add_normal(&self, seed: u64, scale: f32) -> Result<Tensor> {
        self.noisy(scale, |index| {
            // Box and Muller, from two uniforms that are functions of (seed, index).
            let radius = (-2.0 * (1.0 - uniform(seed, 2 * index)).ln()).sqrt();
            radius * (std::f64::consts::TAU * uniform(seed, 2 * index + 1)).cos()
        })
    }

    pub fn add_uniform(&self, seed: u64, scale: f32) -> Result<Tensor> {
        self.noisy(scale, |index| 2.0 * uniform(seed, index) - 1.0)
    }

    /// This plus `scale` times noise. The stream is the bench's own: same properties as the host's, other numbers.
    fn noisy(&self, scale: f32, noise: impl Fn(u64) -> f64) -> Result<Tensor> {
        let values = self.values();
        let noisy = values
            .iter()
            .zip(0..)
            .map(|(value, index)| value + scale * noise(index) as f32);
        Ok(self.result(self.info.dtype, &self.info.shape, noisy))
    }

    pub fn reshape(&self, shape: &[u64]) -> Result<Tensor> {
        let len = shape
            .iter()
            .try_fold(1_u64, |len, &axis| len.checked_mul(axis))
            .and_then(|len| usize::try_from(len).ok());
        let len =
            len.ok_or_else(|| Failure::failed(format!("reshape: shape {shape:?} is too large")))?;
        let mut values = self.values().as_ref().clone();
        values.resize(len, 0.0);
        Ok(self.result(self.info.dtype, shape, values))
    }

    pub fn convert(&self, dtype: DType, saturate: bool) -> Result<Tensor> {
        let values = self
            .values()
            .iter()
            .map(|&value| round_to(dtype, value, saturate))
            .collect::<Vec<_>>();
        Ok(self.result(dtype, &self.info.shape, values))
    }

    pub fn duplicate(&self) -> Tensor {
        Tensor {
            info: self.info.clone(),
            values: RefCell::new(self.values().clone()),
            lent: false,
        }
    }

    pub fn read(&self, offset: u64, count: u32) -> Result<Vec<f32>> {
        let values = self.values();
        let range = self.range("read", offset, u64::from(count))?;
        Ok(values[range].to_vec())
    }

    pub fn write(&self, offset: u64, new: &[f32]) -> Result<()> {
        if self.lent {
            return Err(Failure::failed(format!(
                "write: tensor `{}` is lent for reading; duplicate it first",
                self.info.name
            )));
        }
        let range = self.range("write", offset, new.len() as u64)?;
        let mut values = self.values.borrow_mut();
        for (to, &from) in Rc::make_mut(&mut values)[range].iter_mut().zip(new) {
            *to = round_to(self.info.dtype, from, false);
        }
        Ok(())
    }

    /// The element range, if it lies within the tensor.
    fn range(&self, op: &str, offset: u64, count: u64) -> Result<std::ops::Range<usize>> {
        let len = self.info.len();
        match offset.checked_add(count) {
            // Both ends are at most the length of a vector in memory.
            Some(end) if end <= len => Ok(offset as usize..end as usize),
            _ => Err(Failure::failed(format!(
                "{op}: elements {offset} and {count} more of a tensor with {len}"
            ))),
        }
    }

    /// Rows and columns of a matrix.
    fn matrix(&self, op: &str) -> Result<(usize, usize)> {
        match self.info.shape[..] {
            [rows, columns] => Ok((rows as usize, columns as usize)),
            _ => Err(Failure::failed(format!(
                "{op}: needs a matrix, found shape {:?}",
                self.info.shape
            ))),
        }
    }
}

/// Uniform in `[0, 1)`, a function of `(seed, index)`: the output function of SplitMix64.
fn uniform(seed: u64, index: u64) -> f64 {
    let mut word = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((word ^ (word >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

/// A checkpoint under damage.
#[derive(Debug)]
pub struct Draft {
    /// In module order; put tensors that are new come last.
    tensors: RefCell<Vec<Tensor>>,
    changed: RefCell<BTreeMap<String, bool>>,
    model: ModelInfo,
    config: RefCell<String>,
}

impl Draft {
    pub fn new(checkpoint: &super::Checkpoint) -> Self {
        Self {
            tensors: RefCell::new(
                checkpoint
                    .tensors()
                    .iter()
                    .map(|tensor| tensor.0.lend())
                    .collect(),
            ),
            changed: RefCell::default(),
            model: checkpoint.model(),
            config: RefCell::new(checkpoint.config().to_string()),
        }
    }

    pub fn model(&self) -> ModelInfo {
        let tensors = self.tensors.borrow().iter().map(Tensor::info).collect();
        ModelInfo {
            tensors,
            ..self.model.clone()
        }
    }

    pub fn get(&self, name: &str) -> Result<Tensor> {
        let tensors = self.tensors.borrow();
        tensors
            .iter()
            .find(|tensor| tensor.info.name == name)
            .map(Tensor::lend)
            .ok_or_else(|| missing(name))
    }

    pub fn put(&self, name: &str, tensor: Tensor) -> Result<()> {
        let mut tensors = self.tensors.borrow_mut();
        let place = tensors.iter().position(|known| known.info.name == name);
        let mut tensor = tensor.lend();
        let shape = tensor.info.shape.clone();
        match place.and_then(|place| tensors.get_mut(place)) {
            Some(known) => {
                tensor.info = TensorInfo {
                    shape,
                    dtype: tensor.info.dtype,
                    tied_to: None,
                    ..known.info.clone()
                };
                *known = tensor;
            }
            None => {
                tensor.info = checkpoint::info(name, tensor.info.dtype, &shape);
                tensors.push(tensor);
            }
        }
        self.changed.borrow_mut().insert(name.to_owned(), true);
        Ok(())
    }

    pub fn remove(&self, name: &str) -> Result<()> {
        let mut tensors = self.tensors.borrow_mut();
        let place = tensors
            .iter()
            .position(|known| known.info.name == name)
            .ok_or_else(|| missing(name))?;
        tensors.remove(place);
        self.changed.borrow_mut().insert(name.to_owned(), false);
        Ok(())
    }

    pub fn config(&self) -> String {
        self.config.borrow().clone()
    }

    pub fn set_config(&self, config: &str) -> Result<()> {
        match serde_json::from_str::<Value>(config) {
            Ok(Value::Object(_)) => {
                config.clone_into(&mut self.config.borrow_mut());
                Ok(())
            }
            _ => Err(Failure::failed("set-config: not a JSON object")),
        }
    }

    /// Changed tensors (`None` = removed) and the configuration.
    pub fn into_changes(self) -> (BTreeMap<String, Option<crate::Tensor>>, Value) {
        let tensors = self.tensors.into_inner();
        let changed = self.changed.into_inner().into_keys().map(|name| {
            let tensor = tensors
                .iter()
                .find(|tensor| tensor.info.name == name)
                .map(|tensor| crate::Tensor(tensor.duplicate()));
            (name, tensor)
        });
        (
            changed.collect(),
            serde_json::from_str(&self.config.into_inner()).unwrap_or(Value::Null),
        )
    }
}

/// The failure for a tensor that is not there.
fn missing(name: &str) -> Failure {
    Failure::failed(format!("the checkpoint has no tensor `{name}`"))
}

/// One line of the log, on standard error.
pub fn log(level: u8, message: &str) {
    eprintln!(
        "[{}] {message}",
        ["debug", "info", "warn"][usize::from(level.min(2))]
    );
}
