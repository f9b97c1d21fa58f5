//! Kernel programs on the CPU.
//!
//! [`graph`] turns the stack program into values, [`geometry`] cuts the tensor into tiles, [`plan`] and [`emit`] make routines
//! for the [`machine`], [`run`] drives them over the tensor. [`engine`] holds the machine for each instruction set. Nothing
//! here knows any particular program.

mod emit;
mod engine;
mod geometry;
mod graph;
mod lanes;
mod machine;
mod ops;
mod plan;
mod run;
mod worker;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::sync::{Arc, Mutex, PoisonError};

pub use engine::Level;

use crate::{Computed, DType, Result, Tensor, TensorMut, cast, cpu::Cpu, program::Program};
use engine::Engine;
use graph::{Form, Stored};
use plan::Plan;

/// Compiled programs that are kept.
const CACHED: usize = 64;

/// Compiles programs for shapes and keeps the latest.
#[derive(Debug)]
pub(super) struct Kernels {
    pub(super) level: Level,
    engine: Engine,
    cache: Mutex<Vec<(Program, Arc<Plan>)>>,
}

impl Kernels {
    pub(super) fn new(level: Level) -> Self {
        let level = Level::available()
            .into_iter()
            .filter(|&l| l <= level)
            .max()
            .unwrap_or(Level::Portable);
        Self {
            level,
            engine: Engine::new(level),
            cache: Mutex::new(Vec::new()),
        }
    }

    /// See [`crate::Device::compute`].
    pub(super) fn compute(
        &self,
        device: &Cpu,
        program: &Program,
        inputs: &[&Tensor],
        scalars: &[f32],
    ) -> Result<Computed> {
        program.check_compute(inputs, scalars)?;
        let output = inputs[0].dtype();
        self.apply(
            device,
            program,
            inputs,
            scalars,
            output,
            cast::saturates(output),
        )
    }

    /// See [`crate::Device::measure`].
    pub(super) fn measure(
        &self,
        device: &Cpu,
        program: &Program,
        inputs: &[&Tensor],
        scalars: &[f32],
    ) -> Result<Vec<f64>> {
        program.check_measure(inputs, scalars)?;
        Ok(self.run(device, program, inputs, scalars, None))
    }

    /// Runs `program` into a tensor of another dtype. The call has been checked.
    pub(super) fn apply(
        &self,
        device: &Cpu,
        program: &Program,
        inputs: &[&Tensor],
        scalars: &[f32],
        output: DType,
        saturate: bool,
    ) -> Result<Computed> {
        let mut result = TensorMut::for_overwriting(output, inputs[0].shape())?;
        let stored = Stored {
            dtype: output,
            saturate,
        };
        let target = Some((stored, result.bytes_mut()));
        let measures = self.run(device, program, inputs, scalars, target);
        Ok(Computed {
            tensor: result.freeze(),
            measures,
        })
    }

    /// Runs `program`, which has been checked, into bytes where its value is stored. Returns its measures.
    fn run(
        &self,
        device: &Cpu,
        program: &Program,
        inputs: &[&Tensor],
        scalars: &[f32],
        target: Option<(Stored, &mut [u8])>,
    ) -> Vec<f64> {
        if inputs[0].is_empty() {
            // Only sums have passed the check.
            return vec![0.0; program.measures().len()];
        }
        let (rows, columns) = inputs[0].rows_columns();
        let (stored, bytes) = target.unzip();
        let dtypes = inputs[..program.inputs()]
            .iter()
            .map(|input| input.dtype())
            .collect();
        let plan = self.plan(
            program,
            Form {
                rows,
                columns,
                inputs: dtypes,
                stored,
            },
        );
        device.install(|| run::run(&plan, &self.engine, inputs, scalars, bytes))
    }

    /// The compiled program, from the cache if it is there.
    fn plan(&self, program: &Program, form: Form) -> Arc<Plan> {
        // A panic elsewhere cannot leave the list half-written.
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = cache
            .iter()
            .position(|(known, plan)| plan.form == form && known == program)
        {
            let entry = cache.remove(at);
            let plan = entry.1.clone();
            cache.push(entry);
            return plan;
        }
        let plan = Arc::new(Plan::new(program, form));
        if cache.len() == CACHED {
            cache.remove(0);
        }
        cache.push((program.clone(), plan.clone()));
        plan
    }
}
