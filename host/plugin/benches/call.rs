//! What the sandbox costs: the same kernel called natively and through a component, and a call that does nothing.
//!
//! Axes: edit (quant-rtn, fp8, magnitude-prune), way (native, component). The contenders take turns on the same tensor and the
//! best of several rounds counts, so that a busy machine slows both alike; the ratio is the sandbox's tax. `native` repeats
//! the very device calls that the component makes. Not measured: loading, and the model around it.
//!
//! On 2 shared cores (EPYC, AVX-512), 128 MiB, 2026-11-23: ratios 0.96, 0.80 and 0.92 (below one is noise), 0.3 to 0.5 ms
//! outside the host's services per call, 0.1 to 0.2 ms for a whole call on 8 elements.
//!
//! `PACKHOST_BENCH_MIB` sets the size of the bf16 tensor (256); the components must be built (`cargo xtask components`).
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::{
    cell::RefCell,
    path::Path,
    time::{Duration, Instant},
};

use packhost_plugin::{
    CacheDir, EditPlugin, Engine, EngineOptions, Registry, Role, Target, TensorInfo,
};
use packhost_tensor::{
    DType, Device, Result, Shift, Summary, Tensor, WeightStats, WeightWish, cpu::Cpu,
    program::Program,
};

const ROUNDS: usize = 7;
const COLUMNS: usize = 4096;

/// Counts what passes through to the real device, and remembers it, so that it can be repeated natively.
struct Recorder<'a> {
    device: &'a Cpu,
    calls: std::sync::Mutex<Vec<Call>>,
}

/// A device call of the edits measured here.
enum Call {
    /// With so many inputs.
    Compute(Program, usize, Vec<f32>),
    Kth(u64),
    Summary(Summary),
}

impl Device for Recorder<'_> {
    fn name(&self) -> &str {
        "recorder"
    }

    fn compute(&self, program: &Program, inputs: &[&Tensor], scalars: &[f32]) -> Result<Tensor> {
        let call = Call::Compute(program.clone(), inputs.len(), scalars.to_vec());
        self.calls.lock().unwrap().push(call);
        self.device.compute(program, inputs, scalars)
    }

    fn summary(&self, tensor: &Tensor, summary: Summary) -> Result<f64> {
        self.calls.lock().unwrap().push(Call::Summary(summary));
        self.device.summary(tensor, summary)
    }

    fn kth_magnitude(&self, tensor: &Tensor, k: u64) -> Result<f32> {
        self.calls.lock().unwrap().push(Call::Kth(k));
        self.device.kth_magnitude(tensor, k)
    }

    fn truncate_rank(&self, tensor: &Tensor, rank: u32, seed: u64) -> Result<Tensor> {
        self.device.truncate_rank(tensor, rank, seed)
    }

    fn matmul(&self, lhs: &Tensor, rhs: &Tensor) -> Result<Tensor> {
        self.device.matmul(lhs, rhs)
    }

    fn add_normal(&self, tensor: &Tensor, seed: u64, scale: f32) -> Result<Tensor> {
        self.device.add_normal(tensor, seed, scale)
    }

    fn add_uniform(&self, tensor: &Tensor, seed: u64, scale: f32) -> Result<Tensor> {
        self.device.add_uniform(tensor, seed, scale)
    }

    fn reshape(&self, tensor: &Tensor, shape: &[usize]) -> Result<Tensor> {
        self.device.reshape(tensor, shape)
    }

    fn convert(&self, tensor: &Tensor, dtype: DType, saturate: bool) -> Result<Tensor> {
        self.device.convert(tensor, dtype, saturate)
    }

    fn weight_stats(&self, tensor: &Tensor, wish: &WeightWish) -> Result<WeightStats> {
        self.device.weight_stats(tensor, wish)
    }

    fn shift(&self, tensor: &Tensor, base: &Tensor) -> Result<Shift> {
        self.device.shift(tensor, base)
    }
}

fn main() {
    let mib: usize = std::env::var("PACKHOST_BENCH_MIB")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(256);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins");
    let registry = match Registry::scan(&root) {
        Ok(registry) => registry,
        Err(error) => return println!("components are not built: {error}"),
    };
    let device = Cpu::new(None).unwrap();
    let options = EngineOptions {
        cache: CacheDir::Off,
        ..EngineOptions::default()
    };
    let engine = Engine::new(options).unwrap();
    let tensor = |mib: usize| {
        let zeros = Tensor::zeros(DType::BF16, [(mib << 19) / COLUMNS, COLUMNS]).unwrap();
        device.add_normal(&zeros, 1, 0.02).unwrap()
    };
    let large = tensor(mib);
    let small = Tensor::zeros(DType::BF16, [1, 8]).unwrap();
    println!(
        "{mib} MiB of bf16, {} cores",
        std::thread::available_parallelism().map_or(1, usize::from)
    );
    println!(
        "{:<18} {:>12} {:>12} {:>8} {:>12} {:>14}",
        "edit", "native", "component", "ratio", "outside", "8 elements"
    );
    for (id, params) in [
        ("quant-rtn", r#"{"bits": 8, "group_size": 128}"#),
        ("fp8", r#"{"format": "e4m3fn"}"#),
        ("magnitude-prune", r#"{"sparsity": 0.5}"#),
    ] {
        let plugin = engine.load(registry.get(id).unwrap()).unwrap();
        let plugin = plugin.edit().unwrap();
        let recorder = Recorder {
            device: &device,
            calls: Default::default(),
        };
        let target = Target {
            tensor: "w".into(),
            params: params.into(),
        };
        plugin
            .apply(&target, &large, &info(&large), &recorder)
            .unwrap();
        let calls = recorder.calls.into_inner().unwrap();
        let outside = RefCell::new(Duration::MAX);
        let [native, component] = best([&mut || repeat(&device, &large, &calls), &mut || {
            let stats = apply(plugin, &target, &large, &device);
            let mut least = outside.borrow_mut();
            *least = stats.min(*least);
        }]);
        let [tiny] = best([&mut || {
            apply(plugin, &target, &small, &device);
        }]);
        println!(
            "{id:<18} {native:>12.3?} {component:>12.3?} {:>8.4} {:>12.3?} {tiny:>14.3?}",
            component.as_secs_f64() / native.as_secs_f64(),
            outside.into_inner(),
        );
    }
}

/// One call through the component; returns the time outside the host's services.
fn apply(plugin: &EditPlugin, target: &Target, tensor: &Tensor, device: &Cpu) -> Duration {
    let called = plugin.apply(target, tensor, &info(tensor), device).unwrap();
    called.stats.outside_host()
}

/// The same device calls without the sandbox.
fn repeat(device: &Cpu, tensor: &Tensor, calls: &[Call]) {
    for call in calls {
        match call {
            Call::Compute(program, inputs, scalars) => {
                let inputs = vec![tensor; *inputs];
                drop(std::hint::black_box(
                    device.compute(program, &inputs, scalars).unwrap(),
                ));
            }
            Call::Kth(k) => {
                std::hint::black_box(device.kth_magnitude(tensor, *k).unwrap());
            }
            Call::Summary(summary) => {
                std::hint::black_box(device.summary(tensor, *summary).unwrap());
            }
        }
    }
}

/// The best time of each contender over rounds in which all take turns.
fn best<const N: usize>(mut contenders: [&mut dyn FnMut(); N]) -> [Duration; N] {
    let mut best = [Duration::MAX; N];
    for _ in 0..ROUNDS {
        for (contender, best) in contenders.iter_mut().zip(&mut best) {
            let begin = Instant::now();
            contender();
            *best = begin.elapsed().min(*best);
        }
    }
    best
}

fn info(tensor: &Tensor) -> TensorInfo {
    TensorInfo {
        name: "w".into(),
        shape: tensor.shape().iter().map(|&axis| axis as u64).collect(),
        dtype: tensor.dtype(),
        role: Role::FfnUp,
        layer: Some(0),
        expert: None,
        tied_to: None,
    }
}
