//! The edits through their components, as shares of the machine's copy bandwidth, and what the sandbox adds to it.
//!
//! Contenders: a copy by each thread of its share (and, to compare, the program that does nothing, which is a copy past the
//! caches); each edit (quant-rtn, fp8, magnitude-prune) through its component; and `native`, which repeats the very device
//! calls that the component makes. All take turns over the same tensors, each of 64 MiB of bf16, about what a matrix of a 7B
//! model has; of each tensor the best of several rounds counts, so that a busy machine slows all alike. Results go into
//! memory that earlier results have left, as they do when a checkpoint is edited tensor by tensor; so does the copy. Not
//! measured: loading, and the model around it.
//!
//! `PACKHOST_BENCH_MIB` sets the size of all tensors together (1024); the components must be built
//! (`cargo xtask components`).
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod support;

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use packhost_plugin::{EditPlugin, Role, Target, TensorInfo};
use packhost_tensor::{
    Computed, DType, Device, Result, Shift, Tensor, TensorMut, WeightStats, WeightWish,
    cpu::Cpu,
    program::{Op, Program},
};
use rayon::prelude::*;

const ROUNDS: usize = 7;
const COLUMNS: usize = 4096;
/// Size of a tensor.
const TENSOR_MIB: usize = 64;

/// Counts what passes through to the real device, and remembers it, so that it can be repeated natively.
struct Recorder<'a> {
    device: &'a Cpu,
    calls: std::sync::Mutex<Vec<Call>>,
}

/// A device call of the edits measured here.
enum Call {
    /// With so many inputs.
    Compute(Program, usize),
    /// Its result is the one scalar of later programs.
    Kth(u64),
}

impl Device for Recorder<'_> {
    fn name(&self) -> &str {
        "recorder"
    }

    fn compute(&self, program: &Program, inputs: &[&Tensor], scalars: &[f32]) -> Result<Computed> {
        let call = Call::Compute(program.clone(), inputs.len());
        self.calls.lock().unwrap().push(call);
        self.device.compute(program, inputs, scalars)
    }

    fn measure(&self, program: &Program, inputs: &[&Tensor], scalars: &[f32]) -> Result<Vec<f64>> {
        unreachable!(
            "these edits measure while they compute: {program:?} {} {scalars:?}",
            inputs.len()
        )
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
        .unwrap_or(1024);
    let Some((registry, engine)) = support::components() else {
        return;
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let device = Cpu::new(None).unwrap();
    let zeros = Tensor::zeros(DType::BF16, [(TENSOR_MIB << 19) / COLUMNS, COLUMNS]).unwrap();
    let tensors: Vec<Tensor> = (0..mib.div_ceil(TENSOR_MIB).max(1))
        .map(|seed| device.add_normal(&zeros, seed as u64, 0.02).unwrap())
        .collect();
    drop(zeros);
    println!(
        "{} tensors of {TENSOR_MIB} MiB of bf16, {cores} cores, kernels for {}",
        tensors.len(),
        device.level().name()
    );
    let edits = [
        ("quant-rtn", r#"{"bits": 8, "group_size": 128}"#),
        ("fp8", r#"{"format": "e4m3fn"}"#),
        ("magnitude-prune", r#"{"sparsity": 0.5}"#),
    ]
    .map(|(id, params)| {
        let plugin = engine.load(registry.get(id).unwrap()).unwrap();
        let target = Target {
            tensor: "w".into(),
            params: params.into(),
        };
        (id, plugin, target)
    });
    let mut counts = vec![1];
    counts.extend((cores > 1).then_some(cores));
    for threads in counts {
        let device = Cpu::new(Some(threads)).unwrap();
        println!("\n{threads} thread(s)");
        println!(
            "  {:<16} {:>11} {:>11} {:>11} {:>11} {:>15} {:>10} {:>12}",
            "edit",
            "copy",
            "copied past",
            "native",
            "component",
            "share of copies",
            "of native",
            "outside"
        );
        for (id, plugin, target) in &edits {
            bench(id, plugin.edit().unwrap(), target, &device, &tensors);
        }
    }
    tiny(&edits, &device);
}

fn bench(id: &str, plugin: &EditPlugin, target: &Target, device: &Cpu, tensors: &[Tensor]) {
    let recorder = Recorder {
        device,
        calls: Default::default(),
    };
    let first = &tensors[0];
    let edited = plugin.apply(target, first, &info(first), &recorder);
    drop(edited.unwrap());
    let calls = recorder.calls.into_inner().unwrap();
    let outside = RefCell::new(Duration::MAX);
    let mut room = TensorMut::zeros(DType::BF16, first.shape()).unwrap();
    let identity = [Call::Compute(Program::check(&[Op::Input(0)]).unwrap(), 1)];
    let [copied, streamed, native, component] = best(
        tensors,
        [
            &mut |tensor| copy(device, tensor, &mut room),
            &mut |tensor| repeat(device, tensor, &identity),
            &mut |tensor| repeat(device, tensor, &calls),
            &mut |tensor| {
                let time = apply(plugin, target, tensor, device);
                let mut least = outside.borrow_mut();
                *least = time.min(*least);
            },
        ],
    );
    let bytes = tensors
        .iter()
        .map(|tensor| tensor.bytes().len())
        .sum::<usize>() as f64;
    let speed = |time: Duration| format!("{:.2} GB/s", bytes / 1e9 / time.as_secs_f64());
    println!(
        "  {id:<16} {:>11} {:>11} {:>11} {:>11} {:>8.2} {:>6.2} {:>10.3} {:>12.3?}",
        speed(copied),
        speed(streamed),
        speed(native),
        speed(component),
        copied.as_secs_f64() / component.as_secs_f64(),
        streamed.as_secs_f64() / component.as_secs_f64(),
        native.as_secs_f64() / component.as_secs_f64(),
        outside.into_inner(),
    );
}

/// What a call costs that has next to nothing to do.
fn tiny(edits: &[(&str, packhost_plugin::Plugin, Target)], device: &Cpu) {
    println!("\na call on 8 elements");
    let small = [Tensor::zeros(DType::BF16, [1, 8]).unwrap()];
    for (id, plugin, target) in edits {
        let plugin = plugin.edit().unwrap();
        let call = &mut |tensor: &Tensor| {
            apply(plugin, target, tensor, device);
        };
        let [time] = best(&small, [call]);
        println!("  {id:<16} {time:>12.3?}");
    }
}

/// What the edits are measured against: each thread copies its share.
fn copy(device: &Cpu, tensor: &Tensor, target: &mut TensorMut) {
    let target = target.bytes_mut();
    device.install(|| {
        let share = target.len().div_ceil(4 * rayon::current_num_threads());
        target
            .par_chunks_mut(share)
            .zip(tensor.bytes().par_chunks(share))
            .for_each(|(to, from)| to.copy_from_slice(from));
    });
}

/// One call through the component; returns the time outside the host's services.
fn apply(plugin: &EditPlugin, target: &Target, tensor: &Tensor, device: &Cpu) -> Duration {
    let called = plugin.apply(target, tensor, &info(tensor), device).unwrap();
    called.stats.outside_host()
}

/// The same device calls without the sandbox.
fn repeat(device: &Cpu, tensor: &Tensor, calls: &[Call]) {
    let mut scalars = [0.0];
    for call in calls {
        match call {
            Call::Compute(program, inputs) => {
                let inputs = vec![tensor; *inputs];
                drop(std::hint::black_box(
                    device.compute(program, &inputs, &scalars).unwrap(),
                ));
            }
            Call::Kth(k) => scalars = [device.kth_magnitude(tensor, *k).unwrap()],
        }
    }
}

/// The time of each contender over all tensors, the best of each tensor, over rounds in which all take turns.
fn best<const N: usize>(
    tensors: &[Tensor],
    mut contenders: [&mut dyn FnMut(&Tensor); N],
) -> [Duration; N] {
    let mut best = [(); N].map(|()| vec![Duration::MAX; tensors.len()]);
    for _ in 0..ROUNDS {
        for (contender, best) in contenders.iter_mut().zip(&mut best) {
            for (tensor, best) in tensors.iter().zip(best) {
                let begin = Instant::now();
                contender(tensor);
                *best = begin.elapsed().min(*best);
            }
        }
    }
    best.map(|times| times.into_iter().sum())
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
