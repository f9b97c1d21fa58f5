//! The operations that every device offers. Plugins reach tensors through this trait and nothing else.

use crate::{DType, Result, Shift, Tensor, WeightStats, WeightWish, program::Program};

/// What a program made of its inputs.
#[derive(Debug, Clone)]
pub struct Computed {
    /// The value that the program leaves for each element.
    pub tensor: Tensor,
    /// The program's measures, in order.
    pub measures: Vec<f64>,
}

/// A place where tensor operations run. Results are the same bits for any thread count.
pub trait Device: Send + Sync {
    /// Name for people and reports, such as `cpu`.
    fn name(&self) -> &str;

    /// Runs `program` over `inputs`, all of one shape; the result has the shape and dtype of input 0, rounded half to even.
    /// NaN results are stored as the dtype's canonical quiet NaN. The program's measures are taken in the same pass.
    fn compute(&self, program: &Program, inputs: &[&Tensor], scalars: &[f32]) -> Result<Computed>;

    /// The measures of `program` over `inputs`, the same numbers as from [`Device::compute`]; nothing is stored, and the
    /// program need not leave a value.
    fn measure(&self, program: &Program, inputs: &[&Tensor], scalars: &[f32]) -> Result<Vec<f64>>;

    /// The k-th smallest absolute value, `1 <= k <= len`, exact. NaN sorts last.
    fn kth_magnitude(&self, tensor: &Tensor, k: u64) -> Result<f32>;

    /// Best approximation of a matrix by one of rank `min(rank, rows, columns)`, cast to the tensor's dtype. A tensor of
    /// more than two axes is taken as `[first axis, all others]`. Sums are f32 or better; the start is a function of `seed`.
    fn truncate_rank(&self, tensor: &Tensor, rank: u32, seed: u64) -> Result<Tensor>;

    /// `[m, k] x [k, n] -> [m, n]`, sums in f32, stored in the dtype of `lhs`.
    fn matmul(&self, lhs: &Tensor, rhs: &Tensor) -> Result<Tensor>;

    /// `tensor + scale * normal(seed, element index)`.
    fn add_normal(&self, tensor: &Tensor, seed: u64, scale: f32) -> Result<Tensor>;

    /// `tensor + scale * uniform(seed, element index)` with uniform in `[-1, 1)`.
    fn add_uniform(&self, tensor: &Tensor, seed: u64, scale: f32) -> Result<Tensor>;

    /// A copy with another shape: elements row-major, cut or padded with zeros.
    fn reshape(&self, tensor: &Tensor, shape: &[usize]) -> Result<Tensor>;

    /// A copy in another dtype, rounded half to even.
    fn convert(&self, tensor: &Tensor, dtype: DType, saturate: bool) -> Result<Tensor>;

    /// Statistics of a weight, all that `wish` names in one go. Refuses tensors that are not floats, and, where more than the
    /// counts are wanted, those that have not two axes.
    fn weight_stats(&self, tensor: &Tensor, wish: &WeightWish) -> Result<WeightStats>;

    /// How far `tensor` is from `base`, which has its shape; both read as f32.
    fn shift(&self, tensor: &Tensor, base: &Tensor) -> Result<Shift>;
}
