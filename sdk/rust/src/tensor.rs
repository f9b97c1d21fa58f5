//! Tensors, kernel programs and drafts: handles to what the host holds.
//!
//! In a component every call goes to the host. In a native build (unit tests) the same calls go to the
//! [test bench](crate::bench).

use crate::ops::{Op, Span};
use crate::{DType, Failure, ModelInfo, Result, TensorInfo, expr};

#[cfg(not(target_arch = "wasm32"))]
use crate::bench::host as imp;
#[cfg(target_arch = "wasm32")]
use crate::wasm::host as imp;

/// A kernel program that the host has checked.
#[derive(Debug)]
pub struct Program(pub(crate) imp::Program);

impl Program {
    /// A program in f32 arithmetic, without rounding to a narrower dtype in between. `body` returns the new element, or
    /// nothing for a program that only [measures](expr::Kernel::measure).
    ///
    /// # Errors
    /// When the program is too long or the host refuses it.
    pub fn new<R: expr::Leaves>(body: impl FnOnce(expr::Kernel) -> R) -> Result<Self> {
        Self::rounded(DType::F32, body)
    }

    /// A program with the arithmetic of a `dtype` tensor: after each elementary step the result is rounded to `dtype`.
    ///
    /// # Errors
    /// When the program is too long or the host refuses it.
    pub fn rounded<R: expr::Leaves>(
        dtype: DType,
        body: impl FnOnce(expr::Kernel) -> R,
    ) -> Result<Self> {
        Self::from_ops(&expr::build(dtype, body)?)
    }

    /// A program given as operations.
    ///
    /// # Errors
    /// When the host refuses it.
    pub fn from_ops(ops: &[Op]) -> Result<Self> {
        imp::Program::compile(ops).map(Self)
    }
}

/// What a program made.
#[derive(Debug)]
pub struct Computed {
    /// The new tensor.
    pub tensor: Tensor,
    /// What the program measured, in the order of its [measures](expr::Kernel::measure).
    pub measures: Vec<f64>,
}

impl Computed {
    /// The tensor and exactly `N` measures.
    ///
    /// # Errors
    /// When the program takes another number of measures.
    pub fn split<const N: usize>(self) -> Result<(Tensor, [f64; N])> {
        Ok((self.tensor, exactly(self.measures)?))
    }
}

/// Measures in the number that the caller expects.
fn exactly<const N: usize>(measures: Vec<f64>) -> Result<[f64; N]> {
    measures.try_into().map_err(|measures: Vec<f64>| {
        Failure::failed(format!(
            "the program takes {} measures, not {N}",
            measures.len()
        ))
    })
}

/// A tensor in the host.
#[derive(Debug)]
#[repr(transparent)]
pub struct Tensor(pub(crate) imp::Tensor);

impl Tensor {
    /// Name, shape, dtype and place in the model. Results of operations have an empty name.
    pub fn info(&self) -> TensorInfo {
        self.0.info()
    }

    /// Axes, outermost first.
    pub fn shape(&self) -> Vec<u64> {
        self.info().shape
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.info().dtype
    }

    /// Number of elements.
    pub fn len(&self) -> u64 {
        self.info().len()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Runs `program` with this tensor as input 0 and `others` as inputs 1.., all of this shape. The result has this
    /// tensor's shape and dtype, rounded half to even. What the program measures costs no pass of its own.
    ///
    /// # Errors
    /// When inputs or scalars are missing, or shapes differ.
    pub fn compute(
        &self,
        program: &Program,
        others: &[&Tensor],
        scalars: &[f32],
    ) -> Result<Computed> {
        let others: Vec<&imp::Tensor> = others.iter().map(|other| &other.0).collect();
        let (tensor, measures) = self.0.compute(&program.0, &others, scalars)?;
        Ok(Computed {
            tensor: Tensor(tensor),
            measures,
        })
    }

    /// What `program` measures, exactly `N` numbers; nothing is stored. Inputs as for [`Tensor::compute`].
    ///
    /// ```
    /// # use packhost_sdk::{DType, Program, Result, Statistic, bench};
    /// # let (a, b) = (bench::tensor("a", DType::F32, &[2], &[1.0, 5.0]), bench::tensor("b", DType::F32, &[2], &[4.0, 1.0]));
    /// let distance = Program::new(|k| k.measure(Statistic::SumOfSquares, k.input(0) - k.input(1)))?;
    /// let [squares] = a.measure(&distance, &[&b], &[])?;
    /// assert_eq!(squares.sqrt(), 5.0);
    /// # Ok::<(), packhost_sdk::Failure>(())
    /// ```
    ///
    /// # Errors
    /// When inputs or scalars are missing, shapes differ, the program takes another number of measures, or there is no
    /// element and a measure needs one.
    pub fn measure<const N: usize>(
        &self,
        program: &Program,
        others: &[&Tensor],
        scalars: &[f32],
    ) -> Result<[f64; N]> {
        let others: Vec<&imp::Tensor> = others.iter().map(|other| &other.0).collect();
        exactly(self.0.measure(&program.0, &others, scalars)?)
    }

    /// Builds a program with the arithmetic of this tensor's dtype and runs it on this tensor alone.
    ///
    /// # Errors
    /// As [`Program::rounded`] and [`Tensor::compute`].
    pub fn map(&self, body: impl FnOnce(expr::Kernel) -> expr::Expr) -> Result<Tensor> {
        let program = Program::rounded(self.dtype(), body)?;
        Ok(self.compute(&program, &[], &[])?.tensor)
    }

    /// As [`Tensor::map`], with a second tensor of the same shape as input 1.
    ///
    /// # Errors
    /// As [`Tensor::map`].
    pub fn zip(
        &self,
        other: &Tensor,
        body: impl FnOnce(expr::Kernel) -> expr::Expr,
    ) -> Result<Tensor> {
        let program = Program::rounded(self.dtype(), body)?;
        Ok(self.compute(&program, &[other], &[])?.tensor)
    }

    /// The `k`-th smallest magnitude, `1 <= k <= len`, exact. NaN sorts last.
    ///
    /// # Errors
    /// When `k` is out of range.
    pub fn kth_magnitude(&self, k: u64) -> Result<f32> {
        self.0.kth_magnitude(k)
    }

    /// Best approximation of a matrix by one of rank `min(rank, rows, columns)`; the start is a function of `seed`.
    ///
    /// # Errors
    /// When this is no matrix.
    pub fn truncate_rank(&self, rank: u32, seed: u64) -> Result<Tensor> {
        self.0.truncate_rank(rank, seed).map(Tensor)
    }

    /// `[m, k] x [k, n] -> [m, n]`, sums in f32.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn matmul(&self, other: &Tensor) -> Result<Tensor> {
        self.0.matmul(&other.0).map(Tensor)
    }

    /// This plus `scale` times standard normal noise, a function of `(seed, element index)`.
    ///
    /// # Errors
    /// When the dtype is not floating point.
    pub fn add_normal(&self, seed: u64, scale: f32) -> Result<Tensor> {
        self.0.add_normal(seed, scale).map(Tensor)
    }

    /// This plus `scale` times noise uniform in `[-1, 1)`, a function of `(seed, element index)`.
    ///
    /// # Errors
    /// When the dtype is not floating point.
    pub fn add_uniform(&self, seed: u64, scale: f32) -> Result<Tensor> {
        self.0.add_uniform(seed, scale).map(Tensor)
    }

    /// A copy with another shape: elements row-major, cut or padded with zeros.
    ///
    /// # Errors
    /// When the shape is too large.
    pub fn reshape(&self, shape: &[u64]) -> Result<Tensor> {
        self.0.reshape(shape).map(Tensor)
    }

    /// A copy in another dtype, rounded half to even.
    ///
    /// # Errors
    /// When the conversion is not served.
    pub fn convert(&self, dtype: DType, saturate: bool) -> Result<Tensor> {
        self.0.convert(dtype, saturate).map(Tensor)
    }

    /// A copy. Cheap: elements are shared until one of the two is written.
    #[must_use]
    pub fn duplicate(&self) -> Tensor {
        Tensor(self.0.duplicate())
    }

    /// Elements `offset .. offset + count` as f32, row-major. Chunks of 16 Ki elements are quickest.
    ///
    /// # Errors
    /// When the range is not within the tensor.
    pub fn read(&self, offset: u64, count: u32) -> Result<Vec<f32>> {
        self.0.read(offset, count)
    }

    /// Overwrites elements from `offset` on, each rounded to the tensor's dtype. A tensor that was lent for reading refuses:
    /// duplicate it first.
    ///
    /// # Errors
    /// When the range is not within the tensor, or the tensor is only lent.
    pub fn write(&self, offset: u64, values: &[f32]) -> Result<()> {
        self.0.write(offset, values)
    }

    /// Copies `count` elements of `from`, from `source` on, over those of this tensor from `offset` on, in chunks.
    ///
    /// # Errors
    /// As [`Tensor::read`] and [`Tensor::write`].
    pub fn copy_from(&self, offset: u64, from: &Tensor, source: u64, count: u64) -> Result<()> {
        let mut done = 0;
        while done < count {
            let step = (count - done).min(CHUNK);
            // `step` is at most CHUNK, which fits.
            self.write(offset + done, &from.read(source + done, step as u32)?)?;
            done += step;
        }
        Ok(())
    }

    /// One row of the `[first axis, all others]` view.
    ///
    /// # Errors
    /// When there is no such row.
    pub fn row(&self, row: u64) -> Result<Vec<f32>> {
        let (_, columns) = self.info().rows_columns();
        self.read_long(row * columns, columns)
    }

    /// All elements, row-major. Meant for vectors and small matrices.
    ///
    /// # Errors
    /// What the host refuses.
    pub fn row_major(&self) -> Result<Vec<f32>> {
        self.read_long(0, self.len())
    }

    /// Reads in chunks.
    fn read_long(&self, offset: u64, count: u64) -> Result<Vec<f32>> {
        let mut values = Vec::new();
        let mut done = 0;
        while done < count {
            let step = (count - done).min(CHUNK);
            // `step` is at most CHUNK, which fits.
            values.extend(self.read(offset + done, step as u32)?);
            done += step;
        }
        Ok(values)
    }

    /// This matrix with the outer product of its first column and first row in place of its elements, every product rounded
    /// to the tensor's dtype.
    ///
    /// # Errors
    /// What the host refuses.
    pub fn outer_of_first(&self) -> Result<Tensor> {
        let (rows, columns) = self.info().rows_columns();
        // Two tensors of -inf with the first column, respectively the first row, written in: a maximum along the
        // other axis spreads them, exactly.
        let low = self.map(|k| k.constant(f32::NEG_INFINITY))?;
        let column = low.duplicate();
        for row in 0..rows {
            column.write(row * columns, &self.read(row * columns, 1)?)?;
        }
        low.write(0, &self.row(0)?)?;
        column.zip(&low, |k| {
            k.input(0).reduce_max(Span::Row) * k.input(1).reduce_max(Span::Column)
        })
    }
}

/// Elements per read or write: 64 KiB, where crossing the boundary is quickest.
pub(crate) const CHUNK: u64 = 16 * 1024;

/// A checkpoint that can be damaged: values, shapes, dtypes, presence, tying, configuration.
#[derive(Debug)]
#[repr(transparent)]
pub struct Draft(pub(crate) imp::Draft);

impl Draft {
    /// The model as it stands now.
    pub fn model(&self) -> ModelInfo {
        self.0.model()
    }

    /// A tensor, lent for reading.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn get(&self, name: &str) -> Result<Tensor> {
        self.0.get(name).map(Tensor)
    }

    /// Replaces a tensor or adds one.
    ///
    /// # Errors
    /// What the host refuses.
    pub fn put(&self, name: &str, tensor: Tensor) -> Result<()> {
        self.0.put(name, tensor.0)
    }

    /// Removes a tensor.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.0.remove(name)
    }

    /// `config.json` as it stands now.
    ///
    /// # Errors
    /// When the host holds something that is no JSON object.
    pub fn config(&self) -> Result<serde_json::Map<String, serde_json::Value>> {
        serde_json::from_str(&self.0.config())
            .map_err(|error| Failure::failed(format!("config.json is not a JSON object: {error}")))
    }

    /// Replaces `config.json`.
    ///
    /// # Errors
    /// What the host refuses.
    pub fn set_config(&self, config: serde_json::Map<String, serde_json::Value>) -> Result<()> {
        self.0
            .set_config(&serde_json::Value::Object(config).to_string())
    }
}

/// A line in the host's log.
pub mod log {
    /// For developers.
    pub fn debug(message: &str) {
        super::imp::log(0, message);
    }

    /// For everyone.
    pub fn info(message: &str) {
        super::imp::log(1, message);
    }

    /// Something is odd.
    pub fn warn(message: &str) {
        super::imp::log(2, message);
    }
}
