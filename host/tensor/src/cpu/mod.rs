//! The CPU back end: a thread pool of its own, kernel programs over tiles, exact selection, statistics, matrix product.
//!
//! Every operation cuts its work into pieces whose borders depend on the sizes alone, never on the number of threads, and
//! joins partial results in index order: the same bytes come out for any pool.

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::{
    Computed, DType, Device, Error, Result, Shift, Tensor, WeightStats, WeightWish,
    program::{Op, Program},
};

pub mod activation;
mod convert;
mod kernel;
pub mod linalg;
pub mod matmul;
pub mod network;
pub mod noise;
mod select;
mod weight_stats;
pub(crate) mod widen;

pub use kernel::Level;
use noise::Noise;

/// The processor this program runs on.
#[derive(Debug)]
pub struct Cpu {
    pool: ThreadPool,
    kernels: kernel::Kernels,
}

impl Cpu {
    /// A device with `threads` worker threads, or one per available core.
    ///
    /// # Errors
    /// When the operating system refuses the threads.
    pub fn new(threads: Option<usize>) -> Result<Self> {
        Self::with_level(threads, Level::Avx512)
    }

    /// As [`Cpu::new`], with kernels that use at most the instructions of `level`: results are the same, only slower.
    ///
    /// # Errors
    /// As [`Cpu::new`].
    pub fn with_level(threads: Option<usize>, level: Level) -> Result<Self> {
        let threads = threads
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
            .max(1);
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("packhost-cpu-{index}"))
            .build()
            .map_err(|error| Error::Threads {
                threads,
                message: error.to_string(),
            })?;
        Ok(Self {
            pool,
            kernels: kernel::Kernels::new(level),
        })
    }

    /// How many worker threads the device has.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// The instruction set that kernels use.
    pub fn level(&self) -> Level {
        self.kernels.level
    }

    /// Runs `work` inside the pool, so that rayon's parallel iterators use this device's threads.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.install(work)
    }
}

impl Device for Cpu {
    fn name(&self) -> &str {
        "cpu"
    }

    fn compute(&self, program: &Program, inputs: &[&Tensor], scalars: &[f32]) -> Result<Computed> {
        self.kernels.compute(self, program, inputs, scalars)
    }

    fn measure(&self, program: &Program, inputs: &[&Tensor], scalars: &[f32]) -> Result<Vec<f64>> {
        self.kernels.measure(self, program, inputs, scalars)
    }

    fn kth_magnitude(&self, tensor: &Tensor, k: u64) -> Result<f32> {
        select::kth_magnitude(self, tensor, k)
    }

    fn truncate_rank(&self, tensor: &Tensor, rank: u32, seed: u64) -> Result<Tensor> {
        linalg::truncate_rank(self, tensor, rank, seed)
    }

    fn matmul(&self, lhs: &Tensor, rhs: &Tensor) -> Result<Tensor> {
        matmul::matmul_tensors(self, lhs, rhs)
    }

    fn add_normal(&self, tensor: &Tensor, seed: u64, scale: f32) -> Result<Tensor> {
        noise::add(self, tensor, Noise::Normal, seed, scale)
    }

    fn add_uniform(&self, tensor: &Tensor, seed: u64, scale: f32) -> Result<Tensor> {
        noise::add(self, tensor, Noise::Uniform, seed, scale)
    }

    fn reshape(&self, tensor: &Tensor, shape: &[usize]) -> Result<Tensor> {
        convert::reshape(self, tensor, shape)
    }

    fn convert(&self, tensor: &Tensor, dtype: DType, saturate: bool) -> Result<Tensor> {
        let wide = matches!(dtype, DType::F32 | DType::F64);
        if dtype == tensor.dtype() && dtype.is_float() && (wide || !saturate) {
            return Ok(tensor.clone());
        }
        if dtype.is_float() && tensor.dtype().is_float() {
            let program = Program::check(&[Op::Input(0)])?;
            let converted = self
                .kernels
                .apply(self, &program, &[tensor], &[], dtype, saturate)?;
            return Ok(converted.tensor);
        }
        convert::from_integers(self, tensor, dtype, saturate)
    }

    fn weight_stats(&self, tensor: &Tensor, wish: &WeightWish) -> Result<WeightStats> {
        weight_stats::weight_stats(self, tensor, wish)
    }

    fn shift(&self, tensor: &Tensor, base: &Tensor) -> Result<Shift> {
        weight_stats::shift(self, tensor, base)
    }
}
