//! A small device over `Vec<f32>`, a model of one tensor, and an engine without a cache.

use std::time::Duration;

use packhost_plugin::{
    CacheDir, Called, EditPlugin, Edited, Engine, EngineOptions, Error, GuardPlugin, Limits,
    ModelInfo, Plugin, Role, Target, TensorInfo,
};
use packhost_tensor::{
    Computed, DType, Device, Error as TensorError, Result, Shift, Tensor, WeightStats, WeightWish,
    program::Program,
};

use crate::guest::Guest;

/// Does the few things that the tests need, slowly and plainly.
#[derive(Default)]
pub struct Plain {
    /// How long `kth_magnitude` takes.
    pub slow: Duration,
}

fn unserved(op: &'static str) -> TensorError {
    TensorError::Argument {
        op,
        message: "not served by the test device".into(),
    }
}

impl Device for Plain {
    fn name(&self) -> &str {
        "plain"
    }

    /// Input 0 times scalar 0; measures as [`Plain::measure`].
    fn compute(&self, program: &Program, inputs: &[&Tensor], scalars: &[f32]) -> Result<Computed> {
        let scale = scalars.first().copied().unwrap_or(1.0);
        let values: Vec<f32> = inputs[0]
            .to_f32()
            .iter()
            .map(|value| value * scale)
            .collect();
        Ok(Computed {
            tensor: Tensor::from_f32(inputs[0].dtype(), inputs[0].shape(), &values)?,
            measures: self.measure(program, inputs, scalars)?,
        })
    }

    /// Sums of input 0.
    fn measure(&self, program: &Program, inputs: &[&Tensor], _: &[f32]) -> Result<Vec<f64>> {
        let sum = inputs[0]
            .to_f32()
            .iter()
            .map(|&value| f64::from(value))
            .sum();
        Ok(vec![sum; program.measures().len()])
    }

    fn kth_magnitude(&self, tensor: &Tensor, k: u64) -> Result<f32> {
        std::thread::sleep(self.slow);
        let mut values: Vec<f32> = tensor.to_f32().iter().map(|value| value.abs()).collect();
        values.sort_by(f32::total_cmp);
        let index = usize::try_from(k).ok().and_then(|k| k.checked_sub(1));
        let found = index.and_then(|index| values.get(index));
        found.copied().ok_or(TensorError::Argument {
            op: "kth-magnitude",
            message: format!("no element {k}"),
        })
    }

    fn truncate_rank(&self, _: &Tensor, _: u32, _: u64) -> Result<Tensor> {
        Err(unserved("truncate-rank"))
    }

    fn matmul(&self, _: &Tensor, _: &Tensor) -> Result<Tensor> {
        Err(unserved("matmul"))
    }

    fn add_normal(&self, _: &Tensor, _: u64, _: f32) -> Result<Tensor> {
        Err(unserved("add-normal"))
    }

    fn add_uniform(&self, _: &Tensor, _: u64, _: f32) -> Result<Tensor> {
        Err(unserved("add-uniform"))
    }

    fn reshape(&self, tensor: &Tensor, shape: &[usize]) -> Result<Tensor> {
        let mut values = tensor.to_f32();
        values.resize(shape.iter().product(), 0.0);
        Tensor::from_f32(tensor.dtype(), shape, &values)
    }

    fn convert(&self, tensor: &Tensor, dtype: DType, _: bool) -> Result<Tensor> {
        Tensor::from_f32(dtype, tensor.shape(), &tensor.to_f32())
    }

    fn weight_stats(&self, _: &Tensor, _: &WeightWish) -> Result<WeightStats> {
        Err(unserved("weight-stats"))
    }

    fn shift(&self, _: &Tensor, _: &Tensor) -> Result<Shift> {
        Err(unserved("shift"))
    }
}

/// The tensor `w`: two rows of four.
pub fn tensor() -> Tensor {
    Tensor::from_f32(
        DType::BF16,
        [2, 4],
        &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
    )
    .unwrap()
}

/// Facts about it.
pub fn info() -> TensorInfo {
    TensorInfo {
        name: "w".into(),
        shape: vec![2, 4],
        dtype: DType::BF16,
        role: Role::FfnUp,
        layer: Some(3),
        expert: None,
        tied_to: None,
    }
}

/// A model of that tensor and another, `v`.
pub fn model() -> ModelInfo {
    ModelInfo {
        architecture: "test".into(),
        layers: 4,
        hidden_size: 4,
        vocab_size: 2,
        experts: 0,
        tensors: vec![
            info(),
            TensorInfo {
                name: "v".into(),
                ..info()
            },
        ],
    }
}

/// What the honest test edit plans.
pub fn target() -> Target {
    Target {
        tensor: "w".into(),
        params: "{}".into(),
    }
}

/// Limits that make evil end soon.
pub fn tight() -> Limits {
    Limits {
        own_time: Duration::from_millis(300),
        memory_bytes: 64 << 20,
        ..Limits::default()
    }
}

/// An engine with `limits`, without a cache.
pub fn engine_with(limits: Limits) -> Engine {
    Engine::new(EngineOptions {
        limits,
        cache: CacheDir::Off,
    })
    .unwrap()
}

/// An engine with default limits, without a cache.
pub fn engine() -> Engine {
    engine_with(Limits::default())
}

/// Loads an edit.
pub fn load_edit(engine: &Engine, guest: &Guest) -> EditPlugin {
    match engine.load_bytes("test-plugin", &guest.build(), None) {
        Ok(Plugin::Edit(plugin)) => plugin,
        Ok(_) => panic!("not an edit"),
        Err(error) => panic!("{error}"),
    }
}

/// Loads a guard.
pub fn load_guard(engine: &Engine, guest: &Guest) -> GuardPlugin {
    match engine.load_bytes("test-plugin", &guest.build(), None) {
        Ok(Plugin::Guard(plugin)) => plugin,
        Ok(_) => panic!("not a guard"),
        Err(error) => panic!("{error}"),
    }
}

/// Applies `plugin` to the tensor on a plain device.
pub fn apply(plugin: &EditPlugin) -> std::result::Result<Called<Edited>, Error> {
    plugin.apply(&target(), &tensor(), &info(), &Plain::default())
}
